//! The gate turns nothing away that full reading would take for a wanted event, and lets hardly anything else pass.

use ftm_relay::simulate;
use ftm_relay::syslog;
use ftm_relay::syslog::Gate;
use proptest::prelude::*;
use proptest::sample::select;

/// Wanted ids: the built-in ones, one of another type, two that are short, and one that needs all six digits.
const WANTED: [u32; 8] = [38412, 32155, 32156, 32159, 38406, 13, 100, 138_412];

fn gate() -> Gate {
    Gate::new(WANTED)
}

/// What reading in full says: the wanted id, if it is one.
fn wanted(bytes: &[u8]) -> Option<u32> {
    let id = syslog::parse(bytes).ok()?.message_id()?;
    WANTED.contains(&id).then_some(id)
}

/// A log id's digits: of a wanted id or of its neighbours, with the zeros and prefixes that formats write, or too many.
fn digits() -> impl Strategy<Value = String> {
    let id = prop_oneof![
        4 => select(&WANTED[..]),
        1 => select(&[38411, 38413, 8412, 238_412, 0][..])
    ];
    let front = select(
        &[
            "",
            "0",
            "00",
            "0100",
            "01000",
            "0316",
            "1",
            "99",
            "00000000000000",
            "000000000000000000000",
        ][..],
    );
    (front, id, prop_oneof![Just(0_usize), Just(5), Just(6)])
        .prop_map(|(front, id, width)| format!("{front}{id:0width$}"))
}

/// What may stand around the digits of a value, seen or merely valid.
fn around() -> impl Strategy<Value = (&'static str, &'static str)> {
    let usual = select(&[("", ""), ("\"", "\"")][..]);
    let odd = select(
        &[
            ("\" ", " \""),
            ("\"\t", "\r\""),
            ("\"\u{1}", "\""),
            (" ", ""),
            ("\"", ""),
            ("\\\"", "\""),
            ("\"x", "\""),
            ("\"", "x\""),
            ("\"\\", "\""),
            ("=", ""),
            (":", ""),
            ("\":", "\""),
            ("-", ""),
            ("+", ""),
        ][..],
    );
    prop_oneof![usual, odd]
}

/// What stands in front of a body: nothing, a FortiGate's header, every relay's.
fn front() -> impl Strategy<Value = &'static str> {
    select(
        &[
            "",
            " ",
            "<189>",
            "<189> ",
            "\u{feff}",
            "<189>\u{feff}",
            "<999999>",
            "<189>Feb 27 00:02:40 10.101.54.1 ",
            "<189>Feb 27 00:02:40 fw fortigate: ",
            "Feb  7 00:02:40 fw_1 ",
            "<189>2026-04-03T00:31:09.976660+00:00 192.168.2.1 ",
            "2026 Jun 21 00:00:35 mgr->127.0.0.1 ",
            "<189>1 2026-06-04T15:29:06Z MY_FIREWALL - - - - ",
            "<14>1 2026-06-04T15:29:06+01:00 relay fgt - LOG [meta x=\"logid=0100038412\"] ",
            "<189>1 - - - - - - ",
            "<189>0 a header of nobody's ",
            "strange header ",
            "h\u{f6}st ",
        ][..],
    )
}

/// Fields that don't decide, some of which spell an id.
fn filler() -> impl Strategy<Value = &'static str> {
    select(
        &[
            "date=2026-11-24",
            "devname=\"FGT\"",
            "type=\"event\"",
            "url=\"/?logid=0100038412\"",
            "url=\"a \\\" logid=\\\"0100038412\\\"\"",
            "path=\"C:\\\"",
            "msg=\"code is \"EEIO\".\"",
            "extralogid=0100038412",
            "logidx=1",
            "x=|Fortinet|",
            "word",
            "empty=",
            "x=\"",
        ][..],
    )
}

fn separated() -> impl Strategy<Value = String> {
    let id =
        (digits(), around()).prop_map(|(id, (open, close))| format!("logid={open}{id}{close}"));
    let fields = |n| proptest::collection::vec(filler(), 0..n);
    let separator = select(&[" ", "  ", "\t", ",", ", ", "\u{1}"][..]);
    (front(), fields(5), id, fields(3), separator).prop_map(
        |(front, before, id, after, between)| {
            let fields: Vec<&str> = before.into_iter().chain([&*id]).chain(after).collect();
            format!("{front}{}", fields.join(between))
        },
    )
}

