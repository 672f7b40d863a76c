//! What a FortiGate's REST API says, and what is made of it when it says something odd.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use ftm_relay::devices;
use ftm_relay::fortios::ApiError;
use ftm_relay::fortios::Code;
use ftm_relay::fortios::Fleet;
use ftm_relay::fortios::Holder;
use ftm_relay::fortios::Mask;
use ftm_relay::settings::Check;
use ftm_relay::settings::Weight;
use jiff::Timestamp;
use serde::Deserialize;

use crate::support::authority::Authority;
use crate::support::fortigate;
use crate::support::fortigate::Fault;
use crate::support::fortigate::FortiGate;
use crate::support::fortigate::Shown;
use crate::support::samples;
use crate::support::samples::Event;

/// Long after any test.
const LATER: i64 = 4_000_000_000;

/// The fleet of some `[[device]]` tables, and what `check` says about them.
fn build(toml: &str) -> (Option<Arc<Fleet>>, Vec<(Weight, String)>) {
    #[derive(Deserialize)]
    struct File {
        device: Vec<devices::Config>,
    }
    let file: File = toml::from_str(toml).unwrap();
    let mut check = Check::new("/", None, true);
    let fleet = Fleet::build(&file.device, Duration::from_secs(72 * 3600), &mut check);
    assert_eq!(fleet.is_none(), check.has_problems());
    let said = check.findings().into_iter().map(|f| (f.weight, f.text));
    (fleet, said.collect())
}

/// The one device of a fleet.
fn asked(toml: &str) -> Arc<ftm_relay::fortios::FortiGate> {
    let (fleet, said) = build(toml);
    let fleet = fleet.unwrap_or_else(|| panic!("{said:#?}"));
    Arc::clone(fleet.all().next().unwrap())
}

/// A device with alice (token 1) and bob (token 2) in `root`.
async fn with_two_users() -> FortiGate {
    let device = FortiGate::start().await;
    {
        let mut state = device.state();
        for (n, user) in [(1, "alice"), (2, "bob")] {
            state.add_token(n, LATER);
            state.add_user(user, n, &format!("{user}@example.com"));
        }
    }
    device
}

#[tokio::test]
async fn a_users_token_has_its_code_expiry_state_and_addresses() {
    let device = with_two_users().await;
    device
        .state()
        .set_holder("alice", "sms-phone", "+4930123456");
    let found = asked(&device.device())
        .tokens_of("root", "alice")
        .await
        .unwrap();
    let [token] = &found[..] else {
        panic!("{found:?}")
    };
    assert_eq!(token.serial, fortigate::token(1));
    assert_eq!(token.code.clear().unwrap().expose(), samples::code(1));
    assert_eq!(
        token.expires_at,
        Some(Timestamp::from_second(LATER).unwrap())
    );
    assert!(!token.is_activated && !token.is_locked);
    let owner = token.owner.as_ref().unwrap();
    assert_eq!((owner.kind, owner.name.as_str()), (Holder::User, "alice"));
    assert_eq!(owner.email.as_deref(), Some("alice@example.com"));
    assert_eq!(owner.phone.as_deref(), Some("+4930123456"));
}

#[tokio::test]
async fn users_and_administrators_of_one_name_are_both_named() {
    let device = with_two_users().await;
    {
        let mut state = device.state();
        state.add_token(3, LATER);
        state.add_admin("alice", 3, "alice.admin@example.com");
    }
    let asked = asked(&device.device());
    let owners = asked.owners("root", "alice").await.unwrap();
    let kinds: Vec<_> = owners.iter().map(|owner| owner.kind).collect();
    assert_eq!(kinds, [Holder::User, Holder::Administrator]);
    assert_eq!(asked.tokens_of("root", "alice").await.unwrap().len(), 2);
    let token = asked
        .token("root", &fortigate::token(3))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(token.owner.unwrap().kind, Holder::Administrator);
}

#[tokio::test]
async fn without_sysgrp_users_are_found_and_nobody_is_taken_for_absent() {
    let device = with_two_users().await;
    device.state().profile.remove("sysgrp");
    let asked = asked(&device.device());
    assert_eq!(asked.owners("root", "alice").await.unwrap().len(), 1);
    let token = asked.token("root", &fortigate::token(1)).await.unwrap();
    assert_eq!(token.unwrap().owner.unwrap().name, "alice");
    let error = asked.owners("root", "carol").await.unwrap_err();
    assert!(matches!(error, ApiError::Forbidden { .. }));
    assert!(error.to_string().contains("set sysgrp read"), "{error}");
}

