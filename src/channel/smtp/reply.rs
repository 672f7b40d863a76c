//! A server's reply, and what it means for the delivery and its channel.

use crate::channel::SendError;

/// One reply (RFC 5321 section 4.2), its lines joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The three digits.
    pub code: u16,
    /// The text, without the code; may hold anything the peer likes.
    pub text: String,
}

/// Where in the dialogue a reply stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The banner.
    Greeting,
    /// EHLO, in clear or inside TLS.
    Ehlo,
    /// STARTTLS.
    StartTls,
    /// AUTH.
    Auth,
    /// MAIL FROM.
    Mail,
    /// RCPT TO.
    Rcpt,
    /// DATA, before the message.
    Data,
    /// After the final dot.
    End,
}

impl Stage {
    /// The step, as an administrator knows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Greeting => "the greeting",
            Self::Ehlo => "EHLO",
            Self::StartTls => "STARTTLS",
            Self::Auth => "AUTH",
            Self::Mail => "MAIL FROM",
            Self::Rcpt => "RCPT TO",
            Self::Data => "DATA",
            Self::End => "the message",
        }
    }

    /// Before a transaction begins, what fails fails for every delivery.
    pub fn is_before_transaction(self) -> bool {
        matches!(
            self,
            Self::Greeting | Self::Ehlo | Self::StartTls | Self::Auth
        )
    }
}

impl Reply {
    /// The enhanced status code (RFC 3463) at the start of the text.
    pub fn enhanced(&self) -> Option<(u16, u16, u16)> {
        let mut parts = self.text.split_whitespace().next()?.split('.');
        let mut number = || parts.next()?.parse::<u16>().ok();
        let code = (number()?, number()?, number()?);
        (parts.next().is_none() && matches!(code.0, 2 | 4 | 5)).then_some(code)
    }
}

/// What a refusal means. The one place that decides it.
pub fn classify(stage: Stage, reply: &Reply, reason: String) -> SendError {
    match (reply.code, stage) {
        (421, _) => SendError::Away {
            reason,
            after: None,
        },
        (500..600, Stage::Rcpt) => match reply.enhanced() {
            // Not the person is refused but us: "relay access denied".
            Some((_, 7, _)) => SendError::Broken { reason },
            _ => SendError::Permanent { reason },
        },
        (500..600, Stage::Data | Stage::End) => SendError::Permanent { reason },
        (500..600, _) => SendError::Broken { reason },
        (_, stage) if stage.is_before_transaction() => SendError::Away {
            reason,
            after: None,
        },
        _ => SendError::Transient {
            reason,
            after: None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(stage: Stage, code: u16, text: &str) -> &'static str {
        let reply = Reply {
            code,
            text: text.to_owned(),
        };
        match classify(stage, &reply, String::new()) {
            SendError::Transient { .. } => "transient",
            SendError::Away { .. } => "away",
            SendError::Permanent { .. } => "permanent",
            SendError::Broken { .. } => "broken",
            SendError::Unknown { .. } => "unknown",
        }
    }

    #[test]
    fn every_reply_has_its_class_by_stage_and_enhanced_code() {
        for (stage, code, text, expected) in [
            (Stage::Greeting, 421, "too busy", "away"),
            (Stage::Greeting, 450, "later", "away"),
            (Stage::Greeting, 554, "no service", "broken"),
            (Stage::Ehlo, 452, "later", "away"),
            (Stage::Ehlo, 550, "bad name", "broken"),
            (Stage::StartTls, 454, "TLS not available", "away"),
            (Stage::StartTls, 502, "unknown", "broken"),
            (Stage::Auth, 454, "4.7.0 temporary failure", "away"),
            (Stage::Auth, 535, "5.7.8 bad credentials", "broken"),
            (Stage::Auth, 530, "5.7.0 must issue STARTTLS", "broken"),
            (Stage::Mail, 451, "4.3.0 later", "transient"),
            (Stage::Mail, 421, "4.3.2 closing", "away"),
            (Stage::Mail, 550, "5.1.8 sender refused", "broken"),
            (Stage::Rcpt, 450, "4.2.1 greylisted", "transient"),
            (Stage::Rcpt, 421, "closing", "away"),
            (Stage::Rcpt, 550, "5.1.1 no such user", "permanent"),
            (Stage::Rcpt, 552, "5.2.2 mailbox full", "permanent"),
            (Stage::Rcpt, 550, "no such user", "permanent"),
            (Stage::Rcpt, 554, "5.7.1 relay access denied", "broken"),
            (Stage::Rcpt, 550, "5.4.1 recipient rejected", "permanent"),
            (Stage::Data, 451, "4.3.0 later", "transient"),
            (Stage::Data, 554, "5.5.1 no valid recipients", "permanent"),
            (Stage::End, 451, "4.3.0 later", "transient"),
            (Stage::End, 421, "closing", "away"),
            (Stage::End, 554, "5.7.1 looks like spam", "permanent"),
            (Stage::End, 250, "", "transient"),
        ] {
            assert_eq!(
                class(stage, code, text),
                expected,
                "{code} {text} at {stage:?}"
            );
        }
    }

    #[test]
    fn an_enhanced_code_is_three_numbers_at_the_start() {
        let enhanced = |text: &str| {
            Reply {
                code: 550,
                text: text.to_owned(),
            }
            .enhanced()
        };
        assert_eq!(enhanced("5.7.1 denied"), Some((5, 7, 1)));
        for text in [
            "",
            "denied",
            "5.7 denied",
            "5.7.1.2 denied",
            "9.1.1 denied",
            "192.0.2.1",
        ] {
            assert_eq!(enhanced(text), None, "{text}");
        }
    }
}
