//! Bytes become records. Every line here is synthetic.

use ftm_relay::syslog;
use ftm_relay::syslog::FORMATS;
use ftm_relay::syslog::RecordError;
use proptest::prelude::*;

/// The value of a field, which must be there.
fn field(line: impl AsRef<[u8]>, name: &str) -> String {
    let line = line.as_ref();
    let record = syslog::parse(line).unwrap();
    record.get(name).unwrap().into_owned()
}

fn names(line: &[u8]) -> Vec<String> {
    let record = syslog::parse(line).unwrap();
    record.names().map(|name| name.into_owned()).collect()
}

const BODY: &str = concat!(
    "date=2026-11-24 time=10:22:31 devname=\"FGT-B\" devid=\"FGT60FTK20000001\" eventtime=1764000000123456789 tz=\"+0100\" ",
    "logid=\"0100038412\" type=\"event\" subtype=\"system\" level=\"notice\" vd=\"root\" logdesc=\"Token activation code sent\" ",
    "user=\"alice\" action=\"send\" msg=\"Send activation code to alice@example.com, it's = fine\"",
);

#[test]
fn the_default_format_is_read_with_and_without_a_header() {
    for (front, back, host) in [
        ("", "", None),
        ("<189>", "", None),
        ("<189> ", "", None),
        (" ", "", None),
        ("\u{feff}", "", None),
        ("<189>", "\n", None),
        ("<189>", "\r\n", None),
        ("<189>", "\0", None),
        ("<189>", "|", None),
        ("<189>", " \u{4}\0\0D\u{c}<\0\0$", None),
        ("<189>Feb 27 00:02:40 10.101.54.1 ", "", Some("10.101.54.1")),
        ("Feb  7 00:02:40 fw_1 ", "", Some("fw_1")),
        ("Feb 29 00:02:40 fw ", "", Some("fw")),
        ("<189>Feb 27 00:02:40 ", "", None),
        ("<189>Feb 27 00:02:40 relay fortigate: ", "", Some("relay")),
        ("<189>Feb 27 00:02:40 relay fgt[12]: ", "", Some("relay")),
        (
            "<189>2026-04-03T00:31:09.976660+00:00 192.168.2.1 ",
            "",
            Some("192.168.2.1"),
        ),
        (
            "2026 Jun 21 00:00:35 mgr->127.0.0.1 ",
            "",
            Some("mgr->127.0.0.1"),
        ),
        ("<189>0 a header of nobody's ", "", None),
        ("<999999>", "", None),
    ] {
        let line = format!("{front}{BODY}{back}");
        let record = syslog::parse(line.as_bytes()).unwrap();
        assert_eq!(record.format(), "kv", "{front:?}");
        assert_eq!(record.host(), host, "{front:?}");
        assert_eq!(record.message_id(), Some(38412), "{front:?}");
        for (name, value) in [
            ("date", "2026-11-24"),
            ("devid", "FGT60FTK20000001"),
            ("tz", "+0100"),
            ("logdesc", "Token activation code sent"),
            ("user", "alice"),
            (
                "msg",
                "Send activation code to alice@example.com, it's = fine",
            ),
        ] {
            assert_eq!(
                record.get(name).as_deref(),
                Some(value),
                "{name} after {front:?} before {back:?}"
            );
        }
    }
}

#[test]
fn a_collector_that_took_the_first_field_for_a_tag_costs_only_that_field() {
    let eaten = BODY.strip_prefix("date=2026-11-24").unwrap();
    for line in [eaten.to_owned(), format!("<189>{}", eaten.trim_start())] {
        assert_eq!(names(line.as_bytes())[0], "time");
        assert_eq!(field(&line, "user"), "alice");
    }
}

#[test]
fn fields_may_stand_in_any_order_quoted_or_not() {
    let mut fields: Vec<&str> = vec![
        "logid=0100038412",
        "type=event",
        "user=\"alice\"",
        "srcip=2001:db8:1::",
        "assignip=N/A",
        "utmref=65500-742",
        "desc=",
        "extrainfo=\"\"",
        "msg=\"a b\"",
    ];
    for _ in 0..fields.len() {
        fields.rotate_left(1);
        for separator in [" ", "   ", "\t"] {
            let line = fields.join(separator);
            assert_eq!(names(line.as_bytes()).len(), fields.len(), "{line}");
            assert_eq!(field(&line, "logid"), "0100038412");
            assert_eq!(field(&line, "srcip"), "2001:db8:1::");
            assert_eq!(field(&line, "desc"), "");
            assert_eq!(field(&line, "extrainfo"), "");
            assert_eq!(field(&line, "msg"), "a b");
        }
    }
}

