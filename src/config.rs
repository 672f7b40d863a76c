//! The configuration file: the sum of the modules' `Config`s, read with the place of every value, checked as a whole.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::DeArray;
use toml::de::DeTable;
use toml::de::DeValue;
use toml::de::ValueDeserializer;

use crate::channel;
use crate::channel::Channel;
use crate::devices;
use crate::devices::Devices;
use crate::directory;
use crate::directory::Directories;
use crate::dispatch;
use crate::example;
use crate::fortios::Fleet;
use crate::ingest;
use crate::limits;
use crate::outbox;
use crate::pending;
use crate::pipeline::Admission;
use crate::pipeline::Pipeline;
use crate::recipients;
use crate::routing;
use crate::routing::ChannelFacts;
use crate::routing::Routes;
use crate::rules;
use crate::rules::Rules;
use crate::settings::Check;
use crate::settings::Finding;
use crate::settings::Period;
use crate::settings::Weight;
use crate::settings::nearest;
use crate::template;
use crate::web;

/// The largest configuration file that is read.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// So many problems of one table are reported.
const MAX_PROBLEMS_PER_TABLE: usize = 50;
/// The directory beside the configuration from which the unit loads its credentials (`LoadCredential=`).
const CREDENTIALS: &str = "credentials";
/// FortiOS's default for `two-factor-ftm-expiry`.
const DEFAULT_VALIDITY: Period = Period::seconds(72 * 3600);

/// A checked configuration, ready to be run or asked.
pub struct Config {
    /// Where the outbox and its key live.
    pub state_dir: PathBuf,
    /// The page, health and metrics.
    pub http: Option<web::Config>,
    /// The ways in.
    pub listeners: Vec<ingest::Config>,
    /// From frame to activation.
    pub pipeline: Pipeline,
    /// Everything behind the outbox.
    pub dispatch: dispatch::Settings,
    /// The devices whose REST API may be asked.
    pub fleet: Arc<Fleet>,
    /// The message ids of all rules.
    pub wanted_ids: BTreeSet<u32>,
    /// The channels by name, also those whose secrets can't be read here.
    pub channels: Vec<ChannelFacts>,
    /// The outbox.
    pub outbox: outbox::Settings,
    /// The lines that `check` tries.
    pub tests: Vec<Test>,
}

/// A `[[test]]` with its place.
pub struct Test {
    place: Placed,
    /// The line and what is expected of it.
    pub example: example::Config,
}

impl Test {
    /// Something that was found by trying it.
    pub fn finding(&self, weight: Weight, text: String) -> Placed {
        Placed {
            weight: word(weight),
            text,
            ..self.place.clone()
        }
    }
}

/// What reading a configuration gave.
pub struct Loaded {
    /// The configuration, unless it has a problem.
    pub config: Option<Config>,
    /// Everything found, with its place.
    pub report: Report,
}

/// Findings with the place where each stands.
#[derive(Clone, Debug, Default)]
pub struct Report(pub Vec<Placed>);

/// One finding with its place.
#[derive(Clone, Debug, Serialize)]
pub struct Placed {
    /// `problem`, `warning` or `note`.
    pub weight: &'static str,
    /// The file.
    pub file: String,
    /// The line, from 1; `None` for what stands nowhere in particular.
    pub line: Option<usize>,
    /// The column, from 1, in characters.
    pub column: Option<usize>,
    /// What was found.
    pub text: String,
}

impl fmt::Display for Placed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}: {}", self.weight, self.text)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|placed| writeln!(f, "{placed}"))
    }
}

impl Report {
    /// Whether the configuration can't be used.
    pub fn has_problems(&self) -> bool {
        self.0.iter().any(|p| p.weight == "problem")
    }
}

/// What a configuration is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// To run with it: every secret must be readable.
    Service,
    /// To check it: a credential outside the unit is a note.
    Check,
    /// For a command that needs no secret: one that can't be read is a note.
    Command,
}

