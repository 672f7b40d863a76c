//! Mail by SMTP: one recipient per transaction, TLS never downgraded, a bound on every step, and every failure in its class.
//!
//! lettre builds the message and words the commands. The connection is ours, because a code is at stake: what a
//! timeout covers, which answer belongs to which command, and what lies in a buffer before TLS must be known exactly.

mod class;
mod config;
mod dialogue;
mod hop;
mod login;
mod park;
mod probe;
mod relay;
mod sentence;

use std::time::Duration;
use std::time::SystemTime;

use async_trait::async_trait;
use lettre::Address;
use lettre::message::Mailbox;
use lettre::transport::smtp::commands::Data;
use lettre::transport::smtp::commands::Mail;
use lettre::transport::smtp::commands::Rcpt;
use lettre::transport::smtp::extension::MailBodyParameter;
use lettre::transport::smtp::extension::MailParameter;
use lettre::transport::smtp::extension::RcptParameter;
use tokio::time::Instant;

pub use self::config::Config;
use crate::channel::Attempt;
use crate::channel::Carrier;
use crate::channel::Class;
use crate::channel::Receipt;
use crate::channel::SendError;
use crate::channel::mail;
use crate::channel::probe::Probe;
use crate::secret::Redactor;
use crate::secret::Secret;
use class::Fault;
use class::Stage;
use class::Standing;
use class::asks_elsewhere;
use class::class;
use class::standing;
use dialogue::Reply;
use hop::Hop;
use login::Login;
use login::Proof;
use relay::Failure;
use relay::Relay;
use relay::Session;
use sentence::sentence;

/// So long a relay may take to be connected to while there is another.
const MAX_CONNECT: Duration = Duration::from_secs(5);

/// An envelope id has at most 100 characters (RFC 3461, 4.4).
const MAX_ENVELOPE_ID_CHARS: usize = 100;

/// The relays of a channel, and what every mail to them has in common.
pub struct Smtp {
    /// In their order; at least one.
    hops: Vec<Hop>,
    login: Option<Login>,
    dsn: bool,
    step: Duration,
    final_dot: Duration,
    sender: mail::Sender,
    return_path: Address,
    to: Option<Mailbox>,
}

/// What is handed to a relay.
struct Letter<'a> {
    to: Address,
    message: Vec<u8>,
    id: &'a str,
}

impl Smtp {
    /// Whether every mail goes to one fixed place that several people read.
    pub fn shared(&self) -> bool {
        self.to.is_some()
    }

    /// What must never be shown: the password and the shapes in which AUTH sends it, or what tokens are asked for with.
    pub fn secrets(&self) -> Vec<Secret> {
        self.login.as_ref().map_or_else(Vec::new, Login::secrets)
    }

    /// One try with one relay.
    async fn hand_over(
        &self,
        hop: &Hop,
        letter: &Letter<'_>,
        attempt: &Attempt<'_>,
        patience: Duration,
    ) -> Result<Reply, Stop> {
        if let Some(session) = hop.waiting(attempt).await {
            match self.transact(hop, session, letter, attempt).await {
                // That a connection had enough after some mails says nothing about the relay.
                Err(stop) if stop.is_farewell() => {}
                outcome => return outcome,
            }
        }
        let session = self.dial(&hop.relay, attempt, patience).await?;
        self.transact(hop, session, letter, attempt).await
    }

    /// One mail by a connection, which then waits for the next one if it is as good as before.
    async fn transact(
        &self,
        hop: &Hop,
        mut session: Session,
        letter: &Letter<'_>,
        attempt: &Attempt<'_>,
    ) -> Result<Reply, Stop> {
        let redactor = attempt.redactor.with(session.secrets.iter().cloned());
        let attempt = &Attempt {
            redactor: &redactor,
            ..*attempt
        };
        let outcome = match self.begin(&mut session, attempt, letter).await {
            Ok(()) => self.finish(&mut session, attempt, letter).await,
            Err(stop) => Err(stop),
        };
        if outcome.as_ref().map_or_else(Stop::in_step, |_| true) && session.dialogue.in_step() {
            hop.park(session);
        }
        outcome
            .map(|reply| reply.cleaned(&redactor))
            .map_err(|stop| stop.cleaned(&redactor))
    }

    /// A connection that is ready for MAIL. A token that is refused may have been revoked, so that a new one is asked for, once.
    async fn dial(
        &self,
        relay: &Relay,
        attempt: &Attempt<'_>,
        patience: Duration,
    ) -> Result<Session, Stop> {
        let (username, tokens) = match &self.login {
            None => {
                return relay
                    .dial(attempt, patience, None)
                    .await
                    .map_err(Stop::Step);
            }
            Some(Login::Password { username, password }) => {
                let proof = Proof::Password { username, password };
                return relay
                    .dial(attempt, patience, Some(proof))
                    .await
                    .map_err(Stop::Step);
            }
            Some(Login::Token { username, tokens }) => (username, tokens),
        };
        let token = tokens.token(attempt).await.map_err(Stop::Told)?;
        let tried = self
            .dial_with(username, &token.secret, relay, attempt, patience)
            .await;
        match tried {
            Err(stop) if token.kept && stop.refuses_login() => {}
            tried => return tried,
        }
        let token = tokens
            .instead_of(&token, attempt)
            .await
            .map_err(Stop::Told)?;
        self.dial_with(username, &token.secret, relay, attempt, patience)
            .await
    }

