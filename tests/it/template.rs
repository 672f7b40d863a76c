//! template

use std::path::Path;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use ftm_relay::activation::Activation;
use ftm_relay::activation::ActivationCode;
use ftm_relay::activation::Device;
use ftm_relay::activation::Stage;
use ftm_relay::message::Notification;
use ftm_relay::message::Recipient;
use ftm_relay::outbox::Escalation;
use ftm_relay::settings::Check;
use ftm_relay::settings::Weight;
use ftm_relay::template::Config;
use ftm_relay::template::Style;
use ftm_relay::template::TEST_CODE;
use ftm_relay::template::Templates;
use jiff::SignedDuration;
use jiff::tz::TimeZone;
use proptest::prelude::*;

const CODE: &str = "EEIOTCU3LENEDJMR";

pub fn activation() -> Activation {
    Activation {
        event_id: "5f0c2f6f9a0f4d0e".to_owned(),
        device: Device {
            id: "FGT60FTK19009408".to_owned(),
            name: "BORDER-FGT".to_owned(),
            vdom: "root".to_owned(),
        },
        user: "alice".to_owned(),
        person: "alice".to_owned(),
        logid: 38412,
        description: "Token activation code sent".to_owned(),
        stage: Stage::CodeSent,
        rule: "code-sent".to_owned(),
        event_time: "2026-11-23T10:22:31Z".parse().unwrap(),
        received_at: "2026-11-23T10:22:32Z".parse().unwrap(),
        expires_at: "2026-11-26T10:22:31Z".parse().unwrap(),
        validity: Duration::from_secs(72 * 3600),
        skew: SignedDuration::ZERO,
        code: ActivationCode::parse(CODE),
        token: None,
        addresses: Vec::new(),
        origin: Default::default(),
    }
}

pub fn alice(language: Option<&str>) -> Recipient {
    Recipient {
        email: "alice@example.com".to_owned(),
        name: Some("Alice Example".to_owned()),
        phone: None,
        language: language.map(str::to_owned),
        source: "table".to_owned(),
    }
}

pub fn berlin() -> TimeZone {
    TimeZone::get("Europe/Berlin").unwrap()
}

pub fn style(zone: &TimeZone, reveal: bool) -> Style<'_> {
    Style {
        id: "018f-alice",
        reveal,
        time_zone: zone,
        language: None,
        now: "2026-11-23T10:22:33Z".parse().unwrap(),
    }
}

fn built_in() -> &'static Templates {
    static BUILT_IN: LazyLock<Templates> = LazyLock::new(Templates::built_in);
    &BUILT_IN
}

fn escalation() -> Escalation {
    Escalation {
        reason: "no-code".to_owned(),
        text: "A code was sent, but the log does not show it.".to_owned(),
        count: 12,
        newest: (1..=10)
            .map(|i| format!("user{i} on BORDER-FGT (root)"))
            .collect(),
        since: "2026-11-23T10:22:31Z".parse().unwrap(),
    }
}

/// Compares with the files of `tests/data/messages`; `UPDATE_GOLDENS=1` writes them.
fn golden(kind: &str, language: &str, note: &Notification) {
    let event = serde_json::to_string_pretty(&note.event).unwrap();
    let text = format!(
        "=== subject\n{}\n=== text\n{}=== chat\n{}\n=== short\n{}",
        note.subject,
        note.text,
        note.chat.join("\n\n"),
        note.short
    );
    for (name, got) in [
        (format!("{kind}.{language}.txt"), text),
        (format!("{kind}.{language}.html"), note.html.clone()),
        // Programs read the same in every language.
        (format!("{kind}.json"), event),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data/messages")
            .join(name);
        let got = format!("{}\n", got.trim_end());
        if std::env::var_os("UPDATE_GOLDENS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &got).unwrap();
        }
        let want = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(got, want, "{}", path.display());
    }
}

