//! Twilio's Messages resource as it is documented: its log-in, its parameters and their bounds, its errors.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use reqwest::Url;
use serde_json::json;

use super::http_sink::Answer;
use super::http_sink::HttpSink;
use super::http_sink::Request;
use super::http_sink::reply;

pub const ACCOUNT: &str = "AC0123456789abcdef0123456789abcdef";
pub const TOKEN: &str = "auth-token-of-the-account";
pub const KEY: &str = "SK0123456789abcdef0123456789abcdef";
pub const KEY_SECRET: &str = "secret-of-the-key";
pub const FROM: &str = "+14155550100";
pub const SERVICE: &str = "MG0123456789abcdef0123456789abcdef";
/// Somebody who has answered STOP.
pub const UNSUBSCRIBED: &str = "+491701234567";
/// A number that looks right and is none.
pub const INVALID: &str = "+491700000000";

/// A message as its parameters.
pub type Form = BTreeMap<String, String>;

/// The server.
pub struct Twilio {
    sink: HttpSink,
    state: Arc<Mutex<State>>,
}

struct State {
    status: &'static str,
    kind: &'static str,
    next: Option<Answer>,
    messages: Vec<Form>,
}

impl Twilio {
    pub async fn start() -> Self {
        let state = Arc::new(Mutex::new(State {
            status: "active",
            kind: "Full",
            next: None,
            messages: Vec::new(),
        }));
        let its = Arc::clone(&state);
        let sink = HttpSink::start(move |request| answer(request, &mut its.lock().unwrap())).await;
        Self { sink, state }
    }

    /// The keys of a channel, but for its log-in and its sender.
    pub fn account(&self) -> String {
        format!("account = \"{ACCOUNT}\"\napi = \"{}\"\n", self.sink.url(""))
    }

    /// The keys of a channel.
    pub fn keys(&self) -> String {
        self.account() + &format!("token = \"{TOKEN}\"\nfrom = \"{FROM}\"\n")
    }

    /// What the next request gets in place of the usual answer.
    pub fn answer_next(&self, answer: Answer) {
        self.state.lock().unwrap().next = Some(answer);
    }

    /// How the account stands, such as `suspended`, and its type, `Full` or `Trial`.
    pub fn is_now(&self, status: &'static str, kind: &'static str) {
        let mut state = self.state.lock().unwrap();
        (state.status, state.kind) = (status, kind);
    }

    /// The messages that were queued.
    pub fn messages(&self) -> Vec<Form> {
        self.state.lock().unwrap().messages.clone()
    }

    pub fn requests(&self) -> usize {
        self.sink.requests().len()
    }
}

/// An error of the API.
pub fn error(status: u16, code: u64, message: &str) -> Answer {
    let info = format!("https://www.twilio.com/docs/errors/{code}");
    let body = json!({"code": code, "message": message, "more_info": info, "status": status});
    reply(status, &body.to_string())
}

fn answer(request: &Request, state: &mut State) -> Answer {
    if let Some(answer) = state.next.take() {
        return answer;
    }
    let login = |user, password| {
        let both = BASE64_STANDARD.encode(format!("{user}:{password}"));
        request.header("authorization") == format!("Basic {both}")
    };
    if !login(ACCOUNT, TOKEN) && !login(KEY, KEY_SECRET) {
        return error(401, 20003, "Authenticate");
    }
    if request.method == "GET" {
        let account = format!("/2010-04-01/Accounts/{ACCOUNT}");
        let of_account = login(ACCOUNT, TOKEN);
        return match request.path.strip_prefix(&account) {
            Some(".json") if of_account => reply(200, &json!({"sid": ACCOUNT, "status": state.status, "type": state.kind, "friendly_name": "IT"}).to_string()),
            // Only a main key may.
            Some(".json") => error(401, 20003, "Authenticate"),
            Some("/Messages.json?PageSize=1&DateSent=2000-01-01") => {
                reply(200, &json!({"messages": [], "page": 0}).to_string())
            }
            _ => error(404, 20404, "The requested resource was not found"),
        };
    }
    if request.path != format!("/2010-04-01/Accounts/{ACCOUNT}/Messages.json") {
        return error(404, 20404, "The requested resource was not found");
    }
    assert_eq!(
        request.header("content-type"),
        "application/x-www-form-urlencoded"
    );
    let form = form(&request.body);
    let get = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
    let to = get("To");
    let number = to.strip_prefix('+').unwrap_or_default();
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) || to == INVALID {
        return error(400, 21211, &format!("Invalid 'To' Phone Number: {to}"));
    }
    if to == UNSUBSCRIBED {
        return error(400, 21610, "Attempt to send to unsubscribed recipient");
    }
    match (get("From"), get("MessagingServiceSid")) {
        (FROM, "") | ("", SERVICE) => {}
        ("", "") => return error(400, 21603, "A 'From' phone number is required."),
        ("", _) => return error(400, 21701, "The Messaging Service does not exist"),
        _ => {
            return error(
                400,
                21660,
                "Mismatch between the 'From' number and the account",
            );
        }
    }
    if !(1..=1_600).contains(&get("Body").chars().count()) {
        return error(400, 21617, "The concatenated message body is out of bounds");
    }
    if !(1..=14_400).contains(&get("ValidityPeriod").parse().unwrap_or(0)) {
        return error(400, 21624, "Invalid validity period value");
    }
    // It repeats the message, code and all.
    let body = json!({"sid": "SM0123456789abcdef0123456789abcdef", "status": "queued", "to": to, "body": get("Body"),
        "error_code": null, "error_message": null});
    state.messages.push(form);
    reply(201, &body.to_string())
}

fn form(body: &[u8]) -> Form {
    let mut url = Url::parse("form:").unwrap();
    url.set_query(Some(std::str::from_utf8(body).unwrap()));
    url.query_pairs().into_owned().collect()
}
