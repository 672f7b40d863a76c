//! The channel `graph`: mail by Microsoft Graph's `sendMail`, without SMTP and without a password.
//!
//! The message goes as JSON and not as MIME, because only JSON can say `saveToSentItems: false`: by MIME every code would
//! stay in the sender's mailbox. JSON has one body, so it is the HTML one, and only headers that begin with `x-`.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lettre::message::Mailbox;
use reqwest::Url;
use reqwest::header::AUTHORIZATION;
use reqwest::header::HeaderMap;
use reqwest::header::HeaderValue;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;
use toml::Spanned;

use crate::channel::Attempt;
use crate::channel::Carrier;
use crate::channel::Class;
use crate::channel::Receipt;
use crate::channel::SendError;
use crate::channel::http;
use crate::channel::http::Answer;
use crate::channel::http::Endpoint;
use crate::channel::http::Way;
use crate::channel::mail;
use crate::channel::oauth;
use crate::channel::oauth::Token;
use crate::channel::oauth::Tokens;
use crate::channel::pace::rate;
use crate::channel::probe::Probe;
use crate::channel::qr;
use crate::limits::Rate;
use crate::message::Notification;
use crate::secret::Secret;
use crate::settings::Check;
use crate::settings::SecretSource;

/// Where Graph is, outside the national clouds.
const API: &str = "https://graph.microsoft.com/v1.0";

/// What is shown of an error; beside it stand numbers for Microsoft's support.
const SHOWN: &[&str] = &["error/code", "error/message"];

/// Exchange Online sends so many mails from one mailbox.
pub(super) const RATES: &[Rate] = &[rate(30, Duration::from_secs(60))];

/// `type = "graph"`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    tenant: Spanned<String>,
    client_id: Spanned<String>,
    client_secret: SecretSource,
    user: Spanned<String>,
    from: Option<Spanned<String>>,
    reply_to: Option<Spanned<String>>,
    to: Option<Spanned<String>>,
    api: Option<Spanned<String>>,
    login: Option<Spanned<String>>,
    ca_file: Option<Spanned<PathBuf>>,
    proxy: Option<SecretSource>,
    #[serde(default)]
    qr: bool,
}

/// A mailbox that sends.
pub struct Graph {
    endpoint: Endpoint,
    tokens: Tokens,
    from: Option<Mailbox>,
    reply_to: Option<Mailbox>,
    to: Option<Mailbox>,
    /// Whether a code is also shown as an image.
    qr: bool,
}

impl Config {
    /// It has a fixed recipient, whom others may be reading with.
    pub fn shared(&self) -> bool {
        self.to.is_some()
    }

    /// Reads the secret and prepares the connections; nothing is opened.
    pub fn build(self, timeout: Duration, check: &mut Check) -> Option<Graph> {
        let way = Way {
            ca_file: self.ca_file.as_ref(),
            proxy: self.proxy.as_ref(),
            timeout,
        };
        let user = self.user.get_ref();
        let odd = |c: char| c.is_control() || c.is_whitespace() || c == '/';
        let is_user = !user.is_empty() && !user.contains(odd);
        if !is_user {
            check.problem(
                self.user.span(),
                format!(
                    "\"{user}\" is no mailbox; write the address that it logs in with, or its id"
                ),
            );
        }
        let (api, span) = match &self.api {
            Some(api) => (api.get_ref().as_str(), api.span()),
            None => (API, self.user.span()),
        };
        let endpoint = Endpoint::build(&Secret::new(api), span, way, check);
        let origin = Url::parse(api)
            .map_or_else(|_| String::new(), |url| url.origin().ascii_serialization());
        let keys = oauth::Keys {
            needed_by: "type = \"graph\"",
            here: self.tenant.span(),
            default_scope: &format!("{origin}/.default"),
            tenant: Some(&self.tenant),
            login: self.login.as_ref(),
            token_url: None,
            client_id: Some(&self.client_id),
            client_secret: Some(&self.client_secret),
            scope: None,
            way,
        };
        let tokens = keys.build(check);
        let mut mailbox = |text: &Option<Spanned<String>>| match text {
            Some(text) => match mail::mailbox(text.get_ref()) {
                Ok(mailbox) => Some(Some(mailbox)),
                Err(what) => {
                    check.problem(text.span(), format!("\"{}\" {what}", text.get_ref()));
                    None
                }
            },
            None => Some(None),
        };
        let (from, reply_to, to) = (
            mailbox(&self.from),
            mailbox(&self.reply_to),
            mailbox(&self.to),
        );
        let endpoint = endpoint?
            .method("users")
            .method(user)
            .method("sendMail")
            .showing(SHOWN);
        is_user.then_some(Graph {
            endpoint,
            tokens: tokens?,
            from: from?,
            reply_to: reply_to?,
            to: to?,
            qr: self.qr,
        })
    }
}

