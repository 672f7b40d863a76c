//! A FortiGate on the wire: activation events among the other lines that a firewall logs. Everything in them is made up.

use std::fmt;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::anyhow;
use anyhow::bail;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::UdpSocket;
use tokio::net::lookup_host;
use tokio::time::sleep_until;
use tokio::time::timeout;

/// What the simulated device calls itself.
pub const DEVICE_NAME: &str = "SIMULATED-FGT";

/// Its serial number.
pub const DEVICE_ID: &str = "FGTSIM0000000001";

/// Whose activations are simulated where nobody is named; from the eleventh on a number is appended.
const PEOPLE: [&str; 10] = [
    "alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy",
];

/// Lines are written to a stream in pieces of about this size.
const WRITE_BYTES: usize = 64 * 1024;

/// Nobody who is there takes longer to answer or to close.
const PATIENCE: Duration = Duration::from_secs(5);

/// An ICMP message that nobody listens is there by then, if it comes at all.
const REFUSAL_TIME: Duration = Duration::from_millis(100);

/// Where the lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// How.
    pub transport: Transport,
    /// A name or an address, IPv6 without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// How lines travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// One datagram each.
    Udp,
    /// A TCP stream with a count of bytes in front of each (`set mode reliable`).
    TcpCounted,
    /// A TCP stream with a LF behind each.
    TcpLines,
}

/// The schemes of a target.
const TRANSPORTS: [(&str, Transport); 3] = [
    ("udp", Transport::Udp),
    ("tcp", Transport::TcpCounted),
    ("tcp+lf", Transport::TcpLines),
];

impl Transport {
    fn scheme(self) -> &'static str {
        TRANSPORTS
            .iter()
            .find(|(_, t)| *t == self)
            .map_or("udp", |(scheme, _)| scheme)
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let schemes = TRANSPORTS.map(|(scheme, _)| format!("{scheme}://"));
        let Some((scheme, place)) = text.split_once("://") else {
            return Err(format!(
                "\"{text}\" says no transport; write for example udp://{text}"
            ));
        };
        let Some((_, transport)) = TRANSPORTS.iter().find(|(name, _)| *name == scheme) else {
            return Err(format!(
                "{scheme}:// is not known; write {}",
                schemes.join(", ")
            ));
        };
        let place = place.strip_suffix('/').unwrap_or(place);
        let (host, port) = match place.strip_prefix('[') {
            Some(v6) => match v6.split_once(']') {
                Some((host, rest)) => (host, rest.strip_prefix(':')),
                None => return Err(format!("\"{text}\": the ] behind the address is missing")),
            },
            None => match place.rsplit_once(':') {
                Some((host, _)) if host.contains(':') => {
                    return Err(format!(
                        "\"{text}\": write an IPv6 address in brackets, such as {scheme}://[::1]:514"
                    ));
                }
                Some((host, port)) => (host, Some(port)),
                None => (place, None),
            },
        };
        if host.is_empty() {
            return Err(format!(
                "\"{text}\" names no host; write for example {scheme}://127.0.0.1:514"
            ));
        }
        let Some(port) = port else {
            return Err(format!(
                "\"{text}\" names no port; write for example {text}:514"
            ));
        };
        match port.parse() {
            Ok(port) if port > 0 => Ok(Self {
                transport: *transport,
                host: host.to_owned(),
                port,
            }),
            _ => Err(format!("\"{text}\": \"{port}\" is no port from 1 to 65535")),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            transport,
            host,
            port,
        } = self;
        let scheme = transport.scheme();
        if host.contains(':') {
            write!(f, "{scheme}://[{host}]:{port}")
        } else {
            write!(f, "{scheme}://{host}:{port}")
        }
    }
}

/// How a FortiGate writes a log (`set format`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `set format default`: key=value.
    Kv,
}

