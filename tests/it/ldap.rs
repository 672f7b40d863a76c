//! People in a real slapd that looks like a small Active Directory: found, doubted, remembered, and nobody else.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use std::time::Instant;

use ftm_relay::activation::Activation;
use ftm_relay::directory::Directories;
use ftm_relay::directory::Lookup;
use ftm_relay::directory::LookupError;
use ftm_relay::settings::Weight;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::directory::build;
use crate::directory::built;
use crate::directory::email;
use crate::directory::event;
use crate::support::authority::Authority;
use crate::support::http_sink::HttpSink;
use crate::support::http_sink::reply;
use crate::support::relay::BASE;
use crate::support::relay::Relay;
use crate::support::samples::Event;
use crate::support::samples::code;
use crate::support::slapd::BIND_DN;
use crate::support::slapd::PASSWORD;
use crate::support::slapd::Slapd;
use crate::support::slapd::person;
use crate::support::until;

/// Alice, with everything that an entry may hold.
const ALICE: &str = "mail: alice@example.com
displayName: Alice Example
mobile: +49 170 1234567
preferredLanguage: de-CH, en;q=0.5
objectGUID:: AP+A/gAwgQ==
jpegPhoto:: /9j/4AAQ";

/// An account whose name is made of what filters are made of, as the log shows it.
const ODD: &str = "we*ird)(mail=*\\user";

fn people() -> String {
    [
        person("Alice Example", "Alice", ALICE),
        person("Bob One", "bob", "mail: bob.one@example.com"),
        person("Bob Two", "bob", "mail: bob.two@example.com"),
        person("Odd", ODD, "mail: odd@example.com"),
        person("Without", "without", "displayName: Without"),
        person(
            "Several",
            "several",
            "mail: several@example.com\nmail: s.other@example.org",
        ),
        person(
            "Same",
            "same",
            "mail: same@example.com\nmail: SAME@example.com\nmail: same@elsewhere.test",
        ),
        person("Outside", "outside", "mail: outside@elsewhere.test"),
        person(
            "Nonsense",
            "nonsense",
            "mail: somewhere%elsewhere.test@example.com",
        ),
        person(
            "Gone",
            "gone",
            "mail: gone@example.com\nuserAccountControl: 514",
        ),
    ]
    .concat()
}

/// The account, over ldaps://, with a few keys more.
fn ldaps(slapd: &Slapd, more: &str) -> String {
    table(&format!("ldaps://127.0.0.1:{}", slapd.tls), more)
}

fn table(url: &str, more: &str) -> String {
    format!(
        "[[directory]]\ntype = \"ldap\"\nurl = \"{url}\"\nbase = \"dc=example,dc=com\"\nbind_dn = \"{BIND_DN}\"\npassword = {{ file = \"password\" }}\nca_file = \"ca.pem\"\n{more}\n"
    )
}

fn in_dir(slapd: &Slapd, toml: &str) -> Directories {
    built(toml, slapd.dir.path())
}

async fn unavailable(directories: &Directories, who: &Activation) -> String {
    match directories.find(who, None).await {
        Err(LookupError::Unavailable(why)) => why,
        other => panic!("{other:?}"),
    }
}

async fn ambiguous(directories: &Directories, who: &Activation) -> String {
    match directories.find(who, None).await {
        Err(LookupError::Ambiguous(why)) => why,
        other => panic!("{other:?}"),
    }
}

async fn trace(directories: &Directories, who: &Activation) -> String {
    match directories.find(who, None).await.unwrap() {
        Lookup::Found { trace, .. }
        | Lookup::Unknown { trace, .. }
        | Lookup::Outside { trace, .. } => trace.join("\n"),
    }
}

