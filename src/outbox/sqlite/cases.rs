//! Activations: taken in, replaced by newer ones, leased as cases, advanced, expired, dropped.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::OptionalExtension;
use rusqlite::named_params;
use rusqlite::params;
use tracing::error;

use crate::activation::Activation;
use crate::activation::Stage;
use crate::message::Recipient;
use crate::outbox::Case;
use crate::outbox::CaseDelivery;
use crate::outbox::CaseState;
use crate::outbox::Leased;
use crate::outbox::OutboxError;
use crate::outbox::State;
use crate::outbox::Step;
use crate::outbox::Stored;
use crate::outbox::Swept;
use crate::outbox::seal::Opened;
use crate::outbox::seal::Seal;
use crate::outbox::sqlite::deliveries::end_deliveries;
use crate::outbox::sqlite::deliveries::end_overdue;
use crate::outbox::sqlite::deliveries::gather;
use crate::outbox::sqlite::row;
use crate::outbox::sqlite::row::ACTIVATION;
use crate::outbox::sqlite::row::Id;
use crate::outbox::sqlite::row::case_state;
use crate::outbox::sqlite::row::case_word;
use crate::outbox::sqlite::row::from_json;
use crate::outbox::sqlite::row::json;
use crate::outbox::sqlite::row::later;
use crate::outbox::sqlite::row::micros;
use crate::outbox::sqlite::row::span;
use crate::outbox::sqlite::row::state_word;
use crate::outbox::sqlite::row::time;
use crate::outbox::sqlite::writer::Tx;
use crate::secret::Redactor;
use crate::secret::mask_address;

/// So many rows one transaction of a sweep touches at most.
pub(super) const SWEEP_ROWS: u32 = 500;

/// An activation that is ready to be stored: its code is sealed already.
pub(super) struct Incoming {
    activation: Activation,
    code_mac: Vec<u8>,
    sealed: Option<Vec<u8>>,
}

impl Incoming {
    pub(super) fn new(mut activation: Activation, seal: &Seal) -> Result<Self, OutboxError> {
        let code = activation.code.take();
        let code_mac = seal.code_mac(code.as_ref());
        let sealed = seal
            .seal(
                &activation.event_id,
                &code_mac,
                code.as_ref(),
                &activation.addresses,
            )
            .map_err(OutboxError::Sealed)?;
        activation.addresses.clear();
        if let Some(code) = code {
            // No field that stays in clear may repeat it.
            activation.description = Redactor::new([code.secret()]).clean(&activation.description);
        }
        Ok(Self {
            activation,
            code_mac,
            sealed,
        })
    }

    /// Only codes that went out replace each other.
    fn has_code(&self) -> bool {
        self.activation.stage == Stage::CodeSent && !self.code_mac.is_empty()
    }
}

/// Adds a line to a history.
pub(super) fn note(
    tx: &Tx<'_>,
    activation: Option<i64>,
    delivery: Option<i64>,
    now: Timestamp,
    channel: Option<&str>,
    what: &str,
) -> Result<(), OutboxError> {
    tx.prepare_cached(
        "INSERT INTO history (activation, delivery, at, channel, what) VALUES (?, ?, ?, ?, ?)",
    )?
    .execute(params![activation, delivery, micros(now), channel, what])?;
    Ok(())
}

/// Something happened to it: it is looked at again at once, and whoever holds it now has lost it.
pub(super) fn wake(tx: &Tx<'_>, activation: i64, now: Timestamp) -> Result<(), OutboxError> {
    let woken = tx
        .prepare_cached(
            "UPDATE activation SET due_at = ?2, leased = 0, fence = fence + 1
             WHERE id = ?1 AND state IN ('received', 'routed', 'needs-attention', 'expired')",
        )?
        .execute(params![activation, micros(now)])?;
    if woken > 0 {
        tx.wake_cases();
    }
    Ok(())
}

/// Wipes the code of one activation; says how many codes that were.
pub(super) fn wipe(tx: &Tx<'_>, activation: i64) -> Result<u64, OutboxError> {
    let wiped = tx
        .prepare_cached("UPDATE activation SET sealed = NULL WHERE id = ? AND sealed IS NOT NULL")?
        .execute([activation])?;
    if wiped > 0 {
        tx.wiped();
    }
    Ok(wiped as u64)
}

