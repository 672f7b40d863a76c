//! The durable store of activations and deliveries. Accepted means committed here.
//!
//! Two things are leased from it: a *case* (an activation that somebody must decide about: find the person, start the
//! fallback, warn, expire) and a *delivery* (one message on its way by one channel). `due_at` is both "look again at"
//! and "the lease runs out at"; `fence` grows with every lease, and every later call is a compare-and-set on it.

mod open;
mod seal;
mod sqlite;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::Deserialize;
use serde::Serialize;

use crate::activation::Activation;
use crate::activation::ActivationCode;
use crate::activation::Origin;
use crate::activation::Stage;
use crate::activation::Standing;
use crate::channel::OnUncertain;
use crate::message::Recipient;

pub use open::Backend;
pub use open::Config;
pub use open::Examined;
pub use open::OpenError;
pub use open::Opened;
pub use open::Settings;
pub use open::examine;
pub use open::keygen;
pub use open::open;
pub use open::open_without_key;
pub use seal::NoRandomness;

/// Tells the time of day; tests have their own.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// What the outbox promises, whatever database is behind it.
#[async_trait]
pub trait Outbox: Send + Sync {
    /// Stores a batch; durable before `Ok`. One answer for each activation, in order.
    async fn put(&self, batch: Vec<Activation>) -> Result<Vec<Stored>, OutboxError>;

    /// Leases up to `max` cases that are due.
    async fn lease_cases(
        &self,
        max: usize,
        now: Timestamp,
        lease: Duration,
    ) -> Result<Leased<Case>, OutboxError>;

    /// The same in the transaction by which a case may have become due since [`Leased::changes`] was `since`; there may be none after
    /// all. `None`: `rest` ended before. Not to be dropped, as what it leases at that moment would be nobody's.
    async fn next_cases(
        &self,
        since: u64,
        max: usize,
        clock: &Clock,
        lease: Duration,
        rest: BoxFuture<'_, ()>,
    ) -> Result<Option<Leased<Case>>, OutboxError>;

    /// Carries out what was decided about a case, all of it or nothing, and ends its lease.
    async fn advance(
        &self,
        case: &Case,
        step: Step,
        now: Timestamp,
    ) -> Result<Advanced, OutboxError>;

    /// Leases up to `max` deliveries of one channel that are due.
    async fn lease_deliveries(
        &self,
        channel: &str,
        max: usize,
        now: Timestamp,
        lease: Duration,
    ) -> Result<Leased<Lease>, OutboxError>;

    /// The same in the transaction by which a delivery, of whatever channel, may have become due, as [`next_cases`](Self::next_cases).
    async fn next_deliveries(
        &self,
        since: u64,
        channel: &str,
        max: usize,
        clock: &Clock,
        lease: Duration,
        rest: BoxFuture<'_, ()>,
    ) -> Result<Option<Leased<Lease>>, OutboxError>;

    /// Must be durable before the byte after which the peer may act. The lease then lasts until `until`.
    async fn begin_send(&self, lease: &Lease, until: Timestamp) -> Result<(), OutboxError>;

    /// Ends a try; the case is looked at again at once.
    async fn settle(
        &self,
        lease: &Lease,
        settlement: Settlement,
        now: Timestamp,
    ) -> Result<(), OutboxError>;

    /// Gives a delivery back untouched: no try is counted.
    async fn release(&self, lease: &Lease, due_at: Timestamp) -> Result<(), OutboxError>;

    /// Makes the cases with open deliveries on `channel` due: it was suspended, resumed or removed.
    async fn wake_cases(&self, channel: &str, now: Timestamp) -> Result<(), OutboxError>;

    /// Open deliveries of channels that are not among `channels` fail, and their cases become due.
    async fn fail_orphans(&self, channels: &[String], now: Timestamp) -> Result<u64, OutboxError>;

