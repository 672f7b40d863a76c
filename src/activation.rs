//! What happened on a FortiGate: a token event, whose it is, and the activation code if the log shows it.

use std::fmt;
use std::fmt::Write as _;
use std::time::Duration;

use aws_lc_rs::digest;
use jiff::SignedDuration;
use jiff::Timestamp;
use serde::Deserialize;
use serde::Serialize;

use crate::secret::Secret;

/// Where in a token's life an event stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// 32155: an administrator asked for an activation.
    Requested,
    /// 38412: the FortiGate sent the activation code.
    CodeSent,
    /// 32156: the person's phone holds the token.
    Activated,
    /// 32159: the activation failed.
    Failed,
}

impl Stage {
    /// The word used in configuration, queue and payloads.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::CodeSent => "code-sent",
            Self::Activated => "activated",
            Self::Failed => "failed",
        }
    }
}

impl std::str::FromStr for Stage {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [
            Self::Requested,
            Self::CodeSent,
            Self::Activated,
            Self::Failed,
        ]
        .into_iter()
        .find(|s| s.as_str() == text)
        .ok_or(())
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The firewall an event comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Device {
    /// Its canonical id: the first id of its `[[device]]`, else what the log calls it.
    pub id: String,
    /// How people know it.
    pub name: String,
    /// The virtual domain.
    pub vdom: String,
}

/// A FortiToken Mobile activation code, or what a rule captured in its place. It exists only if its shape was right, and it
/// can't be printed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ActivationCode(Secret);

impl ActivationCode {
    /// The code, if the text has the shape of one: 16 base32 characters that decode to a first byte of 0x21.
    pub fn parse(text: &str) -> Option<Self> {
        has_code_shape(text.as_bytes()).then(|| Self(Secret::new(text)))
    }

    /// What a rule captured, whatever its shape: 4 to 128 printable characters.
    pub fn captured(text: &str) -> Option<Self> {
        let text = text.trim();
        ((MIN_CAPTURED_CHARS..=MAX_CAPTURED_CHARS).contains(&text.chars().count())
            && !text.chars().any(char::is_control))
        .then(|| Self(Secret::new(text)))
    }

    /// The code itself: only for the seal, the mail and the wire.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }

    /// The code as a secret, for a redactor.
    pub fn secret(&self) -> Secret {
        self.0.clone()
    }
}

/// One wanted event, read from one record.
#[derive(Clone, Debug, PartialEq)]
pub struct Activation {
    /// Names the event, the same on every relay that saw it: an unkeyed hash of everything that identifies it but the code.
    pub event_id: String,
    /// The firewall.
    pub device: Device,
    /// The user as logged.
    pub user: String,
    /// The user normalised: what look-ups, identity and limits use.
    pub person: String,
    /// The message id (last six digits of `logid`).
    pub logid: u32,
    /// What FortiOS calls the event (`logdesc`).
    pub description: String,
    /// Where in the token's life it stands.
    pub stage: Stage,
    /// The name of the rule that took it.
    pub rule: String,
    /// When it happened; the time of receipt where the log claims a time more than 5 min in the future.
    pub event_time: Timestamp,
    /// When the relay took it.
    pub received_at: Timestamp,
    /// From when on the code is worthless.
    pub expires_at: Timestamp,
    /// How long the code lives from the event on.
    pub validity: Duration,
    /// By how much the device's clock is ahead of ours (negative: behind, or an old log).
    pub skew: SignedDuration,
    /// The code, where the message shows exactly one.
    pub code: Option<ActivationCode>,
    /// The token's serial number, where the event names it.
    pub token: Option<String>,
    /// Mail addresses that stand in the message. Hints for the `log` directory and for `mismatch`, never recipients.
    pub addresses: Vec<String>,
    /// Where it was learnt, and how far that alone is believed.
    pub origin: Origin,
}

/// Where an event was learnt, and how far that alone is believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The line, or what took its place, in one sentence without a code: format, peer, listener.
    pub line: String,
    /// Whose word it rests on.
    pub standing: Standing,
    /// The log showed no code; the device has named it. So whoever wrote the line need not have known it.
    pub device_named_code: bool,
}

/// On whose word an event rests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// The log says so, and that is enough.
    #[default]
    Logged,
    /// The log says so, and that is enough; but the device has an API and is asked first whose it is, for `user` may be the
    /// administrator at work.
    Unsettled,
    /// `confirm = true`: the log says so, and that counts for nothing before the device has confirmed it.
    Provisional,
    /// The device itself has said so.
    Confirmed,
}

/// A code is 10 bytes in base32.
const CODE_CHARS: usize = 16;
/// Version 4, type 1: what a FortiGate hands out.
const CODE_FIRST_BYTE: u8 = 0x21;
const MIN_CAPTURED_CHARS: usize = 4;
const MAX_CAPTURED_CHARS: usize = 128;
/// FortiOS gives a serial number 16 characters.
const SERIAL_CHARS: usize = 16;
/// More addresses than these in one message help nobody.
const MAX_ADDRESSES: usize = 8;
/// RFC 5321: a path is no longer.
const MAX_ADDRESS_BYTES: usize = 254;
/// An event id in hex: 128 bits of a SHA-256.
const EVENT_ID_CHARS: usize = 32;