#[test]
fn what_people_read_is_what_was_agreed() {
    let (templates, zone) = (built_in(), berlin());
    for language in templates.languages() {
        let style = Style {
            language: Some(language),
            ..style(&zone, true)
        };
        let hidden = Style {
            reveal: false,
            ..style
        };
        let person = alice(None);
        let note = templates.activation(&activation(), Some(&person), &style);
        golden("activation", language, &note.unwrap());
        let note = templates.activation(&activation(), None, &hidden);
        golden("notice", language, &note.unwrap());
        let activated = Activation {
            stage: Stage::Activated,
            code: None,
            logid: 32156,
            token: Some("FTKMOB6549A91140".to_owned()),
            ..activation()
        };
        let note = templates.activation(&activated, None, &style);
        golden("activated", language, &note.unwrap());
        let expires_at = activation().expires_at;
        let note = templates.escalation(&escalation(), expires_at, &style);
        golden("escalation", language, &note.unwrap());
        let note = templates.test(Some(&person), &style);
        golden("test", language, &note.unwrap());
    }
}

#[test]
fn the_code_stands_alone_on_its_line_and_not_in_the_subject() {
    let zone = berlin();
    let note = built_in()
        .activation(&activation(), Some(&alice(None)), &style(&zone, true))
        .unwrap();
    assert!(note.text.lines().any(|line| line == CODE), "{}", note.text);
    assert!(note.html.contains(&format!(">{CODE}</div>")));
    assert!(note.chat.iter().any(|p| p == CODE));
    assert!(!note.subject.contains(CODE));
    assert!(note.text.lines().all(|line| line.chars().count() <= 78));
    for wanted in [
        "alice",
        "BORDER-FGT",
        "Thursday, 26 November 2026, 11:22 CET",
        "3 days",
    ] {
        assert!(
            note.text.contains(wanted) && note.html.contains(wanted),
            "{wanted}"
        );
    }
    for never in ["<a ", "<img", "http:", "https:", "src="] {
        assert!(!note.html.contains(never), "{never}");
    }
}

#[test]
fn a_place_that_gets_no_code_gets_it_from_nowhere() {
    let zone = berlin();
    let forged = Activation {
        user: format!("alice {CODE}"),
        description: CODE.to_owned(),
        device: Device {
            id: CODE.to_owned(),
            name: CODE.to_owned(),
            vdom: CODE.to_owned(),
        },
        token: Some(CODE.to_owned()),
        ..activation()
    };
    let note = built_in()
        .activation(&forged, Some(&alice(None)), &style(&zone, false))
        .unwrap();
    let all = [
        note.subject,
        note.text,
        note.html,
        note.chat.concat(),
        note.event.to_string(),
    ];
    assert!(!all.concat().contains(CODE), "{all:?}");
    assert_eq!(note.event["data"]["code"], serde_json::Value::Null);
}

#[test]
fn text_of_a_log_stays_text() {
    let zone = berlin();
    let forged = Activation {
        user: "<script>x</script>\r\nBcc: eve@example.com & \"q\" {{ code }}".to_owned(),
        device: Device {
            id: "x".to_owned(),
            name: "https://evil.example/login \u{202e}moc".to_owned(),
            vdom: "root".to_owned(),
        },
        ..activation()
    };
    let person = Recipient {
        name: Some("A\u{0}\n<b>B</b>".to_owned()),
        ..alice(None)
    };
    for reveal in [true, false] {
        let note = built_in()
            .activation(&forged, Some(&person), &style(&zone, reveal))
            .unwrap();
        assert!(!note.html.contains("<script>") && !note.html.contains("<b>B"));
        assert!(note.html.contains("&lt;script&gt;"));
        assert!(!note.subject.contains(['\r', '\n']), "{:?}", note.subject);
        assert!(!note.text.contains("\nBcc"), "{}", note.text);
        let all = [note.subject, note.text, note.html, note.chat.concat()].concat();
        assert!(!all.contains("://") && !all.contains("evil.example") && !all.contains('\u{202e}'));
        assert!(all.contains("{{ code }}") && !all.contains(&format!("q\" {CODE}")));
    }
}