/// The formats by name.
pub const FORMATS: &[(&str, Format)] = &[("kv", Format::Kv)];

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        FORMATS
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, format)| *format)
            .ok_or_else(|| {
                let names: Vec<_> = FORMATS.iter().map(|(name, _)| *name).collect();
                format!(
                    "the format \"{text}\" is not known; write {}",
                    names.join(" or ")
                )
            })
    }
}

/// The versions that can be simulated, and how each writes a line.
const FORTIOS: [(&str, Style); 7] = [
    ("6.0", Style::Seconds),
    ("6.2", Style::LogIdFirst),
    ("6.4", Style::TimeFirst),
    ("7.0", Style::TimeFirst),
    ("7.2", Style::TimeFirst),
    ("7.4", Style::TimeFirst),
    ("7.6", Style::TimeFirst),
];

/// The order of the first fields, and the unit of `eventtime`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// `logid` before `eventtime`, which counts seconds; no `tz`.
    Seconds,
    /// `logid` before `eventtime`, which counts nanoseconds.
    LogIdFirst,
    /// `eventtime` before `logid`.
    TimeFirst,
}

/// What is to be sent.
#[derive(Clone, Debug)]
pub struct Simulation {
    /// Where to.
    pub to: Target,
    /// How the lines are written.
    pub format: Format,
    /// The version whose lines these are.
    pub fortios: String,
    /// Whose activations, in turn. Empty: alice, bob, … all different.
    pub users: Vec<String>,
    /// How many activations.
    pub count: u64,
    /// Lines per second; 0: as fast as they are taken.
    pub rate: f64,
    /// How many other lines before each activation.
    pub noise: u64,
    /// The same seed gives the same codes.
    pub seed: u64,
}

/// What was sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Activation events.
    pub activations: u64,
    /// All lines, the activations included.
    pub lines: u64,
    /// Their bytes, without framing.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
}

impl Simulation {
    /// Sends it all. `now` is the simulated device's clock at the start.
    pub async fn run(self, now: Timestamp) -> anyhow::Result<Summary> {
        let Some((_, style)) = FORTIOS.iter().find(|(v, _)| *v == self.fortios) else {
            bail!(
                "FortiOS {} can't be simulated; write one of {}",
                self.fortios,
                FORTIOS.map(|(v, _)| v).join(", ")
            );
        };
        if !self.rate.is_finite() || self.rate < 0.0 {
            bail!("the rate {} is no number of lines per second", self.rate);
        }
        let mut sender = Sender::open(&self.to).await?;
        let mut device = Device {
            style: *style,
            format: self.format,
            codes: Random(self.seed),
            // Another sequence, so that the noise does not change the codes.
            noise: Random(self.seed ^ 0x6e6f_6973_6500_0000),
            zone: TimeZone::system(),
            session: 1000,
        };
        let sent = self.send_all(&mut sender, &mut device, now).await;
        let summary = match sent {
            Ok(summary) => sender.close().await.map(|()| summary),
            Err(error) => Err(error),
        };
        summary
            .map_err(explain)
            .with_context(|| format!("sending to {} failed", self.to))
    }

    async fn send_all(
        &self,
        sender: &mut Sender,
        device: &mut Device,
        now: Timestamp,
    ) -> io::Result<Summary> {
        let start = Instant::now();
        let mut summary = Summary {
            activations: 0,
            lines: 0,
            bytes: 0,
            took: Duration::ZERO,
        };
        let mut line = String::new();
        for n in 0..self.count {
            for other in 0..=self.noise {
                let at = self.due(start, summary.lines);
                if at > Instant::now() {
                    sender.flush().await?;
                    sleep_until(at.into()).await;
                }
                let time = now + start.elapsed();
                line.clear();
                if other < self.noise {
                    device.noise(&mut line, time);
                } else {
                    device.activation(&mut line, time, &self.user(n));
                    summary.activations += 1;
                }
                sender.send(line.as_bytes()).await?;
                summary.lines += 1;
                summary.bytes += line.len() as u64;
            }
        }
        sender.flush().await?;
        summary.took = start.elapsed();
        Ok(summary)
    }

