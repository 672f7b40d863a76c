//! Records by HTTP, as automation stitches send them: what is taken, and what each request is answered.

use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::sync::Arc;

use arc_swap::ArcSwap;
use ftm_relay::ingest::Config;
use ftm_relay::ingest::Intake;
use ftm_relay::ingest::Outcome;
use ftm_relay::ingest::Stitch;
use ftm_relay::ingest::bind;
use ftm_relay::metrics::Metrics;
use ftm_relay::metrics::Rejected;
use ftm_relay::settings::Check;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

use crate::support::authority::Authority;
use crate::support::relay::BASE;
use crate::support::relay::Relay;
use crate::support::samples::Event;
use crate::support::samples::code;
use crate::support::until;

const TOKEN: &str = "a-token-of-thirty-two-characters";

const ROUTE: &str =
    "[channel.mail]\ntype = \"file\"\npath = \"mail\"\n[[route]]\nto = [\"mail\"]\n";

const LISTENER: &str = "[[listen]]\nname = \"stitch\"\ntransport = \"stitch\"\naddress = \"127.0.0.4:0\"\ntoken = { env = \"STITCH_TOKEN\" }\n";

/// A relay with a listener for stitches; `more` are further keys of it.
fn relay(more: &str) -> Relay {
    let mut relay = prepare(more);
    relay.run();
    relay
}

fn prepare(more: &str) -> Relay {
    let mut relay = Relay::prepare(&format!("{BASE}{LISTENER}{more}\n{ROUTE}"));
    relay.env("STITCH_TOKEN", TOKEN);
    relay
}

/// Status, header and body of an answer.
struct Answer {
    status: u16,
    header: String,
    body: String,
}

fn exchange(stream: &mut (impl Read + Write), request: &[u8]) -> Answer {
    stream.write_all(request).unwrap();
    stream.flush().unwrap();
    let mut answer = Vec::new();
    // A peer that is turned away before its body is read may see a reset behind the answer.
    let mut piece = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut piece) {
        answer.extend_from_slice(&piece[..n]);
    }
    let answer = String::from_utf8(answer).unwrap();
    let (header, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer: {answer:?}"));
    Answer {
        status: header.split(' ').nth(1).unwrap().parse().unwrap(),
        header: header.to_lowercase(),
        body: body.to_owned(),
    }
}

fn request(header: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /any/path?at=all HTTP/1.1\r\nHost: relay.example.com\r\nContent-Length: {}\r\n{header}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn bearer() -> String {
    format!("Authorization: Bearer {TOKEN}\r\n")
}

fn post(relay: &Relay, body: &[u8]) -> Answer {
    send(relay, &request(&bearer(), body))
}

fn send(relay: &Relay, request: &[u8]) -> Answer {
    exchange(
        &mut TcpStream::connect(relay.listening("stitch")).unwrap(),
        request,
    )
}

/// The body that a stitch puts together from `%%log.FIELD%%`: every value a string, nothing escaped.
fn json(event: &Event) -> Vec<u8> {
    let Event {
        user,
        msg,
        logid,
        devid,
        devname,
        vdom,
        eventtime,
        ..
    } = event;
    format!(
        "{{\"logid\":\"{logid}\",\"type\":\"event\",\"subtype\":\"system\",\"devid\":\"{devid}\",\"devname\":\"{devname}\",\"vd\":\"{vdom}\",\
          \"eventtime\":\"{eventtime}\",\"tz\":\"+0100\",\"user\":\"{user}\",\"msg\":\"{msg}\"}}"
    )
    .into_bytes()
}

#[test]
fn a_record_is_taken_in_any_form_and_known_again_whatever_way_it_came() {
    let relay = relay("");
    let (raw, fields) = (Event::code(1, "alice"), Event::code(2, "bob"));
    let answer = post(&relay, &raw.line());
    assert_eq!((answer.status, answer.body.as_str()), (202, "accepted\n"));
    assert_eq!(post(&relay, &json(&fields)).status, 202);
    // As the device's own log has it, without a priority, and with what a template may put around it.
    let bare = Event::code(3, "carol").line();
    let answer = post(&relay, &[b"\r\n  ", &bare["<189>".len()..], b"\n"].concat());
    assert_eq!(answer.status, 202, "{}", answer.body);

    for body in [raw.line(), json(&raw)] {
        let answer = post(&relay, &body);
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (202, "accepted before\n")
        );
    }
    relay.send_udp(&fields.line());
    until("the duplicate by UDP", || {
        (relay.metric("ftm_relay_activations_total", &[("outcome", "duplicate")]) == 3.0)
            .then_some(())
    });
    until("the mails", || {
        (relay.states() == ["accepted"; 3]).then_some(())
    });
    let users: Vec<_> = relay
        .queue()
        .iter()
        .map(|row| row["user"].clone())
        .collect();
    for user in ["alice", "bob", "carol"] {
        assert!(users.contains(&user.into()), "{users:?}");
    }
    assert_eq!(
        relay.metric("ftm_relay_frames_total", &[("listener", "stitch")]),
        5.0
    );
}

