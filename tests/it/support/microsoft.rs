//! What belongs to Microsoft, as documented: the server that gives tokens for client credentials, and Graph's `sendMail`.
//! Its words (`error`, `error.code`, AADSTS numbers) are Microsoft's; the sentences around them are ours.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::Value;
use serde_json::json;

use super::http_sink::Answer;
use super::http_sink::HttpSink;
use super::http_sink::Request;
use super::http_sink::reply;

pub const TENANT: &str = "11111111-2222-3333-4444-555555555555";
pub const CLIENT_ID: &str = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee";
pub const CLIENT_SECRET: &str = "Pq8Q~correct+horse/battery";
/// The mailbox that the application may send from.
pub const MAILBOX: &str = "desk@example.com";
/// So many seconds a token lives.
const LIVES: u64 = 3599;
/// A mailbox that it may not send from.
pub const FORBIDDEN: &str = "ceo@example.com";
/// A mailbox that is on the organisation's own Exchange.
pub const ON_PREMISES: &str = "old@example.com";

/// Both servers.
pub struct Microsoft {
    pub sink: HttpSink,
    state: Arc<Mutex<State>>,
}

struct State {
    /// Tokens that are good, and what they are for.
    tokens: HashMap<String, String>,
    issued: usize,
    /// What the claims of a token name; `None`: it is opaque.
    roles: Option<&'static [&'static str]>,
    /// What the next requests for a token are answered, whatever they are.
    token_answers: VecDeque<Answer>,
    /// The same for mails.
    mail_answers: VecDeque<Answer>,
    mails: Vec<Value>,
}

impl Microsoft {
    pub async fn start() -> Self {
        let state = Arc::new(Mutex::new(State {
            tokens: HashMap::new(),
            issued: 0,
            roles: None,
            token_answers: VecDeque::new(),
            mail_answers: VecDeque::new(),
            mails: Vec::new(),
        }));
        let theirs = Arc::clone(&state);
        let sink = HttpSink::start(move |request| theirs.lock().unwrap().answer(request)).await;
        Self { sink, state }
    }

    /// No token that was given is good any more.
    pub fn revoke(&self) {
        self.state.lock().unwrap().tokens.clear();
    }

    /// Tokens are JWTs from now on, with these roles.
    pub fn give_roles(&self, roles: &'static [&'static str]) {
        self.state.lock().unwrap().roles = Some(roles);
    }

    /// Whether a token is good, and for this.
    pub fn knows(&self) -> impl Fn(&str, &str) -> bool + Send + Sync + 'static {
        let state = Arc::clone(&self.state);
        move |token, scope| {
            let state = state.lock().unwrap();
            state.tokens.get(token).is_some_and(|s| s == scope)
        }
    }

    /// The next request for a token is answered so.
    pub fn next_token(&self, answer: Answer) {
        self.state.lock().unwrap().token_answers.push_back(answer);
    }

    /// The next mail is answered so.
    pub fn next_mail(&self, answer: Answer) {
        self.state.lock().unwrap().mail_answers.push_back(answer);
    }

    /// So many tokens were given.
    pub fn issued(&self) -> usize {
        self.state.lock().unwrap().issued
    }

    /// So many requests for tokens came.
    pub fn asked(&self) -> usize {
        let requests = self.sink.requests();
        requests
            .iter()
            .filter(|r| r.path.ends_with("/token"))
            .count()
    }

    /// The mails that were accepted.
    pub fn mails(&self) -> Vec<Value> {
        self.state.lock().unwrap().mails.clone()
    }

    /// The keys of the application.
    pub fn keys(&self) -> String {
        format!(
            "tenant = \"{TENANT}\"\nlogin = \"{}\"\nclient_id = \"{CLIENT_ID}\"\nclient_secret = \"{CLIENT_SECRET}\"\n",
            self.sink.url("")
        )
    }
}

impl State {
    fn answer(&mut self, request: &Request) -> Answer {
        if request.method != "POST" {
            return reply(405, "");
        }
        if request.path.ends_with("/oauth2/v2.0/token") {
            if let Some(answer) = self.token_answers.pop_front() {
                return answer;
            }
            return self.token(request);
        }
        if let Some(answer) = self.mail_answers.pop_front() {
            return answer;
        }
        self.mail(request)
    }