#[tokio::test]
async fn a_code_that_is_hidden_is_known_to_be_hidden() {
    let device = with_two_users().await;
    let asked = asked(&device.device());
    for (shown, code) in [
        (Shown::Asterisks, Code::Masked(Mask::Asterisks)),
        (Shown::Encrypted, Code::Masked(Mask::Encrypted)),
        (Shown::Nothing, Code::Absent),
    ] {
        device.state().shown = shown;
        let found = asked.tokens_of("root", "alice").await.unwrap();
        assert_eq!(found[0].code, code);
    }
    device.state().shown = Shown::Clear;
    device
        .state()
        .set_token(1, "activation-code", "see the mail");
    let found = asked.tokens_of("root", "alice").await.unwrap();
    assert_eq!(found[0].code, Code::Masked(Mask::Other));
    // The longer form, made up: 40 bytes that begin with 0x31.
    let long = format!("GE{}", "A".repeat(62));
    device
        .state()
        .set_token(1, "activation-code", long.as_str());
    let found = asked.tokens_of("root", "alice").await.unwrap();
    assert_eq!(found[0].code.clear().unwrap().expose(), long);
}

#[tokio::test]
async fn a_token_that_a_phone_has_is_activated_although_its_code_still_stands_there() {
    let device = with_two_users().await;
    device.state().activate(1);
    device.state().set_token(2, "status", "lock");
    let asked = asked(&device.device());
    let alice = asked.tokens_of("root", "alice").await.unwrap();
    assert!(alice[0].is_activated && alice[0].code.clear().is_some());
    let bob = asked.tokens_of("root", "bob").await.unwrap();
    assert!(bob[0].is_locked && !bob[0].is_activated);
}

#[tokio::test]
async fn the_key_goes_in_the_header_and_never_in_a_url() {
    let device = with_two_users().await;
    let asked = asked(&device.device());
    asked.tokens_of("root", "alice").await.unwrap();
    asked.pending("root").await.unwrap();
    let requests = device.requests();
    assert!(requests.len() > 4);
    for request in requests {
        assert_eq!(request.method, "GET");
        assert_eq!(
            request.header("authorization"),
            format!("Bearer {}", fortigate::KEY)
        );
        assert!(!request.path.contains(fortigate::KEY));
        assert!(!request.path.contains("access_token"));
        assert!(request.path.contains("vdom=root"), "{}", request.path);
    }
}

#[tokio::test]
async fn a_name_is_asked_for_as_it_is_whatever_it_holds() {
    let device = FortiGate::start().await;
    let names = [
        "EXAMPLE\\alice",
        "alice@example.com",
        "a/b",
        "a?vdom=other",
        "a#b",
        "a b+c%20",
        "jörg",
        "a&filter=x",
        "..a",
    ];
    for (n, name) in (1..).zip(names) {
        device.state().add_token(n, LATER);
        device.state().add_user(name, n, "somebody@example.com");
    }
    let asked = asked(&device.device());
    for (n, name) in (1..).zip(names) {
        let found = asked.tokens_of("root", name).await.unwrap();
        assert_eq!(found.len(), 1, "{name}");
        assert_eq!(found[0].serial, fortigate::token(n), "{name}");
    }
    let before = device.requests().len();
    for nobody in ["", ".", ".."] {
        assert_eq!(asked.tokens_of("root", nobody).await, Ok(vec![]));
    }
    assert_eq!(device.requests().len(), before, "such a name is no path");
}

#[tokio::test]
async fn one_vdoms_user_is_not_anothers() {
    let device = FortiGate::start().await;
    {
        let mut state = device.state();
        state.vdoms = vec!["root".to_owned(), "customer-a".to_owned()];
        state.add_token_in("customer-a", 1, &samples::code(1), LATER);
        state.add_user_in("customer-a", "jsmith", 1, "jsmith@example.com");
    }
    let asked = asked(&device.device());
    assert_eq!(asked.tokens_of("root", "jsmith").await, Ok(vec![]));
    assert_eq!(
        asked.tokens_of("customer-a", "jsmith").await.unwrap().len(),
        1
    );
    let error = asked.pending("customer-b").await.unwrap_err().to_string();
    assert!(
        error.contains("424") && error.contains("customer-b"),
        "{error}"
    );
    // An administrator bound to one VDOM is answered for that one.
    device.state().answers_for = Some("customer-a".to_owned());
    let error = asked.tokens_of("root", "jsmith").await.unwrap_err();
    assert!(matches!(error, ApiError::Refused { .. }));
    assert!(
        error.to_string().contains("answered for customer-a"),
        "{error}"
    );
}