#[test]
fn the_language_is_the_persons_then_the_routes_then_english() {
    let (templates, zone) = (built_in(), berlin());
    for (person, route, want) in [
        (None, None, "en"),
        (None, Some("de"), "de"),
        (Some("de"), Some("en"), "de"),
        (Some("de-CH"), None, "de"),
        (Some("DE_at"), None, "de"),
        (Some("xx"), Some("de"), "de"),
        (Some("xx, de;q=0.5"), None, "de"),
        (Some("x"), Some("deu"), "en"),
        (Some("pt-BR"), None, "pt"),
        (Some("fr_CA.UTF-8"), None, "fr"),
        (Some("ca_ES@valencia, es_ES@euro"), None, "es"),
        (Some("zh-Hant-TW"), Some("ja"), "ja"),
        (Some("ar-EG"), None, "ar"),
        (Some(""), None, "en"),
    ] {
        let style = Style {
            language: route,
            ..style(&zone, true)
        };
        let note = templates
            .activation(&activation(), Some(&alice(person)), &style)
            .unwrap();
        assert_eq!(note.language, want, "{person:?} {route:?}");
    }
}

#[test]
fn a_time_has_the_name_of_its_zone_or_its_distance_from_utc() {
    let templates = built_in();
    for (zone, want) in [
        ("Europe/Berlin", "Thursday, 26 November 2026, 11:22 CET"),
        (
            "America/Sao_Paulo",
            "Thursday, 26 November 2026, 07:22 UTC-03:00",
        ),
        ("Asia/Tokyo", "Thursday, 26 November 2026, 19:22 JST"),
        ("Pacific/Auckland", "Thursday, 26 November 2026, 23:22 NZDT"),
        ("UTC", "Thursday, 26 November 2026, 10:22 UTC"),
    ] {
        let zone = TimeZone::get(zone).unwrap();
        let note = templates
            .activation(&activation(), None, &style(&zone, true))
            .unwrap();
        assert!(note.text.contains(want), "{want}\n{}", note.text);
    }
}

#[test]
fn a_test_says_so_and_its_code_is_none() {
    assert!(ActivationCode::parse(TEST_CODE).is_none());
    let (templates, zone) = (built_in(), berlin());
    let shown = templates.test(None, &style(&zone, true)).unwrap();
    assert!(shown.subject.contains("[TEST]") && shown.text.contains(TEST_CODE));
    assert_eq!(shown.event["type"], "fortitoken.test");
    let hidden = templates.test(None, &style(&zone, false)).unwrap();
    assert!(hidden.text.contains("only a test") && !hidden.text.contains(TEST_CODE));
}

fn with_files(files: &[(&str, &str)]) -> (Option<Templates>, Vec<(Weight, String)>) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let config = Config {
        dir: Some(toml::Spanned::new(7..9, PathBuf::from("."))),
        contact: Some("Jo, extension 4711".to_owned()),
    };
    let mut check = Check::new(dir.path(), None, true);
    let built = config.build(&mut check);
    let findings = check.findings();
    assert!(findings.iter().all(|f| f.span == Some(7..9)));
    (
        built,
        findings.into_iter().map(|f| (f.weight, f.text)).collect(),
    )
}

#[test]
fn the_operator_replaces_one_file_and_the_others_stay() {
    let (built, findings) = with_files(&[("activation.en.txt", "Ask {{ contact }}: {{ code }}")]);
    assert_eq!(findings, []);
    let zone = berlin();
    let note = built
        .unwrap()
        .activation(&activation(), None, &style(&zone, true))
        .unwrap();
    assert_eq!(note.text, format!("Ask Jo, extension 4711: {CODE}\n"));
    assert!(note.html.contains("Jo, extension 4711") && note.html.contains("Enter Manually"));
}

