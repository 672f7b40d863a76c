//! The promises of the outbox. The first part is one suite that every backend runs; the second is about SQLite's file.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::support::until;
use ftm_relay::activation::Activation;
use ftm_relay::activation::ActivationCode;
use ftm_relay::activation::Device;
use ftm_relay::activation::Origin;
use ftm_relay::activation::Stage;
use ftm_relay::activation::Standing;
use ftm_relay::channel::OnUncertain;
use ftm_relay::message::Recipient;
use ftm_relay::outbox;
use ftm_relay::outbox::By;
use ftm_relay::outbox::Case;
use ftm_relay::outbox::CaseState;
use ftm_relay::outbox::Clock;
use ftm_relay::outbox::Command;
use ftm_relay::outbox::Escalate;
use ftm_relay::outbox::Escalation;
use ftm_relay::outbox::Evidence;
use ftm_relay::outbox::Filter;
use ftm_relay::outbox::Finding;
use ftm_relay::outbox::Lease;
use ftm_relay::outbox::Limit;
use ftm_relay::outbox::NewDelivery;
use ftm_relay::outbox::OpenError;
use ftm_relay::outbox::Outbox;
use ftm_relay::outbox::OutboxError;
use ftm_relay::outbox::Role;
use ftm_relay::outbox::Row;
use ftm_relay::outbox::Settings;
use ftm_relay::outbox::Settlement;
use ftm_relay::outbox::State;
use ftm_relay::outbox::Step;
use ftm_relay::outbox::Stored;
use ftm_relay::outbox::Swept;
use ftm_relay::outbox::Work;
use ftm_relay::settings::Check;
use ftm_relay::settings::Weight;
use futures_util::FutureExt;
use jiff::SignedDuration;
use jiff::Timestamp;
use std::future::pending;
use tempfile::TempDir;
use tokio::sync::oneshot;

const LEASE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);
const VALIDITY: Duration = Duration::from_secs(72 * 3600);
const CODE_A: &str = "EEIOTCU3LENEDJMR";
const CODE_B: &str = "EEIMI3ZFJEC2CCPL";

// === What the suite needs ===

/// Where an outbox lives while it is closed and opened again.
trait Home: Send + Sync {
    /// Opens it for the service. The one opened before must be dropped.
    fn open(&self) -> Arc<dyn Outbox>;
}

macro_rules! every_backend {
    ($($name:ident)+) => {
        mod sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name(&super::StateDir::new()).await;
                }
            )+
        }
    };
}

every_backend! {
    an_event_that_many_listeners_saw_is_stored_once
    two_codes_of_one_event_are_two_activations
    an_activation_comes_back_as_it_was_put
    a_case_is_leased_once_however_many_ask
    a_delivery_is_leased_once_however_many_ask
    what_is_not_due_is_not_leased_and_its_time_is_told
    a_result_that_comes_after_its_lease_is_refused
    a_decision_about_a_case_that_changed_meanwhile_is_refused
    a_try_that_was_given_back_is_not_counted
    a_delivery_keeps_its_name_over_its_tries
    a_newer_code_supersedes_what_is_pending
    a_resend_of_the_same_code_replaces_what_is_pending
    an_older_code_that_arrives_later_does_not_go_out
    codes_of_the_same_time_and_of_others_leave_each_other_alone
    what_was_accepted_stays_accepted_when_a_newer_code_comes
    a_superseded_delivery_that_is_being_sent_is_not_tried_again
    an_event_without_a_code_neither_supersedes_nor_is_superseded
    a_code_expired_on_arrival_is_looked_at_once
    a_code_whose_life_ends_is_not_leased_and_its_case_is_due
    a_sweep_expires_wipes_and_later_drops
    a_sweep_never_drops_what_is_open_or_still_good
    too_many_for_one_person_are_held_until_an_operator_releases_them
    escalations_are_gathered
    a_retry_makes_due_what_is_not_final
    a_cancel_ends_what_is_not_final
    a_code_that_is_cancelled_while_it_is_sent_is_not_tried_again
    what_a_dead_process_held_is_due_at_once
    a_dead_senders_delivery_is_sent_again_or_held_as_configured
    a_delivery_whose_lease_ran_out_is_sent_again_or_held_as_configured
    deliveries_of_a_channel_that_is_gone_fail
    a_channels_cases_are_woken
    what_may_have_become_due_is_known
    a_lease_stands_until_something_is_due
    a_lease_that_is_given_up_leases_nothing
    a_life_cycle_event_is_history_only
    a_code_that_the_device_named_goes_out_sealed_and_until_its_own_expiry
    a_code_that_the_device_named_replaces_an_older_one_and_yields_to_a_newer
    a_confirmed_code_ends_older_events_of_its_person_that_showed_none
    a_provisional_code_replaces_nothing_until_it_is_confirmed
    codes_whose_person_is_open_replace_each_other_only_once_it_is_settled
    a_code_by_the_logs_word_waits_a_moment_for_the_devices_word_on_a_newer_one
    an_event_whose_code_was_found_is_known_when_it_comes_again_with_its_code
    an_activated_token_ends_the_codes_of_its_owner_alone
    a_code_that_comes_after_its_token_was_activated_does_not_go_out
    a_forged_activation_of_a_token_that_a_phone_has_ends_no_other_code
    the_events_of_a_token_are_one_story_in_whatever_order_they_came
    an_administrator_who_asks_for_many_tokens_ties_no_stories_together
    a_trace_is_kept_without_repeating_itself
    the_list_and_the_depth_agree
    the_story_is_told_without_code_and_address
    an_unknown_row_is_not_found
}

/// Times are kept to the microsecond.
fn now() -> Timestamp {
    Timestamp::from_microsecond(Timestamp::now().as_microsecond()).unwrap()
}

fn after(time: Timestamp, seconds: i64) -> Timestamp {
    time + SignedDuration::from_secs(seconds)
}

/// A code for `user` that the FortiGate logged and the relay took at `at`.
fn event(user: &str, code: &str, at: Timestamp) -> Activation {
    Activation {
        event_id: format!("{user}-{}", at.as_second()),
        device: Device {
            id: "FGT60FTK19009408".to_owned(),
            name: "BORDER-FGT".to_owned(),
            vdom: "root".to_owned(),
        },
        user: user.to_owned(),
        person: user.to_lowercase(),
        logid: 38412,
        description: "Token activation code sent".to_owned(),
        stage: Stage::CodeSent,
        rule: "activation code".to_owned(),
        event_time: at,
        received_at: at,
        expires_at: at + VALIDITY,
        validity: VALIDITY,
        skew: SignedDuration::from_millis(-1500),
        code: ActivationCode::captured(code),
        token: None,
        addresses: vec![format!("{user}@example.com")],
        origin: Origin::default(),
    }
}

fn person(user: &str) -> Recipient {
    Recipient {
        email: format!("{user}@example.com"),
        name: None,
        phone: None,
        language: None,
        source: "table".to_owned(),
    }
}

fn by(channel: &str) -> NewDelivery {
    NewDelivery {
        channel: channel.to_owned(),
        role: Role::To,
        on_uncertain: OnUncertain::Resend,
    }
}

fn held_by(channel: &str) -> NewDelivery {
    NewDelivery {
        on_uncertain: OnUncertain::Hold,
        ..by(channel)
    }
}

fn route(user: &str, deliver: Vec<NewDelivery>) -> Step {
    Step {
        state: Some(CaseState::Routed),
        recipient: Some(person(user)),
        deliver,
        ..Step::default()
    }
}

fn telling(reason: &str, subject: &str) -> Escalate {
    Escalate {
        channel: "desk".to_owned(),
        reason: reason.to_owned(),
        text: "Something is wrong".to_owned(),
        subject: subject.to_owned(),
    }
}

async fn put(outbox: &dyn Outbox, activation: Activation) -> String {
    match outbox.put(vec![activation]).await.unwrap().remove(0) {
        Stored::New { id, .. } => id,
        Stored::Duplicate => panic!("it was there already"),
    }
}

async fn case(outbox: &dyn Outbox, id: &str, at: Timestamp) -> Case {
    let leased = outbox.lease_cases(100, at, LEASE).await.unwrap();
    leased
        .items
        .into_iter()
        .find(|c| c.id == id)
        .expect("the case is due")
}

/// An activation of `user` that is on its way by `channels`.
async fn routed(outbox: &dyn Outbox, activation: Activation, channels: Vec<NewDelivery>) -> String {
    let (user, at) = (activation.user.clone(), activation.received_at);
    let id = put(outbox, activation).await;
    let case = case(outbox, &id, at).await;
    outbox
        .advance(&case, route(&user, channels), at)
        .await
        .unwrap();
    id
}

async fn lease(outbox: &dyn Outbox, channel: &str, at: Timestamp) -> Lease {
    let mut leased = outbox
        .lease_deliveries(channel, 1, at, LEASE)
        .await
        .unwrap();
    leased.items.pop().expect("a delivery is due")
}

async fn is_idle(outbox: &dyn Outbox, channel: &str, at: Timestamp) -> bool {
    outbox
        .lease_deliveries(channel, 9, at, LEASE)
        .await
        .unwrap()
        .items
        .is_empty()
}

fn code_of(lease: &Lease) -> String {
    match &lease.work {
        Work::Activation { activation, .. } => {
            activation.code.as_ref().unwrap().expose().to_owned()
        }
        Work::Escalation(_) => panic!("an escalation has no code"),
    }
}

fn accepted() -> Settlement {
    Settlement::Accepted {
        receipt: "250 ok".to_owned(),
        reached: true,
    }
}

fn later(at: Timestamp) -> Settlement {
    Settlement::Retry {
        due_at: at,
        reason: "451 later".to_owned(),
    }
}

/// State by id.
async fn states(outbox: &dyn Outbox) -> BTreeMap<String, State> {
    let rows = outbox.list(Filter::default()).await.unwrap();
    rows.into_iter().map(|row| (row.id, row.state)).collect()
}

async fn state(outbox: &dyn Outbox, id: &str) -> State {
    outbox.show(id).await.unwrap().row.state
}

/// The delivery of an activation by a channel.
async fn delivery(outbox: &dyn Outbox, user: &str, channel: &str) -> Row {
    let rows = outbox.list(Filter::default()).await.unwrap();
    let mut found = rows
        .into_iter()
        .filter(|r| r.user == user && r.channel.as_deref() == Some(channel));
    found.next().expect("there is such a delivery")
}

// === Taking in ===

async fn an_event_that_many_listeners_saw_is_stored_once(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let outbox = Arc::clone(&outbox);
        tasks.spawn(async move {
            outbox
                .put(vec![event("alice", CODE_A, at)])
                .await
                .unwrap()
                .remove(0)
        });
    }
    let answers = tasks.join_all().await;
    let new = answers.iter().filter(|a| **a != Stored::Duplicate).count();
    assert_eq!((answers.len(), new), (32, 1));
    drop(outbox);
    let outbox = home.open();
    let again = outbox
        .put(vec![
            event("alice", CODE_A, at),
            event("bob", CODE_B, at),
            event("bob", CODE_B, at),
        ])
        .await
        .unwrap();
    assert_eq!(again[0], Stored::Duplicate);
    assert!(matches!(
        &again[1],
        Stored::New {
            superseded: 0,
            late: false,
            ..
        }
    ));
    assert_eq!(again[2], Stored::Duplicate);
}

async fn two_codes_of_one_event_are_two_activations(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let masked = Activation {
        code: None,
        ..event("alice", CODE_A, at)
    };
    let answers = outbox
        .put(vec![
            event("alice", CODE_A, at),
            event("alice", CODE_B, at),
            masked.clone(),
            masked,
        ])
        .await
        .unwrap();
    let new = answers.iter().filter(|a| **a != Stored::Duplicate).count();
    assert_eq!(new, 3);
    assert_eq!(answers[3], Stored::Duplicate);
}

async fn an_activation_comes_back_as_it_was_put(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let put_in = Activation {
        token: Some("FTKMOB0123456789".to_owned()),
        addresses: vec!["alice@example.com".to_owned(), "a.b@example.com".to_owned()],
        ..event("Alice", CODE_A, at)
    };
    let id = put(&*outbox, put_in.clone()).await;
    let first = case(&*outbox, &id, at).await;
    assert_eq!(first.activation, put_in);
    assert_eq!(
        (first.state, first.attempt, first.reached, first.released),
        (CaseState::Received, 0, false, false)
    );
    outbox
        .advance(&first, route("Alice", vec![by("mail")]), at)
        .await
        .unwrap();
    let lease = lease(&*outbox, "mail", at).await;
    let Work::Activation {
        activation,
        recipient,
    } = lease.work
    else {
        panic!("it is an activation")
    };
    assert_eq!(*activation, put_in);
    assert_eq!(recipient, Some(person("Alice")));
    assert_eq!(
        (lease.received_at, lease.expires_at, lease.attempt),
        (at, put_in.expires_at, 1)
    );
}

