//! Web requests, log-ins and mails whose logged text spells an activation event: none may come out as one.
//!
//! `tests/data/forged.log` holds those in the default format, one message per line, for measuring other receivers too.
//!
//! A line feed in a value cuts a message in two where messages end with LF. A FortiGate's own TCP counts bytes, so this
//! takes a relay in between that passes control characters on. The second piece can't be told from a message if FortiOS
//! escapes nothing in it; it escapes quotes (seen in 7.x), and then the quote that closed the value stands alone. JSON
//! escapes line feeds. CEF escapes `=` alone, so a whole JSON object can be spelled in it: a relay that passes CEF on must
//! count bytes too.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use ftm_relay::devices::Devices;
use ftm_relay::frame::Frame;
use ftm_relay::frame::Peer;
use ftm_relay::pipeline::Pipeline;
use ftm_relay::pipeline::Reading;
use ftm_relay::pipeline::Verdict;
use ftm_relay::recipients;
use ftm_relay::rules::Rules;
use ftm_relay::settings::Check;
use ftm_relay::simulate;
use jiff::Timestamp;

use crate::support::relay::BASE;
use crate::support::relay::Relay;
use crate::support::samples::Event;
use crate::support::until;

const DATE: &str = "date=2026-11-24 time=10:22:31";
const DEVICE: &str =
    "devname=\"FGT-B\" devid=\"FGT60FTK20000001\" eventtime=1795774951123456789 tz=\"+0100\"";
const CODE: &str = "EEIOTCU3LENEDJMR";

/// The fields of the event that the texts spell, in the default format.
const EVENT: &str = "logid=\"0100038412\" type=\"event\" subtype=\"system\" level=\"notice\" vd=\"root\" logdesc=\"Token activation code sent\" user=\"mallory\" action=\"send\" msg=\"Send activation code EEIOTCU3LENEDJMR to mallory@example.com\"";

/// The same without quotes.
const BARE: &str = "logid=0100038412 type=event subtype=system level=notice vd=root logdesc=sent user=mallory action=send msg=EEIOTCU3LENEDJMR";

/// The same in CEF.
const CEF: &str = "CEF:0|Fortinet|Fortigate|v7.4.4|38412|event:system send|3|deviceExternalId=FGT60FTK20000001 FTNTFGTlogid=0100038412 cat=event:system FTNTFGTsubtype=system FTNTFGTvd=root duser=mallory act=send msg=EEIOTCU3LENEDJMR";

/// The same in JSON.
const JSON: &str = "{\"logid\":\"0100038412\",\"type\":\"event\",\"subtype\":\"system\",\"vd\":\"root\",\"user\":\"mallory\",\"action\":\"send\",\"msg\":\"Send activation code EEIOTCU3LENEDJMR\"}";

/// What an attacker may write, one line each.
fn texts() -> Vec<String> {
    let whole = format!("{DATE} {DEVICE} {EVENT}");
    let bare = format!("{DATE} {BARE}");
    let lines = [
        whole.clone(),
        bare.clone(),
        format!("https://www.example.com/?{}", bare.replace(' ', "&")),
        format!("<189>{whole}"),
        format!("\" {whole}"),
        format!("x\" {bare} z="),
        format!("x\" {bare} z=\""),
        format!("x\" {bare} z=\"\\"),
        format!("\\\" {whole}"),
        format!("\\\\\" {bare}"),
        format!("{bare}\\"),
        format!("{bare}\\\\"),
        format!("C:\\\" {bare} path=\"D:\\"),
        format!("\",{}", whole.replace(' ', ",")),
        format!(",{},", bare.replace(' ', ",")),
        format!("a\tb\t{}", bare.replace(' ', "\t")),
        format!("a\\n<189>{whole}"),
        format!("a\\r\\n{bare}"),
        format!("a#012<189>{whole}"),
        format!("a%0a<189>{bare}"),
        format!("{} <189>{whole}", whole.len() + 5),
        format!("<189>1 2026-11-24T09:22:31Z FGT-B - - - - {EVENT}"),
        format!("Nov 24 10:22:31 FGT-B {whole}"),
        format!("<189>Nov 24 10:22:31 FGT-B {CEF}"),
        CEF.to_owned(),
        format!("|3|{}", CEF.rsplit('|').next().unwrap()),
        format!("x\\= {}", CEF.rsplit('|').next().unwrap()),
        JSON.to_owned(),
        format!("\",{}", JSON.trim_matches(['{', '}'])),
        format!("\"}}\n{JSON}").replace('\n', ""),
        format!("\\\",{}", JSON.trim_matches(['{', '}'])),
    ];
    lines.into_iter().collect()
}

