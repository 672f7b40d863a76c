//! Addresses made of the user name: `{user}@example.com`.

use async_trait::async_trait;
use serde::Deserialize;
use toml::Spanned;

use crate::activation::Activation;
use crate::message::Recipient;
use crate::recipients::Recipients;
use crate::settings::Check;

use super::Answer;
use super::Directory;
use super::LookupError;
use super::Match;
use super::address;

/// `type = "pattern"`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// An address with `{user}` before the @.
    pub email: Spanned<String>,
    /// Whose events it answers for.
    #[serde(rename = "match", default)]
    pub matches: Match,
}

/// The only placeholder.
const USER: &str = "{user}";

impl Config {
    pub(super) fn build(self, recipients: &Recipients, check: &mut Check) -> Option<Pattern> {
        let span = self.email.span();
        let email = self.email.into_inner();
        let Some((local, domain)) = email.rsplit_once('@') else {
            check.problem(
                span,
                format!("\"{email}\" is no address; write it as in \"{{user}}@example.com\""),
            );
            return None;
        };
        let mut good = true;
        if domain.contains(['{', '}']) {
            check.problem(
                span.clone(),
                "a user name may not choose the domain; write {user} before the @ only",
            );
            good = false;
        } else if !recipients.allows(&format!("user@{domain}")) {
            check.problem(
                span.clone(),
                format!("{domain} is not among `recipients.domains`, so no code could go there"),
            );
            good = false;
        }
        if !local.contains(USER) {
            check.problem(
                span.clone(),
                "without {user} every code would go to one address; write it as in \"{user}@example.com\"",
            );
            good = false;
        }
        let rest = local.replace(USER, "");
        if rest.contains(['{', '}']) {
            check.problem(
                span.clone(),
                "{user} is the only placeholder of a pattern; use a table or another directory for anything else",
            );
            good = false;
        } else if good && let Err(why) = address(&email.replace(USER, "user")) {
            check.problem(span, format!("\"{email}\" {why}"));
            good = false;
        }
        good.then_some(Pattern { email })
    }
}

/// Knows everybody whose name can stand in an address.
pub(super) struct Pattern {
    email: String,
}

#[async_trait]
impl Directory for Pattern {
    fn name(&self) -> &str {
        "pattern"
    }

    async fn find(&self, who: &Activation) -> Result<Answer, LookupError> {
        Ok(match self.make(&who.person) {
            Ok(email) => Answer::Person(Recipient {
                email,
                name: None,
                phone: None,
                language: None,
                source: "pattern".to_owned(),
            }),
            Err(why) => Answer::Unknown(why.to_owned()),
        })
    }
}

impl Pattern {
    fn make(&self, user: &str) -> Result<String, &'static str> {
        if user.is_empty() {
            return Err("makes no address of an empty name");
        }
        if user.contains(['@', '\\']) {
            return Err(
                "makes no address of a name that still holds @ or \\ (`strip_domain` takes domains off)",
            );
        }
        if !is_dot_atom(user) {
            return Err(
                "makes no address of a name with characters that an address can't hold unquoted",
            );
        }
        let email = self.email.replace(USER, user);
        match address(&email) {
            Ok(_) => Ok(email),
            Err(_) => Err("makes no valid address of this name"),
        }
    }
}

/// RFC 5321, 4.1.2: `Atom *("." Atom)`, in ASCII.
fn is_dot_atom(text: &str) -> bool {
    text.split('.').all(|atom| {
        !atom.is_empty()
            && atom
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&b))
    })
}