// === Leases ===

async fn a_case_is_leased_once_however_many_ask(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let batch = (0..40)
        .map(|n| event(&format!("user{n}"), CODE_A, at))
        .collect();
    outbox.put(batch).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let outbox = Arc::clone(&outbox);
        tasks.spawn(async move { outbox.lease_cases(4, at, LEASE).await.unwrap().items });
    }
    let leased: Vec<String> = tasks
        .join_all()
        .await
        .into_iter()
        .flatten()
        .map(|c| c.id)
        .collect();
    assert_eq!(leased.len(), 40);
    assert_eq!(leased.iter().collect::<HashSet<_>>().len(), 40);
}

async fn a_delivery_is_leased_once_however_many_ask(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    for n in 0..20 {
        routed(
            &*outbox,
            event(&format!("user{n}"), CODE_A, at),
            vec![by("mail"), by("hook")],
        )
        .await;
    }
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let outbox = Arc::clone(&outbox);
        tasks.spawn(async move {
            outbox
                .lease_deliveries("mail", 3, at, LEASE)
                .await
                .unwrap()
                .items
        });
    }
    let leased: Vec<String> = tasks
        .join_all()
        .await
        .into_iter()
        .flatten()
        .map(|l| l.id)
        .collect();
    assert_eq!(leased.len(), 20);
    assert_eq!(leased.iter().collect::<HashSet<_>>().len(), 20);
    assert_eq!(
        outbox
            .lease_deliveries("hook", 99, at, LEASE)
            .await
            .unwrap()
            .items
            .len(),
        20
    );
}

async fn what_is_not_due_is_not_leased_and_its_time_is_told(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    assert_eq!(outbox.lease_cases(9, at, LEASE).await.unwrap().next, None);
    let id = routed(&*outbox, event("alice", CODE_A, at), vec![by("mail")]).await;
    assert_eq!(
        outbox
            .lease_deliveries("mail", 9, after(at, -1), LEASE)
            .await
            .unwrap()
            .next,
        Some(at)
    );
    let first = lease(&*outbox, "mail", at).await;
    let held = outbox.lease_deliveries("mail", 9, at, LEASE).await.unwrap();
    assert!(held.items.is_empty());
    assert_eq!(held.next, Some(at + LEASE));
    outbox
        .settle(&first, later(after(at, 15)), at)
        .await
        .unwrap();
    let waiting = outbox
        .lease_deliveries("mail", 9, after(at, 14), LEASE)
        .await
        .unwrap();
    assert!(waiting.items.is_empty());
    assert_eq!(waiting.next, Some(after(at, 15)));
    assert_eq!(lease(&*outbox, "mail", after(at, 15)).await.attempt, 2);

    let decided = case(&*outbox, &id, at).await;
    let step = Step {
        due_at: Some(after(at, 600)),
        ..Step::default()
    };
    outbox.advance(&decided, step, at).await.unwrap();
    let cases = outbox.lease_cases(9, after(at, 599), LEASE).await.unwrap();
    assert!(cases.items.is_empty());
    assert_eq!(cases.next, Some(after(at, 600)));
}

async fn a_result_that_comes_after_its_lease_is_refused(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    routed(&*outbox, event("alice", CODE_A, at), vec![by("mail")]).await;
    let slow = lease(&*outbox, "mail", at).await;
    let other = lease(&*outbox, "mail", at + LEASE).await;
    assert_eq!(
        (slow.id.as_str(), slow.fence + 1),
        (other.id.as_str(), other.fence)
    );
    for refused in [
        outbox.begin_send(&slow, after(at, 99)).await,
        outbox.settle(&slow, accepted(), at).await,
        outbox.release(&slow, at).await,
    ] {
        assert_eq!(refused, Err(OutboxError::LostLease));
    }
    outbox.begin_send(&other, after(at, 900)).await.unwrap();
    outbox.begin_send(&other, after(at, 900)).await.unwrap();
    outbox
        .settle(&other, accepted(), after(at, 61))
        .await
        .unwrap();
    assert_eq!(
        outbox.settle(&other, accepted(), after(at, 62)).await,
        Err(OutboxError::LostLease)
    );
    assert_eq!(state(&*outbox, &other.id).await, State::Accepted);
}

async fn a_decision_about_a_case_that_changed_meanwhile_is_refused(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let id = routed(
        &*outbox,
        event("alice", CODE_A, at),
        vec![by("mail"), by("hook")],
    )
    .await;
    let mail = lease(&*outbox, "mail", at).await;
    let hook = lease(&*outbox, "hook", at).await;
    outbox.settle(&mail, accepted(), at).await.unwrap();
    let stale = case(&*outbox, &id, at).await;
    assert!(stale.reached);
    outbox.settle(&hook, accepted(), at).await.unwrap();
    let step = Step {
        wipe: true,
        ..Step::default()
    };
    assert_eq!(
        outbox.advance(&stale, step, at).await,
        Err(OutboxError::LostLease)
    );
    let fresh = case(&*outbox, &id, at).await;
    assert!(fresh.deliveries.iter().all(|d| d.state == State::Accepted));
    outbox.advance(&fresh, Step::default(), at).await.unwrap();
    assert_eq!(
        outbox.advance(&fresh, Step::default(), at).await,
        Err(OutboxError::LostLease)
    );
}

async fn a_try_that_was_given_back_is_not_counted(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    routed(&*outbox, event("alice", CODE_A, at), vec![by("mail")]).await;
    let first = lease(&*outbox, "mail", at).await;
    outbox.release(&first, after(at, 5)).await.unwrap();
    assert!(is_idle(&*outbox, "mail", at).await);
    let second = lease(&*outbox, "mail", after(at, 5)).await;
    assert_eq!(second.attempt, 1);
    outbox.begin_send(&second, after(at, 900)).await.unwrap();
    assert!(matches!(
        outbox.release(&second, at).await,
        Err(OutboxError::Refused(_))
    ));
}

async fn a_delivery_keeps_its_name_over_its_tries(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    routed(
        &*outbox,
        event("alice", CODE_A, at),
        vec![by("mail"), by("hook")],
    )
    .await;
    let first = lease(&*outbox, "mail", at).await;
    outbox.settle(&first, later(at), at).await.unwrap();
    let second = lease(&*outbox, "mail", at).await;
    assert_eq!(first.message_id, second.message_id);
    let hook = lease(&*outbox, "hook", at).await;
    assert_ne!(first.message_id, hook.message_id);
    let same_event = Activation {
        user: "alice".to_owned(),
        ..event("alice", CODE_B, at)
    };
    routed(&*outbox, same_event, vec![by("mail")]).await;
    assert_ne!(
        lease(&*outbox, "mail", at).await.message_id,
        first.message_id
    );
}

// === Newer and older codes ===

async fn a_newer_code_supersedes_what_is_pending(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    routed(
        &*outbox,
        event("alice", CODE_A, at),
        vec![by("mail"), by("hook")],
    )
    .await;
    let leased = lease(&*outbox, "mail", at).await;
    let answer = outbox
        .put(vec![event("alice", CODE_B, after(at, 1))])
        .await
        .unwrap()
        .remove(0);
    let Stored::New {
        id,
        superseded: 1,
        late: false,
        ..
    } = answer
    else {
        panic!("{answer:?}")
    };
    for channel in ["mail", "hook"] {
        assert_eq!(
            delivery(&*outbox, "alice", channel).await.state,
            State::Superseded
        );
        assert!(is_idle(&*outbox, channel, after(at, 9999)).await);
    }
    assert_eq!(
        outbox.settle(&leased, later(at), at).await,
        Err(OutboxError::LostLease)
    );
    let due = outbox
        .lease_cases(9, after(at, 1), LEASE)
        .await
        .unwrap()
        .items;
    assert_eq!(
        due.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(),
        [id.as_str()]
    );
    // One that nobody has decided about yet is replaced just so.
    let answer = outbox
        .put(vec![event("alice", CODE_A, after(at, 2))])
        .await
        .unwrap()
        .remove(0);
    assert!(
        matches!(
            answer,
            Stored::New {
                superseded: 1,
                late: false,
                ..
            }
        ),
        "{answer:?}"
    );
    assert_eq!(
        outbox.advance(&due[0], Step::default(), at).await,
        Err(OutboxError::LostLease)
    );
    assert_eq!(state(&*outbox, &id).await, State::Superseded);
}

async fn a_resend_of_the_same_code_replaces_what_is_pending(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    routed(&*outbox, event("alice", CODE_A, at), vec![by("mail")]).await;
    let leased = lease(&*outbox, "mail", at).await;
    let answer = outbox
        .put(vec![event("alice", CODE_A, after(at, 60))])
        .await
        .unwrap()
        .remove(0);
    let Stored::New {
        id,
        superseded: 1,
        late: false,
        ..
    } = answer
    else {
        panic!("{answer:?}")
    };
    assert_eq!(
        outbox.begin_send(&leased, after(at, 99)).await,
        Err(OutboxError::LostLease)
    );
    let resend = case(&*outbox, &id, after(at, 60)).await;
    outbox
        .advance(&resend, route("alice", vec![by("mail")]), after(at, 60))
        .await
        .unwrap();
    let again = lease(&*outbox, "mail", after(at, 120)).await;
    assert_eq!(code_of(&again), CODE_A);
    assert_ne!(again.message_id, leased.message_id);
    assert!(is_idle(&*outbox, "mail", after(at, 120)).await);
}

async fn an_older_code_that_arrives_later_does_not_go_out(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    routed(&*outbox, event("alice", CODE_B, at), vec![by("mail")]).await;
    let older = Activation {
        received_at: after(at, 5),
        ..event("alice", CODE_A, after(at, -60))
    };
    let answer = outbox.put(vec![older]).await.unwrap().remove(0);
    let Stored::New {
        id,
        superseded: 0,
        late: true,
        ..
    } = answer
    else {
        panic!("{answer:?}")
    };
    assert!(
        outbox
            .lease_cases(9, after(at, 5), LEASE)
            .await
            .unwrap()
            .items
            .is_empty()
    );
    let row = outbox.show(&id).await.unwrap().row;
    assert_eq!((row.state, row.channel), (State::Superseded, None));
    assert_eq!(
        code_of(&lease(&*outbox, "mail", after(at, 5)).await),
        CODE_B
    );
}

async fn codes_of_the_same_time_and_of_others_leave_each_other_alone(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let first = event("alice", CODE_A, at);
    let elsewhere = Device {
        vdom: "guests".to_owned(),
        ..first.device.clone()
    };
    let other_device = Device {
        id: "FGT60FTK19009999".to_owned(),
        ..first.device.clone()
    };
    let t = after(at, 9);
    let batch = vec![
        first.clone(),
        event("alice", CODE_B, at),
        Activation {
            device: elsewhere,
            ..event("alice", CODE_B, t)
        },
        Activation {
            device: other_device,
            event_id: "o".to_owned(),
            ..event("alice", CODE_B, t)
        },
        event("bob", CODE_B, t),
    ];
    for answer in outbox.put(batch).await.unwrap() {
        assert!(
            matches!(
                answer,
                Stored::New {
                    superseded: 0,
                    late: false,
                    ..
                }
            ),
            "{answer:?}"
        );
    }
    assert_eq!(
        outbox.lease_cases(9, t, LEASE).await.unwrap().items.len(),
        5
    );
}

async fn what_was_accepted_stays_accepted_when_a_newer_code_comes(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let id = routed(
        &*outbox,
        event("alice", CODE_A, at),
        vec![by("mail"), by("hook")],
    )
    .await;
    let mail = lease(&*outbox, "mail", at).await;
    outbox.settle(&mail, accepted(), at).await.unwrap();
    let answer = outbox
        .put(vec![event("alice", CODE_B, after(at, 60))])
        .await
        .unwrap()
        .remove(0);
    assert!(
        matches!(
            answer,
            Stored::New {
                superseded: 0,
                late: false,
                ..
            }
        ),
        "{answer:?}"
    );
    assert_eq!(state(&*outbox, &mail.id).await, State::Accepted);
    assert_eq!(
        delivery(&*outbox, "alice", "hook").await.state,
        State::Superseded
    );
    assert!(is_idle(&*outbox, "hook", after(at, 60)).await);
    let due = outbox
        .lease_cases(9, after(at, 60), LEASE)
        .await
        .unwrap()
        .items;
    assert!(due.iter().all(|c| c.id != id));
}

