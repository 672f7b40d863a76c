//! The queue as an operator sees it, and an operator's hand on it.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::Connection;
use rusqlite::OptionalExtension;
use rusqlite::params;

use crate::activation::Device;
use crate::message::Recipient;
use crate::outbox::CaseState;
use crate::outbox::Command;
use crate::outbox::Commanded;
use crate::outbox::Depth;
use crate::outbox::Entry;
use crate::outbox::Event;
use crate::outbox::Filter;
use crate::outbox::OutboxError;
use crate::outbox::Row;
use crate::outbox::State;
use crate::outbox::Story;
use crate::outbox::sqlite::cases::close;
use crate::outbox::sqlite::cases::note;
use crate::outbox::sqlite::cases::wake;
use crate::outbox::sqlite::cases::wipe;
use crate::outbox::sqlite::deliveries::end_deliveries;
use crate::outbox::sqlite::row;
use crate::outbox::sqlite::row::Id;
use crate::outbox::sqlite::row::STATES;
use crate::outbox::sqlite::row::from_json;
use crate::outbox::sqlite::row::json;
use crate::outbox::sqlite::row::micros;
use crate::outbox::sqlite::row::span;
use crate::outbox::sqlite::row::state_word;
use crate::outbox::sqlite::row::time;
use crate::outbox::sqlite::writer::Tx;

/// A story shows so many events, the newest.
const MAX_EVENTS: u32 = 100;
/// What was received so long before or after belongs to another story: a code lives a week at most.
const STORY_SPAN: Duration = Duration::from_secs(14 * 86_400);

/// Every row of the queue, and one more kind: an activation that is not listed, for `show`.
const ROWS: &str = "
    SELECT 'D' AS kind, d.id AS id, coalesce(a.user, json_extract(d.escalation, '$.newest[0]'), '') AS user,
        coalesce(a.stage, 'escalation') AS stage, CASE d.state WHEN 'leased' THEN 'pending' ELSE d.state END AS state,
        d.channel AS channel, json_extract(a.recipient, '$.email') AS recipient, d.attempt AS attempts,
        CASE WHEN d.state = 'pending' THEN d.due_at END AS next_attempt, d.expires_at AS expires_at,
        d.last_error AS last_error, d.received_at AS created_at, 1 AS listed
    FROM delivery d LEFT JOIN activation a ON a.id = d.activation
    UNION ALL
    SELECT 'A', a.id, a.user, a.stage, CASE a.state WHEN 'routed' THEN 'received' ELSE a.state END,
        NULL, json_extract(a.recipient, '$.email'), a.attempt,
        CASE WHEN a.state = 'received' AND NOT a.leased THEN a.due_at END, a.expires_at,
        a.reason, a.received_at,
        a.state = 'needs-attention'
            OR (a.state <> 'recorded' AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.activation = a.id))
    FROM activation a";

fn row(row: &rusqlite::Row<'_>) -> Result<Row, OutboxError> {
    let kind: String = row.get("kind")?;
    let id = row.get("id")?;
    Ok(Row {
        id: if kind == "D" {
            Id::Delivery(id)
        } else {
            Id::Activation(id)
        }
        .to_string(),
        user: row.get("user")?,
        stage: row.get("stage")?,
        state: row::state(&row.get::<_, String>("state")?)?,
        channel: row.get("channel")?,
        recipient: row.get("recipient")?,
        attempts: row.get("attempts")?,
        next_attempt: row.get::<_, Option<i64>>("next_attempt")?.map(time),
        expires_at: row.get::<_, Option<i64>>("expires_at")?.map(time),
        last_error: row.get("last_error")?,
        created_at: time(row.get("created_at")?),
    })
}

pub(super) fn list(db: &Connection, filter: &Filter) -> Result<Vec<Row>, OutboxError> {
    let states: Vec<&str> = filter.states.iter().map(|s| state_word(*s)).collect();
    let states = if states.is_empty() {
        None
    } else {
        Some(json(&states)?)
    };
    let limit = if filter.limit == 0 {
        i64::MAX
    } else {
        i64::try_from(filter.limit).unwrap_or(i64::MAX)
    };
    let mut statement = db.prepare_cached(&format!(
        "SELECT * FROM ({ROWS}) WHERE listed AND (?1 IS NULL OR state IN (SELECT value FROM json_each(?1)))
             AND (?2 IS NULL OR instr(lower(user), lower(?2)) > 0)
         ORDER BY created_at DESC, id DESC, kind LIMIT ?3"
    ))?;
    let mut rows = statement.query(params![states, filter.user, limit])?;
    let mut list = Vec::new();
    while let Some(found) = rows.next()? {
        list.push(row(found)?);
    }
    Ok(list)
}