    async fn dial_with(
        &self,
        username: &str,
        token: &Secret,
        relay: &Relay,
        attempt: &Attempt<'_>,
        patience: Duration,
    ) -> Result<Session, Stop> {
        let proof = Proof::Token { username, token };
        let redactor = attempt.redactor.with(proof.secrets());
        let attempt = Attempt {
            redactor: &redactor,
            ..*attempt
        };
        let dialled = relay.dial(&attempt, patience, Some(proof)).await;
        dialled.map_err(|failure| Stop::Step(failure).cleaned(&redactor))
    }

    /// Names the sender and the recipient, and makes the delivery durable as being sent.
    async fn begin(
        &self,
        session: &mut Session,
        attempt: &Attempt<'_>,
        letter: &Letter<'_>,
    ) -> Result<(), Stop> {
        let foreign = !letter.to.user().is_ascii();
        if foreign && !session.offer.has("SMTPUTF8") {
            return Err(Stop::Step((Stage::Rcpt, Fault::Foreign)));
        }
        let dsn = self.dsn && session.offer.has("DSN");
        let mut of_mail = Vec::new();
        let mut of_rcpt = Vec::new();
        if foreign {
            // Who offers SMTPUTF8 offers 8BITMIME as well (RFC 6531, 3.1).
            of_mail.push(MailParameter::Body(MailBodyParameter::EightBitMime));
            of_mail.push(MailParameter::SmtpUtfEight);
        }
        if dsn {
            // Only the head comes back in a bounce: the body holds the code.
            of_mail.push(parameter("RET", "HDRS"));
            of_mail.push(parameter("ENVID", letter.id));
            of_rcpt.push(demand("NOTIFY", "FAILURE,DELAY"));
            if !foreign {
                of_rcpt.push(demand("ORCPT", &format!("rfc822;{}", letter.to)));
            }
        }
        let from = Mail::new(Some(self.return_path.clone()), of_mail);
        let reply = session.dialogue.say(attempt, from, self.step).await;
        stop(Stage::Mail, reply, &[250])?;
        let rcpt = Rcpt::new(letter.to.clone(), of_rcpt);
        let reply = session.dialogue.say(attempt, rcpt, self.step).await;
        stop(Stage::Rcpt, reply, &[250, 251])?;
        attempt.commit.commit().await.map_err(Stop::Told)
    }

    /// From DATA to the answer to the final dot.
    async fn finish(
        &self,
        session: &mut Session,
        attempt: &Attempt<'_>,
        letter: &Letter<'_>,
    ) -> Result<Reply, Stop> {
        let dialogue = &mut session.dialogue;
        let reply = dialogue.say(attempt, Data, self.step).await;
        stop(Stage::Data, reply, &[354])?;
        let sent = dialogue.content(attempt, &letter.message, self.step).await;
        sent.map_err(|fault| Stop::Step((Stage::Data, fault)))?;
        let reply = dialogue.final_dot(attempt, self.step, self.final_dot).await;
        stop(Stage::Content, reply, &[250])
    }

    /// Remembers how one of several relays fared; of a single one the channel's health says all.
    fn note(&self, hop: &Hop, standing: Standing, reason: &str) {
        if self.hops.len() > 1 {
            hop.note(standing, reason, Instant::now());
        }
    }

    /// The letter, or why there can be none.
    fn letter<'a>(&self, attempt: &'a Attempt<'_>) -> Result<Letter<'a>, String> {
        let to = match (&self.to, attempt.to) {
            (Some(fixed), _) => fixed.clone(),
            (None, Some(person)) => mail::person(person)?,
            (None, None) => return Err("the delivery has no recipient".to_owned()),
        };
        let message = mail::build(&self.sender, &to, attempt.note, SystemTime::now())?;
        Ok(Letter {
            to: to.email,
            message,
            id: attempt
                .note
                .id
                .get(..MAX_ENVELOPE_ID_CHARS)
                .unwrap_or(&attempt.note.id),
        })
    }
}

fn parameter(keyword: &str, value: &str) -> MailParameter {
    MailParameter::Other {
        keyword: keyword.to_owned(),
        value: Some(value.to_owned()),
    }
}

fn demand(keyword: &str, value: &str) -> RcptParameter {
    RcptParameter::Other {
        keyword: keyword.to_owned(),
        value: Some(value.to_owned()),
    }
}

/// Why a transaction ended without acceptance.
enum Stop {
    Step(Failure),
    /// Something else than the relay says so: the outbox, or the server that gives tokens.
    Told(SendError),
}

