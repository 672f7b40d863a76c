//! Activations: taken in, replaced by newer ones, leased as cases, advanced, expired, dropped.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::OptionalExtension;
use rusqlite::named_params;
use rusqlite::params;
use tracing::error;

use crate::activation::Activation;
use crate::activation::Stage;
use crate::activation::Standing;
use crate::message::Recipient;
use crate::outbox::Advanced;
use crate::outbox::Case;
use crate::outbox::CaseDelivery;
use crate::outbox::CaseState;
use crate::outbox::Evidence;
use crate::outbox::Finding;
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
use crate::outbox::sqlite::row::standing_word;
use crate::outbox::sqlite::row::state_word;
use crate::outbox::sqlite::row::time;
use crate::outbox::sqlite::writer::Queue;
use crate::outbox::sqlite::writer::Tx;
use crate::secret::Redactor;
use crate::secret::mask_address;

/// So many rows one transaction of a sweep touches at most.
pub(super) const SWEEP_ROWS: u32 = 500;
/// A trace keeps so many findings; a case that is tried for days says little that is new.
const MAX_FINDINGS: usize = 64;
/// A code for which the device has no word waits so long for the device's word on a newer one; it is asked for 5 s at most.
const SETTLING: Duration = Duration::from_secs(15);
/// The pause between two looks meanwhile.
const SETTLING_PAUSE: Duration = Duration::from_millis(500);
/// A code that may replace others and be replaced: it was shown or found, its word is believed, and whose it is isn't open.
const COUNTS: &str = "stage = 'code-sent' AND standing <> 'provisional' AND NOT unsettled AND (code_mac <> x'' OR found_mac IS NOT NULL)";

/// An activation that is ready to be stored: its code is sealed already.
pub(super) struct Incoming {
    activation: Activation,
    code_mac: Vec<u8>,
    sealed: Option<Vec<u8>>,
    first: Vec<Finding>,
}

impl Incoming {
    pub(super) fn new(mut activation: Activation, seal: &Seal) -> Result<Self, OutboxError> {
        let mut first = Finding::first(&activation);
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
            let redactor = Redactor::new([code.secret()]);
            activation.description = redactor.clean(&activation.description);
            for finding in &mut first {
                finding.said = redactor.clean(&finding.said);
            }
        }
        Ok(Self {
            activation,
            code_mac,
            sealed,
            first,
        })
    }

    fn has_code(&self) -> bool {
        self.activation.stage == Stage::CodeSent && !self.code_mac.is_empty()
    }

    /// Only codes that went out replace each other, and only those that are believed, once it is known whose they are.
    fn counts(&self) -> bool {
        let is_open = matches!(
            self.activation.origin.standing,
            Standing::Unsettled | Standing::Provisional
        );
        self.has_code() && !is_open
    }

    fn whose(&self) -> Whose<'_> {
        let a = &self.activation;
        Whose {
            device_id: &a.device.id,
            vdom: &a.device.vdom,
            person: &a.person,
            event_time: micros(a.event_time),
        }
    }
}

/// Whose codes replace each other, and when one of them was sent.
struct Whose<'a> {
    device_id: &'a str,
    vdom: &'a str,
    person: &'a str,
    event_time: i64,
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
    if new.has_code() && found_already(tx, &a.event_id, &new.code_mac)? {
        return Ok(Stored::Duplicate);
    }
    let late = new.counts() && newer_exists(tx, &new.whose())?;
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
    // A life-cycle event is looked at once where it may end something or somebody must hear of it.
    let due = match state {
        CaseState::Recorded => match a.stage {
            Stage::Activated => a.token.is_some(),
            Stage::Failed => true,
            Stage::Requested | Stage::CodeSent => false,
        },
        state => matches!(state, CaseState::Received | CaseState::Expired),
    };
    let kept = tx
        .prepare_cached(
            "INSERT INTO activation (event_id, code_mac, sealed, device_id, device_name, vdom, user, person, logid, description,
                 stage, rule, event_time, received_at, expires_at, validity, skew, token, state, reason, due_at, standing, unsettled, trace)
             VALUES (:event_id, :code_mac, :sealed, :device_id, :device_name, :vdom, :user, :person, :logid, :description,
                 :stage, :rule, :event_time, :received_at, :expires_at, :validity, :skew, :token, :state, :reason, :due_at, :standing, :unsettled, :trace)
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
            ":standing": standing_word(a.origin.standing),
            ":unsettled": a.origin.standing == Standing::Unsettled,
            ":trace": json(&new.first)?,
        })?;
    if kept == 0 {
        if a.origin.standing == Standing::Provisional {
            doubt_token(tx, new)?;
        }
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
    let superseded = if new.counts() {
        supersede_older(tx, &new.whose(), id, now)?
    } else {
        0
    };
    if !wanted {
        note_life(tx, a)?;
    }
    Ok(Stored::New {
        id: Id::Activation(id).to_string(),
        superseded,
        late: state == CaseState::Superseded,
    })
}

