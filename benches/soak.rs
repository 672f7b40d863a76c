//! Ten bad minutes, and what is left of them: next hops that fail, reloads, a log that is cut, a clock that jumps, a full disk.
//!
//! `cargo bench --bench soak` takes ten minutes and prints a table; `-- 60` takes one. The clock jumps where Debian's package
//! `faketime` is installed, the disk fills where this may mount one (as root); what is left out is said. The codes and people are
//! made up.

use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use jiff::Timestamp;
use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process;
use tempfile::TempDir;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How long it goes badly, in seconds, unless the command line says otherwise.
const SECONDS: u64 = 600;
/// How long everything may take to arrive once all is well again and an operator has said `queue retry` to what waits.
const RECOVERY: Duration = Duration::from_secs(300);
/// Activations a second, on average.
const RATE: u64 = 10;
const TICK: Duration = Duration::from_millis(100);
const SAMPLE_EVERY: Duration = Duration::from_secs(5);
const RELOAD_EVERY: Duration = Duration::from_secs(17);
const CUT_LOG_EVERY: Duration = Duration::from_secs(29);
const JUMP_EVERY: Duration = Duration::from_secs(41);
const FILL_EVERY: Duration = Duration::from_secs(67);
const FULL_FOR: Duration = Duration::from_secs(4);
const STATE_MIB: usize = 64;
/// Jumps of the clock in seconds, relative to the true one; the last one is none.
const JUMPS: [i64; 5] = [3600, -600, 86_400, 30, 0];
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

fn main() -> Result<()> {
    // `cargo test --all-targets` starts benches as well, without this word.
    if !std::env::args().any(|arg| arg == "--bench") {
        return Ok(());
    }
    let seconds = std::env::args().find_map(|arg| arg.parse().ok());
    let bad_time = Duration::from_secs(seconds.unwrap_or(SECONDS));
    let sink = Sink::open()?;
    let mut relay = Relay::start(&sink)?;
    let mut fortigate = TcpStream::connect(relay.syslog)?;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut sent, mut samples, mut counts) = (HashMap::new(), Vec::new(), Counts::default());
    let mut timers = Timers::default();
    let begin = Instant::now();
    while begin.elapsed() < bad_time {
        thread::sleep(TICK);
        for _ in 0..random.below(2 * RATE / 10 + 1) {
            let event = Event::new(sent.len());
            write!(fortigate, "{} {}", event.line.len(), event.line)?;
            sent.insert(event.user, event.code);
        }
        let now = begin.elapsed();
        if timers.due("fault", Duration::from_secs(3), now) {
            sink.fault.store(random.below(8), Relaxed);
        }
        if timers.due("reload", RELOAD_EVERY, now) {
            counts.reloads += 1;
            relay.configure(counts.reloads)?;
            relay.signal(Signal::HUP)?;
        }
        if timers.due("log", CUT_LOG_EVERY, now) {
            counts.log_bytes += fs::metadata(&relay.log)?.len();
            File::create(&relay.log)?;
        }
        if timers.due("jump", JUMP_EVERY, now) && relay.jumps {
            relay.set_clock(JUMPS[counts.jumps % JUMPS.len()])?;
            counts.jumps += 1;
        }
        if timers.due("fill", FILL_EVERY, now) && relay.disk.is_some() {
            relay.fill_disk()?;
            counts.fills += 1;
        }
        if now > FILL_EVERY && timers.due("free", FULL_FOR, now) {
            relay.free_disk()?;
        }
        if timers.due("sample", SAMPLE_EVERY, now) {
            samples.push(relay.sample()?);
        }
        relay.must_run()?;
    }
    // All is well again.
    sink.fault.store(0, Relaxed);
    relay.free_disk()?;
    if relay.jumps {
        relay.set_clock(0)?;
    }
    let recovery = Instant::now();
    let retried = relay.retry_all()?;
    let mut lost = sent.len();
    while lost > 0 && recovery.elapsed() < RECOVERY {
        thread::sleep(Duration::from_secs(1));
        let taken = sink.taken.lock().map_err(|_| "the sink panicked")?;
        lost = sent
            .keys()
            .filter(|user| !taken.contains_key(*user))
            .count();
    }
    let recovery = recovery.elapsed();
    samples.push(relay.sample()?);
    let taken = sink.taken.lock().map_err(|_| "the sink panicked")?;
    let wrong = taken
        .iter()
        .filter(|(user, mails)| mails.iter().any(|code| sent.get(*user) != Some(code)))
        .count();
    let twice: usize = taken.values().map(|mails| mails.len() - 1).sum();
    let unknown = sink.cut_after_dot.load(Relaxed);
    relay.stop()?;
    report(
        &samples,
        &[
            (
                "bad minutes",
                format!("{:.1}", bad_time.as_secs_f64() / 60.0),
            ),
            ("activations sent", sent.len().to_string()),
            ("… not delivered in the end", lost.to_string()),
            ("… delivered to somebody else", wrong.to_string()),
            (
                "… delivered again",
                format!("{twice} (the connection was cut after the final dot {unknown} times)"),
            ),
            (
                "all well again to all delivered",
                format!("{:.0} s", recovery.as_secs_f64()),
            ),
            (
                "… after `queue retry` of deliveries that waited",
                retried.to_string(),
            ),
            ("reloads", counts.reloads.to_string()),
            (
                "cuts of the log",
                format!("{} KiB written", counts.log_bytes / 1024),
            ),
            (
                "jumps of the clock",
                if relay.jumps {
                    counts.jumps.to_string()
                } else {
                    "NOT RUN (no faketime)".to_owned()
                },
            ),
            (
                "full disks",
                if relay.disk.is_some() {
                    counts.fills.to_string()
                } else {
                    "NOT RUN (mount refused)".to_owned()
                },
            ),
        ],
    );
    if lost > 0 || wrong > 0 {
        return Err("codes were lost or went astray".into());
    }
    Ok(())
}

