//! Who may import whom. A module that needs an arrow that is not in this table changes the table on purpose.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;

/// What a module may import.
enum May {
    /// Only these.
    Import(&'static [&'static str]),
    /// Everything: it puts the others together.
    ImportAll,
}

use May::Import;
use May::ImportAll;

/// Every module of `src`, from the ground up.
const TABLE: &[(&str, May)] = &[
    // The ground: nothing of ours.
    ("backoff", Import(&[])),
    ("domain", Import(&[])),
    ("frame", Import(&[])),
    ("glob", Import(&[])),
    ("limits", Import(&[])),
    ("logging", Import(&[])),
    ("metrics", Import(&[])),
    ("pulse", Import(&[])),
    ("secret", Import(&[])),
    ("syslog", Import(&[])),
    ("systemd", Import(&[])),
    // How configuration is read, and what is spoken about.
    ("settings", Import(&["secret"])),
    ("tls", Import(&["settings"])),
    ("recipients", Import(&["domain", "settings"])),
    ("activation", Import(&["secret"])),
    ("message", Import(&["secret"])),
    ("example", Import(&["activation", "secret", "settings"])),
    // From bytes to an activation.
    (
        "ingest",
        Import(&[
            "frame", "glob", "metrics", "secret", "settings", "systemd", "tls",
        ]),
    ),
    (
        "devices",
        Import(&["activation", "frame", "glob", "settings"]),
    ),
    (
        "rules",
        Import(&["activation", "glob", "settings", "syslog"]),
    ),
    (
        "pipeline",
        Import(&[
            "activation",
            "devices",
            "frame",
            "glob",
            "recipients",
            "rules",
            "settings",
            "syslog",
        ]),
    ),
    // From an activation to a person.
    (
        "channel",
        Import(&["domain", "limits", "message", "secret", "settings", "tls"]),
    ),
    (
        "outbox",
        Import(&["activation", "channel", "message", "secret", "settings"]),
    ),
    (
        "fortios",
        Import(&[
            "activation",
            "devices",
            "secret",
            "settings",
            "syslog",
            "tls",
        ]),
    ),
    (
        "directory",
        Import(&[
            "activation",
            "fortios",
            "glob",
            "message",
            "recipients",
            "secret",
            "settings",
            "tls",
        ]),
    ),
    (
        "routing",
        Import(&["activation", "domain", "glob", "recipients", "settings"]),
    ),
    (
        "template",
        Import(&["activation", "message", "outbox", "secret", "settings"]),
    ),
    (
        "dispatch",
        Import(&[
            "activation",
            "backoff",
            "channel",
            "directory",
            "fortios",
            "limits",
            "message",
            "metrics",
            "outbox",
            "pulse",
            "recipients",
            "routing",
            "secret",
            "settings",
            "template",
        ]),
    ),
    (
        "catch_up",
        Import(&["activation", "dispatch", "fortios", "frame", "metrics"]),
    ),
    // How it is watched and asked.
    ("readiness", Import(&[])),
    ("seen", Import(&["activation", "frame", "metrics"])),
    ("control", Import(&["activation", "outbox"])),
    (
        "pending",
        Import(&["activation", "dispatch", "fortios", "settings"]),
    ),
    (
        "web",
        Import(&[
            "dispatch",
            "ingest",
            "metrics",
            "outbox",
            "pending",
            "readiness",
            "secret",
            "seen",
        ]),
    ),
    // The whole.
    ("cli", ImportAll),
    ("config", ImportAll),
    ("main", ImportAll),
    ("relay", ImportAll),
    ("simulate", ImportAll),
];

/// No clock, no files, no sockets: `now`, bytes and settings are arguments.
const PURE: &[&str] = &[
    "activation",
    "backoff",
    "devices",
    "domain",
    "example",
    "frame",
    "glob",
    "limits",
    "message",
    "pipeline",
    "recipients",
    "routing",
    "rules",
    "syslog",
];

/// What a pure module has no use for.
const IMPURE: &[&str] = &[
    "tokio::",
    "std::fs",
    "std::env",
    "std::thread",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "Timestamp::now",
    "SystemTime::now",
    "Instant::now",
    "Zoned::now",
];

/// Only these put the whole together; a part takes its settings as arguments.
const MAY_IMPORT_CONFIG: &[&str] = &["cli", "config", "main", "relay"];