/// Where the outbox is, whatever else is wrong with the file.
pub fn state_dir(path: &Path) -> Result<PathBuf, String> {
    let text = read(path).map_err(|(why, _)| why)?;
    let (root, _) = DeTable::parse_recoverable(&text);
    let named = root
        .get_ref()
        .get("state_dir")
        .and_then(|v| v.get_ref().as_str().map(PathBuf::from));
    Ok(state_dir_of(named, &directory(path)))
}

/// Relative to the file; by default where systemd put it, else `state` beside the file.
fn state_dir_of(named: Option<PathBuf>, dir: &Path) -> PathBuf {
    match named {
        Some(path) => dir.join(path),
        // Of several that systemd made, the first.
        None => std::env::var_os("STATE_DIRECTORY")
            .and_then(|all| std::env::split_paths(&all).next())
            .unwrap_or_else(|| dir.join("state")),
    }
}

fn directory(path: &Path) -> PathBuf {
    let dir = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned())
}

/// Where the unit's credentials are loaded from.
pub fn credentials_of(path: &Path) -> PathBuf {
    directory(path).join(CREDENTIALS)
}

/// The same, if whoever asks may look there.
fn credentials_beside(path: &Path) -> Option<PathBuf> {
    let dir = credentials_of(path);
    std::fs::read_dir(&dir).is_ok().then_some(dir)
}

/// Reads and checks a file.
pub fn load(path: &Path, purpose: Use) -> Loaded {
    let set = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let guessed = set.is_none();
    let credentials = set.or_else(|| credentials_beside(path).filter(|_| purpose != Use::Service));
    let mut check = Check::new(directory(path), credentials, purpose == Use::Service);
    check.guessed = guessed;
    if purpose == Use::Command {
        check = check.without_secrets();
    }
    let text = match read(path) {
        Ok(text) => text,
        Err((why, readable)) => {
            let end = readable.len();
            check.problem((end > 0).then_some(end..end), why);
            readable
        }
    };
    let file = if check.has_problems() {
        None
    } else {
        File::parse(&text, &mut check)
    };
    let place = |finding| place(path, &text, finding);
    let config = file
        .and_then(|file| file.build(&place, &mut check))
        .filter(|_| !check.has_problems());
    let report = Report(check.findings().into_iter().map(place).collect());
    Loaded { config, report }
}

/// The text of the file; otherwise why not, and what could be read of it.
fn read(path: &Path) -> Result<String, (String, String)> {
    let unreadable = |e: std::io::Error| (format!("can't be read: {e}"), String::new());
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let why = format!("is larger than {} MiB", MAX_FILE_BYTES >> 20);
        return Err((why, String::new()));
    }
    String::from_utf8(bytes).map_err(|e| {
        let (end, mut bytes) = (e.utf8_error().valid_up_to(), e.into_bytes());
        bytes.truncate(end);
        (
            "this is not UTF-8; save the file in that encoding".to_owned(),
            String::from_utf8_lossy(&bytes).into_owned(),
        )
    })
}

fn word(weight: Weight) -> &'static str {
    match weight {
        Weight::Problem => "problem",
        Weight::Warning => "warning",
        Weight::Note => "note",
    }
}

fn place(path: &Path, text: &str, finding: Finding) -> Placed {
    let at = finding.span.map(|span| {
        let before = text.get(..span.start.min(text.len())).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        (
            before.matches('\n').count() + 1,
            before[line_start..].chars().count() + 1,
        )
    });
    Placed {
        weight: word(finding.weight),
        file: path.display().to_string(),
        line: at.map(|(line, _)| line),
        column: at.map(|(_, column)| column),
        text: finding.text,
    }
}

// === Reading: from text to each module's Config ===

type Table<'t> = DeTable<'t>;
type Value<'t> = Spanned<DeValue<'t>>;

/// What the file says, before it is checked as a whole.
struct File {
    state_dir: Option<PathBuf>,
    validity: Period,
    http: Option<web::Config>,
    listen: Vec<Spanned<ingest::Config>>,
    recipients: Option<recipients::Config>,
    limits: limits::Config,
    reminder: pending::Config,
    directory: Vec<Spanned<directory::Config>>,
    device: Vec<Spanned<devices::Config>>,
    channel: BTreeMap<String, Spanned<(channel::Common, channel::Config)>>,
    channel_names: Vec<String>,
    route: Vec<Spanned<routing::Config>>,
    rule: Vec<Spanned<rules::Config>>,
    outbox: outbox::Config,
    templates: template::Config,
    test: Vec<Spanned<example::Config>>,
    /// These stand in the file, even if they couldn't be read.
    written: Vec<&'static str>,
}

