//! The words and times of the tables, and an activation read back from its row.

use std::time::Duration;

use jiff::SignedDuration;
use jiff::Timestamp;
use rusqlite::Row;
use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::activation::Activation;
use crate::activation::Device;
use crate::activation::Origin;
use crate::activation::Standing;
use crate::channel::OnUncertain;
use crate::outbox::CaseState;
use crate::outbox::OutboxError;
use crate::outbox::Role;
use crate::outbox::State;
use crate::outbox::seal::Opened;

impl From<rusqlite::Error> for OutboxError {
    fn from(e: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode as Code;
        match e.sqlite_error_code() {
            Some(Code::DiskFull) => Self::Full(e.to_string()),
            Some(Code::DatabaseCorrupt | Code::NotADatabase) => Self::Damaged(e.to_string()),
            _ => Self::Unavailable(e.to_string()),
        }
    }
}

pub(super) fn micros(time: Timestamp) -> i64 {
    time.as_microsecond()
}

pub(super) fn time(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or(if micros < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    })
}

pub(super) fn span(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// `time` + `wait`, both of the tables' kind.
pub(super) fn later(time: Timestamp, wait: Duration) -> i64 {
    micros(time)
        .saturating_add(span(wait))
        .min(micros(Timestamp::MAX))
}

const CASE_STATES: [(CaseState, &str); 7] = [
    (CaseState::Received, "received"),
    (CaseState::Routed, "routed"),
    (CaseState::NeedsAttention, "needs-attention"),
    (CaseState::Expired, "expired"),
    (CaseState::Superseded, "superseded"),
    (CaseState::Cancelled, "cancelled"),
    (CaseState::Recorded, "recorded"),
];

const STANDINGS: [(Standing, &str); 4] = [
    (Standing::Logged, "logged"),
    (Standing::Unsettled, "unsettled"),
    (Standing::Provisional, "provisional"),
    (Standing::Confirmed, "confirmed"),
];

pub(super) const STATES: [(State, &str); 10] = [
    (State::Received, "received"),
    (State::Pending, "pending"),
    (State::Sending, "sending"),
    (State::Accepted, "accepted"),
    (State::Failed, "failed"),
    (State::Expired, "expired"),
    (State::Superseded, "superseded"),
    (State::Cancelled, "cancelled"),
    (State::NeedsAttention, "needs-attention"),
    (State::Recorded, "recorded"),
];

const ROLES: [(Role, &str); 3] = [
    (Role::To, "to"),
    (Role::Fallback, "fallback"),
    (Role::Escalation, "escalation"),
];

fn word<T: Copy + PartialEq>(words: &[(T, &'static str)], value: T) -> &'static str {
    words
        .iter()
        .find(|(v, _)| *v == value)
        .map_or("", |(_, word)| word)
}

fn value<T: Copy>(words: &[(T, &'static str)], word: &str) -> Result<T, OutboxError> {
    words
        .iter()
        .find(|(_, w)| *w == word)
        .map(|(v, _)| *v)
        .ok_or_else(|| OutboxError::Damaged(format!("a row holds the unknown word {word}")))
}

pub(super) fn case_word(state: CaseState) -> &'static str {
    word(&CASE_STATES, state)
}

pub(super) fn case_state(word: &str) -> Result<CaseState, OutboxError> {
    value(&CASE_STATES, word)
}

/// The column `standing`; what is unsettled has a column of its own.
pub(super) fn standing_word(standing: Standing) -> &'static str {
    match standing {
        Standing::Unsettled => word(&STANDINGS, Standing::Logged),
        other => word(&STANDINGS, other),
    }
}

pub(super) fn state_word(state: State) -> &'static str {
    word(&STATES, state)
}

/// A delivery that is leased is still pending to everybody outside.
pub(super) fn state(word: &str) -> Result<State, OutboxError> {
    value(&STATES, if word == "leased" { "pending" } else { word })
}

pub(super) fn role_word(role: Role) -> &'static str {
    word(&ROLES, role)
}

pub(super) fn role(word: &str) -> Result<Role, OutboxError> {
    value(&ROLES, word)
}

pub(super) fn uncertain_word(on_uncertain: OnUncertain) -> &'static str {
    match on_uncertain {
        OnUncertain::Resend => "resend",
        OnUncertain::Hold => "hold",
    }
}

/// An id as people see it: `A12` is an activation, `D7` a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Id {
    Activation(i64),
    Delivery(i64),
}