pub(super) fn depth(db: &Connection) -> Result<Depth, OutboxError> {
    let mut counts: Vec<(State, u64)> = STATES
        .iter()
        .filter(|(state, _)| *state != State::Recorded)
        .map(|(state, _)| (*state, 0))
        .collect();
    let mut oldest: Option<i64> = None;
    let mut statement = db.prepare_cached(&format!(
        "SELECT state, count(*), min(created_at) FROM ({ROWS}) WHERE listed GROUP BY state"
    ))?;
    let mut rows = statement.query([])?;
    while let Some(found) = rows.next()? {
        let state = row::state(&found.get::<_, String>(0)?)?;
        let count: i64 = found.get(1)?;
        let since: i64 = found.get(2)?;
        if let Some(entry) = counts.iter_mut().find(|(s, _)| *s == state) {
            entry.1 = count.unsigned_abs();
        }
        if !state.is_final() {
            oldest = Some(oldest.map_or(since, |o| o.min(since)));
        }
    }
    Ok(Depth {
        items: counts,
        oldest: oldest.map(time),
    })
}

pub(super) fn show(db: &Connection, id: &str) -> Result<Story, OutboxError> {
    let unknown = || OutboxError::NotFound(id.to_owned());
    let id = Id::parse(id)?;
    let (kind, number) = match id {
        Id::Activation(n) => ("A", n),
        Id::Delivery(n) => ("D", n),
    };
    let mut statement =
        db.prepare_cached(&format!("SELECT * FROM ({ROWS}) WHERE kind = ? AND id = ?"))?;
    let mut rows = statement.query(params![kind, number])?;
    let row = row(rows.next()?.ok_or_else(unknown)?)?;
    let activation: Option<i64> = match id {
        Id::Activation(n) => Some(n),
        Id::Delivery(n) => db
            .prepare_cached("SELECT activation FROM delivery WHERE id = ?")?
            .query_row([n], |row| row.get(0))
            .optional()?
            .flatten(),
    };
    let mut story = Story {
        row,
        event_id: None,
        device: None,
        rule: None,
        event_time: None,
        source: None,
        token: None,
        trace: Vec::new(),
        life: Vec::new(),
        history: Vec::new(),
    };
    let (column, of) = match activation {
        Some(activation) => {
            about(db, activation, &mut story)?;
            story.life = life(db, activation)?;
            ("activation", activation)
        }
        None => ("delivery", number),
    };
    let mut statement = db.prepare_cached(&format!(
        "SELECT at, channel, what FROM history WHERE {column} = ? ORDER BY at, id"
    ))?;
    let mut rows = statement.query([of])?;
    while let Some(entry) = rows.next()? {
        story.history.push(Entry {
            at: time(entry.get(0)?),
            channel: entry.get(1)?,
            what: entry.get(2)?,
        });
    }
    Ok(story)
}

fn about(db: &Connection, activation: i64, story: &mut Story) -> Result<(), OutboxError> {
    let mut statement = db.prepare_cached(
        "SELECT event_id, device_id, device_name, vdom, rule, event_time, recipient, token, trace FROM activation WHERE id = ?",
    )?;
    let mut rows = statement.query([activation])?;
    if let Some(found) = rows.next()? {
        let recipient: Option<String> = found.get("recipient")?;
        let recipient: Option<Recipient> = recipient.as_deref().map(from_json).transpose()?;
        story.event_id = Some(found.get("event_id")?);
        story.device = Some(Device {
            id: found.get("device_id")?,
            name: found.get("device_name")?,
            vdom: found.get("vdom")?,
        });
        story.rule = Some(found.get("rule")?);
        story.event_time = Some(time(found.get("event_time")?));
        story.source = recipient.map(|r| r.source);
        story.token = found.get("token")?;
        story.trace = from_json(&found.get::<_, String>("trace")?)?;
    }
    Ok(())
}