/// Ends the case itself; nobody looks at it any more.
pub(super) fn close(
    tx: &Tx<'_>,
    activation: i64,
    state: Option<CaseState>,
    reason: &str,
) -> Result<(), OutboxError> {
    tx.prepare_cached(
        "UPDATE activation SET due_at = NULL, leased = 0, fence = fence + 1,
             state = coalesce(?2, state), reason = CASE WHEN ?2 IS NULL THEN reason ELSE ?3 END
         WHERE id = ?1",
    )?
    .execute(params![activation, state.map(case_word), reason])?;
    Ok(())
}

// === Taking in ===

pub(super) fn put(tx: &Tx<'_>, batch: &[Incoming]) -> Result<Vec<Stored>, OutboxError> {
    batch.iter().map(|new| put_one(tx, new)).collect()
}

const EXPIRED_ON_ARRIVAL: &str = "expired on arrival: device clock or old log";

fn put_one(tx: &Tx<'_>, new: &Incoming) -> Result<Stored, OutboxError> {
    let a = &new.activation;
    let now = a.received_at;
    let wanted = a.stage == Stage::CodeSent;
    let expired = wanted && a.expires_at <= a.received_at;
    let late = new.has_code() && newer_exists(tx, a)?;
    let (state, reason) = match () {
        () if !wanted => (CaseState::Recorded, None),
        () if late && expired => (
            CaseState::Superseded,
            Some(
                "a newer code was already there; this one had also expired on arrival: device clock or old log",
            ),
        ),
        () if late => (
            CaseState::Superseded,
            Some("a newer code was already there"),
        ),
        () if expired => (CaseState::Expired, Some(EXPIRED_ON_ARRIVAL)),
        () => (CaseState::Received, None),
    };
    let due = matches!(state, CaseState::Received | CaseState::Expired);
    let kept = tx
        .prepare_cached(
            "INSERT INTO activation (event_id, code_mac, sealed, device_id, device_name, vdom, user, person, logid, description,
                 stage, rule, event_time, received_at, expires_at, validity, skew, token, state, reason, due_at)
             VALUES (:event_id, :code_mac, :sealed, :device_id, :device_name, :vdom, :user, :person, :logid, :description,
                 :stage, :rule, :event_time, :received_at, :expires_at, :validity, :skew, :token, :state, :reason, :due_at)
             ON CONFLICT DO NOTHING",
        )?
        .execute(named_params! {
            ":event_id": a.event_id,
            ":code_mac": new.code_mac,
            ":sealed": new.sealed.as_ref().filter(|_| state == CaseState::Received),
            ":device_id": a.device.id,
            ":device_name": a.device.name,
            ":vdom": a.device.vdom,
            ":user": a.user,
            ":person": a.person,
            ":logid": a.logid,
            ":description": a.description,
            ":stage": a.stage.as_str(),
            ":rule": a.rule,
            ":event_time": micros(a.event_time),
            ":received_at": micros(a.received_at),
            ":expires_at": micros(a.expires_at),
            ":validity": span(a.validity),
            ":skew": i64::try_from(a.skew.as_micros()).unwrap_or(i64::MAX),
            ":token": a.token,
            ":state": case_word(state),
            ":reason": reason,
            ":due_at": due.then_some(micros(now)),
        })?;
    if kept == 0 {
        return Ok(Stored::Duplicate);
    }
    let id = tx.last_insert_rowid();
    if due {
        tx.wake_cases();
    }
    let said = match (wanted, new.has_code()) {
        (true, true) => "received, with a code",
        (true, false) => "received, without a code",
        (false, _) => "recorded",
    };
    note(tx, Some(id), None, now, None, said)?;
    if let Some(reason) = reason {
        note(tx, Some(id), None, now, None, reason)?;
    }
    let superseded = if new.has_code() {
        supersede_older(tx, a, id)?
    } else {
        0
    };
    if !wanted {
        note_life(tx, a)?;
    }
    Ok(Stored::New {
        id: Id::Activation(id).to_string(),
        superseded,
        late,
    })
}

fn newer_exists(tx: &Tx<'_>, a: &Activation) -> Result<bool, OutboxError> {
    Ok(tx
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM activation WHERE device_id = ? AND vdom = ? AND person = ?
                 AND event_time > ? AND stage = 'code-sent' AND code_mac <> x'')",
        )?
        .query_row(
            params![a.device.id, a.device.vdom, a.person, micros(a.event_time)],
            |row| row.get(0),
        )?)
}