fn newer_exists(tx: &Tx<'_>, whose: &Whose<'_>) -> Result<bool, OutboxError> {
    Ok(tx
        .prepare_cached(&format!(
            "SELECT EXISTS (SELECT 1 FROM activation WHERE device_id = ? AND vdom = ? AND person = ?
                 AND event_time > ? AND {COUNTS})"
        ))?
        .query_row(
            params![whose.device_id, whose.vdom, whose.person, whose.event_time],
            |row| row.get(0),
        )?)
}

/// The log showed no code when this event came first, and the device named this one: it has gone out already.
fn found_already(tx: &Tx<'_>, event_id: &str, code_mac: &[u8]) -> Result<bool, OutboxError> {
    Ok(tx
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM activation WHERE event_id = ? AND found_mac = ?)",
        )?
        .query_row(params![event_id, code_mac], |row| row.get(0))?)
}

/// Two lines of one unconfirmed event name different tokens, so one of them may be forged: neither is believed, and the
/// device is asked for the user's.
fn doubt_token(tx: &Tx<'_>, new: &Incoming) -> Result<(), OutboxError> {
    let a = &new.activation;
    let doubted: Option<i64> = tx
        .prepare_cached(
            "UPDATE activation SET token = NULL, state = 'received', reason = NULL WHERE event_id = ?1 AND code_mac = ?2
                 AND token IS NOT NULL AND token IS NOT ?3 AND standing = 'provisional'
                 AND state IN ('received', 'needs-attention') RETURNING id",
        )?
        .query_row(params![a.event_id, new.code_mac, a.token], |row| row.get(0))
        .optional()?;
    if let Some(id) = doubted {
        let said = "the same event came again with another token; neither is believed";
        note(tx, Some(id), None, a.received_at, None, said)?;
        wake(tx, id, a.received_at)?;
    }
    Ok(())
}

const ACTIVATED: &str = "the token was activated";

/// The device has said that this token was activated after the code was sent: the events came out of order.
fn activated_since(tx: &Tx<'_>, whose: &Whose<'_>, token: &str) -> Result<bool, OutboxError> {
    Ok(tx
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM activation WHERE device_id = ?1 AND person = ?2 AND event_time >= ?3
                 AND stage = 'activated' AND standing = 'confirmed' AND token = ?4)",
        )?
        .query_row(
            params![whose.device_id, whose.person, whose.event_time, token],
            |row| row.get(0),
        )?)
}

/// Ends a case that is open because something else took its place or made it needless. What has arrived has arrived; only
/// its code is not needed any more. Whether this is an end that was not counted before.
fn end_case(
    tx: &Tx<'_>,
    open: (i64, bool, bool),
    (case_as, state, reason): (CaseState, State, &str),
    now: Timestamp,
) -> Result<bool, OutboxError> {
    let (id, reached, counted) = open;
    let ended = end_deliveries(tx, id, state, reason, now)?;
    let accepted: bool = tx
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM delivery WHERE activation = ? AND state = 'accepted')",
        )?
        .query_row([id], |row| row.get(0))?;
    let arrived = reached || (accepted && ended == 0);
    close(tx, id, (!arrived).then_some(case_as), reason)?;
    wipe(tx, id)?;
    if !arrived {
        let said = format!("{}: {reason}", state_word(state));
        note(tx, Some(id), None, now, None, &said)?;
    }
    Ok(!arrived && !counted)
}