    /// When a line is to be sent.
    fn due(&self, start: Instant, line: u64) -> Instant {
        if self.rate == 0.0 {
            return start;
        }
        let after = Duration::try_from_secs_f64(line as f64 / self.rate).unwrap_or(Duration::MAX);
        start.checked_add(after).unwrap_or(start)
    }

    fn user(&self, n: u64) -> String {
        if !self.users.is_empty() {
            return self.users[(n % self.users.len() as u64) as usize].clone();
        }
        let name = PEOPLE[(n % PEOPLE.len() as u64) as usize];
        match n / PEOPLE.len() as u64 {
            0 => name.to_owned(),
            round => format!("{name}{}", round + 1),
        }
    }
}

/// The way to the target.
enum Sender {
    Udp(UdpSocket),
    Tcp {
        stream: TcpStream,
        counted: bool,
        waiting: Vec<u8>,
    },
}

impl Sender {
    async fn open(to: &Target) -> anyhow::Result<Self> {
        let addresses: Vec<SocketAddr> = lookup_host((to.host.as_str(), to.port))
            .await
            .with_context(|| format!("the name {} has no address", to.host))?
            .collect();
        if to.transport == Transport::Udp {
            let Some(address) = addresses.first() else {
                bail!("the name {} has no address", to.host);
            };
            let any = if address.is_ipv4() {
                "0.0.0.0:0"
            } else {
                "[::]:0"
            };
            let socket = UdpSocket::bind(any).await.context("no UDP socket")?;
            socket
                .connect(address)
                .await
                .with_context(|| format!("no way to {to}"))?;
            return Ok(Self::Udp(socket));
        }
        let stream = timeout(PATIENCE, TcpStream::connect(&addresses[..]))
            .await
            .with_context(|| format!("{to} does not answer"))?
            .with_context(|| format!("connecting to {to} failed"))?;
        Ok(Self::Tcp {
            stream,
            counted: to.transport == Transport::TcpCounted,
            waiting: Vec::with_capacity(2 * WRITE_BYTES),
        })
    }

    async fn send(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::Udp(socket) => {
                socket.send(line).await?;
            }
            Self::Tcp {
                counted, waiting, ..
            } => {
                if *counted {
                    waiting.extend_from_slice(format!("{} ", line.len()).as_bytes());
                }
                waiting.extend_from_slice(line);
                if !*counted {
                    waiting.push(b'\n');
                }
                if waiting.len() >= WRITE_BYTES {
                    self.flush().await?;
                }
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        if let Self::Tcp {
            stream, waiting, ..
        } = self
        {
            // A relay whose outbox is away reads on when it is back; who runs this can end it.
            stream.write_all(waiting).await?;
            waiting.clear();
        }
        Ok(())
    }

    /// Ends the sending, and listens for a refusal: the sender of syslog hears of nothing else.
    async fn close(self) -> io::Result<()> {
        let refused = match self {
            Self::Udp(socket) => timeout(REFUSAL_TIME, socket.recv(&mut [0])).await,
            Self::Tcp { mut stream, .. } => {
                stream.shutdown().await?;
                timeout(PATIENCE, stream.read(&mut [0])).await
            }
        };
        refused.unwrap_or(Ok(0)).map(|_| ())
    }
}

/// What a sender's error most likely means.
fn explain(error: io::Error) -> anyhow::Error {
    let why = match error.kind() {
        io::ErrorKind::ConnectionRefused => "nobody listens there",
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            "the connection was closed from there; is this sender within the listener's `allow`?"
        }
        _ => return error.into(),
    };
    anyhow!(error).context(why)
}