/// The code with the latest event time replaces every older one that is still open, a resend of the same code included.
fn supersede_older(tx: &Tx<'_>, a: &Activation, by: i64) -> Result<usize, OutboxError> {
    let older: Vec<(i64, bool, bool)> = tx
        .prepare_cached(
            "SELECT id, reached, instr(told, '\"ended:') > 0 FROM activation WHERE device_id = ? AND vdom = ? AND person = ?
                 AND event_time < ? AND stage = 'code-sent' AND code_mac <> x''
                 AND state IN ('received', 'routed', 'needs-attention')",
        )?
        .query_map(
            params![a.device.id, a.device.vdom, a.person, micros(a.event_time)],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )?
        .collect::<Result<_, _>>()?;
    let reason = format!("the newer {} takes its place", Id::Activation(by));
    let mut superseded = 0;
    for (id, reached, counted) in older {
        let ended = end_deliveries(tx, id, State::Superseded, &reason, a.received_at)?;
        let accepted: bool = tx
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM delivery WHERE activation = ? AND state = 'accepted')")?
            .query_row([id], |row| row.get(0))?;
        // What has arrived has arrived; only its code is not needed any more.
        let arrived = reached || (accepted && ended == 0);
        close(tx, id, (!arrived).then_some(CaseState::Superseded), &reason)?;
        wipe(tx, id)?;
        if !arrived {
            let said = format!("superseded: {reason}");
            note(tx, Some(id), None, a.received_at, None, &said)?;
        }
        superseded += usize::from(!arrived && !counted);
    }
    Ok(superseded)
}

/// What the token went through later belongs to the story of its code.
fn note_life(tx: &Tx<'_>, a: &Activation) -> Result<(), OutboxError> {
    let latest: Option<i64> = tx
        .prepare_cached(
            "SELECT id FROM activation WHERE device_id = ? AND vdom = ? AND person = ? AND stage = 'code-sent'
                 AND event_time <= ? ORDER BY event_time DESC LIMIT 1",
        )?
        .query_row(
            params![a.device.id, a.device.vdom, a.person, micros(a.event_time)],
            |row| row.get(0),
        )
        .optional()?;
    match latest {
        Some(id) => {
            let said = format!(
                "the FortiGate logged for this user: {} ({})",
                Redactor::default().clean(&a.description),
                a.stage
            );
            note(tx, Some(id), None, a.received_at, None, &said)
        }
        None => Ok(()),
    }
}

// === Leasing and advancing ===

