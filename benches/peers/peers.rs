//! rsyslog and syslog-ng as Debian ships them, unpacked and configured for the job. Each gets several sensible
//! configurations, and the best one counts.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use crate::Result;
use crate::program::Peer;
use crate::program::directory;
use crate::program::free;

/// The daemons, and the libraries that a minimal Debian 12 lacks.
const PACKAGES: [&str; 11] = [
    "rsyslog",
    "libestr0",
    "libfastjson4",
    "liblognorm5",
    "syslog-ng-core",
    "libivykis0",
    "libnet1",
    "libwrap0",
    "libjson-c5",
    "libglib2.0-0",
    "libpcre3",
];

/// What decides: the message id as both peers see it, text anywhere in the message.
const WANTED: &str = "0100038412";

/// How many configurations of rsyslog are tried over TCP, and over UDP.
pub const RSYSLOG_TCP: usize = 3;
pub const RSYSLOG_UDP: usize = 2;
/// … and of syslog-ng over UDP.
pub const SYSLOG_NG_UDP: usize = 2;

/// The unpacked packages.
pub struct Peers {
    root: PathBuf,
}

impl Peers {
    /// Once; later runs find them there.
    pub fn unpack() -> Result<Self> {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("peers");
        let peers = Self { root };
        if peers.root.join("done").exists() {
            return Ok(peers);
        }
        fs::create_dir_all(&peers.root)?;
        let done = Command::new("apt-get")
            .args(["download", "--quiet"])
            .args(PACKAGES)
            .current_dir(&peers.root)
            .status()?;
        if !done.success() {
            return Err("apt-get download failed; `apt-get update` first?".into());
        }
        for file in fs::read_dir(&peers.root)? {
            let file = file?.path();
            if file.extension().is_some_and(|e| e == "deb") {
                let done = Command::new("dpkg-deb")
                    .arg("--extract")
                    .args([&file, &peers.root])
                    .status()?;
                if !done.success() {
                    return Err(format!("{} can't be unpacked", file.display()).into());
                }
            }
        }
        fs::write(peers.root.join("done"), "")?;
        Ok(peers)
    }

    pub fn versions(&self) -> String {
        let of = |package: &str| {
            fs::read_dir(&self.root)
                .ok()?
                .filter_map(|file| file.ok()?.file_name().into_string().ok())
                .find(|name| name.starts_with(&format!("{package}_")) && name.ends_with(".deb"))
                .and_then(|name| Some(name.split('_').nth(1)?.to_owned()))
        };
        format!(
            "rsyslog {}, syslog-ng {}",
            of("rsyslog").unwrap_or_default(),
            of("syslog-ng-core").unwrap_or_default()
        )
    }