#[tokio::test]
async fn every_refusal_says_what_to_do() {
    enum Class {
        Away,
        Refused,
        Forbidden,
        Missing,
        Nonsense,
    }
    use Class::*;
    let elsewhere = with_two_users().await;
    let faults = [
        (Fault::Status(400), Refused, "does not understand"),
        (Fault::Status(401), Refused, "trusted hosts"),
        (Fault::Status(403), Forbidden, "set authgrp read"),
        (Fault::Status(424), Missing, "does VDOM root exist?"),
        (Fault::Blocked(7), Away, "429"),
        (Fault::Status(500), Away, "failed to answer"),
        (Fault::Status(503), Away, "failed to answer"),
        (
            Fault::Redirect(format!("{}/api/v2/cmdb/user/local/alice", elsewhere.url())),
            Refused,
            "redirects are not followed",
        ),
        (Fault::Html, Nonsense, "a web page"),
        (Fault::HalfJson, Nonsense, "half a JSON"),
        (Fault::BreaksOff, Away, "broke off"),
        (Fault::Huge, Nonsense, "more than 2 MiB"),
    ];
    for (fault, class, words) in faults {
        let device = with_two_users().await;
        device.state().fault = Some(fault.clone());
        let error = asked(&device.device())
            .tokens_of("root", "alice")
            .await
            .unwrap_err();
        let is_class = match class {
            Away => matches!(error, ApiError::Away { .. }),
            Refused => matches!(error, ApiError::Refused { .. }),
            Forbidden => matches!(error, ApiError::Forbidden { .. }),
            Missing => matches!(error, ApiError::Missing { .. }),
            Nonsense => matches!(error, ApiError::Nonsense { .. }),
        };
        assert!(is_class, "{fault:?}: {error:?}");
        let text = error.to_string();
        assert!(text.contains(words), "{fault:?}: {text}");
        assert!(!text.contains(fortigate::KEY) && !text.contains(&samples::code(1)));
        if let Fault::Blocked(seconds) = fault {
            let ApiError::Away { after, .. } = error else {
                unreachable!()
            };
            assert_eq!(after, Some(Duration::from_secs(seconds)));
        }
    }
    assert!(elsewhere.requests().is_empty(), "nobody followed");
}

#[tokio::test]
async fn a_device_that_refuses_our_key_is_not_asked_again_and_again() {
    let device = with_two_users().await;
    device.state().is_trusted = false;
    let asked = asked(&device.device());
    let first = asked.tokens_of("root", "alice").await.unwrap_err();
    for _ in 0..20 {
        assert_eq!(asked.tokens_of("root", "bob").await, Err(first.clone()));
    }
    assert_eq!(device.requests().len(), 1, "FortiOS would lock us out");
}