async fn a_superseded_delivery_that_is_being_sent_is_not_tried_again(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    for (user, settlement, state_then) in [
        ("alice", later(at), State::Superseded),
        (
            "bob",
            Settlement::Hold {
                reason: "unknown".to_owned(),
            },
            State::Superseded,
        ),
        ("carol", accepted(), State::Accepted),
    ] {
        routed(&*outbox, event(user, CODE_A, at), vec![by("mail")]).await;
        let sending = lease(&*outbox, "mail", at).await;
        outbox.begin_send(&sending, after(at, 900)).await.unwrap();
        put(&*outbox, event(user, CODE_B, after(at, 60))).await;
        assert_eq!(state(&*outbox, &sending.id).await, State::Sending);
        outbox
            .settle(&sending, settlement, after(at, 61))
            .await
            .unwrap();
        assert_eq!(state(&*outbox, &sending.id).await, state_then);
        assert!(is_idle(&*outbox, "mail", after(at, 9999)).await);
    }
}

async fn an_event_without_a_code_neither_supersedes_nor_is_superseded(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let masked = |seconds| Activation {
        code: None,
        ..event("alice", CODE_A, after(at, seconds))
    };
    for activation in [
        masked(0),
        event("alice", CODE_A, after(at, 10)),
        masked(20),
        masked(5),
    ] {
        let answer = outbox.put(vec![activation]).await.unwrap().remove(0);
        assert!(
            matches!(
                answer,
                Stored::New {
                    superseded: 0,
                    late: false,
                    ..
                }
            ),
            "{answer:?}"
        );
    }
    assert_eq!(
        outbox
            .lease_cases(9, after(at, 20), LEASE)
            .await
            .unwrap()
            .items
            .len(),
        4
    );
}

// === Expiry ===

async fn a_code_expired_on_arrival_is_looked_at_once(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let old = Activation {
        received_at: at,
        ..event("alice", CODE_A, after(at, -73 * 3600))
    };
    let id = put(&*outbox, old).await;
    let row = outbox.show(&id).await.unwrap().row;
    assert_eq!(row.state, State::Expired);
    assert!(row.last_error.unwrap().contains("device clock or old log"));
    let looked_at = case(&*outbox, &id, at).await;
    assert_eq!(looked_at.state, CaseState::Expired);
    assert!(looked_at.activation.code.is_none(), "the code is gone");
    let step = Step {
        escalate: vec![telling("expired", "alice")],
        told: vec!["expired".to_owned()],
        ..Step::default()
    };
    outbox.advance(&looked_at, step, at).await.unwrap();
    assert_eq!(
        outbox
            .lease_cases(9, after(at, 1), LEASE)
            .await
            .unwrap()
            .next,
        None
    );
}

async fn a_code_whose_life_ends_is_not_leased_and_its_case_is_due(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let id = routed(&*outbox, event("alice", CODE_A, at), vec![by("mail")]).await;
    let first = lease(&*outbox, "mail", at).await;
    outbox
        .settle(&first, later(at + 2 * VALIDITY), at)
        .await
        .unwrap();
    let decided = case(&*outbox, &id, at).await;
    outbox.advance(&decided, Step::default(), at).await.unwrap();
    let end = at + VALIDITY;
    assert!(is_idle(&*outbox, "mail", end).await);
    assert_eq!(state(&*outbox, &first.id).await, State::Expired);
    let due = case(&*outbox, &id, end).await;
    assert_eq!(due.deliveries[0].state, State::Expired);
}

async fn a_sweep_expires_wipes_and_later_drops(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let waiting = put(&*outbox, event("alice", CODE_A, at)).await;
    let on_its_way = routed(&*outbox, event("bob", CODE_A, at), vec![by("mail")]).await;
    routed(&*outbox, event("carol", CODE_A, at), vec![by("hook")]).await;
    let hook = lease(&*outbox, "hook", at).await;
    outbox.settle(&hook, accepted(), at).await.unwrap();
    let carol = outbox.lease_cases(9, at, LEASE).await.unwrap().items;
    for c in &carol {
        outbox.advance(c, Step::default(), at).await.unwrap();
    }
    assert_eq!(outbox.sweep(at, DAY).await.unwrap(), Swept::default());

    let end = at + VALIDITY;
    assert_eq!(
        outbox.sweep(end, 30 * DAY).await.unwrap(),
        Swept {
            wiped: 3,
            dropped: 0
        }
    );
    assert_eq!(outbox.sweep(end, 30 * DAY).await.unwrap(), Swept::default());
    assert_eq!(state(&*outbox, &waiting).await, State::Expired);
    assert_eq!(
        delivery(&*outbox, "bob", "mail").await.state,
        State::Expired
    );
    assert_eq!(
        delivery(&*outbox, "carol", "hook").await.state,
        State::Accepted
    );
    let due = outbox.lease_cases(9, end, LEASE).await.unwrap().items;
    let ids: HashSet<&str> = due.iter().map(|c| c.id.as_str()).collect();
    assert_eq!(ids, HashSet::from([waiting.as_str(), on_its_way.as_str()]));
    assert!(
        due.iter()
            .all(|c| c.state == CaseState::Expired && c.activation.code.is_none())
    );

    // Somebody has yet to be told, so only what is settled goes.
    assert_eq!(outbox.sweep(end, DAY).await.unwrap().dropped, 1);
    for c in &due {
        outbox.advance(c, Step::default(), end).await.unwrap();
    }
    assert_eq!(outbox.sweep(end, DAY).await.unwrap().dropped, 2);
    assert!(states(&*outbox).await.is_empty());
}

async fn a_sweep_never_drops_what_is_open_or_still_good(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    routed(&*outbox, event("alice", CODE_A, at), vec![by("mail")]).await;
    let mail = lease(&*outbox, "mail", at).await;
    outbox.settle(&mail, accepted(), at).await.unwrap();
    for c in outbox.lease_cases(9, at, LEASE).await.unwrap().items {
        outbox.advance(&c, Step::default(), at).await.unwrap();
    }
    let second = Duration::from_secs(1);
    assert_eq!(
        outbox.sweep(after(at, 3600), second).await.unwrap(),
        Swept::default()
    );
    assert_eq!(
        outbox.put(vec![event("alice", CODE_A, at)]).await.unwrap(),
        [Stored::Duplicate]
    );
    outbox
        .escalate(vec![telling("suspended", "mail")], at)
        .await
        .unwrap();
    assert_eq!(
        outbox.sweep(after(at, 3600), second).await.unwrap(),
        Swept::default()
    );
    assert_eq!(
        outbox.sweep(at + VALIDITY, second).await.unwrap(),
        Swept {
            wiped: 1,
            dropped: 2
        }
    );
}

// === Limits and escalations ===

async fn too_many_for_one_person_are_held_until_an_operator_releases_them(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let step = |user: &str| Step {
        limit: Some(Limit {
            key: "shared@example.com".to_owned(),
            count: 2,
            window: Duration::from_secs(3600),
            held: vec![telling("held", user)],
        }),
        due_at: Some(at + VALIDITY),
        ..route(user, vec![by("mail")])
    };
    let mut ids = Vec::new();
    for user in ["u1", "u2", "u3"] {
        let id = put(&*outbox, event(user, CODE_A, at)).await;
        let c = case(&*outbox, &id, at).await;
        outbox.advance(&c, step(user), at).await.unwrap();
        ids.push(id);
    }
    let row = outbox.show(&ids[2]).await.unwrap().row;
    assert_eq!(row.state, State::NeedsAttention);
    assert_eq!(
        row.last_error.as_deref(),
        Some("held: more than 2 activations for this person within 1 h")
    );
    assert_eq!(row.recipient, None);
    assert_eq!(
        outbox
            .lease_deliveries("mail", 9, at, LEASE)
            .await
            .unwrap()
            .items
            .len(),
        2
    );
    let Work::Escalation(told) = lease(&*outbox, "desk", at).await.work else {
        panic!("it is an escalation")
    };
    assert_eq!(told.newest, ["u3"]);

    let commanded = outbox.command(&ids[2], Command::Retry, at).await.unwrap();
    assert_eq!(commanded.state, State::Received);
    let released = case(&*outbox, &ids[2], at).await;
    assert!(released.released && released.told == ["held", "ended:held"]);
    outbox.advance(&released, step("u3"), at).await.unwrap();
    assert_eq!(lease(&*outbox, "mail", at).await.attempt, 1);

    // The window moves on.
    let at = after(at, 3601);
    let id = put(&*outbox, event("u4", CODE_A, at)).await;
    let c = case(&*outbox, &id, at).await;
    outbox.advance(&c, step("u4"), at).await.unwrap();
    assert_eq!(delivery(&*outbox, "u4", "mail").await.state, State::Pending);
}

async fn escalations_are_gathered(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let tell = async |reason: &str, subject: &str, at: Timestamp| {
        outbox
            .escalate(vec![telling(reason, subject)], at)
            .await
            .unwrap();
    };
    tell("no-code", "first", at).await;
    tell("held", "other reason", at).await;
    let sent = outbox
        .lease_deliveries("desk", 9, at, LEASE)
        .await
        .unwrap()
        .items;
    assert_eq!(sent.len(), 2);
    for lease in &sent {
        outbox
            .settle(
                lease,
                Settlement::Accepted {
                    receipt: String::new(),
                    reached: false,
                },
                at,
            )
            .await
            .unwrap();
    }
    for n in 0..12 {
        tell("no-code", &format!("s{n}"), after(at, 10 + n)).await;
    }
    assert!(is_idle(&*outbox, "desk", after(at, 299)).await);
    let second = lease(&*outbox, "desk", after(at, 300)).await;
    let Work::Escalation(escalation) = &second.work else {
        panic!("it is an escalation")
    };
    let newest: Vec<String> = (2..12).rev().map(|n| format!("s{n}")).collect();
    let expected = Escalation {
        reason: "no-code".to_owned(),
        text: "Something is wrong".to_owned(),
        count: 12,
        newest,
        since: after(at, 10),
    };
    assert_eq!(*escalation, expected);
    assert_ne!(second.message_id, sent[0].message_id);
    // What was tried once stays as it is: a receiver may have it already.
    outbox
        .settle(&second, later(after(at, 315)), after(at, 300))
        .await
        .unwrap();
    tell("no-code", "after", after(at, 301)).await;
    let third = outbox
        .lease_deliveries("desk", 9, after(at, 600), LEASE)
        .await
        .unwrap()
        .items;
    assert_eq!(third.len(), 2);
    assert!(
        third.iter().any(
            |l| matches!(&l.work, Work::Escalation(e) if e.newest == ["after"] && e.count == 1)
        )
    );
    // A day later nobody wants to know.
    assert!(is_idle(&*outbox, "desk", after(at, 2 * 86_400)).await);
    let row = delivery(&*outbox, "after", "desk").await;
    assert_eq!(
        (row.state, row.stage.as_str(), row.recipient),
        (State::Expired, "escalation", None)
    );
}

// === An operator's hand ===