#[test]
fn a_bad_template_is_named_with_file_and_line() {
    for (name, text, want) in [
        (
            "activation.en.txt",
            "one\n{{ code",
            "activation.en.txt, line 2: syntax error",
        ),
        (
            "activation.de.txt",
            "{{ code }}\n\n{{ user_nmae }}",
            "activation.de.txt, line 3: undefined",
        ),
        (
            "activation.en.chat",
            "no code",
            "activation.en.chat, line 1: the code doesn't stand in it",
        ),
        (
            "activation.en.subject",
            "{{ code }}",
            "activation.en.subject, line 1: undefined",
        ),
        (
            "notice.en.txt",
            "{{ code }}",
            "notice.en.txt, line 1: undefined",
        ),
        (
            "notice.de.subject",
            "",
            "notice.de.subject, line 1: the subject is empty",
        ),
        (
            "activation.en.html",
            "{{ user|safe }} {{ code }}",
            "activation.en.html, line 1: text of a log gets into the HTML",
        ),
        (
            "activation.en.html",
            "{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}",
            "out of fuel",
        ),
        (
            "activation.sv.txt",
            "{{ code }}",
            "the language sv lacks 11 of 12 files: activation.sv.subject, activation.sv.html,",
        ),
    ] {
        let (built, findings) = with_files(&[(name, text)]);
        assert!(built.is_none(), "{name}");
        assert!(
            findings
                .iter()
                .any(|(weight, text)| *weight == Weight::Problem && text.contains(want)),
            "{want}\n{findings:#?}"
        );
    }
}

#[test]
fn a_file_that_is_no_template_is_named_with_the_name_it_should_have() {
    for (name, want) in [
        (
            "activation.en.text",
            "templates have names such as activation.en.txt",
        ),
        ("Activation.DE.txt", "name it activation.de.txt"),
        ("notice.pt_br.subject", "name it notice.pt-BR.subject"),
        ("activation.fr.html.j2", "name it activation.fr.html"),
        ("Layout.html", "name it layout.html"),
        (
            "notice.a-éé.txt",
            "templates have names such as activation.en.txt",
        ),
    ] {
        let (built, findings) = with_files(&[(name, "x")]);
        assert!(built.is_some(), "{name}");
        let [(Weight::Warning, text)] = findings.as_slice() else {
            panic!("{name}: {findings:?}");
        };
        assert!(
            text.contains("is not used") && text.contains(want),
            "{text}"
        );
    }
}

#[test]
fn a_regional_language_needs_only_the_files_that_differ() {
    let (built, findings) = with_files(&[("activation.de-AT.sms", "Servus! {{ code }}")]);
    assert_eq!(findings, []);
    let (templates, zone) = (built.unwrap(), berlin());
    for (language, short, names) in [
        ("de-AT", format!("Servus! {CODE}"), "de-AT"),
        ("de-CH", String::new(), "de"),
    ] {
        let note = templates
            .activation(
                &activation(),
                Some(&alice(Some(language))),
                &style(&zone, true),
            )
            .unwrap();
        assert_eq!(note.language, names);
        assert!(note.short.starts_with(&short) && note.text.starts_with("Guten Tag"));
    }
}

/// The characters of an SMS that isn't sent as UCS-2 (3GPP TS 23.038), those that cost one septet.
const GSM: &str = "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà";