#[tokio::test]
async fn a_person_is_found_with_all_that_the_entry_says() {
    let slapd = Slapd::start(&people());
    let directories = in_dir(&slapd, &ldaps(&slapd, ""));
    let Lookup::Found {
        recipient, trace, ..
    } = directories.find(&event("alice"), None).await.unwrap()
    else {
        panic!("alice is not found")
    };
    assert_eq!(recipient.email, "alice@example.com");
    assert_eq!(recipient.name.as_deref(), Some("Alice Example"));
    assert_eq!(recipient.phone.as_deref(), Some("+491701234567"));
    assert_eq!(recipient.language.as_deref(), Some("de-CH, en;q=0.5"));
    assert_eq!(recipient.source, "ldap");
    assert_eq!(trace, ["ldap 127.0.0.1: alice is a…@example.com"]);

    let nobody = self::trace(&directories, &event("eve")).await;
    assert_eq!(
        nobody,
        "ldap 127.0.0.1: has no entry for eve below dc=example,dc=com"
    );
}

#[tokio::test]
async fn other_attributes_and_a_filter_with_more_in_it_are_used() {
    let slapd = Slapd::start(&people());
    let more = "filter = '(&(|(sAMAccountName={user})(mail={user}@*))(!(userAccountControl:1.2.840.113556.1.4.803:=2)))'\nattributes = { email = \"mail\", name = \"cn\", phone = \"\", language = \"\" }";
    let directories = in_dir(&slapd, &ldaps(&slapd, more));
    let Lookup::Found { recipient, .. } = directories.find(&event("alice"), None).await.unwrap()
    else {
        panic!("alice is not found")
    };
    assert_eq!(recipient.name.as_deref(), Some("Alice Example"));
    assert_eq!((recipient.phone, recipient.language), (None, None));
    let one = email(&directories, &event("bob.one")).await;
    assert_eq!(one.as_deref(), Some("bob.one@example.com"));
    assert_eq!(
        email(&directories, &event("gone")).await,
        None,
        "a disabled account"
    );
}

#[tokio::test]
async fn a_name_full_of_filter_characters_finds_its_own_entry_alone() {
    let slapd = Slapd::start(&people());
    let directories = in_dir(&slapd, &ldaps(&slapd, ""));
    let odd = email(&directories, &event(ODD)).await;
    assert_eq!(odd.as_deref(), Some("odd@example.com"));
    for name in [
        "*",
        "ali*",
        "alice)(objectClass=*",
        "*)(mail=alice@example.com",
        "alice\0",
        "al\\69ce",
        "(|(sAMAccountName=alice))",
        "\u{202e}alice",
        "alice\n",
        "",
    ] {
        assert_eq!(email(&directories, &event(name)).await, None, "{name:?}");
    }
    assert_eq!(email(&directories, &event(&"x".repeat(70_000))).await, None);
}

#[tokio::test]
async fn doubt_is_an_error_and_never_a_choice() {
    let slapd = Slapd::start(&people());
    let directories = in_dir(&slapd, &ldaps(&slapd, ""));
    let two = ambiguous(&directories, &event("bob")).await;
    assert_eq!(
        two,
        "ldap 127.0.0.1: more than one entry below dc=example,dc=com matches bob; narrow `filter` or `base`"
    );
    let addresses = ambiguous(&directories, &event("several")).await;
    assert!(
        addresses.contains("two addresses in `mail`, s…@example."),
        "{addresses}"
    );
    // The doubt is remembered as doubt.
    assert_eq!(ambiguous(&directories, &event("bob")).await, two);
    let same = email(&directories, &event("same")).await.unwrap();
    assert!(same.eq_ignore_ascii_case("same@example.com"), "{same}");
}

#[tokio::test]
async fn an_entry_without_a_usable_address_says_so() {
    let slapd = Slapd::start(&people());
    let directories = in_dir(&slapd, &ldaps(&slapd, ""));
    for (user, why) in [
        ("without", "has an entry for this user, but without `mail`"),
        ("nonsense", "its `mail` is no address"),
    ] {
        let said = trace(&directories, &event(user)).await;
        assert!(said.contains(why), "{user}: {said}");
    }
    let outside = directories.find(&event("outside"), None).await.unwrap();
    assert!(matches!(outside, Lookup::Outside { .. }), "{outside:?}");
}

