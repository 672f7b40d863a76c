//! The pages of keys, metrics and alerts, held against what the program itself knows.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;

use regex::Regex;
use serde_json::Value;

use crate::support::relay::BASE;
use crate::support::relay::Relay;
use crate::support::samples::Event;
use crate::support::until;

fn read(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

/// The words in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The cells of each row of the tables of a text, whose first cell is in backticks.
fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let rows = text
        .lines()
        .filter(|l| l.starts_with("| `") || l.starts_with("| **`"));
    rows.map(|row| row.split('|').skip(1).map(str::trim).collect())
}

/// What the page says of a table: under each heading, its keys, and which of them are required.
fn page_of_keys() -> BTreeMap<String, BTreeMap<String, bool>> {
    let page = read("docs/configuration.md");
    let mut sections = BTreeMap::new();
    let mut inside = String::new();
    for section in page.split("\n## ").skip(1) {
        for part in section.split("\n### ") {
            let heading = part.lines().next().unwrap().replace('`', "");
            // A type is one of its table's.
            let heading = if heading.contains(" = ") {
                format!("{inside} {heading}")
            } else {
                inside.clone_from(&heading);
                heading
            };
            let keys = rows(part).map(|cells| {
                let key = quoted(cells[0]).next().unwrap().to_owned();
                (key, cells[0].starts_with("**"))
            });
            assert!(
                sections.insert(heading.clone(), keys.collect()).is_none(),
                "{heading} stands twice"
            );
        }
    }
    sections
}

/// A piece of configuration with the key (or type) `nonsense`, and where the page has what is possible there.
struct Question {
    toml: String,
    headings: Vec<String>,
    prefix: &'static str,
}

impl Question {
    fn new(toml: impl Into<String>, heading: &str) -> Self {
        Self {
            toml: toml.into(),
            headings: vec![heading.to_owned()],
            prefix: "",
        }
    }
}

/// What `check` says of all of them in one file: for each, what it would have expected, and which keys are missing.
fn said(questions: &[Question]) -> Vec<(BTreeSet<String>, BTreeSet<String>)> {
    let file: String = questions.iter().map(|q| q.toml.as_str()).collect();
    let output = Relay::prepare(&file).cli(&["check", "--json"]);
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let mut end = 1;
    let answers = questions.iter().map(|question| {
        let start = end;
        end += question.toml.lines().count();
        let texts: Vec<_> = findings
            .iter()
            .filter(|f| {
                f["line"]
                    .as_u64()
                    .is_some_and(|line| (start..end).contains(&usize::try_from(line).unwrap()))
            })
            .map(|f| f["text"].as_str().unwrap())
            .collect();
        let expected = texts
            .iter()
            .filter(|t| t.contains("`nonsense`"))
            .find_map(|t| Some(t.split_once("expected one of ")?.1))
            .unwrap_or_else(|| panic!("{}{texts:?}", question.toml));
        let missing = texts
            .iter()
            .filter_map(|t| t.strip_suffix("` is missing")?.strip_prefix('`'));
        (
            expected.split(", ").map(str::to_owned).collect(),
            missing.map(str::to_owned).collect(),
        )
    });
    answers.collect()
}

