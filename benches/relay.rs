//! The numbers of the whole: the real program on loopback, with a disk, a FortiGate that is in a hurry and a relay that takes everything.
//!
//! `cargo bench --bench relay` takes about three minutes and prints a table; `-- burst` (or `disk`, `starts`, `idle`, `channels`,
//! `latency`) measures that alone. The codes and people are made up.

use std::collections::HashMap;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use jiff::Timestamp;
use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process;
use tempfile::TempDir;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const STARTS: usize = 9;
const IDLE: Duration = Duration::from_secs(20);
const WARM_UP: usize = 30;
const PACED: usize = 400;
/// The shortest pause between two paced activations; it grows step by step, so as not to march with any timer.
const PACE: Duration = Duration::from_millis(40);
const BURST: usize = 10_000;
const BURST_ROUNDS: usize = 3;
const SYNCS: usize = 200;
/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_secs(180);

const MIB: f64 = 1024.0;

/// One channel of each other type, as one would have them, but for the addresses. Nobody's code goes there.
const OTHER_CHANNELS: &str = r#"
[channel.office]
type = "smtp"
host = "127.0.0.1"
auth = "xoauth2"
username = "servicedesk@example.com"
tenant = "example.onmicrosoft.com"
client_id = "11111111-2222-3333-4444-555555555555"
client_secret = "none"
from = "servicedesk@example.com"
[channel.graph]
type = "graph"
tenant = "example.onmicrosoft.com"
client_id = "11111111-2222-3333-4444-555555555555"
client_secret = "none"
user = "servicedesk@example.com"
api = "https://127.0.0.1:9"
login = "https://127.0.0.1:9"
[channel.hook]
type = "webhook"
url = "https://127.0.0.1:9/"
secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
[channel.dm]
type = "slack"
token = "xoxb-none"
api = "https://127.0.0.1:9"
[channel.place]
type = "slack"
url = "https://127.0.0.1:9/"
[channel.team]
type = "teams"
url = "https://127.0.0.1:9/"
[channel.text]
type = "sms"
account = "AC00000000000000000000000000000000"
token = "none"
from = "+14155550100"
api = "https://127.0.0.1:9"
"#;

type Measure = fn(&mut Table) -> Result<()>;

const MEASUREMENTS: [(&str, Measure); 6] = [
    ("disk", disk),
    ("starts", starts),
    ("idle", idle),
    ("channels", channels),
    ("latency", latency),
    ("burst", burst),
];

fn main() -> Result<()> {
    // `cargo test --all-targets` starts benches as well, without this word.
    if !std::env::args().any(|arg| arg == "--bench") {
        return Ok(());
    }
    let chosen: Vec<_> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    let mut table = Table::default();
    for (name, measure) in MEASUREMENTS {
        if chosen.is_empty() || chosen.iter().any(|arg| arg == name) {
            measure(&mut table)?;
        }
    }
    print!("{table}");
    Ok(())
}

// === What is measured ===

/// What one durable write costs here, whoever does it: the rest is to be read against this.
fn disk(table: &mut Table) -> Result<()> {
    let dir = directory()?;
    let mut file = File::create(dir.path().join("synced"))?;
    let mut took = Vec::new();
    for _ in 0..SYNCS {
        let begin = Instant::now();
        file.write_all(&[0x55; 4096])?;
        file.sync_data()?;
        took.push(begin.elapsed());
    }
    took.sort();
    table.row(
        "a 4 KiB write and fdatasync, p50",
        millis(percentile(&took, 50)),
        "",
    );
    table.row(
        "a 4 KiB write and fdatasync, p99",
        millis(percentile(&took, 99)),
        "",
    );
    Ok(())
}

fn starts(table: &mut Table) -> Result<()> {
    let (sink, _mails) = Sink::open()?;
    let mut fresh = Vec::new();
    let mut existing = Vec::new();
    for _ in 0..STARTS {
        let mut relay = Relay::prepare(&sink)?;
        fresh.push(relay.start()?);
        relay.stop()?;
        existing.push(relay.start()?);
        relay.stop()?;
    }
    fresh.sort();
    existing.sort();
    table.row(
        "start to ready, a new state_dir, median",
        millis(percentile(&fresh, 50)),
        "< 200 ms",
    );
    table.row(
        "start to ready, an existing one, median",
        millis(percentile(&existing, 50)),
        "< 200 ms",
    );
    Ok(())
}