impl Stop {
    /// Whether the connection is as good as before: the peer answered in order and goes on listening.
    fn in_step(&self) -> bool {
        match self {
            Self::Told(_) | Self::Step((_, Fault::Foreign)) => true,
            Self::Step((_, Fault::Answer(reply))) => reply.code >= 400 && reply.code != 421,
            Self::Step(_) => false,
        }
    }

    /// Whether the peer ended the connection while nothing was at stake yet.
    fn is_farewell(&self) -> bool {
        match self {
            Self::Step((Stage::Mail | Stage::Rcpt, Fault::Lost(_))) => true,
            Self::Step((Stage::Mail | Stage::Rcpt, Fault::Answer(reply))) => reply.code == 421,
            Self::Step(_) | Self::Told(_) => false,
        }
    }

    /// Whether the peer doesn't believe who we are.
    fn refuses_login(&self) -> bool {
        match self {
            Self::Step((Stage::Auth, Fault::Answer(reply) | Fault::Refused(reply, _))) => {
                reply.code >= 500
            }
            Self::Step(_) | Self::Told(_) => false,
        }
    }

    /// The same without what the connection was opened with.
    fn cleaned(self, redactor: &Redactor) -> Self {
        match self {
            Self::Step((stage, Fault::Answer(reply))) => {
                Self::Step((stage, Fault::Answer(reply.cleaned(redactor))))
            }
            Self::Step((stage, Fault::Refused(reply, challenge))) => {
                Self::Step((stage, Fault::Refused(reply.cleaned(redactor), challenge)))
            }
            other => other,
        }
    }
}

fn stop(stage: Stage, reply: Result<Reply, Fault>, wanted: &[u16]) -> Result<Reply, Stop> {
    match reply {
        Ok(reply) if wanted.contains(&reply.code) => Ok(reply),
        Ok(reply) => Err(Stop::Step((stage, Fault::Answer(reply)))),
        Err(fault) => Err(Stop::Step((stage, fault))),
    }
}

/// What several relays' failures mean together. The channel is suspended only if every relay needs an operator.
fn together(mut errors: Vec<(Class, String)>) -> SendError {
    if errors.len() == 1 {
        let (class, reason) = errors.remove(0);
        return class.error(reason, None);
    }
    let all = |wanted: Class| errors.iter().all(|(class, _)| *class == wanted);
    let any = |wanted: Class| errors.iter().any(|(class, _)| *class == wanted);
    let class = match () {
        () if all(Class::Permanent) => Class::Permanent,
        () if all(Class::Broken) => Class::Broken,
        () if any(Class::Away) && !any(Class::Transient) => Class::Away,
        () => Class::Transient,
    };
    let reasons: Vec<_> = errors.into_iter().map(|(_, reason)| reason).collect();
    class.error(reasons.join("; "), None)
}

#[async_trait]
impl Carrier for Smtp {
    async fn send(&self, attempt: &Attempt<'_>) -> Result<Receipt, SendError> {
        let letter = self.letter(attempt);
        let letter = letter.map_err(|reason| SendError::Permanent { reason })?;
        // The address as it goes on the wire may be written otherwise than in the directory.
        let to = letter.to.to_string();
        let shapes = [to.replace('+', "+2B").replace('=', "+3D"), to];
        let redactor = attempt.redactor.with(shapes.map(Secret::new));
        let attempt = &Attempt {
            redactor: &redactor,
            ..*attempt
        };
        let token = matches!(self.login, Some(Login::Token { .. }));

        let now = Instant::now();
        let (fit, resting): (Vec<_>, Vec<_>) = self.hops.iter().partition(|hop| !hop.rests(now));
        let mut left = self.hops.len();
        let mut errors = Vec::new();
        for hop in fit.iter().chain(&resting) {
            let answered = errors.iter().any(|(class, _)| *class == Class::Transient);
            if answered && hop.rests(now) {
                break;
            }
            left -= 1;
            let patience = match left {
                0 => self.step,
                _ => self.step.min(MAX_CONNECT),
            };
            match self.hand_over(hop, &letter, attempt, patience).await {
                Ok(reply) => {
                    self.note(hop, Standing::Well, "");
                    let said = redactor.clean(&reply.text());
                    return Ok(Receipt {
                        said: match self.hops.len() {
                            1 => said,
                            _ => format!("{}: {said}", hop.relay),
                        },
                    });
                }
                Err(Stop::Told(error)) => return Err(error),
                Err(Stop::Step((stage, fault))) => {
                    let class = class(stage, &fault);
                    let (standing, next) = (standing(class, &fault), asks_elsewhere(class, &fault));
                    let reason = sentence(&hop.relay, token, (stage, fault), &redactor);
                    self.note(hop, standing, &reason);
                    if !next {
                        return Err(class.error(reason, None));
                    }
                    errors.push((class, reason));
                }
            }
        }
        Err(together(errors))
    }

    async fn probe(&self, attempt: &Attempt<'_>, found: &mut Vec<Probe>) {
        self.try_relays(attempt, found).await;
    }
}
