//! Syslog over TLS, and who may speak: certificates, handshakes, the wrong protocol on a port, names in `peers`.

use std::io::Read;
use std::io::Write;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ftm_relay::frame::Frame;
use ftm_relay::ingest::Config;
use ftm_relay::ingest::FrameReceiver;
use ftm_relay::ingest::Intake;
use ftm_relay::ingest::Tls;
use ftm_relay::ingest::bind;
use ftm_relay::metrics::ListenerMetrics;
use ftm_relay::metrics::Metrics;
use ftm_relay::metrics::Rejected;
use ftm_relay::settings::Check;
use rustix::process::Signal;
use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::support::authority::Authority;
use crate::support::authority::Identity;
use crate::support::relay::BASE;
use crate::support::relay::Relay;
use crate::support::samples::Event;
use crate::support::until;

/// Nothing here takes longer, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(20);

const ROUTE: &str =
    "[channel.mail]\ntype = \"file\"\npath = \"mail\"\n[[route]]\nto = [\"mail\"]\n";

const LISTENER: &str = "[[listen]]\nname = \"tls\"\ntransport = \"tls\"\naddress = \"127.0.0.3:0\"\ncert = \"server.pem\"\nkey = { file = \"server.key\" }\n";

// === A listener by itself ===

struct Running {
    address: SocketAddr,
    frames: FrameReceiver,
    metrics: ListenerMetrics,
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

/// A listener with this certificate; `more` are further keys.
fn serve(identity: &Identity, more: &str) -> Running {
    let dir = tempfile::tempdir().unwrap();
    identity.write(dir.path(), "server");
    let text = format!(
        "address = \"127.0.0.1:0\"\ncert = \"server.pem\"\nkey = {{ file = \"server.key\" }}\n{more}"
    );
    let mut config = Config::Tls(toml::from_str::<Tls>(&text).unwrap());
    let mut check = Check::new(dir.path(), None, true);
    config.build(&mut check);
    assert_eq!(check.findings(), []);
    let bound = bind(&config).unwrap();
    let address = bound.local_addr().unwrap();
    let (intake, frames) = Intake::new();
    let metrics = Metrics::new().0.listener("test");
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(bound.serve(
        intake,
        metrics.clone(),
        Arc::new(ArcSwap::from_pointee(config)),
        shutdown.clone(),
    ));
    Running {
        address,
        frames,
        metrics,
        shutdown,
        task,
    }
}

type Stream = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

async fn connect(address: SocketAddr, config: Arc<rustls::ClientConfig>) -> Stream {
    let socket = tokio::net::TcpStream::connect(address).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(config)
        .connect(name, socket)
        .await
        .unwrap()
}

impl Running {
    async fn next(&mut self) -> Frame {
        let batch = timeout(PATIENCE, self.frames.recv_batch(1)).await;
        batch.expect("a frame").unwrap().frames.remove(0)
    }

    async fn texts(&mut self, n: usize) -> Vec<String> {
        let mut texts = Vec::new();
        while texts.len() < n {
            texts.push(String::from_utf8(self.next().await.bytes).unwrap());
        }
        texts
    }
}

#[tokio::test]
async fn both_versions_and_both_kinds_of_key_are_spoken() {
    let authority = Authority::new();
    for identity in [
        authority.sign(&["localhost"]),
        authority.sign_rsa(&["localhost"]),
    ] {
        let mut relay = serve(&identity, "");
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let mut stream = connect(relay.address, authority.client(None, &[version])).await;
            let message = format!("<189>date={:?}", version.version);
            let counted = format!("{} {message}", message.len());
            stream.write_all(counted.as_bytes()).await.unwrap();
            let frame = relay.next().await;
            assert_eq!(frame.bytes, message.as_bytes());
            assert_eq!(frame.peer.address, Some(IpAddr::from([127, 0, 0, 1])));
            assert!(frame.peer.certificate_names.is_empty());
        }
    }
}