fn idle(table: &mut Table) -> Result<()> {
    let (sink, _mails) = Sink::open()?;
    let mut relay = Relay::prepare(&sink)?;
    relay.start()?;
    thread::sleep(Duration::from_secs(2));
    let before = relay.cpu()?;
    thread::sleep(IDLE);
    let cpu = relay.cpu()?.saturating_sub(before);
    table.row(
        "idle: resident memory",
        mebibytes(relay.memory("VmRSS")?),
        "< 20 MiB",
    );
    table.row("idle: processor time in 20 s", millis(cpu), "timers only");
    relay.stop()
}

fn channels(table: &mut Table) -> Result<()> {
    let (sink, _mails) = Sink::open()?;
    let mut relay = Relay::prepare_with(&sink, OTHER_CHANNELS)?;
    relay.start()?;
    thread::sleep(Duration::from_secs(2));
    table.row(
        "idle with a channel of every type: resident memory",
        mebibytes(relay.memory("VmRSS")?),
        "< 20 MiB",
    );
    relay.stop()
}

fn latency(table: &mut Table) -> Result<()> {
    let (sink, mails) = Sink::open()?;
    let mut relay = Relay::prepare(&sink)?;
    relay.start()?;
    let fortigate = UdpSocket::bind("127.0.0.1:0")?;
    let mut took = Vec::new();
    for n in 0..WARM_UP + PACED {
        thread::sleep(PACE + Duration::from_micros(317) * (n % 50) as u32);
        let event = Event::new(n);
        let sent = Instant::now();
        fortigate.send_to(event.line.as_bytes(), relay.syslog)?;
        let mail = mails
            .recv_timeout(PATIENCE)
            .map_err(|_| format!("no mail has come: {}", relay.log()))?;
        event.check(&mail)?;
        if n >= WARM_UP {
            took.push(mail.at.duration_since(sent));
        }
    }
    took.sort();
    table.row(
        "UDP datagram to the end of SMTP DATA, p50",
        millis(percentile(&took, 50)),
        "< 15 ms",
    );
    table.row(
        "UDP datagram to the end of SMTP DATA, p99",
        millis(percentile(&took, 99)),
        "< 60 ms",
    );
    relay.stop()
}

fn burst(table: &mut Table) -> Result<()> {
    let mut accepted = Vec::new();
    let mut delivered = Vec::new();
    let mut peak = 0;
    let mut after = 0;
    for _ in 0..BURST_ROUNDS {
        let (sink, mails) = Sink::open()?;
        let mut relay = Relay::prepare(&sink)?;
        relay.start()?;
        let mut stream = String::new();
        let mut waiting = HashMap::new();
        for n in 0..BURST {
            let event = Event::new(n);
            write!(stream, "{} {}", event.line.len(), event.line)?;
            waiting.insert(event.user.clone(), event);
        }
        let begin = Instant::now();
        let mut fortigate = TcpStream::connect(relay.syslog)?;
        let sender =
            thread::spawn(move || fortigate.write_all(stream.as_bytes()).map(|()| fortigate));
        let mut committed = None;
        let mut last = begin;
        while !waiting.is_empty() || committed.is_none() {
            if committed.is_none() && relay.committed()? >= BURST {
                committed = Some(begin.elapsed());
            }
            let pause = if committed.is_none() {
                Duration::from_millis(50)
            } else {
                Duration::from_secs(1)
            };
            let until = Instant::now() + pause;
            while let Ok(mail) = mails.recv_timeout(until.saturating_duration_since(Instant::now()))
            {
                let Some(event) = waiting.remove(&mail.user) else {
                    return Err(format!("{} got two mails", mail.user).into());
                };
                event.check(&mail)?;
                last = mail.at;
            }
            if begin.elapsed() > PATIENCE {
                return Err(format!("{} mails are missing", waiting.len()).into());
            }
        }
        drop(sender.join().map_err(|_| "the sender panicked")??);
        accepted.extend(committed);
        delivered.push(last.duration_since(begin));
        peak = peak.max(relay.memory("VmHWM")?);
        relay.stop()?;
        relay.start()?;
        after = after.max(relay.memory("VmRSS")?);
        relay.stop()?;
    }
    accepted.sort();
    delivered.sort();
    table.row(
        "10,000 activations by TCP: all durable, worst of 3",
        seconds(accepted.last()),
        "< 5 s",
    );
    table.row(
        "… each delivered once, to its person, worst of 3",
        seconds(delivered.last()),
        "",
    );
    table.row(
        "… peak resident memory, worst of 3",
        mebibytes(peak),
        "< 64 MiB",
    );
    table.row(
        "… resident memory after the next start",
        mebibytes(after),
        "",
    );
    Ok(())
}

