//! The webhook, the file, and what all channels have in common.

use std::io::Read;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ftm_relay::channel::COMMON_KEYS;
use ftm_relay::channel::Common;
use ftm_relay::channel::Config;
use ftm_relay::channel::KINDS;
use ftm_relay::channel::SendError;
use jiff::Timestamp;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::support::channel::CODE;
use crate::support::channel::Commits;
use crate::support::channel::build;
use crate::support::channel::build_in;
use crate::support::channel::channel;
use crate::support::channel::note;
use crate::support::channel::send;
use crate::support::channel::send_to;
use crate::support::http_sink::Answer;
use crate::support::http_sink::HttpSink;
use crate::support::http_sink::reply;
use crate::support::proxy::Proxy;
use crate::template::alice;

#[tokio::test]
async fn an_event_is_posted_as_agreed_and_signed() {
    let key = [7_u8; 32];
    let sink = HttpSink::start(|_| reply(204, "")).await;
    let keys = format!(
        "url = \"{}\"\nsecret = \"whsec_{}\"\nheaders = {{ \"X-Tenant\" = \"a\" }}",
        sink.url("/in"),
        STANDARD.encode(key)
    );
    let channel = channel("webhook", &keys);
    assert!(channel.reveals && !channel.needs_person);
    let before = Timestamp::now().as_second();
    let (sent, transcript) = send(&channel, &note(true)).await;
    assert!(sent.unwrap().said.contains("204"));
    assert!(
        transcript.contains("POST http://127.0.0.1:"),
        "{transcript}"
    );
    let request = &sink.requests()[0];
    assert_eq!(
        (request.method.as_str(), request.path.as_str()),
        ("POST", "/in")
    );
    assert!(
        request
            .header("content-type")
            .starts_with("application/json")
    );
    assert_eq!(request.header("x-tenant"), "a");
    assert_eq!(request.header("webhook-id"), "018f-alice");
    let timestamp = request.header("webhook-timestamp");
    assert!((before..=before + 10).contains(&timestamp.parse().unwrap()));
    let mut signed = format!("018f-alice.{timestamp}.").into_bytes();
    signed.extend_from_slice(&request.body);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let want = STANDARD.encode(hmac::sign(&key, &signed));
    assert_eq!(request.header("webhook-signature"), format!("v1,{want}"));
    assert_eq!(
        request.json(),
        serde_json::json!({
            "type": "fortitoken.code-sent", "timestamp": "2026-11-23T10:22:31Z",
            "data": {
                "id": "5f0c2f6f9a0f4d0e", "user": "alice", "code": CODE, "token": null,
                "expires_at": "2026-11-26T10:22:31Z",
                "device": {"id": "FGT60FTK19009408", "name": "BORDER-FGT", "vdom": "root"},
                "recipient": {"email": "alice@example.com", "name": "Alice Example", "phone": null, "language": null},
                "event": {"logid": 38412, "description": "Token activation code sent", "time": "2026-11-23T10:22:31Z"},
            },
        })
    );
}

#[tokio::test]
async fn every_try_has_the_same_id_and_the_wait_is_the_servers() {
    let date = jiff::fmt::rfc2822::DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&(Timestamp::now() + Duration::from_secs(90)))
        .unwrap();
    let tries = AtomicUsize::new(0);
    let sink = HttpSink::start(move |_| {
        let (status, wait) = match tries.fetch_add(1, Ordering::SeqCst) {
            0 => (429, "3".to_owned()),
            1 => (503, date.clone()),
            _ => (502, "7".to_owned()),
        };
        Answer::Reply {
            status,
            headers: vec![("Retry-After", wait)],
            body: String::new(),
        }
    })
    .await;
    let channel = channel("webhook", &format!("url = \"{}\"", sink.url("/in")));
    let note = note(true);
    let Err(SendError::Away { after, .. }) = send(&channel, &note).await.0 else {
        panic!("429 is for the channel");
    };
    assert_eq!(after, Some(Duration::from_secs(3)));
    let Err(SendError::Away {
        after: Some(after), ..
    }) = send(&channel, &note).await.0
    else {
        panic!("503 with a wait is for the channel");
    };
    assert!((80..=90).contains(&after.as_secs()), "{after:?}");
    let Err(SendError::Transient { after, .. }) = send(&channel, &note).await.0 else {
        panic!("502 is for the delivery");
    };
    assert_eq!(after, Some(Duration::from_secs(7)));
    let requests = sink.requests();
    assert_eq!(requests.len(), 3);
    assert!(requests.iter().all(|r| r.header("webhook-id") == note.id));
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_a_gone_endpoint_suspends() {
    let other = HttpSink::start(|_| reply(200, "")).await;
    let target = other.url("/elsewhere");
    let sink = HttpSink::start(move |request| match request.path.as_str() {
        "/gone" => reply(410, "gone"),
        _ => Answer::Reply {
            status: 307,
            headers: vec![("Location", target.clone())],
            body: String::new(),
        },
    })
    .await;
    for path in ["/gone", "/moved"] {
        let channel = channel("webhook", &format!("url = \"{}\"", sink.url(path)));
        let (sent, _) = send(&channel, &note(true)).await;
        assert!(matches!(sent, Err(SendError::Broken { .. })), "{sent:?}");
    }
    assert_eq!(other.requests().len(), 0);
}

