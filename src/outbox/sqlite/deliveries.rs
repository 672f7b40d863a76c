//! Deliveries: leased, begun, settled, given back, ended when they are overdue; and escalations, gathered into few messages.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::OptionalExtension;
use rusqlite::params;
use tracing::error;

use crate::message::Recipient;
use crate::outbox::Escalate;
use crate::outbox::Escalation;
use crate::outbox::Lease;
use crate::outbox::Leased;
use crate::outbox::OutboxError;
use crate::outbox::Settlement;
use crate::outbox::State;
use crate::outbox::Work;
use crate::outbox::seal::Opened;
use crate::outbox::seal::Seal;
use crate::outbox::seal::random_message_id;
use crate::outbox::sqlite::cases::SWEEP_ROWS;
use crate::outbox::sqlite::cases::note;
use crate::outbox::sqlite::cases::wake;
use crate::outbox::sqlite::row;
use crate::outbox::sqlite::row::ACTIVATION;
use crate::outbox::sqlite::row::Gathered;
use crate::outbox::sqlite::row::Id;
use crate::outbox::sqlite::row::from_json;
use crate::outbox::sqlite::row::json;
use crate::outbox::sqlite::row::later;
use crate::outbox::sqlite::row::micros;
use crate::outbox::sqlite::row::state_word;
use crate::outbox::sqlite::row::time;
use crate::outbox::sqlite::writer::Queue;
use crate::outbox::sqlite::writer::Tx;
use crate::secret::Redactor;

/// One message per reason and channel in this time.
const GATHER: Duration = Duration::from_secs(5 * 60);
/// A message about something that went wrong is worth nothing a day later.
const ESCALATION_LIFE: Duration = Duration::from_secs(24 * 3600);
/// So many subjects a gathered escalation names.
const NEWEST: usize = 10;

/// The relay ended between `begin_send` and `settle`.
const UNKNOWN: &str = "nobody knows how the last try ended; it may have arrived";

// === Ending ===

