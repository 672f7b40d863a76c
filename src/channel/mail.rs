//! A notification as an RFC 5322 message, for every channel that carries mail.

use std::time::SystemTime;

use lettre::Address;
use lettre::Message;
use lettre::message::Attachment;
use lettre::message::Mailbox;
use lettre::message::MultiPart;
use lettre::message::SinglePart;
use lettre::message::header::ContentType;
use lettre::message::header::HeaderName;
use lettre::message::header::HeaderValue;

use crate::channel::qr;
use crate::domain;
use crate::message::Notification;
use crate::message::Recipient;

/// Who a message is from.
#[derive(Clone, Debug)]
pub struct Sender {
    /// The author, whose domain also ends the Message-ID.
    pub from: Mailbox,
    /// Where an answer goes, if not to the author.
    pub reply_to: Option<Mailbox>,
    /// Whether a code is also shown as an image.
    pub qr: bool,
}

/// Longer names are cut: a header is no place for a novel.
const MAX_NAME_CHARS: usize = 100;

/// Longer subjects are cut.
const MAX_SUBJECT_CHARS: usize = 200;

/// RFC 5321, 4.5.3.1.3: a path has at most 256 octets, two of them `<` and `>`.
const MAX_ADDRESS_BYTES: usize = 254;

/// An address as it goes on the wire: its domain in ASCII; before the @ may stand letters outside ASCII, which only some
/// relays take. The error ends a sentence that begins with what was read.
fn any_address(text: &str) -> Result<Address, &'static str> {
    const NONE: &str = "is no mail address";
    let parsed: Address = text.parse().map_err(|_| NONE)?;
    let user = parsed.user();
    if user.contains(|c: char| c.is_control() || c.is_whitespace() || is_mark(c)) {
        return Err(NONE);
    }
    let domain = domain::normal(parsed.domain());
    if !domain.is_ascii() || user.len() + 1 + domain.len() > MAX_ADDRESS_BYTES {
        return Err(NONE);
    }
    Address::new(user, domain).map_err(|_| NONE)
}

/// An address that every relay understands. The error ends a sentence that begins with what was read.
pub fn address(text: &str) -> Result<Address, &'static str> {
    let address = any_address(text)?;
    if !address.user().is_ascii() {
        return Err(
            "has characters outside ASCII before the @, which few relays take from a sender",
        );
    }
    Ok(address)
}

/// `Name <address>` or a bare address, as the configuration writes it. The error ends a sentence like that of [`address`].
pub fn mailbox(text: &str) -> Result<Mailbox, &'static str> {
    let parsed: Mailbox = text
        .parse()
        .map_err(|_| "is no mail address; write \"Name <name@example.com>\"")?;
    Ok(Mailbox::new(
        parsed.name.as_deref().and_then(name),
        address(parsed.email.as_ref())?,
    ))
}

/// The mailbox of a person. The error is a whole sentence, without the address.
pub fn person(recipient: &Recipient) -> Result<Mailbox, String> {
    match any_address(&recipient.email) {
        Ok(address) => Ok(Mailbox::new(
            recipient.name.as_deref().and_then(name),
            address,
        )),
        Err(what) => Err(format!(
            "what the directory {} says {what}",
            recipient.source
        )),
    }
}

/// The whole message: CRLF lines, none longer than 998 octets, of 7-bit text but for an address that has other letters
/// (RFC 6532). The error is a whole sentence.
pub fn build(
    sender: &Sender,
    to: &Mailbox,
    note: &Notification,
    now: SystemTime,
) -> Result<Vec<u8>, String> {
    let mut message = Message::builder()
        .from(sender.from.clone())
        .to(to.clone())
        .date(now)
        .message_id(Some(message_id(sender, note)))
        .subject(subject(note))
        .raw_header(raw("Auto-Submitted", "auto-generated"))
        // Exchange answers an Auto-Submitted mail with an out-of-office note all the same.
        .raw_header(raw("X-Auto-Response-Suppress", "All"));
    if let Some(reply_to) = &sender.reply_to {
        message = message.reply_to(reply_to.clone());
    }
    if is_language(&note.language) {
        message = message.raw_header(raw("Content-Language", &note.language));
    }
    let bytes = message
        .multipart(bodies(sender, note))
        .map_err(|e| format!("the message can't be built: {e}"))?
        .formatted();
    if !bytes.is_ascii() && to.email.user().is_ascii() {
        return Err("the message can't be built: it is not 7-bit text".to_owned());
    }
    Ok(bytes)
}