/// Everything of the same token or user, in the order in which it happened.
///
/// Events that name a token belong together by it. Codes belong to their user, and so does an event without a token. A
/// request names the token and a user who may be the administrator at work: it links the two only where that user has
/// asked for one token alone.
fn life(db: &Connection, activation: i64) -> Result<Vec<Event>, OutboxError> {
    let mut statement = db.prepare_cached(
        "WITH RECURSIVE
         known AS MATERIALIZED (
             SELECT b.id, b.event_time, b.token,
                 CASE WHEN b.person <> '' AND (b.stage = 'code-sent' OR b.token IS NULL OR b.standing = 'confirmed' OR (
                     SELECT count(DISTINCT r.token) FROM activation r WHERE r.device_id = b.device_id AND r.vdom = b.vdom
                         AND r.person = b.person AND r.stage = 'requested') = 1
                 ) THEN b.vdom || char(0) || b.person END AS who
             FROM activation b JOIN activation this ON this.id = ?1
             WHERE b.device_id = this.device_id AND b.received_at BETWEEN this.received_at - ?2 AND this.received_at + ?2
         ),
         tie (is_token, value) AS (
             SELECT 1, token FROM known WHERE id = ?1
             UNION SELECT 0, who FROM known WHERE id = ?1
             UNION SELECT NOT tie.is_token, iif(tie.is_token, k.who, k.token)
                 FROM tie JOIN known k ON tie.value = iif(tie.is_token, k.token, k.who)
         )
         SELECT a.id, a.event_time, a.stage, CASE a.state WHEN 'routed' THEN 'received' ELSE a.state END, a.user, a.token,
             a.description
         FROM activation a WHERE a.id IN (
             SELECT id FROM known WHERE id = ?1 OR token IN (SELECT value FROM tie WHERE is_token)
                 OR who IN (SELECT value FROM tie WHERE NOT is_token) ORDER BY event_time DESC, id DESC LIMIT ?3)
         ORDER BY a.event_time DESC, a.id DESC",
    )?;
    let mut rows = statement.query(params![activation, span(STORY_SPAN), MAX_EVENTS])?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        let stage: String = row.get(2)?;
        events.push(Event {
            id: Id::Activation(row.get(0)?).to_string(),
            at: time(row.get(1)?),
            stage: stage
                .parse()
                .map_err(|()| OutboxError::Damaged(format!("a row has the stage {stage}")))?,
            state: row::state(&row.get::<_, String>(3)?)?,
            user: row.get(4)?,
            token: row.get(5)?,
            description: row.get(6)?,
        });
    }
    events.reverse();
    Ok(events)
}

/// A life-cycle event has an id, too, but it is no row of the queue.
fn refuse_recorded(db: &Connection, id: Id) -> Result<(), OutboxError> {
    let Id::Activation(number) = id else {
        return Ok(());
    };
    let stage: Option<String> = db
        .prepare_cached("SELECT stage FROM activation WHERE id = ? AND state = 'recorded'")?
        .query_row([number], |row| row.get(0))
        .optional()?;
    match stage {
        Some(stage) => Err(OutboxError::Refused(format!(
            "{id} only records that a token event was logged ({stage}); there is nothing to deliver"
        ))),
        None => Ok(()),
    }
}

// === An operator's hand ===