#[derive(Default)]
struct Counts {
    reloads: usize,
    jumps: usize,
    fills: usize,
    log_bytes: u64,
}

/// When each kind of thing happened last.
#[derive(Default)]
struct Timers(HashMap<&'static str, Duration>);

impl Timers {
    fn due(&mut self, what: &'static str, every: Duration, now: Duration) -> bool {
        let last = self.0.entry(what).or_default();
        let due = now.saturating_sub(*last) >= every;
        if due {
            *last = now;
        }
        due
    }
}

/// The same faults in the same order in every run (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// One look at the process.
struct Sample {
    resident_kib: u64,
    descriptors: usize,
    threads: u64,
}

fn report(samples: &[Sample], rows: &[(&str, String)]) {
    println!("\n| figure | measured |\n| --- | --- |");
    for (what, figure) in rows {
        println!("| {what} | {figure} |");
    }
    // The first fifth is the start.
    let (early, late) = (samples.len() / 5, samples.len() * 4 / 5);
    let quiet = |range: &[Sample], of: fn(&Sample) -> u64| {
        range.iter().map(of).sum::<u64>() as f64 / range.len().max(1) as f64
    };
    let figures: [(&str, fn(&Sample) -> u64, f64); 3] = [
        ("resident memory, MiB", |s| s.resident_kib, 1024.0),
        ("file descriptors", |s| s.descriptors as u64, 1.0),
        ("threads", |s| s.threads, 1.0),
    ];
    for (what, of, unit) in figures {
        let (second, last) = (&samples[early..2 * early.max(1)], &samples[late..]);
        let peak = samples.iter().map(of).max().unwrap_or_default();
        println!(
            "| {what}: second fifth; last fifth; peak | {:.1}; {:.1}; {:.1} |",
            quiet(second, of) / unit,
            quiet(last, of) / unit,
            peak as f64 / unit
        );
    }
}

// === The FortiGate ===

struct Event {
    user: String,
    code: String,
    line: String,
}

impl Event {
    fn new(n: usize) -> Self {
        const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let user = format!("user{n:05}");
        let mut rest = (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut code = String::from("EEI4");
        for _ in 0..12 {
            code.push(char::from(LETTERS[(rest & 31) as usize]));
            rest >>= 5;
        }
        let line = format!(
            "<189>date=2026-11-23 time=10:22:31 devname=\"BRANCH-12-FGT\" devid=\"FGT60FTK20000001\" eventtime={} tz=\"+0000\" \
             logid=\"0100038412\" type=\"event\" subtype=\"system\" level=\"notice\" vd=\"root\" logdesc=\"Token activation code sent\" \
             user=\"{user}\" action=\"send-activation-code\" msg=\"Activation code {code} was sent to {user}\"",
            Timestamp::now().as_nanosecond(),
        );
        Self { user, code, line }
    }
}

// === The program ===

struct Relay {
    dir: TempDir,
    child: Child,
    syslog: SocketAddr,
    smtp: SocketAddr,
    log: PathBuf,
    /// A small disk for its state.
    disk: Option<PathBuf>,
    jumps: bool,
}

impl Relay {
    fn start(sink: &Sink) -> Result<Self> {
        let dir = TempDir::new_in(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
        let state = dir.path().join("state");
        fs::create_dir(&state)?;
        let mounted = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={STATE_MIB}m,mode=0700"),
                "soak",
            ])
            .arg(&state)
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        let jumps = Path::new(FAKETIME).exists();
        let log = dir.path().join("log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_ftm-relay"));
        command
            .args(["run", "--config", "ftm-relay.toml"])
            .current_dir(dir.path())
            .env_remove("STATE_DIRECTORY")
            .env_remove("RUNTIME_DIRECTORY")
            .stdin(Stdio::null())
            .stderr(OpenOptions::new().create(true).append(true).open(&log)?);
        if jumps {
            fs::write(dir.path().join("clock"), "+0")?;
            command
                .env("LD_PRELOAD", FAKETIME)
                .env("FAKETIME_TIMESTAMP_FILE", dir.path().join("clock"))
                .env("FAKETIME_CACHE_DURATION", "1")
                // Timers run on; it is the clock on the wall that jumps.
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
                .env("DONT_FAKE_MONOTONIC", "1");
        }
        let syslog = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let smtp = sink.address;
        write_configuration(dir.path(), syslog, smtp, 0)?;
        let child = command.spawn()?;
        let relay = Self {
            disk: mounted.then_some(state),
            dir,
            child,
            syslog,
            smtp,
            log,
            jumps,
        };
        let begin = Instant::now();
        while TcpStream::connect(syslog).is_err() {
            if begin.elapsed() > Duration::from_secs(20) {
                return Err(
                    format!("it does not start: {}", fs::read_to_string(&relay.log)?).into(),
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(relay)
    }

    fn configure(&self, n: usize) -> Result<()> {
        write_configuration(self.dir.path(), self.syslog, self.smtp, n)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    fn set_clock(&self, ahead: i64) -> Result<()> {
        // Renamed into its place, so that nobody reads half of it.
        let new = self.dir.path().join("clock.new");
        fs::write(&new, format!("{ahead:+}"))?;
        Ok(fs::rename(new, self.dir.path().join("clock"))?)
    }

    fn fill_disk(&self) -> Result<()> {
        let Some(disk) = &self.disk else {
            return Ok(());
        };
        let mut ballast = File::create(disk.join("ballast"))?;
        let block = vec![0x55; 1 << 16];
        while ballast.write_all(&block).is_ok() {}
        // What is left below a block.
        while ballast.write_all(&[0x55]).is_ok() {}
        Ok(())
    }

    fn free_disk(&self) -> Result<()> {
        let Some(disk) = &self.disk else {
            return Ok(());
        };
        match fs::remove_file(disk.join("ballast")) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        }
    }

    fn must_run(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                let log = fs::read_to_string(&self.log)?;
                Err(format!("it ended with {status}: {log}").into())
            }
        }
    }

    fn sample(&self) -> Result<Sample> {
        let proc = format!("/proc/{}", self.child.id());
        let status = fs::read_to_string(format!("{proc}/status"))?;
        let of = |what: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(what));
            let number = line.and_then(|line| line.split_whitespace().next());
            Ok(number.ok_or("the kernel does not say")?.parse()?)
        };
        Ok(Sample {
            resident_kib: of("VmRSS:")?,
            descriptors: fs::read_dir(format!("{proc}/fd"))?.count(),
            threads: of("Threads:")?,
        })
    }

    /// The waits between tries grow up to 15 min; an operator shortens them.
    fn retry_all(&self) -> Result<usize> {
        let queue = |args: &[&str]| {
            Command::new(env!("CARGO_BIN_EXE_ftm-relay"))
                .arg("queue")
                .args(args)
                .args(["--config", "ftm-relay.toml"])
                .current_dir(self.dir.path())
                .env_remove("STATE_DIRECTORY")
                .env_remove("RUNTIME_DIRECTORY")
                .output()
        };
        // The last reload may have been one that is refused.
        self.configure(0)?;
        let listed = queue(&["list", "--json"])?.stdout;
        let rows: Vec<serde_json::Value> = serde_json::from_slice(&listed)?;
        let waiting = rows.iter().filter(|row| row["state"] == "pending");
        let mut retried = 0;
        for id in waiting.filter_map(|row| row["id"].as_str()) {
            retried += usize::from(queue(&["retry", id])?.status.success());
        }
        Ok(retried)
    }

    fn stop(&mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.child.wait()?;
        match status.success() {
            true => Ok(()),
            false => {
                Err(format!("it ended with {status}: {}", fs::read_to_string(&self.log)?).into())
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if let Some(disk) = &self.disk {
            drop(Command::new("umount").arg(disk).status());
        }
    }
}

/// Another one for each reload, though much the same; every fifth is wrong and must be refused.
fn write_configuration(dir: &Path, syslog: SocketAddr, smtp: SocketAddr, n: usize) -> Result<()> {
    let wrong = if n % 5 == 4 { "nonsense = 1\n" } else { "" };
    let config = format!(
        "{wrong}state_dir = \"state\"\n\
         [[listen]]\ntransport = \"tcp\"\naddress = \"{syslog}\"\nmax_connections = {}\n\
         [recipients]\ndomains = [\"example.com\"]\n\
         [[directory]]\ntype = \"pattern\"\nemail = \"{{user}}@example.com\"\n\
         [channel.mail]\ntype = \"smtp\"\nhost = \"127.0.0.1\"\nport = {}\ntls = \"none\"\nfrom = \"servicedesk@example.com\"\ntimeout = \"2s\"\nconcurrency = {}\n\
         [channel.desk]\ntype = \"file\"\npath = \"desk\"\nto = \"servicedesk@example.com\"\n\
         [[route]]\nto = [\"mail\"]\nescalate = [\"desk\"]\n",
        100 + n,
        smtp.port(),
        2 + n % 4,
    );
    Ok(fs::write(dir.join("ftm-relay.toml"), config)?)
}

// === The next hop ===

/// Takes mails, or does what `fault` says.
struct Sink {
    address: SocketAddr,
    fault: Arc<AtomicU64>,
    /// The codes that each person got.
    taken: Arc<Mutex<HashMap<String, Vec<String>>>>,
    cut_after_dot: Arc<AtomicU64>,
}

impl Sink {
    fn open() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let sink = Self {
            address: listener.local_addr()?,
            fault: Arc::default(),
            taken: Arc::default(),
            cut_after_dot: Arc::default(),
        };
        let (fault, taken, cut) = (
            Arc::clone(&sink.fault),
            Arc::clone(&sink.taken),
            Arc::clone(&sink.cut_after_dot),
        );
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (fault, taken, cut) =
                    (Arc::clone(&fault), Arc::clone(&taken), Arc::clone(&cut));
                thread::spawn(move || drop(converse(&stream, &fault, &taken, &cut)));
            }
        });
        Ok(sink)
    }
}