async fn a_retry_makes_due_what_is_not_final(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let retry = async |id: &str, at: Timestamp| outbox.command(id, Command::Retry, at).await;
    let id = routed(&*outbox, event("alice", CODE_A, at), vec![by("mail")]).await;
    let first = lease(&*outbox, "mail", at).await;
    let during = retry(&first.id, at).await.unwrap();
    assert_eq!(during.state, State::Pending);
    outbox.begin_send(&first, after(at, 900)).await.unwrap();
    assert_eq!(retry(&first.id, at).await.unwrap().state, State::Sending);
    outbox
        .settle(&first, later(after(at, 600)), at)
        .await
        .unwrap();

    let done = retry(&first.id, at).await.unwrap();
    assert_eq!(
        (done.state, done.channels),
        (State::Pending, vec!["mail".to_owned()])
    );
    let second = lease(&*outbox, "mail", at).await;
    outbox
        .settle(
            &second,
            Settlement::Hold {
                reason: "unknown".to_owned(),
            },
            at,
        )
        .await
        .unwrap();
    assert_eq!(state(&*outbox, &first.id).await, State::NeedsAttention);
    assert!(is_idle(&*outbox, "mail", after(at, 9999)).await);
    assert_eq!(retry(&id, at).await.unwrap().state, State::Pending);
    let third = lease(&*outbox, "mail", at).await;
    outbox
        .settle(
            &third,
            Settlement::Failed {
                reason: "550 5.1.1".to_owned(),
            },
            at,
        )
        .await
        .unwrap();
    for id in [&first.id, &id] {
        let Err(OutboxError::Refused(why)) = retry(id, at).await else {
            panic!("{id} was retried")
        };
        assert!(why.contains(id.as_str()), "{why}");
    }

    let bob = put(&*outbox, event("bob", CODE_A, at)).await;
    let c = case(&*outbox, &bob, at).await;
    let attention = Step {
        state: Some(CaseState::NeedsAttention),
        reason: Some("nobody knows bob".to_owned()),
        ..Step::default()
    };
    outbox.advance(&c, attention, at).await.unwrap();
    assert!(matches!(
        retry(&bob, at + VALIDITY).await,
        Err(OutboxError::Refused(_))
    ));
    assert_eq!(retry(&bob, at).await.unwrap().state, State::Received);
    let again = case(&*outbox, &bob, at).await;
    assert_eq!(
        (again.state, again.attempt, again.activation.code.is_some()),
        (CaseState::Received, 0, true)
    );
    assert_eq!(retry(&bob, at).await.unwrap().state, State::Received);

    outbox.escalate(vec![telling("x", "y")], at).await.unwrap();
    let told = lease(&*outbox, "desk", at).await;
    outbox
        .settle(&told, later(after(at, 900)), at)
        .await
        .unwrap();
    assert_eq!(retry(&told.id, at).await.unwrap().channels, ["desk"]);
    assert_eq!(lease(&*outbox, "desk", at).await.attempt, 2);
}

async fn a_cancel_ends_what_is_not_final(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let cancel = async |id: &str| outbox.command(id, Command::Cancel, at).await;
    let alice = routed(
        &*outbox,
        event("alice", CODE_A, at),
        vec![by("mail"), by("hook")],
    )
    .await;
    let mail = lease(&*outbox, "mail", at).await;
    assert_eq!(cancel(&mail.id).await.unwrap().state, State::Cancelled);
    assert_eq!(
        outbox.begin_send(&mail, after(at, 9)).await,
        Err(OutboxError::LostLease)
    );
    assert_eq!(case(&*outbox, &alice, at).await.state, CaseState::Routed);
    assert_eq!(
        delivery(&*outbox, "alice", "hook").await.state,
        State::Pending
    );
    assert_eq!(cancel(&alice).await.unwrap().state, State::Cancelled);
    assert_eq!(
        delivery(&*outbox, "alice", "hook").await.state,
        State::Cancelled
    );
    assert!(is_idle(&*outbox, "hook", after(at, 9999)).await);
    for id in [&mail.id, &alice] {
        assert!(matches!(cancel(id).await, Err(OutboxError::Refused(_))));
        assert!(matches!(
            outbox.command(id, Command::Retry, at).await,
            Err(OutboxError::Refused(_))
        ));
    }

    // The last delivery ends the case, so that no fallback sends what an operator has stopped.
    let bob = routed(&*outbox, event("bob", CODE_A, at), vec![by("mail")]).await;
    let only = delivery(&*outbox, "bob", "mail").await.id;
    cancel(&only).await.unwrap();
    assert!(
        outbox
            .lease_cases(9, after(at, 9999), LEASE)
            .await
            .unwrap()
            .items
            .is_empty()
    );
    assert_eq!(state(&*outbox, &bob).await, State::Cancelled);

    let carol = put(&*outbox, event("carol", CODE_A, at)).await;
    cancel(&carol).await.unwrap();
    assert_eq!(state(&*outbox, &carol).await, State::Cancelled);
    let wiped = outbox.sweep(at + VALIDITY, 30 * DAY).await.unwrap().wiped;
    assert_eq!(wiped, 0, "a cancelled code is wiped at once");
}

async fn a_code_that_is_cancelled_while_it_is_sent_is_not_tried_again(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    routed(&*outbox, event("alice", CODE_A, at), vec![by("mail")]).await;
    let sending = lease(&*outbox, "mail", at).await;
    outbox.begin_send(&sending, after(at, 900)).await.unwrap();
    assert_eq!(
        outbox
            .command(&sending.id, Command::Cancel, at)
            .await
            .unwrap()
            .state,
        State::Sending
    );
    outbox.settle(&sending, later(at), at).await.unwrap();
    assert_eq!(state(&*outbox, &sending.id).await, State::Cancelled);
    assert!(is_idle(&*outbox, "mail", after(at, 9999)).await);
}

// === After a crash ===

async fn what_a_dead_process_held_is_due_at_once(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    routed(&*outbox, event("bob", CODE_B, at), vec![by("mail")]).await;
    let held = lease(&*outbox, "mail", at).await;
    let alice = put(&*outbox, event("alice", CODE_A, at)).await;
    case(&*outbox, &alice, at).await;
    drop(outbox);
    let (outbox, at) = (home.open(), after(now(), 1));
    let again = lease(&*outbox, "mail", at).await;
    assert_eq!(
        (again.id.as_str(), again.attempt, code_of(&again).as_str()),
        (held.id.as_str(), 1, CODE_B)
    );
    assert_eq!(case(&*outbox, &alice, at).await.state, CaseState::Received);
    assert_eq!(
        outbox.settle(&held, accepted(), at).await,
        Err(OutboxError::LostLease)
    );
}

async fn a_dead_senders_delivery_is_sent_again_or_held_as_configured(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let id = routed(
        &*outbox,
        event("alice", CODE_A, at),
        vec![by("mail"), held_by("sms"), by("hook")],
    )
    .await;
    for channel in ["mail", "sms", "hook"] {
        let sending = lease(&*outbox, channel, at).await;
        outbox.begin_send(&sending, after(at, 900)).await.unwrap();
        if channel == "hook" {
            outbox
                .command(&sending.id, Command::Cancel, at)
                .await
                .unwrap();
        }
    }
    drop(outbox);
    let (outbox, at) = (home.open(), after(now(), 1));
    assert_eq!(lease(&*outbox, "mail", at).await.attempt, 2);
    assert!(is_idle(&*outbox, "sms", after(at, 9999)).await);
    assert!(is_idle(&*outbox, "hook", after(at, 9999)).await);
    let due = case(&*outbox, &id, at).await;
    let held: Vec<State> = due.deliveries.iter().map(|d| d.state).collect();
    assert_eq!(
        held,
        [State::Pending, State::NeedsAttention, State::Cancelled]
    );
    assert!(
        due.deliveries[1]
            .last_error
            .as_ref()
            .unwrap()
            .contains("may have arrived")
    );
}

async fn a_delivery_whose_lease_ran_out_is_sent_again_or_held_as_configured(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let id = routed(
        &*outbox,
        event("alice", CODE_A, at),
        vec![by("mail"), held_by("sms")],
    )
    .await;
    for channel in ["mail", "sms"] {
        let sending = lease(&*outbox, channel, at).await;
        outbox.begin_send(&sending, after(at, 900)).await.unwrap();
        assert!(is_idle(&*outbox, channel, after(at, 899)).await);
    }
    assert_eq!(lease(&*outbox, "mail", after(at, 900)).await.attempt, 2);
    assert!(is_idle(&*outbox, "sms", after(at, 900)).await);
    assert_eq!(
        delivery(&*outbox, "alice", "sms").await.state,
        State::NeedsAttention
    );
    assert_eq!(
        case(&*outbox, &id, after(at, 900)).await.deliveries.len(),
        2
    );
}

// === Channels that come and go ===

async fn deliveries_of_a_channel_that_is_gone_fail(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let id = routed(
        &*outbox,
        event("alice", CODE_A, at),
        vec![by("old"), by("mail")],
    )
    .await;
    routed(&*outbox, event("bob", CODE_A, at), vec![by("older")]).await;
    let under_way = lease(&*outbox, "older", at).await;
    let decided = outbox.lease_cases(9, at, LEASE).await.unwrap().items;
    assert!(decided.is_empty());
    assert_eq!(
        outbox.fail_orphans(&["mail".to_owned()], at).await.unwrap(),
        2
    );
    let old = delivery(&*outbox, "alice", "old").await;
    assert_eq!(old.state, State::Failed);
    assert!(old.last_error.unwrap().contains("no longer configured"));
    assert_eq!(
        delivery(&*outbox, "alice", "mail").await.state,
        State::Pending
    );
    assert_eq!(case(&*outbox, &id, at).await.state, CaseState::Routed);
    // The try under way ends by the settings under which it began.
    outbox.begin_send(&under_way, after(at, 900)).await.unwrap();
    outbox.settle(&under_way, later(at), at).await.unwrap();
    assert_eq!(state(&*outbox, &under_way.id).await, State::Failed);
    assert_eq!(
        outbox.fail_orphans(&["mail".to_owned()], at).await.unwrap(),
        0
    );
}

async fn a_channels_cases_are_woken(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let alice = routed(&*outbox, event("alice", CODE_A, at), vec![by("mail")]).await;
    routed(&*outbox, event("bob", CODE_A, at), vec![by("hook")]).await;
    outbox.wake_cases("mail", at).await.unwrap();
    let due = outbox.lease_cases(9, at, LEASE).await.unwrap().items;
    assert_eq!(
        due.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(),
        [alice.as_str()]
    );
}

async fn what_may_have_become_due_is_known(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let changes = async || {
        let cases = outbox.lease_cases(0, at, LEASE).await.unwrap();
        let mails = outbox.lease_deliveries("mail", 0, at, LEASE).await.unwrap();
        (cases.changes, mails.changes)
    };
    let mut before = changes().await;
    let mut woken = async || {
        let seen = changes().await;
        let news = (seen.0 != before.0, seen.1 != before.1);
        before = seen;
        news
    };
    let id = put(&*outbox, event("alice", CODE_A, at)).await;
    assert_eq!(woken().await, (true, false));
    outbox.put(vec![event("alice", CODE_A, at)]).await.unwrap();
    let c = case(&*outbox, &id, at).await;
    assert_eq!(woken().await, (false, false));
    outbox
        .advance(&c, route("alice", vec![by("mail")]), at)
        .await
        .unwrap();
    assert_eq!(woken().await, (false, true));
    let first = lease(&*outbox, "mail", at).await;
    assert_eq!(woken().await, (false, false));
    outbox
        .settle(&first, later(after(at, 15)), at)
        .await
        .unwrap();
    assert_eq!(woken().await, (true, true));
    outbox.command(&first.id, Command::Retry, at).await.unwrap();
    assert_eq!(woken().await, (true, true));
    let second = lease(&*outbox, "mail", at).await;
    outbox.settle(&second, accepted(), at).await.unwrap();
    assert_eq!(woken().await, (true, false));
}

/// What has come of a future so far.
async fn so_far<T>(
    outbox: &dyn Outbox,
    future: &mut (impl Future<Output = T> + Unpin),
) -> Option<T> {
    // A commit's answers are told one after the other; what comes next in line has them all behind itself.
    outbox.lease_cases(0, now(), LEASE).await.unwrap();
    future.now_or_never()
}

async fn a_lease_stands_until_something_is_due(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let clock: Clock = Arc::new(move || at);
    let cases = |since| outbox.next_cases(since, 9, &clock, LEASE, Box::pin(pending()));
    let none = outbox.lease_cases(9, at, LEASE).await.unwrap();
    let mut case = cases(none.changes);
    let none = outbox.lease_deliveries("mail", 9, at, LEASE).await.unwrap();
    let forever = Box::pin(pending());
    let mut mail = outbox.next_deliveries(none.changes, "mail", 9, &clock, LEASE, forever);
    assert!(
        so_far(&*outbox, &mut case).await.is_none() && so_far(&*outbox, &mut mail).await.is_none()
    );

    // It is answered with the change: whoever leases next finds nothing.
    let id = put(&*outbox, event("alice", CODE_A, at)).await;
    let leased = so_far(&*outbox, &mut case).await.unwrap().unwrap().unwrap();
    assert_eq!(leased.items[0].id, id);
    assert!(so_far(&*outbox, &mut mail).await.is_none());
    let others = outbox.lease_cases(9, at, LEASE).await.unwrap();
    assert!(others.items.is_empty());

    // So is the time of the next look, although nothing is due yet.
    let mut look = cases(others.changes);
    assert!(so_far(&*outbox, &mut look).await.is_none());
    let step = Step {
        due_at: Some(after(at, 1)),
        ..route("alice", vec![by("mail")])
    };
    outbox.advance(&leased.items[0], step, at).await.unwrap();
    let look = so_far(&*outbox, &mut look).await.unwrap().unwrap().unwrap();
    assert!(look.items.is_empty());
    assert_eq!(look.next, Some(after(at, 1)));
    let mail = so_far(&*outbox, &mut mail).await.unwrap().unwrap().unwrap();
    let until = after(at, 60);
    outbox.begin_send(&mail.items[0], until).await.unwrap();

    // What changed before it was asked for is not waited for.
    put(&*outbox, event("bob", CODE_B, at)).await;
    let bob = cases(others.changes).await.unwrap().unwrap();
    assert_eq!(bob.items[0].activation.user, "bob");
}