/// Ends everything of an activation that is open; what is being sent ends so unless the try under way brings it there.
/// Says how many that were.
pub(super) fn end_deliveries(
    tx: &Tx<'_>,
    activation: i64,
    state: State,
    reason: &str,
    now: Timestamp,
) -> Result<usize, OutboxError> {
    let ended: Vec<(i64, String)> = tx
        .prepare_cached(
            "UPDATE delivery SET state = ?2, due_at = NULL, fence = fence + 1, last_error = ?3
             WHERE activation = ?1 AND state IN ('pending', 'leased', 'needs-attention') RETURNING id, channel",
        )?
        .query_map(params![activation, state_word(state), reason], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?
        .collect::<Result<_, _>>()?;
    for (id, channel) in &ended {
        let said = format!("{}: {reason}", state_word(state));
        note(tx, Some(activation), Some(*id), now, Some(channel), &said)?;
    }
    let sending = tx
        .prepare_cached(
            "UPDATE delivery SET ends_as = ? WHERE activation = ? AND state = 'sending'",
        )?
        .execute(params![state_word(state), activation])?;
    Ok(ended.len() + sending)
}

/// Puts a delivery into a state in which nobody works on it.
fn rest(
    tx: &Tx<'_>,
    row: &Open,
    state: &str,
    why: Option<&str>,
    now: Timestamp,
) -> Result<(), OutboxError> {
    tx.prepare_cached("UPDATE delivery SET state = ?2, due_at = NULL, ends_as = NULL, last_error = ?3 WHERE id = ?1")?
        .execute(params![row.id, state, why])?;
    let said = why.map_or_else(|| state.to_owned(), |why| format!("{state}: {why}"));
    note(
        tx,
        row.activation,
        Some(row.id),
        now,
        Some(&row.channel),
        &said,
    )?;
    match row.activation {
        Some(activation) => wake(tx, activation, now),
        None => Ok(()),
    }
}

/// An open delivery, as far as ending it needs.
struct Open {
    id: i64,
    activation: Option<i64>,
    channel: String,
    state: String,
    ends_as: Option<String>,
    expires_at: i64,
    attempt: i64,
    hold: bool,
}

const OPEN: &str =
    "id, activation, channel, state, ends_as, expires_at, attempt, on_uncertain = 'hold' AS hold";

fn open(row: &rusqlite::Row<'_>) -> rusqlite::Result<Open> {
    Ok(Open {
        id: row.get("id")?,
        activation: row.get("activation")?,
        channel: row.get("channel")?,
        state: row.get("state")?,
        ends_as: row.get("ends_as")?,
        expires_at: row.get("expires_at")?,
        attempt: row.get("attempt")?,
        hold: row.get("hold")?,
    })
}

/// Ends what must not be tried again: past expiry, or its lease ran out and it may not be sent once more.
pub(super) fn end_overdue(
    tx: &Tx<'_>,
    channel: Option<&str>,
    now: Timestamp,
) -> Result<u64, OutboxError> {
    let mut overdue: Vec<Open> = tx
        .prepare_cached(&format!(
            "SELECT {OPEN} FROM delivery WHERE expires_at <= ?1 AND state IN ('pending', 'leased', 'sending', 'needs-attention')
                 AND (state <> 'sending' OR due_at <= ?1) AND (?2 IS NULL OR channel = ?2) LIMIT ?3"
        ))?
        .query_map(params![micros(now), channel, SWEEP_ROWS], open)?
        .collect::<Result<_, _>>()?;
    let stuck = tx
        .prepare_cached(&format!(
            "SELECT {OPEN} FROM delivery WHERE due_at <= ?1 AND expires_at > ?1 AND state IN ('leased', 'sending')
                 AND (ends_as IS NOT NULL OR (state = 'sending' AND on_uncertain = 'hold'))
                 AND (?2 IS NULL OR channel = ?2) LIMIT ?3"
        ))?
        .query_map(params![micros(now), channel, SWEEP_ROWS], open)?
        .collect::<Result<Vec<_>, _>>()?;
    let count = overdue.len().max(stuck.len()) as u64;
    overdue.extend(stuck);
    for row in overdue {
        let unknown = row.state == "sending";
        let (state, why) = match &row.ends_as {
            Some(state) => (state.as_str(), unknown.then_some(UNKNOWN)),
            None if row.expires_at <= micros(now) && unknown => ("expired", Some(UNKNOWN)),
            None if row.expires_at <= micros(now) => ("expired", Some("the code's life ended")),
            None => ("needs-attention", Some(UNKNOWN)),
        };
        let why = match (why, row.activation) {
            (Some("the code's life ended"), None) => Some("not accepted within a day"),
            (why, _) => why,
        };
        rest(tx, &row, state, why, now)?;
    }
    Ok(count)
}

/// What a dead process left: whatever it held is due at once, whatever it was sending is decided by `on_uncertain`.
pub(super) fn recover(tx: &Tx<'_>, now: Timestamp) -> Result<(), OutboxError> {
    let held: Vec<Open> = tx
        .prepare_cached(&format!(
            "SELECT {OPEN} FROM delivery WHERE state IN ('leased', 'sending') ORDER BY id"
        ))?
        .query_map([], open)?
        .collect::<Result<_, _>>()?;
    for row in held {
        let sending = row.state == "sending";
        if let Some(state) = row.ends_as.clone() {
            rest(tx, &row, &state, sending.then_some(UNKNOWN), now)?;
        } else if sending && row.hold {
            rest(tx, &row, "needs-attention", Some(UNKNOWN), now)?;
        } else {
            // A try that had not begun is not counted.
            let attempt = row.attempt - i64::from(!sending);
            tx.prepare_cached("UPDATE delivery SET state = 'pending', due_at = ?2, fence = fence + 1, attempt = ?3 WHERE id = ?1")?
                .execute(params![row.id, micros(now), attempt])?;
            if sending {
                let said = format!("the relay had ended: {UNKNOWN}; tried again at once");
                note(
                    tx,
                    row.activation,
                    Some(row.id),
                    now,
                    Some(&row.channel),
                    &said,
                )?;
            }
        }
    }
    tx.prepare_cached("UPDATE activation SET due_at = ?, leased = 0, fence = fence + 1 WHERE leased = 1 AND due_at IS NOT NULL")?
        .execute([micros(now)])?;
    Ok(())
}

// === Leasing ===

pub(super) fn lease(
    tx: &Tx<'_>,
    seal: &Seal,
    channel: &str,
    max: usize,
    now: Timestamp,
    lease: Duration,
) -> Result<Leased<Lease>, OutboxError> {
    end_overdue(tx, Some(channel), now)?;
    let ids: Vec<i64> = tx
        .prepare_cached(
            "SELECT id FROM delivery WHERE channel = ?1 AND due_at <= ?2 AND expires_at > ?2 AND ends_as IS NULL
                 AND NOT (state = 'sending' AND on_uncertain = 'hold') ORDER BY due_at, id LIMIT ?3",
        )?
        .query_map(params![channel, micros(now), max as i64], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let mut items = Vec::with_capacity(ids.len());
    for id in ids {
        tx.prepare_cached("UPDATE delivery SET state = 'leased', fence = fence + 1, attempt = attempt + 1, due_at = ? WHERE id = ?")?
            .execute(params![later(now, lease), id])?;
        // One row that makes no sense must not keep the others from going out.
        let loaded = match load(tx, seal, id) {
            Err(OutboxError::Damaged(why)) => Err(format!("its row is damaged: {why}")),
            Err(e) => return Err(e),
            Ok(opened) => opened.map_err(|why| format!("its sealed code can't be opened: {why}")),
        };
        match loaded {
            Ok(lease) => items.push(lease),
            Err(why) => {
                let name = Id::Delivery(id).to_string();
                error!(delivery.id = %name, channel, "{name} can't be sent: {why}");
                let row = tx
                    .prepare_cached(&format!("SELECT {OPEN} FROM delivery WHERE id = ?"))?
                    .query_row([id], open)?;
                rest(tx, &row, "needs-attention", Some(&why), now)?;
            }
        }
    }
    let next: Option<i64> = tx
        .prepare_cached(
            "SELECT min(due_at) FROM delivery WHERE channel = ? AND due_at IS NOT NULL",
        )?
        .query_row([channel], |row| row.get(0))?;
    Ok(Leased {
        items,
        next: next.map(time),
        changes: tx.changes(Queue::Deliveries),
    })
}

/// The inner error says why the code can't be opened.
fn load(tx: &Tx<'_>, seal: &Seal, id: i64) -> Result<Result<Lease, String>, OutboxError> {
    let mut statement = tx.prepare_cached(&format!(
        "SELECT d.id, d.activation, d.fence, d.attempt, d.message_id, d.channel, d.received_at, d.expires_at,
             d.reason AS gathered_by, d.escalation, {ACTIVATION}
         FROM delivery d LEFT JOIN activation a ON a.id = d.activation WHERE d.id = ?"
    ))?;
    let mut rows = statement.query([id])?;
    let row = rows
        .next()?
        .ok_or_else(|| OutboxError::NotFound(Id::Delivery(id).to_string()))?;
    let received_at = time(row.get("received_at")?);
    let escalation: Option<String> = row.get("escalation")?;
    let work = match escalation {
        Some(text) => {
            let said: Gathered = from_json(&text)?;
            Work::Escalation(Escalation {
                reason: row.get("gathered_by")?,
                text: said.text,
                count: said.count,
                newest: said.newest,
                since: received_at,
            })
        }
        None => {
            let activation = row::activation(row)?;
            let mac: Vec<u8> = row.get("code_mac")?;
            let sealed: Option<Vec<u8>> = row.get("sealed")?;
            let opened = match sealed.map(|sealed| seal.open(&activation.event_id, &mac, &sealed)) {
                None if !mac.is_empty() => return Ok(Err("it was wiped".to_owned())),
                None => Opened::default(),
                Some(Ok(opened)) => opened,
                Some(Err(why)) => return Ok(Err(why)),
            };
            let recipient: Option<String> = row.get("recipient")?;
            let recipient: Option<Recipient> = recipient.as_deref().map(from_json).transpose()?;
            Work::Activation {
                activation: Box::new(row::unsealed(activation, opened)),
                recipient,
            }
        }
    };
    Ok(Ok(Lease {
        id: Id::Delivery(id).to_string(),
        fence: row.get("fence")?,
        attempt: row.get("attempt")?,
        message_id: row.get("message_id")?,
        channel: row.get("channel")?,
        received_at,
        expires_at: time(row.get("expires_at")?),
        work,
    }))
}

// === One try ===

pub(super) fn begin_send(
    tx: &Tx<'_>,
    id: i64,
    fence: i64,
    until: Timestamp,
) -> Result<(), OutboxError> {
    // A second time in the same try changes nothing but the time: its answer may have been lost.
    let begun = tx
        .prepare_cached("UPDATE delivery SET state = 'sending', due_at = ? WHERE id = ? AND fence = ? AND state IN ('leased', 'sending')")?
        .execute(params![micros(until), id, fence])?;
    match begun {
        0 => Err(OutboxError::LostLease),
        _ => Ok(()),
    }
}

fn leased(tx: &Tx<'_>, id: i64, fence: i64) -> Result<Open, OutboxError> {
    tx.prepare_cached(&format!(
        "SELECT {OPEN} FROM delivery WHERE id = ? AND fence = ? AND state IN ('leased', 'sending')"
    ))?
    .query_row([id, fence], open)
    .optional()?
    .ok_or(OutboxError::LostLease)
}

pub(super) fn settle(
    tx: &Tx<'_>,
    id: i64,
    fence: i64,
    settlement: &Settlement,
    now: Timestamp,
) -> Result<(), OutboxError> {
    let row = leased(tx, id, fence)?;
    match settlement {
        Settlement::Accepted { receipt, reached } => {
            tx.prepare_cached("UPDATE delivery SET state = 'accepted', due_at = NULL, ends_as = NULL, last_error = NULL WHERE id = ?")?
                .execute([id])?;
            let said = format!("accepted: {receipt}");
            note(tx, row.activation, Some(id), now, Some(&row.channel), &said)?;
            if let Some(activation) = row.activation {
                if *reached {
                    tx.prepare_cached("UPDATE activation SET reached = 1 WHERE id = ?")?
                        .execute([activation])?;
                }
                wake(tx, activation, now)?;
            }
            Ok(())
        }
        Settlement::Retry { due_at, reason } => match &row.ends_as {
            Some(state) => rest(tx, &row, state, Some(reason), now),
            None => {
                let due = micros(*due_at).min(row.expires_at);
                tx.prepare_cached("UPDATE delivery SET state = 'pending', due_at = ?, last_error = ? WHERE id = ?")?
                    .execute(params![due, reason, id])?;
                tx.wake_deliveries();
                let said = format!("try {} failed: {reason}", row.attempt);
                note(tx, row.activation, Some(id), now, Some(&row.channel), &said)?;
                row.activation
                    .map_or(Ok(()), |activation| wake(tx, activation, now))
            }
        },
        Settlement::Failed { reason } => rest(tx, &row, "failed", Some(reason), now),
        Settlement::Expired { reason } => {
            let state = row.ends_as.as_deref().unwrap_or("expired");
            rest(tx, &row, state, Some(reason), now)
        }
        Settlement::Hold { reason } => {
            let state = row.ends_as.as_deref().unwrap_or("needs-attention");
            rest(tx, &row, state, Some(reason), now)
        }
    }
}

pub(super) fn release(
    tx: &Tx<'_>,
    id: i64,
    fence: i64,
    due_at: Timestamp,
) -> Result<(), OutboxError> {
    let row = leased(tx, id, fence)?;
    if row.state == "sending" {
        return Err(OutboxError::Refused(format!(
            "{} is being sent and can't be given back untouched",
            Id::Delivery(id)
        )));
    }
    if let Some(state) = &row.ends_as {
        return rest(tx, &row, state, None, due_at);
    }
    tx.prepare_cached(
        "UPDATE delivery SET state = 'pending', due_at = ?, attempt = attempt - 1 WHERE id = ?",
    )?
    .execute(params![micros(due_at).min(row.expires_at), id])?;
    tx.wake_deliveries();
    Ok(())
}

// === Channels that come and go ===

pub(super) fn wake_cases(tx: &Tx<'_>, channel: &str, now: Timestamp) -> Result<(), OutboxError> {
    let woken = tx
        .prepare_cached(
            "UPDATE activation SET due_at = ?2, leased = 0, fence = fence + 1
             WHERE state IN ('received', 'routed', 'needs-attention') AND id IN (
                 SELECT activation FROM delivery WHERE channel = ?1 AND state IN ('pending', 'leased', 'sending', 'needs-attention'))",
        )?
        .execute(params![channel, micros(now)])?;
    if woken > 0 {
        tx.wake_cases();
    }
    Ok(())
}

pub(super) fn fail_orphans(
    tx: &Tx<'_>,
    channels: &[String],
    now: Timestamp,
) -> Result<u64, OutboxError> {
    let known = json(&channels)?;
    let orphans: Vec<Open> = tx
        .prepare_cached(&format!(
            "SELECT {OPEN} FROM delivery WHERE state IN ('pending', 'leased', 'sending', 'needs-attention')
                 AND channel NOT IN (SELECT value FROM json_each(?)) ORDER BY id"
        ))?
        .query_map([known], open)?
        .collect::<Result<_, _>>()?;
    let count = orphans.len() as u64;
    for row in orphans {
        if matches!(row.state.as_str(), "leased" | "sending") {
            // The try under way ends by the settings under which it began; there is none after it.
            tx.prepare_cached(
                "UPDATE delivery SET ends_as = coalesce(ends_as, 'failed') WHERE id = ?",
            )?
            .execute([row.id])?;
        } else {
            let why = format!("the channel {} is no longer configured", row.channel);
            rest(tx, &row, "failed", Some(&why), now)?;
        }
    }
    Ok(count)
}

// === Escalations ===

/// Tells somebody: joins the message that waits for that channel and reason, or makes one.
pub(super) fn gather(tx: &Tx<'_>, escalate: &Escalate, now: Timestamp) -> Result<(), OutboxError> {
    // It holds what a log says, in whatever length and shape.
    let subject = Redactor::default().clean(&escalate.subject);
    let waiting: Option<(i64, String)> = tx
        .prepare_cached(
            "SELECT id, escalation FROM delivery WHERE role = 'escalation' AND channel = ?1 AND reason = ?2
                 AND state = 'pending' AND attempt = 0 AND expires_at > ?3 ORDER BY id DESC LIMIT 1",
        )?
        .query_row(params![escalate.channel, escalate.reason, micros(now)], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    if let Some((id, said)) = waiting {
        let mut said: Gathered = from_json(&said)?;
        said.count += 1;
        said.newest.insert(0, subject);
        said.newest.truncate(NEWEST);
        tx.prepare_cached("UPDATE delivery SET escalation = ? WHERE id = ?")?
            .execute(params![json(&said)?, id])?;
        return Ok(());
    }
    let latest: Option<i64> = tx
        .prepare_cached("SELECT max(first_due_at) FROM delivery WHERE role = 'escalation' AND channel = ? AND reason = ?")?
        .query_row([&escalate.channel, &escalate.reason], |row| row.get(0))?;
    // Bounded on both sides, so that a clock that was set back delays it by no more than that.
    let due = latest.map_or(micros(now), |latest| {
        later(time(latest), GATHER).clamp(micros(now), later(now, GATHER))
    });
    let said = Gathered {
        text: escalate.text.clone(),
        count: 1,
        newest: vec![subject],
    };
    let message_id = random_message_id().map_err(|e| OutboxError::Unavailable(e.to_string()))?;
    tx.prepare_cached(
        "INSERT INTO delivery (channel, role, on_uncertain, message_id, state, due_at, received_at, expires_at, reason, first_due_at, escalation)
         VALUES (?, 'escalation', 'resend', ?, 'pending', ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        escalate.channel,
        message_id,
        due,
        micros(now),
        later(now, ESCALATION_LIFE),
        escalate.reason,
        due,
        json(&said)?,
    ])?;
    tx.wake_deliveries();
    Ok(())
}