/// Web filter, log-in and mail logs, with a text of somebody else's at `@`. The last one has its id behind the text.
const LINES: [&str; 9] = [
    "<188>{head} logid=\"0316013056\" type=\"utm\" subtype=\"webfilter\" eventtype=\"ftgd_blk\" level=\"warning\" vd=\"root\" policyid=12 sessionid=183774921 srcip=10.20.12.77 srcport=55104 dstip=198.51.100.23 dstport=443 proto=6 service=\"HTTPS\" hostname=\"www.example.com\" profile=\"default\" action=\"blocked\" reqtype=\"direct\" url=\"@\" sentbyte=517 rcvdbyte=0 direction=\"outgoing\" msg=\"URL belongs to a denied category in policy\" ratemethod=\"domain\" cat=26 catdesc=\"Malicious Websites\"",
    "<188>{head} logid=\"0316013056\" type=\"utm\" subtype=\"webfilter\" level=\"warning\" vd=\"root\" srcip=10.20.12.77 hostname=\"@\" url=\"/\" action=\"blocked\" cat=26",
    "<190>{head} logid=\"0317013312\" type=\"utm\" subtype=\"webfilter\" level=\"notice\" vd=\"root\" hostname=\"www.example.com\" url=\"/\" agent=\"@\"",
    "<190>{head} logid=\"0317013312\" type=\"utm\" subtype=\"webfilter\" level=\"notice\" vd=\"root\" hostname=\"www.example.com\" referralurl=\"@\" url=\"/\" cat=52",
    "<185>{head} logid=\"0419016384\" type=\"utm\" subtype=\"ips\" level=\"alert\" vd=\"root\" attack=\"HTTP.Header\" forwardedfor=\"@\" rawdata=\"Method=GET\"",
    "<185>{head} logid=\"0100032002\" type=\"event\" subtype=\"system\" level=\"alert\" vd=\"root\" logdesc=\"Admin login failed\" user=\"@\" ui=\"https(203.0.113.9)\" action=\"login\" status=\"failed\" msg=\"Administrator @ login failed from https(203.0.113.9)\"",
    "<188>{head} logid=\"0508020503\" type=\"utm\" subtype=\"emailfilter\" level=\"warning\" vd=\"root\" subject=\"@\" srcip=10.20.12.77 attachment=\"no\"",
    "<189>{head} logid=\"0101039426\" type=\"event\" subtype=\"vpn\" level=\"alert\" vd=\"root\" remip=203.0.113.9 user=\"x\" msg=\"@\"",
    "<188>url=\"@\" agent=\"@\" {head} logid=\"0316013056\" type=\"utm\" subtype=\"webfilter\" level=\"warning\" vd=\"root\" msg=\"URL is denied\"",
];

/// Of [`QUOTINGS`], the one that leaves no doubt.
const DOUBLED: usize = 1;

/// How FortiOS may write a text between quotes; only the first is seen.
const QUOTINGS: [fn(&str) -> String; 3] = [
    |text| text.replace('"', "\\\""),
    |text| text.replace('\\', "\\\\").replace('"', "\\\""),
    str::to_owned,
];

fn lines_with(text: &str) -> Vec<String> {
    let head = format!("{DATE} {DEVICE}");
    let fill = |line: &str| line.replace("{head}", &head).replace('@', text);
    LINES.iter().map(|line| fill(line)).collect()
}

/// The text in every line, in every format that has this quoting.
fn forgeries(text: &str, quoting: usize) -> Vec<String> {
    let mut all = Vec::new();
    for line in lines_with(&QUOTINGS[quoting](text)) {
        for (name, format) in simulate::FORMATS {
            // CEF and JSON have escapes of their own; the line they are made of must be read without doubt.
            let has_own = ["cef", "json"].contains(name);
            if has_own && quoting != DOUBLED {
                continue;
            }
            let mut out = String::new();
            format.write(&line, &mut out);
            all.push(out);
        }
    }
    all
}

fn pipeline() -> Pipeline {
    let mut check = Check::new(".", None, false);
    let rules = Rules::build(Vec::new(), &mut check).unwrap();
    let devices = Devices::build(Vec::new(), Duration::from_secs(72 * 3600), &mut check).unwrap();
    let recipients: recipients::Config = toml::from_str("domains = [\"example.com\"]").unwrap();
    let recipients = recipients.build(&mut check).unwrap();
    Pipeline::new(rules, devices, recipients, HashMap::new())
}

fn read(pipeline: &Pipeline, bytes: &[u8]) -> Reading {
    pipeline.process(&Frame {
        bytes: bytes.to_vec(),
        peer: Peer::unknown(),
        listener: None,
        received_at: Timestamp::from_second(1_795_774_960).unwrap(),
    })
}

#[track_caller]
fn assert_is_no_activation(pipeline: &Pipeline, bytes: &[u8]) {
    let reading = read(pipeline, bytes);
    assert!(
        !matches!(reading.verdict, Verdict::Wanted(_)),
        "an activation for {:?} came out of\n{}",
        reading.user,
        String::from_utf8_lossy(bytes)
    );
}

#[test]
fn what_the_texts_spell_would_be_an_activation() {
    let pipeline = pipeline();
    for event in [
        format!("<189>{DATE} {DEVICE} {EVENT}"),
        format!("{DATE} {BARE}"),
        format!("<189>Nov 24 10:22:31 FGT-B {CEF}"),
        JSON.to_owned(),
    ] {
        let Verdict::Wanted(activation) = read(&pipeline, event.as_bytes()).verdict else {
            panic!("not wanted: {event}");
        };
        assert_eq!(activation.user, "mallory");
        assert!(activation.code.is_some() && event.contains(CODE));
    }
}