/// `SplitMix64`: its outputs are a permutation of its states, so no two of a run are equal.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// A code of the right shape: version 4, type 1, 6 digits, 60 s, and eight bytes of its own, in base32.
fn activation_code(own: u64) -> String {
    const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let bits = (0x2110_u128 << 64) | u128::from(own);
    (0..16)
        .rev()
        .map(|n| char::from(BASE32[((bits >> (5 * n)) & 31) as usize]))
        .collect()
}

/// The simulated firewall.
struct Device {
    style: Style,
    format: Format,
    codes: Random,
    noise: Random,
    zone: TimeZone,
    session: u64,
}

/// The fields that every log has.
struct Head {
    /// 189 is local7.notice, 190 local7.information.
    pri: u8,
    logid: &'static str,
    kind: &'static str,
    subtype: &'static str,
    level: &'static str,
}

impl Device {
    fn activation(&mut self, line: &mut String, time: Timestamp, user: &str) {
        let code = activation_code(self.codes.next());
        let head = Head {
            pri: 189,
            logid: "0100038412",
            kind: "event",
            subtype: "system",
            level: "notice",
        };
        let user = user.replace('"', "\\\"");
        let fields = format!(
            "logdesc=\"Token activation code sent\" user=\"{user}\" action=\"activate\" msg=\"Simulated: send activation code {code} to {user}\""
        );
        self.line(line, time, &head, &fields);
    }

    /// Another line, most of them traffic.
    fn noise(&mut self, line: &mut String, time: Timestamp) {
        match self.noise.below(100) {
            0..75 => self.traffic(line, time),
            75..92 => self.utm(line, time),
            _ => self.event(line, time),
        }
    }

    fn traffic(&mut self, line: &mut String, time: Timestamp) {
        self.session += 1;
        let (session, r) = (self.session, &mut self.noise);
        let (service, port, app) = r.pick(&[
            ("HTTPS", 443, "SSL"),
            ("HTTP", 80, "HTTP"),
            ("DNS", 53, "DNS"),
            ("QUIC", 443, "QUIC"),
            ("IMAPS", 993, "IMAPS"),
        ]);
        let country = r.pick(&[
            "Germany",
            "United States",
            "Ireland",
            "Netherlands",
            "France",
        ]);
        let action = r.pick(&["close", "close", "accept", "timeout", "deny"]);
        let [uuid_a, uuid_b, uuid_c] = [r.next(), r.next(), r.next()];
        let fields = format!(
            "srcip=10.{}.{}.{} srcport={} srcintf=\"internal\" srcintfrole=\"lan\" dstip=198.51.100.{} dstport={port} dstintf=\"wan1\" dstintfrole=\"wan\" \
             srccountry=\"Reserved\" dstcountry=\"{country}\" sessionid={session} proto={} action=\"{action}\" policyid={} policytype=\"policy\" \
             poluuid=\"{:08x}-{:04x}-51ed-{:04x}-{:012x}\" policyname=\"internet access\" service=\"{service}\" trandisp=\"snat\" transip=203.0.113.{} transport={} \
             appcat=\"unscanned\" app=\"{app}\" duration={} sentbyte={} rcvdbyte={} sentpkt={} rcvdpkt={} srchwvendor=\"Example\" osname=\"Windows\" \
             mastersrcmac=\"02:00:5e:{:02x}:{:02x}:{:02x}\" srcmac=\"02:00:5e:{:02x}:{:02x}:{:02x}\" srcserver=0",
            r.below(4),
            r.below(256),
            1 + r.below(254),
            1024 + r.below(60_000),
            1 + r.below(254),
            if service == "DNS" || service == "QUIC" {
                17
            } else {
                6
            },
            1 + r.below(200),
            uuid_a as u32,
            uuid_a >> 48,
            uuid_b as u16,
            uuid_b >> 16,
            1 + r.below(254),
            1024 + r.below(60_000),
            r.below(3600),
            r.below(1_000_000),
            r.below(50_000_000),
            r.below(2000),
            r.below(40_000),
            uuid_c as u8,
            uuid_c >> 8 & 255,
            uuid_c >> 16 & 255,
            uuid_c as u8,
            uuid_c >> 8 & 255,
            uuid_c >> 16 & 255,
        );
        let head = Head {
            pri: 189,
            logid: "0000000013",
            kind: "traffic",
            subtype: "forward",
            level: "notice",
        };
        self.line(line, time, &head, &fields);
    }