    /// Escalations that belong to no activation (a channel was suspended).
    async fn escalate(&self, escalations: Vec<Escalate>, now: Timestamp)
    -> Result<(), OutboxError>;

    /// An operator's hand. `id` as [`Row::id`] has it.
    async fn command(
        &self,
        id: &str,
        command: Command,
        now: Timestamp,
    ) -> Result<Commanded, OutboxError>;

    /// The queue, newest first.
    async fn list(&self, filter: Filter) -> Result<Vec<Row>, OutboxError>;

    /// Everything known about one row, without a code.
    async fn show(&self, id: &str) -> Result<Story, OutboxError>;

    /// How much is waiting.
    async fn depth(&self, now: Timestamp) -> Result<Depth, OutboxError>;

    /// Wipes codes that are past use and drops history older than `retention`. Idempotent.
    async fn sweep(&self, now: Timestamp, retention: Duration) -> Result<Swept, OutboxError>;
}

/// What became of an activation that was put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It is kept; `superseded` older ones were replaced by it.
    New {
        /// Its id, as [`Row::id`] has it.
        id: String,
        /// How many pending activations it replaced, without those whose end was counted before.
        superseded: usize,
        /// A newer code for the same person was already there, so this one will not go out.
        late: bool,
    },
    /// The same event was there already.
    Duplicate,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advanced {
    /// The state it is in now: not the one of the step if [`Step::limit`] holds it, or if its code came too late.
    pub state: CaseState,
    /// How many pending activations were replaced by [`Step::evidence`] or [`Step::settles`], itself included, without those whose end was
    /// counted before.
    pub superseded: usize,
    /// How many an activated token ended, counted in the same way.
    pub cancelled: usize,
}

/// What was leased, and when the next one is due if nothing changes before.
#[derive(Debug)]
pub struct Leased<T> {
    /// The leases.
    pub items: Vec<T>,
    /// When to ask again.
    pub next: Option<Timestamp>,
    /// How often something may have become due before; by this, nothing that comes after is missed.
    pub changes: u64,
}

/// Where an activation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaseState {
    /// Accepted; the person is not found yet.
    Received,
    /// Its deliveries exist.
    Routed,
    /// Waits for a person.
    NeedsAttention,
    /// Nothing was sent in time.
    Expired,
    /// A newer code replaced it.
    Superseded,
    /// An operator or an activation ended it.
    Cancelled,
    /// Kept as history only (a life-cycle event).
    Recorded,
}

/// Where a delivery stands, in the words of `queue list`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// An activation that has no delivery yet.
    Received,
    /// Waits for its next try.
    Pending,
    /// The peer may be acting on it.
    Sending,
    /// The next hop took it.
    Accepted,
    /// It will never be sent.
    Failed,
    /// The code's life ended first.
    Expired,
    /// A newer code replaced it.
    Superseded,
    /// An operator, a reached fallback or an activation ended it.
    Cancelled,
    /// Waits for a person.
    NeedsAttention,
    /// A life-cycle event: it is shown, never listed.
    Recorded,
}

impl State {
    /// Nothing will change it any more.
    pub fn is_final(self) -> bool {
        matches!(
            self,
            Self::Accepted
                | Self::Failed
                | Self::Expired
                | Self::Superseded
                | Self::Cancelled
                | Self::Recorded
        )
    }
}

/// An activation that somebody must decide about.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its id, as [`Row::id`] has it.
    pub id: String,
    /// The lease's fence.
    pub fence: i64,
    /// How often it was looked up without an answer.
    pub attempt: u32,
    /// The event, with its code where there is one and it still may be sent.
    pub activation: Activation,
    /// The state.
    pub state: CaseState,
    /// An operator released it from `[limits]`.
    pub released: bool,
    /// Activations to the same address within the limit's window are counted by [`Outbox::advance`]; who it went to.
    pub recipient: Option<Recipient>,
    /// It was reached: a channel that carries the code accepted it.
    pub reached: bool,
    /// The escalation reasons already told, so that each is told once.
    pub told: Vec<String>,
    /// Its deliveries, escalations left out.
    pub deliveries: Vec<CaseDelivery>,
}

