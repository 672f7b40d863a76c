//! Codes at rest: sealed under a key that is not in the database, and a keyed mark by which the same code is known again.

use std::borrow::Cow;
use std::fmt;

use aws_lc_rs::aead::AES_256_GCM_SIV;
use aws_lc_rs::aead::Aad;
use aws_lc_rs::aead::NONCE_LEN;
use aws_lc_rs::aead::Nonce;
use aws_lc_rs::aead::RandomizedNonceKey;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hkdf;
use aws_lc_rs::hmac;
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::Serialize;
use zeroize::Zeroize;
use zeroize::Zeroizing;

use crate::activation::ActivationCode;
use crate::secret::Secret;

const KEY_BYTES: usize = 32;
/// Says what the text is, and of which version.
const PREFIX: &str = "ftmkey1_";
const SALT: &[u8] = b"ftm-relay outbox key 1";
const BODY_LABEL: &[u8] = b"ftm-relay sealed code 1\0";
/// First byte of a sealed body.
const FORMAT: u8 = 1;
/// A 128-bit name is unique enough for every mail ever sent.
const MESSAGE_ID_BYTES: usize = 16;

/// The outbox key. It prints as `…`.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Zeroizing<[u8; KEY_BYTES]>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// The system gave no randomness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gives no random numbers")]
pub struct NoRandomness;

impl Key {
    /// A new key.
    pub fn fresh() -> Result<Self, NoRandomness> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        rand::fill(&mut *bytes).map_err(|_| NoRandomness)?;
        Ok(Self(bytes))
    }

    /// Reads what [`Key::text`] wrote. An error never repeats the text.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let body = text
            .trim()
            .strip_prefix(PREFIX)
            .ok_or("an outbox key begins with ftmkey1_; `ftm-relay keygen` makes one")?;
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        // One byte more is offered, so that a key that is too long is told from a right one.
        let mut room = Zeroizing::new([0; KEY_BYTES + 3]);
        match URL_SAFE_NO_PAD.decode_slice(body, &mut *room) {
            Ok(KEY_BYTES) => {
                bytes.copy_from_slice(&room[..KEY_BYTES]);
                Ok(Self(bytes))
            }
            _ => Err(
                "the outbox key is cut off or mistyped: ftmkey1_ is followed by 43 characters; `ftm-relay keygen` makes one",
            ),
        }
    }

    /// The key as text.
    pub fn text(&self) -> Secret {
        let body = Zeroizing::new(URL_SAFE_NO_PAD.encode(*self.0));
        Secret::new(format!("{PREFIX}{}", *body))
    }
}

/// What is done with a [`Key`].
pub struct Seal {
    aead: RandomizedNonceKey,
    mac: hmac::Key,
    check: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    code: Option<Cow<'a, str>>,
    addresses: Vec<String>,
}

/// What a sealed body held.
#[derive(Debug, Default)]
pub struct Opened {
    /// The code.
    pub code: Option<ActivationCode>,
    /// The addresses of the message.
    pub addresses: Vec<String>,
}

impl Seal {
    /// The keys derived from `key`.
    pub fn new(key: &Key) -> Self {
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(&*key.0);
        let derive = |label: &[u8]| {
            let mut bytes = Zeroizing::new([0; KEY_BYTES]);
            root.expand(&[label], hkdf::HKDF_SHA256)
                .and_then(|okm| okm.fill(&mut *bytes))
                .expect("HKDF-SHA256 gives 32 bytes");
            bytes
        };
        Self {
            aead: RandomizedNonceKey::new(&AES_256_GCM_SIV, &*derive(b"seal"))
                .expect("AES-256 takes 32 bytes"),
            mac: hmac::Key::new(hmac::HMAC_SHA256, &*derive(b"mac")),
            check: derive(b"check")[..16].to_vec(),
        }
    }

    /// By which a key is known again; says nothing about it.
    pub fn check_value(&self) -> &[u8] {
        &self.check
    }

    /// Whether `check_value` is of this key.
    pub fn is_of(&self, check_value: &[u8]) -> bool {
        verify_slices_are_equal(&self.check, check_value).is_ok()
    }

    /// The mark of a code; empty where there is none.
    pub fn code_mac(&self, code: Option<&ActivationCode>) -> Vec<u8> {
        code.map_or_else(Vec::new, |code| {
            self.keyed(b"code", &[code.expose().as_bytes()])
        })
    }

    /// Names a delivery, the same on every relay with this key. Two codes of one event have two names.
    pub fn message_id(&self, event_id: &str, code_mac: &[u8], channel: &str) -> String {
        let parts = [event_id.as_bytes(), code_mac, channel.as_bytes()];
        hex(&self.keyed(b"message", &parts)[..MESSAGE_ID_BYTES])
    }