/// The text, and the HTML with its image where one is wanted: as an inline part, since programs block what lies elsewhere.
fn bodies(sender: &Sender, note: &Notification) -> MultiPart {
    let image = || {
        let code = note.code().filter(|_| sender.qr)?;
        Some((qr::place(&note.html)?, qr::png(code)?))
    };
    let Some((html, png)) = image() else {
        return MultiPart::alternative_plain_html(lines(&note.text), lines(&note.html));
    };
    let kind = ContentType::parse("image/png").expect("a content type");
    let (id, name) = (qr::CONTENT_ID.to_owned(), qr::FILE_NAME.to_owned());
    MultiPart::alternative()
        .singlepart(SinglePart::plain(lines(&note.text)))
        .multipart(
            MultiPart::related()
                .singlepart(SinglePart::html(lines(&html)))
                .singlepart(Attachment::new_inline_with_name(id, name).body(png, kind)),
        )
}

/// The subject, on one line and not too long.
pub fn subject(note: &Notification) -> String {
    one_line(&note.subject, MAX_SUBJECT_CHARS)
}

/// The same over all tries, so that a receiver can drop a duplicate.
fn message_id(sender: &Sender, note: &Notification) -> String {
    let id: String = note
        .id
        .chars()
        .map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' => c,
            _ => '-',
        })
        .collect();
    format!("<{id}@{}>", sender.from.email.domain())
}

fn raw(header: &'static str, value: &str) -> HeaderValue {
    HeaderValue::new(HeaderName::new_from_ascii_str(header), value.to_owned())
}