async fn a_lease_that_is_given_up_leases_nothing(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let clock: Clock = Arc::new(move || at);
    let none = outbox.lease_cases(9, at, LEASE).await.unwrap();
    let (end, ended) = oneshot::channel::<()>();
    let rest = ended.map(|_| ()).boxed();
    let mut given_up = outbox.next_cases(none.changes, 9, &clock, LEASE, rest);
    assert!(so_far(&*outbox, &mut given_up).await.is_none());
    drop(end);
    assert!(given_up.await.unwrap().is_none());
    put(&*outbox, event("alice", CODE_A, at)).await;
    let due = outbox.lease_cases(9, at, LEASE).await.unwrap().items;
    assert_eq!(due.len(), 1);

    // Answered and given up at once, it is the holder's.
    let none = outbox.lease_cases(9, at, LEASE).await.unwrap();
    let (end, ended) = oneshot::channel::<()>();
    let rest = ended.map(|_| ()).boxed();
    let mut answered = outbox.next_cases(none.changes, 9, &clock, LEASE, rest);
    assert!(so_far(&*outbox, &mut answered).await.is_none());
    put(&*outbox, event("bob", CODE_B, at)).await;
    drop(end);
    let bob = answered.await.unwrap().unwrap();
    assert_eq!(bob.items[0].activation.user, "bob");
}

// === What people see ===

async fn a_life_cycle_event_is_history_only(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let id = put(&*outbox, event("alice", CODE_A, at)).await;
    let activated = Activation {
        stage: Stage::Activated,
        code: None,
        description: "Token activated".to_owned(),
        ..event("alice", CODE_A, after(at, 60))
    };
    let recorded = put(&*outbox, activated.clone()).await;
    assert_eq!(
        outbox.put(vec![activated]).await.unwrap(),
        [Stored::Duplicate]
    );
    assert_eq!(
        states(&*outbox).await,
        BTreeMap::from([(id.clone(), State::Received)])
    );
    let due = outbox
        .lease_cases(9, after(at, 60), LEASE)
        .await
        .unwrap()
        .items;
    assert_eq!(due.len(), 1);
    let told = outbox.show(&id).await.unwrap().history;
    assert!(
        told.iter()
            .any(|e| e.what.contains("Token activated (activated)")),
        "{told:?}"
    );
    let shown = outbox.show(&recorded).await.unwrap();
    assert_eq!(shown.row.state, State::Recorded);
    let retried = outbox.command(&recorded, Command::Retry, at).await;
    let Err(OutboxError::Refused(why)) = retried else {
        panic!("there is nothing to deliver")
    };
    assert!(
        why.contains(&recorded) && why.contains("activated"),
        "{why}"
    );
}

const TOKEN: &str = "FTKMOB6549A91140";

/// Event 38412 as FortiOS may log it from 7.6.3 on.
fn without_code(user: &str, at: Timestamp) -> Activation {
    Activation {
        code: None,
        ..event(user, CODE_A, at)
    }
}

fn named(user: &str, code: Option<&str>) -> Evidence {
    Evidence {
        code: code.and_then(ActivationCode::captured),
        expires_at: None,
        token: TOKEN.to_owned(),
        person: user.to_owned(),
        is_activated: false,
    }
}

fn proven(user: &str, code: Option<&str>) -> Step {
    Step {
        evidence: Some(named(user, code)),
        ..route(user, vec![by("mail")])
    }
}

fn of_token(stage: Stage, user: &str, token: &str, at: Timestamp) -> Activation {
    Activation {
        event_id: format!("{stage}-{token}-{}", at.as_second()),
        stage,
        token: Some(token.to_owned()),
        description: format!("token {stage}"),
        ..without_code(user, at)
    }
}

async fn a_code_that_the_device_named_goes_out_sealed_and_until_its_own_expiry(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let id = put(&*outbox, without_code("alice", at)).await;
    let step = Step {
        evidence: Some(Evidence {
            expires_at: Some(after(at, 3600)),
            ..named("alice", Some(CODE_A))
        }),
        ..route("alice", vec![by("mail")])
    };
    let leased = case(&*outbox, &id, at).await;
    let advanced = outbox.advance(&leased, step, at).await.unwrap();
    assert_eq!(
        (advanced.state, advanced.superseded),
        (CaseState::Routed, 0)
    );
    let sent = lease(&*outbox, "mail", at).await;
    assert_eq!(code_of(&sent), CODE_A);
    assert_eq!(sent.expires_at, after(at, 3600));
    let Work::Activation { activation, .. } = &sent.work else {
        panic!("it is an activation")
    };
    assert_eq!(activation.addresses, ["alice@example.com"]);
    assert!(activation.origin.device_named_code);
    assert_eq!(activation.token.as_deref(), Some(TOKEN));
    assert_eq!(activation.origin.standing, Standing::Confirmed);
    // After a kill it is still there, under the same name.
    drop(outbox);
    let outbox = home.open();
    let again = lease(&*outbox, "mail", after(at, 61)).await;
    assert_eq!(
        (code_of(&again), again.message_id),
        (CODE_A.to_owned(), sent.message_id)
    );
}

async fn a_code_that_the_device_named_replaces_an_older_one_and_yields_to_a_newer(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let old = routed(
        &*outbox,
        event("alice", CODE_B, after(at, -60)),
        vec![by("mail")],
    )
    .await;
    let id = put(&*outbox, without_code("alice", at)).await;
    assert_eq!(
        state(&*outbox, &old).await,
        State::Received,
        "no code, no replacement"
    );
    let leased = case(&*outbox, &id, at).await;
    let advanced = outbox
        .advance(&leased, proven("alice", Some(CODE_A)), at)
        .await
        .unwrap();
    assert_eq!(advanced.superseded, 1);
    assert_eq!(state(&*outbox, &old).await, State::Superseded);

    let earlier = put(&*outbox, without_code("alice", after(at, -30))).await;
    let leased = case(&*outbox, &earlier, at).await;
    let advanced = outbox
        .advance(&leased, proven("alice", Some(CODE_B)), at)
        .await
        .unwrap();
    assert_eq!(
        (advanced.state, advanced.superseded),
        (CaseState::Superseded, 1)
    );
    let sent = lease(&*outbox, "mail", at).await;
    assert_eq!(code_of(&sent), CODE_A);
    assert!(is_idle(&*outbox, "mail", at).await);
}

async fn a_confirmed_code_ends_older_events_of_its_person_that_showed_none(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let waits = put(&*outbox, without_code("alice", after(at, -60))).await;
    let held = put(&*outbox, without_code("alice", after(at, -30))).await;
    let leased = case(&*outbox, &held, at).await;
    let hold = Step {
        state: Some(CaseState::NeedsAttention),
        ..Step::default()
    };
    outbox.advance(&leased, hold, at).await.unwrap();
    let others = put(&*outbox, without_code("bob", after(at, -60))).await;
    let stored = outbox
        .put(vec![event("alice", CODE_B, after(at, -10))])
        .await
        .unwrap();
    assert!(
        matches!(stored[0], Stored::New { superseded: 0, .. }),
        "a line alone ends nothing that the device is asked about"
    );
    let again = Activation {
        origin: Origin {
            standing: Standing::Confirmed,
            ..Origin::default()
        },
        ..event("alice", CODE_A, at)
    };
    let stored = outbox.put(vec![again]).await.unwrap();
    assert!(
        matches!(stored[0], Stored::New { superseded: 3, .. }),
        "{stored:?}"
    );
    for id in [&waits, &held] {
        assert_eq!(state(&*outbox, id).await, State::Superseded);
    }
    assert_eq!(state(&*outbox, &others).await, State::Received);
}

async fn a_provisional_code_replaces_nothing_until_it_is_confirmed(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let provisional = |code, at| Activation {
        origin: Origin {
            standing: Standing::Provisional,
            ..Origin::default()
        },
        ..event("alice", code, at)
    };
    let real = put(&*outbox, provisional(CODE_A, at)).await;
    let leased = case(&*outbox, &real, at).await;
    outbox
        .advance(&leased, proven("alice", None), at)
        .await
        .unwrap();
    // Forged: the same user, a later time.
    let forged = put(&*outbox, provisional(CODE_B, after(at, 60))).await;
    let sent = lease(&*outbox, "mail", after(at, 60)).await;
    assert_eq!(code_of(&sent), CODE_A);
    outbox
        .settle(&sent, later(after(at, 70)), after(at, 61))
        .await
        .unwrap();
    assert_eq!(state(&*outbox, &forged).await, State::Received);
    // Had the device confirmed it, it would have replaced the other.
    let leased = case(&*outbox, &forged, after(at, 61)).await;
    let advanced = outbox
        .advance(&leased, proven("alice", None), after(at, 61))
        .await
        .unwrap();
    assert_eq!(advanced.superseded, 1);
    assert_eq!(
        code_of(&lease(&*outbox, "mail", after(at, 80)).await),
        CODE_B
    );
}

/// A code of a device whose API says whose it is.
fn unsettled(user: &str, code: &str, at: Timestamp) -> Activation {
    Activation {
        origin: Origin {
            standing: Standing::Unsettled,
            ..Origin::default()
        },
        ..event(user, code, at)
    }
}

/// The log's word stands.
fn by_the_log(user: &str) -> Step {
    Step {
        settles: true,
        ..route(user, vec![by("mail")])
    }
}

async fn codes_whose_person_is_open_replace_each_other_only_once_it_is_settled(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let newer = after(at, 1);
    // Both by the same administrator, as far as the log says.
    let first = put(&*outbox, unsettled("admin", CODE_A, at)).await;
    let stored = outbox
        .put(vec![unsettled("admin", CODE_B, newer)])
        .await
        .unwrap();
    assert!(
        matches!(
            &stored[..],
            [Stored::New {
                superseded: 0,
                late: false,
                ..
            }]
        ),
        "{stored:?}"
    );
    let leased = outbox.lease_cases(9, newer, LEASE).await.unwrap().items;
    let [one, two] = &leased[..] else {
        panic!("{leased:?}")
    };
    assert_eq!(one.activation.origin.standing, Standing::Unsettled);
    // The second is the administrator's own, and is settled first; the first is not.
    for (case, user) in [(two, "admin"), (one, "alice")] {
        let advanced = outbox
            .advance(case, proven(user, None), newer)
            .await
            .unwrap();
        assert_eq!(
            (advanced.state, advanced.superseded),
            (CaseState::Routed, 0),
            "{user}"
        );
        assert_eq!(state(&*outbox, &first).await, State::Received, "{user}");
    }
    let mails = outbox
        .lease_deliveries("mail", 9, newer, LEASE)
        .await
        .unwrap()
        .items;
    let mut codes: Vec<_> = mails.iter().map(code_of).collect();
    codes.sort();
    assert_eq!(codes, [CODE_B, CODE_A]);

    // What is settled and on its way isn't replaced either, before it is known by whose.
    let settled = routed(&*outbox, event("dave", CODE_A, at), vec![by("other")]).await;
    let open = put(&*outbox, unsettled("dave", CODE_B, newer)).await;
    assert_eq!(state(&*outbox, &settled).await, State::Received);
    outbox.command(&open, Command::Cancel, newer).await.unwrap();

    // One person's: in whichever order they are settled only the newer goes out, and the other's code is wiped.
    for (user, order) in [("bob", [0, 1]), ("carol", [1, 0])] {
        let old = put(&*outbox, unsettled(user, CODE_A, at)).await;
        let new = put(&*outbox, unsettled(user, CODE_B, newer)).await;
        let mut leased = outbox.lease_cases(9, newer, LEASE).await.unwrap().items;
        leased.sort_by_key(|case| case.activation.event_time);
        let mut superseded = 0;
        for case in order.map(|n| &leased[n]) {
            let advanced = outbox
                .advance(case, proven(user, None), newer)
                .await
                .unwrap();
            superseded += advanced.superseded;
        }
        assert_eq!(superseded, 1, "{user}");
        assert_eq!(state(&*outbox, &old).await, State::Superseded, "{user}");
        assert_eq!(state(&*outbox, &new).await, State::Received, "{user}");
        let sent = lease(&*outbox, "mail", newer).await;
        assert_eq!(code_of(&sent), CODE_B, "{user}");
        assert!(is_idle(&*outbox, "mail", newer).await, "{user}");
        let command = outbox.command(&old, Command::Retry, newer).await;
        assert!(command.is_err(), "{user}: {command:?}");
    }
}

