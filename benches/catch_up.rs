//! What a thousand devices cost whom the real program asks over TLS: catching up, which here is much more often than it would
//! be, and the rounds that look for tokens which wait for their phone.
//!
//! `cargo bench --bench catch_up` takes about two minutes. The devices are one server with a thousand paths; each has its own
//! connections and handshakes, for each is another client to the relay. The figure is the program's processor time per
//! reading, and what share of one core that is with a reading of each device every 5 minutes. A round comes every 15 minutes
//! or after a reload, so what is measured is a reload with its round: a bit more than a round alone.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use jiff::Timestamp;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

#[path = "../tests/it/support/authority.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod authority;

use authority::Authority;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const DEVICES: usize = 1_000;
/// Token events in each device's log that every reading finds again.
const RECORDS: usize = 5;
/// How often each device is read here.
const EVERY: Duration = Duration::from_secs(20);
/// How often it is by default.
const USUALLY: Duration = Duration::from_secs(300);
/// The start reads all devices at once; that isn't measured.
const WARM_UP: Duration = Duration::from_secs(30);
const MEASURED: Duration = Duration::from_secs(60);
/// One log is asked for on disk and in memory.
const REQUESTS_PER_READING: u64 = 2;
const LIMIT_PERCENT: f64 = 5.0;
/// Tokens of each device that wait for their phone.
const WAITING: usize = 3;
/// How often a round looks for them.
const ROUND: Duration = Duration::from_secs(900);
/// In a round a device is asked for tokens, users and administrators.
const REQUESTS_PER_LOOK: u64 = 3;
/// A round that isn't over by then has failed.
const ROUND_LIMIT: Duration = Duration::from_secs(300);