    fn utm(&mut self, line: &mut String, time: Timestamp) {
        self.session += 1;
        let (session, r) = (self.session, &mut self.noise);
        let from = format!(
            "srcip=10.0.{}.{} srcport={} srcintf=\"internal\" srcintfrole=\"lan\" dstip=198.51.100.{} dstport=443 dstintf=\"wan1\" dstintfrole=\"wan\" proto=6",
            r.below(256),
            1 + r.below(254),
            1024 + r.below(60_000),
            1 + r.below(254),
        );
        let host = r.pick(&["www.example.com", "cdn.example.net", "mail.example.org"]);
        let page = r.next();
        let (head, fields) = match r.below(3) {
            0 => (
                Head {
                    pri: 188,
                    logid: "0316013056",
                    kind: "utm",
                    subtype: "webfilter",
                    level: "warning",
                },
                format!(
                    "eventtype=\"ftgd_blk\" policyid={} sessionid={session} {from} service=\"HTTPS\" hostname=\"{host}\" profile=\"default\" action=\"blocked\" \
                     reqtype=\"direct\" url=\"https://{host}/{page:x}?from=user&msg=code\" sentbyte=517 rcvdbyte=0 direction=\"outgoing\" \
                     msg=\"URL belongs to a denied category in policy\" ratemethod=\"domain\" cat=26 catdesc=\"Malicious Websites\"",
                    1 + r.below(200),
                ),
            ),
            1 => (
                Head {
                    pri: 190,
                    logid: "1059028704",
                    kind: "utm",
                    subtype: "app-ctrl",
                    level: "information",
                },
                format!(
                    "eventtype=\"signature\" direction=\"outgoing\" policyid={} sessionid={session} {from} service=\"HTTPS\" applist=\"default\" action=\"pass\" \
                     appcat=\"Web.Client\" app=\"HTTPS.BROWSER\" hostname=\"{host}\" incidentserialno={} url=\"/\" msg=\"Web.Client: HTTPS.BROWSER\" apprisk=\"medium\"",
                    1 + r.below(200),
                    page as u32,
                ),
            ),
            _ => (
                Head {
                    pri: 190,
                    logid: "1501054802",
                    kind: "utm",
                    subtype: "dns",
                    level: "notice",
                },
                format!(
                    "eventtype=\"dns-response\" policyid={} sessionid={session} {from} profile=\"default\" xid={} qname=\"{host}\" qtype=\"A\" qtypeval=1 qclass=\"IN\" \
                     ipaddr=\"198.51.100.7\" msg=\"Domain is monitored\" action=\"pass\" cat=52 catdesc=\"Information Technology\"",
                    1 + r.below(200),
                    page as u16,
                ),
            ),
        };
        self.line(line, time, &head, &fields);
    }

