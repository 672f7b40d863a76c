//! A line becomes an activation, or does not, and says why. Every line here is synthetic: Fortinet's wording is not public.

use std::collections::HashMap;
use std::time::Duration;

use ftm_relay::activation::Activation;
use ftm_relay::activation::Stage;
use ftm_relay::devices;
use ftm_relay::devices::Devices;
use ftm_relay::frame::Frame;
use ftm_relay::frame::Peer;
use ftm_relay::glob::Glob;
use ftm_relay::pipeline::Admission;
use ftm_relay::pipeline::Pipeline;
use ftm_relay::pipeline::Reading;
use ftm_relay::pipeline::Verdict;
use ftm_relay::recipients;
use ftm_relay::rules;
use ftm_relay::rules::Rules;
use ftm_relay::settings::Check;
use jiff::SignedDuration;
use jiff::Timestamp;
use proptest::prelude::*;
use serde::Deserialize;

const CODE: &str = "EEIOTCU3LENEDJMR";
const OTHER_CODE: &str = "EEIMI3ZFJEC2CCPL";
/// When every frame here is received.
const NOW: i64 = 1_764_000_000;

/// The part of a configuration that decides about lines.
#[derive(Default, Deserialize)]
struct Part {
    #[serde(default)]
    rule: Vec<rules::Config>,
    #[serde(default)]
    device: Vec<devices::Config>,
}

fn pipeline(config: &str) -> Pipeline {
    let mut check = Check::new(".", None, false);
    let part: Part = toml::from_str(config).unwrap();
    let recipients: recipients::Config = toml::from_str("domains = [\"example.com\"]").unwrap();
    let rules = Rules::build(part.rule, &mut check);
    let validity = Duration::from_secs(72 * 3600);
    let devices = Devices::build(part.device, validity, &mut check);
    let recipients = recipients.build(&mut check);
    assert!(!check.has_problems(), "{:?}", check.findings());
    let core = Admission {
        allow: vec!["10.20.0.0/16".parse().unwrap(), "::1/128".parse().unwrap()],
        devices: vec![Glob::new("FGT60F*"), Glob::new("fw-*")],
    };
    Pipeline::new(
        rules.unwrap(),
        devices.unwrap(),
        recipients.unwrap(),
        HashMap::from([("core".to_owned(), core)]),
    )
}

fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

fn frame(line: impl Into<Vec<u8>>) -> Frame {
    Frame {
        bytes: line.into(),
        peer: Peer::unknown(),
        listener: None,
        received_at: now(),
    }
}

fn read(line: &str) -> Reading {
    pipeline("").process(&frame(line))
}

fn wanted(reading: Reading) -> Activation {
    match reading.verdict {
        Verdict::Wanted(activation) => *activation,
        other => panic!("not wanted: {other:?}"),
    }
}

fn rejected(reading: Reading) -> String {
    match reading.verdict {
        Verdict::Rejected(reason) => reason,
        other => panic!("not rejected: {other:?}"),
    }
}

fn ignored(reading: Reading) -> String {
    match reading.verdict {
        Verdict::Ignored(reason) => reason,
        other => panic!("not ignored: {other:?}"),
    }
}

/// A code-sent event of a 7.x device with this message.
fn sent(msg: &str) -> String {
    format!(
        "<189>date=2025-11-24 time=17:00:00 devname=\"BORDER-FGT\" devid=\"FGT60FTK20000001\" eventtime={NOW}123456789 tz=\"+0100\" \
         logid=\"0100038412\" type=\"event\" subtype=\"system\" level=\"notice\" vd=\"root\" logdesc=\"Token activation code sent\" \
         user=\"EXAMPLE\\Alice\" action=\"send\" msg=\"{msg}\""
    )
}

#[test]
fn a_code_sent_event_says_everything() {
    let reading = read(&sent(&format!(
        "Activation code {CODE} of FTKMOB6549A91140 to alice@example.com"
    )));
    assert_eq!(reading.format, Some("kv"));
    assert_eq!(reading.logid, Some(38412));
    assert_eq!(reading.stage, Some(Stage::CodeSent));
    assert_eq!(reading.user.as_deref(), Some("EXAMPLE\\Alice"));
    let activation = wanted(reading);
    assert_eq!(activation.device.id, "FGT60FTK20000001");
    assert_eq!(activation.device.name, "BORDER-FGT");
    assert_eq!(activation.device.vdom, "root");
    assert_eq!(activation.user, "EXAMPLE\\Alice");
    assert_eq!(activation.person, "alice");
    assert_eq!(activation.logid, 38412);
    assert_eq!(activation.description, "Token activation code sent");
    assert_eq!(activation.stage, Stage::CodeSent);
    assert_eq!(activation.code.unwrap().expose(), CODE);
    assert_eq!(activation.token.as_deref(), Some("FTKMOB6549A91140"));
    assert_eq!(activation.addresses, ["alice@example.com"]);
    assert_eq!(activation.event_time.as_second(), NOW);
    assert_eq!(activation.received_at, now());
    assert_eq!(activation.expires_at.as_second(), NOW + 72 * 3600);
    assert!(activation.skew.abs() < SignedDuration::from_secs(1));
    assert_eq!(activation.event_id.len(), 32);
}