/// No way leads from log text to a recipient: only a directory makes one, the outbox gives it back, and `cli` has
/// `send-test --to`.
const MAY_MAKE_RECIPIENTS: &[&str] = &["cli", "directory", "outbox"];

struct Source {
    module: String,
    path: PathBuf,
    /// Without comments, and without the unit tests at its end.
    code: String,
}

fn sources() -> Vec<Source> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![src.clone()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.extension().is_none_or(|e| e != "rs") {
                continue;
            }
            let inner = path.strip_prefix(&src).unwrap().to_owned();
            let first = inner.components().next().unwrap().as_os_str();
            let module = first.to_str().unwrap().trim_end_matches(".rs").to_owned();
            let code = std::fs::read_to_string(&path).unwrap();
            let code = code.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
            let code: Vec<&str> = code
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .collect();
            sources.push(Source {
                module,
                path: inner,
                code: code.join("\n"),
            });
        }
    }
    sources.retain(|s| s.module != "lib");
    sources
}

/// The modules named after `crate::`, in imports and in paths.
fn imports(code: &str) -> BTreeSet<&str> {
    code.match_indices("crate::")
        .filter(|(at, _)| {
            !code[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$')
        })
        .map(|(at, found)| {
            let rest = &code[at + found.len()..];
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
            &rest[..end.unwrap_or(rest.len())]
        })
        .collect()
}

#[test]
fn modules_import_only_what_the_table_allows() {
    let table: BTreeMap<&str, &May> = TABLE.iter().map(|(name, may)| (*name, may)).collect();
    assert_eq!(
        table.len(),
        TABLE.len(),
        "a module stands twice in the table"
    );
    let mut arrows = 0;
    let mut wrong = Vec::new();
    for Source { module, path, code } in &sources() {
        let Some(may) = table.get(module.as_str()) else {
            wrong.push(format!("{module} is not in the table"));
            continue;
        };
        for import in imports(code) {
            assert!(!import.is_empty(), "{}: one `use` per line", path.display());
            if import == module {
                continue;
            }
            arrows += 1;
            let allowed = match may {
                Import(list) => list.contains(&import),
                ImportAll => import != "config" || MAY_IMPORT_CONFIG.contains(&module.as_str()),
            };
            if !allowed {
                wrong.push(format!("{} imports {import}", path.display()));
            }
        }
    }
    assert!(arrows > 10, "only {arrows} imports were found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_table_has_no_circles() {
    let mut known: BTreeSet<&str> = BTreeSet::new();
    for (module, may) in TABLE {
        if let Import(list) = may {
            for import in *list {
                assert!(known.contains(import), "{module} stands above {import}");
            }
        }
        known.insert(module);
    }
}

#[test]
fn pure_modules_touch_no_clock_file_or_socket() {
    let sources = sources();
    for module in PURE {
        let mut files = sources.iter().filter(|s| s.module == *module).peekable();
        assert!(files.peek().is_some(), "there is no {module}");
        for Source { path, code, .. } in files {
            for word in IMPURE {
                assert!(!code.contains(word), "{} uses {word}", path.display());
            }
        }
    }
}

#[test]
fn no_module_reaches_around_the_table() {
    for Source { path, code, .. } in &sources() {
        let folder_itself = usize::from(path.ends_with("mod.rs"));
        let up = "super::".repeat(path.components().count() - folder_itself);
        assert!(
            !code.contains(&up),
            "{} climbs out of its module",
            path.display()
        );
    }
}

#[test]
fn a_recipient_is_made_only_in_a_directory() {
    let sources = sources();
    let mut made = BTreeSet::new();
    for Source { module, path, code } in &sources {
        for line in code.lines().map(str::trim) {
            let literal = line.split("Recipient {").next().is_some_and(|before| {
                before.len() < line.len()
                    && !before.ends_with(|c: char| c.is_alphanumeric() || c == '_')
                    && !["struct ", "impl ", "for ", "-> "]
                        .iter()
                        .any(|word| before.ends_with(word))
            });
            if literal {
                made.insert(module.as_str());
                let allowed = MAY_MAKE_RECIPIENTS.contains(&module.as_str());
                assert!(allowed, "{} makes a recipient: {line}", path.display());
            }
        }
    }
    assert!(made.contains("directory"), "nobody makes recipients");
}
