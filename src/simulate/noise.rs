//! The other lines of a firewall: traffic, what its filters saw, and its own events, in about the shares and lengths of a real one's.
//!
//! The fields are those of FortiOS 7.x in its order. Names, addresses and numbers are made up (RFC 5737, RFC 2606).

use std::fmt::Write;

use super::device::Head;
use super::random::Random;

/// Writes the fields of one kind of line.
type Kind = fn(&mut Noise, &mut String) -> Head;

/// How often each kind of line comes in a thousand, and what writes its fields.
const KINDS: [(u64, Kind); 20] = [
    (640, Noise::forward),
    (70, Noise::denied),
    (60, Noise::local),
    (70, Noise::webfilter),
    (30, Noise::blocked_page),
    (60, Noise::app_ctrl),
    (35, Noise::dns),
    (4, Noise::ips),
    (6, Noise::antivirus),
    (7, Noise::ssl),
    (2, Noise::admin_login),
    (1, Noise::admin_login_failed),
    (1, Noise::changed),
    (4, Noise::performance),
    (3, Noise::lease),
    (1, Noise::ipsec),
    (2, Noise::tunnel_up),
    (1, Noise::vpn_login_failed),
    (2, Noise::user),
    (1, Noise::user_failed),
];

/// An application as the logs name it: service, port, protocol, application, its category and its risk.
type App = (
    &'static str,
    u16,
    u8,
    &'static str,
    &'static str,
    &'static str,
);

const APPS: [App; 8] = [
    ("HTTPS", 443, 6, "HTTPS.BROWSER", "Web.Client", "medium"),
    ("HTTPS", 443, 6, "SSL_TLSv1.3", "Network.Service", "medium"),
    (
        "HTTPS",
        443,
        6,
        "Microsoft.365.Portal",
        "Collaboration",
        "elevated",
    ),
    (
        "HTTP",
        80,
        6,
        "HTTP.BROWSER_Firefox",
        "Web.Client",
        "medium",
    ),
    ("QUIC", 443, 17, "QUIC", "Network.Service", "low"),
    ("DNS", 53, 17, "DNS", "Network.Service", "elevated"),
    ("IMAPS", 993, 6, "IMAPS", "Email", "medium"),
    ("NTP", 123, 17, "NTP", "Network.Service", "elevated"),
];

const HOSTS: [&str; 6] = [
    "www.example.com",
    "cdn.example.net",
    "mail.example.org",
    "telemetry.example.com",
    "updates.vendor.example",
    "static-assets.eu-west-1.cdn.example.net",
];

const AGENTS: [&str; 3] = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:132.0) Gecko/20100101 Firefox/132.0",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 Safari/605.1.15",
    "curl/8.10.1",
];

const COUNTRIES: [&str; 6] = [
    "Germany",
    "United States",
    "Ireland",
    "Netherlands",
    "France",
    "Japan",
];

const USERS: [&str; 6] = ["ABEL", "dora", "emil", "LENA", "EXAMPLE\\\\oskar", "vera"];

/// The lines of one seed.
pub(super) struct Noise {
    random: Random,
    session: u64,
}

/// Appends to a line; a `String` takes everything.
macro_rules! put {
    ($out:expr, $($text:tt)*) => {
        write!($out, $($text)*).expect("writing to a String")
    };
}