const SECTIONS: &[&str] = &[
    "state_dir",
    "validity",
    "http",
    "listen",
    "recipients",
    "limits",
    "reminder",
    "directory",
    "device",
    "channel",
    "route",
    "rule",
    "outbox",
    "templates",
    "test",
];

impl File {
    fn parse(text: &str, check: &mut Check) -> Option<Self> {
        let (root, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            for error in errors {
                check.problem(error.span(), error.message().to_owned());
            }
            return None;
        }
        let mut root = root.into_inner();
        for (key, _) in root.iter() {
            if !SECTIONS.contains(&key.get_ref().as_ref()) {
                check.problem(key.span(), unknown("key", key.get_ref(), SECTIONS));
            }
        }
        let mut file = Self {
            state_dir: None,
            validity: DEFAULT_VALIDITY,
            http: None,
            listen: Vec::new(),
            recipients: None,
            limits: limits::Config::default(),
            reminder: pending::Config::default(),
            directory: Vec::new(),
            device: Vec::new(),
            channel: BTreeMap::new(),
            channel_names: Vec::new(),
            route: Vec::new(),
            rule: Vec::new(),
            outbox: outbox::Config::default(),
            templates: template::Config::default(),
            test: Vec::new(),
            written: SECTIONS
                .iter()
                .copied()
                .filter(|name| root.contains_key(*name))
                .collect(),
        };
        let mut reader = Reader { check };
        let mut take = |name: &str| root.remove(name);
        if let Some(value) = take("state_dir") {
            file.state_dir = reader.read(value);
        }
        if let Some(value) = take("validity") {
            file.validity = reader.read(value).unwrap_or(DEFAULT_VALIDITY);
        }
        file.http = take("http").and_then(|v| reader.section(v, "http"));
        file.listen = reader.list(take("listen"), "listen", Reader::listen);
        file.recipients = take("recipients").and_then(|v| reader.section(v, "recipients"));
        file.limits = take("limits")
            .and_then(|v| reader.section(v, "limits"))
            .unwrap_or_default();
        file.reminder = take("reminder")
            .and_then(|v| reader.section(v, "reminder"))
            .unwrap_or_default();
        file.directory = reader.list(take("directory"), "directory", Reader::directory);
        file.device = reader.list(take("device"), "device", Reader::read);
        if let Some(value) = take("channel") {
            file.channel = reader.channels(value, &mut file.channel_names);
        }
        file.route = reader.list(take("route"), "route", Reader::read);
        file.rule = reader.list(take("rule"), "rule", Reader::read);
        file.outbox = take("outbox")
            .and_then(|v| reader.section(v, "outbox"))
            .unwrap_or_default();
        file.templates = take("templates")
            .and_then(|v| reader.section(v, "templates"))
            .unwrap_or_default();
        file.test = reader.list(take("test"), "test", Reader::read);
        Some(file)
    }
}

fn unknown(what: &str, name: &str, expected: &[&str]) -> String {
    let hint = nearest(name, expected.iter().copied())
        .map(|n| format!("did you mean `{n}`? "))
        .unwrap_or_default();
    format!(
        "unknown {what} `{name}`; {hint}expected one of {}",
        expected.join(", ")
    )
}

struct Reader<'c> {
    check: &'c mut Check,
}

