//! A failure in words that an administrator understands.

use super::class::Fault;
use super::class::Stage;
use super::dialogue::Reply;
use super::relay::Relay;
use crate::secret::Redactor;

/// What failed, and where one can tell, what to do about it. `token`: we log in with one.
pub(super) fn sentence(
    relay: &Relay,
    token: bool,
    (stage, fault): (Stage, Fault),
    redactor: &Redactor,
) -> String {
    let answered = match stage {
        Stage::Greeting => "greeted".to_owned(),
        _ => format!("answered {stage}"),
    };
    match fault {
        Fault::Answer(reply) => {
            let said = redactor.clean(&reply.text());
            let advice =
                advice(stage, &reply, token).map_or_else(String::new, |a| format!(": {a}"));
            format!("{relay} {answered} with {said}{advice}")
        }
        Fault::Refused(reply, challenge) => {
            let said = redactor.clean(&reply.text());
            let advice =
                advice(stage, &reply, token).map_or_else(String::new, |a| format!(": {a}"));
            format!("{relay} {answered} with {said} ({challenge}){advice}")
        }
        Fault::Garbled(what) => format!("{relay} {answered} with {what}"),
        Fault::Slow(limit) if stage == Stage::Connect => {
            format!("{relay} can't be reached: no answer within {limit:?}")
        }
        Fault::Slow(limit) => format!("{relay} gave no answer at {stage} within {limit:?}"),
        Fault::Lost(e) if stage == Stage::Connect => format!("{relay} can't be reached: {e}"),
        Fault::Lost(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            format!("{relay} closed the connection at {stage}")
        }
        Fault::Lost(e) => {
            let e = redactor.clean(&e.to_string());
            format!("the connection to {relay} broke at {stage}: {e}")
        }
        Fault::Unfit(what) => format!("{relay} {what}"),
        Fault::Foreign => {
            format!(
                "{relay} takes no address with letters outside ASCII before the @ (it does not offer SMTPUTF8)"
            )
        }
        Fault::Certificate(sentence) => redactor.clean(&sentence),
    }
}

/// What Exchange Online means by its statuses, and what to do.
fn advice(stage: Stage, reply: &Reply, token: bool) -> Option<&'static str> {
    match (stage, reply.enhanced()?, token) {
        (_, (5, 7, 30), _) => Some(
            "passwords are no longer taken there; write auth = \"xoauth2\", or use a channel of type graph",
        ),
        (Stage::Auth, (5, 7, 139), false) => Some(
            "a policy forbids this log-in, most often because passwords (basic authentication) are switched off; write auth = \"xoauth2\", or use a channel of type graph",
        ),
        (Stage::Auth, (5, 7, 139), true) => Some(
            "a policy forbids this log-in, most often because SMTP AUTH is switched off for the tenant or this mailbox; Set-CASMailbox -SmtpClientAuthenticationDisabled $false switches it on for one mailbox",
        ),
        (Stage::Auth, (5, 7, 3), false) => Some(
            "the user name or the password is wrong, or passwords are switched off; Exchange Online takes auth = \"xoauth2\"",
        ),
        (Stage::Auth, (5, 7, 3), true) => Some(
            "the token was given, but not for this mailbox; for Exchange Online see that scope is https://outlook.office365.com/.default (a token for Graph doesn't do), that the application has the permission SMTP.SendAsApp with an administrator's consent, that New-ServicePrincipal was given the object id of the enterprise application, and that Add-MailboxPermission gave it the mailbox in username",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exchange_onlines_statuses_come_with_advice() {
        for (stage, text, token, word) in [
            (
                Stage::Auth,
                "535 5.7.3 Authentication unsuccessful",
                true,
                "SMTP.SendAsApp",
            ),
            (
                Stage::Auth,
                "535 5.7.3 Authentication unsuccessful",
                false,
                "password is wrong",
            ),
            (
                Stage::Auth,
                "535 5.7.139 Authentication unsuccessful",
                true,
                "SmtpClientAuthenticationDisabled",
            ),
            (
                Stage::Auth,
                "535 5.7.139 Authentication unsuccessful",
                false,
                "basic authentication",
            ),
            (
                Stage::Auth,
                "550 5.7.30 Basic authentication is not supported",
                false,
                "xoauth2",
            ),
            (
                Stage::Mail,
                "550 5.7.30 Basic authentication is not supported",
                false,
                "xoauth2",
            ),
            (Stage::Auth, "535 5.7.8 no", true, ""),
            (Stage::Rcpt, "550 5.7.3 no", true, ""),
            (Stage::Auth, "535 no", true, ""),
        ] {
            let (code, line) = text.split_once(' ').unwrap();
            let reply = Reply {
                code: code.parse().unwrap(),
                lines: vec![line.to_owned()],
            };
            let said = advice(stage, &reply, token).unwrap_or_default();
            assert_eq!(said.is_empty(), word.is_empty(), "{text}: {said}");
            assert!(said.contains(word), "{text}: {said}");
        }
    }
}
