//! Bytes on sockets become frames: framing, limits, back-pressure, counters, reload, shutdown.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use arc_swap::ArcSwap;
use ftm_relay::frame::Frame;
use ftm_relay::ingest::Config;
use ftm_relay::ingest::FrameReceiver;
use ftm_relay::ingest::Intake;
use ftm_relay::ingest::MAX_WAITING_FRAMES;
use ftm_relay::ingest::Tcp;
use ftm_relay::ingest::Udp;
use ftm_relay::ingest::bind;
use ftm_relay::metrics::ListenerMetrics;
use ftm_relay::metrics::Metrics;
use ftm_relay::metrics::Rejected;
use ftm_relay::settings::Check;
use ftm_relay::simulate::Identity;
use ftm_relay::simulate::Simulation;
use jiff::Timestamp;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Nothing here takes longer, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(20);

fn udp(more: &str) -> Config {
    Config::Udp(
        toml::from_str::<Udp>(&format!("name = \"u\"\n{}", with_address(more)))
            .expect("the test's settings"),
    )
}

fn tcp(more: &str) -> Config {
    Config::Tcp(
        toml::from_str::<Tcp>(&format!("name = \"t\"\n{}", with_address(more)))
            .expect("the test's settings"),
    )
}

fn with_address(more: &str) -> String {
    if more.contains("address =") {
        more.to_owned()
    } else {
        format!("address = \"127.0.0.1:0\"\n{more}")
    }
}

/// A listener that runs, and the other end of its queue.
struct Running {
    address: SocketAddr,
    intake: Intake,
    frames: FrameReceiver,
    metrics: ListenerMetrics,
    settings: Arc<ArcSwap<Config>>,
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

fn serve(config: Config) -> Running {
    let bound = bind(&config).unwrap();
    let address = bound.local_addr().unwrap();
    let (intake, frames) = Intake::new();
    let metrics = Metrics::new().0.listener("test");
    let settings = Arc::new(ArcSwap::from_pointee(config));
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(bound.serve(
        intake.clone(),
        metrics.clone(),
        settings.clone(),
        shutdown.clone(),
    ));
    Running {
        address,
        intake,
        frames,
        metrics,
        settings,
        shutdown,
        task,
    }
}

impl Running {
    async fn next(&mut self) -> Frame {
        let batch = timeout(PATIENCE, self.frames.recv_batch(1)).await;
        batch.expect("a frame").unwrap().frames.remove(0)
    }