// === The FortiGate ===

struct Event {
    user: String,
    code: String,
    line: String,
}

impl Event {
    fn new(n: usize) -> Self {
        let user = format!("user{n:05}");
        let code = code(n);
        let now = Timestamp::now();
        let line = format!(
            "<189>date={} devname=\"BRANCH-12-FGT\" devid=\"FGT60FTK20000001\" eventtime={} tz=\"+0000\" \
             logid=\"0100038412\" type=\"event\" subtype=\"system\" level=\"notice\" vd=\"root\" logdesc=\"Token activation code sent\" \
             user=\"{user}\" action=\"send-activation-code\" msg=\"Activation code {code} was sent to {user}\"",
            now.strftime("%Y-%m-%d time=%H:%M:%S"),
            now.as_nanosecond(),
        );
        Self { user, code, line }
    }

    fn check(&self, mail: &Mail) -> Result<()> {
        if mail.user == self.user && mail.text.contains(&self.code) {
            return Ok(());
        }
        Err(format!("{} got a mail that was meant for somebody else", mail.user).into())
    }
}

/// The shape of an activation code, another one for each number.
fn code(n: usize) -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    // An odd factor makes a permutation of the numbers, so no two are the same; the 4 makes each a code and no word.
    let mut rest = (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut code = String::from("EEI4");
    for _ in 0..12 {
        code.push(char::from(LETTERS[(rest & 31) as usize]));
        rest >>= 5;
    }
    code
}

// === The program ===

struct Relay {
    dir: TempDir,
    child: Option<Child>,
    syslog: SocketAddr,
    http: SocketAddr,
}

impl Relay {
    fn prepare(sink: &Sink) -> Result<Self> {
        Self::prepare_with(sink, "")
    }

    fn prepare_with(sink: &Sink, more: &str) -> Result<Self> {
        let dir = directory()?;
        let (syslog, http) = (free()?, free()?);
        let config = format!(
            "state_dir = \"state\"\n\
             [http]\nlisten = \"{http}\"\n\
             [[listen]]\ntransport = \"udp\"\naddress = \"{syslog}\"\n\
             [[listen]]\ntransport = \"tcp\"\naddress = \"{syslog}\"\n\
             [recipients]\ndomains = [\"example.com\"]\n\
             [[directory]]\ntype = \"pattern\"\nemail = \"{{user}}@example.com\"\n\
             [channel.mail]\ntype = \"smtp\"\nhost = \"127.0.0.1\"\nport = {}\ntls = \"none\"\nfrom = \"servicedesk@example.com\"\n\
             [channel.desk]\ntype = \"file\"\npath = \"desk\"\nto = \"servicedesk@example.com\"\n\
             [[route]]\nto = [\"mail\"]\nescalate = [\"desk\"]\n{more}",
            sink.port
        );
        fs::write(dir.path().join("ftm-relay.toml"), config)?;
        Ok(Self {
            dir,
            child: None,
            syslog,
            http,
        })
    }

    /// How long it takes until `/readyz` says 200.
    fn start(&mut self) -> Result<Duration> {
        let log = File::create(self.dir.path().join("log"))?;
        let begin = Instant::now();
        let child = Command::new(env!("CARGO_BIN_EXE_ftm-relay"))
            .args(["run", "--config", "ftm-relay.toml"])
            .current_dir(self.dir.path())
            .env_remove("STATE_DIRECTORY")
            .env_remove("RUNTIME_DIRECTORY")
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()?;
        self.child = Some(child);
        loop {
            if self
                .get("/readyz")
                .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
            {
                return Ok(begin.elapsed());
            }
            if begin.elapsed() > PATIENCE {
                return Err(format!("it does not start: {}", self.log()).into());
            }
            thread::sleep(Duration::from_micros(500));
        }
    }