fn open_case(row: &rusqlite::Row<'_>) -> rusqlite::Result<(i64, bool, bool)> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
}

/// The code with the latest event time replaces every older one that is still open, a resend of the same code included. One
/// that the device has confirmed also ends older events of the same kind that showed none, unless they name another token: nothing
/// of them is left to send.
fn supersede_older(
    tx: &Tx<'_>,
    whose: &Whose<'_>,
    by: i64,
    now: Timestamp,
) -> Result<usize, OutboxError> {
    let older: Vec<_> = tx
        .prepare_cached(&format!(
            "SELECT id, reached, instr(told, '\"ended:') > 0 FROM activation WHERE device_id = ? AND vdom = ? AND person = ?
                 AND event_time < ? AND state IN ('received', 'routed', 'needs-attention') AND ({COUNTS}
                     OR (stage = 'code-sent' AND code_mac = x'' AND EXISTS (SELECT 1 FROM activation b
                         WHERE b.id = ? AND b.standing = 'confirmed' AND b.logid = activation.logid
                             AND (activation.token IS NULL OR activation.token = b.token))))"
        ))?
        .query_map(
            params![whose.device_id, whose.vdom, whose.person, whose.event_time, by],
            open_case,
        )?
        .collect::<Result<_, _>>()?;
    let reason = format!("the newer {} takes its place", Id::Activation(by));
    let mut superseded = 0;
    for case in older {
        let how = (CaseState::Superseded, State::Superseded, reason.as_str());
        superseded += usize::from(end_case(tx, case, how, now)?);
    }
    Ok(superseded)
}

/// The token of this person is activated: its codes that were sent, and received, before that are needed no longer. Of an
/// event without code and token only a person could still make something, and that person need not any more. Whatever else
/// names no token may be about another one, and a line that says "activated" can be forged for one that truly is.
fn cancel_activated(
    tx: &Tx<'_>,
    whose: &Whose<'_>,
    (token, received_at): (&str, i64),
    now: Timestamp,
) -> Result<usize, OutboxError> {
    let open: Vec<_> = tx
        .prepare_cached(
            "SELECT id, reached, instr(told, '\"ended:') > 0 FROM activation WHERE device_id = ?1 AND person = ?2
                 AND event_time <= ?3 AND received_at <= ?6 AND stage = 'code-sent' AND (token = ?4
                     OR (token IS NULL AND vdom = ?5 AND code_mac = x'' AND state = 'needs-attention'))
                 AND state IN ('received', 'routed', 'needs-attention')",
        )?
        .query_map(
            params![whose.device_id, whose.person, whose.event_time, token, whose.vdom, received_at],
            open_case,
        )?
        .collect::<Result<_, _>>()?;
    let mut cancelled = 0;
    for case in open {
        let how = (CaseState::Cancelled, State::Cancelled, ACTIVATED);
        cancelled += usize::from(end_case(tx, case, how, now)?);
    }
    Ok(cancelled)
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
        changes: tx.changes(Queue::Cases),
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
    /// The mark of the code that the log showed: it names the event and its deliveries.
    code_mac: Vec<u8>,
    /// The mark under which the code is sealed.
    sealed_as: Vec<u8>,
    sealed: Option<Vec<u8>>,
    device_id: String,
    vdom: String,
    person: String,
    event_time: i64,
    stage: String,
    trace: Vec<Finding>,
    state: CaseState,
    reason: Option<String>,
    released: bool,
    recipient: Option<Recipient>,
    told: Vec<String>,
    received_at: i64,
    expires_at: i64,
}

impl Held {
    fn whose(&self) -> Whose<'_> {
        Whose {
            device_id: &self.device_id,
            vdom: &self.vdom,
            person: &self.person,
            event_time: self.event_time,
        }
    }
}