#[test]
fn the_short_text_fits_into_two_segments_of_an_sms() {
    let zone = TimeZone::get("America/Sao_Paulo").unwrap();
    for language in built_in().languages() {
        let person = alice(Some(language));
        let longest = Activation {
            user: "alice.b.example".to_owned(),
            ..activation()
        };
        let note = built_in()
            .activation(&longest, Some(&person), &style(&zone, true))
            .unwrap();
        let room = match note.short.chars().all(|c| GSM.contains(c)) {
            true => 2 * 153,
            false => 2 * 67,
        };
        let units = note.short.encode_utf16().count();
        assert!(units <= room, "{units} of {room}: {}", note.short);
        for wanted in ["alice.b.example", CODE, "2026-11-26 07:22 UTC-03:00"] {
            assert!(note.short.contains(wanted), "{}", note.short);
        }
    }
}

#[test]
fn names_that_are_long_or_look_like_hosts_are_cut_in_the_short_text() {
    let zone = berlin();
    let odd = Activation {
        user: "a".repeat(500),
        device: Device {
            name: "evil.example.com".to_owned(),
            ..activation().device
        },
        ..activation()
    };
    let note = built_in()
        .activation(&odd, None, &style(&zone, true))
        .unwrap();
    assert!(
        note.short.contains("(evil):") && note.short.len() < 250,
        "{}",
        note.short
    );
}

#[test]
fn an_escalation_speaks_the_languages_and_passes_on_what_it_doesnt_know() {
    let zone = berlin();
    let style = Style {
        language: Some("de"),
        ..style(&zone, false)
    };
    for (reason, want) in [
        (
            "suspended:mail",
            "Der Kanal mail ist ausgesetzt, bis ein Administrator eingreift",
        ),
        (
            "of-tomorrow",
            "A code was sent, but the log does not show it",
        ),
    ] {
        let escalation = Escalation {
            reason: reason.to_owned(),
            ..escalation()
        };
        let note = built_in()
            .escalation(&escalation, activation().expires_at, &style)
            .unwrap();
        assert!(note.text.starts_with(want), "{}", note.text);
        assert_eq!(note.subject, format!("FortiToken-Relay: {want} (12-mal)"));
    }
}

/// What somebody writes who wants to be more than a name.
/// The reasons that the relay itself has for telling somebody.
const REASONS: [&str; 14] = [
    "activation-failed",
    "ambiguous",
    "expired",
    "expiring",
    "failed",
    "held",
    "late",
    "no-code",
    "no-recipient",
    "no-route",
    "outbox-damaged",
    "resumed:mail",
    "suspended:mail",
    "unconfirmed",
];

#[test]
fn every_reason_has_its_headline_in_every_language() {
    let (zone, expires_at) = (TimeZone::UTC, activation().expires_at);
    for language in built_in().languages().iter().filter(|l| *l != "en") {
        let style = Style {
            language: Some(language),
            ..style(&zone, true)
        };
        for reason in REASONS {
            let escalation = Escalation {
                reason: reason.to_owned(),
                ..escalation()
            };
            let note = built_in().escalation(&escalation, expires_at, &style);
            let subject = note.unwrap().subject;
            assert!(
                !subject.contains(escalation.text.trim_end_matches('.')),
                "{reason} in {language}: {subject}"
            );
        }
    }
}