#[tokio::main]
async fn main() -> Result<()> {
    // `cargo test --all-targets` starts benches as well, without this word.
    if !std::env::args().any(|arg| arg == "--bench") {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let authority = Authority::new();
    let ca = authority.write(dir.path());
    let requests = Arc::new(AtomicU64::new(0));
    let handshakes = Arc::new(AtomicU64::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let tls = authority.sign(&["127.0.0.1"]).acceptor();
    tokio::spawn(serve(
        listener,
        tls,
        Answers::new().into(),
        Arc::clone(&requests),
        Arc::clone(&handshakes),
    ));

    let asked = || requests.load(Ordering::Relaxed);
    let key = Key {
        dir: dir.path(),
        ca: &ca,
        port,
    };
    let relay = key.start("caught-up", EVERY)?;
    sleep(WARM_UP).await;
    let look = || -> Result<_> { Ok((relay.cpu()?, asked(), handshakes.load(Ordering::Relaxed))) };
    let before = look()?;
    sleep(MEASURED).await;
    let after = look()?;
    let cpu = (after.0 - before.0).as_secs_f64();
    let readings = (after.1 - before.1) / REQUESTS_PER_READING;
    if readings == 0 {
        return Err("no device was read".into());
    }
    let each = cpu / readings as f64;
    let share = each * DEVICES as f64 / USUALLY.as_secs_f64() * 100.0;
    println!("{DEVICES} devices, {RECORDS} events found again by each reading");
    println!(
        "readings in {} s: {readings}, with {} TLS handshakes",
        MEASURED.as_secs(),
        after.2 - before.2
    );
    println!(
        "processor time of the relay per reading: {:.2} ms",
        each * 1000.0
    );
    println!("with catch_up = \"5m\": {share:.2} % of one core (bound: < {LIMIT_PERCENT} %)");
    println!("peak resident memory: {:.1} MiB", relay.peak_mebibytes()?);
    drop(relay);

    let relay = key.start("watched", Duration::ZERO)?;
    let round = REQUESTS_PER_LOOK * DEVICES as u64;
    let start = asked();
    until(|| asked() >= start + round).await?;
    let (before, met) = (relay.cpu()?, handshakes.load(Ordering::Relaxed));
    relay.hang_up()?;
    until(|| asked() >= start + 2 * round).await?;
    let cpu = (relay.cpu()? - before).as_secs_f64();
    println!("{DEVICES} devices, {WAITING} tokens of each wait for their phone");
    println!(
        "processor time of the relay per round and the reload before it: {cpu:.2} s, with {} TLS handshakes",
        handshakes.load(Ordering::Relaxed) - met
    );
    let share = cpu / ROUND.as_secs_f64() * 100.0;
    println!("with a round every 15 min: {share:.2} % of one core");
    Ok(())
}

async fn until(is_over: impl Fn() -> bool) -> Result<()> {
    let end = Instant::now() + ROUND_LIMIT;
    while !is_over() {
        if Instant::now() > end {
            return Err("the round did not end".into());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// What a relay needs to know of the devices.
struct Key<'a> {
    dir: &'a Path,
    ca: &'a Path,
    port: u16,
}

impl Key<'_> {
    /// A relay of this name that reads each device's log so often.
    fn start(&self, name: &str, every: Duration) -> Result<Relay> {
        let config = self.config(name, every)?;
        let path = self.dir.join(format!("{name}.toml"));
        fs::write(&path, config)?;
        Ok(Relay(
            Command::new(env!("CARGO_BIN_EXE_ftm-relay"))
                .args(["run", "--config"])
                .arg(&path)
                .env("KEY", "a-key-of-the-bench")
                .stderr(Stdio::null())
                .spawn()?,
        ))
    }

    fn config(&self, name: &str, every: Duration) -> Result<String> {
        let mut config = format!(
            "state_dir = \"{name}\"\n[[listen]]\ntransport = \"udp\"\naddress = \"127.0.0.1:0\"\n[recipients]\ndomains = [\"example.com\"]\n\
         [channel.trial]\ntype = \"file\"\npath = \"mail\"\n[[route]]\nto = [\"trial\"]\n",
        );
        let (ca, port) = (self.ca, self.port);
        for n in 0..DEVICES {
            write!(
                config,
                "[[device]]\nid = \"fgt-{n}\"\napi = \"https://127.0.0.1:{port}/fgt-{n}\"\ntoken = {{ env = \"KEY\" }}\n\
             ca_file = \"{}\"\ncatch_up = \"{}s\"\n",
                ca.display(),
                every.as_secs()
            )?;
        }
        Ok(config)
    }
}

/// What each device says.
struct Answers {
    log: String,
    tokens: String,
    users: String,
    administrators: String,
}

impl Answers {
    fn new() -> Self {
        let objects = |object: &dyn Fn(usize) -> String| {
            let all: Vec<String> = (0..WAITING).map(object).collect();
            whole(&all.join(","), "")
        };
        let expires = Timestamp::now().as_second() + 48 * 3600;
        Self {
            log: log(),
            tokens: objects(&|n| {
                format!(
                    "{{\"serial-number\":\"FTKMOB6549A9114{n}\",\"status\":\"active\",\"activation-code\":\"ENC made-up\",\
                     \"activation-expire\":{expires},\"reg-id\":\"\"}}"
                )
            }),
            users: objects(&|n| {
                format!(
                    "{{\"name\":\"user{n}\",\"two-factor\":\"fortitoken\",\"fortitoken\":\"FTKMOB6549A9114{n}\",\
                     \"email-to\":\"user{n}@example.com\",\"sms-phone\":\"\"}}"
                )
            }),
            administrators: whole("", ""),
        }
    }

    fn to(&self, request: &[u8]) -> &str {
        let head = String::from_utf8_lossy(request);
        let path = head.split(['?', '\r']).next().unwrap_or_default();
        match path.rsplit('/').next() {
            Some("fortitoken") => &self.tokens,
            Some("local") => &self.users,
            Some("admin") => &self.administrators,
            _ => &self.log,
        }
    }
}

/// The same events each time, with all the fields of a real record.
fn log() -> String {
    // Behind the start of the relay, which reads no further back than that the first time.
    let second = Timestamp::now().as_second() + 60;
    let records: Vec<String> = (0..RECORDS)
        .map(|n| {
            format!(
                "{{\"date\":\"2026-11-24\",\"time\":\"10:22:31\",\"eventtime\":{}123456789,\"tz\":\"+0100\",\"logid\":\"0100032155\",\
                 \"type\":\"event\",\"subtype\":\"system\",\"level\":\"notice\",\"vd\":\"root\",\"logdesc\":\"FortiToken activation requested\",\
                 \"user\":\"user{n}\",\"ui\":\"GUI(192.0.2.7)\",\"action\":\"activate\",\"serialno\":\"FTKMOB6549A9114{n}\",\"msg\":\"Made up\",\
                 \"_metadata\":{{\"#\":{n},\"timestamp\":{second}000,\"roll\":1}}}}",
                second - i64::try_from(n).unwrap_or(0)
            )
        })
        .collect();
    let more = format!("\"session_id\":1,\"completed\":100,\"total_lines\":{RECORDS},");
    whole(&records.join(","), &more)
}

fn whole(results: &str, more: &str) -> String {
    let body = format!(
        "{{\"http_method\":\"GET\",\"results\":[{results}],\"vdom\":\"root\",{more}\
         \"status\":\"success\",\"serial\":\"FGT60FTK20000001\",\"version\":\"v7.6.3\",\"build\":3510}}"
    );
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    answers: Arc<Answers>,
    requests: Arc<AtomicU64>,
    handshakes: Arc<AtomicU64>,
) {
    while let Ok((socket, _)) = listener.accept().await {
        let (tls, answers) = (tls.clone(), Arc::clone(&answers));
        let (requests, handshakes) = (Arc::clone(&requests), Arc::clone(&handshakes));
        tokio::spawn(async move {
            let Ok(mut socket) = tls.accept(socket).await else {
                return;
            };
            handshakes.fetch_add(1, Ordering::Relaxed);
            let mut request = Vec::new();
            while socket.read_buf(&mut request).await.is_ok_and(|n| n > 0) {
                if request.ends_with(b"\r\n\r\n") {
                    let answer = answers.to(&request);
                    requests.fetch_add(1, Ordering::Relaxed);
                    if socket.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                    request.clear();
                }
            }
        });
    }
}

/// The program; it ends with the measurement.
struct Relay(Child);

impl Relay {
    /// It reads its configuration again, and every device is asked at once.
    fn hang_up(&self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.0);
        Ok(rustix::process::kill_process(
            pid,
            rustix::process::Signal::HUP,
        )?)
    }

    /// The time its threads have run.
    fn cpu(&self) -> Result<Duration> {
        let mut all = Duration::ZERO;
        for thread in fs::read_dir(format!("/proc/{}/task", self.0.id()))? {
            let times = fs::read_to_string(thread?.path().join("schedstat"))?;
            let run = times.split(' ').next().ok_or("the kernel does not say")?;
            all += Duration::from_nanos(run.parse()?);
        }
        Ok(all)
    }

    fn peak_mebibytes(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .ok_or("no VmHWM")?;
        Ok(line.trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