async fn a_code_by_the_logs_word_waits_a_moment_for_the_devices_word_on_a_newer_one(
    home: &dyn Home,
) {
    let (outbox, at) = (home.open(), now());
    let old = put(&*outbox, unsettled("alice", CODE_A, at)).await;
    put(&*outbox, unsettled("alice", CODE_B, after(at, 1))).await;
    let leased = outbox.lease_cases(9, at, LEASE).await.unwrap().items;
    let [first] = &leased[..] else {
        panic!("{leased:?}")
    };
    let advanced = outbox
        .advance(first, by_the_log("alice"), at)
        .await
        .unwrap();
    assert_eq!(advanced.state, CaseState::Received);
    assert!(is_idle(&*outbox, "mail", at).await);
    let mut leased = outbox
        .lease_cases(9, after(at, 1), LEASE)
        .await
        .unwrap()
        .items;
    leased.sort_by_key(|case| case.activation.event_time);
    let [again, second] = &leased[..] else {
        panic!("{leased:?}")
    };
    for case in [second, again] {
        outbox
            .advance(case, by_the_log("alice"), after(at, 1))
            .await
            .unwrap();
    }
    assert_eq!(state(&*outbox, &old).await, State::Superseded);
    assert_eq!(
        code_of(&lease(&*outbox, "mail", after(at, 1)).await),
        CODE_B
    );

    // Not for ever: the newer one may wait for something else.
    let old = put(&*outbox, unsettled("bob", CODE_A, at)).await;
    put(&*outbox, unsettled("bob", CODE_B, after(at, 1))).await;
    let first = case(&*outbox, &old, after(at, 2)).await;
    let advanced = outbox
        .advance(&first, by_the_log("bob"), after(at, 20))
        .await
        .unwrap();
    assert_eq!(advanced.state, CaseState::Routed);
    assert_eq!(
        code_of(&lease(&*outbox, "mail", after(at, 20)).await),
        CODE_A
    );
}

async fn an_event_whose_code_was_found_is_known_when_it_comes_again_with_its_code(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let id = put(&*outbox, without_code("alice", at)).await;
    let leased = case(&*outbox, &id, at).await;
    outbox
        .advance(&leased, proven("alice", Some(CODE_A)), at)
        .await
        .unwrap();
    let again = outbox.put(vec![event("alice", CODE_A, at)]).await.unwrap();
    assert_eq!(again, [Stored::Duplicate]);
    let again = outbox.put(vec![without_code("alice", at)]).await.unwrap();
    assert_eq!(again, [Stored::Duplicate]);
    // The other way round.
    routed(&*outbox, event("bob", CODE_B, at), vec![by("mail")]).await;
    let blank = put(&*outbox, without_code("bob", at)).await;
    let leased = case(&*outbox, &blank, at).await;
    let advanced = outbox
        .advance(&leased, proven("bob", Some(CODE_B)), at)
        .await
        .unwrap();
    assert_eq!(advanced.state, CaseState::Superseded);
    let mails = outbox.lease_deliveries("mail", 9, at, LEASE).await.unwrap();
    assert_eq!(mails.items.len(), 2);
}

async fn an_activated_token_ends_the_codes_of_its_owner_alone(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let with_token = |user: &str, code: &str| Activation {
        token: Some(TOKEN.to_owned()),
        ..event(user, code, at)
    };
    let alice = routed(&*outbox, with_token("alice", CODE_A), vec![by("mail")]).await;
    let bob = routed(&*outbox, with_token("bob", CODE_B), vec![by("mail")]).await;
    let activated = of_token(Stage::Activated, "", TOKEN, after(at, 60));
    let id = put(&*outbox, activated).await;
    assert_eq!(
        state(&*outbox, &alice).await,
        State::Received,
        "nobody knows whose it is"
    );
    let leased = case(&*outbox, &id, after(at, 60)).await;
    let tied = Step {
        evidence: Some(named("alice", None)),
        ..Step::default()
    };
    let advanced = outbox.advance(&leased, tied, after(at, 61)).await.unwrap();
    assert_eq!(
        (advanced.state, advanced.cancelled),
        (CaseState::Recorded, 1)
    );
    assert_eq!(state(&*outbox, &alice).await, State::Cancelled);
    assert_eq!(
        delivery(&*outbox, "alice", "mail").await.state,
        State::Cancelled
    );
    assert_eq!(
        outbox.sweep(at, DAY).await.unwrap().wiped,
        0,
        "wiped at once"
    );
    assert_eq!(state(&*outbox, &bob).await, State::Received);
    assert_eq!(
        code_of(&lease(&*outbox, "mail", after(at, 61)).await),
        CODE_B
    );
}

async fn a_code_that_comes_after_its_token_was_activated_does_not_go_out(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let id = put(
        &*outbox,
        of_token(Stage::Activated, "", TOKEN, after(at, 60)),
    )
    .await;
    let leased = case(&*outbox, &id, after(at, 60)).await;
    let tied = Step {
        evidence: Some(named("alice", None)),
        ..Step::default()
    };
    outbox.advance(&leased, tied, after(at, 60)).await.unwrap();
    let spent = |user: &str, code: Option<&str>| {
        let mut step = proven(user, code);
        step.evidence.as_mut().unwrap().is_activated = true;
        step
    };
    for (activation, step, becomes) in [
        (
            unsettled("alice", CODE_A, at),
            spent("alice", None),
            CaseState::Cancelled,
        ),
        (
            without_code("alice", after(at, 1)),
            spent("alice", Some(CODE_A)),
            CaseState::Cancelled,
        ),
        // Sent after the activation.
        (
            unsettled("alice", CODE_B, after(at, 120)),
            spent("alice", None),
            CaseState::Routed,
        ),
        (
            unsettled("bob", CODE_A, at),
            spent("bob", None),
            CaseState::Routed,
        ),
    ] {
        let (name, received) = (activation.event_id.clone(), activation.received_at);
        let id = put(&*outbox, activation).await;
        let leased = case(&*outbox, &id, received).await;
        let advanced = outbox.advance(&leased, step, received).await.unwrap();
        let cancelled = usize::from(becomes == CaseState::Cancelled);
        assert_eq!(
            (advanced.state, advanced.cancelled),
            (becomes, cancelled),
            "{name}"
        );
    }
}

async fn a_forged_activation_of_a_token_that_a_phone_has_ends_no_other_code(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    // Alice has had a token for long; the line names it and a time to come.
    let forged = Activation {
        event_time: after(at, 290),
        ..of_token(Stage::Activated, "", TOKEN, at)
    };
    let id = put(&*outbox, forged).await;
    let leased = case(&*outbox, &id, at).await;
    let waiting = put(&*outbox, without_code("alice", at)).await;
    let tied = Step {
        evidence: Some(Evidence {
            is_activated: true,
            ..named("alice", None)
        }),
        ..Step::default()
    };
    let advanced = outbox.advance(&leased, tied, at).await.unwrap();
    assert_eq!(advanced.cancelled, 0, "it may be about another token");
    assert_eq!(state(&*outbox, &waiting).await, State::Received);
    let other = "FTKMOB83F91CD33B";
    let of_other = Step {
        evidence: Some(Evidence {
            token: other.to_owned(),
            ..named("alice", None)
        }),
        ..route("alice", vec![by("mail")])
    };
    // A new token, and the same one handed out again: the device shows no phone on either.
    for (n, step) in [(1, of_other), (2, proven("alice", None))] {
        let id = put(&*outbox, unsettled("alice", CODE_A, after(at, n))).await;
        assert_eq!(state(&*outbox, &id).await, State::Received);
        let leased = case(&*outbox, &id, after(at, n)).await;
        let advanced = outbox.advance(&leased, step, after(at, n)).await.unwrap();
        assert_eq!(
            (advanced.state, advanced.cancelled),
            (CaseState::Routed, 0),
            "{n}"
        );
    }
    // Nor does a line end what came after it, whatever time it claims.
    let id = put(
        &*outbox,
        Activation {
            event_time: after(at, 280),
            ..of_token(Stage::Activated, "", TOKEN, after(at, 1))
        },
    )
    .await;
    let leased = case(&*outbox, &id, after(at, 3)).await;
    let tied = Step {
        evidence: Some(Evidence {
            is_activated: true,
            ..named("alice", None)
        }),
        ..Step::default()
    };
    let advanced = outbox.advance(&leased, tied, after(at, 3)).await.unwrap();
    assert_eq!(advanced.cancelled, 0);
}

async fn the_events_of_a_token_are_one_story_in_whatever_order_they_came(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let activated = put(
        &*outbox,
        of_token(Stage::Activated, "", TOKEN, after(at, 90)),
    )
    .await;
    let sent = put(&*outbox, event("alice", CODE_A, after(at, 10))).await;
    let requested = put(&*outbox, of_token(Stage::Requested, "alice", TOKEN, at)).await;
    let failed = put(&*outbox, of_token(Stage::Failed, "", TOKEN, after(at, 50))).await;
    put(&*outbox, event("bob", CODE_B, after(at, 20))).await;
    put(
        &*outbox,
        of_token(Stage::Failed, "", "FTKMOB83F91CD33B", after(at, 50)),
    )
    .await;
    let whole = [&requested, &sent, &failed, &activated];
    for id in whole {
        let life = outbox.show(id).await.unwrap().life;
        let ids: Vec<&String> = life.iter().map(|e| &e.id).collect();
        assert_eq!(ids, whole, "as {id} tells it");
    }
    let life = outbox.show(&sent).await.unwrap().life;
    assert_eq!(
        (life[1].stage, life[1].state, life[3].state),
        (Stage::CodeSent, State::Received, State::Recorded)
    );
}

async fn an_administrator_who_asks_for_many_tokens_ties_no_stories_together(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let other = "FTKMOB83F91CD33B";
    let first = put(&*outbox, of_token(Stage::Requested, "admin", TOKEN, at)).await;
    put(&*outbox, of_token(Stage::Requested, "admin", other, at)).await;
    put(
        &*outbox,
        of_token(Stage::Activated, "", other, after(at, 9)),
    )
    .await;
    put(&*outbox, event("admin", CODE_A, after(at, 5))).await;
    let life = outbox.show(&first).await.unwrap().life;
    assert_eq!(life.len(), 1, "{life:?}");
}

async fn a_trace_is_kept_without_repeating_itself(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let id = put(
        &*outbox,
        Activation {
            origin: Origin {
                line: "kv, 400 bytes, from 10.0.0.1 on the listener core".to_owned(),
                ..Origin::default()
            },
            ..event("alice", CODE_A, at)
        },
    )
    .await;
    for seconds in [0, 5, 9] {
        let leased = case(&*outbox, &id, after(at, seconds)).await;
        let said = |said: &str| Finding {
            at: after(at, seconds),
            by: By::Directory,
            said: said.to_owned(),
        };
        let step = Step {
            trace: vec![said("ldap: is away"), said(&format!("asked {seconds}"))],
            due_at: Some(after(at, seconds)),
            ..Step::default()
        };
        outbox.advance(&leased, step, at).await.unwrap();
    }
    let trace = outbox.show(&id).await.unwrap().trace;
    let said: Vec<(By, &str)> = trace.iter().map(|f| (f.by, f.said.as_str())).collect();
    assert_eq!(
        said,
        [
            (
                By::Line,
                "kv, 400 bytes, from 10.0.0.1 on the listener core"
            ),
            (
                By::Rule,
                "\"activation code\" takes 38412 as code-sent, with a code"
            ),
            (By::Directory, "ldap: is away"),
            (By::Directory, "asked 0"),
            (By::Directory, "asked 5"),
            (By::Directory, "asked 9"),
        ]
    );
}