/// The configuration's tables, each with a key that there isn't.
fn questions() -> Vec<Question> {
    let mut questions = vec![Question::new("nonsense = 1\n", "The file")];
    for table in [
        "http",
        "recipients",
        "limits",
        "reminder",
        "outbox",
        "templates",
    ] {
        let heading = format!("[{table}]");
        questions.push(Question::new(
            format!("{heading}\nnonsense = 1\n"),
            &heading,
        ));
    }
    for table in ["device", "route", "rule", "test"] {
        let heading = format!("[[{table}]]");
        questions.push(Question::new(
            format!("{heading}\nnonsense = 1\n"),
            &heading,
        ));
    }
    for (toml, heading, prefix) in [
        (
            "[[route]]\nto = []\nmatch = { nonsense = 1 }\n",
            "[[route]]",
            "match.",
        ),
        (
            "[[directory]]\ntype = \"log\"\nmatch = { nonsense = 1 }\n",
            "[[directory]]",
            "match.",
        ),
        (
            "[[directory]]\ntype = \"table\"\npeople = [{ nonsense = 1 }]\n",
            "[[directory]] type = \"table\"",
            "people.",
        ),
        (
            "[[directory]]\ntype = \"ldap\"\nattributes = { nonsense = 1 }\n",
            "[[directory]] type = \"ldap\"",
            "attributes.",
        ),
    ] {
        questions.push(Question {
            prefix,
            ..Question::new(toml, heading)
        });
    }
    // What there are kinds of, the program says itself.
    let kinds = [
        ("[[listen]]", "[[listen]]", "transport"),
        ("[[directory]]", "[[directory]]", "type"),
        ("[channel.x]", "[channel.NAME]", "type"),
    ];
    let unknown =
        kinds.map(|(table, _, key)| Question::new(format!("{table}\n{key} = \"nonsense\"\n"), ""));
    for ((table, heading, key), (names, _)) in kinds.into_iter().zip(said(&unknown)) {
        for name in names {
            let table = table.replace('x', &name);
            let own = format!("{heading} {key} = \"{name}\"");
            let mut question = Question::new(
                format!("{table}\n{key} = \"{name}\"\nnonsense = 1\n"),
                heading,
            );
            match name.as_str() {
                "udp" => {}
                "tls" => {
                    let tcp = own.replace("tls", "tcp");
                    question.headings.extend([tcp, own]);
                }
                _ => question.headings.push(own),
            }
            questions.push(question);
        }
    }
    questions
}

#[test]
fn the_page_of_keys_has_every_key_of_the_program_and_no_other() {
    let page = page_of_keys();
    let questions = questions();
    let mut seen = BTreeSet::new();
    for (question, (expected, missing)) in questions.iter().zip(said(&questions)) {
        let mut keys = BTreeMap::new();
        for heading in &question.headings {
            let section = page
                .get(heading)
                .unwrap_or_else(|| panic!("no {heading} in {:?}", page.keys()));
            for (key, required) in section {
                let key = key.strip_prefix(question.prefix);
                if let Some(key) = key.filter(|k| !k.contains('.')) {
                    keys.insert(key, *required);
                }
            }
            seen.insert(heading);
        }
        let named: BTreeSet<_> = keys.keys().copied().map(str::to_owned).collect();
        assert_eq!(named, expected, "{}", question.toml);
        for key in missing.intersection(&expected) {
            assert!(keys[key.as_str()], "{key} is required: {}", question.toml);
        }
    }
    let all: BTreeSet<_> = page.keys().collect();
    assert_eq!(
        all, seen,
        "a section is about nothing that the program knows"
    );
}

/// The metrics on the page: type, labels, and every word in backticks that explains them.
fn page_of_metrics() -> BTreeMap<String, (String, BTreeSet<String>, BTreeSet<String>)> {
    let page = read("docs/metrics.md");
    let metrics = page
        .split("\n## ")
        .find(|s| s.starts_with("Metrics"))
        .unwrap();
    let metrics = rows(metrics).map(|cells| {
        let words = |text: &str| quoted(text).map(str::to_owned).collect();
        let name = quoted(cells[0]).next().unwrap().to_owned();
        (
            name,
            (cells[1].to_owned(), words(cells[2]), words(cells[3])),
        )
    });
    metrics.collect()
}