#[tokio::test]
async fn what_came_after_the_request_is_unknown_and_what_came_before_is_away() {
    let sink = HttpSink::start(|request| match request.path.as_str() {
        "/silent" => Answer::Silence,
        _ => Answer::Close,
    })
    .await;
    for path in ["/silent", "/closed"] {
        let keys = format!("url = \"{}\"", sink.url(path));
        let (channel, _) = build("webhook", &keys, "timeout = \"250ms\"");
        let (sent, _) = send(&channel.unwrap(), &note(true)).await;
        assert!(
            matches!(sent, Err(SendError::Unknown { .. })),
            "{path} {sent:?}"
        );
    }
    assert_eq!(sink.requests().len(), 2, "nothing is tried twice");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let channel = channel("webhook", &format!("url = \"http://127.0.0.1:{port}/in\""));
    let (sent, _) = send(&channel, &note(true)).await;
    let Err(SendError::Away { reason, .. }) = &sent else {
        panic!("{sent:?}");
    };
    assert!(reason.contains("refused"), "{reason}");
    // A name that nobody has, and a port that speaks no TLS.
    for (url, want) in [
        (
            "http://relay.invalid/in".to_owned(),
            "no connection to relay.invalid",
        ),
        (
            format!("https://127.0.0.1:{}/in", no_tls()),
            "no TLS connection to",
        ),
    ] {
        let (channel, _) = build("webhook", &format!("url = \"{url}\""), "timeout = \"2s\"");
        let (sent, _) = send_to(&channel.unwrap(), None, &note(true), &Commits::good()).await;
        let Err(SendError::Away { reason, .. }) = &sent else {
            panic!("{url} {sent:?}");
        };
        assert!(reason.contains(want), "{reason}");
    }
}

/// The port of a server that speaks first, and no TLS.
fn no_tls() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        peer.write_all(b"220 what do you want?\r\n").unwrap();
        drop(peer.read(&mut [0; 4096]));
    });
    port
}

#[tokio::test]
async fn nothing_is_sent_when_the_outbox_says_no() {
    let sink = HttpSink::start(|_| reply(200, "ok")).await;
    let dir = tempfile::tempdir().unwrap();
    let no = SendError::Permanent {
        reason: "the lease was lost".to_owned(),
    };
    for (kind, keys) in [
        ("webhook", format!("url = \"{}\"", sink.url("/in"))),
        ("slack", format!("url = \"{}\"", sink.url("/in"))),
        ("file", "path = \"mail\"".to_owned()),
    ] {
        let (channel, _) = build_in(dir.path(), kind, &keys, "");
        let commit = Commits(AtomicUsize::new(0), Some(no.clone()));
        let to = alice(None);
        let (sent, _) = send_to(&channel.unwrap(), Some(&to), &note(true), &commit).await;
        assert_eq!(sent, Err(no.clone()), "{kind}");
        assert_eq!(commit.0.load(Ordering::SeqCst), 1, "{kind}");
    }
    assert_eq!(sink.requests().len(), 0);
    assert!(!dir.path().join("mail").exists());
}