#[test]
fn what_was_answered_202_survives_a_kill() {
    let mut relay = relay("");
    for n in 1..=5 {
        assert_eq!(
            post(&relay, &Event::code(n, &format!("user{n}")).line()).status,
            202
        );
    }
    relay.kill();
    relay.run();
    assert_eq!(relay.queue().len(), 5);
}

#[test]
fn a_request_without_the_token_is_not_read() {
    let relay = relay("");
    let line = Event::code(1, "alice").line();
    for header in [
        String::new(),
        "Authorization: Bearer wrong\r\n".to_owned(),
        format!("Authorization: Bearer {TOKEN}x\r\n"),
        format!("Authorization: Bearer {}\r\n", &TOKEN[..TOKEN.len() - 1]),
        format!("Authorization: Basic {TOKEN}\r\n"),
        "Authorization: Bearer\r\n".to_owned(),
        "Authorization: Bearer \r\n".to_owned(),
        format!("X-Token: {TOKEN}\r\n"),
        // Which of two would count is anybody's guess.
        bearer() + "Authorization: Bearer wrong\r\n",
    ] {
        let answer = send(&relay, &request(&header, &line));
        assert_eq!(answer.status, 401, "{header}");
        assert!(
            answer.header.contains("www-authenticate: bearer"),
            "{}",
            answer.header
        );
    }
    assert!(relay.queue().is_empty());
    assert_eq!(
        relay.metric(
            "ftm_relay_frames_rejected_total",
            &[("listener", "stitch"), ("reason", "peer")]
        ),
        9.0
    );
    assert_eq!(
        relay.logged().matches("without the bearer token").count(),
        1
    );
    assert!(!relay.logged().contains(TOKEN));
    let lower = format!("authorization: bearer {TOKEN}\r\n");
    assert_eq!(send(&relay, &request(&lower, &line)).status, 202);
}

#[test]
fn only_post_is_spoken() {
    let relay = relay("");
    for method in ["GET", "PUT", "HEAD", "DELETE"] {
        let request = format!("{method} / HTTP/1.1\r\nHost: a\r\n{}\r\n", bearer());
        let answer = send(&relay, request.as_bytes());
        assert_eq!(answer.status, 405, "{method}");
        assert!(answer.header.contains("allow: post"));
    }
}

#[test]
fn a_body_that_is_too_long_is_refused_whether_it_says_so_or_not() {
    let relay = relay("max_frame_bytes = 1000");
    let long = vec![b'x'; 1001];
    assert_eq!(post(&relay, &long).status, 413);
    // Promised, never sent.
    let promise = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n{}\r\n",
        bearer()
    );
    let answer = send(&relay, promise.as_bytes());
    assert_eq!(answer.status, 413);
    assert!(answer.body.contains("max_frame_bytes"));
    let mut chunked = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n{}\r\n3e9\r\n",
        bearer()
    )
    .into_bytes();
    chunked.extend_from_slice(&long);
    chunked.extend_from_slice(b"\r\n0\r\n\r\n");
    assert_eq!(send(&relay, &chunked).status, 413);
    let rejected = relay.metric(
        "ftm_relay_frames_rejected_total",
        &[("listener", "stitch"), ("reason", "size")],
    );
    assert_eq!(rejected, 3.0);

    let line = Event::code(1, "alice").line();
    let mut chunked = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n{}\r\n",
        bearer()
    )
    .into_bytes();
    for piece in line.chunks(50) {
        chunked.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        chunked.extend_from_slice(piece);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(send(&relay, &chunked).status, 202);
}