    fn libraries(&self) -> PathBuf {
        self.root
            .join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.root.join("usr/sbin").join(program));
        let root = self.root.display();
        let arch = std::env::consts::ARCH;
        command.env(
            "LD_LIBRARY_PATH",
            format!("{root}/usr/lib/{arch}-linux-gnu:{root}/lib/{arch}-linux-gnu:{root}/usr/lib/syslog-ng:{root}/usr/lib/{arch}-linux-gnu/syslog-ng"),
        );
        command
    }

    pub fn rsyslog_tcp(&self, variant: usize) -> Result<Box<Peer>> {
        let (module, input, ruleset) = [
            ("imptcp", "", ""),
            (
                "imptcp",
                "",
                "queue.type=\"LinkedList\" queue.workerThreads=\"2\" queue.dequeueBatchSize=\"2048\" queue.size=\"200000\"",
            ),
            ("imtcp", "", ""),
        ][variant];
        self.rsyslog(
            &format!("rsyslog ({module}, variant {variant})"),
            module,
            "",
            input,
            ruleset,
            false,
        )
    }

    pub fn rsyslog_udp(&self, variant: usize) -> Result<Box<Peer>> {
        let (options, ruleset) = [
            ("threads=\"1\" batchSize=\"256\"", ""),
            (
                "threads=\"2\" batchSize=\"256\"",
                "queue.type=\"LinkedList\" queue.workerThreads=\"2\" queue.dequeueBatchSize=\"2048\" queue.size=\"200000\"",
            ),
        ][variant];
        self.rsyslog(
            &format!("rsyslog (imudp, variant {variant})"),
            "imudp",
            options,
            "rcvbufSize=\"8m\"",
            ruleset,
            true,
        )
    }

    fn rsyslog(
        &self,
        name: &str,
        module: &str,
        options: &str,
        input: &str,
        ruleset: &str,
        udp: bool,
    ) -> Result<Box<Peer>> {
        let (dir, address) = (directory()?, free()?);
        let (out, config) = (dir.path().join("out"), dir.path().join("rsyslog.conf"));
        let port = address.port();
        fs::write(
            &config,
            format!(
                "global(workDirectory=\"{dir}\" maxMessageSize=\"64k\")\n\
                 module(load=\"{module}\" {options})\n\
                 template(name=\"raw\" type=\"string\" string=\"%rawmsg%\\n\")\n\
                 ruleset(name=\"wanted\" {ruleset}) {{\n\
                 if ($rawmsg contains \"{WANTED}\") then action(type=\"omfile\" file=\"{out}\" template=\"raw\")\n}}\n\
                 input(type=\"{module}\" address=\"127.0.0.1\" port=\"{port}\" ruleset=\"wanted\" {input})\n",
                dir = dir.path().display(),
                out = out.display(),
            ),
        )?;
        let mut command = self.command("rsyslogd");
        command
            .arg("-n")
            .arg("-f")
            .arg(&config)
            .arg("-i")
            .arg(dir.path().join("pid"))
            .arg("-M")
            .arg(self.libraries().join("rsyslog"));
        Ok(Box::new(Peer {
            name: name.to_owned(),
            dir,
            address,
            command,
            out,
            child: None,
            udp,
        }))
    }

    pub fn syslog_ng_tcp(&self) -> Result<Box<Peer>> {
        self.syslog_ng(
            "syslog-ng",
            "transport(\"tcp\") log-iw-size(100000) log-fetch-limit(1000) max-connections(100)",
            1,
            false,
            None,
        )
    }

    /// What matches goes to another receiver over TCP, at once.
    pub fn syslog_ng_forwarding(&self, to: SocketAddr) -> Result<Box<Peer>> {
        self.syslog_ng("syslog-ng", "transport(\"udp\")", 1, true, Some(to))
    }

    pub fn syslog_ng_udp(&self, variant: usize) -> Result<Box<Peer>> {
        let (sources, options) = [(1, ""), (2, "so-reuseport(yes)")][variant];
        self.syslog_ng(
            &format!("syslog-ng ({sources} sockets)"),
            &format!("transport(\"udp\") so-rcvbuf(8388608) log-iw-size(100000) log-fetch-limit(1000) {options}"),
            sources,
            true,
            None,
        )
    }

    fn syslog_ng(
        &self,
        name: &str,
        transport: &str,
        sources: usize,
        udp: bool,
        forward: Option<SocketAddr>,
    ) -> Result<Box<Peer>> {
        let (dir, address) = (directory()?, free()?);
        let (out, config) = (dir.path().join("out"), dir.path().join("syslog-ng.conf"));
        let source = |n| {
            format!(
                "network(ip(\"127.0.0.1\") port({}) {transport} flags(no-parse) log-msg-size(65536) persist-name(\"s{n}\"))",
                address.port()
            )
        };
        let sources: Vec<String> = (0..sources).map(source).collect();
        let destination = match forward {
            None => format!("file(\"{}\" template(\"$MSG\\n\"))", out.display()),
            Some(to) => format!(
                "network(\"{}\" port({}) transport(\"tcp\") flush-lines(1) template(\"$MSG\\n\"))",
                to.ip(),
                to.port()
            ),
        };
        fs::write(
            &config,
            format!(
                "@version: 3.38\n\
                 options {{ threaded(yes); stats-freq(0); log-fifo-size(200000); use-dns(no); flush-lines(100); keep-hostname(yes); }};\n\
                 source s {{ {}; }};\n\
                 filter f {{ message(\"{WANTED}\" type(string) flags(substring)); }};\n\
                 destination d {{ {destination}; }};\n\
                 log {{ source(s); filter(f); destination(d); }};\n",
                sources.join("; "),
            ),
        )?;
        let mut command = self.command("syslog-ng");
        command
            .args(["--foreground", "--no-caps"])
            .arg("--cfgfile")
            .arg(&config)
            .arg("--persist-file")
            .arg(dir.path().join("persist"))
            .arg("--pidfile")
            .arg(dir.path().join("pid"))
            .arg("--control")
            .arg(dir.path().join("ctl"))
            .arg("--module-path")
            .arg(self.root.join("usr/lib/syslog-ng/3.38"));
        Ok(Box::new(Peer {
            name: name.to_owned(),
            dir,
            address,
            command,
            out,
            child: None,
            udp,
        }))
    }
}