impl Reader<'_> {
    /// Reads one value, and says *every* problem of it: what is wrong is named, taken out, and the rest is read again.
    fn read<T: DeserializeOwned>(&mut self, value: Value<'_>) -> Option<T> {
        self.read_with(value, &[], |value| T::deserialize(value))
    }

    /// Reads a table that stands once. Serde would take an array for it as well.
    fn section<T: DeserializeOwned>(&mut self, value: Value<'_>, name: &str) -> Option<T> {
        if value.get_ref().is_table() {
            return self.read(value);
        }
        self.check
            .problem(value.span(), format!("`{name}` is a table; write [{name}]"));
        None
    }

    /// `also` are keys that belong to the table but were taken out before.
    fn read_with<'t, T>(
        &mut self,
        mut value: Value<'t>,
        also: &[&str],
        read: impl Fn(ValueDeserializer<'t>) -> Result<T, toml::de::Error>,
    ) -> Option<T> {
        let whole = value.span();
        let mut wrong: Vec<String> = Vec::new();
        let mut incomplete = false;
        for _ in 0..MAX_PROBLEMS_PER_TABLE {
            let error = match read(ValueDeserializer::from(value.clone())) {
                Ok(read) => return Some(read).filter(|_| !incomplete),
                Err(error) => error,
            };
            let span = error.span().unwrap_or(whole.clone());
            if span != whole {
                let before = keys(&value);
                let inner = !before
                    .iter()
                    .any(|k| error.message().contains(&format!("`{k}`")));
                let also = if inner { &[] } else { also };
                self.check
                    .problem(span.clone(), said(error.message(), also));
                if !remove(&mut value, &span) {
                    return None;
                }
                let after = keys(&value);
                wrong.extend(before.into_iter().filter(|k| !after.contains(k)));
                continue;
            }
            let (Some(key), DeValue::Table(table)) = (missing(error.message()), value.get_mut())
            else {
                // What stood in for a missing key was refused: enough has been said.
                if !incomplete {
                    self.check.problem(span, said(error.message(), also));
                }
                return None;
            };
            // A key that was wrong isn't missing.
            if !wrong.iter().any(|k| k == key) {
                self.check
                    .problem(span.clone(), format!("`{key}` is missing"));
            }
            let stand_in = DeValue::String(STAND_IN.into());
            table.insert(
                Spanned::new(whole.clone(), key.to_owned().into()),
                Spanned::new(whole.clone(), stand_in),
            );
            incomplete = true;
        }
        None
    }

    /// Reads an array of tables.
    fn list<T>(
        &mut self,
        value: Option<Value<'_>>,
        name: &str,
        read: impl Fn(&mut Self, Value<'_>) -> Option<T>,
    ) -> Vec<Spanned<T>> {
        let Some(value) = value else {
            return Vec::new();
        };
        let span = value.span();
        let DeValue::Array(items) = value.into_inner() else {
            self.check.problem(
                span,
                format!("`{name}` is a list of tables; write [[{name}]]"),
            );
            return Vec::new();
        };
        let items = items.into_iter();
        items
            .filter_map(|item| {
                let span = item.span();
                if !item.get_ref().is_table() {
                    self.check.problem(
                        span,
                        format!("`{name}` is a list of tables; write [[{name}]]"),
                    );
                    return None;
                }
                read(self, item).map(|read| Spanned::new(span, read))
            })
            .collect()
    }

    /// Takes the key out that says of which kind a table is.
    fn kind<'t>(
        &mut self,
        value: Value<'t>,
        key: &str,
        kinds: &[&'static str],
    ) -> Option<(&'static str, Range<usize>, Table<'t>)> {
        let span = value.span();
        let DeValue::Table(mut table) = value.into_inner() else {
            self.check
                .problem(span, format!("this must be a table with the key `{key}`"));
            return None;
        };
        let Some(kind) = table.remove(key) else {
            let near = table
                .iter()
                .map(|(k, _)| k)
                .find(|k| nearest(k.get_ref(), [key]).is_some());
            match near {
                Some(wrong) => self.check.problem(
                    wrong.span(),
                    format!("unknown key `{}`; did you mean `{key}`?", wrong.get_ref()),
                ),
                None => self.check.problem(
                    span,
                    format!("`{key}` is missing; it is one of {}", kinds.join(", ")),
                ),
            }
            return None;
        };
        let Some(text) = kind.get_ref().as_str() else {
            self.check.problem(
                kind.span(),
                format!("`{key}` is one of {}, in quotes", kinds.join(", ")),
            );
            return None;
        };
        match kinds.iter().find(|k| **k == text) {
            Some(kind) => Some((kind, span, table)),
            None => {
                self.check.problem(kind.span(), unknown(key, text, kinds));
                None
            }
        }
    }

    fn listen(&mut self, value: Value<'_>) -> Option<ingest::Config> {
        let (kind, span, table) = self.kind(value, "transport", ingest::KINDS)?;
        let value = Spanned::new(span, DeValue::Table(table));
        self.read_with(value, &["transport"], |value| {
            ingest::Config::read(kind, value)
        })
    }

    fn directory(&mut self, value: Value<'_>) -> Option<directory::Config> {
        let (kind, span, table) = self.kind(value, "type", directory::KINDS)?;
        let value = Spanned::new(span, DeValue::Table(table));
        self.read_with(value, &["type"], |value| {
            directory::Config::deserialize(kind, value)
        })
    }

    fn channels(
        &mut self,
        value: Value<'_>,
        names: &mut Vec<String>,
    ) -> BTreeMap<String, Spanned<(channel::Common, channel::Config)>> {
        let span = value.span();
        let DeValue::Table(table) = value.into_inner() else {
            self.check
                .problem(span, "channels have names; write [channel.mail]");
            return BTreeMap::new();
        };
        let mut channels = BTreeMap::new();
        for (name, value) in table {
            let (name_span, name) = (name.span(), name.into_inner().into_owned());
            names.push(name.clone());
            if let Some(read) = self.channel(value) {
                channels.insert(name, Spanned::new(name_span, read));
            }
        }
        channels
    }

    fn channel(&mut self, value: Value<'_>) -> Option<(channel::Common, channel::Config)> {
        let (kind, span, mut table) = self.kind(value, "type", channel::KINDS)?;
        let mut common = Table::new();
        for key in channel::COMMON_KEYS {
            if let Some((key, value)) = table.remove_entry(*key) {
                common.insert(key, value);
            }
        }
        let common = self.read(Spanned::new(span.clone(), DeValue::Table(common)));
        let value = Spanned::new(span, DeValue::Table(table));
        let also = [&["type"], channel::COMMON_KEYS].concat();
        let config = self.read_with(value, &also, |value| {
            channel::Config::read(kind, value).expect("`kind` gave one of KINDS")
        });
        Some((common?, config?))
    }
}