#[test]
fn what_is_no_readable_record_is_refused_with_the_reason() {
    let relay = relay("devices = [\"FGT60F*\"]");
    let mut quoted = Event::code(1, "alice");
    quoted.msg = format!("code \"{}\" sent", code(1));
    let mut domain = Event::code(1, "EXAMPLE\\alice");
    domain.devid = "FGT60FTK20000001".to_owned();
    let mut elsewhere = Event::code(1, "alice");
    elsewhere.devid = "FGT100F000000001".to_owned();
    let twice = String::from_utf8(json(&Event::code(1, "alice")))
        .unwrap()
        .replace("\"tz\"", "\"logid\"");
    for (body, why) in [
        (json(&quoted), "send the whole log with %%log%%"),
        (json(&domain), "send the whole log with %%log%%"),
        (b"".to_vec(), "the body is empty"),
        (b"hello".to_vec(), "no field was found"),
        (b"{}".to_vec(), "no field was found"),
        (b"{\"text\":\"hello\"}".to_vec(), "there is no field logid"),
        (b"[1]".to_vec(), "no field was found"),
        (twice.into_bytes(), "the field logid stands twice"),
        (
            elsewhere.line(),
            "is not in `devices` of the listener stitch",
        ),
    ] {
        let answer = post(&relay, &body);
        assert_eq!(
            answer.status,
            422,
            "{}: {}",
            String::from_utf8_lossy(&body),
            answer.body
        );
        assert!(answer.body.contains(why), "{}", answer.body);
        assert!(!answer.body.contains(&code(1)), "{}", answer.body);
    }
    assert!(relay.queue().is_empty());
}

#[test]
fn a_log_that_nobody_wants_is_no_error() {
    let relay = relay("");
    let mut other = Event::code(1, "alice");
    other.logid = "0100032001".to_owned();
    let answer = post(&relay, &other.line());
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.body,
        "ignored: message id 32001 is no event that a rule wants\n"
    );
}

#[test]
fn while_the_outbox_cannot_commit_the_sender_is_told_to_come_back() {
    let relay = relay("");
    let db = rusqlite::Connection::open(relay.state().join("outbox.db")).unwrap();
    db.execute_batch("BEGIN IMMEDIATE").unwrap();
    let line = Event::code(1, "alice").line();
    let answer = post(&relay, &line);
    assert_eq!(answer.status, 503);
    assert!(
        answer.header.contains("retry-after: 30"),
        "{}",
        answer.header
    );
    assert!(answer.body.contains("not committed yet"));
    // Now it is known, and nobody waits for it.
    assert_eq!(post(&relay, &Event::code(2, "bob").line()).status, 503);
    db.execute_batch("ROLLBACK").unwrap();
    until("both", || (relay.queue().len() == 2).then_some(()));
    assert_eq!(post(&relay, &line).body, "accepted before\n");
}

#[test]
fn over_https_the_client_certificate_counts_as_it_does_for_syslog() {
    let (authority, fortigates) = (Authority::new(), Authority::named("FortiGates"));
    let mut relay = prepare(
        "cert = \"server.pem\"\nkey = { file = \"server.key\" }\nclient_ca = \"ca.pem\"\n[[device]]\nid = \"FGT60FTK20000001\"\npeers = [\"fgt1.example.com\"]",
    );
    authority
        .sign(&["localhost"])
        .write(relay.dir.path(), "server");
    fortigates.write(relay.dir.path());
    relay.run();
    let to = relay.listening("stitch");
    let ask = |name: &str, n| {
        let identity = fortigates.sign(&[name]);
        let request = request(&bearer(), &Event::code(n, "alice").line());
        exchange(&mut authority.connect(to, Some(&identity)), &request)
    };
    assert_eq!(ask("fgt1.example.com", 1).status, 202);
    let other = ask("fgt2.example.com", 2);
    assert_eq!(other.status, 422);
    assert!(
        other.body.contains("may not speak for the device"),
        "{}",
        other.body
    );
    assert!(authority.connect(to, None).write_all(b"POST").is_ok());
    until("the handshake that failed", || {
        relay
            .logged()
            .contains("presented no certificate")
            .then_some(())
    });
    assert_eq!(relay.queue().len(), 1);
}

#[test]
fn http_and_https_are_told_apart() {
    let mut https = prepare("cert = \"server.pem\"\nkey = { file = \"server.key\" }");
    Authority::new()
        .sign(&["localhost"])
        .write(https.dir.path(), "server");
    https.run();
    let http = relay("");
    let closed = |to: SocketAddr, bytes: &[u8]| {
        let mut stream = TcpStream::connect(to).unwrap();
        stream.write_all(bytes).unwrap();
        !matches!(stream.read(&mut [0; 9]), Ok(1..))
    };
    assert!(closed(https.listening("stitch"), &request(&bearer(), b"x")));
    until("the advice", || {
        https
            .logged()
            .contains("speaks without TLS, but this listener expects HTTPS")
            .then_some(())
    });
    assert!(closed(
        http.listening("stitch"),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    ));
    until("the advice", || {
        http.logged()
            .contains("speaks TLS, but this listener expects plain HTTP")
            .then_some(())
    });
}

// === A listener by itself ===