/// One delivery of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseDelivery {
    /// Its id, as [`Row::id`] has it.
    pub id: String,
    /// The channel's name.
    pub channel: String,
    /// Whether it is one of `to` or of `fallback`.
    pub role: Role,
    /// Where it stands.
    pub state: State,
    /// Why, in our words.
    pub last_error: Option<String>,
}

/// Which list of the route a delivery comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// `to`
    To,
    /// `fallback`
    Fallback,
    /// `escalate`
    Escalation,
}

/// What was decided about a case; carried out in one transaction.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// The new state; `None` leaves it.
    pub state: Option<CaseState>,
    /// Why, for `queue show`.
    pub reason: Option<String>,
    /// Who it is for. Together with `limit`: a window with more than `limit.0` activations to this person holds it
    /// instead (state `needs-attention`, reason `held`), and nothing else of the step happens but `held`.
    pub recipient: Option<Recipient>,
    /// At most so many activations to one address in such a time.
    pub limit: Option<Limit>,
    /// New deliveries; one that exists for the same channel is left as it is.
    pub deliver: Vec<NewDelivery>,
    /// Deliveries that end now in this state unless they are final or being sent.
    pub end: Vec<(String, State, String)>,
    /// A channel that carries the code accepted it.
    pub reached: bool,
    /// Who is told what, without the code.
    pub escalate: Vec<Escalate>,
    /// Reasons to add to [`Case::told`].
    pub told: Vec<String>,
    /// The code is not needed any more.
    pub wipe: bool,
    /// A look-up failed for now: count it.
    pub count_attempt: bool,
    /// When to look again; `None`: only when something happens to it.
    pub due_at: Option<Timestamp>,
    /// What the device said. It is kept even if the limit holds the rest.
    pub evidence: Option<Evidence>,
    /// Whose it is was still open ([`Standing::Unsettled`]), and the log's word stands: from now on it may replace others of
    /// the same person, and be replaced.
    pub settles: bool,
    /// What was believed, and why; what stands in the trace already is not repeated.
    pub trace: Vec<Finding>,
}

/// What a device said about an event. For a code: from now on it counts, and may replace others. For an activated
/// token: whose codes are needed no longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The code that the device holds; `None`: the log's own code stands.
    pub code: Option<ActivationCode>,
    /// Until when the code is good; `None`: the device doesn't say.
    pub expires_at: Option<Timestamp>,
    /// The serial number of the token.
    pub token: String,
    /// Whose token it is, normalised as the log's user is.
    pub person: String,
    /// A phone has the token, so a code of it that was sent before is spent.
    pub is_activated: bool,
}

impl Evidence {
    /// The event as it is once this is kept.
    pub fn applied_to(&self, activation: &Activation) -> Activation {
        Activation {
            code: self.code.clone().or_else(|| activation.code.clone()),
            expires_at: self.expires_at.unwrap_or(activation.expires_at),
            token: Some(self.token.clone()),
            person: self.person.clone(),
            origin: Origin {
                standing: Standing::Confirmed,
                device_named_code: self.code.is_some() || activation.origin.device_named_code,
                line: activation.origin.line.clone(),
            },
            ..activation.clone()
        }
    }
}

/// One thing that was believed on the way of a code to its person, and why; never a code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// When.
    pub at: Timestamp,
    /// Who or what said it.
    pub by: By,
    /// One sentence; addresses are masked.
    pub said: String,
}

/// What a [`Finding`] rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// The line of log, or what took its place.
    Line,
    /// The rule that took it.
    Rule,
    /// The FortiGate, asked by REST.
    Device,
    /// A directory.
    Directory,
    /// The route.
    Route,
}