/// One session. Faults: 1 refuses connections with 421, 2 says nothing, 3 greylists, 4 closes at DATA, 5 refuses the content for
/// now, 6 takes it and closes without a word; 0 and 7 are good days.
fn converse(
    stream: &TcpStream,
    fault: &AtomicU64,
    taken: &Mutex<HashMap<String, Vec<String>>>,
    cut_after_dot: &AtomicU64,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut lines = BufReader::new(stream);
    let say = |text: &str| (&mut &*stream).write_all(text.as_bytes());
    match fault.load(Relaxed) {
        1 => return say("421 4.3.2 not now\r\n"),
        2 => {
            let mut rest = [0; 64];
            while let Ok(1..) = (&mut &*stream).read(&mut rest) {}
            return Ok(());
        }
        _ => say("220 localhost ESMTP\r\n")?,
    }
    let (mut line, mut user) = (String::new(), String::new());
    loop {
        line.clear();
        if lines.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let verb = line.get(..4).unwrap_or_default().to_ascii_uppercase();
        match (verb.as_str(), fault.load(Relaxed)) {
            ("EHLO", _) => say("250-localhost\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES\r\n")?,
            ("RCPT", 3) => say("450 4.7.1 come again\r\n")?,
            ("RCPT", _) => {
                let address = line.split(['<', '@']).nth(1).unwrap_or_default();
                address.clone_into(&mut user);
                say("250 2.1.5 ok\r\n")?;
            }
            ("DATA", 4) => return Ok(()),
            ("DATA", at_data) => {
                say("354 go ahead\r\n")?;
                let mut text = String::new();
                while !text.ends_with("\r\n.\r\n") {
                    if lines.read_line(&mut text)? == 0 {
                        return Ok(());
                    }
                }
                if at_data == 5 {
                    say("451 4.3.0 not now\r\n")?;
                    continue;
                }
                let code = text
                    .split(|c: char| !c.is_ascii_alphanumeric())
                    .find(|word| word.len() == 16 && word.starts_with("EEI4"));
                if let Ok(mut taken) = taken.lock() {
                    taken
                        .entry(std::mem::take(&mut user))
                        .or_default()
                        .push(code.unwrap_or_default().to_owned());
                }
                if at_data == 6 {
                    cut_after_dot.fetch_add(1, Relaxed);
                    return Ok(());
                }
                say("250 2.0.0 taken\r\n")?;
            }
            ("QUIT", _) => return say("221 2.0.0 bye\r\n"),
            _ => say("250 2.0.0 ok\r\n")?,
        }
    }
}