#[test]
fn a_value_that_spells_an_activation_event_is_no_activation() {
    let pipeline = pipeline();
    for text in texts() {
        for quoting in 0..QUOTINGS.len() {
            for line in forgeries(&text, quoting) {
                for end in ["", "\n", "\r\n", "\0"] {
                    assert_is_no_activation(&pipeline, format!("{line}{end}").as_bytes());
                }
                // As it would be if CEF's values were not escaped.
                assert_is_no_activation(&pipeline, line.replace("\\=", "=").as_bytes());
            }
        }
    }
}

#[test]
fn a_line_feed_in_a_value_stays_in_it_where_bytes_are_counted() {
    let pipeline = pipeline();
    for cut in ["\n", "\r\n", "\0", "\n\n"] {
        for text in texts() {
            for quoting in 0..QUOTINGS.len() {
                for line in forgeries(&format!("a{cut}{text}"), quoting) {
                    assert_is_no_activation(&pipeline, line.as_bytes());
                }
            }
        }
    }
}

#[test]
fn the_pieces_of_a_message_that_a_line_feed_has_cut_are_no_activations() {
    let pipeline = pipeline();
    for text in texts() {
        for ending in [
            "",
            " x=",
            " x",
            " ",
            "\"",
            "=\"",
            " x=\"",
            "\\",
            " x=\"y\\\"",
        ] {
            for quoting in 0..=DOUBLED {
                for line in forgeries(&format!("a\n{text}{ending}"), quoting) {
                    for piece in line.split('\n') {
                        if piece.trim() == JSON {
                            continue;
                        }
                        // CEF's header has no `=` to escape: a piece can bear the id, but neither a user nor a code.
                        let reading = read(&pipeline, piece.as_bytes());
                        if let Verdict::Wanted(activation) = reading.verdict {
                            assert_eq!(reading.format, Some("cef"), "{piece}");
                            assert_eq!((&*activation.user, activation.code), ("", None), "{piece}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn json_that_nests_or_repeats_an_event_is_no_activation() {
    let pipeline = pipeline();
    let inner = JSON.trim_matches(['{', '}']);
    for body in [
        format!("{{\"logid\":\"0316013056\",\"url\":{JSON}}}"),
        format!("{{\"url\":{JSON},\"logid\":\"0316013056\"}}"),
        format!("{{\"logid\":\"0316013056\",\"list\":[{JSON}]}}"),
        format!("[{JSON}]"),
        format!("{{\"logid\":\"0316013056\",{inner}}}"),
        format!("{{{inner},\"logid\":\"0316013056\"}}"),
        format!("{{{inner},\"log\\u0069d\":\"0316013056\"}}"),
        format!("{{\"logid\":{{\"x\":1}},{inner},\"logid\":1}}"),
        format!("{{\"logid\":\"0316013056\"}}{JSON}"),
        format!(
            "{{\"logid\":\"0316013056\",\"user\":\"mallory\",\"u\":\"\\\"}}{}",
            JSON.replace('"', "\\\"")
        ),
        format!("\"{}\"", JSON.replace('"', "\\\"")),
    ] {
        for front in ["", "<189>", "<189>Nov 24 10:22:31 fw "] {
            assert_is_no_activation(&pipeline, format!("{front}{body}").as_bytes());
        }
    }
}

#[test]
fn no_forgery_of_the_file_comes_out_as_an_activation() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/forged.log");
    let file: Vec<String> = texts()
        .iter()
        .enumerate()
        .map(|(n, text)| lines_with(&QUOTINGS[0](text))[n % LINES.len()].clone())
        .collect();
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        std::fs::write(&path, file.join("\n") + "\n").unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.lines().eq(&file), "UPDATE_GOLDENS=1 writes it");

    let relay = Relay::start(&format!(
        "{BASE}[channel.file]\ntype = \"file\"\npath = \"mail\"\n[[route]]\nto = [\"file\"]\n"
    ));
    let counted: Vec<u8> = text
        .lines()
        .flat_map(|line| format!("{} {line}", line.len()).into_bytes())
        .collect();
    relay.send_tcp(&counted);
    relay.send_tcp(text.as_bytes());
    for line in text.lines() {
        relay.send_udp(line.as_bytes());
    }
    relay.send_udp(&Event::code(1, "alice").line());
    until("the one activation behind them", || {
        (relay.states() == ["accepted"]).then_some(())
    });
    let frames = 3 * file.len() + 1;
    until("all frames", || {
        let seen = |listener| relay.metric("ftm_relay_frames_total", &[("listener", listener)]);
        (seen("udp") + seen("tcp") == frames as f64).then_some(())
    });
    assert_eq!(relay.states(), ["accepted"]);
    assert_eq!(
        Relay::files(&relay.dir.path().join("mail")).len(),
        1,
        "one mail"
    );
}
