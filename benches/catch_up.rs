//! What catching up costs: a thousand devices whose event logs the real program reads over TLS, much more often than it would.
//!
//! `cargo bench --bench catch_up` takes about a minute. The devices are one server with a thousand paths; each has its own
//! connections and handshakes, for each is another client to the relay. The figure is the program's processor time per
//! reading, and what share of one core that is with a reading of each device every 5 minutes.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

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
        answer().into(),
        Arc::clone(&requests),
        Arc::clone(&handshakes),
    ));

    let mut config = String::from(
        "state_dir = \"state\"\n[[listen]]\ntransport = \"udp\"\naddress = \"127.0.0.1:0\"\n[recipients]\ndomains = [\"example.com\"]\n\
         [channel.trial]\ntype = \"file\"\npath = \"mail\"\n[[route]]\nto = [\"trial\"]\n",
    );
    for n in 0..DEVICES {
        write!(
            config,
            "[[device]]\nid = \"fgt-{n}\"\napi = \"https://127.0.0.1:{port}/fgt-{n}\"\ntoken = {{ env = \"KEY\" }}\n\
             ca_file = \"{}\"\ncatch_up = \"{}s\"\n",
            ca.display(),
            EVERY.as_secs()
        )?;
    }
    let path = dir.path().join("ftm-relay.toml");
    fs::write(&path, config)?;
    let relay = Relay(
        Command::new(env!("CARGO_BIN_EXE_ftm-relay"))
            .args(["run", "--config"])
            .arg(&path)
            .env("KEY", "a-key-of-the-bench")
            .stderr(Stdio::null())
            .spawn()?,
    );
    sleep(WARM_UP).await;
    let look = || -> Result<_> {
        Ok((
            relay.cpu()?,
            requests.load(Ordering::Relaxed),
            handshakes.load(Ordering::Relaxed),
        ))
    };
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
    Ok(())
}

/// What each device's log says: the same events each time, with all the fields of a real record.
fn answer() -> String {
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
    let body = format!(
        "{{\"http_method\":\"GET\",\"results\":[{}],\"vdom\":\"root\",\"session_id\":1,\"completed\":100,\"total_lines\":{RECORDS},\
         \"status\":\"success\",\"serial\":\"FGT60FTK20000001\",\"version\":\"v7.6.3\",\"build\":3510}}",
        records.join(",")
    );
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    answer: Arc<str>,
    requests: Arc<AtomicU64>,
    handshakes: Arc<AtomicU64>,
) {
    while let Ok((socket, _)) = listener.accept().await {
        let (tls, answer) = (tls.clone(), Arc::clone(&answer));
        let (requests, handshakes) = (Arc::clone(&requests), Arc::clone(&handshakes));
        tokio::spawn(async move {
            let Ok(mut socket) = tls.accept(socket).await else {
                return;
            };
            handshakes.fetch_add(1, Ordering::Relaxed);
            let mut request = Vec::new();
            while socket.read_buf(&mut request).await.is_ok_and(|n| n > 0) {
                if request.ends_with(b"\r\n\r\n") {
                    request.clear();
                    requests.fetch_add(1, Ordering::Relaxed);
                    if socket.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            }
        });
    }
}

/// The program; it ends with the measurement.
struct Relay(Child);

impl Relay {
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
