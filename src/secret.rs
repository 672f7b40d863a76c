//! What must never be shown: secrets that can't be printed, masked addresses, and the cleaning of a peer's text.

use std::fmt;

use zeroize::Zeroizing;

/// A password, token, code or secret URL. It prints as `…`, is wiped on drop, and is read only by [`Secret::expose`].
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over; the caller keeps no copy.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The secret itself: only for the wire, the seal and the mail.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// `alice@example.com` → `a…@example.com`: enough for an administrator to recognise, too little to write to.
pub fn mask_address(address: &str) -> String {
    match address.rsplit_once('@') {
        Some((local, domain)) => format!("{}…@{domain}", local.chars().next().unwrap_or('…')),
        None => "…".to_owned(),
    }
}

/// The longest peer text that is kept.
const MAX_TEXT_CHARS: usize = 300;

/// Makes a peer's text fit to be kept and shown: known secrets become `…`, control characters go, length is bounded.
#[derive(Clone, Default)]
pub struct Redactor {
    secrets: Vec<Secret>,
}

impl Redactor {
    /// A redactor of these secrets; empty ones, and ones too short to be told from ordinary text, are left out.
    pub fn new(secrets: impl IntoIterator<Item = Secret>) -> Self {
        Self::default().with(secrets)
    }

    /// The same redactor with more secrets, for one delivery.
    #[must_use]
    pub fn with(&self, more: impl IntoIterator<Item = Secret>) -> Self {
        let mut secrets = self.secrets.clone();
        secrets.extend(more.into_iter().filter(|s| s.expose().len() >= 4));
        secrets.sort_by_key(|s| std::cmp::Reverse(s.expose().len()));
        Self { secrets }
    }

    /// The cleaned text, at most 300 characters, on one line.
    pub fn clean(&self, text: &str) -> String {
        let mut text: String = text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        for secret in &self.secrets {
            text = replace_ignoring_case(&text, secret.expose());
        }
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        match text.char_indices().nth(MAX_TEXT_CHARS) {
            Some((at, _)) => format!("{}…", &text[..at]),
            None => text,
        }
    }
}

/// The text with `…` for every `secret`. Case is ignored in ASCII only, which is what codes, addresses and tokens are made of.
pub(crate) fn replace_ignoring_case(text: &str, secret: &str) -> String {
    let (hay, needle) = (text.to_ascii_lowercase(), secret.to_ascii_lowercase());
    let mut out = String::with_capacity(text.len());
    let mut from = 0;
    while let Some(at) = hay[from..].find(&needle) {
        out.push_str(&text[from..from + at]);
        out.push('…');
        from += at + needle.len();
    }
    out.push_str(&text[from..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_print() {
        assert_eq!(format!("{:?}", Secret::new("EEIOTCU3LENEDJMR")), "…");
    }

    #[test]
    fn an_address_keeps_its_first_letter_and_domain() {
        assert_eq!(mask_address("alice@example.com"), "a…@example.com");
        assert_eq!(mask_address("no address"), "…");
    }

    #[test]
    fn a_peers_text_loses_secrets_control_characters_and_length() {
        let redactor = Redactor::new([Secret::new("hunter22")]);
        assert_eq!(redactor.clean("550 HUNTER22\r\nis hunter22"), "550 … is …");
        assert_eq!(
            redactor.clean(&"é".repeat(1000)).chars().count(),
            MAX_TEXT_CHARS + 1
        );
    }
}