#[tokio::test]
async fn no_secret_gets_into_an_error_or_the_transcript() {
    let sink = HttpSink::start(|request| {
        let headers = format!("{:?}", request.headers);
        let body = String::from_utf8_lossy(&request.body).into_owned();
        reply(
            400,
            &format!("{} {CODE} {headers} {}", request.path, &body[..90]),
        )
    })
    .await;
    let url = sink
        .url("/in?sig=TOPSECRETSIG")
        .replace("://", "://user:passw0rd@");
    let key = STANDARD.encode([9; 32]);
    let keys = format!(
        "url = \"{url}\"\nsecret = \"whsec_{key}\"\nheaders = {{ \"X-Api-Key\" = \"keykeykey\" }}"
    );
    let (channel, said) = build("webhook", &keys, "");
    assert_eq!(said.len(), 3, "{said:?}");
    let (sent, transcript) = send(&channel.unwrap(), &note(true)).await;
    let Err(SendError::Permanent { reason }) = sent else {
        panic!("{sent:?}");
    };
    assert!(reason.contains("400"), "{reason}");
    let all = format!("{reason}{transcript}{said:?}");
    for secret in ["TOPSECRETSIG", "passw0rd", "keykeykey", CODE, &key] {
        assert!(!all.contains(secret), "{secret}: {all}");
    }
}

/// A server with this certificate.
fn tls(certified: &rcgen::CertifiedKey<rcgen::KeyPair>) -> TlsAcceptor {
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test]
async fn a_certificate_is_checked_against_ca_file() {
    let dir = tempfile::tempdir().unwrap();
    let good = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(dir.path().join("good.pem"), good.cert.pem()).unwrap();
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(dir.path().join("other.pem"), other.cert.pem()).unwrap();
    let sink = HttpSink::start_tls(tls(&good), |_| reply(200, "")).await;
    let keys = |ca| {
        format!(
            "url = \"https://localhost:{}/in\"\nca_file = \"{ca}\"",
            sink.port
        )
    };
    let (channel, _) = build_in(dir.path(), "webhook", &keys("good.pem"), "");
    let (sent, _) = send(&channel.unwrap(), &note(true)).await;
    assert!(sent.is_ok(), "{sent:?}");
    let (channel, _) = build_in(dir.path(), "webhook", &keys("other.pem"), "");
    let (sent, _) = send(&channel.unwrap(), &note(true)).await;
    let Err(SendError::Broken { reason }) = &sent else {
        panic!("{sent:?}");
    };
    assert!(reason.contains("certificate of localhost"), "{reason}");
    assert_eq!(sink.requests().len(), 1);
    let (channel, said) = build_in(dir.path(), "webhook", &keys("none.pem"), "");
    assert!(
        channel.is_none() && said[0].contains("none.pem can't be read"),
        "{said:?}"
    );
}

#[tokio::test]
async fn a_proxy_is_gone_through_with_its_log_in_and_both_kinds_of_url() {
    let dir = tempfile::tempdir().unwrap();
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(dir.path().join("ca.pem"), certified.cert.pem()).unwrap();
    let plain = HttpSink::start(|_| reply(204, "")).await;
    let secure = HttpSink::start_tls(tls(&certified), |_| reply(204, "")).await;
    let proxy = Proxy::start(Some(("relay", "p@ss+w%rd"))).await;
    let through = |password: &str| {
        format!(
            "proxy = \"http://relay:{password}@127.0.0.1:{}\"",
            proxy.port
        )
    };
    let urls = [
        plain.url("/in"),
        format!("https://localhost:{}/in", secure.port),
    ];
    for url in &urls {
        let keys = |password| {
            format!(
                "url = \"{url}\"\nca_file = \"ca.pem\"\n{}",
                through(password)
            )
        };
        let (good, said) = build_in(dir.path(), "webhook", &keys("p%40ss%2Bw%25rd"), "");
        assert!(said[0].contains("a secret stands in the file"), "{said:?}");
        let (sent, _) = send(&good.unwrap(), &note(true)).await;
        assert!(sent.is_ok(), "{url} {sent:?}");
        let (wrong, _) = build_in(dir.path(), "webhook", &keys("wr0ngword"), "");
        let (sent, transcript) = send(&wrong.unwrap(), &note(true)).await;
        let Err(SendError::Broken { reason }) = sent else {
            panic!("{url} {sent:?}");
        };
        assert!(
            reason.contains("proxy") && reason.contains("log-in"),
            "{reason}"
        );
        assert!(
            !format!("{reason}{transcript}{said:?}").contains("wr0ngword"),
            "{transcript}"
        );
    }
    assert_eq!(plain.requests().len() + secure.requests().len(), 2);
    let asked = proxy.asked();
    assert!(asked[0].starts_with("POST http://127.0.0.1:"), "{asked:?}");
    assert!(asked[2].starts_with("CONNECT localhost:"), "{asked:?}");
}