/// What a search for a code found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// No code.
    None,
    /// One code, once or more often.
    One(ActivationCode),
    /// Different codes. Which one is meant is not ours to choose.
    Several,
}

impl Found {
    /// What all these codes come to.
    pub fn of(codes: impl IntoIterator<Item = ActivationCode>) -> Self {
        let mut found = Self::None;
        for code in codes {
            found = match found {
                Self::None => Self::One(code),
                Self::One(first) if first == code => Self::One(first),
                Self::One(_) | Self::Several => return Self::Several,
            };
        }
        found
    }
}

/// Looks for activation codes by their shape alone, for nobody knows Fortinet's wording.
pub fn find(text: &str) -> Found {
    Found::of(words(text).filter_map(ActivationCode::parse))
}

/// The serial number of a token in a text, by its shape: 16 characters that begin with `FTK`. `None`: none, or several.
pub fn find_serial(text: &str) -> Option<&str> {
    let mut serials = words(text).filter(|word| is_serial(word));
    let first = serials.next()?;
    serials.all(|other| other == first).then_some(first)
}

/// Whether a text is a FortiToken serial number.
pub fn is_serial(word: &str) -> bool {
    word.len() == SERIAL_CHARS
        && word.starts_with("FTK")
        && word
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
}

/// Words: the longest runs of letters and digits, of any script.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
}

/// 16 base32 characters that decode to 0x21…. An ordinary word in capitals can do so, too ("EGALITARIANISTIC"): without a
/// digit, the second byte must be one that codes are known to have (0x00, 0x10, 0x20, 0x30: digits and seconds of the token).
fn has_code_shape(text: &[u8]) -> bool {
    if text.len() != CODE_CHARS {
        return false;
    }
    let mut bits: u64 = 0;
    let mut has_digit = false;
    for (at, byte) in text.iter().enumerate() {
        let five = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'2'..=b'7' => {
                has_digit = true;
                byte - b'2' + 26
            }
            _ => return false,
        };
        if at < 4 {
            bits = bits << 5 | u64::from(five);
        }
    }
    // Four characters are 20 bits: two bytes and a half.
    let [first, second] = ((bits >> 4) as u16).to_be_bytes();
    first == CODE_FIRST_BYTE && (has_digit || matches!(second, 0x00 | 0x10 | 0x20 | 0x30))
}

/// Mail addresses in a text, by their shape; each once, in its order, no more than a handful.
pub fn find_addresses(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for (at, _) in text.match_indices('@') {
        let (before, after) = (&text[..at], &text[at + 1..]);
        let local = before
            .rfind(|c: char| !is_local(c))
            .map_or(before, |stop| {
                &before[stop + before[stop..].chars().next().map_or(1, char::len_utf8)..]
            })
            .trim_start_matches(['.', '\'', '-', '/', '=']);
        let domain = after
            .find(|c: char| !(c.is_alphanumeric() || c == '.' || c == '-'))
            .map_or(after, |stop| &after[..stop]);
        let behind = after[domain.len()..].chars().next();
        let domain = domain.trim_end_matches(['.', '-']);
        let address = format!("{local}@{domain}");
        let is_address = !local.is_empty()
            && !local.ends_with('.')
            && domain.contains('.')
            && domain.split('.').all(|label| {
                !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
            })
            // Two @ in one word: nobody can say which part is the address.
            && behind != Some('@')
            && !before[..before.len() - local.len()].ends_with('@')
            && address.len() <= MAX_ADDRESS_BYTES;
        if is_address
            && !found
                .iter()
                .any(|known| known.eq_ignore_ascii_case(&address))
        {
            found.push(address);
        }
        if found.len() == MAX_ADDRESSES {
            break;
        }
    }
    found
}

/// What may stand before the @: RFC 5322's atoms and dots, letters of any script.
fn is_local(c: char) -> bool {
    c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(c)
}

