//! What is sent: a FortiGate's traffic log, an activation now and then, and lines that only look like one. All made up.

use std::fmt::Write as _;

/// The length of a FortiGate's traffic log.
pub const LINE_BYTES: usize = 790;
/// One message in so many is an activation.
pub const ONE_IN: usize = 10_000;

/// A traffic log of exactly [`LINE_BYTES`].
pub fn traffic(n: usize) -> String {
    let mut line = format!(
        "<189>date=2026-11-23 time=10:22:31 devname=\"BRANCH-12-FGT\" devid=\"FGT60FTK20000001\" eventtime=1795429351{:09} tz=\"+0000\" \
         logid=\"0000000013\" type=\"traffic\" subtype=\"forward\" level=\"notice\" vd=\"root\" srcip=10.20.{}.{} srcport={} \
         srcintf=\"internal\" srcintfrole=\"lan\" dstip=198.51.100.{} dstport=443 dstintf=\"wan1\" dstintfrole=\"wan\" \
         srccountry=\"Reserved\" dstcountry=\"Germany\" sessionid={} proto=6 action=\"close\" policyid={} policytype=\"policy\" \
         poluuid=\"c2d460aa-fe6f-51ee-9505-41b5117dfdd4\" service=\"HTTPS\" trandisp=\"snat\" transip=203.0.113.7 transport={} \
         appcat=\"unscanned\" duration={} sentbyte={} rcvdbyte={} sentpkt=12 rcvdpkt=15 dsthwvendor=\"Example\" \
         masterdstmac=\"00:00:5e:00:53:01\" dstmac=\"00:00:5e:00:53:01\" dstserver=0 hostname=\"",
        n * 7919 % 1_000_000_000,
        n % 200,
        n * 31 % 250,
        1024 + n * 17 % 60_000,
        n * 13 % 250,
        1_000_000 + n,
        n % 60,
        1024 + n * 29 % 60_000,
        n % 300,
        n * 1237 % 100_000,
        n * 7_919 % 1_000_000,
    );
    while line.len() < LINE_BYTES - 1 {
        line.push(char::from(b'a' + (line.len() * 7 + n) as u8 % 26));
    }
    line.truncate(LINE_BYTES - 1);
    line.push('"');
    line
}

/// The `n`th activation: another person, another code, another second.
pub fn activation(n: usize) -> String {
    let seconds = jiff::Timestamp::now().as_second() - 3600 + (n % 3000) as i64;
    format!(
        "<189>date=2026-11-23 time=10:22:31 devname=\"BRANCH-12-FGT\" devid=\"FGT60FTK20000001\" eventtime={seconds}{:09} tz=\"+0000\" \
         logid=\"0100038412\" type=\"event\" subtype=\"system\" level=\"notice\" vd=\"root\" logdesc=\"Token activation code sent\" \
         user=\"user{n:06}\" action=\"send-activation-code\" msg=\"Activation code {} was sent to user{n:06}\"",
        n % 1_000_000_000,
        code(n),
    )
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

/// Web-filter lines whose quoted values spell a whole activation: what somebody on the network can write into a request.
pub fn forged() -> Vec<String> {
    ["url", "agent", "referralurl", "forwardedfor", "hostname", "user", "unauthuser", "keyword", "filename", "msg"]
        .iter()
        .flat_map(|field| (0..10).map(move |n| (field, n)))
        .map(|(field, n)| {
            let event = activation(900_000 + n);
            let spelt = event.trim_start_matches("<189>").replace('"', "\\\"");
            let mut line = format!(
                "<190>date=2026-11-23 time=10:22:31 devname=\"BRANCH-12-FGT\" devid=\"FGT60FTK20000001\" eventtime=1795429351{n:09} tz=\"+0000\" \
                 logid=\"0316013056\" type=\"utm\" subtype=\"webfilter\" eventtype=\"ftgd_blk\" level=\"warning\" vd=\"root\" policyid=1"
            );
            let value = if n % 2 == 0 { spelt } else { format!("/?q=\\\" {spelt}") };
            let _written = write!(line, " {field}=\"{value}\" action=\"blocked\" cat=26");
            line
        })
        .collect()
}