impl By {
    /// The word that a trace begins with.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Line => "line",
            Self::Rule => "rule",
            Self::Device => "device",
            Self::Directory => "directory",
            Self::Route => "route",
        }
    }
}

impl Finding {
    /// What the line and the rule say about an activation: how every trace begins.
    pub fn first(activation: &Activation) -> Vec<Self> {
        let at = activation.received_at;
        let code = match (activation.stage, &activation.code) {
            (Stage::CodeSent, Some(_)) => ", with a code",
            (Stage::CodeSent, None) => ", without a readable code",
            _ => "",
        };
        let rule = format!(
            "\"{}\" takes {} as {}{code}",
            activation.rule, activation.logid, activation.stage
        );
        let line = Some(&activation.origin.line).filter(|line| !line.is_empty());
        let line = line.map(|line| Self {
            at,
            by: By::Line,
            said: line.clone(),
        });
        line.into_iter()
            .chain([Self {
                at,
                by: By::Rule,
                said: rule,
            }])
            .collect()
    }
}

/// `[limits] per_person` for one step.
#[derive(Clone, Debug)]
pub struct Limit {
    /// Whose activations are counted: the address in its normal form, or the person on the device where there is no address.
    pub key: String,
    /// So many may pass.
    pub count: u32,
    /// In such a time.
    pub window: Duration,
    /// What to do when there are more.
    pub held: Vec<Escalate>,
}

/// A delivery to be made.
#[derive(Clone, Debug)]
pub struct NewDelivery {
    /// The channel's name.
    pub channel: String,
    /// Which list of the route it is from.
    pub role: Role,
    /// What to do when its outcome is unknown.
    pub on_uncertain: OnUncertain,
}

/// Somebody is told something about an activation, without its code. One message per reason and channel in 5 min.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Escalate {
    /// By this channel.
    pub channel: String,
    /// What for: the key under which messages are gathered, such as `no-code`.
    pub reason: String,
    /// One sentence, the same for all that are gathered.
    pub text: String,
    /// Whom or what it is about, such as `alice on BORDER-FGT (root): …`.
    pub subject: String,
}

/// The right to work on one delivery for a while.
#[derive(Clone, Debug)]
pub struct Lease {
    /// Its id, as [`Row::id`] has it.
    pub id: String,
    /// The fence.
    pub fence: i64,
    /// Which try this is, from 1.
    pub attempt: u32,
    /// The same over all tries and on all relays; knows nothing of the code.
    pub message_id: String,
    /// The channel's name.
    pub channel: String,
    /// When the event (or the first gathered escalation) was received.
    pub received_at: Timestamp,
    /// Nothing may be sent from here on.
    pub expires_at: Timestamp,
    /// What is to be said.
    pub work: Work,
}

/// What a delivery says.
#[derive(Clone, Debug)]
pub enum Work {
    /// An activation to a person or a place.
    Activation {
        /// The event, with its code.
        activation: Box<Activation>,
        /// The person, where one was found.
        recipient: Option<Recipient>,
    },
    /// Something went wrong and somebody is told.
    Escalation(Escalation),
}

/// Gathered escalations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Escalation {
    /// The key.
    pub reason: String,
    /// The sentence.
    pub text: String,
    /// How many.
    pub count: u64,
    /// The newest subjects, newest first, at most ten.
    pub newest: Vec<String>,
    /// When the first one was.
    pub since: Timestamp,
}

/// How a try ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// The next hop took it.
    Accepted {
        /// What it said.
        receipt: String,
        /// The channel carried the code.
        reached: bool,
    },
    /// Again at this time.
    Retry {
        /// When.
        due_at: Timestamp,
        /// Why.
        reason: String,
    },
    /// Never.
    Failed {
        /// Why.
        reason: String,
    },
    /// The code's life ended.
    Expired {
        /// Why.
        reason: String,
    },
    /// A person decides (`on_uncertain = "hold"`).
    Hold {
        /// Why.
        reason: String,
    },
}