#[test]
fn the_page_of_metrics_has_every_metric_of_the_program_and_no_other() {
    let page = page_of_metrics();

    // All that there can be.
    let source = read("src/metrics.rs");
    let defined = Regex::new(r#"\n    \w+: (.+?) = .+, "(\w+)", ""#).unwrap();
    let mut names: BTreeSet<String> = defined
        .captures_iter(&source)
        .map(|found| {
            let end = if found[1].contains("Counter") {
                "_total"
            } else {
                ""
            };
            format!("ftm_relay_{}{end}", &found[2])
        })
        .collect();
    assert!(names.len() > 12, "{names:?}");
    names.insert("ftm_relay_build_info".to_owned());
    assert_eq!(page.keys().cloned().collect::<BTreeSet<_>>(), names);

    // What a relay shows that has delivered something.
    let relay = Relay::start(&format!(
        "{BASE}[channel.mail]\ntype = \"file\"\npath = \"mail\"\n[[route]]\nto = [\"mail\"]\n"
    ));
    relay.send_udp(&Event::code(1, "alice").line());
    until("the mail", || {
        (relay.states() == ["accepted"]).then_some(())
    });
    let text = relay.get("/metrics").1;
    let (kind, sample) = (
        Regex::new(r"^# TYPE (\w+) (\w+)$").unwrap(),
        Regex::new(r"^(ftm_relay_\w+?)(?:_bucket|_sum|_count)?(?:\{(.*)\})? [^ ]+$").unwrap(),
    );
    let label = Regex::new(r#"(\w+)="([^"]*)""#).unwrap();
    let mut shown = 0;
    for line in text.lines() {
        if let Some(found) = kind.captures(line) {
            let is = |end: &str| page.get(&format!("{}{end}", &found[1]));
            let (said, ..) = is("")
                .or_else(|| is("_total"))
                .or_else(|| is("_info"))
                .unwrap();
            let real = if found[1].ends_with("build") {
                "info"
            } else {
                &found[2]
            };
            assert!(said == real || said == "info", "{line}: {said}");
        } else if let Some(found) = sample.captures(line) {
            let (_, labels, words) = page.get(&found[1]).unwrap_or_else(|| panic!("{line}"));
            let given = found.get(2).map_or("", |l| l.as_str());
            for pair in label.captures_iter(given).filter(|pair| &pair[1] != "le") {
                assert!(
                    labels.contains(&pair[1]),
                    "{line}: a label that the page lacks"
                );
                // Words of the program's own, not names of the operator's.
                if ["reason", "outcome", "format", "state"].contains(&&pair[1]) {
                    assert!(
                        words.contains(&pair[2]),
                        "{line}: a value that the page lacks"
                    );
                }
            }
            shown += 1;
        } else {
            assert!(line.starts_with('#'), "{line}");
        }
    }
    assert!(shown > 30, "{text}");
}

/// Every metric, label and value in these queries is one of the page's.
fn queries_are_known<'a>(queries: impl IntoIterator<Item = &'a str>) -> usize {
    let page = page_of_metrics();
    let selector = Regex::new(r"(ftm_relay_\w+)(?:\{([^}]*)\})?").unwrap();
    let matcher = Regex::new(r#"(\w+)=~?"([^"]*)""#).unwrap();
    let mut count = 0;
    for query in queries {
        let balance = |open, close| query.matches(open).count() == query.matches(close).count();
        assert!(
            balance('(', ')') && balance('{', '}') && balance('[', ']'),
            "{query}"
        );
        for found in selector.captures_iter(query) {
            let name = &found[1];
            let (kind, labels, words) = page
                .get(name)
                .or_else(|| page.get(name.strip_suffix("_bucket")?))
                .unwrap_or_else(|| panic!("no metric {name}: {query}"));
            assert_eq!(kind == "histogram", name.ends_with("_bucket"), "{query}");
            for pair in matcher.captures_iter(found.get(2).map_or("", |m| m.as_str())) {
                if &pair[1] == "instance" {
                    continue; // Prometheus' own
                }
                assert!(labels.contains(&pair[1]), "{query}");
                for value in pair[2].split('|') {
                    assert!(words.contains(value), "no {value} in {name}: {query}");
                }
            }
            count += 1;
        }
    }
    count
}

#[test]
fn the_alerts_ask_for_metrics_that_exist_and_stand_on_the_page() {
    let rules = read("deploy/prometheus-rules.yml");
    let after = |key: &'static str| {
        rules
            .lines()
            .filter_map(move |l| l.trim_start().trim_start_matches("- ").strip_prefix(key))
    };
    let alerts: Vec<_> = after("alert: ").collect();
    let severities: Vec<_> = after("severity: ").collect();
    let queries: Vec<_> = after("expr: ").collect();
    assert_eq!(alerts.len(), queries.len());
    assert!(queries_are_known(queries) >= alerts.len());
    let page = read("docs/metrics.md");
    let page = page
        .split("\n## ")
        .find(|s| s.starts_with("Alerts"))
        .unwrap();
    let rows: Vec<_> = rows(page)
        .map(|cells| (quoted(cells[0]).next().unwrap(), cells[1]))
        .collect();
    let real: Vec<_> = alerts.into_iter().zip(severities).collect();
    assert_eq!(rows, real);
}

#[test]
fn the_dashboard_asks_for_metrics_that_exist() {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana-dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let queries: Vec<_> = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap())
        .map(|target| target["expr"].as_str().unwrap())
        .collect();
    assert!(queries_are_known(queries) >= panels.len());
}