impl Noise {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            session: 183_774_000,
        }
    }

    /// Appends the fields of the next line.
    pub(super) fn next(&mut self, out: &mut String) -> Head {
        let mut at = self.random.below(1000);
        for (share, write) in KINDS {
            match at.checked_sub(share) {
                Some(rest) => at = rest,
                None => return write(self, out),
            }
        }
        self.forward(out)
    }

    fn session(&mut self) -> u64 {
        self.session += 1 + self.random.below(9);
        self.session
    }

    fn uuid(&mut self) -> String {
        let (a, b) = (self.random.next(), self.random.next());
        format!(
            "{:08x}-{:04x}-51ef-{:04x}-{:012x}",
            a as u32,
            (a >> 32) as u16,
            (a >> 48) as u16,
            b >> 16
        )
    }

    fn mac(&mut self) -> String {
        let [_, _, a, b, c, d, ..] = self.random.next().to_be_bytes();
        format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
    }

    fn inside(&mut self) -> String {
        let r = &mut self.random;
        format!("10.20.{}.{}", r.below(16), 1 + r.below(254))
    }

    fn outside(&mut self) -> String {
        let r = &mut self.random;
        format!(
            "{}.{}",
            r.pick(&["198.51.100", "203.0.113", "192.0.2"]),
            1 + r.below(254)
        )
    }

    fn port(&mut self) -> u64 {
        1024 + self.random.below(64_000)
    }

    fn path(&mut self) -> String {
        let r = &mut self.random;
        let page = r.next();
        match r.below(5) {
            0 => "/".to_owned(),
            1 => format!("/assets/app.{:08x}.js", page as u32),
            2 => format!("/search?q=user+msg&lang=en&id={page:x}"),
            3 => format!(
                "/api/v1/items/{}?from=2026-11-01&to=2026-11-30&logid={}",
                page as u16, page as u8
            ),
            _ => format!("/img/{page:016x}.webp?w=1280&q=75"),
        }
    }

    fn forward(&mut self, out: &mut String) -> Head {
        let (service, port, proto, app, category, risk) = self.random.pick(&APPS);
        let action = self.random.pick(&[
            "close",
            "close",
            "close",
            "accept",
            "timeout",
            "client-rst",
            "server-rst",
        ]);
        let (src, spt, dst, session) = (self.inside(), self.port(), self.outside(), self.session());
        let (policy, nat, nat_port) = (1 + self.random.below(200), self.outside(), self.port());
        let [uuid_a, uuid_b, uuid_c] = [self.uuid(), self.uuid(), self.uuid()];
        let mac = self.mac();
        let r = &mut self.random;
        put!(
            out,
            "srcip={src} srcport={spt} srcintf=\"internal\" srcintfrole=\"lan\" dstip={dst} dstport={port} dstintf=\"wan1\" dstintfrole=\"wan\""
        );
        if r.percent(10) {
            put!(out, " srcuuid=\"{uuid_a}\" dstuuid=\"{uuid_b}\"");
        }
        let country = r.pick(&COUNTRIES);
        put!(
            out,
            " srccountry=\"Reserved\" dstcountry=\"{country}\" sessionid={session} proto={proto} action=\"{action}\" policyid={policy} policytype=\"policy\" \
             poluuid=\"{uuid_c}\" policyname=\"lan to internet\""
        );
        if r.percent(25) {
            let user = r.pick(&USERS);
            put!(out, " user=\"{user}\" group=\"staff\" authserver=\"dc1\"");
        }
        put!(
            out,
            " service=\"{service}\" trandisp=\"snat\" transip={nat} transport={nat_port} appid={} app=\"{app}\" appcat=\"{category}\" apprisk=\"{risk}\" applist=\"default\" \
             duration={} sentbyte={} rcvdbyte={} sentpkt={} rcvdpkt={}",
            15_000 + r.below(40_000),
            r.below(3600),
            r.below(1_000_000),
            r.below(50_000_000),
            r.below(2000),
            r.below(40_000),
        );
        if r.percent(30) {
            put!(out, " utmaction=\"allow\" countapp=1");
        }
        if r.percent(35) {
            put!(
                out,
                " srchwvendor=\"{}\" osname=\"{}\" mastersrcmac=\"{mac}\" srcmac=\"{mac}\" srcserver=0",
                r.pick(&["Example", "Sample Devices", "Dell"]),
                r.pick(&["Windows", "macOS", "Linux", "iOS"]),
            );
        }
        Head {
            logid: "0000000013",
            kind: "traffic",
            subtype: "forward",
            level: "notice",
        }
    }

    fn denied(&mut self, out: &mut String) -> Head {
        let (src, spt, dst, dpt, session) = (
            self.outside(),
            self.port(),
            self.inside(),
            self.port(),
            self.session(),
        );
        let country = self.random.pick(&COUNTRIES);
        put!(
            out,
            "srcip={src} srcport={spt} srcintf=\"wan1\" srcintfrole=\"wan\" dstip={dst} dstport={dpt} dstintf=\"internal\" dstintfrole=\"lan\" \
             srccountry=\"{country}\" dstcountry=\"Reserved\" sessionid={session} proto=6 action=\"deny\" policyid=0 policytype=\"policy\" \
             service=\"tcp/{dpt}\" trandisp=\"noop\" app=\"tcp/{dpt}\" duration=0 sentbyte=0 rcvdbyte=0 sentpkt=0 rcvdpkt=0 appcat=\"unscanned\" \
             crscore=30 craction=131072 crlevel=\"high\""
        );
        Head {
            logid: "0000000013",
            kind: "traffic",
            subtype: "forward",
            level: "notice",
        }
    }

    fn local(&mut self, out: &mut String) -> Head {
        let (src, spt, dst, session) =
            (self.outside(), self.port(), self.outside(), self.session());
        let country = self.random.pick(&COUNTRIES);
        put!(
            out,
            "srcip={src} srcport={spt} srcintf=\"wan1\" srcintfrole=\"wan\" dstip={dst} dstport=161 dstintf=\"root\" dstintfrole=\"undefined\" \
             srccountry=\"{country}\" dstcountry=\"Netherlands\" sessionid={session} proto=17 action=\"deny\" policyid=0 policytype=\"local-in-policy\" \
             service=\"SNMP\" trandisp=\"noop\" app=\"SNMP\" duration=0 sentbyte=0 rcvdbyte=0 sentpkt=0 rcvdpkt=0 appcat=\"unscanned\""
        );
        Head {
            logid: "0001000014",
            kind: "traffic",
            subtype: "local",
            level: "notice",
        }
    }

    /// Where a session that a filter saw came from and went to.
    fn session_fields(&mut self, out: &mut String) {
        let (src, spt, dst, session) = (self.inside(), self.port(), self.outside(), self.session());
        let (policy, uuid) = (1 + self.random.below(200), self.uuid());
        put!(
            out,
            "policyid={policy} poluuid=\"{uuid}\" policytype=\"policy\" sessionid={session} srcip={src} srcport={spt} srccountry=\"Reserved\" srcintf=\"internal\" \
             srcintfrole=\"lan\" dstip={dst} dstport=443 dstintf=\"wan1\" dstintfrole=\"wan\" proto=6 service=\"HTTPS\""
        );
    }

    fn webfilter(&mut self, out: &mut String) -> Head {
        put!(out, "eventtype=\"ftgd_allow\" ");
        self.session_fields(out);
        let (host, agent, path) = (
            self.random.pick(&HOSTS),
            self.random.pick(&AGENTS),
            self.path(),
        );
        put!(
            out,
            " hostname=\"{host}\" profile=\"default\" action=\"passthrough\" reqtype=\"referral\" url=\"https://{host}{path}\" referralurl=\"https://{host}/\" \
             agent=\"{agent}\" sentbyte={} rcvdbyte={} direction=\"outgoing\" msg=\"URL belongs to an allowed category in policy\" ratemethod=\"domain\" cat=52 \
             catdesc=\"Information Technology\"",
            self.random.below(4000),
            self.random.below(90_000),
        );
        Head {
            logid: "0317013312",
            kind: "utm",
            subtype: "webfilter",
            level: "notice",
        }
    }

    fn blocked_page(&mut self, out: &mut String) -> Head {
        put!(out, "eventtype=\"ftgd_blk\" ");
        self.session_fields(out);
        let (host, path) = (self.random.pick(&HOSTS), self.path());
        put!(
            out,
            " hostname=\"{host}\" profile=\"default\" action=\"blocked\" reqtype=\"direct\" url=\"https://{host}{path}\" sentbyte=517 rcvdbyte=0 \
             direction=\"outgoing\" msg=\"URL belongs to a denied category in policy\" ratemethod=\"domain\" cat=26 catdesc=\"Malicious Websites\" \
             crscore=30 craction=4194304 crlevel=\"high\""
        );
        Head {
            logid: "0316013056",
            kind: "utm",
            subtype: "webfilter",
            level: "warning",
        }
    }

    fn app_ctrl(&mut self, out: &mut String) -> Head {
        let (_, _, _, app, category, risk) = self.random.pick(&APPS);
        put!(out, "eventtype=\"signature\" direction=\"outgoing\" ");
        self.session_fields(out);
        let (host, path) = (self.random.pick(&HOSTS), self.path());
        put!(
            out,
            " applist=\"default\" action=\"pass\" appid={} appcat=\"{category}\" app=\"{app}\" hostname=\"{host}\" incidentserialno={} url=\"{path}\" \
             msg=\"{category}: {app}\" apprisk=\"{risk}\" scertcname=\"{host}\" scertissuer=\"Example TLS CA 1\"",
            15_000 + self.random.below(40_000),
            self.random.next() as u32,
        );
        Head {
            logid: "1059028704",
            kind: "utm",
            subtype: "app-ctrl",
            level: "information",
        }
    }

    fn dns(&mut self, out: &mut String) -> Head {
        put!(out, "eventtype=\"dns-response\" ");
        self.session_fields(out);
        let (host, one, two) = (self.random.pick(&HOSTS), self.outside(), self.outside());
        put!(
            out,
            " profile=\"default\" xid={} qname=\"{host}\" qtype=\"A\" qtypeval=1 qclass=\"IN\" ipaddr=\"{one}, {two}\" msg=\"Domain is monitored\" \
             action=\"pass\" cat=52 catdesc=\"Information Technology\"",
            self.random.next() as u16,
        );
        Head {
            logid: "1501054802",
            kind: "utm",
            subtype: "dns",
            level: "notice",
        }
    }

    /// The only lines in which a FortiGate is known to escape quotes.
    fn ips(&mut self, out: &mut String) -> Head {
        put!(out, "eventtype=\"signature\" severity=\"high\" ");
        self.session_fields(out);
        let (host, from) = (self.random.pick(&HOSTS), self.outside());
        put!(
            out,
            " attack=\"HTTP.Header.SQL.Injection\" direction=\"outgoing\" attackid={} profile=\"default\" ref=\"http://www.example.com/ids/VID12345\" \
             hostname=\"{host}\" url=\"/?id=1%27+or+1=1--\" forwardedfor=\"{from}, x.xff\\\"></script><script>alert(1);</script>\" incidentserialno={} \
             action=\"dropped\" msg=\"web_misc: HTTP.Header.SQL.Injection\" crscore=30 craction=8192 crlevel=\"high\"",
            10_000 + self.random.below(40_000),
            self.random.next() as u32,
        );
        Head {
            logid: "0419016384",
            kind: "utm",
            subtype: "ips",
            level: "alert",
        }
    }

    fn antivirus(&mut self, out: &mut String) -> Head {
        put!(out, "eventtype=\"analytics\" ");
        self.session_fields(out);
        let (host, sum) = (
            self.random.pick(&HOSTS),
            [self.random.next(), self.random.next()],
        );
        put!(
            out,
            " msg=\"File submitted to Sandbox.\" action=\"analytics\" direction=\"incoming\" filename=\"sample\\\\report.xls\" quarskip=\"Quarantine-disabled\" \
             url=\"https://{host}/report.xls\" profile=\"default\" analyticscksum=\"{:016x}{:016x}\" analyticssubmit=\"true\"",
            sum[0],
            sum[1],
        );
        Head {
            logid: "0201009233",
            kind: "utm",
            subtype: "virus",
            level: "notice",
        }
    }

    fn ssl(&mut self, out: &mut String) -> Head {
        put!(out, "eventtype=\"ssl-anomaly\" ");
        self.session_fields(out);
        let host = self.random.pick(&HOSTS);
        put!(
            out,
            " profile=\"certificate-inspection\" action=\"blocked\" eventsubtype=\"certificate-blocked\" hostname=\"{host}\" \
             msg=\"Server certificate blocked\" certhash=\"{:016x}\"",
            self.random.next(),
        );
        Head {
            logid: "1700062300",
            kind: "utm",
            subtype: "ssl",
            level: "warning",
        }
    }

    fn admin_login(&mut self, out: &mut String) -> Head {
        let (from, sn) = (self.inside(), self.random.next() as u32);
        put!(
            out,
            "logdesc=\"Admin login successful\" sn=\"{sn}\" user=\"admin\" ui=\"https({from})\" method=\"https\" srcip={from} dstip=10.20.0.1 action=\"login\" \
             status=\"success\" reason=\"none\" profile=\"super_admin\" msg=\"Administrator admin logged in successfully from https({from})\""
        );
        event("0100032001", "system", "information")
    }

    fn admin_login_failed(&mut self, out: &mut String) -> Head {
        let from = self.outside();
        put!(
            out,
            "logdesc=\"Admin login failed\" sn=\"0\" user=\"root\" ui=\"ssh({from})\" method=\"ssh\" srcip={from} dstip=203.0.113.9 action=\"login\" status=\"failed\" \
             reason=\"name_invalid\" msg=\"Administrator root login failed from ssh({from}) because of invalid user name\""
        );
        event("0100032002", "system", "alert")
    }

    fn changed(&mut self, out: &mut String) -> Head {
        let (from, id, policy) = (
            self.inside(),
            self.random.next() as u32,
            self.random.below(200),
        );
        put!(
            out,
            "logdesc=\"Object attribute configured\" user=\"admin\" ui=\"GUI({from})\" action=\"Edit\" cfgtid={id} cfgpath=\"firewall.policy\" cfgobj=\"{policy}\" \
             cfgattr=\"comments[simulated->changed]\" msg=\"Edit firewall.policy {policy}\""
        );
        event("0100044547", "system", "information")
    }

    fn performance(&mut self, out: &mut String) -> Head {
        let r = &mut self.random;
        let (cpu, mem, sessions, rate) =
            (r.below(60), 20 + r.below(50), r.below(90_000), r.below(900));
        put!(
            out,
            "logdesc=\"System performance statistics\" action=\"perf-stats\" cpu={cpu} mem={mem} totalsession={sessions} disk=1 bandwidth=\"{}/{}\" setuprate={rate} \
             disklograte=0 fazlograte=0 freediskstorage=24576 sysuptime={} waninfo=\"N/A\" msg=\"Performance statistics: average CPU: {cpu}, memory:  {mem}, \
             concurrent sessions:  {sessions}, setup-rate: {rate}\"",
            r.below(900_000),
            r.below(900_000),
            r.below(9_000_000),
        );
        event("0100040704", "system", "notice")
    }

    fn lease(&mut self, out: &mut String) -> Head {
        let (ip, mac) = (self.inside(), self.mac());
        put!(
            out,
            "logdesc=\"DHCP Ack log\" interface=\"internal\" dhcp_msg=\"Ack\" mac=\"{mac}\" ip={ip} lease=86400 hostname=\"laptop-{}\" msg=\"DHCP server sends a DHCPACK\"",
            self.random.below(900),
        );
        event("0100026001", "system", "information")
    }

    fn ipsec(&mut self, out: &mut String) -> Head {
        let (peer, id) = (self.outside(), self.random.next() as u32);
        put!(
            out,
            "logdesc=\"IPsec tunnel statistics\" msg=\"IPsec tunnel statistics\" action=\"tunnel-stats\" remip={peer} locip=203.0.113.9 remport=500 locport=500 outintf=\"wan1\" \
             cookies=\"{:016x}/{:016x}\" user=\"N/A\" group=\"N/A\" vpntunnel=\"branch\" tunnelip=N/A tunnelid={id} tunneltype=\"ipsec\" duration={} sentbyte={} rcvdbyte={} \
             nextstat=600",
            self.random.next(),
            self.random.next(),
            self.random.below(90_000),
            self.random.below(9_000_000),
            self.random.below(9_000_000),
        );
        event("0101037141", "vpn", "notice")
    }

    fn tunnel_up(&mut self, out: &mut String) -> Head {
        let (from, id, user) = (
            self.outside(),
            self.random.next() as u32,
            self.random.pick(&USERS),
        );
        put!(
            out,
            "logdesc=\"SSL VPN tunnel up\" action=\"tunnel-up\" tunneltype=\"ssl-web\" tunnelid={id} remip={from} user=\"{user}\" group=\"vpn\" dst_host=\"N/A\" \
             reason=\"login successfully\" msg=\"SSL tunnel established\""
        );
        event("0101039424", "vpn", "information")
    }

    fn vpn_login_failed(&mut self, out: &mut String) -> Head {
        let from = self.outside();
        put!(
            out,
            "logdesc=\"SSL VPN login fail\" action=\"ssl-login-fail\" tunneltype=\"ssl-web\" tunnelid=0 remip={from} user=\"test{}\" group=\"N/A\" dst_host=\"N/A\" \
             reason=\"sslvpn_login_unknown_user\" msg=\"SSL user failed to logged in\"",
            self.random.below(100),
        );
        event("0101039426", "vpn", "alert")
    }

    fn user(&mut self, out: &mut String) -> Head {
        let (from, user) = (self.inside(), self.random.pick(&USERS));
        put!(
            out,
            "logdesc=\"Authentication success\" srcip={from} dstip=10.20.0.1 policyid=1 interface=\"internal\" user=\"{user}\" group=\"staff\" authproto=\"HTTPS({from})\" \
             action=\"authentication\" status=\"success\" reason=\"N/A\" msg=\"User {user} succeeded in authentication\""
        );
        event("0102043008", "user", "notice")
    }

    fn user_failed(&mut self, out: &mut String) -> Head {
        let (from, user) = (self.inside(), self.random.pick(&USERS));
        put!(
            out,
            "logdesc=\"Authentication failed\" srcip={from} dstip=10.20.0.1 policyid=1 interface=\"internal\" user=\"{user}\" group=\"N/A\" authproto=\"HTTPS({from})\" \
             action=\"authentication\" status=\"failure\" reason=\"N/A\" msg=\"User {user} failed in authentication\""
        );
        event("0102043009", "user", "notice")
    }
}

