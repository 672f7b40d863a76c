//! Slack as it is documented: its two methods and an incoming webhook, their errors and their limits.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use reqwest::Url;
use serde_json::Value;
use serde_json::json;

use super::http_sink::Answer;
use super::http_sink::HttpSink;
use super::http_sink::Request;
use super::http_sink::reply;

/// The bot's token.
pub const TOKEN: &str = "xoxb-secret";
/// The webhook's path.
const HOOK: &str = "/services/T000/B000/x";
/// Into one conversation.
const MESSAGE_EVERY: Duration = Duration::from_secs(1);
const MAX_HEADER_CHARS: usize = 150;
const MAX_SECTION_CHARS: usize = 3_000;
const MAX_BLOCKS: usize = 50;

/// A workspace: alice is a member, carol has left, dave left since somebody looked, nobody else is known.
pub struct Slack {
    sink: HttpSink,
    state: Arc<Mutex<State>>,
}

struct State {
    /// Of the token; `None`: the answer doesn't name them.
    scopes: Option<&'static str>,
    /// What the next request to a method gets, once.
    next: HashMap<String, Answer>,
    posted: Vec<Value>,
    refused: usize,
    last: HashMap<String, Instant>,
}

impl Slack {
    pub async fn start() -> Self {
        let state = Arc::new(Mutex::new(State {
            scopes: Some("chat:write,users:read,users:read.email"),
            next: HashMap::new(),
            posted: Vec::new(),
            refused: 0,
            last: HashMap::new(),
        }));
        let its = Arc::clone(&state);
        let sink = HttpSink::start(move |request| answer(request, &mut its.lock().unwrap())).await;
        Self { sink, state }
    }

    /// The keys of a channel that writes to people.
    pub fn bot(&self) -> String {
        format!(
            "token = \"{TOKEN}\"\napi = \"{}\"\n",
            self.sink.url("/api/")
        )
    }

    /// The keys of a channel that writes to a place.
    pub fn place(&self) -> String {
        format!("url = \"{}\"\n", self.sink.url(HOOK))
    }

    /// What the next request to this method, or `hook`, gets in place of the usual answer.
    pub fn answer_next(&self, method: &str, answer: Answer) {
        let mut state = self.state.lock().unwrap();
        state.next.insert(method.to_owned(), answer);
    }

    /// The scopes that the token has, with commas; `None`: Slack doesn't say.
    pub fn give_scopes(&self, scopes: Option<&'static str>) {
        self.state.lock().unwrap().scopes = scopes;
    }

    /// The messages that were taken.
    pub fn posted(&self) -> Vec<Value> {
        self.state.lock().unwrap().posted.clone()
    }

    /// How many came too fast.
    pub fn refused(&self) -> usize {
        self.state.lock().unwrap().refused
    }

    /// The methods that were called, in order.
    pub fn calls(&self) -> Vec<String> {
        self.sink.requests().iter().map(method).collect()
    }
}

fn method(request: &Request) -> String {
    match request.path.strip_prefix("/api/") {
        Some(method) => method.to_owned(),
        None => "hook".to_owned(),
    }
}

/// `{"ok":false,…}` with 200, as the methods say it.
pub fn no(error: &str) -> Answer {
    reply(200, &json!({"ok": false, "error": error}).to_string())
}

/// Too fast.
pub fn limited(seconds: u64) -> Answer {
    Answer::Reply {
        status: 429,
        headers: vec![("Retry-After", seconds.to_string())],
        body: json!({"ok": false, "error": "ratelimited"}).to_string(),
    }
}

fn answer(request: &Request, state: &mut State) -> Answer {
    let method = method(request);
    if let Some(answer) = state.next.remove(&method) {
        return answer;
    }
    if method == "hook" {
        return match request.path == HOOK {
            true => post(
                request,
                state,
                "hook",
                &|error| reply(400, error),
                reply(200, "ok"),
            ),
            false => reply(404, "no_service"),
        };
    }
    if request.header("authorization") != format!("Bearer {TOKEN}") {
        return no("invalid_auth");
    }
    match method.as_str() {
        "auth.test" => Answer::Reply {
            status: 200,
            headers: Vec::from_iter(state.scopes.map(|s| ("x-oauth-scopes", s.to_owned()))),
            body: json!({"ok": true, "url": "https://example.slack.com/", "team": "Example", "user": "ftm-relay",
                "team_id": "T1", "user_id": "U9", "bot_id": "B9", "is_enterprise_install": false})
            .to_string(),
        },
        "users.lookupByEmail" => lookup(request),
        "chat.postMessage" => {
            let channel = request.json()["channel"].as_str().unwrap().to_owned();
            if channel == "U3" {
                return no("channel_not_found");
            }
            // It repeats the message, code and all.
            let yes = reply(
                200,
                &json!({"ok": true, "channel": "D1", "ts": "1.1", "message": request.json()})
                    .to_string(),
            );
            post(request, state, &channel, &no, yes)
        }
        _ => no("unknown_method"),
    }
}

fn lookup(request: &Request) -> Answer {
    let form = String::from_utf8(request.body.clone()).unwrap();
    let mut url = Url::parse("form:").unwrap();
    url.set_query(Some(&form));
    let email = url.query_pairs().find(|(name, _)| name == "email");
    let (id, deleted) = match email.unwrap().1.as_ref() {
        "alice@example.com" => ("U1", false),
        "carol@example.com" => ("U2", true),
        "dave@example.com" => ("U3", false),
        _ => return no("users_not_found"),
    };
    let user = json!({"id": id, "deleted": deleted, "profile": {"phone": "+49301"}});
    reply(200, &json!({"ok": true, "user": user}).to_string())
}

fn post(
    request: &Request,
    state: &mut State,
    conversation: &str,
    no: &dyn Fn(&str) -> Answer,
    yes: Answer,
) -> Answer {
    let message = request.json();
    let blocks = message["blocks"].as_array().unwrap();
    let fits = |block: &Value| {
        let most = match block["type"].as_str().unwrap() {
            "header" => MAX_HEADER_CHARS,
            "section" => MAX_SECTION_CHARS,
            _ => 0,
        };
        (1..=most).contains(&block["text"]["text"].as_str().unwrap().chars().count())
    };
    if blocks.len() > MAX_BLOCKS || !blocks.iter().all(fits) {
        return no("invalid_blocks");
    }
    let now = Instant::now();
    let last = state.last.insert(conversation.to_owned(), now);
    if last.is_some_and(|last| now.duration_since(last) < MESSAGE_EVERY) {
        state.refused += 1;
        return limited(1);
    }
    state.posted.push(message);
    yes
}
