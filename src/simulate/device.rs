//! The simulated firewall: the fields that begin every log, and the activation events.

use std::fmt::Write;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::format::Format;
use super::noise::Noise;
use super::random::Random;

/// What the simulated device calls itself.
pub const DEVICE_NAME: &str = "SIMULATED-FGT";

/// Its serial number.
pub const DEVICE_ID: &str = "FGTSIM0000000001";

/// The versions that can be simulated, and how each writes a line.
pub(super) const FORTIOS: [(&str, Style); 7] = [
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
pub(super) enum Style {
    /// `logid` before `eventtime`, which counts seconds; no `tz`.
    Seconds,
    /// `logid` before `eventtime`, which counts nanoseconds.
    LogIdFirst,
    /// `eventtime` before `logid`.
    TimeFirst,
}

/// What kind of log a line is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) logid: &'static str,
    pub(super) kind: &'static str,
    pub(super) subtype: &'static str,
    pub(super) level: &'static str,
}

impl Head {
    /// The facility is local7 (23), as a FortiGate has it by default.
    fn priority(&self) -> u8 {
        let severity = match self.level {
            "alert" => 1,
            "critical" => 2,
            "error" => 3,
            "warning" => 4,
            "notice" => 5,
            _ => 6,
        };
        23 * 8 + severity
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

/// A firewall with its log.
pub(super) struct Device {
    style: Style,
    format: Format,
    codes: Random,
    noise: Noise,
    zone: TimeZone,
}

impl Device {
    pub(super) fn new(style: Style, format: Format, seed: u64, zone: TimeZone) -> Self {
        Self {
            style,
            format,
            codes: Random(seed),
            // Another sequence, so that the noise does not change the codes.
            noise: Noise::new(seed ^ 0x6e6f_6973_6500_0000),
            zone,
        }
    }

    pub(super) fn activation(&mut self, line: &mut String, time: Timestamp, user: &str) {
        let code = activation_code(self.codes.next());
        let head = Head {
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

    /// Any other line.
    pub(super) fn noise(&mut self, line: &mut String, time: Timestamp) {
        let mut fields = String::with_capacity(1024);
        let head = self.noise.next(&mut fields);
        self.line(line, time, &head, &fields);
    }

    fn line(&self, line: &mut String, time: Timestamp, head: &Head, fields: &str) {
        if self.format == Format::Kv {
            return self.kv(line, time, head, fields);
        }
        let mut kv = String::with_capacity(1024);
        self.kv(&mut kv, time, head, fields);
        self.format.write(&kv, line);
    }

    fn kv(&self, line: &mut String, time: Timestamp, head: &Head, fields: &str) {
        let Head {
            logid,
            kind,
            subtype,
            level,
        } = head;
        let pri = head.priority();
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
            let mut device = Device::new(style, Format::Kv, 1, TimeZone::UTC);
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
        let mut device = Device::new(Style::TimeFirst, Format::Kv, 1, TimeZone::UTC);
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
        traffic.sort_unstable();
        let median = traffic[traffic.len() / 2];
        assert!((740..=820).contains(&median), "{median}");
    }
}
