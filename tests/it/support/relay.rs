//! A relay of its own for a test: the real program, with its own directory and ports.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;

use serde_json::Value;
use tempfile::TempDir;

use super::until;

/// The built program.
pub const BINARY: &str = env!("CARGO_BIN_EXE_ftm-relay");

/// A running (or killed) relay.
pub struct Relay {
    pub dir: TempDir,
    child: Option<Child>,
    log: Arc<Mutex<String>>,
    env: BTreeMap<String, String>,
}

/// Two listeners on free ports, everybody at example.com; the rest is up to the test.
pub const BASE: &str = r#"
state_dir = "state"
[http]
listen = "127.0.0.1:0"
[[listen]]
name = "udp"
transport = "udp"
address = "127.0.0.1:0"
[[listen]]
name = "tcp"
transport = "tcp"
address = "127.0.0.2:0"
[recipients]
domains = ["example.com"]
[[directory]]
type = "pattern"
email = "{user}@example.com"
"#;

/// A channel `mail` to an SMTP server on this port.
pub fn smtp_channel(port: u16) -> String {
    format!(
        "[channel.mail]\ntype = \"smtp\"\nhost = \"127.0.0.1\"\nport = {port}\ntls = \"none\"\nfrom = \"IT Service Desk <servicedesk@example.com>\"\n"
    )
}

impl Relay {
    /// Starts one with this configuration and waits until it is ready.
    pub fn start(config: &str) -> Self {
        let mut relay = Self::prepare(config);
        relay.run();
        relay
    }

    /// Makes its directory and configuration without starting it.
    pub fn prepare(config: &str) -> Self {
        let relay = Self {
            dir: tempfile::tempdir().unwrap(),
            child: None,
            log: Arc::default(),
            env: BTreeMap::new(),
        };
        relay.configure(config);
        relay
    }

    /// Writes another configuration.
    pub fn configure(&self, config: &str) {
        std::fs::write(self.config(), config).unwrap();
    }

    /// Sets a variable of its environment from the next start on.
    pub fn env(&mut self, name: &str, value: &str) -> &mut Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("ftm-relay.toml")
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Starts it (again) and waits until it is ready.
    pub fn run(&mut self) {
        self.spawn();
        until("the relay to be ready", || {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("the relay ended at start with {status}:\n{}", self.logged());
            }
            (self.log.lock().unwrap().contains("Ready:") && self.get("/readyz").0 == 200)
                .then_some(())
        });
    }

    /// Starts it without waiting.
    pub fn spawn(&mut self) {
        self.log.lock().unwrap().clear();
        let mut child = self
            .command(&["run", "--config", self.config().to_str().unwrap()])
            .stderr(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let (log, stderr) = (Arc::clone(&self.log), child.stderr.take().unwrap());
        std::thread::spawn(move || {
            let mut stderr = BufReader::new(stderr);
            let mut line = Vec::new();
            while stderr.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                log.lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
        });
        self.child = Some(child);
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command
            .args(args)
            .current_dir(self.dir.path())
            .env_remove("STATE_DIRECTORY")
            .env_remove("RUNTIME_DIRECTORY")
            .envs(&self.env);
        command
    }

    /// Waits for the process to end by itself.
    pub fn wait(&mut self) -> i32 {
        let child = self.child.as_mut().unwrap();
        let status = until("the relay to end", || child.try_wait().unwrap());
        status.code().unwrap_or_else(|| -status.signal().unwrap())
    }

    /// `kill -9`
    pub fn kill(&mut self) {
        if let Some(child) = &mut self.child {
            drop(child.kill());
            child.wait().unwrap();
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.child.as_ref().unwrap());
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// SIGTERM; the exit code.
    pub fn stop(&mut self) -> i32 {
        self.signal(rustix::process::Signal::TERM);
        self.wait()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Everything it has logged since its last start.
    pub fn logged(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Where the listener of this transport is bound.
    pub fn listening(&self, transport: &str) -> SocketAddr {
        until("the listener", || {
            let log = self.logged();
            let is_it =
                |l: &&str| l.contains("Listening on ") && l.contains(&format!("({transport})"));
            let line = log.lines().find(is_it)?;
            let at = line.find("Listening on ")? + "Listening on ".len();
            line[at..].split(' ').next()?.parse().ok()
        })
    }

    pub fn udp(&self) -> SocketAddr {
        self.listening("udp")
    }

    pub fn tcp(&self) -> SocketAddr {
        self.listening("tcp")
    }

    pub fn http(&self) -> SocketAddr {
        let log = self.logged();
        let (_, rest) = log
            .split_once("metrics on http://")
            .unwrap_or_else(|| panic!("no page:\n{log}"));
        rest.split('/').next().unwrap().parse().unwrap()
    }

    pub fn send_udp(&self, line: &[u8]) {
        UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .send_to(line, self.udp())
            .unwrap();
    }

    /// Sends bytes as they are and closes.
    pub fn send_tcp(&self, bytes: &[u8]) {
        TcpStream::connect(self.tcp())
            .unwrap()
            .write_all(bytes)
            .unwrap();
    }

    /// GET a path; status and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        self.get_as(path, &self.http().to_string())
    }

    /// GET with another Host.
    pub fn get_as(&self, path: &str, host: &str) -> (u16, String) {
        let Ok(mut stream) = TcpStream::connect(self.http()) else {
            return (0, String::new());
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let mut answer = String::new();
        if stream.write_all(request.as_bytes()).is_err()
            || stream.read_to_string(&mut answer).is_err()
        {
            return (0, answer);
        }
        let status = answer
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .unwrap_or(0);
        (
            status,
            answer
                .split_once("\r\n\r\n")
                .map(|(_, body)| body.to_owned())
                .unwrap_or_default(),
        )
    }

    /// The sum of a metric's samples that carry all these labels.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let text = self.get("/metrics").1;
        let samples = text.lines().filter(|l| {
            l.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        let wanted = samples.filter(|l| {
            labels
                .iter()
                .all(|(k, v)| l.contains(&format!("{k}=\"{v}\"")))
        });
        wanted
            .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Runs another command with the same configuration.
    pub fn cli(&self, args: &[&str]) -> Output {
        self.cli_with(args, b"")
    }

    pub fn cli_with(&self, args: &[&str], stdin: &[u8]) -> Output {
        let mut child = self
            .command(args)
            .args(["--config", self.config().to_str().unwrap()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut input, bytes) = (child.stdin.take().unwrap(), stdin.to_owned());
        let writer = std::thread::spawn(move || drop(input.write_all(&bytes)));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output
    }

    /// `queue list --json`
    pub fn queue(&self) -> Vec<Value> {
        let output = self.cli(&["queue", "list", "--json"]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The states of the queue's rows, sorted.
    pub fn states(&self) -> Vec<String> {
        let mut states: Vec<_> = self
            .queue()
            .iter()
            .map(|row| row["state"].as_str().unwrap().to_owned())
            .collect();
        states.sort();
        states
    }

    /// `explain --json` of one line.
    pub fn explain(&self, line: &[u8], args: &[&str]) -> Value {
        let output = self.cli_with(
            &[&["explain", "--json", "-"], args].concat(),
            &[line, b"\n"].concat(),
        );
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The bytes of every file under a directory.
    pub fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                files.extend(Self::files(&path));
            } else if let Ok(bytes) = std::fs::read(&path) {
                files.push((path, bytes)); // SQLite's own files come and go; a socket can't be read
            }
        }
        files
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- the relay's log:\n{}", self.logged());
        }
    }
}