#[test]
fn the_code_is_found_in_any_wording() {
    for msg in [
        format!("Send activation code {CODE} to alice@example.com"),
        format!("{CODE} has been sent"),
        format!("Code:{CODE}."),
        format!("Activation code ({CODE}), expires in 72 hours"),
        format!("Code for alice is \\\"{CODE}\\\"."),
        format!("Code for alice is \"{CODE}\"."),
        format!("Code \"{CODE}\" for alice"),
        format!("\"{CODE}\""),
        format!("[{CODE}] FTKMOB22AACCDDEE {CODE}"),
        format!("INTERNATIONALISE EGALITARIANISTIC {CODE}"),
        format!("código: {CODE} enviado"),
    ] {
        let activation = wanted(read(&sent(&msg)));
        assert_eq!(activation.code.unwrap().expose(), CODE, "{msg}");
    }
}

#[test]
fn a_code_sent_event_without_a_code_is_still_wanted() {
    for msg in [
        "",
        "Send activation code **************** to alice",
        "Send activation code to FTKMOB22AACCDDEE",
        "xEEIOTCU3LENEDJMR",
    ] {
        assert_eq!(wanted(read(&sent(msg))).code, None, "{msg}");
    }
    assert_eq!(wanted(read("logid=0100038412")).person, "");
}

#[test]
fn two_codes_are_an_ambiguity_not_a_choice() {
    let reason = rejected(read(&sent(&format!("{CODE} or {OTHER_CODE}"))));
    assert!(reason.contains("different codes"), "{reason}");
    assert!(!reason.contains("EEI"), "{reason}");
}

#[test]
fn the_message_id_decides_never_the_text() {
    for id in ["0100038411", "0100032001", "0316013056", "0100138412"] {
        let line = sent(CODE).replace("0100038412", id);
        let reason = ignored(read(&line));
        assert!(reason.contains(id[4..].trim_start_matches('0')), "{reason}");
    }
    assert!(ignored(read("date=2025-11-24 msg=\"x\"")).contains("logid"));
    assert!(ignored(read("logid=none msg=\"x\"")).contains("logid"));
    rejected(read(""));
    rejected(read("hello world"));
    let twice = format!("{} user=\"mallory\"", sent(CODE));
    assert!(rejected(read(&twice)).contains("user"));
}

#[test]
fn the_other_events_of_a_token_carry_no_code() {
    for (id, stage) in [
        ("0100032155", Stage::Requested),
        ("0100032156", Stage::Activated),
        ("0100032159", Stage::Failed),
    ] {
        let line = sent(&format!("{CODE} {OTHER_CODE}"))
            .replace("0100038412", id)
            .replace("action=", "serialno=\"FTKMOB6549A91140\" action=");
        let activation = wanted(read(&line));
        assert_eq!(activation.stage, stage);
        assert_eq!(activation.code, None);
        assert_eq!(activation.token.as_deref(), Some("FTKMOB6549A91140"));
    }
}

#[test]
fn the_same_event_has_the_same_id_in_every_format() {
    let kv = sent(&format!("code {CODE}"));
    let body = kv.strip_prefix("<189>").unwrap();
    let csv = format!(
        "<189>date=2025-11-24,time=17:00:00,devid=\"FGT60FTK20000001\",eventtime={NOW}123456789,logid=\"0100038412\",vd=\"root\",user=\"Alice@example.com\",msg=\"a, {CODE}\""
    );
    let cef = format!(
        "<189>Nov 24 17:00:00 BORDER-FGT CEF: 0|Fortinet|Fortigate|v7.2.5|38412|event:system|5|deviceExternalId=FGT60FTK20000001 \
         FTNTFGTeventtime={NOW}123456789 FTNTFGTlogid=0100038412 cat=event:system FTNTFGTvd=root duser=EXAMPLE\\\\Alice act=send msg=code {CODE}"
    );
    let json = format!(
        "{{\"devid\":\"fgt60ftk20000001\",\"eventtime\":{NOW},\"logid\":\"0100038412\",\"vd\":\"root\",\"user\":\"alice\",\"msg\":\"code {CODE}\"}}"
    );
    let lines = [
        kv.clone(),
        body.to_owned(),
        format!("<189>Feb 27 00:02:40 10.101.54.1 {body}"),
        body.replace("EXAMPLE\\Alice", "EXAMPLE\\\\Alice"),
        csv,
        cef,
        json,
    ];
    let ids: Vec<String> = lines
        .iter()
        .map(|line| {
            let activation = wanted(read(line));
            assert_eq!(activation.code.unwrap().expose(), CODE, "{line}");
            activation.event_id
        })
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let resent = kv.replace(&format!("{NOW}1"), &format!("{}1", NOW + 1));
    assert_ne!(wanted(read(&resent)).event_id, ids[0]);
}