#[tokio::test]
async fn a_log_that_fails_does_not_keep_from_reading_the_other_one_or_anything_else() {
    let device = with_two_users().await;
    {
        let mut state = device.state();
        state.logs = BTreeSet::from(["disk", "memory"]);
        state.failing_log = Some("disk");
        state.log(&Event::code(1, "alice"));
    }
    let asked = asked(&device.device());
    let ids = BTreeSet::from([38412]);
    let events = asked
        .events("root", &ids, Timestamp::UNIX_EPOCH)
        .await
        .unwrap();
    assert_eq!(events.records.len(), 1);
    let missing = events.missing.expect("the disk's log is missing");
    assert!(
        missing.to_string().contains("its event log (disk) (500)"),
        "{missing}"
    );
    assert_eq!(asked.tokens_of("root", "alice").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_log_that_is_still_being_searched_is_not_taken_for_the_whole() {
    let device = FortiGate::start().await;
    device.state().log(&Event::code(1, "alice"));
    device.state().searches = 1000;
    let asked = asked(&device.device());
    let ids = BTreeSet::from([38412]);
    let events = asked
        .events("root", &ids, Timestamp::UNIX_EPOCH)
        .await
        .unwrap();
    let missing = events.missing.expect("more may come").to_string();
    assert!(missing.contains("does not finish searching"), "{missing}");
    // What has been found so far is no reason to go on from there.
    device.state().searches = 2;
    device.state().shows_found_so_far = true;
    let events = asked
        .events("root", &ids, Timestamp::UNIX_EPOCH)
        .await
        .unwrap();
    assert_eq!((events.records.len(), events.missing), (1, None));
}

#[tokio::test]
async fn a_silent_device_is_given_up_in_bounded_time() {
    let device = with_two_users().await;
    device.state().fault = Some(Fault::Silence);
    let asked = asked(&device.device());
    let began = Instant::now();
    let error = asked.tokens_of("root", "alice").await.unwrap_err();
    assert!(
        error.passes() && error.to_string().contains("within 10 s"),
        "{error}"
    );
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn nobody_at_the_address_is_said_so() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let toml =
        format!("[[device]]\nid = \"FGT1\"\napi = \"http://127.0.0.1:{port}\"\ntoken = \"k\"\n");
    let error = asked(&toml).tokens_of("root", "alice").await.unwrap_err();
    assert!(matches!(error, ApiError::Away { .. }));
    assert!(
        error.to_string().contains("no connection to 127.0.0.1"),
        "{error}"
    );
}

#[tokio::test]
async fn another_devices_answer_is_not_believed() {
    let device = with_two_users().await;
    device.state().serial = "FGT60FTK99999999".to_owned();
    let asked_ = asked(&device.device());
    let error = asked_.tokens_of("root", "alice").await.unwrap_err();
    assert!(matches!(error, ApiError::Refused { .. }));
    assert!(error.to_string().contains("is FGT60FTK99999999"), "{error}");
    // The members of a cluster are one device.
    let cluster = device.device().replace(
        "\"FGT60FTK20000001\"",
        "[\"FGT60FTK20000001\", \"FGT60FTK99999999\"]",
    );
    assert_eq!(
        asked(&cluster)
            .tokens_of("root", "alice")
            .await
            .unwrap()
            .len(),
        1
    );
}

/// The fingerprint of a certificate, as `openssl x509 -fingerprint -sha256` prints it.
fn fingerprint(pem: &str) -> String {
    use base64::Engine;
    let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let der = base64::prelude::BASE64_STANDARD.decode(base64).unwrap();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &der);
    let pairs: Vec<String> = digest.as_ref().iter().map(|b| format!("{b:02X}")).collect();
    format!("sha256:{}", pairs.join(":"))
}

#[tokio::test]
async fn a_device_is_trusted_by_its_authority_or_by_its_certificate_and_not_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (own, other) = (
        authority.sign(&["127.0.0.1"]),
        authority.sign(&["127.0.0.1"]),
    );
    // What a FortiGate has out of the box: another name, and nobody's signature.
    let odd = Authority::named("Fortinet").sign(&["FGT60FTK20000001"]);
    let ca = format!("ca_file = \"{}\"\n", authority.write(dir.path()).display());
    let pin = |pem: &str| format!("fingerprint = \"{}\"\n", fingerprint(pem));
    for (identity, trust, error) in [
        (&own, ca.clone(), None),
        (&own, pin(&own.certificate_pem), None),
        (&odd, pin(&odd.certificate_pem), None),
        (
            &other,
            pin(&own.certificate_pem),
            Some("another one than `fingerprint` names"),
        ),
        (&odd, ca, Some("ca_file")),
        (&own, String::new(), Some("ca_file")),
    ] {
        let device = FortiGate::start_tls(identity.acceptor()).await;
        device.state().add_token(1, LATER);
        device.state().add_user("alice", 1, "alice@example.com");
        let answer = asked(&(device.device() + &trust))
            .tokens_of("root", "alice")
            .await;
        match error {
            None => assert_eq!(answer.unwrap().len(), 1, "{trust}"),
            Some(words) => {
                let error = answer.unwrap_err();
                assert!(matches!(error, ApiError::Refused { .. }), "{error:?}");
                assert!(error.to_string().contains(words), "{error}");
                assert!(
                    device.requests().is_empty(),
                    "the key was shown to a stranger"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_ask_the_same_at_the_same_time_share_one_answer() {
    let device = with_two_users().await;
    let asked = asked(&device.device());
    let mut askers = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let asked = Arc::clone(&asked);
        askers.spawn(async move { asked.tokens_of("root", "alice").await.unwrap().len() });
    }
    while let Some(found) = askers.join_next().await {
        assert_eq!(found.unwrap(), 1);
    }
    let requests = device.requests().len();
    assert!(requests < 60, "{requests} requests for 100 askers");
    // Later askers get what is true then.
    device
        .state()
        .set_token(1, "activation-code", samples::code(7));
    let found = asked.tokens_of("root", "alice").await.unwrap();
    assert_eq!(found[0].code.clear().unwrap().expose(), samples::code(7));
}

#[tokio::test]
async fn pending_tokens_are_those_that_no_phone_has_with_who_holds_them() {
    let device = FortiGate::start().await;
    {
        let mut state = device.state();
        for n in 1..=450 {
            state.add_token(n, LATER);
            state.add_user(&format!("user{n}"), n, &format!("user{n}@example.com"));
        }
        for n in 1..=100 {
            state.activate(n);
        }
        // Never provisioned.
        state.set_token(101, "activation-code", "");
        state.set_token(101, "activation-expire", 0);
        // Two objects hold one token: whose it is can't be known.
        state.add_admin("admin", 102, "admin@example.com");
    }
    let pending = asked(&device.device()).pending("root").await.unwrap();
    assert_eq!(pending.len(), 349);
    for token in &pending {
        match &token.owner {
            Some(owner) => assert_eq!(owner.token.as_ref(), Some(&token.serial)),
            None => assert_eq!(token.serial, fortigate::token(102)),
        }
    }
}

#[tokio::test]
async fn a_device_with_a_million_users_costs_bounded_time_and_memory() {
    let device = with_two_users().await;
    {
        let mut state = device.state();
        for n in 10..400 {
            state.add_user(&format!("user{n}"), n, &format!("user{n}@example.com"));
        }
    }
    let asked_ = asked(&device.device());
    assert_eq!(asked_.tokens_of("root", "alice").await.unwrap().len(), 1);
    assert!(
        asked_
            .token("root", &fortigate::token(2))
            .await
            .unwrap()
            .is_some()
    );
    // One that doesn't heed our queries sends everything each time.
    device.state().ignores_queries = true;
    let error = asked_
        .token("root", &fortigate::token(2))
        .await
        .unwrap_err();
    assert!(matches!(error, ApiError::Nonsense { .. }), "{error:?}");
    assert!(device.requests().len() < 120);
}

#[tokio::test]
async fn the_log_gives_the_wanted_events_of_this_device_since_a_time() {
    let device = FortiGate::start().await;
    let now = Timestamp::now();
    {
        let mut state = device.state();
        for n in 0..1_200 {
            state.log(&Event::code(n, "alice").later(-10 * i64::from(n)));
        }
        let mut other = Event::code(9_000, "mallory");
        other.logid = "0100032001".to_owned();
        state.log(&other);
        // A FortiAnalyzer may hold other devices' records.
        let mut record = serde_json::json!({"logid": "0100038412", "devid": "FGT60FTK77777777", "user": "eve", "msg": "x"});
        record["eventtime"] = now.as_second().into();
        state.log_record("root", record);
    }
    let asked = asked(&device.device());
    let ids = BTreeSet::from([38412]);
    let since = now - jiff::SignedDuration::from_secs(7_005);
    let records = asked.events("root", &ids, since).await.unwrap().records;
    assert_eq!(records.len(), 701);
    assert!(records.is_sorted_by_key(|record| record.time));
    let all = asked
        .events("root", &ids, Timestamp::UNIX_EPOCH)
        .await
        .unwrap();
    assert_eq!(all.records.len(), 1_200);
    for record in &all.records {
        let text = std::str::from_utf8(&record.bytes).unwrap();
        let json: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(json["devid"], fortigate::SERIAL);
        assert_eq!(json["vd"], "root");
        assert_eq!(json["user"], "alice");
    }
}

#[tokio::test]
async fn the_log_is_read_from_wherever_the_device_keeps_it() {
    let ids = BTreeSet::from([38412]);
    for (logs, found) in [
        (&["memory"][..], Some(1)),
        (&["disk"], Some(1)),
        (&["disk", "memory"], Some(2)),
        (&["fortianalyzer"], Some(1)),
        (&[], None),
    ] {
        let device = FortiGate::start().await;
        device.state().logs = logs.iter().copied().collect();
        device.state().searches = 2;
        device.state().log(&Event::code(1, "alice"));
        let events = asked(&device.device())
            .events("root", &ids, Timestamp::UNIX_EPOCH)
            .await;
        match found {
            Some(found) => assert_eq!(events.unwrap().records.len(), found, "{logs:?}"),
            None => assert!(matches!(events, Err(ApiError::Refused { .. }))),
        }
    }
    let device = FortiGate::start().await;
    device.state().profile.remove("loggrp");
    let events = asked(&device.device())
        .events("root", &ids, Timestamp::UNIX_EPOCH)
        .await;
    let error = events.err().unwrap().to_string();
    assert!(error.contains("set loggrp read"), "{error}");
}

#[tokio::test]
async fn a_probe_says_what_works_and_which_permission_is_missing() {
    let device = with_two_users().await;
    let asked = asked(&device.device().replace("\"0s\"", "\"5m\""));
    let all_good = asked.probe("root").await;
    assert!(
        all_good.iter().all(|finding| finding.is_good),
        "{all_good:#?}"
    );
    assert!(
        all_good
            .iter()
            .any(|f| f.text == "activation codes can be read")
    );
    device.state().profile = BTreeSet::from(["authgrp"]);
    device.state().shown = Shown::Encrypted;
    let bad: Vec<String> = asked
        .probe("root")
        .await
        .into_iter()
        .filter(|finding| !finding.is_good)
        .map(|finding| finding.text)
        .collect();
    let [codes, admins, log] = &bad[..] else {
        panic!("{bad:#?}")
    };
    assert!(codes.contains("an encrypted value in place of the code"));
    assert!(admins.contains("set sysgrp read"));
    assert!(log.contains("set loggrp read"));
    device.state().is_trusted = false;
    let alone = asked.probe("root").await;
    assert!(
        alone.len() == 1 && alone[0].text.contains("401"),
        "{alone:#?}"
    );
}

#[test]
fn the_keys_of_a_devices_api_are_checked() {
    let device = |keys: &str| format!("[[device]]\nid = \"FGT1\"\n{keys}");
    let fine = "api = \"https://10.20.0.1\"\ntoken = { env = \"PATH\" }\n";
    let (fleet, said) = build(&device(fine));
    assert!(fleet.is_some() && said.is_empty(), "{said:#?}");
    let pin = "0".repeat(64);
    for (keys, weight, words) in [
        (
            "token = \"k\"\n".to_owned(),
            Weight::Problem,
            "`token` needs `api`",
        ),
        (
            "confirm = true\n".to_owned(),
            Weight::Problem,
            "`confirm` needs `api`",
        ),
        (
            "catch_up = \"1m\"\n".to_owned(),
            Weight::Problem,
            "`catch_up` needs `api`",
        ),
        (
            "vdoms = [\"root\"]\n".to_owned(),
            Weight::Problem,
            "`vdoms` needs `api`",
        ),
        (
            "ca_file = \"x\"\n".to_owned(),
            Weight::Problem,
            "`ca_file` needs `api`",
        ),
        (
            "fingerprint = \"x\"\n".to_owned(),
            Weight::Problem,
            "`fingerprint` needs `api`",
        ),
        (
            "api = \"https://10.20.0.1\"\n".to_owned(),
            Weight::Problem,
            "`api` needs `token`",
        ),
        (
            fine.replace("https", "ftp"),
            Weight::Problem,
            "`api` is the https address",
        ),
        (
            fine.replace("//10", "//user:pw@10"),
            Weight::Problem,
            "`api` is the https address",
        ),
        (
            fine.replace(".1\"", ".1/?access_token=x\""),
            Weight::Problem,
            "`api` is the https address",
        ),
        (
            fine.replace("https", "http"),
            Weight::Warning,
            "shows the key and codes",
        ),
        (
            format!("{fine}fingerprint = \"sha256:12\"\n"),
            Weight::Problem,
            "64 hexadecimal digits",
        ),
        (
            format!("{fine}fingerprint = \"sha256:{pin}\"\nca_file = \"x\"\n"),
            Weight::Problem,
            "two ways",
        ),
        (
            format!("{fine}ca_file = \"/nonexistent\"\n"),
            Weight::Problem,
            "can't be read",
        ),
        (
            format!("{fine}catch_up = \"10ms\"\n"),
            Weight::Problem,
            "at least \"1s\"",
        ),
        (
            format!("{fine}vdoms = []\n"),
            Weight::Problem,
            "`vdoms` is a list",
        ),
        (
            fine.replace("{ env = \"PATH\" }", "\"k\""),
            Weight::Warning,
            "a secret stands in the file",
        ),
    ] {
        let (fleet, said) = build(&device(&keys));
        assert_eq!(fleet.is_none(), weight == Weight::Problem, "{keys}");
        assert!(
            said.iter()
                .any(|(w, text)| *w == weight && text.contains(words)),
            "{keys}: {said:#?}"
        );
    }
}