/// Stands in for a key that is missing, so that the others are looked at; text and address at once.
const STAND_IN: &str = "127.0.0.1:1";

fn keys(value: &Value<'_>) -> Vec<String> {
    value
        .get_ref()
        .as_table()
        .into_iter()
        .flat_map(|table| table.iter().map(|(k, _)| k.get_ref().to_string()))
        .collect()
}

fn missing(message: &str) -> Option<&str> {
    message.strip_prefix("missing field `")?.strip_suffix('`')
}

/// What serde says, for an administrator, and without the value: that may be a secret at the wrong place.
fn said(message: &str, also: &[&str]) -> String {
    let quoted = |text: &str| -> Vec<String> {
        let parts = text.split('`').skip(1).step_by(2);
        parts.map(str::to_owned).collect()
    };
    if let Some(key) = missing(message) {
        return format!("`{key}` is missing");
    }
    if let Some((name, names)) = message
        .strip_prefix("unknown field `")
        .and_then(|rest| rest.split_once('`'))
    {
        let names = quoted(names);
        let all: Vec<&str> = also
            .iter()
            .copied()
            .chain(names.iter().map(String::as_str))
            .collect();
        return unknown("key", name, &all);
    }
    if let Some((word, words)) = message
        .strip_prefix("unknown variant `")
        .and_then(|rest| rest.split_once('`'))
    {
        let words = quoted(words);
        let hint = nearest(word, words.iter().map(String::as_str))
            .map(|n| format!("; did you mean \"{n}\"?"))
            .unwrap_or_default();
        return format!("this must be \"{}\"{hint}", words.join("\" or \""));
    }
    if message.starts_with("invalid ")
        && let Some((_, expected)) = message.rsplit_once(", expected ")
    {
        let expected = match expected {
            "a string" | "path string" | "string" => "text in quotes",
            "a sequence" => "a list",
            "a boolean" => "true or false",
            "u16" => "a whole number up to 65535",
            "u8" | "u32" | "u64" | "usize" => "a whole number",
            other if other.starts_with("struct ") || other == "a map" => "a table",
            other => other,
        };
        return format!("this must be {expected}");
    }
    message.to_owned()
}