fn held(tx: &Tx<'_>, id: i64, fence: i64) -> Result<Held, OutboxError> {
    let mut statement = tx.prepare_cached(
        "SELECT event_id, code_mac, coalesce(found_mac, code_mac) AS sealed_as, sealed, device_id, vdom, person, event_time, stage,
             trace, state, reason, released, recipient, told, received_at, expires_at
         FROM activation WHERE id = ? AND fence = ? AND leased = 1",
    )?;
    let mut rows = statement.query([id, fence])?;
    let row = rows.next()?.ok_or(OutboxError::LostLease)?;
    Ok(Held {
        event_id: row.get("event_id")?,
        code_mac: row.get("code_mac")?,
        sealed_as: row.get("sealed_as")?,
        sealed: row.get("sealed")?,
        device_id: row.get("device_id")?,
        vdom: row.get("vdom")?,
        person: row.get("person")?,
        event_time: row.get("event_time")?,
        stage: row.get("stage")?,
        trace: from_json(&row.get::<_, String>("trace")?)?,
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
) -> Result<Advanced, OutboxError> {
    let mut before = held(tx, id, fence)?;
    keep_trace(tx, id, &before, &step.trace)?;
    let mut done = Advanced {
        state: before.state,
        superseded: 0,
        cancelled: 0,
    };
    let goes_on = match &step.evidence {
        Some(evidence) => take_evidence(tx, seal, id, &mut before, evidence, now, &mut done)?,
        None if step.settles && !before.code_mac.is_empty() => {
            if must_wait(tx, id, &before, now)? {
                return Ok(done);
            }
            settle(tx, id, &before, &Named::default(), now, &mut done)?
        }
        None => true,
    };
    if !goes_on {
        return Ok(done);
    }
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
    if step.due_at.is_some() {
        // Not due at once, but perhaps before whatever is waited for.
        tx.wake_cases();
    }
    if step.wipe {
        wipe(tx, id)?;
    }
    Ok(Advanced { state, ..done })
}

/// Adds what the trace doesn't say already.
fn keep_trace(
    tx: &Tx<'_>,
    id: i64,
    before: &Held,
    findings: &[Finding],
) -> Result<(), OutboxError> {
    let mut trace = before.trace.clone();
    for finding in findings {
        let known = |f: &Finding| f.by == finding.by && f.said == finding.said;
        if trace.len() < MAX_FINDINGS && !trace.iter().any(known) {
            trace.push(finding.clone());
        }
    }
    if trace.len() > before.trace.len() {
        tx.prepare_cached("UPDATE activation SET trace = ? WHERE id = ?")?
            .execute(params![json(&trace)?, id])?;
    }
    Ok(())
}

/// Writes down what the device said. `false`: the case is over by it, and nothing else of the step happens.
fn take_evidence(
    tx: &Tx<'_>,
    seal: &Seal,
    id: i64,
    before: &mut Held,
    evidence: &Evidence,
    now: Timestamp,
    done: &mut Advanced,
) -> Result<bool, OutboxError> {
    let found_mac = evidence.code.as_ref().map(|code| seal.code_mac(Some(code)));
    if let (Some(code), Some(mac)) = (&evidence.code, &found_mac) {
        let open = |sealed: &Vec<u8>| {
            seal.open(&before.event_id, &before.sealed_as, sealed)
                .map_err(OutboxError::Sealed)
        };
        let addresses = match &before.sealed {
            Some(sealed) => open(sealed)?.addresses,
            None => Vec::new(),
        };
        before.sealed = seal
            .seal(&before.event_id, mac, Some(code), &addresses)
            .map_err(OutboxError::Sealed)?;
    }
    if let Some(expires_at) = evidence.expires_at {
        before.expires_at = micros(expires_at);
        tx.prepare_cached("UPDATE delivery SET expires_at = ? WHERE activation = ?")?
            .execute(params![before.expires_at, id])?;
    }
    tx.prepare_cached(
        "UPDATE activation SET standing = 'confirmed', found_mac = coalesce(?2, found_mac), sealed = ?3, expires_at = ?4,
             token = ?5, person = ?6 WHERE id = ?1",
    )?
    .execute(params![
        id,
        found_mac,
        before.sealed,
        before.expires_at,
        evidence.token,
        evidence.person
    ])?;
    before.person.clone_from(&evidence.person);
    if before.stage == Stage::Activated.as_str() {
        let activated = (evidence.token.as_str(), before.received_at);
        done.cancelled = cancel_activated(tx, &before.whose(), activated, now)?;
        return Ok(true);
    }
    let named = Named {
        token: evidence.is_activated.then_some(evidence.token.as_str()),
        found_mac: found_mac.as_deref(),
    };
    settle(tx, id, before, &named, now, done)
}

/// What the device has named; nothing, where the log's word stands.
#[derive(Default)]
struct Named<'a> {
    /// The token, if a phone has it.
    token: Option<&'a str>,
    /// The mark of the code, if the log showed none.
    found_mac: Option<&'a [u8]>,
}

/// Whose the code is, is settled, by the device or by the log: it takes its place among the codes of that person. `false`: the
/// case is over by it.
fn settle(
    tx: &Tx<'_>,
    id: i64,
    before: &Held,
    named: &Named<'_>,
    now: Timestamp,
    done: &mut Advanced,
) -> Result<bool, OutboxError> {
    tx.prepare_cached("UPDATE activation SET unsettled = 0 WHERE id = ?")?
        .execute([id])?;
    let whose = before.whose();
    let counted = before.told.iter().any(|t| t.starts_with("ended:"));
    let over = match () {
        () if named
            .token
            .map_or(Ok(false), |token| activated_since(tx, &whose, token))? =>
        {
            done.cancelled = usize::from(!counted);
            Some((CaseState::Cancelled, State::Cancelled, ACTIVATED))
        }
        () if newer_exists(tx, &whose)? => {
            done.superseded = usize::from(!counted);
            let why = "a newer code was already there";
            Some((CaseState::Superseded, State::Superseded, why))
        }
        () if shown_elsewhere(tx, id, &before.event_id, named.found_mac)? => {
            done.superseded = usize::from(!counted);
            let why = "the same event has come with its code readable";
            Some((CaseState::Superseded, State::Superseded, why))
        }
        () => None,
    };
    if let Some((state, ends, why)) = over {
        end_case(tx, (id, false, counted), (state, ends, why), now)?;
        done.state = state;
        return Ok(false);
    }
    done.superseded = supersede_older(tx, &whose, id, now)?;
    Ok(true)
}

/// The log names the same person in a newer code, about which the device is being asked at this moment: soon it is known
/// whether that one takes the place of this one, whose word is the log's alone. Until then this one is looked at again.
fn must_wait(tx: &Tx<'_>, id: i64, before: &Held, now: Timestamp) -> Result<bool, OutboxError> {
    let whose = before.whose();
    let until = before.received_at.saturating_add(span(SETTLING));
    let waits: bool = tx
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM activation WHERE device_id = ? AND vdom = ? AND person = ? AND event_time > ?
                 AND state = 'received' AND unsettled AND code_mac <> x'') AND ? < ?",
        )?
        .query_row(
            params![whose.device_id, whose.vdom, whose.person, whose.event_time, micros(now), until],
            |row| row.get(0),
        )?;
    if waits {
        tx.prepare_cached("UPDATE activation SET leased = 0, due_at = ? WHERE id = ?")?
            .execute(params![later(now, SETTLING_PAUSE), id])?;
        tx.wake_cases();
    }
    Ok(waits)
}

fn shown_elsewhere(
    tx: &Tx<'_>,
    id: i64,
    event_id: &str,
    found_mac: Option<&[u8]>,
) -> Result<bool, OutboxError> {
    Ok(tx
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM activation WHERE event_id = ? AND code_mac = ? AND id <> ?)")?
        .query_row(params![event_id, found_mac, id], |row| row.get(0))?)
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