#[tokio::test]
async fn what_a_proxy_cannot_reach_is_away_and_so_is_a_proxy_that_is_not_there() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let proxy = Proxy::start(None).await;
    for (url, proxy) in [
        (format!("https://127.0.0.1:{port}/in"), proxy.port),
        ("https://127.0.0.1:9/in".to_owned(), port),
    ] {
        let keys = format!("url = \"{url}\"\nproxy = \"http://127.0.0.1:{proxy}\"");
        let (channel, said) = build("webhook", &keys, "");
        assert_eq!(
            said,
            Vec::<String>::new(),
            "a proxy without a log-in is no secret"
        );
        let commit = Commits::good();
        let (sent, _) = send_to(&channel.unwrap(), None, &note(true), &commit).await;
        let Err(SendError::Away { reason, .. }) = sent else {
            panic!("{sent:?}");
        };
        assert!(reason.contains("through the proxy 127.0.0.1:"), "{reason}");
    }
}

#[tokio::test]
async fn a_file_is_a_whole_mail_that_only_its_owner_reads() {
    let dir = tempfile::tempdir().unwrap();
    let (channel, said) = build_in(dir.path(), "file", "path = \"a/mail\"", "");
    assert_eq!(said, Vec::<String>::new());
    let channel = channel.unwrap();
    assert!(channel.reveals && channel.needs_person);
    let note = note(true);
    send(&channel, &note).await.0.unwrap();
    let mails: Vec<_> = std::fs::read_dir(dir.path().join("a/mail"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(mails.len(), 1, "{mails:?}");
    let name = mails[0].file_name().unwrap().to_string_lossy();
    assert!(name.ends_with("-018f-alice.eml"), "{name}");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&mails[0]), 0o600);
    assert_eq!(mode(&dir.path().join("a/mail")), 0o700);
    let mail = std::fs::read_to_string(&mails[0]).unwrap();
    for line in [
        "From: ftm-relay@localhost",
        "Message-ID: <018f-alice@localhost>",
        "Auto-Submitted: auto-generated",
        "Subject: Your FortiToken Mobile activation code for BORDER-FGT",
    ] {
        assert!(mail.contains(&format!("{line}\r\n")), "{line}\n{mail}");
    }
    assert!(mail.contains("alice@example.com") && mail.contains(CODE));
    let (sent, _) = send_to(&channel, None, &note, &Commits::good()).await;
    assert!(matches!(sent, Err(SendError::Permanent { .. })), "{sent:?}");
}

#[test]
fn codes_never_go_into_the_state_directory() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("state")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("state"), dir.path().join("link")).unwrap();
    for path in ["state", "state/mail", "x/../state/a/b", "link", "link/mail"] {
        let keys = format!("path = \"{path}\"");
        let (channel, said) = build_in(dir.path(), "file", &keys, "");
        assert!(channel.is_none(), "{path}");
        assert!(said[0].contains("is inside state_dir"), "{said:?}");
    }
    let (channel, said) = build_in(dir.path(), "file", "path = \"state-mail\"", "");
    assert!(channel.is_some(), "{said:?}");
}