#[tokio::test]
async fn messages_may_be_cut_anywhere_by_records() {
    let authority = Authority::new();
    let mut relay = serve(&authority.sign(&["localhost"]), "");
    let long = format!("<189>rawdata={}", "x".repeat(22_000));
    let stream = format!(
        "11 <189>date=1<189>date=2\n{} {long}\n<189>date=3\0<189>date=4",
        long.len()
    );
    let wanted = [
        "<189>date=1",
        "<189>date=2",
        &long,
        "<189>date=3",
        "<189>date=4",
    ];
    for piece in [1, 7, 1000, stream.len()] {
        let mut client = connect(relay.address, authority.client(None, rustls::ALL_VERSIONS)).await;
        for bytes in stream.as_bytes().chunks(piece) {
            client.write_all(bytes).await.unwrap();
        }
        client.shutdown().await.unwrap();
        assert_eq!(relay.texts(wanted.len()).await, wanted, "pieces of {piece}");
    }
    assert_eq!(relay.metrics.frames.get(), 4 * wanted.len() as u64);
}

#[tokio::test]
async fn a_stream_that_ends_without_a_word_loses_only_what_it_broke_off_in() {
    let authority = Authority::new();
    let mut relay = serve(&authority.sign(&["localhost"]), "");
    let mut client = connect(relay.address, authority.client(None, rustls::ALL_VERSIONS)).await;
    client.write_all(b"<1>whole\n<1>user=\"ali").await.unwrap();
    client.flush().await.unwrap();
    assert_eq!(relay.texts(1).await, ["<1>whole"]);
    // The socket is closed without TLS's own end, as anybody on the way could do it.
    drop(client);
    until_async("the rejection", || {
        relay.metrics.rejected(Rejected::Framing) == 1
    })
    .await;
    relay.shutdown.cancel();
    relay.task.await.unwrap().unwrap();
    assert_eq!(relay.frames.waiting(), 0);
}

#[tokio::test]
async fn shutdown_takes_the_last_bytes_of_an_open_connection() {
    let authority = Authority::new();
    let mut relay = serve(&authority.sign(&["localhost"]), "");
    let mut client = connect(relay.address, authority.client(None, rustls::ALL_VERSIONS)).await;
    client.write_all(b"<1>first\n").await.unwrap();
    relay.texts(1).await;
    client.write_all(b"<1>second\n").await.unwrap();
    client.flush().await.unwrap();
    relay.shutdown.cancel();
    timeout(PATIENCE, relay.task)
        .await
        .expect("an end")
        .unwrap()
        .unwrap();
    let left = relay.frames.recv_batch(9).await.unwrap();
    assert_eq!(left.frames[0].bytes, b"<1>second");
    // Told in TLS's own words, without which this is an error.
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
}

/// Its clock runs on whenever nothing else happens, so the ten seconds are not waited for.
#[tokio::test(start_paused = true)]
async fn a_handshake_that_is_not_finished_is_given_up_and_holds_up_nobody() {
    let authority = Authority::new();
    let mut relay = serve(&authority.sign(&["localhost"]), "max_connections = 3");
    let mut silent = tokio::net::TcpStream::connect(relay.address).await.unwrap();
    let mut half = tokio::net::TcpStream::connect(relay.address).await.unwrap();
    half.write_all(b"\x16\x03\x01\x02\x00\x01").await.unwrap();
    let mut client = connect(relay.address, authority.client(None, rustls::ALL_VERSIONS)).await;
    client.write_all(b"<1>a\n").await.unwrap();
    assert_eq!(relay.texts(1).await, ["<1>a"]);
    // Those that shake hands count as connections.
    let mut fourth = tokio::net::TcpStream::connect(relay.address).await.unwrap();
    assert!(is_closed(&mut fourth).await);
    assert_eq!(relay.metrics.rejected(Rejected::Backlog), 1);
    assert!(is_closed(&mut silent).await && is_closed(&mut half).await);
    assert_eq!(relay.metrics.rejected(Rejected::Tls), 2);
    client.write_all(b"<1>b\n").await.unwrap();
    assert_eq!(relay.texts(1).await, ["<1>b"]);
}