#[test]
fn an_event_without_eventtime_is_identified_by_date_time_and_zone() {
    let line = sent(CODE).replace(&format!("eventtime={NOW}123456789 "), "");
    let first = wanted(read(&line));
    assert_eq!(first.event_time.as_second(), NOW);
    let mut later = frame(line.clone());
    later.received_at = Timestamp::from_second(NOW + 7).unwrap();
    let second = wanted(pipeline("").process(&later));
    assert_eq!(first.event_id, second.event_id);
    let without = line.replace("date=2025-11-24 time=17:00:00 ", "");
    let third = wanted(read(&without));
    assert_eq!(third.event_time, now());
    assert_ne!(third.event_id, first.event_id);
}

#[test]
fn a_local_time_without_zone_is_the_receipt_unless_it_is_an_old_log() {
    let line = sent(CODE).replace(&format!("eventtime={NOW}123456789 tz=\"+0100\" "), "");
    for hour in ["03", "16", "23"] {
        let line = line.replace("time=17", &format!("time={hour}"));
        let reading = read(&line);
        assert!(!reading.notes.iter().any(|note| note.contains("old")));
        assert_eq!(wanted(reading).event_time, now(), "{hour}");
    }
    let old = wanted(read(&line.replace("2025-11-24", "2025-10-24")));
    assert_eq!(old.event_time.to_string(), "2025-10-24T17:00:00Z");
    assert!(old.expires_at < now());
}

#[test]
fn a_clock_that_is_ahead_is_not_believed() {
    let ahead = sent(CODE).replace(&NOW.to_string(), &(NOW + 3600).to_string());
    let reading = read(&ahead);
    assert!(
        reading
            .notes
            .iter()
            .any(|note| note.contains("60 min ahead")),
        "{:?}",
        reading.notes
    );
    let activation = wanted(reading);
    assert_eq!(activation.event_time, now());
    assert_eq!(activation.skew.as_mins(), 60);
    let slightly = sent(CODE).replace(&NOW.to_string(), &(NOW + 299).to_string());
    let activation = wanted(read(&slightly));
    assert_eq!(activation.event_time.as_second(), NOW + 299);
}

#[test]
fn an_old_event_keeps_its_time_and_says_so() {
    let old = sent(CODE).replace(&NOW.to_string(), &(NOW - 96 * 3600).to_string());
    let reading = read(&old);
    assert!(
        reading.notes.iter().any(|note| note.contains("3 days old")),
        "{:?}",
        reading.notes
    );
    let activation = wanted(reading);
    assert!(activation.expires_at < now());
    assert_eq!(activation.skew.as_hours(), -95);
}

#[test]
fn a_cluster_is_one_device_with_its_own_validity() {
    let pipeline = pipeline(
        "[[device]]\nid = [\"FGT60FTK20000000\", \"fgt60ftk20000001\"]\nname = \"branch-12\"\nvalidity = \"1h\"\n",
    );
    let activation = wanted(pipeline.process(&frame(sent(CODE))));
    assert_eq!(activation.device.id, "FGT60FTK20000000");
    assert_eq!(activation.device.name, "branch-12");
    assert_eq!(activation.expires_at.as_second(), NOW + 3600);
    let other = sent(CODE).replace("FGT60FTK20000001", "FGT60FTK20000000");
    assert_eq!(
        wanted(pipeline.process(&frame(other))).event_id,
        activation.event_id
    );
}

