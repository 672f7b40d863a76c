//! Who the person is: tables, patterns, the log; and by which route.

use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use ftm_relay::activation::Activation;
use ftm_relay::activation::Device;
use ftm_relay::activation::Stage;
use ftm_relay::directory;
use ftm_relay::directory::Directories;
use ftm_relay::directory::Lookup;
use ftm_relay::directory::LookupError;
use ftm_relay::recipients;
use ftm_relay::recipients::Recipients;
use ftm_relay::routing;
use ftm_relay::routing::ChannelFacts;
use ftm_relay::routing::Routes;
use ftm_relay::settings::Check;
use ftm_relay::settings::Finding;
use ftm_relay::settings::Weight;
use jiff::SignedDuration;
use jiff::Timestamp;
use serde::Deserialize;
use toml::Spanned;

/// What `check` says about a configuration.
pub struct Said {
    text: String,
    findings: Vec<Finding>,
}

impl Said {
    pub fn of(&self, weight: Weight) -> Vec<&str> {
        self.findings
            .iter()
            .filter(|f| f.weight == weight)
            .map(|f| f.text.as_str())
            .collect()
    }

    /// There is one such finding, its place holds `at` and its text `what`.
    #[track_caller]
    pub fn says(&self, weight: Weight, at: &str, what: &str) {
        let found = self.findings.iter().any(|f| {
            let place = f.span.clone().map_or("", |s| &self.text[s]);
            f.weight == weight && f.text.contains(what) && place.contains(at)
        });
        assert!(found, "{what:?} at {at:?} in {:#?}", self.findings);
    }
}

fn recipients(toml: &str) -> Recipients {
    let config: recipients::Config = toml::from_str(toml).unwrap();
    let mut check = Check::new(".", None, true);
    config.build(&mut check).unwrap()
}

/// Reads `[[directory]]` tables as the configuration does: the key `type` first, then the struct of that kind.
pub fn build(toml: &str, dir: &Path) -> (Option<Directories>, Said) {
    let mut check = Check::new(dir, None, true);
    let mut root = toml::de::DeTable::parse(toml).unwrap().into_inner();
    let toml::de::DeValue::Array(tables) = root.remove("directory").unwrap().into_inner() else {
        panic!("[[directory]] is an array")
    };
    let configs = tables
        .into_iter()
        .map(|mut table| {
            let span = table.span();
            let toml::de::DeValue::Table(fields) = table.get_mut() else {
                panic!("a [[directory]] is a table")
            };
            let kind = fields.remove("type").unwrap().into_inner();
            let from = toml::de::ValueDeserializer::from(table);
            let config = directory::Config::deserialize(kind.as_str().unwrap(), from).unwrap();
            Spanned::new(span, config)
        })
        .collect();
    let people = recipients("domains = [\"example.com\", \"example.org\"]");
    let directories = Directories::build(configs, people, None, &mut check);
    assert_eq!(directories.is_none(), check.has_problems());
    let said = Said {
        text: toml.to_owned(),
        findings: check.findings(),
    };
    (directories, said)
}

pub fn built(toml: &str, dir: &Path) -> Directories {
    let (directories, said) = build(toml, dir);
    directories.unwrap_or_else(|| panic!("{:#?}", said.findings))
}

fn nowhere() -> &'static Path {
    Path::new("/nonexistent")
}

/// The event of a user on FGT-A, VDOM root, whose name is normalised already.
pub fn event(person: &str) -> Activation {
    Activation {
        event_id: "e".to_owned(),
        device: Device {
            id: "FGT-A".to_owned(),
            name: "BRANCH".to_owned(),
            vdom: "root".to_owned(),
        },
        user: person.to_owned(),
        person: person.to_owned(),
        logid: 38412,
        description: "Token activation code sent".to_owned(),
        stage: Stage::CodeSent,
        rule: "code sent".to_owned(),
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

fn event_naming(person: &str, addresses: &[&str]) -> Activation {
    Activation {
        addresses: addresses.iter().map(|a| (*a).to_owned()).collect(),
        ..event(person)
    }
}

pub async fn email(directories: &Directories, who: &Activation) -> Option<String> {
    match directories.find(who, None).await.unwrap() {
        Lookup::Found { recipient, .. } => Some(recipient.email),
        _ => None,
    }
}

async fn ambiguity(directories: &Directories, who: &Activation) -> String {
    match directories.find(who, None).await {
        Err(LookupError::Ambiguous(why)) => why,
        other => panic!("{other:?}"),
    }
}

const FILE: &str = "[[directory]]\ntype = \"table\"\nfile = \"people.csv\"\n";

/// A table file, and directories that read it.
fn table(csv: impl AsRef<[u8]>) -> (tempfile::TempDir, Directories) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("people.csv"), csv).unwrap();
    let directories = built(FILE, dir.path());
    (dir, directories)
}