impl Id {
    pub(super) fn parse(text: &str) -> Result<Self, OutboxError> {
        let unknown =
            || OutboxError::NotFound(text.chars().filter(|c| !c.is_control()).take(40).collect());
        let mut chars = text.chars();
        let kind = chars.next();
        let number = chars.as_str();
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(unknown());
        }
        let number = number.parse().map_err(|_| unknown())?;
        match kind {
            Some('A' | 'a') => Ok(Self::Activation(number)),
            Some('D' | 'd') => Ok(Self::Delivery(number)),
            _ => Err(unknown()),
        }
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Activation(n) => write!(f, "A{n}"),
            Self::Delivery(n) => write!(f, "D{n}"),
        }
    }
}

pub(super) fn json<T: Serialize>(value: &T) -> Result<String, OutboxError> {
    serde_json::to_string(value).map_err(|e| OutboxError::Unavailable(e.to_string()))
}

pub(super) fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, OutboxError> {
    serde_json::from_str(text)
        .map_err(|_| OutboxError::Damaged("a row holds malformed JSON".to_owned()))
}

/// What an escalation says, as its row keeps it.
#[derive(Serialize, Deserialize)]
pub(super) struct Gathered {
    pub(super) text: String,
    pub(super) count: u64,
    pub(super) newest: Vec<String>,
}

/// The columns that [`activation`] reads; the table is called `a`.
pub(super) const ACTIVATION: &str = "a.event_id, coalesce(a.found_mac, a.code_mac) AS code_mac, iif(a.unsettled, 'unsettled', a.standing) AS standing, a.found_mac IS NOT NULL AS device_named_code, a.sealed, a.device_id, a.device_name, a.vdom, a.user, a.person, \
     a.logid, a.description, a.stage, a.rule, a.event_time, a.received_at AS a_received_at, \
     a.expires_at AS a_expires_at, a.validity, a.skew, a.token, a.recipient";

/// An activation from its row, without what is sealed.
pub(super) fn activation(row: &Row<'_>) -> rusqlite::Result<Activation> {
    let malformed = |column: &str| {
        rusqlite::Error::InvalidColumnType(0, column.to_owned(), rusqlite::types::Type::Text)
    };
    let standing: String = row.get("standing")?;
    Ok(Activation {
        event_id: row.get("event_id")?,
        device: Device {
            id: row.get("device_id")?,
            name: row.get("device_name")?,
            vdom: row.get("vdom")?,
        },
        user: row.get("user")?,
        person: row.get("person")?,
        logid: row.get("logid")?,
        description: row.get("description")?,
        stage: row
            .get::<_, String>("stage")?
            .parse()
            .map_err(|()| malformed("stage"))?,
        rule: row.get("rule")?,
        event_time: time(row.get("event_time")?),
        received_at: time(row.get("a_received_at")?),
        expires_at: time(row.get("a_expires_at")?),
        validity: Duration::from_micros(row.get::<_, i64>("validity")?.unsigned_abs()),
        skew: SignedDuration::from_micros(row.get("skew")?),
        code: None,
        token: row.get("token")?,
        addresses: Vec::new(),
        origin: Origin {
            // The line stands in the trace.
            line: String::new(),
            standing: STANDINGS
                .iter()
                .find(|(_, word)| *word == standing)
                .map(|(standing, _)| *standing)
                .ok_or_else(|| malformed("standing"))?,
            device_named_code: row.get("device_named_code")?,
        },
    })
}

/// What is sealed, put back in its place.
pub(super) fn unsealed(activation: Activation, opened: Opened) -> Activation {
    Activation {
        code: opened.code,
        addresses: opened.addresses,
        ..activation
    }
}