fn event(logid: &'static str, subtype: &'static str, level: &'static str) -> Head {
    Head {
        logid,
        kind: "event",
        subtype,
        level,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_shares_add_up() {
        assert_eq!(KINDS.iter().map(|(share, _)| share).sum::<u64>(), 1000);
    }

    #[test]
    fn a_seed_repeats_its_lines_and_they_are_all_different() {
        let lines = |seed| -> Vec<String> {
            let mut noise = Noise::new(seed);
            (0..500)
                .map(|_| {
                    let mut out = String::new();
                    noise.next(&mut out);
                    out
                })
                .collect()
        };
        let of_seven = lines(7);
        assert_eq!(of_seven, lines(7));
        assert_ne!(of_seven, lines(8));
        let distinct: std::collections::HashSet<_> = of_seven.iter().collect();
        assert!(distinct.len() > 490, "{}", distinct.len());
    }

    #[test]
    fn every_kind_of_log_comes_up() {
        let mut noise = Noise::new(1);
        let mut kinds = BTreeMap::new();
        for _ in 0..20_000 {
            let head = noise.next(&mut String::new());
            *kinds
                .entry((head.kind, head.subtype, head.logid))
                .or_insert(0) += 1;
        }
        // Two kinds of forward traffic share an id.
        assert_eq!(kinds.len(), KINDS.len() - 1, "{kinds:?}");
    }
}
