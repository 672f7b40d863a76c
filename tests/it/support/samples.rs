//! Synthetic FortiGate log lines. The wording of real ones is not known; the shape of the code is.

use base64::Engine;
use jiff::Timestamp;

/// A well-formed activation code, another one for each `n`, that no server ever issued.
pub fn code(n: u32) -> String {
    let digest =
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, format!("code {n}").as_bytes());
    let mut bytes = vec![0x21, 0x10];
    bytes.extend_from_slice(&digest.as_ref()[..8]);
    base32(&bytes)
}

fn base32(bytes: &[u8]) -> String {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let bits: Vec<u8> = bytes
        .iter()
        .flat_map(|b| (0..8).rev().map(move |i| (b >> i) & 1))
        .collect();
    bits.chunks(5)
        .map(|five| char::from(alphabet[five.iter().fold(0, |n, bit| n * 2 + usize::from(*bit))]))
        .collect()
}

/// One event in FortiOS's default format.
#[derive(Clone, Debug)]
pub struct Event {
    pub user: String,
    pub msg: String,
    pub logid: String,
    pub devid: String,
    pub devname: String,
    pub vdom: String,
    pub eventtime: i64,
    pub extra: String,
}

impl Event {
    /// Code `n` for `user`, sent now.
    pub fn code(n: u32, user: &str) -> Self {
        Self::with_message(
            user,
            &format!("Send activation code {} to {user}@example.com", code(n)),
        )
    }

    /// A code-sent event with this message.
    pub fn with_message(user: &str, msg: &str) -> Self {
        Self {
            user: user.to_owned(),
            msg: msg.to_owned(),
            logid: "0100038412".to_owned(),
            devid: "FGT60FTK20000001".to_owned(),
            devname: "TEST-FGT".to_owned(),
            vdom: "root".to_owned(),
            eventtime: i64::try_from(Timestamp::now().as_nanosecond()).expect("before 2262"),
            extra: String::new(),
        }
    }

    /// The same, so many seconds later (or earlier).
    pub fn later(mut self, seconds: i64) -> Self {
        self.eventtime += seconds * 1_000_000_000;
        self
    }

    /// The line as it stands on the wire.
    pub fn line(&self) -> Vec<u8> {
        let Self {
            user,
            msg,
            logid,
            devid,
            devname,
            vdom,
            eventtime,
            extra,
        } = self;
        let (user, msg) = (user.replace('"', "\\\""), msg.replace('"', "\\\""));
        format!(
            "<189>date=2026-11-24 time=10:22:31 devname=\"{devname}\" devid=\"{devid}\" eventtime={eventtime} tz=\"+0100\" logid=\"{logid}\" \
             type=\"event\" subtype=\"system\" level=\"notice\" vd=\"{vdom}\" logdesc=\"Token activation code sent\"{extra} user=\"{user}\" \
             action=\"send\" msg=\"{msg}\""
        )
        .into_bytes()
    }

    /// The line with its length in front (RFC 6587).
    pub fn counted(&self) -> Vec<u8> {
        let line = self.line();
        [format!("{} ", line.len()).as_bytes(), &line].concat()
    }
}

/// Whether any form of a secret stands in these bytes: as it is, in base64 (at any alignment), in hexadecimal.
pub fn holds(bytes: &[u8], secret: &str) -> bool {
    let encoded = |skip: usize| {
        let padded = [&vec![0; skip][..], secret.as_bytes()].concat();
        let text = base64::prelude::BASE64_STANDARD_NO_PAD.encode(padded);
        text[(skip * 4).div_ceil(3)..text.len() - 2].to_owned()
    };
    let hex: String = secret.bytes().map(|b| format!("{b:02x}")).collect();
    let forms = [
        secret.to_owned(),
        encoded(0),
        encoded(1),
        encoded(2),
        hex.clone(),
        hex.to_uppercase(),
    ];
    forms
        .iter()
        .any(|form| memchr::memmem::find(bytes, form.as_bytes()).is_some())
}