    fn keyed(&self, label: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        let mut mac = hmac::Context::with_key(&self.mac);
        mac.update(label);
        for part in parts {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac.sign().as_ref().to_vec()
    }

    /// Seals a code and the message's addresses for one row; `None` if there is nothing to seal.
    pub fn seal(
        &self,
        event_id: &str,
        code_mac: &[u8],
        code: Option<&ActivationCode>,
        addresses: &[String],
    ) -> Result<Option<Vec<u8>>, String> {
        if code.is_none() && addresses.is_empty() {
            return Ok(None);
        }
        let body = Body {
            code: code.map(|c| Cow::Borrowed(c.expose())),
            addresses: addresses.to_vec(),
        };
        // Room for everything, escapes and tag included: a buffer that grows leaves its text behind in memory.
        let text = code.map_or(0, |c| c.expose().len())
            + addresses.iter().map(|a| a.len() + 3).sum::<usize>();
        let mut buffer = Zeroizing::new(Vec::with_capacity(128 + 6 * text));
        serde_json::to_writer(&mut *buffer, &body).map_err(|e| e.to_string())?;
        let nonce = self
            .aead
            .seal_in_place_append_tag(Aad::from(aad(event_id, code_mac)), &mut *buffer)
            .map_err(|_| "sealing failed".to_owned())?;
        let mut sealed = vec![FORMAT];
        sealed.extend_from_slice(nonce.as_ref());
        sealed.extend_from_slice(&buffer);
        Ok(Some(sealed))
    }

    /// Opens what [`Seal::seal`] made for the same row.
    pub fn open(&self, event_id: &str, code_mac: &[u8], sealed: &[u8]) -> Result<Opened, String> {
        let (nonce, body) = match sealed.split_first() {
            Some((&FORMAT, rest)) if rest.len() > NONCE_LEN => rest.split_at(NONCE_LEN),
            _ => return Err("it is not a sealed code".to_owned()),
        };
        let nonce = Nonce::try_assume_unique_for_key(nonce)
            .map_err(|_| "it is not a sealed code".to_owned())?;
        let mut buffer = Zeroizing::new(body.to_vec());
        let text = self
            .aead
            .open_in_place(nonce, Aad::from(aad(event_id, code_mac)), &mut buffer)
            .map_err(|_| {
                "it was changed, or sealed under another key or for another event".to_owned()
            })?;
        // No detail of serde's: it would quote the text.
        let mut body: Body<'_> =
            serde_json::from_slice(text).map_err(|_| "its body is malformed".to_owned())?;
        let code = match &mut body.code {
            None => None,
            Some(text) => {
                let code = ActivationCode::captured(text);
                if let Cow::Owned(text) = text {
                    text.zeroize();
                }
                Some(code.ok_or_else(|| "its body holds no code".to_owned())?)
            }
        };
        Ok(Opened {
            code,
            addresses: body.addresses,
        })
    }
}

fn aad(event_id: &str, code_mac: &[u8]) -> Vec<u8> {
    [BODY_LABEL, event_id.as_bytes(), b"\0", code_mac].concat()
}

/// A random name for a message that belongs to no event.
pub fn random_message_id() -> Result<String, NoRandomness> {
    let mut bytes = [0; MESSAGE_ID_BYTES];
    rand::fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(hex(&bytes))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String can't fail.
        let _ok = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> ActivationCode {
        ActivationCode::captured(text).unwrap()
    }

    #[test]
    fn a_key_survives_its_text_and_a_wrong_text_is_refused_without_being_repeated() {
        let key = Key::fresh().unwrap();
        let text = key.text();
        assert_eq!(Key::parse(&format!(" {}\n", text.expose())).unwrap(), key);
        assert_ne!(Key::fresh().unwrap(), key);
        let cut = &text.expose()[..text.expose().len() - 1];
        let long = format!("{}AAAA", text.expose());
        for wrong in ["", "hunter2", cut, &long, "ftmkey1_", "ftmkey1_!"] {
            let said = Key::parse(wrong).unwrap_err();
            assert!(said.contains("keygen"), "{said}");
        }
        assert_eq!(format!("{key:?}"), "…");
    }

    #[test]
    fn a_sealed_code_opens_only_for_its_own_row_and_key() {
        let seal = Seal::new(&Key::fresh().unwrap());
        let other = Seal::new(&Key::fresh().unwrap());
        let addresses = vec!["alice@example.com".to_owned()];
        for text in ["EEIOTCU3LENEDJMR", "pass \"word\" ü"] {
            let code = code(text);
            let mac = seal.code_mac(Some(&code));
            let sealed = seal
                .seal("e1", &mac, Some(&code), &addresses)
                .unwrap()
                .unwrap();
            let opened = seal.open("e1", &mac, &sealed).unwrap();
            assert_eq!(opened.code, Some(code.clone()));
            assert_eq!(opened.addresses, addresses);
            assert!(seal.open("e2", &mac, &sealed).is_err());
            assert!(seal.open("e1", &[], &sealed).is_err());
            assert!(other.open("e1", &mac, &sealed).is_err());
            assert!(seal.open("e1", &mac, &sealed[..8]).is_err());
            assert_ne!(
                seal.seal("e1", &mac, Some(&code), &addresses)
                    .unwrap()
                    .unwrap(),
                sealed
            );
        }
    }

    #[test]
    fn a_mark_is_the_same_for_the_same_code_and_key_only() {
        let key = Key::fresh().unwrap();
        let (one, again, other) = (
            Seal::new(&key),
            Seal::new(&key),
            Seal::new(&Key::fresh().unwrap()),
        );
        let code = code("EEIOTCU3LENEDJMR");
        assert_eq!(one.code_mac(Some(&code)), again.code_mac(Some(&code)));
        assert_ne!(one.code_mac(Some(&code)), other.code_mac(Some(&code)));
        assert!(one.code_mac(None).is_empty());
        assert!(one.is_of(again.check_value()) && !one.is_of(other.check_value()));
    }

    #[test]
    fn nothing_to_seal_is_nothing() {
        let seal = Seal::new(&Key::fresh().unwrap());
        assert_eq!(seal.seal("e", &[], None, &[]), Ok(None));
    }
}