fn hostile() -> impl Strategy<Value = String> {
    let pieces = proptest::sample::select(vec![
        "\r\nBcc: eve@evil.example\r\n\r\n",
        "\n\n",
        "\u{85}",
        "\u{2028}",
        "\0",
        "\u{1b}[2J",
        "\u{202e}",
        "\u{2066}",
        "\u{2068}",
        "\u{2060}",
        "\u{200b}",
        "\u{feff}",
        "<b>",
        "</title><script>",
        "\"'><img src=x>",
        "&lt;",
        "<!-- qr: x -->",
        " -->",
        "]]>",
        "<!channel>",
        "<https://evil.example|x>",
        "[x](https://evil.example)",
        "*b*",
        "_i_",
        "`c`",
        "~s~",
        "@here",
        "www.evil.example",
        "http://evil.example/a",
        "evil.example/x?y",
        "mailto:eve@evil.example",
        "evil.example",
        "{{ code }}",
        "{% raw %}",
        "=?utf-8?q?x?=",
        "محمد",
        "🦀",
        "日本",
        "jane.doe",
        "EXAMPLE\\",
        " ",
    ]);
    let piece = prop_oneof![
        4 => pieces.prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
    ];
    // It begins with a letter, so that something is left of it.
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| format!("x{}", pieces.concat()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_others_choose_stays_a_value_in_a_text(
        user in hostile(),
        name in hostile(),
        device in hostile(),
        vdom in hostile(),
        language in proptest::sample::select(built_in().languages()),
        reveal in any::<bool>(),
    ) {
        let zone = berlin();
        let render = |user: &str, name: &str, device: &str, vdom: &str| {
            let activation = Activation {
                user: user.to_owned(),
                device: Device { id: device.to_owned(), name: device.to_owned(), vdom: vdom.to_owned() },
                ..activation()
            };
            let person = Recipient { name: Some(name.to_owned()), ..alice(Some(&language)) };
            built_in().activation(&activation, Some(&person), &style(&zone, reveal)).unwrap()
        };
        let (got, plain) = (render(&user, &name, &device, &vdom), render("x", "x", "x", "x"));

        let whole = [&got.subject, &got.text, &got.html, &got.chat.concat(), &got.short].map(String::as_str).concat();
        prop_assert!(!whole.contains(|c: char| c.is_control() && c != '\n'), "{whole:?}");
        let marks = ['\u{202a}', '\u{202b}', '\u{202d}', '\u{202e}', '\u{2060}', '\u{2066}', '\u{2067}', '\u{200b}'];
        prop_assert!(!whole.contains(marks), "{whole:?}");
        for link in ["://", "www.evil", "evil.example/", "mailto:eve"] {
            prop_assert!(!whole.contains(link), "{link} in {whole:?}");
        }
        // Nobody links the title.
        let (_, body) = got.html.split_once("<body").unwrap();
        prop_assert!(!body.contains("evil.example"), "{body}");

        // As many lines, paragraphs and tags as with plain names.
        prop_assert!(!got.subject.contains('\n'));
        prop_assert_eq!(got.text.lines().count(), plain.text.lines().count());
        prop_assert_eq!(got.chat.len(), plain.chat.len());
        prop_assert_eq!(got.short.lines().count(), plain.short.lines().count());
        let html = got.html.replace("<span>.</span>", ".");
        for mark in ['<', '>', '"'] {
            prop_assert_eq!(html.matches(mark).count(), plain.html.matches(mark).count(), "{}", html);
        }
        let (opened, closed) = (whole.matches('\u{2068}').count(), whole.matches('\u{2069}').count());
        prop_assert_eq!(opened, closed);
    }
}

#[test]
fn files_alone_make_a_language() {
    let source = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/templates");
        std::fs::read_to_string(path.join(name)).unwrap()
    };
    let parts = [
        "activation.en.subject",
        "activation.en.txt",
        "activation.en.html",
        "activation.en.chat",
        "activation.en.sms",
        "notice.en.subject",
        "notice.en.txt",
        "escalation.en.subject",
        "escalation.en.txt",
        "headline.en.txt",
        "date.en.txt",
        "left.en.txt",
    ];
    let files: Vec<(String, String)> = parts
        .iter()
        .map(|name| (name.replace(".en.", ".he-IL."), source(name)))
        .collect();
    let files: Vec<(&str, &str)> = files
        .iter()
        .map(|(n, t)| (n.as_str(), t.as_str()))
        .collect();
    let (built, findings) = with_files(&files);
    assert_eq!(findings, []);
    let zone = berlin();
    let note = built
        .unwrap()
        .activation(&activation(), Some(&alice(Some("he"))), &style(&zone, true))
        .unwrap();
    assert_eq!(note.language, "he-IL");
    assert!(note.html.contains("lang=\"he-IL\" dir=\"rtl\""));
}