struct Alone {
    address: SocketAddr,
    intake: Intake,
    frames: ftm_relay::ingest::FrameReceiver,
    metrics: ftm_relay::metrics::ListenerMetrics,
}

fn serve(more: &str) -> Alone {
    let text = format!("address = \"127.0.0.1:0\"\ntoken = \"{TOKEN}\"\n{more}");
    let mut config = Config::Stitch(toml::from_str::<Stitch>(&text).unwrap());
    let mut check = Check::new("/", None, true);
    config.build(&mut check);
    assert!(!check.has_problems());
    let bound = bind(&config).unwrap();
    let address = bound.local_addr().unwrap();
    let (intake, frames) = Intake::new();
    let metrics = Metrics::new().0.listener("test");
    tokio::spawn(bound.serve(
        intake.clone(),
        metrics.clone(),
        Arc::new(ArcSwap::from_pointee(config)),
        CancellationToken::new(),
    ));
    Alone {
        address,
        intake,
        frames,
        metrics,
    }
}

async fn answer_to(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    drop(stream.read_to_string(&mut answer).await);
    answer
}

/// Its clock runs on whenever nothing else happens, so no time-out is waited for.
#[tokio::test(start_paused = true)]
async fn slow_requests_end_and_a_peer_outside_allow_or_too_many_is_turned_away() {
    let alone = serve("max_connections = 1");
    assert_eq!(answer_to(alone.address, b"POST / HT").await, "");
    assert_eq!(answer_to(alone.address, b"").await, "");
    let half = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n{}\r\n<189>",
        bearer()
    );
    let answer = answer_to(alone.address, half.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(alone.metrics.rejected(Rejected::Framing), 1);

    let mut first = tokio::net::TcpStream::connect(alone.address).await.unwrap();
    first.write_all(b"P").await.unwrap();
    assert_eq!(
        answer_to(alone.address, &request(&bearer(), b"x")).await,
        ""
    );
    assert_eq!(alone.metrics.rejected(Rejected::Backlog), 1);

    let elsewhere = serve("allow = [\"192.0.2.1\"]");
    assert_eq!(
        answer_to(elsewhere.address, &request(&bearer(), b"x")).await,
        ""
    );
    assert_eq!(elsewhere.metrics.rejected(Rejected::Peer), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_its_outcome_and_not_for_ever() {
    let mut alone = serve("");
    let line = request(&bearer(), b"<189>logid=1");
    let answer = answer_to(alone.address, &line).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    drop(alone.frames.recv_batch(1).await);
    for (outcome, status) in [
        (Some(Outcome::Kept), "202"),
        (Some(Outcome::Pending), "503"),
        (None, "503"),
    ] {
        let asked = tokio::spawn({
            let (address, line) = (alone.address, line.clone());
            async move { answer_to(address, &line).await }
        });
        let mut batch = alone.frames.recv_batch(1).await.unwrap();
        let reply = batch.replies.remove(0);
        if let Some(outcome) = outcome {
            reply.send(outcome);
        } else {
            drop(reply);
        }
        let answer = asked.await.unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
    }
    drop(alone.intake);
}

#[test]
fn wrong_settings_are_all_named() {
    for (text, said) in [
        (
            "address = \"10.0.0.1:80\"\ntoken = { env = \"NOT_SET\" }\n",
            &["NOT_SET", "in clear over the network"][..],
        ),
        (
            "address = \"127.0.0.1:80\"\ntoken = \"short\"\n",
            &["in the file itself", "can be guessed"],
        ),
        (
            "address = \"127.0.0.1:80\"\ntoken = \"a token with blanks in it\"\n",
            &["without blanks", "in the file itself"],
        ),
        (
            "address = \"127.0.0.1:80\"\ntoken = \"a-token-of-thirty-two-characters\"\ncert = \"a.pem\"\n",
            &["in the file itself", "`key` is not"],
        ),
        (
            "address = \"127.0.0.1:80\"\ntoken = \"a-token-of-thirty-two-characters\"\nclient_ca = \"a.pem\"\n",
            &["in the file itself", "needs `cert`"],
        ),
    ] {
        let mut config = Config::Stitch(toml::from_str(text).unwrap());
        let mut check = Check::new("/", None, false);
        config.build(&mut check);
        let found: Vec<_> = check.findings().into_iter().map(|f| f.text).collect();
        assert_eq!(found.len(), said.len(), "{found:?}");
        for (found, said) in found.iter().zip(said) {
            assert!(found.contains(said), "{found}");
        }
    }
    assert!(
        toml::from_str::<Stitch>(
            "address = \"127.0.0.1:80\"\ntoken = \"x\"\nidle_timeout = \"1h\"\n"
        )
        .is_err()
    );
}