async fn is_closed(stream: &mut tokio::net::TcpStream) -> bool {
    matches!(
        timeout(PATIENCE, stream.read(&mut [0; 16])).await,
        Ok(Ok(0) | Err(_))
    )
}

async fn until_async(what: &str, condition: impl Fn() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited in vain for {what}");
}

// === The whole program ===

/// Sends a message over TLS as a FortiGate does, and ends the connection in order.
fn send(stream: &mut rustls::StreamOwned<rustls::ClientConnection, TcpStream>, event: &Event) {
    stream.write_all(&event.counted()).unwrap();
    stream.flush().unwrap();
}

/// The certificate and key of the listener, signed by `authority`, in the relay's directory.
fn install(relay: &Relay, authority: &Authority) {
    authority
        .sign(&["localhost"])
        .write(relay.dir.path(), "server");
}

#[test]
fn a_device_is_believed_only_with_its_own_certificate() {
    let (authority, fortigates, others) = (
        Authority::new(),
        Authority::named("FortiGates"),
        Authority::named("Others"),
    );
    let mut relay = Relay::prepare(&format!(
        "{BASE}{LISTENER}client_ca = \"ca.pem\"\n[[device]]\nid = \"FGT60FTK20000001\"\npeers = [\"fgt1.example.com\"]\n{ROUTE}"
    ));
    install(&relay, &authority);
    fortigates.write(relay.dir.path());
    relay.run();
    let to = relay.listening("tls");

    let own = fortigates.sign(&["FGT1.example.com"]);
    send(
        &mut authority.connect(to, Some(&own)),
        &Event::code(1, "alice"),
    );
    until("the code", || {
        (relay.states() == ["accepted"]).then_some(())
    });

    // Another device of the same organisation, and the same device by a way without certificates.
    let neighbour = fortigates.sign(&["fgt2.example.com"]);
    send(
        &mut authority.connect(to, Some(&neighbour)),
        &Event::code(2, "bob"),
    );
    let wildcard = fortigates.sign(&["*.example.com"]);
    send(
        &mut authority.connect(to, Some(&wildcard)),
        &Event::code(3, "bob"),
    );
    relay.send_udp(&Event::code(4, "bob").line());
    until("the rejections", || {
        (relay.metric("ftm_relay_activations_total", &[("outcome", "rejected")]) == 3.0)
            .then_some(())
    });
    let rejected = |listener| {
        relay.metric(
            "ftm_relay_frames_rejected_total",
            &[("listener", listener), ("reason", "peer")],
        )
    };
    assert_eq!((rejected("tls"), rejected("udp")), (2.0, 1.0));
    assert!(
        relay
            .logged()
            .contains("127.0.0.1 with the certificate of fgt2.example.com may not speak for the device FGT60FTK20000001")
    );
    let page = relay.get("/").1;
    assert!(
        // The newest reason stands there; which listener's record was read last is open.
        page.contains("Not believed") && page.contains("may not speak for"),
        "{page}"
    );

    // No handshake at all; each from another address, since one peer's reasons are told once in a minute.
    let reasons = [
        (None, "presented no certificate"),
        (
            Some(others.sign(&["fgt1.example.com"])),
            "its certificate is not signed by an authority in `client_ca`",
        ),
        (
            Some(fortigates.sign_expired(&["fgt1.example.com"])),
            "its certificate has expired",
        ),
    ];
    for (n, (identity, why)) in (1..).zip(&reasons) {
        let from = IpAddr::from([127, 0, 0, n + 10]);
        let mut stream = authority.connect_from(from, to, identity.as_ref());
        // Under TLS 1.3 a client learns of it only with its next read.
        drop(stream.write_all(&Event::code(5, "bob").counted()));
        assert!(stream.read(&mut [0]).is_err());
        until(why, || relay.logged().contains(why).then_some(()));
        let rejected = relay.metric("ftm_relay_frames_rejected_total", &[("reason", "tls")]);
        assert_eq!(rejected, f64::from(n));
    }
    assert_eq!(relay.states(), ["accepted"]);
}

