//! How we log in to a relay: a password by PLAIN or LOGIN, a token by XOAUTH2.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;
use zeroize::Zeroizing;

use super::class::Fault;
use super::dialogue::Dialogue;
use super::dialogue::Reply;
use super::relay::Offer;
use crate::channel::Attempt;
use crate::channel::oauth::Tokens;
use crate::secret::Redactor;
use crate::secret::Secret;

/// Who we are to every relay of a channel.
pub(super) enum Login {
    Password {
        username: String,
        password: Secret,
    },
    Token {
        username: String,
        tokens: Box<Tokens>,
    },
}

impl Login {
    /// What must never be shown, as far as it is known from the start.
    pub(super) fn secrets(&self) -> Vec<Secret> {
        match self {
            Self::Password { username, password } => {
                Proof::Password { username, password }.secrets()
            }
            Self::Token { tokens, .. } => tokens.secrets(),
        }
    }
}

/// What shows one relay that it is us.
#[derive(Clone, Copy)]
pub(super) enum Proof<'a> {
    Password {
        username: &'a str,
        password: &'a Secret,
    },
    Token {
        username: &'a str,
        token: &'a Secret,
    },
}

impl Proof<'_> {
    /// The secret, and the shapes in which AUTH sends it.
    pub(super) fn secrets(&self) -> Vec<Secret> {
        let (secret, shapes) = match self {
            Self::Password { username, password } => {
                (password, vec![plain(username, password), encoded(password)])
            }
            Self::Token { username, token } => (token, vec![xoauth2(username, token)]),
        };
        let shapes = shapes.iter().map(|shape| Secret::new(shape.as_str()));
        std::iter::once((*secret).clone()).chain(shapes).collect()
    }

    /// Logs in by what the relay offers.
    pub(super) async fn show(
        &self,
        dialogue: &mut Dialogue,
        attempt: &Attempt<'_>,
        offer: &Offer,
        step: Duration,
    ) -> Result<Reply, Fault> {
        let offered = offer.words("AUTH").unwrap_or_default();
        let offers = |mechanism: &str| offered.iter().any(|word| word == mechanism);
        let wanted = match self {
            Self::Password { username, password } if offers("PLAIN") => {
                let line = Zeroizing::new(format!("AUTH PLAIN {}\r\n", *plain(username, password)));
                let reply = dialogue.say_secret(attempt, line.as_bytes(), "AUTH PLAIN …", step);
                return reply.await?.expect(235);
            }
            Self::Password { username, password } if offers("LOGIN") => {
                let reply = dialogue.say(attempt, "AUTH LOGIN\r\n", step);
                reply.await?.expect(334)?;
                let name = format!("{}\r\n", STANDARD.encode(username));
                let reply = dialogue.say_secret(attempt, name.as_bytes(), "(user name)", step);
                reply.await?.expect(334)?;
                let line = Zeroizing::new(format!("{}\r\n", *encoded(password)));
                let reply = dialogue.say_secret(attempt, line.as_bytes(), "(password)", step);
                return reply.await?.expect(235);
            }
            Self::Token { username, token } if offers("XOAUTH2") => {
                let line =
                    Zeroizing::new(format!("AUTH XOAUTH2 {}\r\n", *xoauth2(username, token)));
                let reply = dialogue
                    .say_secret(attempt, line.as_bytes(), "AUTH XOAUTH2 …", step)
                    .await?;
                if reply.code != 334 {
                    return reply.expect(235);
                }
                // The relay says why it refuses, and gives its answer only after an empty line.
                let challenge = challenge(&reply, attempt.redactor);
                attempt.transcript.line(|| format!("* {challenge}"));
                let reply = dialogue.say(attempt, "\r\n", step).await?;
                return match reply.code {
                    235 => Ok(reply),
                    _ => Err(Fault::Refused(reply, challenge)),
                };
            }
            Self::Password { .. } => "neither AUTH PLAIN nor LOGIN",
            Self::Token { .. } => "no AUTH XOAUTH2",
        };
        Err(Fault::Unfit(match (offered.is_empty(), self) {
            (true, Self::Password { .. }) => "offers no AUTH here; leave out auth, username and password, or write another port or tls".to_owned(),
            (true, Self::Token { .. }) => "offers no AUTH here; write another port or tls".to_owned(),
            (false, _) => {
                let list = attempt.redactor.clean(&offered.join(", "));
                format!("offers {wanted} but {list}")
            }
        }))
    }
}

/// PLAIN's initial response (RFC 4616): no other identity than the one that logs in.
fn plain(username: &str, password: &Secret) -> Zeroizing<String> {
    let response = Zeroizing::new(format!("\0{username}\0{}", password.expose()));
    Zeroizing::new(STANDARD.encode(response.as_bytes()))
}

/// LOGIN's second answer.
fn encoded(password: &Secret) -> Zeroizing<String> {
    Zeroizing::new(STANDARD.encode(password.expose()))
}

/// XOAUTH2's initial response, as Google and Microsoft describe it.
fn xoauth2(username: &str, token: &Secret) -> Zeroizing<String> {
    let response = Zeroizing::new(format!(
        "user={username}\x01auth=Bearer {}\x01\x01",
        token.expose()
    ));
    Zeroizing::new(STANDARD.encode(response.as_bytes()))
}

/// What a relay that refuses a token says in its challenge.
#[derive(Deserialize)]
struct Challenge {
    status: Option<Value>,
    schemes: Option<String>,
    scope: Option<String>,
}

/// The challenge as a sentence.
fn challenge(reply: &Reply, redactor: &Redactor) -> String {
    let text = reply.lines.join("");
    let json = STANDARD.decode(text.trim()).unwrap_or_default();
    let Ok(challenge) = serde_json::from_slice::<Challenge>(&json) else {
        return "it gave no reason that can be read".to_owned();
    };
    let status = challenge.status.map(|status| match status {
        Value::String(text) => text,
        other => other.to_string(),
    });
    let parts = [
        ("status", status),
        ("schemes", challenge.schemes),
        ("scope", challenge.scope),
    ];
    let parts: Vec<_> = parts
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name} {}", value?)))
        .collect();
    format!("its reason was: {}", redactor.clean(&parts.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_initial_response_is_that_of_the_documents() {
        // The example that Google gives.
        let encoded = xoauth2(
            "someuser@example.com",
            &Secret::new("ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg"),
        );
        let decoded = STANDARD.decode(encoded.as_bytes()).unwrap();
        assert_eq!(
            decoded,
            b"user=someuser@example.com\x01auth=Bearer ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg\x01\x01"
        );
    }

    #[test]
    fn a_challenge_is_read_or_said_to_be_unreadable() {
        let read = |text: &str| {
            let reply = Reply {
                code: 334,
                lines: vec![text.to_owned()],
            };
            challenge(&reply, &Redactor::default())
        };
        let encode = |json: &str| STANDARD.encode(json);
        for status in ["\"401\"", "401"] {
            let json = format!(
                "{{\"status\":{status},\"schemes\":\"bearer mac\",\"scope\":\"https://mail.example/\"}}"
            );
            assert_eq!(
                read(&encode(&json)),
                "its reason was: status 401, schemes bearer mac, scope https://mail.example/"
            );
        }
        for odd in ["", "not base64!", "VXNlcm5hbWU6", &encode("[]")] {
            assert_eq!(read(odd), "it gave no reason that can be read", "{odd}");
        }
    }
}