/// Takes the innermost entry that holds `span` out of a value. `false`: there is none, as for a key that is missing.
fn remove(value: &mut Value<'_>, span: &Range<usize>) -> bool {
    let holds = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
    match value.get_mut() {
        DeValue::Table(table) => {
            let hit = table
                .iter()
                .find(|(k, v)| holds(k.span()) || holds(v.span()))
                .map(|(k, _)| k.get_ref().to_string());
            let Some(key) = hit else { return false };
            if let Some(inner) = table.get_mut(key.as_str())
                && inner.span() != *span
                && remove(inner, span)
            {
                // What is empty now would be the next error, and a false one.
                if keys(inner).is_empty() && inner.get_ref().is_table() {
                    table.remove(key.as_str());
                }
                return true;
            }
            table.remove(key.as_str()).is_some()
        }
        DeValue::Array(items) => {
            let mut kept = std::mem::replace(items, DeArray::new())
                .into_iter()
                .collect::<Vec<_>>();
            let Some(at) = kept.iter().position(|item| holds(item.span())) else {
                return false;
            };
            if kept[at].span() == *span || !remove(&mut kept[at], span) {
                kept.remove(at);
            }
            for item in kept {
                items.push(item);
            }
            true
        }
        _ => false,
    }
}

// === Building: from each module's Config to the things that run ===

impl File {
    fn build(self, place: &impl Fn(Finding) -> Placed, check: &mut Check) -> Option<Config> {
        let state_dir = state_dir_of(self.state_dir, &check.dir);
        let recipients = match self.recipients {
            Some(recipients) => recipients.build(check),
            None if self.written.contains(&"recipients") => None,
            None => {
                check.problem(None, "[recipients] is missing; write the domains that codes may go to: domains = [\"example.com\"]");
                None
            }
        };
        if !self.written.contains(&"listen") {
            check.problem(None, "there is no [[listen]]; write at least one, such as transport = \"udp\", address = \"0.0.0.0:514\"");
        }
        if !self.written.contains(&"directory") {
            check.warning(
                None,
                "there is no [[directory]], so nobody's address is found",
            );
        }
        let mut listen = self.listen;
        let admissions = listeners(&mut listen, check);
        let listeners = unplaced(listen);
        let names: Vec<_> = listeners.iter().map(|l| l.name().into_owned()).collect();
        for test in &self.test {
            test.get_ref().check(test.span(), &names, check);
        }
        if !listeners.iter().any(ingest::Config::verifies_clients) {
            let certified = self
                .device
                .iter()
                .filter_map(|d| d.get_ref().certified_peers());
            for peers in certified {
                check.warning(
                    peers,
                    "`peers` names a certificate, but no listener asks for one; write `client_ca` in a [[listen]] with transport = \"tls\"",
                );
            }
        }
        let devices = unplaced(self.device);
        let fleet = Fleet::build(&devices, self.validity.0, check);
        let devices = Devices::build(devices, self.validity.0, check);
        let rules = Rules::build(unplaced(self.rule), check);
        let facts = facts(&self.channel_names, &self.channel);
        let texts =
            |c: &&Spanned<(_, channel::Config)>| matches!(c.get_ref().1, channel::Config::Sms(_));
        let knows_phones = |d: &Spanned<directory::Config>| d.get_ref().knows_phones();
        if let Some(sms) = self.channel.values().find(texts)
            && !self.directory.is_empty()
            && !self.directory.iter().any(knows_phones)
        {
            check.warning(
                sms.span(),
                "no [[directory]] here knows phone numbers, so nobody gets a text message; add one of type table, ldap or fortigate",
            );
        }
        let channels = channels(self.channel, &state_dir, check);
        let routes = unplaced(self.route);
        let routes = recipients
            .as_ref()
            .and_then(|r| Routes::build(routes, &facts, r, check));
        let directories = recipients
            .clone()
            .and_then(|r| Directories::build(self.directory, r, fleet.as_ref(), check));
        let templates = self.templates.build(check);
        let has_api = fleet.as_ref().is_some_and(|fleet| fleet.has_any());
        let reminder = self.reminder.build(has_api, check);
        let outbox = self.outbox.build(check)?;
        if check.has_problems() {
            return None;
        }
        let (recipients, rules, fleet) = (recipients?, rules?, fleet?);
        let mismatch = recipients.mismatch;
        Some(Config {
            state_dir,
            http: self.http,
            listeners,
            fleet: Arc::clone(&fleet),
            wanted_ids: rules.ids().collect(),
            pipeline: Pipeline::new(rules, devices?, recipients, admissions),
            dispatch: dispatch::Settings {
                directories: directories?,
                fleet,
                routes: routes?,
                channels,
                templates: templates?,
                limits: self.limits,
                reminder,
                mismatch,
                retention: outbox.retention,
            },
            channels: facts,
            outbox,
            tests: self.test.into_iter().map(|t| placed(t, place)).collect(),
        })
    }
}