/// An operator's hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// Due at once; releases what needs attention.
    Retry,
    /// Ends it.
    Cancel,
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commanded {
    /// The state now.
    pub state: State,
    /// The channels whose wait should be lifted for one try.
    pub channels: Vec<String>,
    /// The activation as a whole ended by it, and that was not counted before.
    pub ended: bool,
}

/// Which rows to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Filter {
    /// Part of a user's name.
    pub user: Option<String>,
    /// Only these states; empty means all.
    pub states: Vec<State>,
    /// At most so many; 0 means all.
    pub limit: usize,
}

/// One row of `queue list`: one delivery, or an activation that has none or needs attention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Its id, for `queue show`, `retry` and `cancel`.
    pub id: String,
    /// The user as logged; for an escalation the newest subject.
    pub user: String,
    /// The stage; `escalation` for an escalation.
    pub stage: String,
    /// Where it stands.
    pub state: State,
    /// The channel; `None` for an activation that has no delivery.
    pub channel: Option<String>,
    /// The person's address.
    pub recipient: Option<String>,
    /// How many tries there were.
    pub attempts: u32,
    /// When the next one is.
    pub next_attempt: Option<Timestamp>,
    /// When the code becomes worthless.
    pub expires_at: Option<Timestamp>,
    /// Why the last try failed, or why it waits.
    pub last_error: Option<String>,
    /// When it was received.
    pub created_at: Timestamp,
}

/// One row with everything around it, for `queue show`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Story {
    /// The row.
    #[serde(flatten)]
    pub row: Row,
    /// Names the event (`data.id`).
    pub event_id: Option<String>,
    /// The firewall.
    pub device: Option<crate::activation::Device>,
    /// The rule that took the line.
    pub rule: Option<String>,
    /// When it happened.
    pub event_time: Option<Timestamp>,
    /// Who said who the person is.
    pub source: Option<String>,
    /// The serial number of its token, where the log or the device names it.
    #[serde(default)]
    pub token: Option<String>,
    /// What was believed, and why.
    #[serde(default)]
    pub trace: Vec<Finding>,
    /// Every event of the same token or user on this device, in the order in which they happened, itself included.
    #[serde(default)]
    pub life: Vec<Event>,
    /// What happened, oldest first.
    pub history: Vec<Entry>,
}

/// One event in the life of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The activation's id.
    pub id: String,
    /// When it happened.
    pub at: Timestamp,
    /// What it was.
    pub stage: Stage,
    /// Where it stands.
    pub state: State,
    /// The user as logged; empty where the event names none.
    pub user: String,
    /// The token.
    pub token: Option<String>,
    /// What FortiOS calls it.
    pub description: String,
}

/// One line of history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When.
    pub at: Timestamp,
    /// The channel, if one was concerned.
    pub channel: Option<String>,
    /// What, in our words.
    pub what: String,
}

/// How much is waiting.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Depth {
    /// Rows by state, as `queue list` counts them.
    pub items: Vec<(State, u64)>,
    /// When the oldest one that is not final was received.
    pub oldest: Option<Timestamp>,
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Codes wiped.
    pub wiped: u64,
    /// Rows dropped.
    pub dropped: u64,
}

/// Why the outbox could not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutboxError {
    /// Later: locked, out of reach.
    #[error("the outbox is not available: {0}")]
    Unavailable(String),
    /// No space.
    #[error("no space left for the outbox: {0}")]
    Full(String),
    /// Somebody else owns it now.
    #[error("the lease was lost")]
    LostLease,
    /// There is no such row.
    #[error("there is no {0} in the queue")]
    NotFound(String),
    /// The row is in a state that forbids it.
    #[error("{0}")]
    Refused(String),
    /// The database is damaged.
    #[error("the outbox is damaged: {0}")]
    Damaged(String),
    /// The sealed body doesn't open under this key.
    #[error("a sealed code can't be opened: {0}")]
    Sealed(String),
}