pub(super) fn lease(
    tx: &Tx<'_>,
    seal: &Seal,
    max: usize,
    now: Timestamp,
    lease: Duration,
) -> Result<Leased<Case>, OutboxError> {
    let mut ids: Vec<i64> = tx
        .prepare_cached(
            "UPDATE activation SET fence = fence + 1, leased = 1, due_at = ?1
             WHERE id IN (SELECT id FROM activation WHERE due_at <= ?2 ORDER BY due_at, id LIMIT ?3) RETURNING id",
        )?
        .query_map(params![later(now, lease), micros(now), max as i64], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    ids.sort_unstable();
    let mut items = Vec::with_capacity(ids.len());
    for id in ids {
        match load(tx, seal, id, now) {
            Ok(Some(case)) => items.push(case),
            Ok(None) => {}
            // One row that makes no sense must not keep the others from going out.
            Err(OutboxError::Damaged(why)) => {
                let name = Id::Activation(id).to_string();
                error!(activation.id = %name, "The row of {name} is damaged: {why}");
                let why = format!("its row is damaged: {why}");
                let over: bool = tx
                    .prepare_cached("SELECT state = 'expired' FROM activation WHERE id = ?")?
                    .query_row([id], |row| row.get(0))?;
                close(tx, id, (!over).then_some(CaseState::NeedsAttention), &why)?;
                note(tx, Some(id), None, now, None, &why)?;
            }
            Err(e) => return Err(e),
        }
    }
    let next: Option<i64> = tx
        .prepare_cached("SELECT min(due_at) FROM activation WHERE due_at IS NOT NULL")?
        .query_row([], |row| row.get(0))?;
    Ok(Leased {
        items,
        next: next.map(time),
    })
}

/// `None`: its code can't be opened, so a person has to look at it.
fn load(tx: &Tx<'_>, seal: &Seal, id: i64, now: Timestamp) -> Result<Option<Case>, OutboxError> {
    let mut statement = tx.prepare_cached(&format!(
        "SELECT {ACTIVATION}, a.state, a.fence, a.attempt, a.released, a.reached, a.told FROM activation a WHERE a.id = ?"
    ))?;
    let mut rows = statement.query([id])?;
    let row = rows
        .next()?
        .ok_or_else(|| OutboxError::NotFound(Id::Activation(id).to_string()))?;
    let activation = row::activation(row)?;
    let state = case_state(&row.get::<_, String>("state")?)?;
    let mac: Vec<u8> = row.get("code_mac")?;
    let sealed: Option<Vec<u8>> = row.get("sealed")?;
    let opened = match sealed.map(|sealed| seal.open(&activation.event_id, &mac, &sealed)) {
        None => Opened::default(),
        Some(Ok(opened)) => opened,
        Some(Err(why)) if state == CaseState::Received => {
            let name = Id::Activation(id).to_string();
            error!(activation.id = %name, "The sealed code of {name} can't be opened: {why}");
            let why = format!("its sealed code can't be opened: {why}");
            close(tx, id, Some(CaseState::NeedsAttention), &why)?;
            note(tx, Some(id), None, now, None, &why)?;
            return Ok(None);
        }
        Some(Err(_)) => Opened::default(),
    };
    let recipient: Option<String> = row.get("recipient")?;
    Ok(Some(Case {
        id: Id::Activation(id).to_string(),
        fence: row.get("fence")?,
        attempt: row.get("attempt")?,
        activation: row::unsealed(activation, opened),
        state,
        released: row.get("released")?,
        recipient: recipient.as_deref().map(from_json).transpose()?,
        reached: row.get("reached")?,
        told: from_json(&row.get::<_, String>("told")?)?,
        deliveries: deliveries_of(tx, id)?,
    }))
}

fn deliveries_of(tx: &Tx<'_>, activation: i64) -> Result<Vec<CaseDelivery>, OutboxError> {
    let mut statement =
        tx.prepare_cached("SELECT id, channel, role, state, last_error FROM delivery WHERE activation = ? ORDER BY id")?;
    let mut rows = statement.query([activation])?;
    let mut deliveries = Vec::new();
    while let Some(row) = rows.next()? {
        deliveries.push(CaseDelivery {
            id: Id::Delivery(row.get("id")?).to_string(),
            channel: row.get("channel")?,
            role: row::role(&row.get::<_, String>("role")?)?,
            state: row::state(&row.get::<_, String>("state")?)?,
            last_error: row.get("last_error")?,
        });
    }
    Ok(deliveries)
}

/// What a case is before it is advanced.
struct Held {
    event_id: String,
    code_mac: Vec<u8>,
    state: CaseState,
    reason: Option<String>,
    released: bool,
    recipient: Option<Recipient>,
    told: Vec<String>,
    received_at: i64,
    expires_at: i64,
}

fn held(tx: &Tx<'_>, id: i64, fence: i64) -> Result<Held, OutboxError> {
    let mut statement = tx.prepare_cached(
        "SELECT event_id, code_mac, state, reason, released, recipient, told, received_at, expires_at
         FROM activation WHERE id = ? AND fence = ? AND leased = 1",
    )?;
    let mut rows = statement.query([id, fence])?;
    let row = rows.next()?.ok_or(OutboxError::LostLease)?;
    Ok(Held {
        event_id: row.get("event_id")?,
        code_mac: row.get("code_mac")?,
        state: case_state(&row.get::<_, String>("state")?)?,
        reason: row.get("reason")?,
        released: row.get("released")?,
        recipient: row
            .get::<_, Option<String>>("recipient")?
            .as_deref()
            .map(from_json)
            .transpose()?,
        told: from_json(&row.get::<_, String>("told")?)?,
        received_at: row.get("received_at")?,
        expires_at: row.get("expires_at")?,
    })
}

pub(super) fn advance(
    tx: &Tx<'_>,
    seal: &Seal,
    id: i64,
    fence: i64,
    step: Step,
    now: Timestamp,
) -> Result<CaseState, OutboxError> {
    let before = held(tx, id, fence)?;
    let step = within_limit(tx, id, &before, step, now)?;
    let recipient = step.recipient.clone().or(before.recipient);

    let mut ways = Vec::new();
    for new in &step.deliver {
        let made = tx
            .prepare_cached(
                "INSERT INTO delivery (activation, channel, role, on_uncertain, message_id, state, due_at, received_at, expires_at)
                 VALUES (?, ?, ?, ?, ?, 'pending', ?, ?, ?) ON CONFLICT (activation, channel) DO NOTHING",
            )?
            .execute(params![
                id,
                new.channel,
                row::role_word(new.role),
                row::uncertain_word(new.on_uncertain),
                seal.message_id(&before.event_id, &before.code_mac, &new.channel),
                micros(now),
                before.received_at,
                before.expires_at,
            ])?;
        if made > 0 {
            ways.push(new.channel.as_str());
            tx.wake_deliveries();
        }
    }
    if !ways.is_empty() {
        let whom = recipient.as_ref().map_or_else(String::new, |r| {
            format!(", to {} (from {})", mask_address(&r.email), r.source)
        });
        note(
            tx,
            Some(id),
            None,
            now,
            None,
            &format!("goes out by {}{whom}", ways.join(", ")),
        )?;
    }
    for (delivery, state, reason) in &step.end {
        end_one(tx, id, delivery, *state, reason, now)?;
    }
    for escalate in &step.escalate {
        gather(tx, escalate, now)?;
        note(
            tx,
            Some(id),
            None,
            now,
            Some(&escalate.channel),
            &format!("is told: {}", escalate.text),
        )?;
    }

    let state = step.state.unwrap_or(before.state);
    let reason = match (&step.reason, step.state) {
        (Some(reason), _) => Some(reason.clone()),
        (None, Some(changed)) if changed != before.state => None,
        (None, _) => before.reason.clone(),
    };
    if let Some(reason) = step.reason.filter(|r| Some(r) != before.reason.as_ref()) {
        note(tx, Some(id), None, now, None, &reason)?;
    }
    let mut told = before.told;
    for key in step.told {
        if !told.contains(&key) {
            told.push(key);
        }
    }
    tx.prepare_cached(
        "UPDATE activation SET state = :state, reason = :reason, leased = 0, due_at = :due_at, attempt = attempt + :looked_up,
             reached = reached OR :reached, recipient = :recipient, told = :told,
             limit_key = coalesce(:limit_key, limit_key), routed_at = CASE WHEN :limit_key IS NULL THEN routed_at ELSE :now END
         WHERE id = :id",
    )?
    .execute(named_params! {
        ":id": id,
        ":state": case_word(state),
        ":reason": reason,
        ":due_at": step.due_at.map(micros),
        ":looked_up": i64::from(step.count_attempt),
        ":reached": step.reached,
        ":recipient": recipient.as_ref().map(json).transpose()?,
        ":told": json(&told)?,
        ":limit_key": step.limit.map(|limit| limit.key),
        ":now": micros(now),
    })?;
    if step.wipe {
        wipe(tx, id)?;
    }
    Ok(state)
}

/// The step itself, or what takes its place when the person has had too many.
fn within_limit(
    tx: &Tx<'_>,
    id: i64,
    before: &Held,
    step: Step,
    now: Timestamp,
) -> Result<Step, OutboxError> {
    let Some(limit) = step.limit.as_ref().filter(|_| !before.released) else {
        return Ok(step);
    };
    let since = micros(now).saturating_sub(span(limit.window));
    let others: i64 = tx
        .prepare_cached(
            "SELECT count(*) FROM activation WHERE limit_key = ? AND routed_at > ? AND id <> ?",
        )?
        .query_row(params![limit.key, since, id], |row| row.get(0))?;
    if others < i64::from(limit.count) {
        return Ok(step);
    }
    let told = ["held", "ended:held"].map(str::to_owned).to_vec();
    let already = before.told.iter().any(|t| t == "held");
    Ok(Step {
        state: Some(CaseState::NeedsAttention),
        reason: Some(format!(
            "held: more than {} activations for this person within {}",
            limit.count,
            words_for(limit.window)
        )),
        escalate: if already {
            Vec::new()
        } else {
            limit.held.clone()
        },
        told,
        due_at: step.due_at,
        ..Step::default()
    })
}

fn words_for(window: Duration) -> String {
    match window.as_secs() {
        seconds if seconds % 86_400 == 0 => format!("{} d", seconds / 86_400),
        seconds if seconds % 3600 == 0 => format!("{} h", seconds / 3600),
        seconds if seconds % 60 == 0 => format!("{} min", seconds / 60),
        seconds => format!("{seconds} s"),
    }
}

/// Ends one delivery of the case; one that is being sent ends so unless the try under way brings it there.
fn end_one(
    tx: &Tx<'_>,
    activation: i64,
    delivery: &str,
    state: State,
    reason: &str,
    now: Timestamp,
) -> Result<(), OutboxError> {
    let Id::Delivery(id) = Id::parse(delivery)? else {
        return Err(OutboxError::NotFound(delivery.to_owned()));
    };
    let ended: Option<String> = tx
        .prepare_cached(
            "UPDATE delivery SET state = ?3, due_at = NULL, fence = fence + 1, last_error = ?4
             WHERE id = ?1 AND activation = ?2 AND state IN ('pending', 'leased', 'needs-attention') RETURNING channel",
        )?
        .query_row(params![id, activation, state_word(state), reason], |row| row.get(0))
        .optional()?;
    match ended {
        Some(channel) => note(
            tx,
            Some(activation),
            Some(id),
            now,
            Some(&channel),
            &format!("{}: {reason}", state_word(state)),
        ),
        None => {
            tx.prepare_cached("UPDATE delivery SET ends_as = ? WHERE id = ? AND activation = ? AND state = 'sending'")?
                .execute(params![state_word(state), id, activation])?;
            Ok(())
        }
    }
}

// === Sweeping ===

/// One bounded part of a sweep, and whether there may be more to do.
pub(super) fn sweep(
    tx: &Tx<'_>,
    now: Timestamp,
    retention: Duration,
) -> Result<(Swept, bool), OutboxError> {
    let overdue = end_overdue(tx, None, now)?;
    let (expired, wiped_first) = expire(tx, now)?;
    let wiped = tx
        .prepare_cached(
            "UPDATE activation SET sealed = NULL
             WHERE id IN (SELECT id FROM activation WHERE sealed IS NOT NULL AND expires_at <= ? LIMIT ?)",
        )?
        .execute(params![micros(now), SWEEP_ROWS])? as u64;
    if wiped > 0 {
        tx.wiped();
    }
    let before = micros(now).saturating_sub(span(retention));
    // A row outlives its code, however short the retention: it is what a late copy of the event is known by.
    let activations = tx
        .prepare_cached(
            "DELETE FROM activation WHERE id IN (
                 SELECT id FROM activation a WHERE received_at < ?1 AND expires_at <= ?2 AND due_at IS NULL
                     AND state NOT IN ('received', 'needs-attention')
                     AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.activation = a.id
                         AND d.state IN ('pending', 'leased', 'sending', 'needs-attention'))
                 LIMIT ?3)",
        )?
        .execute(params![before, micros(now), SWEEP_ROWS])?;
    let escalations = tx
        .prepare_cached(
            "DELETE FROM delivery WHERE id IN (SELECT id FROM delivery WHERE role = 'escalation' AND received_at < ?
                 AND state NOT IN ('pending', 'leased', 'sending', 'needs-attention') LIMIT ?)",
        )?
        .execute(params![before, SWEEP_ROWS])?;
    tx.purge_log();
    let (activations, escalations) = (activations as u64, escalations as u64);
    let swept = Swept {
        wiped: wiped + wiped_first,
        dropped: activations + escalations,
    };
    let more = [overdue, expired, wiped, activations, escalations].contains(&u64::from(SWEEP_ROWS));
    Ok((swept, more))
}