#[test]
fn rfc5424_is_known_by_its_host_name() {
    let pipeline = pipeline("[[device]]\nid = [\"FGT60FTK20000000\", \"MY_FW\"]\n");
    let line = format!(
        "<189>1 2025-11-24T16:00:00Z MY_FW - - - - eventtime={NOW}123456789 tz=\"+0100\" logid=\"0100038412\" vd=\"root\" user=\"alice\" msg=\"{CODE}\""
    );
    let activation = wanted(pipeline.process(&frame(line)));
    assert_eq!(activation.device.id, "FGT60FTK20000000");
    assert_eq!(activation.device.name, "MY_FW");
}

#[test]
fn cef_is_called_by_its_host_name() {
    let line = "<189>Nov 24 17:00:00 MY_FW CEF: 0|Fortinet|Fortigate|v7.2.5|38412|event:system|5|deviceExternalId=FGT60FTK20000001 duser=alice";
    let device = wanted(read(line)).device;
    assert_eq!(
        (device.id.as_str(), device.name.as_str()),
        ("FGT60FTK20000001", "MY_FW")
    );
}

#[test]
fn listener_and_device_say_who_may_speak() {
    let pipeline = pipeline(
        "[[device]]\nid = \"FGT60FTK20000001\"\npeers = [\"10.20.0.1\", \"fgt.example.com\"]\n",
    );
    let verdict = |address: Option<&str>, listener: Option<&str>, line: &str| {
        let mut frame = frame(line);
        frame.listener = listener.map(Into::into);
        frame.peer = match address {
            Some(address) => Peer::at(address.parse().unwrap()),
            None => Peer::unknown(),
        };
        pipeline.process(&frame)
    };
    let line = sent(CODE);
    let good = verdict(Some("10.20.0.1"), Some("core"), &line);
    assert!(good.notes.is_empty(), "{:?}", good.notes);
    wanted(good);
    wanted(verdict(Some("::ffff:10.20.0.1"), Some("core"), &line));
    for (address, listener, line, part) in [
        ("10.20.0.2", Some("core"), line.clone(), "`peers`"),
        ("10.20.0.2", None, line.clone(), "`peers`"),
        ("192.0.2.1", Some("core"), line.clone(), "`allow`"),
        (
            "10.20.0.1",
            Some("elsewhere"),
            line.clone(),
            "not configured",
        ),
        (
            "10.20.0.2",
            Some("core"),
            line.replace("FGT60FTK2", "FGT100FT2"),
            "`devices`",
        ),
    ] {
        let reason = rejected(verdict(Some(address), listener, &line));
        assert!(reason.contains(part), "{reason}");
    }
    let unchecked = verdict(None, None, &line);
    assert_eq!(unchecked.notes.len(), 2, "{:?}", unchecked.notes);
    wanted(unchecked);
    let noise = verdict(Some("192.0.2.1"), Some("core"), "logid=0000000013");
    ignored(noise);
    let mut by_certificate = frame(line);
    by_certificate.peer = Peer {
        address: Some("10.20.7.7".parse().unwrap()),
        certificate_names: ["fgt.example.com".to_owned()].into(),
    };
    wanted(pipeline.process(&by_certificate));
}

#[test]
fn an_operators_rule_adds_an_event() {
    let pipeline = pipeline(concat!(
        "[[rule]]\nname = \"guest account\"\nlogid = [38406]\nwhere = { action = \"send*\" }\n",
        "code = 'password (?P<code>\\S+)'\nuser = 'user (?P<user>\\S+)'\n",
    ));
    let guest = sent("Guest user bob has password Xy12ab").replace("0100038412", "0100038406");
    let activation = wanted(pipeline.process(&frame(guest.clone())));
    assert_eq!(activation.rule, "guest account");
    assert_eq!(activation.person, "bob");
    assert_eq!(activation.code.unwrap().expose(), "Xy12ab");
    ignored(pipeline.process(&frame(guest.replace("\"send\"", "\"drop\""))));
    ignored(read(&guest));
    let several = guest.replace("Xy12ab", "Xy12ab user eve");
    assert!(rejected(pipeline.process(&frame(several))).contains("different users"));
    let nobody = guest.replace("user bob", "bob");
    let reading = pipeline.process(&frame(nobody));
    assert!(reading.notes.iter().any(|note| note.contains("no user")));
    assert_eq!(wanted(reading).person, "");
}

#[test]
fn what_goes_on_is_one_bounded_line() {
    let long = sent(CODE).replace("Alice", &"x".repeat(300));
    assert!(rejected(read(&long)).contains("longer than"));
    let broken = sent(CODE)
        .replace("EXAMPLE\\Alice", "al\r\nice")
        .replace("Token activation code sent", &"d".repeat(1000));
    let activation = wanted(read(&broken));
    assert_eq!(activation.user, "al  ice");
    assert!(activation.description.len() <= 128);
}

