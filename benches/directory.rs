//! What 100,000 users cost in a table and in a slapd: memory, reading, and the time of one look-up.
//!
//! `cargo bench --bench directory`; without `--bench` (as in `cargo test`) it only shows that it runs.

use std::fmt::Write;
use std::time::Duration;
use std::time::Instant;

use ftm_relay::activation::Activation;
use ftm_relay::activation::Device;
use ftm_relay::activation::Stage;
use ftm_relay::directory::Config;
use ftm_relay::directory::Directories;
use ftm_relay::directory::Lookup;
use ftm_relay::recipients;
use ftm_relay::settings::Check;
use jiff::SignedDuration;
use jiff::Timestamp;
use toml::Spanned;

#[path = "../tests/it/support/authority.rs"]
#[allow(dead_code, clippy::unwrap_used)] // the tests use the rest of these
mod authority;
#[path = "../tests/it/support/slapd.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod slapd;
#[path = "../tests/it/support/until.rs"]
mod until;

use until::until;

use slapd::BIND_DN;
use slapd::Slapd;

fn main() {
    let measure = std::env::args().any(|a| a == "--bench");
    let (users, rounds) = if measure {
        (100_000, 1_000_000)
    } else {
        (1_000, 1_000)
    };
    table(users, rounds);
    ldap(users, rounds / 10);
}

fn table(users: usize, rounds: usize) {
    let dir = tempfile::tempdir().expect("a place for the table");
    let file = dir.path().join("people.csv");
    std::fs::write(&file, csv(users)).expect("the table is written");

    let empty = resident_kib();
    let begin = Instant::now();
    let directories = build(dir.path(), "table", "file = \"people.csv\"");
    let read = begin.elapsed();
    let full = resident_kib();
    println!(
        "{users} users: read in {read:.1?}, {} KiB resident",
        full.saturating_sub(empty)
    );

    let runtime = runtime();
    runtime.block_on(async {
        for (what, offset) in [("known", 0), ("unknown", users)] {
            measure(
                &directories,
                &format!("table, {what}"),
                users,
                offset,
                rounds,
            )
            .await;
        }
        std::fs::write(&file, csv(users)).expect("the table is written again");
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        let before = resident_kib();
        let begin = Instant::now();
        let mut who = event();
        who.person = name(1);
        directories
            .find(&who, None)
            .await
            .expect("a table always answers");
        println!(
            "the look-up that reads the changed file: {:.1?}; {} KiB more resident after it",
            begin.elapsed(),
            resident_kib().saturating_sub(before)
        );
    });
}

/// Over TLS on the loopback interface, each person asked of the server, then each from the cache.
fn ldap(users: usize, rounds: usize) {
    let begin = Instant::now();
    let people: String = (0..users)
        .map(|n| {
            let user = name(n);
            slapd::person(
                &format!("Firstname Lastname {n}"),
                &user,
                &format!("mail: {user}@example.com\ndisplayName: Firstname Lastname {n}\nmobile: +4917012{n:05}\npreferredLanguage: de"),
            )
        })
        .collect();
    let slapd = Slapd::start(&people);
    println!("{users} users: in slapd in {:.1?}", begin.elapsed());
    let config = |cache: &str| {
        format!(
            "url = \"ldaps://localhost:{}\"\nbase = \"dc=example,dc=com\"\nbind_dn = \"{BIND_DN}\"\npassword = {{ file = \"password\" }}\nca_file = \"ca.pem\"\ncache = \"{cache}\"",
            slapd.tls
        )
    };
    runtime().block_on(async {
        let asking = build(slapd.dir.path(), "ldap", &config("0s"));
        measure(&asking, "slapd, warm-up", users, 0, rounds / 10).await;
        measure(&asking, "slapd, known", users, 0, rounds).await;
        measure(&asking, "slapd, unknown", users, users, rounds).await;
        // As many people as the cache holds.
        let few = users.min(10_000);
        let cached = build(slapd.dir.path(), "ldap", &config("1h"));
        measure(&cached, "slapd, first time", few, 0, few).await;
        measure(&cached, "slapd, cached", few, 0, rounds).await;
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Look-ups one after the other; from `offset` on the users are unknown.
async fn measure(
    directories: &Directories,
    what: &str,
    users: usize,
    offset: usize,
    rounds: usize,
) {
    let mut times = Vec::with_capacity(rounds);
    let mut who = event();
    for round in 0..rounds {
        // A step that shares no factor with the number of users, so that all of them are asked for.
        who.person = name(offset + round * 7_919 % users);
        let begin = Instant::now();
        let found = directories
            .find(&who, None)
            .await
            .expect("the directory answers");
        times.push(begin.elapsed());
        assert_eq!(matches!(found, Lookup::Found { .. }), offset == 0);
    }
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!(
        "{what}: p50 {:.2?}, p99 {:.2?}, p99.9 {:.2?}, longest {:.2?}",
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0)
    );
}

fn name(n: usize) -> String {
    format!("firstname.lastname{n}")
}

fn csv(users: usize) -> String {
    let mut csv = "user,email,name,phone,language\n".to_owned();
    for n in 0..users {
        let user = name(n);
        writeln!(
            csv,
            "{user},{user}@example.com,Firstname Lastname {n},+4917012{n:05},de"
        )
        .expect("a string takes it");
    }
    csv
}

fn build(dir: &std::path::Path, kind: &str, config: &str) -> Directories {
    let recipients: recipients::Config =
        toml::from_str("domains = [\"example.com\"]").expect("valid");
    let mut check = Check::new(dir, None, true);
    let recipients = recipients.build(&mut check).expect("valid");
    let from = toml::de::Deserializer::parse(config).expect("valid");
    let config = Config::deserialize(kind, from).expect("valid");
    Directories::build(
        vec![Spanned::new(0..0, config)],
        recipients,
        None,
        &mut check,
    )
    .expect("valid")
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}

fn event() -> Activation {
    Activation {
        event_id: String::new(),
        device: Device {
            id: "FGT-A".to_owned(),
            name: "BRANCH".to_owned(),
            vdom: "root".to_owned(),
        },
        user: String::new(),
        person: String::new(),
        logid: 38412,
        description: String::new(),
        stage: Stage::CodeSent,
        rule: String::new(),
        event_time: Timestamp::UNIX_EPOCH,
        received_at: Timestamp::UNIX_EPOCH,
        expires_at: Timestamp::UNIX_EPOCH,
        validity: Duration::from_secs(3_600),
        skew: SignedDuration::ZERO,
        code: None,
        token: None,
        addresses: Vec::new(),
        origin: Default::default(),
    }
}
