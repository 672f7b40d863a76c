//! A flow of Teams as far as it is documented: what it takes, how much of it, and how it hides a failure.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;

use super::http_sink::Answer;
use super::http_sink::HttpSink;
use super::http_sink::Request;
use super::http_sink::reply;

/// The signature in its URL.
pub const SIGNATURE: &str = "TOPSECRETSIG";
/// After what Teams adds, for which a sixth is a measured example.
const MAX_BYTES: usize = 28_672;
/// In one second.
const MAX_RATE: usize = 4;

/// The flow.
pub struct Flow {
    sink: HttpSink,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    next: Option<Answer>,
    cards: Vec<Value>,
    times: Vec<Instant>,
}

impl Flow {
    pub async fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let its = Arc::clone(&state);
        let sink = HttpSink::start(move |request| answer(request, &mut its.lock().unwrap())).await;
        Self { sink, state }
    }

    /// The keys of its channel.
    pub fn keys(&self) -> String {
        let path = format!("/workflows/1/triggers/manual/paths/invoke?sig={SIGNATURE}");
        format!("url = \"{}\"\n", self.sink.url(&path))
    }

    /// What the next request gets in place of the usual answer.
    pub fn answer_next(&self, answer: Answer) {
        self.state.lock().unwrap().next = Some(answer);
    }

    /// The requests that were taken.
    pub fn cards(&self) -> Vec<Value> {
        self.state.lock().unwrap().cards.clone()
    }
}

/// The sentence under which Teams hides what it had for the flow.
pub fn hidden(status: u16) -> Answer {
    reply(
        200,
        &format!(
            "Webhook message delivery failed with error: Microsoft Teams endpoint returned HTTP error {status} with ContextId tcid=0"
        ),
    )
}

fn answer(request: &Request, state: &mut State) -> Answer {
    if !request.path.ends_with(&format!("sig={SIGNATURE}")) {
        return reply(401, "");
    }
    if let Some(answer) = state.next.take() {
        return answer;
    }
    let now = Instant::now();
    state.times.push(now);
    let recent = |at: &&Instant| now.duration_since(**at) < Duration::from_secs(1);
    if state.times.iter().filter(recent).count() > MAX_RATE {
        return reply(429, "");
    }
    if request.body.len() * 7 / 6 > MAX_BYTES {
        return reply(413, r#"{"error":{"code":"MessageSizeExceeded"}}"#);
    }
    let card = request.json();
    let attachment = &card["attachments"][0];
    let good = card["type"] == "message"
        && attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
        && attachment["content"]["type"] == "AdaptiveCard";
    // What is no such message is taken, and nobody ever sees it.
    if good {
        state.cards.push(card);
    }
    reply(202, "")
}