    fn token(&mut self, request: &Request) -> Answer {
        assert_eq!(
            request.header("content-type"),
            "application/x-www-form-urlencoded"
        );
        let form = form(&request.body);
        let field = |name: &str| form.get(name).map_or("", String::as_str);
        if request.path != format!("/{TENANT}/oauth2/v2.0/token") {
            return refusal(400, "invalid_request", 90002, "there is no such tenant.");
        }
        if field("grant_type") != "client_credentials" {
            return refusal(400, "unsupported_grant_type", 70003, "not this grant.");
        }
        if field("client_id") != CLIENT_ID {
            return refusal(400, "unauthorized_client", 700016, "no such application.");
        }
        if field("client_secret") != CLIENT_SECRET {
            return refusal(401, "invalid_client", 7000215, "that is not the secret.");
        }
        if !field("scope").ends_with("/.default") {
            return refusal(400, "invalid_scope", 70011, "that is no scope.");
        }
        self.issued += 1;
        let number = self.issued;
        let token = match self.roles {
            None => format!("eyJ0eXAiOiJKV1QifQ.token-number-{number}.signature"),
            Some(roles) => {
                let mut claims = json!({ "appid": CLIENT_ID });
                if !roles.is_empty() {
                    claims["roles"] = json!(roles);
                }
                let claims = BASE64_URL_SAFE_NO_PAD.encode(claims.to_string());
                format!("eyJ0eXAiOiJKV1QifQ.{claims}.token-number-{number}")
            }
        };
        self.tokens.insert(token.clone(), field("scope").to_owned());
        let body = json!({
            "token_type": "Bearer",
            "expires_in": LIVES,
            "ext_expires_in": LIVES,
            "access_token": token,
        });
        reply(200, &body.to_string())
    }

    fn mail(&mut self, request: &Request) -> Answer {
        let host = request.header("host");
        let bearer = request.header("authorization").strip_prefix("Bearer ");
        let scope = bearer.and_then(|token| self.tokens.get(token));
        if scope != Some(&format!("http://{host}/.default")) {
            return error(401, "InvalidAuthenticationToken", "the token is not good.");
        }
        let user = request
            .path
            .strip_prefix("/v1.0/users/")
            .and_then(|rest| rest.strip_suffix("/sendMail"));
        match user {
            Some(MAILBOX) => {}
            Some(FORBIDDEN) => return error(403, "ErrorAccessDenied", "access is denied."),
            Some(ON_PREMISES) => {
                return error(404, "MailboxNotEnabledForRESTAPI", "not in the cloud.");
            }
            Some(user) => {
                return error(404, "ErrorInvalidUser", &format!("{user} is not valid."));
            }
            None => return error(404, "ResourceNotFound", "nothing is here."),
        }
        assert!(
            request
                .header("content-type")
                .starts_with("application/json")
        );
        let body = request.json();
        let message = &body["message"];
        let headers = message["internetMessageHeaders"].as_array();
        let names = headers
            .into_iter()
            .flatten()
            .map(|h| h["name"].as_str().unwrap());
        for name in names {
            if !name.to_lowercase().starts_with("x-") {
                return error(
                    400,
                    "InvalidInternetMessageHeader",
                    "it must begin with x-.",
                );
            }
        }
        let from = &message["from"]["emailAddress"]["address"];
        if !from.is_null() && from != MAILBOX {
            return error(403, "ErrorSendAsDenied", "not as that address.");
        }
        let to = message["toRecipients"].as_array().unwrap();
        let valid = |to: &Value| {
            to["emailAddress"]["address"]
                .as_str()
                .is_some_and(|a| a.contains('@'))
        };
        if to.is_empty() || !to.iter().all(valid) {
            return error(400, "ErrorInvalidRecipients", "a recipient is not valid.");
        }
        self.mails.push(body);
        reply(202, "")
    }
}

/// An error of the token server.
pub fn refusal(status: u16, error: &str, number: u64, text: &str) -> Answer {
    let body = json!({
        "error": error,
        "error_description": format!(
            "AADSTS{number}: {text} Trace ID: 0000aaaa-11bb-cccc-dd22-eeeeee333333 Correlation ID: 1 Timestamp: 2026-11-23 10:22:31Z"
        ),
        "error_codes": [number],
        "timestamp": "2026-11-23 10:22:31Z",
        "trace_id": "0000aaaa-11bb-cccc-dd22-eeeeee333333",
        "correlation_id": "aaaa0000-bb11-2222-33cc-444444dddddd",
    });
    reply(status, &body.to_string())
}

/// An error of Graph.
pub fn error(status: u16, code: &str, message: &str) -> Answer {
    let body = json!({
        "error": {
            "code": code,
            "message": message,
            "innerError": { "date": "2026-11-23T10:22:31", "request-id": "r", "client-request-id": "c" },
        }
    });
    reply(status, &body.to_string())
}

fn form(body: &[u8]) -> HashMap<String, String> {
    let text = std::str::from_utf8(body).unwrap();
    let decode = |text: &str| {
        let mut bytes = Vec::new();
        let mut rest = text.as_bytes();
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            match byte {
                b'+' => bytes.push(b' '),
                b'%' => {
                    let hex = std::str::from_utf8(&after[..2]).unwrap();
                    bytes.push(u8::from_str_radix(hex, 16).unwrap());
                    rest = &after[2..];
                }
                _ => bytes.push(byte),
            }
        }
        String::from_utf8(bytes).unwrap()
    };
    text.split('&')
        .map(|pair| pair.split_once('=').unwrap())
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}