    async fn texts(&mut self, n: usize) -> Vec<String> {
        let mut texts = Vec::new();
        while texts.len() < n {
            texts.push(text(&self.next().await));
        }
        texts
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn send(&self, bytes: &[u8]) {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
    }

    /// Ends the listener; what is left in the queue comes back.
    async fn stop(self) -> Vec<Frame> {
        let Self {
            intake,
            mut frames,
            shutdown,
            task,
            ..
        } = self;
        shutdown.cancel();
        timeout(PATIENCE, task)
            .await
            .expect("an end in time")
            .unwrap()
            .unwrap();
        drop(intake);
        let mut left = Vec::new();
        while let Some(batch) = frames.recv_batch(1000).await {
            left.extend(batch.frames);
        }
        left
    }
}

fn text(frame: &Frame) -> String {
    String::from_utf8_lossy(&frame.bytes).into_owned()
}

async fn sender() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").await.unwrap()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether the peer has closed (or reset) the connection.
async fn is_closed(stream: &mut TcpStream) -> bool {
    matches!(
        timeout(PATIENCE, stream.read(&mut [0; 16])).await,
        Ok(Ok(0) | Err(_))
    )
}

fn counted(message: &str) -> String {
    format!("{} {message}", message.len())
}

#[tokio::test]
async fn all_framings_pass_on_one_connection_cut_anywhere() {
    let mut relay = serve(tcp(""));
    let stream = [
        counted("<189>date=1"),
        counted("<189>date=2\n"),
        "<189>date=3\n".into(),
        counted("<189>date=4\r\n") + "\n",
        "<189>date=5\r\n".into(),
        "<189>date=6\0".into(),
        counted("<189>date=7\nsecond line") + "\0",
        "54 <1 minute elapsed\n".into(),
        "<189>date=8\n".into(),
        "999999 <189>date=cut off\n".into(),
        counted("<189>date=9"),
        "<189>date=10".into(),
    ]
    .concat();
    let wanted = [
        "<189>date=1",
        "<189>date=2",
        "<189>date=3",
        "<189>date=4",
        "<189>date=5",
        "<189>date=6",
        "<189>date=7\nsecond line",
        "54 <1 minute elapsed",
        "<189>date=8",
        "<189>date=cut off",
        "<189>date=9",
        "<189>date=10",
    ];
    for piece in [1, 2, 7, 40, stream.len()] {
        let mut connection = relay.connect().await;
        connection.set_nodelay(true).unwrap();
        for bytes in stream.as_bytes().chunks(piece) {
            connection.write_all(bytes).await.unwrap();
            tokio::task::yield_now().await;
        }
        connection.shutdown().await.unwrap();
        assert_eq!(
            relay.texts(wanted.len()).await,
            wanted,
            "in pieces of {piece}"
        );
    }
    assert_eq!(relay.metrics.frames.get(), 5 * wanted.len() as u64);
    assert_eq!(relay.metrics.rejected(Rejected::Framing), 5);
}

#[tokio::test]
async fn a_frame_says_who_sent_it_where_and_when() {
    let mut relay = serve(udp(""));
    let before = Timestamp::now();
    let socket = sender().await;
    socket
        .send_to(b"<189>date=1\n\0", relay.address)
        .await
        .unwrap();
    let frame = relay.next().await;
    assert_eq!(frame.bytes, b"<189>date=1");
    assert_eq!(frame.peer.address, Some(IpAddr::from([127, 0, 0, 1])));
    assert_eq!(frame.listener.as_deref(), Some("u"));
    assert!((before..=Timestamp::now()).contains(&frame.received_at));
}

#[tokio::test]
async fn the_unspecified_ipv6_address_takes_both_families() {
    let any = "address = \"[::]:0\"";
    let (mut over_udp, mut over_tcp) = (serve(udp(any)), serve(tcp(any)));
    for ip in ["127.0.0.1", "::1"] {
        let ip: IpAddr = ip.parse().unwrap();
        let socket = UdpSocket::bind((ip, 0)).await.unwrap();
        let to = (ip, over_udp.address.port());
        socket.send_to(b"<1>a", to).await.unwrap();
        assert_eq!(over_udp.next().await.peer.address, Some(ip));

        let to = (ip, over_tcp.address.port());
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(b"<1>a\n").await.unwrap();
        assert_eq!(over_tcp.next().await.peer.address, Some(ip));
    }
}

#[tokio::test]
async fn what_is_too_long_costs_itself_alone() {
    let limit = "max_frame_bytes = 1000";
    let mut relay = serve(tcp(limit));
    let long = "A".repeat(300_000);
    let longest = format!("<1>{}", "B".repeat(997));
    let stream = format!(
        "{long}\n<1>one\n{longest}\n{}{}<1>two\n",
        counted(&longest),
        counted(&format!("<1>{long}\n"))
    );
    relay.send(stream.as_bytes()).await;
    assert_eq!(
        relay.texts(4).await,
        ["<1>one", &longest, &longest, "<1>two"]
    );
    assert_eq!(relay.metrics.rejected(Rejected::Size), 2);

    let mut relay = serve(udp(limit));
    let socket = sender().await;
    for datagram in [
        &long.as_bytes()[..1001],
        b"",
        b"\n",
        longest.as_bytes(),
        b"<1>two",
    ] {
        socket.send_to(datagram, relay.address).await.unwrap();
    }
    assert_eq!(relay.texts(2).await, [&longest, "<1>two"]);
    assert_eq!(relay.metrics.rejected(Rejected::Size), 1);
    assert_eq!(relay.metrics.frames.get(), 5);
}

#[tokio::test]
async fn messages_of_22_kilobytes_and_of_any_bytes_pass() {
    let mut relay = serve(tcp(""));
    let mut message = b"<189>rawdata=".to_vec();
    message.extend((0..22_000_u32).map(|n| (n % 255 + 1) as u8));
    message.push(b'.');
    let mut stream = format!("{} ", message.len()).into_bytes();
    stream.extend_from_slice(&message);
    stream.extend_from_slice(b"<1>next\n");
    relay.send(&stream).await;
    assert_eq!(relay.next().await.bytes, message);
    assert_eq!(text(&relay.next().await), "<1>next");
}

#[tokio::test]
async fn a_peer_outside_allow_is_counted_and_not_heard() {
    let elsewhere = "allow = [\"192.0.2.0/24\", \"2001:db8::1\"]";
    let relay = serve(udp(elsewhere));
    sender()
        .await
        .send_to(b"<1>a", relay.address)
        .await
        .unwrap();
    until("the rejection", || {
        relay.metrics.rejected(Rejected::Peer) == 1
    })
    .await;
    assert_eq!(relay.metrics.frames.get(), 1);
    assert!(relay.stop().await.is_empty());

    let relay = serve(tcp(elsewhere));
    let mut stream = relay.connect().await;
    assert!(is_closed(&mut stream).await);
    assert_eq!(relay.metrics.rejected(Rejected::Peer), 1);
    assert!(relay.stop().await.is_empty());
}

#[tokio::test]
async fn a_reload_of_allow_reaches_open_sockets_and_connections() {
    let mut relay = serve(tcp(""));
    let mut stream = relay.connect().await;
    stream.write_all(b"<1>before\n").await.unwrap();
    relay.next().await;
    relay.settings.store(Arc::new(tcp("max_frame_bytes = 500")));
    let now_too_long = "x".repeat(501);
    stream
        .write_all(format!("{now_too_long}\n<1>between\n").as_bytes())
        .await
        .unwrap();
    assert_eq!(text(&relay.next().await), "<1>between");
    assert_eq!(relay.metrics.rejected(Rejected::Size), 1);
    relay
        .settings
        .store(Arc::new(tcp("allow = [\"192.0.2.1\"]")));
    stream.write_all(b"<1>after\n").await.unwrap();
    assert!(is_closed(&mut stream).await);
    assert_eq!(relay.metrics.rejected(Rejected::Peer), 1);
    assert!(relay.stop().await.is_empty());

    let mut relay = serve(udp("allow = [\"192.0.2.1\"]"));
    let socket = sender().await;
    socket.send_to(b"<1>before", relay.address).await.unwrap();
    until("the rejection", || {
        relay.metrics.rejected(Rejected::Peer) == 1
    })
    .await;
    relay.settings.store(Arc::new(udp("")));
    socket.send_to(b"<1>after", relay.address).await.unwrap();
    assert_eq!(text(&relay.next().await), "<1>after");
}

#[tokio::test]
async fn a_connection_too_many_is_closed_and_counted_and_one_that_ends_makes_room() {
    let mut relay = serve(tcp("max_connections = 2"));
    let mut first = relay.connect().await;
    let mut second = relay.connect().await;
    for stream in [&mut first, &mut second] {
        stream.write_all(b"<1>a\n").await.unwrap();
        relay.next().await;
    }
    assert!(is_closed(&mut relay.connect().await).await);
    assert_eq!(relay.metrics.rejected(Rejected::Backlog), 1);
    drop(first);
    let end = Instant::now() + PATIENCE;
    loop {
        let mut third = relay.connect().await;
        let written = third.write_all(b"<1>b\n").await;
        let frame = timeout(Duration::from_millis(200), relay.frames.recv_batch(1)).await;
        if written.is_ok() && frame.is_ok() {
            break;
        }
        assert!(Instant::now() < end, "no room was made");
    }
}

#[tokio::test]
async fn a_stopped_consumer_makes_tcp_wait_and_nothing_is_lost() {
    let mut relay = serve(tcp(""));
    let sent = 3 * MAX_WAITING_FRAMES;
    let mut stream = relay.connect().await;
    let writer = tokio::spawn(async move {
        for n in 0..sent {
            // Long enough that the kernel's buffers can't hold what the queue doesn't.
            let line = format!("<1>{n:06} {}\n", "x".repeat(990));
            stream.write_all(line.as_bytes()).await?;
        }
        stream.shutdown().await
    });
    let full = MAX_WAITING_FRAMES as u64;
    until("a full queue", || relay.metrics.frames.get() > full).await;
    assert_eq!(relay.frames.waiting(), MAX_WAITING_FRAMES);
    assert!(!writer.is_finished());
    assert_eq!(relay.metrics.frames.get(), full + 1);
    for n in 0..sent {
        assert!(text(&relay.next().await).starts_with(&format!("<1>{n:06} ")));
    }
    writer.await.unwrap().unwrap();
    assert_eq!(relay.metrics.rejected(Rejected::Backlog), 0);
    assert_eq!(relay.metrics.frames.get(), sent as u64);
}

#[tokio::test]
async fn a_stopped_consumer_costs_datagrams_and_each_is_counted() {
    let relay = serve(udp(""));
    let socket = sender().await;
    let full = MAX_WAITING_FRAMES as u64;
    let mut sent = 0;
    while sent < full + 50 {
        socket.send_to(b"<1>a", relay.address).await.unwrap();
        sent += 1;
        if sent % 100 == 0 {
            until("what was sent", || relay.metrics.frames.get() == sent).await;
        }
    }
    until("the rejections", || {
        relay.metrics.rejected(Rejected::Backlog) == 50
    })
    .await;
    relay
        .frames
        .outbox_away()
        .store(true, std::sync::atomic::Ordering::Relaxed);
    socket.send_to(b"<1>a", relay.address).await.unwrap();
    until("the rejection", || {
        relay.metrics.rejected(Rejected::Outbox) == 1
    })
    .await;
    assert_eq!(relay.stop().await.len(), MAX_WAITING_FRAMES);
}

#[tokio::test]
async fn what_the_kernel_drops_is_counted() {
    let config = udp("");
    let bound = bind(&config).unwrap();
    let to = bound.local_addr().unwrap();
    let socket = sender().await;
    let datagram = vec![b'x'; 60_000];
    let sent = 600_u32;
    for _ in 0..sent {
        socket.send_to(&datagram, to).await.unwrap();
    }
    let (intake, mut frames) = Intake::new();
    let metrics = Metrics::new().0.listener("u");
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(bound.serve(
        intake,
        metrics.clone(),
        Arc::new(ArcSwap::from_pointee(config)),
        shutdown.clone(),
    ));
    let consumer = tokio::spawn(async move { while frames.recv_batch(64).await.is_some() {} });
    until("all datagrams to be accounted for", || {
        metrics.frames.get() + metrics.udp_dropped.get() == u64::from(sent)
    })
    .await;
    assert!(metrics.udp_dropped.get() > 0);
    shutdown.cancel();
    task.await.unwrap().unwrap();
    consumer.await.unwrap();
}

#[tokio::test]
async fn the_gate_turns_noise_away_but_for_a_sample() {
    let mut relay = serve(tcp(""));
    relay
        .intake
        .set_gate(Arc::new(|message: &[u8]| message.ends_with(b"wanted")));
    let mut stream = relay.connect().await;
    let noise = "<1>noise\n".repeat(1000);
    stream
        .write_all(format!("{noise}<1>wanted\n{noise}").as_bytes())
        .await
        .unwrap();
    assert_eq!(relay.texts(2).await, ["<1>noise", "<1>wanted"]);
    until("the rest", || relay.metrics.frames.get() == 2001).await;
    // A second connection of the same peer has no sample of its own.
    relay.send(noise.as_bytes()).await;
    until("the rest", || relay.metrics.frames.get() == 3001).await;
    relay.intake.set_gate(Arc::new(|_: &[u8]| true));
    stream.write_all(b"<1>all\n").await.unwrap();
    assert_eq!(relay.texts(1).await, ["<1>all"]);
    assert!(relay.stop().await.is_empty());

    let mut relay = serve(udp(""));
    relay
        .intake
        .set_gate(Arc::new(|message: &[u8]| message.ends_with(b"wanted")));
    let socket = sender().await;
    for _ in 0..10 {
        socket.send_to(b"<1>noise", relay.address).await.unwrap();
    }
    socket.send_to(b"<1>wanted", relay.address).await.unwrap();
    assert_eq!(relay.texts(2).await, ["<1>noise", "<1>wanted"]);
}

#[tokio::test]
async fn a_sample_enters_no_queue_that_is_half_full() {
    let relay = serve(udp(""));
    relay
        .intake
        .set_gate(Arc::new(|message: &[u8]| message.ends_with(b"wanted")));
    let socket = sender().await;
    let half = MAX_WAITING_FRAMES as u64 / 2;
    let mut sent = 0;
    while sent < half {
        socket.send_to(b"<1>wanted", relay.address).await.unwrap();
        sent += 1;
        if sent % 100 == 0 {
            until("what was sent", || relay.metrics.frames.get() == sent).await;
        }
    }
    socket.send_to(b"<1>noise", relay.address).await.unwrap();
    until("the noise", || relay.metrics.frames.get() == half + 1).await;
    assert!(relay.stop().await.iter().all(|f| text(f) == "<1>wanted"));
}

#[tokio::test]
async fn a_silent_connection_is_closed_and_so_is_one_that_never_completes_a_message() {
    let mut relay = serve(tcp("idle_timeout = \"400ms\""));
    let mut silent = relay.connect().await;
    assert!(is_closed(&mut silent).await);

    let mut slow = relay.connect().await;
    let began = Instant::now();
    let mut written = 0;
    while slow.write_all(b"x").await.is_ok() {
        written += 1;
        assert!(began.elapsed() < PATIENCE, "it is never closed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(written > 1);
    assert!(relay.next().await.bytes.starts_with(b"x"));

    // One that talks stays.
    let mut talking = relay.connect().await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1200) {
        talking.write_all(b"<1>a\n").await.unwrap();
        relay.next().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn keep_alive_finds_dead_peers() {
    let mut relay = serve(tcp(""));
    let mut stream = relay.connect().await;
    stream.write_all(b"<1>a\n").await.unwrap();
    relay.next().await;
    // In the kernel's table an idle socket with keep-alive has timer 02, one without has 00.
    let ours = format!(":{:04X}", relay.address.port());
    let theirs = format!(":{:04X}", stream.local_addr().unwrap().port());
    until("a keep-alive timer", || {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        table.lines().any(|line| {
            let columns: Vec<_> = line.split_ascii_whitespace().collect();
            columns[1].ends_with(&ours)
                && columns[2].ends_with(&theirs)
                && columns[5].starts_with("02:")
        })
    })
    .await;
}

#[tokio::test]
async fn shutdown_takes_what_the_kernel_already_holds() {
    for config in [udp(""), tcp("")] {
        let bound = bind(&config).unwrap();
        let to = bound.local_addr().unwrap();
        let lines: Vec<String> = (0..500).map(|n| format!("<1>{n}\n")).collect();
        let mut streams = Vec::new();
        match config {
            Config::Udp(_) => {
                let socket = sender().await;
                for line in &lines {
                    socket.send_to(line.as_bytes(), to).await.unwrap();
                }
            }
            _ => {
                for lines in lines.chunks(100) {
                    let mut stream = TcpStream::connect(to).await.unwrap();
                    stream.write_all(lines.concat().as_bytes()).await.unwrap();
                    streams.push(stream);
                }
            }
        }
        let (intake, mut frames) = Intake::new();
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        let metrics = Metrics::new().0.listener("test");
        let settings = Arc::new(ArcSwap::from_pointee(config));
        timeout(PATIENCE, bound.serve(intake, metrics, settings, shutdown))
            .await
            .expect("an end in time")
            .unwrap();
        let mut got = HashSet::new();
        while let Some(batch) = frames.recv_batch(64).await {
            got.extend(batch.frames.iter().map(|f| text(f) + "\n"));
        }
        assert_eq!(got, lines.into_iter().collect());
    }
}

#[tokio::test]
async fn shutdown_takes_the_last_bytes_of_an_open_connection() {
    let mut relay = serve(tcp(""));
    let mut stream = relay.connect().await;
    stream.write_all(b"<1>first\n").await.unwrap();
    relay.next().await;
    stream.write_all(b"<1>second\n<1>cut o").await.unwrap();
    let metrics = relay.metrics.clone();
    let left = relay.stop().await;
    assert_eq!(left.iter().map(text).collect::<Vec<_>>(), ["<1>second"]);
    assert_eq!(metrics.rejected(Rejected::Framing), 1);
    assert!(is_closed(&mut stream).await);
}

#[tokio::test]
async fn shutdown_does_not_wait_for_a_stopped_consumer_for_ever() {
    let relay = serve(tcp(""));
    let mut stream = relay.connect().await;
    let full = MAX_WAITING_FRAMES;
    let writer = tokio::spawn(async move {
        let sent = stream
            .write_all("<1>a\n".repeat(full + 100).as_bytes())
            .await;
        (stream, sent)
    });
    until("a full queue", || relay.metrics.frames.get() > full as u64).await;
    let metrics = relay.metrics.clone();
    assert_eq!(relay.stop().await.len(), full);
    assert_eq!(metrics.rejected(Rejected::Backlog), 100);
    drop(writer.await.unwrap());
}

#[tokio::test]
async fn a_listener_whose_consumer_is_gone_says_so() {
    for config in [udp(""), tcp("")] {
        let Running {
            frames,
            task,
            address,
            ..
        } = serve(config.clone());
        drop(frames);
        let socket = sender().await;
        let mut stream = match config {
            Config::Udp(_) => None,
            _ => Some(TcpStream::connect(address).await.unwrap()),
        };
        match &mut stream {
            None => drop(socket.send_to(b"<1>a", address).await.unwrap()),
            Some(stream) => stream.write_all(b"<1>a\n").await.unwrap(),
        }
        let ended = timeout(PATIENCE, task).await.expect("an end").unwrap();
        let said = format!("{:#}", ended.unwrap_err());
        assert!(said.contains("nobody takes the frames"), "{said}");
    }
}

#[tokio::test]
async fn a_message_that_the_connection_broke_off_in_is_not_handed_on() {
    let relay = serve(tcp(""));
    for cut in ["<1>user=\"ali", "50 <1>user=\"ali"] {
        let mut stream = relay.connect().await;
        stream.write_all(cut.as_bytes()).await.unwrap();
        let before = relay.metrics.rejected(Rejected::Framing);
        if cut.starts_with('<') {
            socket2::SockRef::from(&stream)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
        }
        drop(stream);
        until("the rejection", || {
            relay.metrics.rejected(Rejected::Framing) == before + 1
        })
        .await;
    }
    assert!(relay.stop().await.is_empty());
}

#[tokio::test]
async fn other_protocols_are_told_apart_and_closed() {
    let relay = serve(tcp(""));
    for (n, hello) in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"RPY 0 0 . 0 52\r\nContent-Type: application/beep+xml\r\n\r\n",
    ]
    .into_iter()
    .enumerate()
    {
        let mut stream = relay.connect().await;
        stream.write_all(hello).await.unwrap();
        assert!(is_closed(&mut stream).await);
        assert_eq!(relay.metrics.rejected(Rejected::Framing), n as u64 + 1);
    }
    assert!(relay.stop().await.is_empty());
}

#[tokio::test]
async fn a_busy_port_is_an_error_at_once() {
    for config in [udp, tcp] {
        let held = bind(&config("")).unwrap();
        let address = held.local_addr().unwrap();
        let again = bind(&config(&format!("address = \"{address}\"")));
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}

#[tokio::test]
async fn a_simulated_fortigate_is_heard_over_every_transport() {
    for (scheme, config) in [
        ("udp", udp("")),
        ("tcp", tcp("")),
        ("tcp+lf", tcp("")),
        ("tcp", tcp("address = \"[::1]:0\"")),
    ] {
        let mut relay = serve(config);
        let simulation = Simulation {
            to: format!("{scheme}://{}", relay.address).parse().unwrap(),
            identity: Identity::default(),
            format: "kv".parse().unwrap(),
            fortios: "7.4".to_owned(),
            users: Vec::new(),
            count: 12,
            rate: 0.0,
            noise: 5,
            seed: 7,
        };
        let now = Timestamp::now();
        let summary = simulation.clone().run(now).await.unwrap();
        assert_eq!((summary.activations, summary.lines), (12, 72));
        let lines = relay.texts(72).await;
        assert_eq!(
            lines.iter().map(|l| l.len() as u64).sum::<u64>(),
            summary.bytes
        );
        let activations: Vec<_> = lines
            .iter()
            .filter(|l| l.contains("logid=\"0100038412\""))
            .collect();
        let field = |line: &str, name: &str| {
            let (_, rest) = line.split_once(&format!(" {name}=\"")).unwrap();
            rest.split('"').next().unwrap().to_owned()
        };
        let users: Vec<_> = activations.iter().map(|l| field(l, "user")).collect();
        assert_eq!(users[..2], ["alice", "bob"]);
        assert_eq!(users.iter().collect::<HashSet<_>>().len(), 12);
        assert_eq!(field(activations[0], "devid"), "FGTSIM0000000001");
    }
}

#[tokio::test]
async fn a_simulation_keeps_its_pace_and_says_what_is_wrong() {
    let mut relay = serve(udp(""));
    let simulation = Simulation {
        to: format!("udp://{}", relay.address).parse().unwrap(),
        identity: Identity::default(),
        format: "kv".parse().unwrap(),
        fortios: "7.4".to_owned(),
        users: vec!["zoe".to_owned()],
        count: 11,
        rate: 50.0,
        noise: 0,
        seed: 1,
    };
    let summary = simulation.clone().run(Timestamp::now()).await.unwrap();
    assert!(summary.took >= Duration::from_millis(200), "{summary:?}");
    relay.texts(11).await;

    let mut unknown = simulation.clone();
    unknown.fortios = "5.0".to_owned();
    let said = unknown.run(Timestamp::now()).await.unwrap_err().to_string();
    assert!(said.contains("5.0") && said.contains("7.4"), "{said}");

    let nobody = bind(&tcp("")).unwrap().local_addr().unwrap();
    let elsewhere = serve(tcp("allow = [\"192.0.2.1\"]")).address;
    for (to, why) in [
        (format!("udp://{nobody}"), "nobody listens"),
        (format!("tcp://{nobody}"), "connecting"),
        (
            format!("tcp://{elsewhere}"),
            "within the listener's `allow`",
        ),
    ] {
        let mut refused = simulation.clone();
        refused.to = to.parse().unwrap();
        let said = format!("{:#}", refused.run(Timestamp::now()).await.unwrap_err());
        assert!(said.contains(&to) && said.contains(why), "{said}");
    }
}

#[test]
fn defaults_are_those_of_the_contract() {
    let tcp: Tcp = toml::from_str("address = \"0.0.0.0:514\"").unwrap();
    let mut tcp = Config::Tcp(tcp);
    assert_eq!(tcp.name(), "tcp-514");
    for (peer, allowed) in [
        ("127.9.9.9", true),
        ("::1", true),
        ("::ffff:127.0.0.1", true),
        ("10.0.0.1", false),
        ("::2", false),
    ] {
        assert_eq!(tcp.allows(peer.parse().unwrap()), allowed, "{peer}");
    }
    assert!(tcp.devices()[0].matches("FGT60FTK19009408"));
    assert_eq!(
        (
            tcp.max_frame_bytes(),
            tcp.max_connections(),
            tcp.idle_timeout()
        ),
        (65_536, 1024, Duration::from_secs(48 * 3600))
    );
    let mut check = Check::new("/", None, false);
    tcp.build(&mut check);
    assert_eq!(check.findings(), []);
}

#[test]
fn wrong_settings_are_all_named_with_their_place() {
    let text = "name = \"\"\naddress = \"[::]:514\"\nallow = []\ndevices = []\nmax_frame_bytes = 10\nmax_connections = 0\nidle_timeout = \"10ms\"\n";
    let mut config = Config::Tcp(toml::from_str(text).unwrap());
    let mut check = Check::new("/", None, false);
    config.build(&mut check);
    let places: Vec<_> = check
        .findings()
        .into_iter()
        .map(|f| text[f.span.unwrap()].to_owned())
        .collect();
    assert_eq!(places, ["\"\"", "[]", "[]", "10", "0", "\"10ms\""]);

    let text = "address = \"[::]:514\"\nallow = [\"0.0.0.0/0\"]\nmax_frame_bytes = 2048\n";
    let mut config = Config::Tcp(toml::from_str(text).unwrap());
    let mut check = Check::new("/", None, false);
    config.build(&mut check);
    assert_eq!(check.findings().len(), 2);
    assert!(!check.has_problems());

    for (wrong, said) in [
        ("address = \"localhost:514\"", "is no address to listen on"),
        ("address = \"[::]:1\"\nallow = [\"fgt\"]", "is no network"),
        ("address = \"[::]:1\"\nmax_connections = 5", "unknown field"),
        ("allow = []", "missing field `address`"),
    ] {
        let error = toml::from_str::<Udp>(wrong).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}