impl Graph {
    /// What must never be shown.
    pub fn secrets(&self) -> Vec<Secret> {
        self.tokens.secrets()
    }

    /// One request with a token, and our sentence about the answer.
    async fn ask(
        &self,
        attempt: &Attempt<'_>,
        token: &Token,
        body: &Value,
    ) -> Result<Said, SendError> {
        let redactor = attempt.redactor.with([token.secret.clone()]);
        let attempt = Attempt {
            redactor: &redactor,
            ..*attempt
        };
        let bearer = Secret::new(format!("Bearer {}", token.secret.expose()));
        let mut bearer = HeaderValue::from_str(bearer.expose()).map_err(|_| SendError::Away {
            reason: "the token holds a character that no header may hold".to_owned(),
            after: None,
        })?;
        bearer.set_sensitive(true);
        let headers = HeaderMap::from_iter([(AUTHORIZATION, bearer)]);
        let body = body.to_string().into_bytes();
        let answer = self.endpoint.post(&attempt, headers, body).await?;
        Ok(Said {
            reason: self.endpoint.reason(&redactor, &answer),
            answer,
        })
    }
}

#[async_trait]
impl Carrier for Graph {
    async fn send(&self, attempt: &Attempt<'_>) -> Result<Receipt, SendError> {
        let to = match (&self.to, attempt.to) {
            (Some(fixed), _) => Ok(fixed.clone()),
            (None, Some(person)) => mail::person(person),
            (None, None) => Err("the delivery has no recipient".to_owned()),
        };
        let to = to.map_err(|reason| SendError::Permanent { reason })?;
        // The address as it is sent may be written otherwise than in the directory.
        let redactor = attempt.redactor.with([Secret::new(to.email.to_string())]);
        let attempt = &Attempt {
            redactor: &redactor,
            ..*attempt
        };
        let body = message(self, &to, attempt.note);

        let token = self.tokens.token(attempt).await?;
        let mut said = self.ask(attempt, &token, &body).await?;
        if said.answer.status.as_u16() == 401 && token.kept {
            // It may have been revoked. What was refused so was not taken, so that it may be sent again.
            let token = self.tokens.instead_of(&token, attempt).await?;
            said = self.ask(attempt, &token, &body).await?;
        }
        said.judge()?;
        Ok(Receipt { said: said.reason })
    }

    async fn probe(&self, attempt: &Attempt<'_>, found: &mut Vec<Probe>) {
        if self.tokens.probe(attempt, "Mail.Send", found).await
            && self.endpoint.reach(attempt, found).await
        {
            found.push(Probe::unknown(
                self.endpoint.host(),
                "shows only with a mail whether the mailbox in `user` is there and may send: ftm-relay send-test",
            ));
        }
    }
}

