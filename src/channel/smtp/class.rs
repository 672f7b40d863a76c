//! What a failure means, by the stage it happened at: one table, the whole of it.

use std::fmt;
use std::io;
use std::time::Duration;

use super::dialogue::Reply;
use crate::channel::Class;

/// A step of the way from no connection to an accepted mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Connect,
    Greeting,
    Ehlo,
    StartTls,
    Tls,
    Auth,
    Mail,
    Rcpt,
    Data,
    /// From the first byte of the content to the answer to the final dot: the peer may act.
    Content,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "the connection",
            Self::Greeting => "the greeting",
            Self::Ehlo => "EHLO",
            Self::StartTls => "STARTTLS",
            Self::Tls => "the TLS handshake",
            Self::Auth => "AUTH",
            Self::Mail => "MAIL FROM",
            Self::Rcpt => "RCPT TO",
            Self::Data => "DATA",
            Self::Content => "the message",
        })
    }
}

/// Why a step failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// An answer in SMTP that is not the one to go on with.
    Answer(Reply),
    /// The same to a token, with what the peer had said about it before.
    Refused(Reply, String),
    /// No answer within this time.
    Slow(Duration),
    /// The connection could not be made, or ended.
    Lost(io::Error),
    /// What came is not an answer in SMTP, or came unasked.
    Garbled(&'static str),
    /// The peer can't do what the configuration demands; a sentence that begins after the peer's name.
    Unfit(String),
    /// The same for this mail alone: the address has letters outside ASCII before the @.
    Foreign,
    /// A whole sentence about the peer's certificate.
    Certificate(String),
}

/// The only place that decides what a failure means.
pub(super) fn class(stage: Stage, fault: &Fault) -> Class {
    use Stage::Content;
    use Stage::Data;
    use Stage::Mail;
    use Stage::Rcpt;

    match fault {
        Fault::Certificate(_) | Fault::Unfit(_) => Class::Broken,
        Fault::Slow(_) | Fault::Lost(_) | Fault::Garbled(_) => silence(stage),
        Fault::Foreign => Class::Permanent,
        Fault::Answer(reply) | Fault::Refused(reply, _) => match (reply.code, stage) {
            (421, _) => Class::Away,
            (400..500, Mail | Rcpt | Data | Content) => Class::Transient,
            (400..500, _) => Class::Away,
            (500..600, Rcpt) => refused_recipient(reply),
            (500..600, Data | Content) => Class::Permanent,
            (500..600, _) => Class::Broken,
            // A success that is not the one asked for: whether the mail was taken is anyone's guess.
            _ => silence(stage),
        },
    }
}

/// Whether another relay may be asked at once: not after an answer about the person, nor while this one may have the mail.
pub(super) fn asks_elsewhere(class: Class, fault: &Fault) -> bool {
    match class {
        Class::Transient | Class::Away | Class::Broken => true,
        Class::Permanent => matches!(fault, Fault::Foreign),
        Class::Unknown => false,
    }
}

/// How a relay fares, by its last failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It answers.
    Well,
    /// It can't be used for now.
    Away,
    /// An operator must act.
    Broken,
}

/// What a failure says about the relay itself.
pub(super) fn standing(class: Class, fault: &Fault) -> Standing {
    match (class, fault) {
        (Class::Broken, _) => Standing::Broken,
        (Class::Transient | Class::Permanent, Fault::Answer(_) | Fault::Foreign) => Standing::Well,
        _ => Standing::Away,
    }
}

/// Nobody said what became of the step.
fn silence(stage: Stage) -> Class {
    match stage {
        Stage::Content => Class::Unknown,
        Stage::Mail | Stage::Rcpt | Stage::Data => Class::Transient,
        _ => Class::Away,
    }
}