#[test]
fn forms_of_older_versions_and_analyzers_are_read() {
    let chassis = "timestamp=1764000000 tz=\"UTC-5:00\" devname=\"c\" devid=\"F6K\" vd=\"root\" date=2026-11-24 time=10:00:00 logid=\"0100038412\" tz=\"-0500\"";
    assert_eq!(field(chassis, "tz"), "UTC-5:00");
    let analyzer = "logver=704072731 timestamp=1764000000 devname=\"c\" devid=\"F6K\" vd=\"root\" date=2026-11-24 logver=0704072731 logid=0100038412";
    assert_eq!(field(analyzer, "logver"), "704072731");
    let old = "date=2016-01-02 time=10:00:00 logver=52 devname=FGT devid=FG100D logid=0100038412 type=event subtype=system level=notice vd=root user=alice msg=\"two words\"";
    assert_eq!(field(old, "msg"), "two words");
    assert_eq!(field(old, "user"), "alice");
}

#[test]
fn a_missing_closing_quote_ends_with_the_line() {
    assert_eq!(
        field("logid=0100038412 msg=\"cut off in the midd", "msg"),
        "cut off in the midd"
    );
}

#[test]
fn bytes_that_are_not_utf_8_harm_only_their_own_value() {
    let line = b"<189>logid=\"0100038412\" name=\"\xff\xfe\" user=\"alice\"";
    assert_eq!(field(line, "user"), "alice");
    assert_eq!(field(line, "name"), "\u{fffd}\u{fffd}");
    let header = b"<189>Feb 27 00:02:40 h\xf6st logid=\"0100038412\"";
    assert_eq!(field(header, "logid"), "0100038412");
}