    fn event(&mut self, line: &mut String, time: Timestamp) {
        let r = &mut self.noise;
        let admin = format!("10.0.0.{}", 1 + r.below(254));
        let number = r.next() as u32;
        let (logid, subtype, level, fields) = match r.below(4) {
            0 => (
                "0100032001",
                "system",
                "information",
                format!(
                    "logdesc=\"Admin login successful\" sn=\"{number}\" user=\"admin\" ui=\"https({admin})\" method=\"https\" srcip={admin} dstip=10.0.0.1 \
                     action=\"login\" status=\"success\" reason=\"none\" profile=\"super_admin\" msg=\"Administrator admin logged in successfully from https({admin})\""
                ),
            ),
            1 => (
                "0100044547",
                "system",
                "information",
                format!(
                    "logdesc=\"Object attribute configured\" user=\"admin\" ui=\"GUI({admin})\" action=\"Edit\" cfgtid={number} cfgpath=\"firewall.policy\" \
                     cfgobj=\"8\" cfgattr=\"comments[simulated]\" msg=\"Edit firewall.policy 8\""
                ),
            ),
            2 => (
                "0101039424",
                "vpn",
                "information",
                format!(
                    "logdesc=\"SSL VPN tunnel up\" action=\"tunnel-up\" tunneltype=\"ssl-web\" tunnelid={number} remip=203.0.113.9 user=\"erin\" group=\"vpn\" \
                     dst_host=\"N/A\" reason=\"login successfully\" msg=\"SSL tunnel established\""
                ),
            ),
            _ => (
                "0102043008",
                "user",
                "notice",
                format!(
                    "logdesc=\"Authentication success\" srcip={admin} dstip=10.0.0.1 policyid=1 interface=\"internal\" user=\"frank\" group=\"staff\" \
                     authproto=\"HTTPS({admin})\" action=\"authentication\" status=\"success\" reason=\"N/A\" msg=\"User frank succeeded in authentication\""
                ),
            ),
        };
        let head = Head {
            pri: if level == "notice" { 189 } else { 190 },
            logid,
            kind: "event",
            subtype,
            level,
        };
        self.line(line, time, &head, &fields);
    }

    fn line(&self, line: &mut String, time: Timestamp, head: &Head, fields: &str) {
        match self.format {
            Format::Kv => self.kv(line, time, head, fields),
        }
    }

