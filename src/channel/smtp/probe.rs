//! What can be tried with each relay without a mail: everything up to MAIL FROM, which RSET takes back.

use lettre::transport::smtp::commands::Mail;
use lettre::transport::smtp::commands::Rset;

use super::MAX_CONNECT;
use super::Smtp;
use super::Stop;
use super::class::Fault;
use super::class::Stage;
use super::login::Login;
use super::relay::Failure;
use super::relay::Relay;
use super::relay::Security;
use super::relay::Session;
use super::sentence::sentence;
use super::stop;
use crate::channel::Attempt;
use crate::channel::probe::Probe;
use crate::channel::reach;

/// The right of an application to log in to Exchange Online.
const ROLE: &str = "SMTP.SendAsApp";

impl Smtp {
    /// Tries the relays one after the other, and the server that gives tokens before them.
    pub(super) async fn try_relays(&self, attempt: &Attempt<'_>, found: &mut Vec<Probe>) {
        if let Some(Login::Token { tokens, .. }) = &self.login
            && !tokens.probe(attempt, ROLE, found).await
        {
            return;
        }
        let mut refused = false;
        for hop in &self.hops {
            let relay = &hop.relay;
            let what = relay.to_string();
            if refused {
                found.push(Probe::unknown(
                    what,
                    "was not tried: another refused log-in might lock the account",
                ));
                continue;
            }
            attempt.transcript.line(|| format!("* {relay}"));
            let patience = self.step.min(MAX_CONNECT);
            match self.dial(relay, attempt, patience).await {
                Ok(session) => self.try_sender(relay, session, attempt, found).await,
                Err(Stop::Told(error)) => found.push(Probe::bad(what, error.to_string())),
                Err(Stop::Step(failure)) => {
                    refused = failure.0 == Stage::Auth;
                    self.tell(relay, failure, attempt, found);
                }
            }
        }
    }

    /// What the relay offers, and whether it takes mail from our sender.
    async fn try_sender(
        &self,
        relay: &Relay,
        mut session: Session,
        attempt: &Attempt<'_>,
        found: &mut Vec<Probe>,
    ) {
        let redactor = attempt.redactor.with(session.secrets.iter().cloned());
        let attempt = &Attempt {
            redactor: &redactor,
            ..*attempt
        };
        let what = relay.to_string();
        let by = match (&session.tls, &relay.security) {
            (Some(told), _) => format!("by {told}"),
            (None, Security::None) => "in the clear (tls = \"none\")".to_owned(),
            (None, _) => "by TLS".to_owned(),
        };
        let login = match &self.login {
            Some(_) => "; it takes the log-in",
            None => "; no log-in is configured",
        };
        found.push(Probe::good(&what, format!("can be reached {by}{login}")));

        let offers = redactor.clean(&session.offer.keywords().join(", "));
        let mut lacks = Vec::new();
        if !session.offer.has("SMTPUTF8") {
            lacks.push("no SMTPUTF8, so addresses with letters outside ASCII before the @ can't be written to");
        }
        if self.dsn && !session.offer.has("DSN") {
            lacks.push("no DSN, so that a bounce may hold the whole mail");
        }
        let lacks = match lacks.is_empty() {
            true => String::new(),
            false => format!("; {}", lacks.join("; ")),
        };
        let offers = match offers.is_empty() {
            true => "nothing beyond plain SMTP".to_owned(),
            false => offers,
        };
        found.push(Probe::good(&what, format!("offers {offers}{lacks}")));

        let from = Mail::new(Some(self.return_path.clone()), Vec::new());
        let reply = session.dialogue.say(attempt, from, self.step).await;
        match stop(Stage::Mail, reply, &[250]) {
            Ok(_) => {
                found.push(Probe::good(
                    &what,
                    format!(
                        "takes mail from {}; whether it takes one for a person shows only a mail: ftm-relay send-test",
                        self.return_path
                    ),
                ));
                // It is taken back, and the connection is left either way.
                drop(session.dialogue.say(attempt, Rset, self.step).await);
            }
            Err(Stop::Step(failure)) => self.tell(relay, failure, attempt, found),
            Err(Stop::Told(error)) => found.push(Probe::bad(&what, error.to_string())),
        }
        session.dialogue.quit(MAX_CONNECT).await;
    }

    /// How far it went, what failed, and what to do about it.
    fn tell(&self, relay: &Relay, failure: Failure, attempt: &Attempt<'_>, found: &mut Vec<Probe>) {
        let what = relay.to_string();
        let before = match failure.0 {
            Stage::Tls if matches!(relay.security, Security::Implicit(_)) => Some("can be reached"),
            Stage::StartTls | Stage::Tls => Some("can be reached, and speaks SMTP"),
            Stage::Auth => Some("can be reached, and what comes before the log-in works"),
            _ => None,
        };
        found.extend(before.map(|before| Probe::good(&what, before)));
        let hint = self.hint(&failure).map(|hint| format!("; {hint}"));
        let token = matches!(self.login, Some(Login::Token { .. }));
        let said = sentence(relay, token, failure, attempt.redactor);
        let text = format!("{said}{}", hint.unwrap_or_default());
        attempt.transcript.line(|| format!("! {text}"));
        found.push(Probe::bad(what, text));
    }

    /// What to do, where the sentence about the failure doesn't say so itself.
    fn hint(&self, (stage, fault): &Failure) -> Option<String> {
        let text = match (stage, fault) {
            (Stage::Connect, Fault::Lost(e)) => reach::advice(e),
            (Stage::Connect, Fault::Slow(_)) => reach::SILENT,
            (Stage::Greeting, Fault::Slow(_)) => {
                "if it expects TLS from the start, write tls = \"implicit\""
            }
            (Stage::Tls, Fault::Lost(_)) => {
                "if it speaks SMTP in the clear at first, write tls = \"starttls\""
            }
            (Stage::Auth, Fault::Answer(reply))
                if reply.code == 535 && reply.enhanced() != Some((5, 7, 139)) =>
            {
                "see username and password, and that this account may send by SMTP"
            }
            (Stage::Mail, Fault::Answer(reply)) if reply.code == 530 => {
                "it wants a log-in: write auth, username and password"
            }
            (Stage::Mail, Fault::Answer(reply)) if reply.code >= 500 => {
                return Some(format!(
                    "it doesn't take {} as the sender: see `from` and `return_path`, that the account may send as that address, or that the relay takes mail from this machine",
                    self.return_path
                ));
            }
            _ => return None,
        };
        Some(text.to_owned())
    }
}