fn said_about(csv: impl AsRef<[u8]>) -> Said {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("people.csv"), csv).unwrap();
    build(FILE, dir.path()).1
}

#[tokio::test]
async fn a_table_knows_all_about_a_person() {
    let (_dir, directories) = table(
        "Language,Email, user ,name,phone\nde,alice@example.com,EXAMPLE\\Alice,\"Smith, \"\"Al\"\"\",+49 (170) 123-4567\n",
    );
    let Lookup::Found {
        recipient,
        trace,
        mismatch,
    } = directories.find(&event("alice"), None).await.unwrap()
    else {
        panic!("alice is in the table")
    };
    assert_eq!(recipient.email, "alice@example.com");
    assert_eq!(recipient.name.as_deref(), Some("Smith, \"Al\""));
    assert_eq!(recipient.phone.as_deref(), Some("+491701234567"));
    assert_eq!(recipient.language.as_deref(), Some("de"));
    assert_eq!(recipient.source, "table");
    assert_eq!(trace, ["table people.csv: alice is a…@example.com"]);
    assert_eq!(mismatch, None);
}

#[tokio::test]
async fn a_table_may_come_from_windows() {
    let (_dir, directories) =
        table("\u{feff}user,email\r\nalice,alice@example.com\r\n\r\nbob,bob@example.com");
    for user in ["alice", "bob"] {
        let address = format!("{user}@example.com");
        assert_eq!(email(&directories, &event(user)).await, Some(address));
    }
}

#[tokio::test]
async fn nobody_is_found_by_part_of_a_name() {
    let (_dir, directories) = table("user,email\nalice,alice@example.com\nbob,bob@example.com\n");
    for user in ["", "a", "alic", "alicea", "alice\u{1f}", "zz", "alice,bob"] {
        assert_eq!(email(&directories, &event(user)).await, None, "{user:?}");
    }
}

#[tokio::test]
async fn two_addresses_for_one_user_are_an_error_for_that_user_alone() {
    let csv = "user,email\nbob,bob@example.com\nalice,alice@example.com\nBOB,bob@EXAMPLE.com\ncarol,carol@example.com\nalice@example.com,other@example.com\n";
    let (_dir, directories) = table(csv);
    assert_eq!(
        ambiguity(&directories, &event("alice")).await,
        "two entries for alice in people.csv, lines 3 and 6"
    );
    assert!(email(&directories, &event("bob")).await.is_some());
    assert!(email(&directories, &event("carol")).await.is_some());
    said_about(csv).says(Weight::Warning, "people.csv", "alice, lines 3 and 6");
}

#[tokio::test]
async fn an_inline_table_does_the_same() {
    let toml = "[[directory]]\ntype = \"table\"\npeople = [\n{ user = \"alice\", email = \"alice@example.com\", name = \"Alice\" },\n{ user = \"bob\", email = \"bob@example.com\" },\n{ user = \"Bob\", email = \"bob2@example.com\" },\n]\n";
    let directories = built(toml, nowhere());
    assert!(email(&directories, &event("alice")).await.is_some());
    assert_eq!(
        ambiguity(&directories, &event("bob")).await,
        "two entries for bob in the table, numbers 2 and 3"
    );
    build(toml, nowhere())
        .1
        .says(Weight::Warning, "bob@example.com", "two entries for bob");
}