/// Policy (5.7: "relay access denied") and a relay that says it is wrongly set up (5.3.5) concern everyone; all else this person.
fn refused_recipient(reply: &Reply) -> Class {
    match reply.enhanced() {
        Some((5, 7, _) | (5, 3, 5)) => Class::Broken,
        _ => Class::Permanent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAGES: [Stage; 10] = [
        Stage::Connect,
        Stage::Greeting,
        Stage::Ehlo,
        Stage::StartTls,
        Stage::Tls,
        Stage::Auth,
        Stage::Mail,
        Stage::Rcpt,
        Stage::Data,
        Stage::Content,
    ];

    fn answer(text: &str) -> Fault {
        let (code, text) = text.split_once(' ').unwrap();
        Fault::Answer(Reply {
            code: code.parse().unwrap(),
            lines: vec![text.to_owned()],
        })
    }

    #[test]
    fn an_answer_means_what_its_stage_and_status_say() {
        use Class::Away;
        use Class::Broken;
        use Class::Permanent;
        use Class::Transient;
        use Class::Unknown;

        for (stage, text, expected) in [
            (Stage::Greeting, "421 4.3.2 shutting down", Away),
            (Stage::Greeting, "450 busy", Away),
            (Stage::Greeting, "554 no SMTP here", Broken),
            (Stage::Greeting, "250 hello?", Away),
            (Stage::Ehlo, "421 bye", Away),
            (Stage::Ehlo, "451 later", Away),
            (Stage::Ehlo, "502 what?", Broken),
            (Stage::Ehlo, "550 5.7.1 go away", Broken),
            (Stage::StartTls, "454 4.7.0 TLS not available", Away),
            (Stage::StartTls, "502 5.5.1 not implemented", Broken),
            (Stage::Auth, "454 4.7.0 temporary failure", Away),
            (Stage::Auth, "421 too many failures", Away),
            (Stage::Auth, "535 5.7.8 authentication failed", Broken),
            (Stage::Auth, "534 5.7.9 stronger mechanism", Broken),
            (Stage::Auth, "530 5.7.0 STARTTLS first", Broken),
            (Stage::Mail, "421 4.7.0 slow down", Away),
            (Stage::Mail, "450 4.1.8 try later", Transient),
            (Stage::Mail, "452 4.3.1 disk full", Transient),
            (Stage::Mail, "530 5.7.0 authentication required", Broken),
            (Stage::Mail, "550 5.1.8 bad sender", Broken),
            (Stage::Mail, "553 5.7.1 not your address", Broken),
            (Stage::Rcpt, "421 4.7.0 too many", Away),
            (Stage::Rcpt, "450 4.2.1 mailbox busy", Transient),
            (Stage::Rcpt, "451 4.7.1 greylisted", Transient),
            (Stage::Rcpt, "452 4.2.2 full", Transient),
            (Stage::Rcpt, "550 5.1.1 unknown", Permanent),
            (Stage::Rcpt, "550 5.1.10 null MX", Permanent),
            (Stage::Rcpt, "552 5.2.2 full", Permanent),
            (Stage::Rcpt, "550 no such user", Permanent),
            (Stage::Rcpt, "550 5.4.1 access denied", Permanent),
            (Stage::Rcpt, "550 5.3.0 rejected", Permanent),
            (Stage::Rcpt, "550 5.3.5 misconfigured", Broken),
            (Stage::Rcpt, "554 5.7.1 relay access denied", Broken),
            (Stage::Rcpt, "550 5.7.606 blocked", Broken),
            (
                Stage::Rcpt,
                "550 4.7.1 a status that contradicts its code",
                Permanent,
            ),
            (Stage::Data, "421 4.3.0 bye", Away),
            (Stage::Data, "451 4.3.0 later", Transient),
            (Stage::Data, "554 5.5.1 no valid recipients", Permanent),
            (Stage::Data, "250 no", Transient),
            (Stage::Content, "421 4.3.0 bye", Away),
            (Stage::Content, "451 4.3.0 queue", Transient),
            (Stage::Content, "452 4.3.1 disk full", Transient),
            (Stage::Content, "550 5.7.1 content", Permanent),
            (Stage::Content, "554 5.6.0 refused", Permanent),
            (Stage::Content, "251 what?", Unknown),
            (Stage::Content, "354 go", Unknown),
        ] {
            assert_eq!(class(stage, &answer(text)), expected, "{stage:?}: {text}");
        }
    }

    #[test]
    fn silence_is_unknown_only_while_the_peer_may_act() {
        for stage in STAGES {
            let expected = match stage {
                Stage::Content => Class::Unknown,
                Stage::Mail | Stage::Rcpt | Stage::Data => Class::Transient,
                _ => Class::Away,
            };
            for fault in [
                Fault::Slow(Duration::from_secs(20)),
                Fault::Lost(io::ErrorKind::UnexpectedEof.into()),
                Fault::Garbled("something else"),
            ] {
                assert_eq!(class(stage, &fault), expected, "{stage:?}: {fault:?}");
            }
        }
    }

    #[test]
    fn another_relay_is_asked_unless_the_answer_concerns_the_person_or_may_hide_an_acceptance() {
        use Standing::Away;
        use Standing::Broken;
        use Standing::Well;

        let lost = || Fault::Lost(io::ErrorKind::UnexpectedEof.into());
        for (stage, fault, elsewhere, fares) in [
            (Stage::Connect, lost(), true, Away),
            (Stage::Mail, lost(), true, Away),
            (Stage::Content, lost(), false, Away),
            (Stage::Greeting, answer("421 4.3.2 down"), true, Away),
            (Stage::Auth, answer("535 5.7.8 wrong"), true, Broken),
            (
                Stage::Rcpt,
                answer("554 5.7.1 relay access denied"),
                true,
                Broken,
            ),
            (Stage::Rcpt, answer("451 4.7.1 greylisted"), true, Well),
            (Stage::Rcpt, answer("550 5.1.1 unknown"), false, Well),
            (Stage::Rcpt, Fault::Foreign, true, Well),
            (Stage::Content, answer("451 4.3.0 queue"), true, Well),
            (Stage::Content, answer("554 5.6.0 refused"), false, Well),
            (Stage::Content, answer("251 what?"), false, Away),
            (Stage::Tls, Fault::Certificate(String::new()), true, Broken),
        ] {
            let class = class(stage, &fault);
            assert_eq!(
                asks_elsewhere(class, &fault),
                elsewhere,
                "{stage:?} {fault:?}"
            );
            assert_eq!(standing(class, &fault), fares, "{stage:?} {fault:?}");
        }
    }

    #[test]
    fn what_the_configuration_demands_in_vain_needs_an_operator() {
        for stage in STAGES {
            for fault in [
                Fault::Certificate(String::new()),
                Fault::Unfit(String::new()),
            ] {
                assert_eq!(class(stage, &fault), Class::Broken);
            }
            assert_eq!(class(stage, &answer("421 bye")), Class::Away);
        }
    }
}