#[tokio::test]
async fn starttls_and_a_client_certificate_work() {
    let slapd = Slapd::start(&people());
    let plain = format!("ldap://localhost:{}", slapd.plain);
    let starttls = in_dir(&slapd, &table(&plain, "starttls = true"));
    let alice = email(&starttls, &event("alice")).await;
    assert_eq!(alice.as_deref(), Some("alice@example.com"));
    assert_eq!(slapd.count("STARTTLS"), 1);

    for url in [plain, format!("ldaps://localhost:{}", slapd.tls)] {
        let toml = format!(
            "[[directory]]\ntype = \"ldap\"\nurl = \"{url}\"\nstarttls = {}\nbase = \"dc=example,dc=com\"\nsasl = \"external\"\ncert = \"client.pem\"\nkey = {{ file = \"client.key\" }}\nca_file = \"ca.pem\"\n",
            url.starts_with("ldap:")
        );
        let external = in_dir(&slapd, &toml);
        let alice = email(&external, &event("alice")).await;
        assert_eq!(alice.as_deref(), Some("alice@example.com"), "{url}");
    }
    assert_eq!(slapd.count("mech=EXTERNAL"), 2);
}

#[tokio::test]
async fn an_answer_is_used_again_and_a_bad_one_not_for_long() {
    let slapd = Slapd::start(&people());
    let directories = in_dir(&slapd, &ldaps(&slapd, "cache = \"1s\""));
    for _ in 0..3 {
        assert!(email(&directories, &event("alice")).await.is_some());
        assert_eq!(email(&directories, &event("eve")).await, None);
    }
    assert_eq!(slapd.searches(), 2);
    assert_eq!(
        slapd.count(" ACCEPT "),
        1 + 2,
        "one connection, and two to see it listen"
    );
    // Another device's or VDOM's user of that name is another one.
    for (device, vdom) in [("FGT-B", "root"), ("FGT-A", "guests")] {
        let mut who = event("alice");
        (who.device.id, who.device.vdom) = (device.to_owned(), vdom.to_owned());
        assert!(email(&directories, &who).await.is_some());
    }
    assert_eq!(slapd.searches(), 4);
    let end = Instant::now() + Duration::from_secs(20);
    while slapd.searches() == 4 {
        assert!(Instant::now() < end, "the answer is never asked for again");
        email(&directories, &event("alice")).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn the_last_good_answer_stands_in_while_the_directory_is_away() {
    let mut slapd = Slapd::start(&people());
    let directories = in_dir(&slapd, &ldaps(&slapd, "cache = \"0s\""));
    let alice = Some("alice@example.com".to_owned());
    assert_eq!(email(&directories, &event("alice")).await, alice);
    slapd.stop();
    assert_eq!(email(&directories, &event("alice")).await, alice);
    let said = trace(&directories, &event("alice")).await;
    assert!(
        said.contains("alice is a…@example.com (its answer of "),
        "{said}"
    );
    assert!(said.contains("can't be reached"), "{said}");
    let other = unavailable(&directories, &event("same")).await;
    assert!(
        other.starts_with("ldap 127.0.0.1: ldaps://127.0.0.1:"),
        "{other}"
    );
    assert!(other.contains("can't be reached"), "{other}");

    slapd.run();
    let end = Instant::now() + Duration::from_secs(20);
    while directories.find(&event("same"), None).await.is_err() {
        assert!(Instant::now() < end, "it is never asked again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let said = trace(&directories, &event("alice")).await;
    assert_eq!(said, "ldap 127.0.0.1: alice is a…@example.com");
}

#[tokio::test]
async fn a_connection_that_broke_is_made_again_at_once() {
    let mut slapd = Slapd::start(&people());
    let directories = in_dir(&slapd, &ldaps(&slapd, "cache = \"0s\""));
    assert!(email(&directories, &event("alice")).await.is_some());
    slapd.stop();
    slapd.run();
    assert_eq!(
        trace(&directories, &event("alice")).await,
        "ldap 127.0.0.1: alice is a…@example.com"
    );
}

#[tokio::test]
async fn the_next_server_answers_for_one_that_is_away() {
    let slapd = Slapd::start(&people());
    // Nobody listens on the port of a listener that is no more.
    let gone = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let toml = ldaps(&slapd, "").replace("url = \"", &format!("url = [\"ldaps://{gone}\", \""));
    let toml = toml.replace(
        &format!("{}\"\nbase", slapd.tls),
        &format!("{}\"]\nbase", slapd.tls),
    );
    let directories = in_dir(&slapd, &toml);
    assert!(email(&directories, &event("alice")).await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_servers_leave_time_for_the_one_that_answers() {
    let slapd = Slapd::start(&people());
    let mut dead = String::new();
    for _ in 0..3 {
        let silent = impostor(|_| Vec::new()).await;
        write!(dead, "\"ldaps://127.0.0.1:{silent}\", ").unwrap();
    }
    // Each may be waited for so long that all three together would take the whole time of a look-up.
    let toml =
        ldaps(&slapd, "timeout = \"15s\"\n").replace("url = \"", &format!("url = [{dead}\""));
    let toml = toml.replace(
        &format!("{}\"\nbase", slapd.tls),
        &format!("{}\"]\nbase", slapd.tls),
    );
    let directories = in_dir(&slapd, &toml);
    assert!(email(&directories, &event("alice")).await.is_some());
}

#[tokio::test]
async fn references_to_other_servers_are_not_followed() {
    let trap = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let elsewhere = trap.local_addr().unwrap();
    let called = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&called);
    let _trap = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
        while trap.accept().await.is_ok() {
            count.fetch_add(1, SeqCst);
        }
    }));
    let reference = format!(
        "dn: ou=elsewhere,dc=example,dc=com\nobjectClass: referral\nobjectClass: extensibleObject\nou: elsewhere\nref: ldap://{elsewhere}/ou=elsewhere,dc=example,dc=com\n\n"
    );
    let slapd = Slapd::start(&(people() + &reference));
    let directories = in_dir(&slapd, &ldaps(&slapd, ""));
    assert!(email(&directories, &event("alice")).await.is_some());

    let toml = ldaps(&slapd, "").replace(
        "\"dc=example,dc=com\"",
        "\"ou=elsewhere,dc=example,dc=com\"",
    );
    let directories = in_dir(&slapd, &toml);
    let why = unavailable(&directories, &event("alice")).await;
    assert!(why.contains("referrals are not followed"), "{why}");
    assert_eq!(called.load(SeqCst), 0);
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_named() {
    let other = Slapd::start_as(&["ldap.elsewhere.test"], &people());
    let directories = in_dir(&other, &ldaps(&other, ""));
    let why = unavailable(&directories, &event("alice")).await;
    assert!(
        why.contains("the certificate of 127.0.0.1 is made out to ldap.elsewhere.test"),
        "{why}"
    );
    std::fs::write(
        other.path("ca.pem"),
        std::fs::read(Slapd::start("").path("ca.pem")).unwrap(),
    )
    .unwrap();
    for toml in [
        ldaps(&other, ""),
        table(
            &format!("ldap://127.0.0.1:{}", other.plain),
            "starttls = true",
        ),
    ] {
        let why = unavailable(&in_dir(&other, &toml), &event("alice")).await;
        assert!(
            why.contains("signed by an authority that is not trusted here"),
            "{why}"
        );
    }
    assert_eq!(
        other.count(" BIND "),
        0,
        "no password leaves before the certificate is good"
    );
}

#[tokio::test]
async fn a_refused_account_is_told_plainly_and_not_tried_until_it_is_locked() {
    let slapd = Slapd::start(&people());
    std::fs::write(slapd.path("password"), "wrong horse").unwrap();
    let directories = in_dir(&slapd, &ldaps(&slapd, ""));
    for _ in 0..5 {
        let why = unavailable(&directories, &event("alice")).await;
        assert!(why.contains("it refuses `bind_dn` or `password`"), "{why}");
        assert!(why.contains("so that the account isn't locked"), "{why}");
        assert!(!why.contains("horse"), "{why}");
    }
    assert_eq!(slapd.count(" BIND dn=\"cn=ftm-relay"), 1);
    let probes = directories.probe().await;
    let said = probes[0].outcome.as_ref().unwrap_err();
    assert!(
        said.contains("it refuses `bind_dn` or `password`"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn many_look_ups_at_once_try_a_refused_account_once() {
    let slapd = Slapd::start(&people());
    std::fs::write(slapd.path("password"), "wrong horse").unwrap();
    let directories = Arc::new(in_dir(&slapd, &ldaps(&slapd, "")));
    let mut look_ups = tokio::task::JoinSet::new();
    for n in 0..16 {
        let directories = Arc::clone(&directories);
        look_ups.spawn(async move { unavailable(&directories, &event(&format!("user{n}"))).await });
    }
    for why in look_ups.join_all().await {
        assert!(why.contains("it refuses `bind_dn` or `password`"), "{why}");
    }
    assert_eq!(slapd.count(" BIND dn=\"cn=ftm-relay"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_look_ups_at_once_share_a_few_connections() {
    let slapd = Slapd::start(&people());
    let directories = Arc::new(in_dir(&slapd, &ldaps(&slapd, "")));
    let mut look_ups = tokio::task::JoinSet::new();
    for n in 0..200 {
        let directories = Arc::clone(&directories);
        look_ups.spawn(async move {
            let who = ["alice", "same", ODD][n % 3];
            email(&directories, &event(who)).await.is_some()
        });
    }
    assert!(look_ups.join_all().await.into_iter().all(|found| found));
    let connections = slapd.count(" BIND dn=\"cn=ftm-relay,ou=services,dc=example,dc=com\" method");
    assert!((1..=4).contains(&connections), "{connections} connections");
    assert!(slapd.searches() <= 3 * 4, "{} searches", slapd.searches());
}

#[tokio::test]
async fn a_probe_says_what_works_and_what_does_not() {
    let slapd = Slapd::start(&people());
    let probes = in_dir(&slapd, &ldaps(&slapd, "")).probe().await;
    assert_eq!(probes.len(), 1);
    assert_eq!(probes[0].what, format!("ldaps://127.0.0.1:{}", slapd.tls));
    assert_eq!(
        probes[0].outcome,
        Ok(format!("bound as {BIND_DN}; dc=example,dc=com can be read"))
    );
    for (base, why) in [
        (
            "ou=nowhere,dc=example,dc=com",
            "`base` does not exist there",
        ),
        ("example.com", "no distinguished name"),
    ] {
        let toml = ldaps(&slapd, "").replace(
            "base = \"dc=example,dc=com\"",
            &format!("base = \"{base}\""),
        );
        let probes = in_dir(&slapd, &toml).probe().await;
        let said = probes[0].outcome.as_ref().unwrap_err();
        assert!(said.contains(why), "{said}");
    }
    let anonymous = format!(
        "[[directory]]\ntype = \"ldap\"\nurl = \"ldaps://localhost:{}\"\nbase = \"dc=example,dc=com\"\nca_file = \"ca.pem\"\n",
        slapd.tls
    );
    let probes = in_dir(&slapd, &anonymous).probe().await;
    assert!(probes[0].outcome.is_err(), "{probes:?}");
}

/// A server that answers whatever it is sent as this function says.
async fn impostor(answer: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = Arc::clone(&answer);
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&answer(&buffer[..n])).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    port
}

/// An anonymous directory on a plain port.
fn anonymous(port: u16) -> Directories {
    let toml = format!(
        "[[directory]]\ntype = \"ldap\"\nurl = \"ldap://127.0.0.1:{port}\"\nbase = \"dc=example,dc=com\"\ntimeout = \"300ms\"\n"
    );
    built(&toml, Path::new("/nonexistent"))
}

#[tokio::test]
async fn whatever_a_server_says_ends_in_time_and_memory() {
    let nested = |depth: usize| [vec![0x30, 0x84, 0, 3, 0, 0], vec![0x30; depth]].concat();
    // A search entry to message 1, for ever.
    let entry: Vec<u8> =
        [&[0x30, 0x0c, 2, 1, 1, 0x64, 7, 4, 1, b'x', 0x30, 2, 0x30, 0][..]].concat();
    let reference: Vec<u8> = vec![0x30, 7, 2, 1, 1, 0x73, 2, 4, 0];
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("silence", vec![], "took longer than 300ms"),
        (
            "HTTP",
            b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
            "doesn't speak LDAP",
        ),
        (
            "a length without end",
            vec![0x30, 0x80],
            "doesn't speak LDAP",
        ),
        (
            "four gigabytes",
            vec![0x30, 0x84, 255, 255, 255, 255],
            "more than 256 KiB",
        ),
        ("a deep nest", nested(300_000), "doesn't speak LDAP"),
        (
            "an unknown operation",
            vec![0x30, 5, 2, 1, 1, 0x7e, 0],
            "doesn't speak LDAP",
        ),
        (
            "half a message",
            vec![0x30, 5, 2, 1],
            "took longer than 300ms",
        ),
        (
            "somebody else's answer",
            vec![0x30, 5, 2, 1, 9, 0x65, 0],
            "doesn't speak LDAP",
        ),
        ("a broken entry", entry, "doesn't speak LDAP"),
        (
            "a result without a code",
            vec![0x30, 5, 2, 1, 1, 0x65, 0],
            "doesn't speak LDAP",
        ),
        (
            "references without end",
            reference.repeat(100),
            "more than 64 messages",
        ),
        (
            "a notice of disconnection",
            vec![0x30, 12, 2, 1, 0, 0x78, 7, 10, 1, 52, 4, 0, 4, 0],
            "ends the connection",
        ),
    ];
    for (what, answer, expected) in cases {
        let port = impostor(move |_| answer.clone()).await;
        let why = unavailable(&anonymous(port), &event("alice")).await;
        assert!(why.contains(expected), "{what}: {why}");
    }
}

#[tokio::test]
async fn what_is_said_before_tls_does_not_count_as_said_under_it() {
    let agreed = vec![0x30, 12, 2, 1, 1, 0x78, 7, 10, 1, 0, 4, 0, 4, 0];
    let smuggled = [
        agreed,
        vec![0x30, 12, 2, 1, 2, 0x61, 7, 10, 1, 0, 4, 0, 4, 0],
    ]
    .concat();
    let port = impostor(move |_| smuggled.clone()).await;
    let slapd = Slapd::start("");
    let toml = table(&format!("ldap://127.0.0.1:{port}"), "starttls = true");
    let why = unavailable(&in_dir(&slapd, &toml), &event("alice")).await;
    assert!(why.contains("between StartTLS and TLS"), "{why}");

    let refusal = vec![0x30, 12, 2, 1, 1, 0x78, 7, 10, 1, 52, 4, 0, 4, 0];
    let port = impostor(move |_| refusal.clone()).await;
    let toml = table(&format!("ldap://127.0.0.1:{port}"), "starttls = true");
    let why = unavailable(&in_dir(&slapd, &toml), &event("alice")).await;
    assert!(why.contains("it refuses StartTLS"), "{why}");
}

#[test]
fn what_cannot_be_meant_is_said_where_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("password"), PASSWORD).unwrap();
    let good = "url = \"ldaps://dc1.example.com\"\nbase = \"dc=example,dc=com\"";
    for (keys, at, what) in [
        (
            "url = \"https://dc1\"\nbase = \"\"",
            "https://dc1",
            "this is no LDAP URL",
        ),
        (
            "url = \"ldaps://\"\nbase = \"\"",
            "ldaps://",
            "this is no LDAP URL",
        ),
        ("url = []\nbase = \"\"", "[]", "names one to 8 servers"),
        (
            "url = [\"ldaps://a\", \"dc2\"]\nbase = \"\"",
            "\"dc2\"",
            "this is no LDAP URL",
        ),
        (
            "url = \"ldaps://a/dc=example\"\nbase = \"\"",
            "ldaps",
            "ends after host and port",
        ),
        (
            "url = \"ldaps://me:hunter2@a\"\nbase = \"\"",
            "ldaps",
            "no place in `url`",
        ),
        (
            "url = \"ldaps://a\"\nstarttls = true\nbase = \"\"",
            "ldaps",
            "take starttls out",
        ),
        ("filter = \"(uid=alice)\"", "(uid=alice)", "holds no {user}"),
        (
            "filter = \"(uid={user}{device})\"",
            "{device}",
            "another placeholder than {user}",
        ),
        (
            "filter = \"(uid={user}\"",
            "\"",
            "needs \")\" where it ends",
        ),
        (
            "filter = \"(uid={user}))\"",
            ")\"",
            "goes on after its last parenthesis",
        ),
        (
            "filter = \"uid={user}\"",
            "uid={user}",
            "needs \"(\" where \"u\" stands",
        ),
        (
            "filter = \"(&(uid={user})(=x))\"",
            "=x))",
            "needs the name of an attribute",
        ),
        (
            "filter = \"({user}=x)\"",
            "{user}=x",
            "needs the name of an attribute",
        ),
        ("filter = \"(uid={user}*)\"", "{user}*", "a * beside {user}"),
        (
            "filter = \"(uid>={user})\"",
            "{user})",
            "otherwise than by =",
        ),
        (
            "filter = '(uid={user}\\2)'",
            "\\2)",
            "two hexadecimal digits",
        ),
        ("bind_dn = \"cn=x\"", "\"cn=x\"", "needs a `password`"),
        (
            "password = { file = \"password\" }",
            "{ file",
            "needs a `bind_dn`",
        ),
        (
            "bind_dn = \" \"\npassword = { file = \"password\" }",
            "\" \"",
            "`bind_dn` is empty",
        ),
        (
            "bind_dn = \"cn=x\"\npassword = \"\"",
            "\"\"",
            "`password` is empty",
        ),
        (
            "sasl = \"external\"",
            "\"external\"",
            "needs `cert` and `key`",
        ),
        ("timeout = \"1m\"", "\"1m\"", "at most 15s"),
        (
            "attributes = { email = \"\" }",
            "\"\"",
            "without an attribute for `email`",
        ),
        (
            "attributes = { email = \"ma il\" }",
            "\"ma il\"",
            "is no name of an attribute",
        ),
    ] {
        let keys = match keys.starts_with("url") {
            true => keys.to_owned(),
            false => format!("{good}\n{keys}"),
        };
        let (_, said) = build(
            &format!("[[directory]]\ntype = \"ldap\"\n{keys}\n"),
            dir.path(),
        );
        said.says(Weight::Problem, at, what);
        let all = format!("{:?}", said.of(Weight::Problem));
        assert!(!all.contains("hunter2"), "{all}");
    }
    for (url, warned) in [
        ("ldap://dc1.example.com", true),
        ("ldap://127.0.0.1:10389", false),
        ("ldap://[::1]", false),
        ("ldap://localhost", false),
    ] {
        let toml = format!("[[directory]]\ntype = \"ldap\"\nurl = \"{url}\"\nbase = \"\"\n");
        let (_, said) = build(&toml, dir.path());
        assert_eq!(said.of(Weight::Problem), Vec::<&str>::new());
        assert_eq!(said.of(Weight::Warning).len(), usize::from(warned), "{url}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_slow_directory_holds_up_nobody_elses_code() {
    let silent = impostor(|_| Vec::new()).await;
    let sink = HttpSink::start(|_| reply(204, "")).await;
    let relay = Relay::start(&format!(
        r#"
state_dir = "state"
[http]
listen = "127.0.0.1:0"
[[listen]]
transport = "udp"
address = "127.0.0.1:0"
[recipients]
domains = ["example.com"]
[[directory]]
type = "ldap"
url = "ldap://127.0.0.1:{silent}"
base = "dc=example,dc=com"
timeout = "15s"
match = {{ device = "SLOW-*" }}
[[directory]]
type = "pattern"
email = "{{user}}@example.com"
[channel.hook]
type = "webhook"
url = "{}"
[[route]]
to = ["hook"]
"#,
        sink.url("/")
    ));
    let slow = Event {
        devid: "SLOW-1".to_owned(),
        devname: "SLOW-1".to_owned(),
        ..Event::code(1, "alice")
    };
    let begin = Instant::now();
    relay.send_udp(&slow.line());
    until("the slow look-up to be under way", || {
        (relay.states() == ["received"]).then_some(())
    });
    relay.send_udp(&Event::code(2, "bob").line());
    until("bob's code", || {
        let sent = sink.requests();
        sent.iter()
            .any(|r| r.json()["data"]["code"] == code(2))
            .then_some(())
    });
    assert!(
        begin.elapsed() < Duration::from_secs(15),
        "alice's look-up ended first"
    );
    assert_eq!(sink.requests().len(), 1);
}

/// A relay whose people are in this slapd, and whose mails are files.
fn relay(slapd: &Slapd) -> String {
    format!(
        r#"
state_dir = "state"
[http]
listen = "127.0.0.1:0"
[[listen]]
transport = "udp"
address = "127.0.0.1:0"
[recipients]
domains = ["example.com"]
[[directory]]
type = "ldap"
url = "ldaps://localhost:{}"
base = "dc=example,dc=com"
bind_dn = "{BIND_DN}"
password = {{ file = "{}" }}
ca_file = "{}"
[channel.mail]
type = "file"
path = "mail"
[[route]]
to = ["mail"]
"#,
        slapd.tls,
        slapd.path("password").display(),
        slapd.path("ca.pem").display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_waits_for_its_directory_and_then_reaches_its_person() {
    let mut slapd = Slapd::start(&people());
    slapd.stop();
    let relay = Relay::start(&relay(&slapd));
    relay.send_udp(&Event::code(1, "EXAMPLE\\\\Alice").line());
    let id = until("the reason why it waits", || {
        let row = relay.queue().into_iter().next()?;
        let why = row["last_error"].as_str()?;
        assert!(why.contains("can't be reached"), "{why}");
        assert_eq!(row["state"], "received");
        Some(row["id"].as_str()?.to_owned())
    });
    slapd.run();
    until("the mail", || {
        relay.cli(&["queue", "retry", &id]);
        (relay.states() == ["accepted"]).then_some(())
    });
    let mails = Relay::files(&relay.dir.path().join("mail"));
    assert_eq!(mails.len(), 1);
    let mail = String::from_utf8_lossy(&mails[0].1).into_owned();
    assert!(
        mail.contains("To: \"Alice Example\" <alice@example.com>"),
        "{mail}"
    );
    let log = relay.logged();
    assert!(!log.contains(PASSWORD) && !log.contains(&code(1)), "{log}");
}

#[test]
fn explain_looks_a_person_up_and_says_why_it_cannot() {
    let slapd = Slapd::start(&people());
    let config = relay(&slapd);
    let prepared = Relay::prepare(&config);
    let line = Event::code(1, "alice").line();
    let said = prepared.explain(&line, &[]);
    assert_eq!(said["verdict"], "relay", "{said}");
    assert_eq!(said["recipient"]["email"], "alice@example.com");
    assert_eq!(said["recipient"]["source"], "ldap");

    let file = format!("{{ file = \"{}\" }}", slapd.path("password").display());
    prepared.configure(&config.replace(&file, "{ credential = \"ldap\" }"));
    let said = prepared.explain(&line, &[]);
    assert_ne!(said["verdict"], "relay", "{said}");
    let reason = said["reason"].as_str().unwrap();
    assert!(
        reason.contains("its password can't be read here"),
        "{reason}"
    );
}

#[test]
fn the_pages_examples_are_good() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ldap.md");
    let page = std::fs::read_to_string(page).unwrap();
    let examples: Vec<&str> = page
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .filter(|block| block.contains("[[directory]]"))
        .collect();
    assert_eq!(examples.len(), 2);
    for example in examples {
        let relay = Relay::prepare(&format!("{BASE}{example}"));
        let tls = relay.dir.path().join("tls");
        std::fs::create_dir(&tls).unwrap();
        let ca = Authority::new().write(&tls);
        std::fs::rename(ca, tls.join("internal-ca.pem")).unwrap();
        let said = String::from_utf8(relay.cli(&["check"]).stdout).unwrap();
        assert!(said.contains("the credential ldap can't be seen"), "{said}");
        assert!(!said.contains(": problem: "), "{said}");
        assert!(!said.contains("ldap://"), "{said}");
    }
}