#[test]
fn only_an_escaped_quote_is_unescaped() {
    let line = r#"user="EXAMPLE\alice" file="a\\b\n" msg="he said \"hi\"" x=1"#;
    assert_eq!(field(line, "user"), r"EXAMPLE\alice");
    assert_eq!(field(line, "file"), r"a\\b\n");
    assert_eq!(field(line, "msg"), r#"he said "hi""#);
    assert_eq!(field(line, "x"), "1");
}

#[test]
fn a_value_may_end_in_a_backslash() {
    for line in [
        r#"logid="0100038412" user="EXAMPLE\" action="send" msg="a b""#,
        r#"logid="0100038412" user="EXAMPLE\" action=send msg="a b""#,
        r#"logid="0100038412" action="C:\" user="EXAMPLE\" msg="a b""#,
        r#"logid="0100038412" msg="a b" user="EXAMPLE\""#,
    ] {
        assert_eq!(field(line, "user"), r"EXAMPLE\", "{line}");
        assert_eq!(field(line, "msg"), "a b", "{line}");
    }
    let doubled = r#"logid="0100038412" user="EXAMPLE\\" msg="a b""#;
    assert_eq!(field(doubled, "user"), r"EXAMPLE\\");
    assert_eq!(field(doubled, "msg"), "a b");
}

#[test]
fn nothing_that_says_what_an_event_is_counts_behind_a_doubtful_quote() {
    let line = r#"path="C:\" logid="0100038412" msg="a b""#;
    assert_eq!(
        syslog::parse(line.as_bytes()).unwrap_err(),
        RecordError::Doubtful("logid")
    );
    let line = r#"logid="0100038412" path="C:\" vd="root""#;
    assert_eq!(
        syslog::parse(line.as_bytes()).unwrap_err(),
        RecordError::Doubtful("vd")
    );
}

#[test]
fn a_quote_that_was_not_escaped_stays_in_its_value() {
    for (line, msg) in [
        (
            r#"logid="0100038412" msg="code is "EEIO"." user="alice""#,
            r#"code is "EEIO"."#,
        ),
        (
            r#"logid="0100038412" msg="the "EEIO" is for alice" user="alice""#,
            r#"the "EEIO" is for alice"#,
        ),
        (
            r#"logid="0100038412" msg="token "EEIO"" user="alice""#,
            r#"token "EEIO""#,
        ),
        (
            r#"logid="0100038412" msg="v)+'"+(select)+"*/" user="alice""#,
            r#"v)+'"+(select)+"*/"#,
        ),
    ] {
        assert_eq!(field(line, "msg"), msg);
        assert_eq!(field(line, "user"), "alice");
    }
}

#[test]
fn text_inside_a_quoted_value_is_no_field() {
    for value in [
        r"/x?user=mallory&logid=0100038412",
        r"a user=mallory logid=0100038412 b",
        r#"a \" user=\"mallory\" logid=\"0100038412\" "#,
        r#"a \" user=mallory logid=0100038412 z"#,
        r#"a \" user=mallory logid=0100038412 z="#,
        r#"a \\" user=mallory logid=0100038412 z"#,
        r#"\\" user=\\"mallory"#,
        r#"a \\\" user=mallory logid=0100038412 z=\\"#,
        "a, user=mallory,logid=0100038412",
        "a\nuser=mallory\nlogid=0100038412",
        "a\r\n<189>logid=0100038412 user=mallory",
        "CEF:0|Fortinet|Fortigate|v7|38412|x|5|duser=mallory",
        r#"{\"logid\":\"0100038412\",\"user\":\"mallory\"}"#,
    ] {
        for tail in ["", " agent=\"x y\"", " n=1", " agent=\"x\" n=1 z=\"\""] {
            let line = format!("<189>date=2026-11-24 logid=\"0316013056\" url=\"{value}\"{tail}");
            let record = syslog::parse(line.as_bytes()).unwrap();
            assert_eq!(record.message_id(), Some(13056), "{line}");
            assert_eq!(record.get("user"), None, "{line}");
            assert!(record.get("url").is_some(), "{line}");
        }
    }
}

#[test]
fn a_deciding_field_stands_once() {
    for name in [
        "logid",
        "type",
        "subtype",
        "devid",
        "vd",
        "user",
        "msg",
        "eventtime",
    ] {
        for format in [
            "{n}=\"a\" x=1 {n}=\"a\"",
            "{n}=a,x=1,{n}=a",
            "{\"{n}\":\"12345\",\"x\":1,\"{n}\":\"12345\"}",
        ] {
            let line = format.replace("{n}", name);
            assert_eq!(
                syslog::parse(line.as_bytes()).unwrap_err(),
                RecordError::Twice(name),
                "{line}"
            );
        }
    }
    assert_eq!(field("level=a x=1 level=b", "level"), "a");
}

#[test]
fn an_error_never_repeats_the_message() {
    let line = b"user=EEIOTCU3LENEDJMR user=EEIOTCU3LENEDJMR";
    let error = syslog::parse(line).unwrap_err();
    assert!(!error.to_string().contains("EEIO"));
    assert!(!format!("{error:?}").contains("EEIO"));
    let record = syslog::parse(b"msg=EEIOTCU3LENEDJMR").unwrap();
    assert!(!format!("{record:?}").contains("EEIO"));
}

#[test]
fn garbage_is_an_error_and_costs_little() {
    for bytes in [
        Vec::new(),
        b" \0\r\n".to_vec(),
        b"A".repeat(65_536),
        vec![0; 5000],
        b"<189>".to_vec(),
        b"<189>a".to_vec(),
        b"{".to_vec(),
        b"{\"a\":".repeat(10_000),
        b"CEF:0|Fortinet|x".to_vec(),
        b"CEF:0|".to_vec(),
        b"=".repeat(65_536),
        b"\"".repeat(65_536),
        b"a=b ".repeat(16_384),
    ] {
        assert!(syslog::parse(&bytes).is_err());
    }
    for bytes in [
        b"a=\"".repeat(20_000),
        b"a=\"\\\" ".repeat(10_000),
        b"a=\"x\\\" b=".repeat(6_000),
        b"x=\\\\\" ".repeat(10_000),
        [b"a=\"".to_vec(), b"\\\" b=1 ".repeat(8_000)].concat(),
        [b"a=\"".to_vec(), b"\" b ".repeat(12_000)].concat(),
    ] {
        let start = std::time::Instant::now();
        drop(syslog::parse(&bytes));
        assert!(start.elapsed() < std::time::Duration::from_secs(5));
    }
}

#[test]
fn csv_has_commas_for_blanks() {
    let line = "<189>date=2026-11-24,time=10:22:31,devname=\"FGT\",logid=\"0100038412\",type=\"event\",user=\"alice\",ipaddr=\"192.0.2.1, 192.0.2.2\",group=a b,msg=\"Send, to: alice, x=1,user=eve\"";
    let record = syslog::parse(line.as_bytes()).unwrap();
    assert_eq!(record.format(), "csv");
    assert_eq!(record.message_id(), Some(38412));
    assert_eq!(record.get("user").unwrap(), "alice");
    assert_eq!(record.get("group").unwrap(), "a b");
    assert_eq!(record.get("ipaddr").unwrap(), "192.0.2.1, 192.0.2.2");
    assert_eq!(record.get("msg").unwrap(), "Send, to: alice, x=1,user=eve");
    assert_eq!(
        syslog::parse(b"policyid=1,2 logid=0100038412")
            .unwrap()
            .format(),
        "kv"
    );
}

#[test]
fn rfc5424_names_the_device_in_its_header() {
    for host in ["FortiGate-1800F", "MY_FIREWALL_SITEA", "192.0.2.1"] {
        let line = format!(
            "<189>1 2026-11-24T15:29:06Z {host} - - - - eventtime=1764000000123456789 tz=\"-0600\" logid=\"0100038412\" user=\"alice\""
        );
        let record = syslog::parse(line.as_bytes()).unwrap();
        assert_eq!(record.format(), "rfc5424");
        assert_eq!(record.host(), Some(host));
        assert_eq!(record.time(), Some("2026-11-24T15:29:06Z".parse().unwrap()));
        assert_eq!(record.get("user").unwrap(), "alice");
        assert_eq!(record.names().next().unwrap(), "eventtime");
    }
    let wrapped = "<14>1 2026-11-24T15:29:06+01:00 relay fgt - LOG [meta x=\"logid=0100038412 user=eve\"] date=2026-11-24 logid=\"0100032155\" user=\"alice\"";
    assert_eq!(field(wrapped, "logid"), "0100032155");
    assert_eq!(field(wrapped, "user"), "alice");
    let odd = "<189>1 not-a-time host - - - - logid=\"0100038412\" user=\"alice\"";
    assert_eq!(field(odd, "user"), "alice");
}

#[test]
fn cef_is_read_under_fortinets_names() {
    let tail = "0|Fortinet|Fortigate|v7.2.5|38412|event:system|5|deviceExternalId=FGT1 FTNTFGTeventtime=1764000000 FTNTFGTlogid=0100038412 cat=event:system FTNTFGTsubtype=system FTNTFGTvd=root FTNTFGTcat=26 duser=EXAMPLE\\\\alice act=send msg=Send code\\=x to alice, a \\| b";
    for front in [
        "",
        "CEF:",
        "CEF: ",
        "<189>CEF: ",
        "<189>Dec 27 11:07:55 FGT-A CEF: ",
        "<189>Dec 27 11:07:55 FGT_A CEF:",
        "<14>1 2026-11-24T15:29:06+01:00 relay CEF - LOG [x@1 a=\"b\"] CEF:",
        "strange header CEF: ",
    ] {
        let line = format!("{front}{tail}");
        let record = syslog::parse(line.as_bytes()).unwrap();
        assert_eq!(record.format(), "cef", "{front}");
        assert_eq!(record.message_id(), Some(38412), "{front}");
        for (name, value) in [
            ("devid", "FGT1"),
            ("type", "event"),
            ("subtype", "system"),
            ("vd", "root"),
            ("user", "EXAMPLE\\alice"),
            ("action", "send"),
            ("msg", "Send code=x to alice, a | b"),
        ] {
            assert_eq!(record.get(name).as_deref(), Some(value), "{name}, {front}");
        }
    }
    let old = tail.replace("FTNTFGT", "FortinetFortiGate");
    assert_eq!(field(&old, "vd"), "root");
    let bare = tail.replace("FTNTFGT", "ad.");
    assert_eq!(field(&bare, "vd"), "root");
    let no_logid = tail.replace("FTNTFGTlogid=0100038412 ", "");
    assert_eq!(field(&no_logid, "logid"), "38412");
}

#[test]
fn cef_that_contradicts_itself_is_refused() {
    let head = "CEF: 0|Fortinet|Fortigate|v7.2.5|13056|utm:webfilter|4|";
    for (extension, error) in [
        ("FTNTFGTlogid=0100038412 duser=a", RecordError::IdsDisagree),
        (
            "FTNTFGTlogid=0316013056 request=/x FTNTFGTlogid=0100038412",
            RecordError::Twice("logid"),
        ),
        ("duser=a suser=b", RecordError::Twice("user")),
        (
            "cat=utm:webfilter FTNTFGTtype=event",
            RecordError::Twice("type"),
        ),
    ] {
        let line = format!("{head}{extension}");
        assert_eq!(
            syslog::parse(line.as_bytes()).unwrap_err(),
            error,
            "{extension}"
        );
    }
    let url = format!("{head}request=/x?logid=0100038412&FTNTFGTlogid\\=1 act=blocked");
    let record = syslog::parse(url.as_bytes()).unwrap();
    assert_eq!(record.message_id(), Some(13056));
    assert_eq!(record.get("action").unwrap(), "blocked");
}

#[test]
fn json_may_have_numbers_or_strings() {
    for line in [
        r#"<189>{"date":"2026-11-24","logid":"0100038412","eventtime":1764000000123456789,"user":"al\"ice","vd":"root","n":null,"list":[1,{"user":"eve"}]}"#,
        r#"{"logid":100038412,"eventtime":"1764000000123456789","user":"al\u0022ice"} "#,
        r#"Nov 24 10:00:00 fw {"logid": "0100038412", "eventtime": 1764000000123456789, "user": "al\"ice"}"#,
    ] {
        let record = syslog::parse(line.as_bytes()).unwrap();
        assert_eq!(record.format(), "json", "{line}");
        assert_eq!(record.message_id(), Some(38412), "{line}");
        assert_eq!(record.get("user").unwrap(), "al\"ice");
        assert_eq!(record.get("eventtime").unwrap(), "1764000000123456789");
    }
    for (line, error) in [
        (r#"{"logid":"010003841\u0032"}"#, RecordError::EscapedId),
        (r#"{"logid":1.00038412e8}"#, RecordError::EscapedId),
        (r#"{"logid""#, RecordError::Json),
        (r#"{"logid":"0100038412"} trailing"#, RecordError::Json),
        (r#"{"user":"a","\u0075ser":"b"}"#, RecordError::Json),
    ] {
        assert_eq!(syslog::parse(line.as_bytes()).unwrap_err(), error, "{line}");
    }
    let bytes = b"{\"logid\":\"0100038412\",\"name\":\"\xff\",\"user\":\"alice\"}";
    assert_eq!(field(bytes, "user"), "alice");
}

#[test]
fn every_format_has_a_sample() {
    let samples = [
        BODY,
        "date=2026-11-24,time=10:22:31,logid=\"0100038412\"",
        "<189>1 2026-11-24T15:29:06Z fw - - - - logid=\"0100038412\"",
        "CEF: 0|Fortinet|Fortigate|v7.2.5|38412|event:system|5|msg=x",
        "{\"logid\":\"0100038412\"}",
    ];
    for format in FORMATS {
        let read = |line: &&str| syslog::parse(line.as_bytes()).unwrap().format() == format.name;
        assert_eq!(samples.iter().filter(|line| read(line)).count(), 1);
    }
}

/// A value as FortiOS writes it: any text, with its quotes escaped, never ending in a backslash.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\\\""))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes_are_a_record_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        drop(syslog::parse(&bytes));
    }

    #[test]
    fn any_text_of_the_tokenizers_alphabet_is_a_record_or_an_error(
        line in "(<189>|1 |CEF:|0\\|Fortinet\\||\\{|Feb 27 00:02:40 |20)?[a-c=\"\\\\ ,|:{}\\[\\]0-9\n]{0,120}"
    ) {
        drop(syslog::parse(line.as_bytes()));
    }

    #[test]
    fn what_is_written_is_read_again(
        values in proptest::collection::vec("[^\\\\\0-\u{1f}\u{7f}]{0,20}", 1..20),
        front in "(<189>)?( |Feb 27 00:02:40 fw )?",
        separator in prop_oneof![Just(" "), Just("  "), Just("\t")],
    ) {
        let fields: Vec<String> = values.iter().enumerate()
            .map(|(at, value)| format!("f{at}={}", quoted(value)))
            .collect();
        let line = format!("{front}{}", fields.join(separator));
        let record = syslog::parse(line.as_bytes()).unwrap();
        prop_assert_eq!(record.names().count(), values.len());
        for (at, value) in values.iter().enumerate() {
            let name = format!("f{at}");
            prop_assert_eq!(record.get(&name).unwrap(), value.as_str());
        }
    }

    #[test]
    fn no_field_comes_from_inside_a_quote(
        text in "( ?(user|logid|k|z)=|\\\\?\"|\\\\\\\\|[a-z ,|']){0,24}",
        after in prop_oneof![Just(""), Just(" n=1"), Just(" m=\"x y\""), Just(" m=\"\" n=1 o=\"-\"")],
        doubled in any::<bool>(),
    ) {
        // FortiOS escapes the quotes of a value, and doubles its backslashes, or not.
        let text = if doubled { text.replace('\\', "\\\\") } else { text };
        let line = format!("logid=\"0316013056\" url={}{after}", quoted(text.trim_end_matches('\\')));
        let record = syslog::parse(line.as_bytes()).unwrap();
        let known = ["logid", "url", "n", "m", "o"];
        for name in record.names() {
            prop_assert!(known.contains(&name.as_ref()), "{} in {}", name, line);
        }
    }
}
