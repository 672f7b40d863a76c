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
