//! A receiver under load: the relay, one of its peers, or a bare loop.

use std::fs;
use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process;
use tempfile::TempDir;

use crate::Result;
use crate::bare;
use crate::load;
use crate::until;

/// What is measured.
pub trait Program {
    fn name(&self) -> &str;
    /// Where it listens; port and transport are its configuration's.
    fn address(&self) -> SocketAddr;
    fn start(&mut self) -> Result<()>;
    /// How many messages it has handed on.
    fn handed_on(&self) -> Result<usize>;
    fn child(&self) -> Option<&Child>;
    fn stop(&mut self) -> Result<()>;

    /// The processor time of all its threads so far.
    fn cpu(&self) -> Result<Duration> {
        let pid = self.child().ok_or("it does not run")?.id();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<_> = stat
            .rsplit_once(')')
            .ok_or("no stat")?
            .1
            .split_whitespace()
            .collect();
        // utime and stime: the 14th and 15th field of proc_pid_stat(5), in ticks of 10 ms.
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Duration::from_millis(ticks * 10))
    }

    /// A line of `/proc/PID/status`, in KiB.
    fn memory(&self, what: &str) -> Result<u64> {
        let pid = self.child().ok_or("it does not run")?.id();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.ok_or("the kernel does not say")?.parse()?)
    }
}

/// A new one on the disk that the build is on: the system's temporary directory may be memory. All are removed at the end of the run
/// ([`clear`]): ext4 without a journal looks long for an inode while many were freed of late, and whoever comes next would pay.
pub fn directory() -> std::io::Result<TempDir> {
    fs::create_dir_all(DIRECTORIES)?;
    tempfile::Builder::new()
        .disable_cleanup(true)
        .tempdir_in(DIRECTORIES)
}

const DIRECTORIES: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/peers");