#[test]
fn every_kind_is_read_and_every_mistake_is_said() {
    for kind in KINDS {
        let keys = toml::Deserializer::parse("nonsense = 1").unwrap();
        let error = Config::read(kind, keys).unwrap().unwrap_err().to_string();
        assert!(
            error.contains("unknown field `nonsense`"),
            "{kind}: {error}"
        );
    }
    let keys = toml::Deserializer::parse("").unwrap();
    assert!(Config::read("carrier-pigeon", keys).is_none());
    for key in COMMON_KEYS {
        let error = toml::from_str::<Common>(&format!("{key} = [[]]")).unwrap_err();
        assert!(!error.to_string().contains("unknown field"), "{key}");
    }
    for (kind, keys, common, want) in [
        (
            "webhook",
            "url = \"ftp://host.example/x\"",
            "",
            "ftp:// can't be posted to",
        ),
        ("webhook", "url = \"x\"", "", "this is no URL to post to"),
        (
            "webhook",
            "url = \"https://host.example/\"\nsecret = \"abc\"",
            "",
            "whsec_ and the base64 form",
        ),
        (
            "webhook",
            "url = \"https://host.example/\"\nheaders = { Host = \"x\" }",
            "",
            "is set by the relay itself",
        ),
        (
            "webhook",
            "url = \"https://host.example/\"\nheaders = { \"a b\" = \"x\" }",
            "",
            "no name of a header",
        ),
        (
            "webhook",
            "url = \"https://host.example/\"\nheaders = { A = \"x\\ny\" }",
            "",
            "holds a line break",
        ),
        ("slack", "", "", "needs `token` (direct messages) or `url`"),
        (
            "slack",
            "token = \"x\"\nurl = \"https://host.example/x\"",
            "",
            "either `url`",
        ),
        ("slack", "token = \"a\\nb\"", "", "no header may hold"),
        (
            "webhook",
            "url = \"https://host.example/\"\nproxy = \"socks5://proxy.example:1080\"",
            "",
            "this is no proxy",
        ),
        (
            "teams",
            "url = \"https://contoso.webhook.office.com/webhookb2/x\"",
            "",
            "make a flow (Workflows)",
        ),
        (
            "teams",
            "url = \"https://outlook.office.com:443/webhook/x\"",
            "",
            "Microsoft has retired those",
        ),
        (
            "sms",
            "account = \"AC1\"\ntoken = \"x\"",
            "",
            "either `from` (a number or a name) or `messaging_service`",
        ),
        (
            "sms",
            "account = \"AC1\"\nfrom = \"+14155550100\"",
            "",
            "either `token`",
        ),
        (
            "sms",
            "account = \"AC1\"\ntoken = \"x\"\nkey = \"SK1\"\nsecret = \"y\"\nfrom = \"IT\"",
            "",
            "either `token`",
        ),
        (
            "sms",
            "account = \"AC/1\"\ntoken = \"x\"\nfrom = \"IT\"",
            "",
            "the id of the account",
        ),
        (
            "sms",
            "account = \"AC1\"\ntoken = \"x\"\nfrom = \"0170 1234567\"",
            "",
            "`from` is a number such as",
        ),
        (
            "file",
            "path = \"m\"",
            "pace = \"20000/h\"",
            "at most 10000 messages",
        ),
        (
            "file",
            "path = \"m\"\nfrom = \"nobody\"",
            "",
            "is no mail address",
        ),
        (
            "file",
            "path = \"m\"",
            "concurrency = 0",
            "a number from 1 to 64",
        ),
        (
            "file",
            "path = \"m\"",
            "timeout = \"0s\"",
            "a timeout of nothing",
        ),
        (
            "file",
            "path = \"m\"",
            "time_zone = \"Mars/Base\"",
            "no time zone \"Mars/Base\"",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (channel, said) = build_in(dir.path(), kind, keys, common);
        assert!(
            said.iter()
                .any(|s| s.starts_with("Problem") && s.contains(want)),
            "{want}: {said:?}"
        );
        let usable = common.starts_with("timeout")
            || common.starts_with("concurrency")
            || common.starts_with("pace");
        assert_eq!(channel.is_some(), usable, "{want}");
    }
}

#[test]
fn a_plain_url_is_no_secret_and_plain_http_is_warned_of() {
    for (url, want) in [
        ("https://automation.example.com/ftm", None),
        ("http://127.0.0.1:8080/ftm", None),
        ("http://[::1]/ftm", None),
        ("http://localhost/ftm", None),
        (
            "http://automation.example.com/ftm",
            Some("shows codes to everybody"),
        ),
        (
            "https://automation.example.com/ftm?sig=x",
            Some("a secret stands in the file"),
        ),
        (
            "https://u:p@automation.example.com/ftm",
            Some("a secret stands in the file"),
        ),
    ] {
        let (channel, said) = build("webhook", &format!("url = \"{url}\""), "");
        assert!(channel.is_some());
        assert_eq!(said.len(), usize::from(want.is_some()), "{url}: {said:?}");
        if let Some(want) = want {
            assert!(
                said[0].starts_with("Warning") && said[0].contains(want),
                "{said:?}"
            );
        }
    }
}

#[test]
fn what_a_channel_shows_by_default_depends_on_who_reads_it() {
    let reveals = |kind, keys, common| build(kind, keys, common).0.unwrap().reveals;
    let hook = "url = \"https://host.example/\"";
    assert!(reveals("webhook", hook, ""));
    assert!(!reveals("webhook", hook, "reveal = \"notice\""));
    let sms = "account = \"AC1\"\ntoken = \"x\"\nfrom = \"IT\"";
    assert!(reveals("sms", sms, ""));
    assert!(!reveals("sms", sms, "reveal = \"notice\""));
    assert!(reveals("slack", "token = \"x\"", ""));
    assert!(!reveals("teams", hook, ""));
    assert!(reveals("teams", hook, "reveal = \"code\""));
    assert!(!reveals("slack", hook, ""));
    assert!(reveals("slack", hook, "reveal = \"code\""));
}