#[test]
fn a_bad_inline_entry_is_named_where_it_stands() {
    let toml = "[[directory]]\ntype = \"table\"\npeople = [\n{ user = \"alice\", email = \"alice@example.com\" },\n{ user = \"bob\", email = \"bob\" },\n{ user = \" \", email = \"c@example.com\" },\n]\n";
    let (_, said) = build(toml, nowhere());
    said.says(Weight::Problem, "\"bob\"", "is no mail address");
    said.says(Weight::Problem, "c@example.com", "`user` is empty");
    assert_eq!(said.of(Weight::Problem).len(), 2);
}

#[test]
fn a_table_has_one_source() {
    let (_, said) = build("[[directory]]\ntype = \"table\"\n", nowhere());
    said.says(Weight::Problem, "", "needs `file");
    let both = format!("{FILE}people = [{{ user = \"a\", email = \"a@example.com\" }}]\n");
    let (_, said) = build(&both, nowhere());
    said.says(Weight::Problem, "a@example.com", "not both");
}

#[test]
fn a_broken_table_names_its_line_and_no_address() {
    for (csv, says) in [
        (&b""[..], "people.csv is empty"),
        (b"user,name\n", "line 1: no column is called email"),
        (b"user;email\na;b\n", "with commas between them"),
        (b"user,email,user\n", "line 1: the column user stands twice"),
        (
            b"user,email\n\nalice,alice.example.com\n",
            "line 3: `email` is no mail address",
        ),
        (b"user,email\nalice,\n", "line 2: `email` is empty"),
        (b"user,email\n,a@example.com\n", "line 2: `user` is empty"),
        (
            b"user,email\na,b%evil.test@example.com\n",
            "line 2: `email` holds a character",
        ),
        (
            b"user,email\nalice,a@example.com,x\n",
            "line 2: has 3 columns",
        ),
        (
            b"user,email\nal\tice,a@example.com\n",
            "line 2: `user` holds a control character",
        ),
        (
            b"user,email\n\"al\nice\",a@example.com\n",
            "line 2: a quote is opened",
        ),
        (
            b"user,email,name\na,a@example.com,J\xf6rg\n",
            "line 2: is not UTF-8, perhaps Latin-1",
        ),
        (
            b"\xff\xfeu\0s\0e\0r\0",
            "line 1: is not UTF-8, perhaps Latin-1 or UTF-16",
        ),
    ] {
        let said = said_about(csv);
        said.says(Weight::Problem, "people.csv", says);
        for text in said.of(Weight::Problem) {
            assert!(!text.contains("alice.example"), "{text}");
        }
    }
    let (_, said) = build(FILE, nowhere());
    said.says(Weight::Problem, "people.csv", "people.csv can't be read");
}

#[test]
fn every_bad_line_is_named_up_to_a_limit() {
    let csv = format!("user,email\n{}", "alice,nowhere\n".repeat(50));
    let said = said_about(csv);
    assert_eq!(said.of(Weight::Problem).len(), 21);
    said.says(Weight::Problem, "people.csv", "and 30 more lines");
}

#[test]
fn an_endless_line_is_no_table() {
    let mut csv = b"user,email\n".to_vec();
    csv.resize(4 * 1024 * 1024, b'x');
    said_about(csv).says(Weight::Problem, "people.csv", "line 2: is longer than");
    said_about(vec![b'x'; 1024 * 1024]).says(Weight::Problem, "people.csv", "line 1: is longer");
}

#[test]
fn what_is_odd_about_a_table_is_warned_of() {
    let said = said_about(
        "user,email,phone,language,department\na,a@example.com,+49 (0)170 1234567,deutsch!,it\nb,b@evil.test,,,\nc,c@evil.test,+12025550100,de_DE,\n",
    );
    for says in [
        "line 1: the columns department are not used",
        "line 2: the phone number is left out",
        "line 2: the language is left out",
        "line 3 and 1 more: the address is outside",
    ] {
        said.says(Weight::Warning, "people.csv", says);
    }
    assert_eq!(said.findings.len(), 4, "{:#?}", said.findings);
    said_about("user,email\n").says(Weight::Warning, "people.csv", "holds nobody");
}