/// Removes what the receivers wrote.
pub fn clear() -> std::io::Result<()> {
    match fs::remove_dir_all(DIRECTORIES) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

pub fn free() -> std::io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

pub fn end(child: &mut Option<Child>) -> Result<()> {
    let mut child = child.take().ok_or("it does not run")?;
    kill_process(Pid::from_child(&child), Signal::TERM)?;
    child.wait()?;
    Ok(())
}

// === The relay ===

pub struct Relay {
    dir: TempDir,
    child: Option<Child>,
    syslog: SocketAddr,
    http: SocketAddr,
}

impl Relay {
    /// UDP and TCP; every code becomes a file.
    pub fn plain() -> Result<Self> {
        Self::with("transport = \"tcp\"", "type = \"file\"\npath = \"mail\"")
    }

    pub fn tls() -> Result<Self> {
        let (cert, key) = load::certificate()?;
        let listen = format!("transport = \"tls\"\ncert = {cert:?}\nkey = {{ file = {key:?} }}");
        Self::with(&listen, "type = \"file\"\npath = \"mail\"")
    }

    /// Every code is posted there.
    pub fn posting(to: SocketAddr) -> Result<Self> {
        let channel = format!("type = \"webhook\"\nurl = \"http://{to}/\"");
        Self::with("transport = \"tcp\"", &channel)
    }

    fn with(listen: &str, channel: &str) -> Result<Self> {
        let dir = directory()?;
        let (syslog, http) = (free()?, free()?);
        let config = format!(
            "state_dir = \"state\"\n\
             [http]\nlisten = \"{http}\"\n\
             [[listen]]\ntransport = \"udp\"\naddress = \"{syslog}\"\n\
             [[listen]]\n{listen}\naddress = \"{syslog}\"\nmax_connections = 12000\n\
             [recipients]\ndomains = [\"example.com\"]\n\
             [[directory]]\ntype = \"pattern\"\nemail = \"{{user}}@example.com\"\n\
             [channel.out]\n{channel}\n\
             [[route]]\nto = [\"out\"]\n"
        );
        fs::write(dir.path().join("ftm-relay.toml"), config)?;
        Ok(Self {
            dir,
            child: None,
            syslog,
            http,
        })
    }

    fn get(&self, path: &str) -> std::io::Result<String> {
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

    /// The sum of all samples of a metric whose labels hold `label`.
    pub fn metric(&self, name: &str, label: &str) -> Result<usize> {
        let metrics = self.get("/metrics")?;
        let values = metrics
            .lines()
            .filter(|line| line.starts_with(name) && line.contains(label))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok());
        Ok(values.sum())
    }
}

impl Program for Relay {
    fn name(&self) -> &str {
        "ftm-relay"
    }

    fn address(&self) -> SocketAddr {
        self.syslog
    }

    fn start(&mut self) -> Result<()> {
        let log = File::create(self.dir.path().join("log"))?;
        self.child = Some(
            Command::new(env!("CARGO_BIN_EXE_ftm-relay"))
                .args(["run", "--config", "ftm-relay.toml"])
                .current_dir(self.dir.path())
                .env_remove("STATE_DIRECTORY")
                .env_remove("RUNTIME_DIRECTORY")
                .stdin(Stdio::null())
                .stderr(log)
                .spawn()?,
        );
        let started = until("the relay", || {
            Ok(self
                .get("/readyz")
                .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")))
        });
        started.map_err(|e| {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            format!("{e}: {log}").into()
        })
    }

    fn handed_on(&self) -> Result<usize> {
        self.metric("ftm_relay_deliveries_total", "accepted")
    }

    fn child(&self) -> Option<&Child> {
        self.child.as_ref()
    }

    fn stop(&mut self) -> Result<()> {
        end(&mut self.child)
    }
}

// === A peer ===

/// A program of somebody else's that writes what matches to a file, a line each.
pub struct Peer {
    pub name: String,
    pub dir: TempDir,
    pub address: SocketAddr,
    pub command: Command,
    pub out: PathBuf,
    pub child: Option<Child>,
    pub udp: bool,
}

impl Program for Peer {
    fn name(&self) -> &str {
        &self.name
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn start(&mut self) -> Result<()> {
        let log = File::create(self.dir.path().join("log"))?;
        let child = self
            .command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.child = Some(child);
        let address = self.address;
        let table = if self.udp { "udp" } else { "tcp" };
        let local = format!("0100007F:{:04X}", address.port());
        let started = until(&self.name, || {
            Ok(fs::read_to_string(format!("/proc/net/{table}"))?.contains(&local))
        });
        started.map_err(|e| {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            format!("{e}: {log}").into()
        })
    }

    fn handed_on(&self) -> Result<usize> {
        match fs::read(&self.out) {
            Ok(text) => Ok(memchr::memchr_iter(b'\n', &text).count()),
            Err(_) => Ok(0),
        }
    }

    fn child(&self) -> Option<&Child> {
        self.child.as_ref()
    }

    fn stop(&mut self) -> Result<()> {
        end(&mut self.child)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        kill(&mut self.child);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        kill(&mut self.child);
    }
}

fn kill(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        drop(child.kill());
        drop(child.wait());
    }
}

// === A bare loop ===

pub struct Bare {
    kind: &'static str,
    running: Option<(Child, u16)>,
}

impl Bare {
    pub fn new(kind: &'static str) -> Self {
        Self {
            kind,
            running: None,
        }
    }
}

impl Program for Bare {
    fn name(&self) -> &str {
        "a bare loop"
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.running.as_ref().map_or(0, |r| r.1)))
    }

    fn start(&mut self) -> Result<()> {
        self.running = Some(bare::spawn(self.kind)?);
        Ok(())
    }

    /// It hands on nothing, so nothing is waited for.
    fn handed_on(&self) -> Result<usize> {
        Ok(usize::MAX)
    }

    fn child(&self) -> Option<&Child> {
        self.running.as_ref().map(|(child, _)| child)
    }

    fn stop(&mut self) -> Result<()> {
        kill(&mut self.running.take().map(|(child, _)| child));
        Ok(())
    }
}