/// Cases whose code's life has ended. They are looked at once more, so that somebody is told.
fn expire(tx: &Tx<'_>, now: Timestamp) -> Result<(u64, u64), OutboxError> {
    let ended: Vec<(i64, bool)> = tx
        .prepare_cached(
            "SELECT id, reached OR EXISTS (SELECT 1 FROM delivery d WHERE d.activation = a.id AND d.state = 'accepted')
             FROM activation a WHERE expires_at <= ?1 AND state IN ('received', 'needs-attention')
             UNION ALL
             SELECT id, reached OR EXISTS (SELECT 1 FROM delivery d WHERE d.activation = a.id AND d.state = 'accepted')
             FROM activation a WHERE expires_at <= ?1 AND sealed IS NOT NULL AND state = 'routed'
             LIMIT ?2",
        )?
        .query_map(params![micros(now), SWEEP_ROWS], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let (count, mut wiped) = (ended.len() as u64, 0);
    for (id, arrived) in ended {
        let reason = "the code's life ended";
        let open = end_deliveries(tx, id, State::Expired, reason, now)?;
        wiped += wipe(tx, id)?;
        let state: String = tx
            .prepare_cached("SELECT state FROM activation WHERE id = ?")?
            .query_row([id], |row| row.get(0))?;
        if !arrived || state != case_word(CaseState::Routed) {
            close(tx, id, Some(CaseState::Expired), reason)?;
            note(tx, Some(id), None, now, None, &format!("expired: {reason}"))?;
            wake(tx, id, now)?;
        } else if open > 0 {
            wake(tx, id, now)?;
        }
    }
    Ok((count, wiped))
}