async fn the_list_and_the_depth_agree(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    assert_eq!(outbox.depth(at).await.unwrap().oldest, None);
    let alice = put(&*outbox, event("alice", CODE_A, after(at, -9))).await;
    routed(
        &*outbox,
        event("Bob", CODE_A, at),
        vec![by("mail"), by("hook")],
    )
    .await;
    let carol = put(
        &*outbox,
        Activation {
            code: None,
            ..event("carol", CODE_A, after(at, 1))
        },
    )
    .await;
    let c = case(&*outbox, &carol, after(at, 1)).await;
    let attention = Step {
        state: Some(CaseState::NeedsAttention),
        reason: Some("the log shows no code".to_owned()),
        deliver: vec![by("hook")],
        escalate: vec![telling("no-code", "carol on BORDER-FGT (root): no code")],
        ..Step::default()
    };
    outbox.advance(&c, attention, after(at, 1)).await.unwrap();
    let rows = outbox.list(Filter::default()).await.unwrap();
    let seen: Vec<(&str, &str, State, Option<&str>)> = rows
        .iter()
        .map(|r| {
            (
                r.user.as_str(),
                r.stage.as_str(),
                r.state,
                r.channel.as_deref(),
            )
        })
        .collect();
    for expected in [
        ("alice", "code-sent", State::Received, None),
        ("Bob", "code-sent", State::Pending, Some("mail")),
        ("Bob", "code-sent", State::Pending, Some("hook")),
        ("carol", "code-sent", State::NeedsAttention, None),
        ("carol", "code-sent", State::Pending, Some("hook")),
        (
            "carol on BORDER-FGT (root): no code",
            "escalation",
            State::Pending,
            Some("desk"),
        ),
    ] {
        assert!(seen.contains(&expected), "{expected:?} is not in {seen:?}");
    }
    assert_eq!(seen.len(), 6);
    assert!(
        rows.is_sorted_by(|a, b| a.created_at >= b.created_at),
        "newest first"
    );
    let bob = rows.iter().find(|r| r.user == "Bob").unwrap();
    assert_eq!(
        (bob.recipient.as_deref(), bob.next_attempt, bob.expires_at),
        (Some("Bob@example.com"), Some(at), Some(at + VALIDITY))
    );

    let depth = outbox.depth(at).await.unwrap();
    for (state, count) in &depth.items {
        let listed = outbox
            .list(Filter {
                states: vec![*state],
                ..Filter::default()
            })
            .await
            .unwrap();
        assert_eq!(listed.len() as u64, *count, "{state:?}");
    }
    assert_eq!(depth.items.iter().map(|(_, n)| n).sum::<u64>(), 6);
    assert_eq!(depth.oldest, Some(after(at, -9)));

    let filter = |user: &str, limit| Filter {
        user: Some(user.to_owned()),
        limit,
        ..Filter::default()
    };
    assert_eq!(outbox.list(filter("bOb", 0)).await.unwrap().len(), 2);
    assert_eq!(outbox.list(filter("bob", 1)).await.unwrap().len(), 1);
    assert_eq!(outbox.list(filter("%", 0)).await.unwrap().len(), 0);
    assert_eq!(outbox.list(filter("ALI", 0)).await.unwrap()[0].id, alice);
}

async fn the_story_is_told_without_code_and_address(home: &dyn Home) {
    let (outbox, at) = (home.open(), now());
    let id = routed(&*outbox, event("alice", CODE_A, at), vec![by("mail")]).await;
    let first = lease(&*outbox, "mail", at).await;
    outbox.begin_send(&first, after(at, 900)).await.unwrap();
    outbox
        .settle(&first, later(after(at, 15)), after(at, 1))
        .await
        .unwrap();
    outbox
        .command(&first.id, Command::Retry, after(at, 2))
        .await
        .unwrap();
    let second = lease(&*outbox, "mail", after(at, 2)).await;
    outbox
        .settle(&second, accepted(), after(at, 3))
        .await
        .unwrap();
    for name in [&id, &first.id, &id.to_lowercase()] {
        let story = outbox.show(name).await.unwrap();
        assert_eq!(story.device.as_ref().unwrap().name, "BORDER-FGT");
        assert_eq!(
            (story.source.as_deref(), story.event_time),
            (Some("table"), Some(at))
        );
        let told: Vec<String> = story.history.iter().map(|e| e.what.clone()).collect();
        assert_eq!(
            told,
            [
                "received, with a code",
                "goes out by mail, to a…@example.com (from table)",
                "try 1 failed: 451 later",
                "made due by an operator",
                "accepted: 250 ok",
            ]
        );
        assert!(story.history.is_sorted_by_key(|e| e.at));
        let text = serde_json::to_string(&story).unwrap();
        assert!(!text.contains(CODE_A), "{text}");
    }
}

async fn an_unknown_row_is_not_found(home: &dyn Home) {
    let outbox = home.open();
    for id in [
        "A1",
        "D1",
        "",
        "A",
        "X1",
        "1",
        "A-1",
        "A1 OR 1=1",
        "A99999999999999999999",
        "é1",
    ] {
        assert_eq!(
            outbox.show(id).await.unwrap_err(),
            OutboxError::NotFound(id.to_owned())
        );
        let commanded = outbox.command(id, Command::Retry, now()).await;
        assert_eq!(commanded.unwrap_err(), OutboxError::NotFound(id.to_owned()));
    }
}

// === SQLite's file ===

/// A state directory.
struct StateDir {
    dir: TempDir,
    settings: Settings,
}

impl StateDir {
    fn new() -> Self {
        Self::with("")
    }

    fn with(config: &str) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            settings: settings(config),
        }
    }

    /// The directory does not exist before the outbox is opened.
    fn path(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn try_open(&self) -> Result<outbox::Opened, OpenError> {
        outbox::open(&self.settings, &self.path())
    }
}

impl Home for StateDir {
    fn open(&self) -> Arc<dyn Outbox> {
        // A process that another test is just starting holds the lock, too, from its fork to its exec.
        let opened = until("the lock to be free", || match self.try_open() {
            Err(OpenError::InUse(_)) => None,
            opened => Some(opened.unwrap()),
        });
        assert_eq!(opened.quarantined, None);
        opened.outbox
    }
}

/// Every file of the state directory.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    entries
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}

fn holds(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|w| w == needle)
}

/// How often SQLite committed since its log began: frames that carry the size of the database (file format, section 4.1).
fn commits(log: &[u8]) -> usize {
    const HEADER: usize = 32;
    const FRAME_HEADER: usize = 24;
    let word = |at: usize| u32::from_be_bytes(log[at..at + 4].try_into().unwrap());
    let frame = FRAME_HEADER + word(8) as usize;
    let salt = &log[16..24];
    let frames = (0..(log.len() - HEADER) / frame).map(|n| HEADER + n * frame);
    let valid = frames.take_while(|at| log[at + 8..at + 16] == *salt);
    valid.filter(|at| word(at + 4) != 0).count()
}

#[tokio::test]
async fn no_file_of_the_state_directory_holds_a_code_in_clear() {
    use base64::Engine;
    let home = StateDir::new();
    let (outbox, at) = (home.open(), now());
    routed(&*outbox, event("alice", CODE_A, at), vec![by("mail")]).await;
    let chatty = Activation {
        description: format!("Token activation code {CODE_A} sent"),
        ..event("bob", CODE_A, at)
    };
    put(&*outbox, chatty).await;
    let first = lease(&*outbox, "mail", at).await;
    outbox.settle(&first, later(at), at).await.unwrap();
    let hex: String = CODE_A.bytes().map(|b| format!("{b:02x}")).collect();
    let reversed: String = CODE_A.chars().rev().collect();
    let mut forms = vec![
        CODE_A.to_owned(),
        CODE_A.to_lowercase(),
        hex.to_uppercase(),
        hex,
        reversed,
    ];
    for skipped in 0..3 {
        // Base64 looks different at each of three offsets.
        forms.push(
            base64::prelude::BASE64_STANDARD_NO_PAD.encode(&CODE_A[skipped..])[..16].to_owned(),
        );
    }
    let search = |when: &str| {
        let files = files(&home.path());
        assert!(
            files.iter().any(|(_, bytes)| holds(bytes, b"BORDER-FGT")),
            "the search reads the right files"
        );
        for (path, bytes) in files {
            for form in &forms {
                assert!(
                    !holds(&bytes, form.as_bytes()),
                    "{} holds {form} {when}",
                    path.display()
                );
            }
        }
    };
    search("while it waits");
    outbox.sweep(at + VALIDITY, 30 * DAY).await.unwrap();
    search("after it was wiped");
    drop(outbox);
    search("after the end");
}