/// The event's id: the same on every relay that saw it, and without the code. `key` is its `eventtime` in whole seconds, else
/// date, time and zone as logged.
pub fn event_id(device: &Device, logid: u32, person: &str, key: &str) -> String {
    let mut hash = digest::Context::new(&digest::SHA256);
    // Each part with its length, so that no two events run together to the same text.
    for part in [
        device.id.to_lowercase().as_str(),
        device.vdom.as_str(),
        logid.to_string().as_str(),
        person,
        key,
    ] {
        hash.update(&(part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let mut id = String::with_capacity(EVENT_ID_CHARS);
    for byte in &hash.finish().as_ref()[..EVENT_ID_CHARS / 2] {
        write!(id, "{byte:02x}").expect("writing to a string can't fail");
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> ActivationCode {
        ActivationCode::parse(text).unwrap()
    }

    #[test]
    fn a_code_is_known_by_its_shape() {
        for right in [
            "EEIOTCU3LENEDJMR",
            "EEIMI3ZFJEC2CCPL",
            "EEAEVVEYZSERRHEM",
            "EEABCDEFGHIJKLMN",
            "EG22222222222222",
        ] {
            assert!(ActivationCode::parse(right).is_some(), "{right}");
        }
        for wrong in [
            "EEIOTCU3LENEDJM",
            "EEIOTCU3LENEDJMRA",
            "eeiotcu3lenedjmr",
            "EEIOTCU1LENEDJMR",
            "FTKMOB22AACCDDEE",
            "INTERNATIONALISE",
            "EGALITARIANISTIC",
            "****************",
            "",
        ] {
            assert!(ActivationCode::parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_code_is_found_wherever_it_stands_alone() {
        let one = Found::One(code("EEIOTCU3LENEDJMR"));
        for text in [
            "EEIOTCU3LENEDJMR",
            "code EEIOTCU3LENEDJMR.",
            "(EEIOTCU3LENEDJMR)",
            "code=EEIOTCU3LENEDJMR,token=FTKMOB6549A91140",
            "\"EEIOTCU3LENEDJMR\" is EEIOTCU3LENEDJMR",
            "Code: EEIOTCU3LENEDJMR\u{a0}für alice",
        ] {
            assert_eq!(find(text), one, "{text}");
        }
        for text in [
            "xEEIOTCU3LENEDJMR",
            "EEIOTCU3LENEDJMR1",
            "éEEIOTCU3LENEDJMR",
            "GEAD2IZEHWDN2SLTTWIMMFX4FDUFZUSRKGBSL6NUEHTA3IRB6DAG77HOFUCCSFW4",
            "Send activation code **************** to alice",
        ] {
            assert_eq!(find(text), Found::None, "{text}");
        }
        assert_eq!(find("EEIOTCU3LENEDJMR or EEIMI3ZFJEC2CCPL"), Found::Several);
    }

    #[test]
    fn a_captured_code_is_printable_and_of_sane_length() {
        assert_eq!(
            ActivationCode::captured(" Xy12-ab ").unwrap().expose(),
            "Xy12-ab"
        );
        for wrong in ["abc", "a\nbcd", &"x".repeat(129)] {
            assert!(ActivationCode::captured(wrong).is_none());
        }
    }

    #[test]
    fn a_serial_number_is_found_if_there_is_one() {
        assert_eq!(
            find_serial("token FTKMOB6549A91140 for alice"),
            Some("FTKMOB6549A91140")
        );
        assert_eq!(find_serial("FTKMOB6549A91140->FTKMOB83F91CD33B"), None);
        assert_eq!(find_serial("FTKMOB6549A9114 EFTM010130823929"), None);
    }

    #[test]
    fn addresses_are_found_by_their_shape() {
        for (text, addresses) in [
            ("to alice@example.com.", vec!["alice@example.com"]),
            (
                "<a.b+c@mail.example.com>, 'bob@example.com'",
                vec!["a.b+c@mail.example.com", "bob@example.com"],
            ),
            (
                "Alice@example.com alice@EXAMPLE.com",
                vec!["Alice@example.com"],
            ),
            ("jörg@example.com", vec!["jörg@example.com"]),
            ("alice@example.com@evil.test", vec![]),
            ("alice@@example.com", vec![]),
            ("alice@localhost @example.com alice@ a@b..c a.@b.c", vec![]),
            ("email:alice@example.com)", vec!["alice@example.com"]),
        ] {
            assert_eq!(find_addresses(text), addresses, "{text}");
        }
        assert_eq!(find_addresses(&"a@b.cd ".repeat(10_000)), vec!["a@b.cd"]);
    }

    #[test]
    fn an_event_id_depends_on_every_part_and_on_their_borders() {
        let device = |id: &str, vdom: &str| Device {
            id: id.to_owned(),
            name: "name".to_owned(),
            vdom: vdom.to_owned(),
        };
        let id = event_id(&device("FGT1", "root"), 38412, "alice", "1764000000");
        assert_eq!(id.len(), EVENT_ID_CHARS);
        assert_eq!(
            id,
            event_id(&device("fgt1", "root"), 38412, "alice", "1764000000")
        );
        for other in [
            event_id(&device("FGT2", "root"), 38412, "alice", "1764000000"),
            event_id(&device("FGT1", "r"), 38412, "ootalice", "1764000000"),
            event_id(&device("FGT1", "root"), 32155, "alice", "1764000000"),
            event_id(&device("FGT1", "root"), 38412, "bob", "1764000000"),
            event_id(&device("FGT1", "root"), 38412, "alice", "1764000001"),
        ] {
            assert_ne!(id, other);
        }
    }
}