#[test]
fn what_a_stranger_says_is_no_sign_of_life() {
    let relay = Relay::start(&format!(
        "{BASE}[[device]]\nid = \"FGT60FTK20000001\"\npeers = [\"192.0.2.1\"]\n{ROUTE}"
    ));
    let mut noise = Event::code(1, "alice");
    noise.logid = "0000000013".to_owned();
    relay.send_udp(&noise.line());
    until("the log", || {
        relay
            .logged()
            .contains("Not believed: 127.0.0.1 may not speak")
            .then_some(())
    });
    let page = relay.get("/").1;
    assert!(
        page.contains("No device has been heard") && page.contains("Not believed"),
        "{page}"
    );
    assert!(
        !relay
            .get("/metrics")
            .1
            .contains("device_last_seen_timestamp_seconds{")
    );
}

#[test]
fn explain_knows_certificates_too() {
    let relay = Relay::prepare(&format!(
        "{BASE}[[device]]\nid = \"FGT60FTK20000001\"\npeers = [\"fgt1.example.com\", \"10.20.0.1\"]\n{ROUTE}"
    ));
    let line = Event::code(1, "alice").line();
    for (args, verdict) in [
        (&["--peer", "10.20.0.1"][..], "relay"),
        (&["--peer", "10.20.0.2"], "rejected"),
        (
            &["--peer", "10.20.0.2", "--certificate", "fgt1.example.com"],
            "relay",
        ),
        (
            &["--peer", "10.20.0.2", "--certificate", "10.20.0.1"],
            "relay",
        ),
        (&["--certificate", "fgt2.example.com"], "rejected"),
    ] {
        assert_eq!(relay.explain(&line, args)["verdict"], verdict, "{args:?}");
    }
}

#[test]
fn a_reload_reads_the_certificates_again_and_drops_no_connection() {
    let (old, new) = (Authority::named("Old"), Authority::named("New"));
    let mut relay = Relay::prepare(&format!("{BASE}{LISTENER}{ROUTE}"));
    install(&relay, &old);
    relay.run();
    let to = relay.listening("tls");
    let mut before = old.connect(to, None);
    send(&mut before, &Event::code(1, "alice"));
    until("the first", || (relay.states().len() == 1).then_some(()));

    // A key that doesn't belong to it: refused, and the old one stays in use.
    let wrong = new.sign(&["localhost"]);
    std::fs::write(relay.dir.path().join("server.pem"), &wrong.certificate_pem).unwrap();
    relay.signal(Signal::HUP);
    until("the refusal", || {
        relay.logged().contains("is refused").then_some(())
    });
    assert!(
        relay
            .logged()
            .contains("the key does not belong to the first certificate")
    );
    send(&mut old.connect(to, None), &Event::code(2, "bob"));
    until("the second", || (relay.states().len() == 2).then_some(()));

    install(&relay, &new);
    relay.signal(Signal::HUP);
    until("the reload", || {
        relay.logged().contains("Reloaded").then_some(())
    });
    send(&mut before, &Event::code(3, "carol"));
    send(&mut new.connect(to, None), &Event::code(4, "dave"));
    until("both", || (relay.states().len() == 4).then_some(()));
    let mut outdated = old.connect(to, None);
    assert!(outdated.write_all(b"x").is_err());
    until("the reason", || {
        relay
            .logged()
            .contains("it does not trust the certificate of this listener")
            .then_some(())
    });
}