    /// SIGTERM, and a good end.
    fn stop(&mut self) -> Result<()> {
        let mut child = self.child.take().ok_or("it does not run")?;
        kill_process(Pid::from_child(&child), Signal::TERM)?;
        let status = child.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("it ended with {status}: {}", self.log()).into())
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn get(&self, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(self.http)?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.http
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// How many activations are counted as committed.
    fn committed(&self) -> Result<usize> {
        let metrics = self.get("/metrics")?;
        let sample = "ftm_relay_activations_total{outcome=\"relay\"} ";
        let count = metrics.lines().find_map(|line| line.strip_prefix(sample));
        Ok(count.map_or(Ok(0), str::parse)?)
    }

    fn proc(&self) -> Result<String> {
        Ok(format!(
            "/proc/{}",
            self.child.as_ref().ok_or("it does not run")?.id()
        ))
    }

    /// A line of `/proc/PID/status`, in KiB.
    fn memory(&self, what: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("{}/status", self.proc()?))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.ok_or("the kernel does not say")?.parse()?)
    }

    /// The processor time of all its threads.
    fn cpu(&self) -> Result<Duration> {
        let mut all = Duration::ZERO;
        for thread in fs::read_dir(format!("{}/task", self.proc()?))? {
            let times = fs::read_to_string(thread?.path().join("schedstat"))?;
            let run = times.split(' ').next().ok_or("the kernel does not say")?;
            all += Duration::from_nanos(run.parse()?);
        }
        Ok(all)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// On the disk that the build is on: the system's temporary directory may be memory.
fn directory() -> io::Result<TempDir> {
    TempDir::new_in(Path::new(env!("CARGO_TARGET_TMPDIR")))
}

fn free() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

// === The mail relay ===

struct Sink {
    port: u16,
}

/// A mail whose final dot has been read.
struct Mail {
    user: String,
    text: String,
    at: Instant,
}

impl Sink {
    /// Takes every mail until the process ends.
    fn open() -> io::Result<(Self, Receiver<Mail>)> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let (mails, taken) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mails = mails.clone();
                // A connection that breaks costs the program a retry, and so shows in the figures.
                thread::spawn(move || drop(converse(&stream, &mails)));
            }
        });
        Ok((Self { port }, taken))
    }
}

fn converse(stream: &TcpStream, mails: &Sender<Mail>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut lines = BufReader::new(stream);
    let say = |text: &str| (&mut &*stream).write_all(text.as_bytes());
    let mut line = String::new();
    let mut user = String::new();
    say("220 localhost ESMTP\r\n")?;
    loop {
        line.clear();
        if lines.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let verb = line.get(..4).unwrap_or_default().to_ascii_uppercase();
        match verb.as_str() {
            "EHLO" => say("250-localhost\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES\r\n")?,
            "RCPT" => {
                let address = line.split(['<', '@']).nth(1).unwrap_or_default();
                address.clone_into(&mut user);
                say("250 2.1.5 ok\r\n")?;
            }
            "DATA" => {
                say("354 go ahead\r\n")?;
                let mut text = String::new();
                while !text.ends_with("\r\n.\r\n") {
                    if lines.read_line(&mut text)? == 0 {
                        return Ok(());
                    }
                }
                let at = Instant::now();
                say("250 2.0.0 taken\r\n")?;
                let mail = Mail {
                    user: std::mem::take(&mut user),
                    text,
                    at,
                };
                if mails.send(mail).is_err() {
                    return Ok(());
                }
            }
            "QUIT" => return say("221 2.0.0 bye\r\n"),
            _ => say("250 2.0.0 ok\r\n")?,
        }
    }
}

// === The table ===

#[derive(Default)]
struct Table(Vec<[String; 3]>);

impl Table {
    fn row(&mut self, what: &str, figure: String, bound: &str) {
        eprintln!("{what}: {figure}");
        self.0.push([what.to_owned(), figure, bound.to_owned()]);
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "\n| figure | measured | bound |\n| --- | --- | --- |")?;
        for [what, figure, bound] in &self.0 {
            writeln!(f, "| {what} | {figure} | {bound} |")?;
        }
        Ok(())
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or_default()
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

fn seconds(time: Option<&Duration>) -> String {
    time.map_or_else(String::new, |time| format!("{:.2} s", time.as_secs_f64()))
}

fn mebibytes(kib: u64) -> String {
    format!("{:.1} MiB", kib as f64 / MIB)
}