fn is_language(tag: &str) -> bool {
    (1..=35).contains(&tag.len()) && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// A display name, or `None` if nothing of it can be shown.
fn name(text: &str) -> Option<String> {
    let name = one_line(text, MAX_NAME_CHARS);
    (!name.is_empty()).then_some(name)
}

/// No line ends, no control characters and no invisible direction marks, which could make one name look like another.
fn one_line(text: &str, max_chars: usize) -> String {
    let visible: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .filter(|c| !is_mark(*c))
        .collect();
    let words = visible.split_whitespace().collect::<Vec<_>>().join(" ");
    words
        .chars()
        .take(max_chars)
        .collect::<String>()
        .trim_end()
        .to_owned()
}

/// An invisible direction mark.
fn is_mark(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// One kind of line end, ended by one: a lone CR means different things to different relays.
fn lines(text: &str) -> String {
    let mut text = text.replace("\r\n", "\n").replace('\r', "\n");
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note() -> Notification {
        Notification {
            id: "0a1b2c".to_owned(),
            subject: "Activate your token".to_owned(),
            text: "Your code:\nEEIOTCU3LENEDJMR\n".to_owned(),
            html: "<p>Your code: EEIOTCU3LENEDJMR</p>".to_owned(),
            chat: Vec::new(),
            short: String::new(),
            event: serde_json::Value::Null,
            language: "en".to_owned(),
            expires_at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    fn built(to: &Mailbox, note: &Notification) -> String {
        let sender = Sender {
            from: mailbox("IT Service Desk <servicedesk@example.com>").unwrap(),
            reply_to: Some(mailbox("help@example.com").unwrap()),
            qr: false,
        };
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_795_429_351);
        String::from_utf8(build(&sender, to, note, now).unwrap()).unwrap()
    }

    fn alice(name: Option<&str>) -> Mailbox {
        person(&Recipient {
            email: "alice@example.com".to_owned(),
            name: name.map(str::to_owned),
            phone: None,
            language: None,
            source: "table".to_owned(),
        })
        .unwrap()
    }

    fn head(message: &str) -> String {
        let head = message.split("\r\n\r\n").next().unwrap();
        head.replace("\r\n ", " ").replace("\r\n\t", " ")
    }

    #[test]
    fn the_head_says_who_to_whom_when_and_that_a_machine_wrote_it() {
        let message = built(&alice(Some("Alice Example")), &note());
        let head = head(&message);
        let lines: Vec<_> = head.split("\r\n").collect();
        for line in [
            "From: \"IT Service Desk\" <servicedesk@example.com>",
            "Reply-To: help@example.com",
            "To: \"Alice Example\" <alice@example.com>",
            "Date: Mon, 23 Nov 2026 10:22:31 +0000",
            "Message-ID: <0a1b2c@example.com>",
            "Subject: Activate your token",
            "Auto-Submitted: auto-generated",
            "Content-Language: en",
            "MIME-Version: 1.0",
        ] {
            assert!(lines.contains(&line), "{line} is not in\n{head}");
        }
        assert!(
            head.contains("Content-Type: multipart/alternative;"),
            "{head}"
        );
        let text = message
            .find("Content-Type: text/plain; charset=utf-8")
            .unwrap();
        let html = message
            .find("Content-Type: text/html; charset=utf-8")
            .unwrap();
        assert!(text < html, "the richest part stands last");
    }

    #[test]
    fn text_of_others_adds_no_header() {
        let evil = "Eve\r\nBcc: eve@example.net\r\n\r\nbody";
        let message = built(
            &alice(Some(evil)),
            &Notification {
                id: "x\r\nBcc: eve@example.net".to_owned(),
                subject: evil.to_owned(),
                language: evil.to_owned(),
                ..note()
            },
        );
        assert!(
            !head(&message).to_ascii_lowercase().contains("\r\nbcc"),
            "{message}"
        );
        let names: Vec<_> = head(&message)
            .split("\r\n")
            .map(|l| l.split(':').next().unwrap().to_owned())
            .collect();
        assert_eq!(names.iter().filter(|n| *n == "To").count(), 1, "{names:?}");
        assert_eq!(names.iter().filter(|n| *n == "Subject").count(), 1);
    }

    #[test]
    fn a_name_cannot_become_a_second_address() {
        for evil in [
            "Eve <eve@example.net>,",
            "eve@example.net, Alice",
            "\"quoted\" \\ (comment)",
            "\u{202e}evE",
            "Ädne <eve@example.net>",
        ] {
            let message = built(&alice(Some(evil)), &note());
            let head = head(&message);
            let to = head.split("\r\n").find(|l| l.starts_with("To: ")).unwrap();
            let mut mailboxes = lettre::message::Mailboxes::new();
            for mailbox in to[4..].parse::<lettre::message::Mailboxes>().unwrap() {
                mailboxes.push(mailbox);
            }
            let found: Vec<_> = mailboxes.iter().map(|m| m.email.to_string()).collect();
            assert_eq!(found, ["alice@example.com"], "{evil}: {to}");
        }
    }

    #[test]
    fn every_line_is_short_seven_bit_and_ends_in_crlf() {
        let message = built(
            &alice(Some(&"Ünï ".repeat(60))),
            &Notification {
                subject: "Übergröße 🙂 ".repeat(40),
                text: format!(
                    "{}\rlone\nmixed\r\n.\n..dots\n{}",
                    "x".repeat(3000),
                    "ü".repeat(2000)
                ),
                html: "<p>日本語</p>".repeat(400),
                ..note()
            },
        );
        assert!(message.is_ascii());
        assert!(message.ends_with("\r\n"));
        let rest = message.replace("\r\n", "");
        assert!(!rest.contains(['\r', '\n']), "only CRLF ends a line");
        let longest = message.split("\r\n").map(str::len).max().unwrap();
        assert!(longest <= 78, "{longest} octets");
    }

    #[test]
    fn an_address_is_one_address_with_an_ascii_domain() {
        assert!(address("alice@example.com").is_ok());
        assert!(address("o'hara+tag@sub.example.com").is_ok());
        assert_eq!(
            address("alice@Bücher.example").unwrap().to_string(),
            "alice@xn--bcher-kva.example"
        );
        assert!(address("jürgen@example.com").is_err());
        for wrong in [
            "",
            "alice",
            "alice@example.com, eve@example.net",
            "alice@example.com\r\nRCPT TO:<eve@example.net>",
            "<alice@example.com>",
            "alice@example.com>",
            "alice@exa\u{2100}mple.com",
            "al\u{202e}ice@example.com",
            "alice @example.com",
        ] {
            assert!(any_address(wrong).is_err(), "{wrong}");
        }
        assert!(any_address(&format!("{}@example.com", "a".repeat(300))).is_err());
    }

    #[test]
    fn letters_outside_ascii_before_the_at_stand_in_the_head_as_they_are() {
        let to = person(&Recipient {
            email: "jürgen@bücher.example".to_owned(),
            name: Some("Jürgen".to_owned()),
            phone: None,
            language: None,
            source: "table".to_owned(),
        })
        .unwrap();
        let message = built(&to, &note());
        assert!(
            head(&message).contains("<jürgen@xn--bcher-kva.example>"),
            "{message}"
        );
        assert!(message.replace("jürgen@", "").is_ascii());
    }
}