#[test]
fn the_wrong_protocol_on_a_port_is_named_counted_and_closed() {
    let mut relay = Relay::prepare(&format!("{BASE}{LISTENER}{ROUTE}"));
    install(&relay, &Authority::new());
    relay.run();
    let closed_after = |to: SocketAddr, hello: &[u8]| {
        let mut stream = TcpStream::connect(to).unwrap();
        stream.write_all(hello).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        !matches!(stream.read(&mut [0; 64]), Ok(1..))
    };
    let tls = relay.listening("tls");
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let beep =
        b"RPY 0 0 . 0 52\r\nContent-Type: application/beep+xml\r\n\r\n<greeting />\r\nEND\r\n";
    let advice = |said: &str| {
        until(said, || relay.logged().contains(said).then_some(()));
    };
    assert!(closed_after(tls, &Event::code(1, "alice").counted()));
    advice(
        "speaks without TLS, but this listener expects it; write `set enc-algorithm high-medium`",
    );
    assert!(closed_after(relay.tcp(), hello));
    advice("speaks TLS, but this listener expects plain TCP");
    // One more of each is counted, and not told of again.
    assert!(closed_after(tls, &Event::code(1, "alice").counted()));
    assert!(closed_after(relay.tcp(), hello));
    let rejected = |reason| relay.metric("ftm_relay_frames_rejected_total", &[("reason", reason)]);
    until("the counters", || {
        ((rejected("tls"), rejected("framing")) == (2.0, 2.0)).then_some(())
    });
    for protocol in ["speaks without TLS", "speaks TLS"] {
        assert_eq!(relay.logged().matches(protocol).count(), 1, "{protocol}");
    }
    // Who has mended one mistake and makes another is told of that one too.
    for to in [tls, relay.tcp()] {
        assert!(closed_after(to, beep));
    }
    until("the advice for both listeners", || {
        let advice = "speaks RFC 3195 (on a FortiGate: `set mode legacy-reliable`), which is not understood here; write `set mode reliable`";
        (relay.logged().matches(advice).count() == 2).then_some(())
    });
    assert!(relay.states().is_empty());
}

#[test]
fn once_client_certificates_are_required_a_connection_without_one_is_believed_no_more() {
    let (authority, fortigates) = (Authority::new(), Authority::named("FortiGates"));
    let mut relay = Relay::prepare(&format!("{BASE}{LISTENER}{ROUTE}"));
    install(&relay, &authority);
    fortigates.write(relay.dir.path());
    relay.run();
    let to = relay.listening("tls");
    let mut before = authority.connect(to, None);
    send(&mut before, &Event::code(1, "alice"));
    until("the first", || (relay.states().len() == 1).then_some(()));

    relay.configure(&format!("{BASE}{LISTENER}client_ca = \"ca.pem\"\n{ROUTE}"));
    relay.signal(Signal::HUP);
    until("the reload", || {
        relay.logged().contains("Reloaded").then_some(())
    });
    send(&mut before, &Event::code(2, "bob"));
    until("the reason", || {
        relay
            .logged()
            .contains("it connected before `client_ca` was set, and without a certificate")
            .then_some(())
    });
    let own = fortigates.sign(&["fgt1.example.com"]);
    send(
        &mut authority.connect(to, Some(&own)),
        &Event::code(3, "carol"),
    );
    until("the third", || (relay.states().len() == 2).then_some(()));
    assert!(relay.queue().iter().all(|row| row["user"] != "bob"));
}

#[test]
fn what_is_bound_changes_its_name_and_transport_only_with_a_restart() {
    let at = |transport: &str, name: &str| {
        BASE.replace("name = \"tcp\"", &format!("name = \"{name}\""))
            .replace(
                "transport = \"tcp\"",
                &format!("transport = \"{transport}\""),
            )
            + ROUTE
    };
    let relay = Relay::start(&at("tcp", "tcp"));
    relay.configure(&at("tcp", "core"));
    relay.signal(Signal::HUP);
    until("the refusal", || {
        relay
            .logged()
            .contains("the name of the listener on 127.0.0.2:0 changes only with a restart")
            .then_some(())
    });
}

// === What check says ===