pub(super) fn command(
    tx: &Tx<'_>,
    id: &str,
    command: Command,
    now: Timestamp,
) -> Result<Commanded, OutboxError> {
    match Id::parse(id)? {
        Id::Delivery(number) => match Found::delivery(tx, number)? {
            Some(found) => match command {
                Command::Retry => retry_delivery(tx, &found, now),
                Command::Cancel => cancel_delivery(tx, &found, now),
            },
            None => Err(OutboxError::NotFound(id.to_owned())),
        },
        name @ Id::Activation(number) => {
            refuse_recorded(tx, name)?;
            let state: Option<(String, i64)> = tx
                .prepare_cached("SELECT state, expires_at FROM activation WHERE id = ?")?
                .query_row([number], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let Some((state, expires_at)) = state else {
                return Err(OutboxError::NotFound(id.to_owned()));
            };
            match (command, row::case_state(&state)?) {
                (
                    _,
                    CaseState::Expired
                    | CaseState::Superseded
                    | CaseState::Cancelled
                    | CaseState::Recorded,
                ) => Err(refused(name, &state, command)),
                (Command::Retry, _) if expires_at <= micros(now) => {
                    Err(refused(name, "expired", command))
                }
                (Command::Retry, CaseState::Routed) => retry_all(tx, number, now),
                (Command::Retry, state) => retry_case(tx, number, state, now),
                (Command::Cancel, _) => cancel_case(tx, number, now),
            }
        }
    }
}

fn refused(id: Id, state: &str, command: Command) -> OutboxError {
    let done = match command {
        Command::Retry => "tried again",
        Command::Cancel => "cancelled",
    };
    let why = match (command, state) {
        (Command::Retry, "expired") => "; have the FortiGate send a new code",
        (Command::Retry, "superseded") => {
            "; a newer code for the same person is on its way or was sent"
        }
        _ => "",
    };
    OutboxError::Refused(format!("{id} is {state} and can't be {done}{why}"))
}

struct Found {
    id: i64,
    activation: Option<i64>,
    channel: String,
    state: String,
    expires_at: i64,
}

impl Found {
    fn delivery(tx: &Tx<'_>, id: i64) -> Result<Option<Self>, OutboxError> {
        Ok(tx
            .prepare_cached(
                "SELECT id, activation, channel, state, expires_at FROM delivery WHERE id = ?",
            )?
            .query_row([id], Self::read)
            .optional()?)
    }

    fn of(tx: &Tx<'_>, activation: i64) -> Result<Vec<Self>, OutboxError> {
        Ok(tx
            .prepare_cached("SELECT id, activation, channel, state, expires_at FROM delivery WHERE activation = ? ORDER BY id")?
            .query_map([activation], Self::read)?
            .collect::<Result<_, _>>()?)
    }

    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get("id")?,
            activation: row.get("activation")?,
            channel: row.get("channel")?,
            state: row.get("state")?,
            expires_at: row.get("expires_at")?,
        })
    }

    fn is_open(&self) -> Result<bool, OutboxError> {
        Ok(!row::state(&self.state)?.is_final())
    }
}

fn retry_delivery(tx: &Tx<'_>, found: &Found, now: Timestamp) -> Result<Commanded, OutboxError> {
    let name = Id::Delivery(found.id);
    let state = row::state(&found.state)?;
    if state.is_final() {
        return Err(refused(name, &found.state, Command::Retry));
    }
    if found.expires_at <= micros(now) {
        return Err(refused(name, "expired", Command::Retry));
    }
    // What is leased or being sent is being tried right now.
    if matches!(found.state.as_str(), "pending" | "needs-attention") {
        // Before all others of its channel: the one try that a wait is lifted for is this one's.
        tx.prepare_cached(
            "UPDATE delivery SET state = 'pending', due_at = min(?1, coalesce(
                 (SELECT min(due_at) - 1 FROM delivery WHERE channel = ?2 AND due_at IS NOT NULL AND id <> ?3), ?1))
             WHERE id = ?3",
        )?
        .execute(params![micros(now), found.channel, found.id])?;
        tx.wake_deliveries();
        note(
            tx,
            found.activation,
            Some(found.id),
            now,
            Some(&found.channel),
            "made due by an operator",
        )?;
        if let Some(activation) = found.activation {
            wake(tx, activation, now)?;
        }
    }
    Ok(Commanded {
        state: if state == State::NeedsAttention {
            State::Pending
        } else {
            state
        },
        channels: vec![found.channel.clone()],
        ended: false,
    })
}

/// `retry` of an activation that is on its way: everything of it that is open.
fn retry_all(tx: &Tx<'_>, activation: i64, now: Timestamp) -> Result<Commanded, OutboxError> {
    let mut done: Option<Commanded> = None;
    for found in Found::of(tx, activation)? {
        if found.is_open()? {
            let one = retry_delivery(tx, &found, now)?;
            match &mut done {
                Some(done) => done.channels.extend(one.channels),
                None => done = Some(one),
            }
        }
    }
    done.ok_or_else(|| {
        OutboxError::Refused(format!(
            "nothing of {} is waiting any more",
            Id::Activation(activation)
        ))
    })
}