#[test]
fn no_reason_and_no_note_shows_a_code() {
    for line in [
        sent(&format!("{CODE} {OTHER_CODE}")),
        format!("{} msg=\"{CODE}\"", sent(CODE)),
        sent(CODE).replace(&NOW.to_string(), &(NOW - 999_999).to_string()),
        format!("<189>msg=\"{CODE}"),
        format!("{CODE} {CODE}"),
    ] {
        let shown = format!("{:?}", read(&line));
        assert!(!shown.contains(CODE), "{shown}");
    }
}

/// Lines of every format, some broken, with ids and codes in right and wrong places.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let id = prop_oneof![
        Just("0100038412".to_owned()),
        Just("38412".to_owned()),
        Just("100032156".to_owned()),
        Just("138412".to_owned()),
        "[0-9]{3,12}",
    ];
    let value = prop_oneof![
        Just(CODE.to_owned()),
        Just("logid=0100038412 msg=".to_owned()),
        "[a-z0-9 =,\\\\\"|:{}]{0,20}",
    ];
    let fields = proptest::collection::vec(
        (
            prop_oneof![Just("msg"), Just("user"), Just("url"), Just("eventtime")],
            value,
        ),
        0..5,
    );
    (id, fields, 0..6_usize, any::<bool>()).prop_map(|(id, fields, format, quotes)| {
        let mut line = String::new();
        let quote = if quotes { "\"" } else { "" };
        match format {
            0..=2 => {
                line.push_str(["<189>", "", "<189>1 2025-11-24T16:00:00Z fw - - - - "][format]);
                line.push_str(&format!("a=b logid={quote}{id}{quote} "));
                for (name, value) in fields {
                    line.push_str(&format!("{name}={quote}{value}{quote} "));
                }
            }
            3 => {
                line.push_str(&format!("a=b,logid={quote}{id}{quote}"));
                for (name, value) in fields {
                    line.push_str(&format!(",{name}=\"{value}\""));
                }
            }
            4 => {
                let last = &id[id.len().saturating_sub(5)..];
                line.push_str(&format!("CEF: 0|Fortinet|Fortigate|v7|{last}|e|5|a=b "));
                if quotes {
                    line.push_str(&format!("FTNTFGTlogid={id} "));
                }
                for (name, value) in fields {
                    line.push_str(&format!("{name}={value} "));
                }
            }
            _ => {
                line.push_str(&format!("{{\"logid\": {quote}{id}{quote}"));
                for (name, value) in fields {
                    line.push_str(&format!(
                        ",{}:{}",
                        serde_json::json!(name),
                        serde_json::json!(value)
                    ));
                }
                line.push('}');
            }
        }
        line.into_bytes()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn whatever_is_wanted_passes_the_gate(
        line in line(),
        at in any::<prop::sample::Index>(),
        byte in proptest::option::of(any::<u8>()),
    ) {
        let pipeline = pipeline("[[rule]]\nname = \"odd\"\nlogid = [138412, 13, 0]\n");
        let mut line = line;
        if let Some(byte) = byte {
            let at = at.index(line.len());
            line[at] = byte;
        }
        let reading = pipeline.process(&frame(line.clone()));
        let is_other_log = matches!(reading.verdict, Verdict::Ignored(_));
        // A record without a stage was refused before its id was known.
        prop_assert!(
            is_other_log || reading.stage.is_none() || pipeline.gate().passes(&line),
            "{:?} {}", reading.verdict, String::from_utf8_lossy(&line)
        );
    }

    #[test]
    fn a_code_goes_out_only_with_the_logid_of_its_rule(line in line()) {
        let reading = pipeline("").process(&frame(line));
        if let Verdict::Wanted(activation) = reading.verdict {
            prop_assert!([38412, 32155, 32156, 32159].contains(&activation.logid));
            prop_assert!(activation.code.is_none() || activation.logid == 38412);
        }
    }
}

#[test]
fn the_generated_lines_reach_every_verdict() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let pipeline = pipeline("");
    let mut runner = TestRunner::deterministic();
    let (mut wanted, mut ignored, mut rejected) = (0, 0, 0);
    for _ in 0..500 {
        let line = line().new_tree(&mut runner).unwrap().current();
        match pipeline.process(&frame(line)).verdict {
            Verdict::Wanted(_) => wanted += 1,
            Verdict::Ignored(_) => ignored += 1,
            Verdict::Rejected(_) => rejected += 1,
        }
    }
    assert!(
        wanted > 50 && ignored > 50 && rejected > 50,
        "{wanted} wanted, {ignored} ignored, {rejected} rejected"
    );
}