/// Asks until the answer is as wanted; a change is seen within about a second.
async fn becomes(directories: &Directories, user: &str, wanted: Option<&str>) {
    let since = Instant::now();
    while email(directories, &event(user)).await.as_deref() != wanted {
        assert!(since.elapsed() < Duration::from_secs(10), "{user}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_changed_table_is_read_again() {
    let (dir, directories) = table("user,email\nalice,alice@example.com\n");
    let path = dir.path().join("people.csv");
    becomes(&directories, "alice", Some("alice@example.com")).await;
    std::fs::write(&path, "user,email\nalice,al-ce@example.com\n").unwrap();
    becomes(&directories, "alice", Some("al-ce@example.com")).await;
    let beside = dir.path().join("new.csv");
    std::fs::write(&beside, "user,email\nbob,bob@example.com\n").unwrap();
    std::fs::rename(&beside, &path).unwrap();
    becomes(&directories, "bob", Some("bob@example.com")).await;
    assert_eq!(email(&directories, &event("alice")).await, None);
}

#[tokio::test]
async fn a_table_that_breaks_keeps_its_last_good_content_and_recovers() {
    let (dir, directories) = table("user,email\nalice,alice@example.com\n");
    let path = dir.path().join("people.csv");
    let good = "user,email\nalice,alice2@example.com\n";
    for broken in [
        Some("user,email\nalice,alice3\n"),
        Some(""),
        None, // the file is gone
    ] {
        match broken {
            Some(text) => std::fs::write(&path, text).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let since = Instant::now();
        while since.elapsed() < Duration::from_millis(1_300) {
            let address = email(&directories, &event("alice")).await.unwrap();
            assert!(address.starts_with("alice"), "{broken:?}");
            assert_ne!(address, "alice3", "{broken:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        std::fs::write(&path, good).unwrap();
        becomes(&directories, "alice", Some("alice2@example.com")).await;
    }
}

#[tokio::test]
async fn a_table_that_grows_while_it_is_read_is_never_taken_in_part() {
    use std::io::Write;

    let (dir, directories) = table("user,email\nlast,old@example.com\n");
    let path = dir.path().join("people.csv");
    let writer = std::thread::spawn(move || {
        let mut file = std::fs::File::create(path).unwrap();
        file.write_all(b"user,email\n").unwrap();
        let mut longest_pause = Duration::ZERO;
        let mut written = Instant::now();
        for n in 0..150 {
            std::thread::sleep(Duration::from_millis(10));
            writeln!(file, "user{n},user{n}@example.com").unwrap();
            longest_pause = longest_pause.max(written.elapsed());
            written = Instant::now();
        }
        writeln!(file, "last,new@example.com").unwrap();
        longest_pause
    });
    let since = Instant::now();
    let mut taken_in_part = false;
    loop {
        match email(&directories, &event("last")).await.as_deref() {
            Some("new@example.com") => break,
            Some(_) => {}
            None => taken_in_part = true,
        }
        assert!(since.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // A machine so busy that the writer stood still has shown nothing.
    let longest_pause = writer.join().unwrap();
    assert!(!taken_in_part || longest_pause > Duration::from_millis(80));
}

#[tokio::test]
async fn a_pattern_makes_an_address_only_of_a_plain_name() {
    let toml = "[[directory]]\ntype = \"pattern\"\nemail = \"{user}@example.com\"\n";
    let directories = built(toml, nowhere());
    for user in ["alice", "a.b-c_d+e", "o'neil", "{user}"] {
        let address = format!("{user}@example.com");
        assert_eq!(email(&directories, &event(user)).await, Some(address));
    }
    for user in [
        "",
        "alice@evil.test",
        "example\\alice",
        "a b",
        "a..b",
        ".a",
        "a.",
        "jörg",
        "a\r\nRCPT TO:<x@evil.test>",
        "\"a\"",
        "a,b",
        "a<b",
        "x%evil.test",
        "evil.test!x",
        "../x",
        "|cat",
        &"a".repeat(65),
    ] {
        let Lookup::Unknown { trace, .. } = directories.find(&event(user), None).await.unwrap()
        else {
            panic!("{user}")
        };
        assert!(trace[0].starts_with("pattern: makes no"), "{trace:?}");
    }
}

#[test]
fn a_pattern_is_checked() {
    for (email, says) in [
        ("{user}", "is no address"),
        ("servicedesk@example.com", "without {user}"),
        ("{user}@{user}.example.com", "may not choose the domain"),
        ("{user}.{vdom}@example.com", "the only placeholder"),
        ("{user}@elsewhere.test", "elsewhere.test is not among"),
        ("{user} x@example.com", "is no mail address"),
        ("{user}%x@example.com", "send it elsewhere"),
    ] {
        let toml = format!("[[directory]]\ntype = \"pattern\"\nemail = \"{email}\"\n");
        let (_, said) = build(&toml, nowhere());
        said.says(Weight::Problem, email, says);
    }
}

#[tokio::test]
async fn the_log_directory_believes_one_address_within_the_domains() {
    let directories = built("[[directory]]\ntype = \"log\"\n", nowhere());
    for (addresses, wanted) in [
        (&["alice@example.com"][..], Some("alice@example.com")),
        (
            &["alice@evil.test", "alice@example.org"],
            Some("alice@example.org"),
        ),
        (
            &["alice@example.com", "Alice@Example.com"],
            Some("alice@example.com"),
        ),
        (&["alice@evil.test"], None),
        (&["alice%evil.test@example.com"], None),
        (&[], None),
    ] {
        let who = event_naming("alice", addresses);
        assert_eq!(
            email(&directories, &who).await.as_deref(),
            wanted,
            "{addresses:?}"
        );
    }
    let two = event_naming("alice", &["alice@example.com", "mallory@example.com"]);
    assert_eq!(
        ambiguity(&directories, &two).await,
        "two addresses stand in the message, a…@example.com and m…@example.com"
    );
}

#[tokio::test]
async fn an_address_in_the_message_decides_nothing_elsewhere() {
    let toml = "[[directory]]\ntype = \"table\"\npeople = [{ user = \"alice\", email = \"alice@example.com\" }]\n[[directory]]\ntype = \"pattern\"\nemail = \"{user}@example.org\"\n";
    let directories = built(toml, nowhere());
    for (user, wanted) in [("alice", "alice@example.com"), ("bob", "bob@example.org")] {
        let who = event_naming(user, &["mallory@example.com", "mallory@evil.test"]);
        let Lookup::Found {
            recipient,
            mismatch,
            ..
        } = directories.find(&who, None).await.unwrap()
        else {
            panic!("{user}")
        };
        assert_eq!(recipient.email, wanted);
        assert!(
            mismatch
                .unwrap()
                .contains("the message names m…@example.com")
        );
    }
    let own = event_naming("alice", &["ALICE@example.com", "mallory@evil.test"]);
    let Lookup::Found { mismatch, .. } = directories.find(&own, None).await.unwrap() else {
        panic!()
    };
    assert_eq!(mismatch, None);
}

#[tokio::test]
async fn the_first_directory_that_knows_the_user_answers_for_its_devices() {
    let toml = "
[[directory]]
type = \"table\"
match = { device = \"FGT-B*\" }
people = [{ user = \"jsmith\", email = \"jsmith@example.org\" }]
[[directory]]
type = \"table\"
match = { device = \"branch\", vdom = \"cust-*\" }
people = [{ user = \"jsmith\", email = \"other.jsmith@example.com\" }]
[[directory]]
type = \"table\"
people = [{ user = \"alice\", email = \"alice@example.com\" }]
[[directory]]
type = \"pattern\"
email = \"{user}@example.com\"
";
    let directories = built(toml, nowhere());
    let Lookup::Found {
        recipient, trace, ..
    } = directories.find(&event("jsmith"), None).await.unwrap()
    else {
        panic!()
    };
    assert_eq!(recipient.email, "jsmith@example.com");
    assert_eq!(
        trace,
        [
            "table: skipped, is for device fgt-b*",
            "table: skipped, is for VDOM cust-*",
            "table: does not know the user",
            "pattern: jsmith is j…@example.com",
        ]
    );
    for (device, vdom, wanted) in [
        ("FGT-B1", "root", "jsmith@example.org"),
        ("FGT-A", "cust-7", "other.jsmith@example.com"),
    ] {
        let mut who = event("jsmith");
        who.device.id = device.to_owned();
        who.device.vdom = vdom.to_owned();
        assert_eq!(email(&directories, &who).await.as_deref(), Some(wanted));
    }
}

#[tokio::test]
async fn an_address_outside_the_domains_ends_the_search() {
    let toml = "[[directory]]\ntype = \"table\"\npeople = [{ user = \"alice\", email = \"alice@evil.test\" }]\n[[directory]]\ntype = \"pattern\"\nemail = \"{user}@example.com\"\n";
    let directories = built(toml, nowhere());
    let Lookup::Outside { reason, trace } = directories.find(&event("alice"), None).await.unwrap()
    else {
        panic!()
    };
    assert_eq!(
        reason,
        "the address of alice, a…@evil.test, is outside `recipients.domains`"
    );
    assert_eq!(trace, ["table: alice is a…@evil.test"]);
    let narrow = ["example.org".to_owned()];
    let Lookup::Outside { reason, .. } = directories
        .find(&event("bob"), Some(&narrow))
        .await
        .unwrap()
    else {
        panic!()
    };
    assert!(
        reason.ends_with("outside the `domains` of its route"),
        "{reason}"
    );
}

#[tokio::test]
async fn a_name_that_is_an_address_is_masked_in_what_is_said() {
    let directories = built("[[directory]]\ntype = \"log\"\n", nowhere());
    let Lookup::Unknown { reason, .. } = directories
        .find(&event("alice@elsewhere.test"), None)
        .await
        .unwrap()
    else {
        panic!()
    };
    assert_eq!(reason, "no directory knows a…@elsewhere.test");
}

#[test]
fn every_kind_of_directory_is_known_by_its_name() {
    for kind in directory::KINDS {
        let fields = "unknown_key = 1";
        let from = toml::de::Deserializer::parse(fields).unwrap();
        let error = directory::Config::deserialize(kind, from).unwrap_err();
        assert!(
            error.message().contains("unknown field `unknown_key`"),
            "{error}"
        );
    }
    let from = toml::de::Deserializer::parse("").unwrap();
    let error = directory::Config::deserialize("tabel", from).unwrap_err();
    assert!(
        error
            .message()
            .contains("unknown variant `tabel`, expected one of `table`"),
        "{error}"
    );
}

#[derive(Deserialize)]
struct RouteFile {
    #[serde(default)]
    route: Vec<routing::Config>,
}

fn channels() -> [ChannelFacts; 3] {
    [
        ("mail", true, true),
        ("dm", true, true),
        ("desk", false, false),
    ]
    .map(|(name, reveals, needs_person)| ChannelFacts {
        name: name.to_owned(),
        reveals,
        needs_person,
    })
}

fn routes(toml: &str) -> (Option<Routes>, Said) {
    let file: RouteFile = toml::from_str(toml).unwrap();
    let mut check = Check::new(".", None, true);
    let people = recipients("domains = [\"example.com\", \"example.org\"]");
    let routes = Routes::build(file.route, &channels(), &people, &mut check);
    assert_eq!(routes.is_none(), check.has_problems());
    let said = Said {
        text: toml.to_owned(),
        findings: check.findings(),
    };
    (routes, said)
}

#[test]
fn the_first_route_that_matches_is_taken() {
    let (routes, said) = routes(
        "
[[route]]
match = { device = \"BR*\", user = \"adm-*\" }
to = [\"dm\"]
escalate = [\"desk\"]
[[route]]
match = { vdom = \"cust\" }
to = [\"dm\", \"mail\"]
domains = [\"Example.org.\"]
fallback_after = \"2m\"
escalate = [\"desk\"]
language = \"de\"
[[route]]
match = { stage = \"failed\" }
to = [\"desk\"]
escalate = [\"desk\"]
[[route]]
to = [\"mail\"]
fallback = [\"dm\"]
escalate = [\"desk\"]
",
    );
    assert_eq!(said.findings, [], "nothing is wrong with these");
    let routes = routes.unwrap();
    let taken = |who: &Activation| routes.find(who).map(|r| r.number);
    let mut who = event("alice");
    assert_eq!(taken(&who), Some(4));
    assert_eq!(
        routes.find(&who).unwrap().fallback_after,
        Duration::from_secs(600)
    );
    who.person = "adm-alice".to_owned();
    assert_eq!(taken(&who), Some(1));
    who.device.name = "HQ".to_owned();
    assert_eq!(taken(&who), Some(4));
    who.device.vdom = "cust".to_owned();
    let route = routes.find(&who).unwrap();
    assert_eq!(route.number, 2);
    assert_eq!(route.to, ["dm", "mail"]);
    assert_eq!(
        route.domains.as_deref(),
        Some(&["example.org".to_owned()][..])
    );
    assert_eq!(route.fallback_after, Duration::from_secs(120));
    assert_eq!(route.language.as_deref(), Some("de"));
    who.stage = Stage::Failed;
    assert_eq!(
        taken(&who),
        Some(3),
        "without `stage` a route is for code-sent"
    );
    who.stage = Stage::Requested;
    assert_eq!(taken(&who), None);
}

#[test]
fn what_cannot_be_meant_in_a_route_is_said_where_it_stands() {
    for (route, weight, at, says) in [
        (
            "to = [\"mali\"]",
            Weight::Problem,
            "mali",
            "did you mean \"mail\"?",
        ),
        (
            "to = [\"mail\"]\nfallback = [\"pager\"]",
            Weight::Problem,
            "pager",
            "there are mail, dm, desk",
        ),
        (
            "to = [\"mail\"]\nescalate = [\"dekc\"]",
            Weight::Problem,
            "dekc",
            "did you mean \"desk\"?",
        ),
        ("to = []", Weight::Problem, "[]", "`to` is empty"),
        (
            "to = [\"desk\"]",
            Weight::Warning,
            "desk",
            "no channel of `to` carries the code",
        ),
        (
            "to = [\"mail\"]\nfallback = [\"desk\"]",
            Weight::Warning,
            "desk",
            "can't stand in",
        ),
        ("to = [\"mail\"]", Weight::Warning, "mail", "nobody is told"),
        (
            "to = [\"mail\"]\nescalate = [\"dm\"]",
            Weight::Warning,
            "dm",
            "no fixed recipient",
        ),
        (
            "to = [\"mail\", \"mail\"]",
            Weight::Warning,
            "mail",
            "stands twice",
        ),
        (
            "to = [\"mail\"]\nfallback = [\"mail\"]",
            Weight::Warning,
            "mail",
            "already in `to`",
        ),
        (
            "to = [\"mail\"]\ndomains = [\"evil.test\"]",
            Weight::Problem,
            "evil.test",
            "evil.test is not among",
        ),
        (
            "to = [\"mail\"]\ndomains = [\"x@example.com\"]",
            Weight::Problem,
            "x@",
            "is not among",
        ),
        (
            "to = [\"mail\"]\ndomains = []",
            Weight::Problem,
            "[]",
            "would reach nobody",
        ),
        (
            "to = [\"mail\"]\nfallback_after = \"0s\"",
            Weight::Problem,
            "0s",
            "before the first try",
        ),
        (
            "to = [\"mail\"]\nmatch = { stage = \"code_sent\" }",
            Weight::Problem,
            "code_sent",
            "requested, code-sent,",
        ),
        (
            "to = [\"mail\"]\nmatch = { vdom = \"root\" }",
            Weight::Warning,
            "",
            "matches no route will wait",
        ),
    ] {
        let (_, said) = routes(&format!("[[route]]\n{route}\n"));
        said.says(weight, at, says);
    }
    routes("")
        .1
        .says(Weight::Warning, "", "matches no route will wait");
}

#[test]
fn a_route_that_nothing_gets_to_is_said() {
    let route = |matches: &str| {
        format!("[[route]]\nmatch = {{ {matches} }}\nto = [\"mail\"]\nescalate = [\"desk\"]\n")
    };
    for (first, second, dead) in [
        ("", "vdom = \"root\"", true),
        ("device = \"*\", user = \"**\"", "", true),
        ("vdom = \"root\"", "vdom = \"ROOT\", user = \"a*\"", true),
        ("stage = \"*\"", "stage = \"failed\"", true),
        ("", "stage = \"failed\"", false),
        ("", "stage = \"*\"", false),
        ("vdom = \"root\"", "", false),
        ("device = \"?*\"", "", false),
    ] {
        let (_, said) = routes(&(route(first) + &route(second)));
        let warned = said
            .of(Weight::Warning)
            .iter()
            .any(|w| w.contains("no activation gets to this route: route 1 takes them all"));
        assert_eq!(warned, dead, "{first} then {second}");
    }
}