fn placed(test: Spanned<example::Config>, place: &impl Fn(Finding) -> Placed) -> Test {
    let finding = Finding {
        weight: Weight::Problem,
        span: Some(test.span()),
        text: String::new(),
    };
    Test {
        place: place(finding),
        example: test.into_inner(),
    }
}

fn unplaced<T>(list: Vec<Spanned<T>>) -> Vec<T> {
    list.into_iter().map(Spanned::into_inner).collect()
}

fn listeners(
    listen: &mut [Spanned<ingest::Config>],
    check: &mut Check,
) -> HashMap<String, Admission> {
    let mut admissions = HashMap::new();
    let mut taken = HashMap::new();
    for listener in listen {
        let (span, listener) = (listener.span(), listener.get_mut());
        listener.build(check);
        let name = listener.name().into_owned();
        let admission = Admission {
            allow: listener.allow().iter().map(|n| n.net()).collect(),
            devices: listener.devices().to_vec(),
        };
        if admissions.insert(name.clone(), admission).is_some() {
            check.problem(
                span.clone(),
                format!("two listeners are called \"{name}\"; give one another `name`"),
            );
        }
        // A port of 0 is another one each time.
        let socket = (listener.is_datagram(), listener.address());
        if listener.address().port() != 0
            && let Some(other) = taken.insert(socket, name.clone())
        {
            check.problem(
                span,
                format!("the listeners \"{other}\" and \"{name}\" have the same address"),
            );
        }
    }
    admissions
}

/// What routes need to know of each channel; one that couldn't be read has its name only, so that no problem follows from another.
fn facts(
    names: &[String],
    configs: &BTreeMap<String, Spanned<(channel::Common, channel::Config)>>,
) -> Vec<ChannelFacts> {
    let facts = |name: &String| {
        let read = configs.get(name).map(Spanned::get_ref);
        ChannelFacts {
            name: name.clone(),
            reveals: read.is_none_or(|(common, config)| config.reveals(common)),
            needs_person: read.is_some_and(|(_, config)| config.needs_person()),
        }
    };
    names.iter().map(facts).collect()
}

fn channels(
    configs: BTreeMap<String, Spanned<(channel::Common, channel::Config)>>,
    state_dir: &Path,
    check: &mut Check,
) -> Vec<Arc<Channel>> {
    let mut channels = Vec::new();
    for (name, config) in configs {
        let span = config.span();
        if name.is_empty()
            || !name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        {
            check.problem(
                span,
                format!("\"{name}\" is no name for a channel; use letters, digits, - and _"),
            );
            continue;
        }
        let (common, config) = config.into_inner();
        check.here = Some(span);
        channels.extend(config.build(&name, common, state_dir, check).map(Arc::new));
        check.here = None;
    }
    channels
}