/// The request, as Graph documents it.
fn message(graph: &Graph, to: &Mailbox, note: &Notification) -> Value {
    let person = |mailbox: &Mailbox| {
        let mut address = json!({ "address": mailbox.email.to_string() });
        if let Some(name) = &mailbox.name {
            address["name"] = name.as_str().into();
        }
        json!({ "emailAddress": address })
    };
    let image = || {
        let code = note.code().filter(|_| graph.qr)?;
        Some((qr::place(&note.html)?, qr::png(code)?))
    };
    let (html, png) = match image() {
        Some((html, png)) => (html, Some(png)),
        None => (note.html.clone(), None),
    };
    let mut message = json!({
        "subject": mail::subject(note),
        "body": { "contentType": "HTML", "content": html },
        "toRecipients": [person(to)],
        "internetMessageHeaders": [
            { "name": "x-auto-response-suppress", "value": "All" },
            // Graph makes the Message-ID itself; this one stays the same over all tries.
            { "name": "x-ftm-relay-id", "value": note.id },
        ],
    });
    if let Some(png) = png {
        message["attachments"] = json!([{
            "@odata.type": "#microsoft.graph.fileAttachment",
            "name": qr::FILE_NAME,
            "contentType": "image/png",
            "contentBytes": STANDARD.encode(png),
            "contentId": qr::CONTENT_ID,
            "isInline": true,
        }]);
    }
    if let Some(from) = &graph.from {
        message["from"] = person(from);
    }
    if let Some(reply_to) = &graph.reply_to {
        message["replyTo"] = json!([person(reply_to)]);
    }
    json!({ "message": message, "saveToSentItems": false })
}

/// An answer, and our sentence about it.
struct Said {
    answer: Answer,
    reason: String,
}

impl Said {
    /// What Graph means: its word where it is known, else the status.
    fn judge(&self) -> Result<(), SendError> {
        let by_status = http::classify(self.answer.status, self.answer.retry_after, &self.reason);
        let body = self.answer.body.as_deref().unwrap_or_default();
        let body: Value = serde_json::from_str(body).unwrap_or_default();
        match WORDS
            .iter()
            .find(|(word, ..)| body["error"]["code"] == *word)
        {
            Some((_, class, advice)) if by_status.is_err() => {
                Err(class.error(format!("{}: {advice}", self.reason), None))
            }
            _ => by_status,
        }
    }
}

/// Graph's words that concern the mailbox or the application, so that nobody's mail goes out until an operator acts.
const WORDS: [(&str, Class, &str); 7] = [
    (
        "ErrorAccessDenied",
        Class::Broken,
        "the application may not send from this mailbox; give it the role Application Mail.Send in Exchange with a scope that holds the mailbox, or the application permission Mail.Send with an administrator's consent (a change takes up to two hours)",
    ),
    (
        "ErrorSendAsDenied",
        Class::Broken,
        "the mailbox in user may not send as the address in from; leave out from, or give it the right to send as that address",
    ),
    (
        "ErrorInvalidUser",
        Class::Broken,
        "there is no mailbox as in user; write the address that it logs in with, or its id",
    ),
    (
        "ResourceNotFound",
        Class::Broken,
        "there is no mailbox as in user; write the address that it logs in with, or its id",
    ),
    (
        "MailboxNotEnabledForRESTAPI",
        Class::Broken,
        "the mailbox in user is not in Exchange Online, or has no licence",
    ),
    (
        "MailboxNotSupportedForRESTAPI",
        Class::Broken,
        "the mailbox in user is not in Exchange Online, or has no licence",
    ),
    (
        "InvalidAuthenticationToken",
        Class::Broken,
        "the token is for something else; see that api and login belong to the same cloud",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn said(status: u16, word: &str) -> Said {
        Said {
            answer: Answer {
                status: reqwest::StatusCode::from_u16(status).unwrap(),
                retry_after: None,
                headers: HeaderMap::new(),
                body: Some(json!({ "error": { "code": word } }).to_string()),
            },
            reason: "it answered".to_owned(),
        }
    }

    #[test]
    fn a_word_counts_where_the_status_is_no_success() {
        for (word, ..) in WORDS {
            for status in [400, 401, 403, 404, 500] {
                let error = said(status, word).judge().unwrap_err();
                assert!(matches!(error, SendError::Broken { .. }), "{status} {word}");
                assert!(error.to_string().starts_with("it answered: "));
            }
            assert_eq!(said(202, word).judge(), Ok(()));
        }
        assert!(matches!(
            said(400, "ErrorInvalidRecipients").judge(),
            Err(SendError::Permanent { .. })
        ));
        assert!(matches!(
            said(403, "SomethingNew").judge(),
            Err(SendError::Broken { .. })
        ));
        assert!(matches!(
            said(503, "").judge(),
            Err(SendError::Transient { .. })
        ));
    }
}