fn retry_case(
    tx: &Tx<'_>,
    activation: i64,
    state: CaseState,
    now: Timestamp,
) -> Result<Commanded, OutboxError> {
    let mut channels = Vec::new();
    if state == CaseState::NeedsAttention {
        tx.prepare_cached(
            "UPDATE activation SET state = 'received', released = 1, attempt = 0, reason = NULL WHERE id = ?",
        )?
        .execute([activation])?;
        for found in Found::of(tx, activation)? {
            if found.is_open()? {
                channels.extend(retry_delivery(tx, &found, now)?.channels);
            }
        }
    }
    note(
        tx,
        Some(activation),
        None,
        now,
        None,
        "released by an operator",
    )?;
    wake(tx, activation, now)?;
    Ok(Commanded {
        state: State::Received,
        channels,
        ended: false,
    })
}

const BY_OPERATOR: &str = "by an operator";

fn cancel_delivery(tx: &Tx<'_>, found: &Found, now: Timestamp) -> Result<Commanded, OutboxError> {
    let done = |state, ended| Commanded {
        state,
        channels: Vec::new(),
        ended,
    };
    if !found.is_open()? {
        return Err(refused(
            Id::Delivery(found.id),
            &found.state,
            Command::Cancel,
        ));
    }
    if found.state == "sending" {
        // The try under way can't be called back, but there will be no other.
        tx.prepare_cached("UPDATE delivery SET ends_as = 'cancelled' WHERE id = ?")?
            .execute([found.id])?;
        let said = "cancelled by an operator; the try under way may still arrive";
        note(
            tx,
            found.activation,
            Some(found.id),
            now,
            Some(&found.channel),
            said,
        )?;
        return Ok(done(State::Sending, false));
    }
    tx.prepare_cached("UPDATE delivery SET state = 'cancelled', due_at = NULL, fence = fence + 1, last_error = ? WHERE id = ?")?
        .execute(params![BY_OPERATOR, found.id])?;
    note(
        tx,
        found.activation,
        Some(found.id),
        now,
        Some(&found.channel),
        "cancelled by an operator",
    )?;
    let Some(activation) = found.activation else {
        return Ok(done(State::Cancelled, false));
    };
    // A case that somebody has yet to decide about is not over.
    let mut open: bool = tx
        .prepare_cached(
            "SELECT state IN ('received', 'needs-attention') FROM activation WHERE id = ?",
        )?
        .query_row([activation], |row| row.get(0))?;
    let mut accepted = false;
    for other in Found::of(tx, activation)? {
        open |= other.is_open()?;
        accepted |= other.state == "accepted";
    }
    let counted = was_counted(tx, activation)?;
    if open {
        wake(tx, activation, now)?;
    } else {
        // Nothing is left; a fallback must not send what an operator has stopped.
        close(
            tx,
            activation,
            (!accepted).then_some(CaseState::Cancelled),
            BY_OPERATOR,
        )?;
        wipe(tx, activation)?;
    }
    Ok(done(State::Cancelled, !open && !accepted && !counted))
}

/// How it ended was counted before (`activations_ended_total`).
fn was_counted(tx: &Tx<'_>, activation: i64) -> Result<bool, OutboxError> {
    Ok(tx
        .prepare_cached("SELECT instr(told, '\"ended:') > 0 FROM activation WHERE id = ?")?
        .query_row([activation], |row| row.get(0))?)
}

fn cancel_case(tx: &Tx<'_>, activation: i64, now: Timestamp) -> Result<Commanded, OutboxError> {
    let ended = end_deliveries(tx, activation, State::Cancelled, BY_OPERATOR, now)?;
    let (state, accepted): (String, bool) = tx
        .prepare_cached(
            "SELECT state, EXISTS (SELECT 1 FROM delivery d WHERE d.activation = a.id AND d.state = 'accepted')
             FROM activation a WHERE id = ?",
        )?
        .query_row([activation], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if ended == 0 && state == "routed" {
        return Err(OutboxError::Refused(format!(
            "nothing of {} is waiting any more",
            Id::Activation(activation)
        )));
    }
    let keeps = accepted && state == "routed";
    let counted = was_counted(tx, activation)?;
    close(
        tx,
        activation,
        (!keeps).then_some(CaseState::Cancelled),
        BY_OPERATOR,
    )?;
    wipe(tx, activation)?;
    note(
        tx,
        Some(activation),
        None,
        now,
        None,
        "cancelled by an operator",
    )?;
    Ok(Commanded {
        state: State::Cancelled,
        channels: Vec::new(),
        ended: !keeps && !counted,
    })
}