fn cef() -> impl Strategy<Value = String> {
    let tag = select(&["", "CEF:", "CEF: ", "CEF:  "][..]);
    let product = select(&["Fortigate", "FortiGate-1000C", "Forti\\|Gate", "", "a\\\\"][..]);
    let prefix = select(&["FTNTFGT", "FortinetFortiGate", "ad.", ""][..]);
    let padding = select(&["", " ", "\t"][..]);
    (
        front(),
        tag,
        product,
        (padding.clone(), digits(), padding),
        proptest::option::of((prefix, digits(), around())),
        select(&["", "cat=event:system ", "request=/?logid\\=0100038412 ", "x=|Fortinet|1|2|38412| "][..]),
    )
        .prop_map(|(front, tag, product, (left, id, right), logid, more)| {
            let logid = logid.map_or_else(String::new, |(prefix, id, (open, close))| {
                format!("{prefix}logid={open}{id}{close} ")
            });
            format!("{front}{tag}0|Fortinet|{product}|v7.4.4|{left}{id}{right}|event:system send|3|{more}{logid}duser=alice msg=x")
        })
}

fn json() -> impl Strategy<Value = String> {
    let name = select(&["logid", "log\\u0069d", "\\u006cogid", "logid ", "LOGID"][..]);
    let blank = select(&["", " ", "\n", "\t \r\n"][..]);
    let value = prop_oneof![
        digits().prop_map(|id| format!("\"{id}\"")),
        digits().prop_map(|id| format!("\" {id} \"")),
        digits(),
        digits().prop_map(|id| id.trim_start_matches('0').to_owned()),
        digits().prop_map(|id| format!("{id}.0")),
        digits().prop_map(|id| format!("{id}e0")),
        // The first digit written as an escape.
        digits().prop_map(|id| format!("\"\\u003{}{}\"", &id[..1], &id[1..])),
        digits().prop_map(|id| format!("[\"{id}\"]")),
        digits().prop_map(|id| format!("{{\"logid\":\"{id}\"}}")),
        Just("null".to_owned()),
    ];
    let more = select(
        &[
            "",
            "\"a\":{\"logid\":\"0100038412\"},",
            "\"user\":\"\\\"logid\\\":\\\"0100038412\\\"\",",
            "\"n\":1764000000123456789,",
        ][..],
    );
    (
        front(),
        more,
        name,
        (blank.clone(), blank.clone(), blank),
        value,
    )
        .prop_map(|(front, more, name, (one, two, three), value)| {
            format!("{front}{{{one}{more}\"{name}\"{two}:{three}{value}{one},\"vd\":\"root\"}}")
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn whatever_is_read_as_a_wanted_event_passes_the_gate(
        line in prop_oneof![separated(), cef(), json()],
        back in select(&["", "\n", "\r\n", "\0", "|", " \u{4}\0\0D\u{c}<\0\0$"][..]),
        spoilt in proptest::option::weighted(0.2, any::<(proptest::sample::Index, u8)>()),
    ) {
        let mut bytes = format!("{line}{back}").into_bytes();
        if let Some((place, byte)) = spoilt {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let id = wanted(&bytes);
        prop_assert!(
            id.is_none() || gate().passes(&bytes),
            "the gate turns away {id:?} in {}",
            String::from_utf8_lossy(&bytes)
        );
    }
}

/// Whether the lines that the property is about come up at all.
#[test]
fn the_generated_lines_hold_wanted_events_of_every_format() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut seen = std::collections::BTreeMap::new();
    let any = prop_oneof![separated(), cef(), json()];
    for _ in 0..4096 {
        let line = any.new_tree(&mut runner).unwrap().current();
        if wanted(line.as_bytes()).is_some() {
            let format = syslog::parse(line.as_bytes()).unwrap().format();
            *seen.entry(format).or_insert(0) += 1;
        }
    }
    for format in syslog::FORMATS {
        let count = seen.get(format.name).copied().unwrap_or(0);
        assert!(count >= 20, "{}: {count} of {seen:?}", format.name);
    }
}

#[test]
fn of_a_firewalls_other_lines_none_passes_the_gate() {
    let gate = Gate::new([38412, 32155, 32156, 32159]);
    for (name, format) in simulate::FORMATS {
        let mut lines = 0;
        for line in simulate::noise(*format, 7).take(2_000) {
            assert!(!gate.passes(line.as_bytes()), "{name}: {line}");
            lines += 1;
        }
        assert_eq!(lines, 2_000);
    }
}