#[tokio::test]
async fn a_wiped_code_is_gone_even_in_its_sealed_form() {
    let home = StateDir::new();
    let (outbox, at) = (home.open(), now());
    put(&*outbox, event("alice", CODE_A, at)).await;
    let db = rusqlite::Connection::open(home.file("outbox.db")).unwrap();
    let sealed: Vec<u8> = db
        .query_row("SELECT sealed FROM activation", [], |row| row.get(0))
        .unwrap();
    drop(db);
    let found = || {
        files(&home.path())
            .iter()
            .any(|(_, bytes)| holds(bytes, &sealed))
    };
    assert!(found());
    outbox.sweep(at + VALIDITY, 30 * DAY).await.unwrap();
    // The log is emptied after the answer; what comes next has that behind it.
    outbox.sweep(at + VALIDITY, 30 * DAY).await.unwrap();
    assert!(!found());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_share_a_commit() {
    let home = StateDir::new();
    let (outbox, at) = (home.open(), now());
    let before = commits(&fs::read(home.file("outbox.db-wal")).unwrap());
    put(&*outbox, event("alice", CODE_A, at)).await;
    put(&*outbox, event("bob", CODE_A, at)).await;
    let one_by_one = commits(&fs::read(home.file("outbox.db-wal")).unwrap()) - before;
    assert_eq!(
        one_by_one, 2,
        "each answer has a commit of its own before it"
    );
    // Few enough that SQLite doesn't begin its log anew meanwhile.
    let all = (0..60).map(|n| {
        let outbox = Arc::clone(&outbox);
        async move {
            outbox
                .put(vec![event(&format!("user{n}"), CODE_A, at)])
                .await
                .unwrap()
        }
    });
    futures_util::future::join_all(all).await;
    let together = commits(&fs::read(home.file("outbox.db-wal")).unwrap()) - before - one_by_one;
    assert!(
        (1..20).contains(&together),
        "{together} commits for 60 activations"
    );
    assert_eq!(outbox.list(Filter::default()).await.unwrap().len(), 62);
}

#[tokio::test]
async fn everything_in_the_state_directory_is_private() {
    let home = StateDir::new();
    let outbox = home.open();
    put(&*outbox, event("alice", CODE_A, now())).await;
    outbox.depth(now()).await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&home.path()), 0o700);
    let mut names = Vec::new();
    for (path, _) in files(&home.path()) {
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        names.push(path.file_name().unwrap().to_str().unwrap().to_owned());
    }
    names.sort();
    assert_eq!(
        names,
        [
            "lock",
            "outbox.db",
            "outbox.db-shm",
            "outbox.db-wal",
            "outbox.key"
        ]
    );
    drop(outbox);
    for name in ["outbox.db", "outbox.key", "lock"] {
        fs::set_permissions(home.file(name), fs::Permissions::from_mode(0o644)).unwrap();
    }
    let _outbox = home.open();
    for (path, _) in files(&home.path()) {
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[tokio::test]
async fn a_second_relay_on_the_same_directory_is_refused_until_the_first_ends() {
    let home = StateDir::new();
    let outbox = home.open();
    let Err(OpenError::InUse(dir)) = home.try_open() else {
        panic!("two at once")
    };
    assert_eq!(dir, home.path());
    assert!(
        home.try_open()
            .err()
            .unwrap()
            .to_string()
            .contains("another ftm-relay")
    );
    drop(outbox);
    home.open();
}

#[tokio::test]
async fn another_key_is_refused_and_changes_nothing() {
    let keys = [outbox::keygen().unwrap(), outbox::keygen().unwrap()];
    let configured = |n: usize| settings(&format!("key = \"{}\"", keys[n].expose()));
    let mut home = StateDir::with(&format!("key = \"{}\"", keys[0].expose()));
    let at = now();
    put(&*home.open(), event("alice", CODE_A, at)).await;
    assert!(!home.file("outbox.key").exists());
    let before = fs::read(home.file("outbox.db")).unwrap();

    home.settings = configured(1);
    let refused = home.try_open().err().unwrap();
    assert!(matches!(refused, OpenError::WrongKey(_)), "{refused}");
    assert!(refused.to_string().contains("another key"), "{refused}");
    home.settings = settings("");
    let refused = home.try_open().err().unwrap();
    assert!(matches!(refused, OpenError::KeyGone(_)), "{refused}");
    assert!(
        !home.file("outbox.key").exists(),
        "no key is made that opens nothing"
    );
    assert_eq!(fs::read(home.file("outbox.db")).unwrap(), before);

    home.settings = configured(0);
    let outbox = home.open();
    let alice = outbox
        .lease_cases(9, after(at, 1), LEASE)
        .await
        .unwrap()
        .items
        .remove(0);
    assert_eq!(alice.activation.code.unwrap().expose(), CODE_A);
}

#[tokio::test]
async fn a_new_key_is_taken_once_no_code_is_good_any_more() {
    let mut home = StateDir::new();
    let outbox = home.open();
    let old = after(now(), -73 * 3600);
    put(&*outbox, event("alice", CODE_A, old)).await;
    drop(outbox);
    home.settings = settings(&format!("key = \"{}\"", outbox::keygen().unwrap().expose()));
    assert!(
        matches!(home.try_open(), Err(OpenError::WrongKey(_))),
        "it is not wiped yet"
    );
    home.settings = settings("");
    home.open().sweep(now(), 30 * DAY).await.unwrap();
    home.settings = settings(&format!("key = \"{}\"", outbox::keygen().unwrap().expose()));
    let outbox = home.open();
    routed(&*outbox, event("bob", CODE_B, now()), vec![by("mail")]).await;
    assert_eq!(code_of(&lease(&*outbox, "mail", now()).await), CODE_B);
}

#[tokio::test]
async fn a_key_file_that_is_no_key_is_refused() {
    let home = StateDir::new();
    drop(home.open());
    fs::write(home.file("outbox.key"), "hunter2\n").unwrap();
    let said = home.try_open().err().unwrap().to_string();
    assert!(
        said.contains("outbox.key holds no outbox key") && !said.contains("hunter2"),
        "{said}"
    );
    assert_eq!(fs::read(home.file("outbox.key")).unwrap(), b"hunter2\n");
}

#[tokio::test]
async fn a_damaged_database_is_put_aside_and_never_replaced_in_silence() {
    let scribble: Damage = |bytes| {
        for (at, byte) in bytes.iter_mut().enumerate().skip(4096) {
            *byte ^= (at % 251) as u8;
        }
    };
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 6] = [
        ("scribbled over", scribble),
        ("no header", |bytes| bytes[..100].fill(0xff)),
        ("half of it", |bytes| bytes.truncate(bytes.len() / 2)),
        ("empty", |bytes| bytes.clear()),
        ("text", |bytes| *bytes = b"no database at all".to_vec()),
        ("zeros", |bytes| bytes.fill(0)),
    ];
    for (what, damage) in damages {
        let home = StateDir::new();
        put(&*home.open(), event("alice", CODE_A, now())).await;
        let mut bytes = fs::read(home.file("outbox.db")).unwrap();
        damage(&mut bytes);
        fs::write(home.file("outbox.db"), &bytes).unwrap();

        assert!(
            outbox::open_without_key(&home.path()).is_err() || what == "scribbled over",
            "{what}"
        );
        let opened = home.try_open().unwrap_or_else(|e| panic!("{what}: {e}"));
        let aside = opened
            .quarantined
            .unwrap_or_else(|| panic!("{what}: it was used as it is"));
        assert!(
            aside.starts_with(home.path())
                && aside.to_str().unwrap().contains("outbox.db.damaged-20"),
            "{aside:?}"
        );
        assert_eq!(
            fs::read(&aside).unwrap(),
            bytes,
            "{what}: what can be read of it is kept"
        );
        assert!(
            opened
                .outbox
                .list(Filter::default())
                .await
                .unwrap()
                .is_empty()
        );
        put(&*opened.outbox, event("alice", CODE_A, now())).await;
        drop(opened.outbox);
        assert_eq!(
            home.open().list(Filter::default()).await.unwrap().len(),
            1,
            "{what}: the new one stays"
        );
    }
}

#[tokio::test]
async fn a_log_whose_database_is_gone_is_not_taken_for_the_log_of_a_new_one() {
    let home = StateDir::new();
    drop(home.open());
    fs::remove_file(home.file("outbox.db")).unwrap();
    fs::write(home.file("outbox.db-wal"), b"accepted codes").unwrap();
    let opened = home.try_open().unwrap();
    let mut log = opened.quarantined.unwrap().into_os_string();
    log.push("-wal");
    assert_eq!(fs::read(log).unwrap(), b"accepted codes");
}

#[tokio::test]
async fn damage_that_appears_while_it_runs_is_said_and_found_at_the_next_start() {
    let home = StateDir::new();
    let (outbox, at) = (home.open(), now());
    for n in 0..50 {
        put(&*outbox, event(&format!("user{n}"), CODE_A, at)).await;
    }
    drop(outbox);
    let outbox = home.open();
    let mut bytes = fs::read(home.file("outbox.db")).unwrap();
    bytes[4096..].fill(0x5a);
    fs::write(home.file("outbox.db"), bytes).unwrap();
    assert!(matches!(
        outbox.list(Filter::default()).await,
        Err(OutboxError::Damaged(_))
    ));
    drop(outbox);
    assert!(home.try_open().unwrap().quarantined.is_some());
}

#[tokio::test]
async fn a_row_that_makes_no_sense_needs_attention_and_keeps_nobody_else_waiting() {
    let (home, at) = (StateDir::new(), now());
    let outbox = home.open();
    let told = put(&*outbox, event("alice", CODE_A, at)).await;
    let sound = put(&*outbox, event("bob", CODE_B, at)).await;
    let spoil = |sql: &str| {
        let db = rusqlite::Connection::open(home.file("outbox.db")).unwrap();
        assert_eq!(db.execute(sql, []).unwrap(), 1);
    };
    spoil("UPDATE activation SET told = 'x' WHERE user = 'alice'");
    let cases = outbox.lease_cases(9, at, LEASE).await.unwrap().items;
    assert_eq!(cases.len(), 1);
    assert_eq!(cases[0].id, sound);
    assert_eq!(
        outbox.show(&told).await.unwrap().row.state,
        State::NeedsAttention
    );

    outbox
        .advance(&cases[0], route("bob", vec![by("mail")]), at)
        .await
        .unwrap();
    routed(&*outbox, event("carol", CODE_A, at), vec![by("mail")]).await;
    spoil("UPDATE activation SET recipient = 'x' WHERE user = 'bob'");
    let leased = outbox.lease_deliveries("mail", 9, at, LEASE).await.unwrap();
    assert_eq!(leased.items.len(), 1);
    let Work::Activation { activation, .. } = &leased.items[0].work else {
        panic!("it is an activation")
    };
    assert_eq!(activation.user, "carol");
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused_untouched() {
    let home = StateDir::new();
    put(&*home.open(), event("alice", CODE_A, now())).await;
    let db = rusqlite::Connection::open(home.file("outbox.db")).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    drop(db);
    let before = fs::read(home.file("outbox.db")).unwrap();
    for refused in [
        home.try_open().err().unwrap(),
        outbox::open_without_key(&home.path()).err().unwrap(),
    ] {
        assert!(
            matches!(refused, OpenError::TooNew { found: 99, .. }),
            "{refused}"
        );
    }
    assert_eq!(fs::read(home.file("outbox.db")).unwrap(), before);
}

/// Made by version 1: alice's code, valid until 2100, waits for its third try by mail.
#[tokio::test]
async fn a_database_of_version_1_is_brought_up_to_date_with_what_waits_in_it() {
    let home = StateDir::with("key = \"ftmkey1_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8\"");
    fs::create_dir(home.path()).unwrap();
    let db = rusqlite::Connection::open(home.file("outbox.db")).unwrap();
    db.execute_batch(include_str!("../data/outbox-1.sql"))
        .unwrap();
    drop(db);
    let outbox = home.open();
    let at = "2099-01-01T00:00:00Z".parse().unwrap();
    let waiting = lease(&*outbox, "mail", at).await;
    assert_eq!(
        (
            waiting.id.as_str(),
            waiting.attempt,
            code_of(&waiting).as_str()
        ),
        ("D1", 3, CODE_A)
    );
    assert_eq!(waiting.message_id, "fc899d6c5113b28e9928e53bb9a050ac");
    let Work::Activation {
        activation,
        recipient,
    } = waiting.work
    else {
        panic!("it is an activation")
    };
    assert_eq!(
        (activation.addresses, recipient),
        (vec!["alice@example.com".to_owned()], Some(person("alice")))
    );
    let told = outbox.show("A1").await.unwrap().history;
    assert!(
        told.iter().any(|e| e.what == "try 2 failed: 451 later"),
        "{told:?}"
    );
}

#[tokio::test]
async fn an_operator_needs_no_key_when_no_service_runs() {
    let mut home = StateDir::new();
    let missing = outbox::open_without_key(&home.path()).err().unwrap();
    assert!(matches!(missing, OpenError::Missing(_)), "{missing}");
    assert!(!home.path().exists(), "looking makes nothing");
    let (outbox, at) = (home.open(), now());
    let id = routed(&*outbox, event("alice", CODE_A, at), vec![by("mail")]).await;
    let first = lease(&*outbox, "mail", at).await;
    outbox
        .settle(&first, later(after(at, 600)), at)
        .await
        .unwrap();
    drop(outbox);
    fs::rename(home.file("outbox.key"), home.dir.path().join("away")).unwrap();

    let queue = outbox::open_without_key(&home.path()).unwrap();
    assert_eq!(queue.list(Filter::default()).await.unwrap().len(), 1);
    assert_eq!(queue.show(&id).await.unwrap().row.user, "alice");
    assert_eq!(
        queue
            .command(&first.id, Command::Retry, at)
            .await
            .unwrap()
            .state,
        State::Pending
    );
    assert!(matches!(
        queue.put(vec![event("bob", CODE_B, at)]).await,
        Err(OutboxError::Sealed(_))
    ));
    assert!(matches!(
        queue.lease_deliveries("mail", 9, at, LEASE).await,
        Err(OutboxError::Sealed(_))
    ));

    // It holds no lock: a service that starts meanwhile is not turned away.
    fs::rename(home.dir.path().join("away"), home.file("outbox.key")).unwrap();
    home.settings = settings("");
    let outbox = home.open();
    assert_eq!(lease(&*outbox, "mail", at).await.attempt, 2);
    assert_eq!(
        queue
            .command(&first.id, Command::Cancel, at)
            .await
            .unwrap()
            .state,
        State::Cancelled
    );
}

#[test]
fn the_settings_say_what_is_wrong_with_them() {
    let wrong = |text: &str| {
        toml::from_str::<outbox::Config>(text)
            .unwrap_err()
            .to_string()
    };
    assert!(wrong("backend = \"oracle\"").contains("sqlite"));
    assert!(wrong("retension = \"30d\"").contains("retention"));
    let config: outbox::Config = toml::from_str("key = \"hunter2hunter2\"").unwrap();
    let mut check = Check::new("/", None, true);
    assert!(config.build(&mut check).is_none());
    let problems: Vec<_> = check
        .findings()
        .into_iter()
        .filter(|f| f.weight == Weight::Problem)
        .collect();
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].text.contains("keygen") && !problems[0].text.contains("hunter2"),
        "{}",
        problems[0].text
    );
    assert_eq!(problems[0].span, Some(6..22));

    // A credential is not seen outside the unit: that is no problem of the configuration, but nothing opens with it.
    let config: outbox::Config = toml::from_str("key = { credential = \"outbox-key\" }").unwrap();
    let mut check = Check::new("/", None, false);
    let unread = config.build(&mut check).unwrap();
    assert!(!check.has_problems());
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        outbox::open(&unread, dir.path()),
        Err(OpenError::KeyUnread)
    ));

    let defaults = settings("");
    assert_eq!(defaults.retention, 30 * DAY);
    assert!(defaults.same_store(&settings("retention = \"1d\"")));
    assert!(!defaults.same_store(&unread));
}

fn settings(config: &str) -> Settings {
    let config: outbox::Config = toml::from_str(config).unwrap();
    let mut check = Check::new("/", None, true);
    let settings = config.build(&mut check).unwrap();
    assert!(!check.has_problems(), "{:?}", check.findings());
    settings
}