#[test]
fn a_certificate_that_no_listener_asks_for_is_warned_of() {
    let device = "[[device]]\nid = \"FGT1\"\npeers = [\"10.20.0.1\", \"fgt1.example.com\"]\n";
    let relay = Relay::prepare(&format!("{BASE}{device}{ROUTE}"));
    let said = || String::from_utf8(relay.cli(&["check"]).stdout).unwrap();
    assert!(said().contains("warning: `peers` names a certificate, but no listener asks for one"));
    relay.configure(&format!(
        "{BASE}{LISTENER}client_ca = \"ca.pem\"\n{device}{ROUTE}"
    ));
    assert!(!said().contains("`peers` names a certificate"));
    let address = device.replace("fgt1.example.com", "10.20.0.2");
    relay.configure(&format!("{BASE}{address}{ROUTE}"));
    assert!(!said().contains("`peers` names a certificate"));
}

#[test]
fn every_mistake_with_certificates_is_named_with_its_place() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    authority.write(dir);
    authority.sign(&["localhost"]).write(dir, "good");
    authority.sign_rsa(&["localhost"]).write(dir, "other");
    authority.sign_expired(&["localhost"]).write(dir, "expired");
    std::fs::write(dir.join("empty.pem"), "").unwrap();
    std::fs::write(
        dir.join("broken.pem"),
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    std::fs::write(
        dir.join("locked.key"),
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    )
    .unwrap();
    let good = ("good.pem", "good.key", "ca.pem");
    for ((cert, key, ca), weight, place, said) in [
        (good, "", "", ""),
        (
            ("none.pem", "good.key", "ca.pem"),
            "problem",
            "\"none.pem\"",
            "can't be read: No such file",
        ),
        (
            ("empty.pem", "good.key", "ca.pem"),
            "problem",
            "\"empty.pem\"",
            "holds no certificate",
        ),
        (
            ("broken.pem", "good.key", "ca.pem"),
            "problem",
            "\"broken.pem\"",
            "holds a certificate that can't be read",
        ),
        (
            ("expired.pem", "expired.key", "ca.pem"),
            "warning",
            "\"expired.pem\"",
            "expired on 2021-01-01",
        ),
        (
            ("good.pem", "other.key", "ca.pem"),
            "problem",
            "{ file = \"other.key\" }",
            "does not belong to the first certificate",
        ),
        (
            ("good.pem", "empty.pem", "ca.pem"),
            "problem",
            "{ file = \"empty.pem\" }",
            "is empty",
        ),
        (
            ("good.pem", "good.pem", "ca.pem"),
            "problem",
            "{ file = \"good.pem\" }",
            "no private key in PEM",
        ),
        (
            ("good.pem", "locked.key", "ca.pem"),
            "problem",
            "{ file = \"locked.key\" }",
            "the key is encrypted",
        ),
        (
            ("good.pem", "good.key", "empty.pem"),
            "problem",
            "\"empty.pem\"",
            "holds no certificate",
        ),
        (
            ("good.pem", "good.key", "none.pem"),
            "problem",
            "\"none.pem\"",
            "can't be read",
        ),
    ] {
        let text = format!(
            "address = \"[::1]:6514\"\ncert = \"{cert}\"\nkey = {{ file = \"{key}\" }}\nclient_ca = \"{ca}\"\n"
        );
        let found = findings(dir, &text);
        if said.is_empty() {
            assert_eq!(found, [], "{text}");
            continue;
        }
        assert_eq!(found.len(), 1, "{found:?}");
        let (found_weight, found_place, found_said) = &found[0];
        assert!(found_said.contains(said), "{found_said}");
        assert_eq!(
            (found_weight.as_str(), found_place.as_str()),
            (weight, place),
            "{found_said}"
        );
    }
}

fn findings(dir: &Path, text: &str) -> Vec<(String, String, String)> {
    let mut config = Config::Tls(toml::from_str(text).unwrap());
    let mut check = Check::new(dir, None, false);
    config.build(&mut check);
    let findings = check.findings().into_iter();
    findings
        .map(|f| {
            let place = f.span.map_or("", |span| &text[span]);
            (
                format!("{:?}", f.weight).to_lowercase(),
                place.to_owned(),
                f.text,
            )
        })
        .collect()
}