    fn kv(&self, line: &mut String, time: Timestamp, head: &Head, fields: &str) {
        let Head {
            pri,
            logid,
            kind,
            subtype,
            level,
        } = head;
        let local = time.to_zoned_datetime(self.zone.clone());
        let date = local.strftime("%Y-%m-%d");
        let clock = local.strftime("%H:%M:%S");
        let tz = local.strftime("%z");
        let nanos = time.as_nanosecond();
        let device = format!("devname=\"{DEVICE_NAME}\" devid=\"{DEVICE_ID}\"");
        let kind = format!(
            "logid=\"{logid}\" type=\"{kind}\" subtype=\"{subtype}\" level=\"{level}\" vd=\"root\""
        );
        let written = match self.style {
            Style::Seconds => write!(
                line,
                "<{pri}>date={date} time={clock} {device} {kind} eventtime={} {fields}",
                time.as_second()
            ),
            Style::LogIdFirst => write!(
                line,
                "<{pri}>date={date} time={clock} {device} {kind} eventtime={nanos} tz=\"{tz}\" {fields}"
            ),
            Style::TimeFirst => write!(
                line,
                "<{pri}>date={date} time={clock} {device} eventtime={nanos} tz=\"{tz}\" {kind} {fields}"
            ),
        };
        written.expect("writing to a String");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_target_is_a_transport_a_host_and_a_port() {
        for (text, transport, host, port) in [
            ("udp://127.0.0.1:514", Transport::Udp, "127.0.0.1", 514),
            ("tcp://[::1]:6514", Transport::TcpCounted, "::1", 6514),
            (
                "tcp+lf://relay.example.com:514/",
                Transport::TcpLines,
                "relay.example.com",
                514,
            ),
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!(
                (target.transport, target.host.as_str(), target.port),
                (transport, host, port)
            );
            assert_eq!(target.to_string(), text.trim_end_matches('/'));
        }
        for (text, why) in [
            ("127.0.0.1:514", "udp://127.0.0.1:514"),
            ("http://a:1", "write udp://, tcp://, tcp+lf://"),
            ("udp://:514", "no host"),
            ("udp://a", "no port"),
            ("udp://[::1]", "no port"),
            ("udp://[::1:5", "missing"),
            ("udp://::1:514", "brackets"),
            ("udp://a:x", "no port from 1"),
            ("udp://a:0", "no port from 1"),
            ("udp://a:65536", "no port from 1"),
        ] {
            let said = text.parse::<Target>().unwrap_err();
            assert!(said.contains(why), "{said}");
        }
        assert!("syslog".parse::<Format>().unwrap_err().contains("write kv"));
    }

    #[test]
    fn codes_have_the_shape_are_distinct_and_follow_from_the_seed() {
        let codes = |seed| -> Vec<String> {
            let mut random = Random(seed);
            (0..10_000)
                .map(|_| activation_code(random.next()))
                .collect()
        };
        let of_seven = codes(7);
        assert_eq!(of_seven, codes(7));
        assert_ne!(of_seven[0], codes(8)[0]);
        assert_eq!(of_seven.iter().collect::<HashSet<_>>().len(), 10_000);
        for code in &of_seven {
            assert_eq!(code.len(), 16);
            assert!(code.starts_with("EEI") && (b'A'..=b'P').contains(&code.as_bytes()[3]));
            assert!(
                code.bytes()
                    .all(|b| b.is_ascii_uppercase() || (b'2'..=b'7').contains(&b))
            );
        }
        // 2110 e98a9b591a41a591, as RFC 4648 writes it.
        assert_eq!(activation_code(0xe98a_9b59_1a41_a591), "EEIOTCU3LENEDJMR");
    }

    #[test]
    fn each_version_writes_its_own_order_and_unit() {
        let time: Timestamp = "2026-11-23T10:22:31.5Z".parse().unwrap();
        let line = |style| {
            let mut device = Device {
                style,
                format: Format::Kv,
                codes: Random(1),
                noise: Random(2),
                zone: TimeZone::UTC,
                session: 0,
            };
            let mut line = String::new();
            device.activation(&mut line, time, "al\"ice");
            line
        };
        let start = "<189>date=2026-11-23 time=10:22:31 devname=\"SIMULATED-FGT\" devid=\"FGTSIM0000000001\" ";
        let kind =
            "logid=\"0100038412\" type=\"event\" subtype=\"system\" level=\"notice\" vd=\"root\"";
        for (style, rest) in [
            (
                Style::Seconds,
                format!("{kind} eventtime=1795429351 logdesc"),
            ),
            (
                Style::LogIdFirst,
                format!("{kind} eventtime=1795429351500000000 tz=\"+0000\" logdesc"),
            ),
            (
                Style::TimeFirst,
                format!("eventtime=1795429351500000000 tz=\"+0000\" {kind} logdesc"),
            ),
        ] {
            let line = line(style);
            assert!(line.starts_with(&format!("{start}{rest}")), "{line}");
            assert!(line.contains("user=\"al\\\"ice\""));
        }
    }

    #[test]
    fn noise_looks_like_a_firewalls_log() {
        let mut device = Device {
            style: Style::TimeFirst,
            format: Format::Kv,
            codes: Random(1),
            noise: Random(2),
            zone: TimeZone::UTC,
            session: 0,
        };
        let (mut traffic, mut kinds) = (Vec::new(), HashSet::new());
        for _ in 0..2000 {
            let mut line = String::new();
            device.noise(&mut line, Timestamp::UNIX_EPOCH);
            assert!(!line.contains("38412") && !line.contains('\n'), "{line}");
            assert!(line.contains(DEVICE_ID));
            let kind = line
                .split(" type=\"")
                .nth(1)
                .unwrap()
                .split('"')
                .next()
                .unwrap();
            kinds.insert(kind.to_owned());
            if kind == "traffic" {
                traffic.push(line.len());
            }
        }
        assert_eq!(kinds.len(), 3);
        let mean = traffic.iter().sum::<usize>() / traffic.len();
        assert!((760..=840).contains(&mean), "{mean}");
    }
}
