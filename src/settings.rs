//! How a module's configuration is read: durations, secrets, paths, and every problem with its place in the file.
//!
//! A module owns a `Config` (plain serde, `deny_unknown_fields`) and a `build(self, check: &mut Check)`. What `build`
//! finds wrong it says to [`Check`] and goes on, so that an administrator sees all problems at once.

use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::Deserializer;
use serde::de;

use crate::secret::Secret;

/// The longest secret; a file that never ends must not be read for ever.
const MAX_SECRET_BYTES: u64 = 64 << 10;
/// What systemd puts before the file names of the unit's directory of credentials (`LoadCredential=` in `deploy/ftm-relay.service`).
const CREDENTIAL_PREFIX: &str = "ftm-relay_";

/// A place in the configuration file, in bytes.
pub type Span = Range<usize>;

/// How much a [`Finding`] matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// The configuration can't be used.
    Problem,
    /// It can, but is probably not what was meant.
    Warning,
    /// It couldn't be checked here.
    Note,
}

/// Something a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub weight: Weight,
    /// Where it stands, if it stands anywhere.
    pub span: Option<Span>,
    /// What is wrong and what to write instead, in one sentence, without any secret.
    pub text: String,
}

/// One look at a configuration: what surrounds it, and what was found.
#[derive(Debug)]
pub struct Check {
    /// The directory of the configuration file; its paths are relative to it.
    pub dir: PathBuf,
    /// Where systemd put the unit's credentials, if this process is in the unit.
    pub credentials: Option<PathBuf>,
    /// The service is about to run: a secret that can't be read is then a problem, not a note.
    pub for_service: bool,
    /// The place of what says none itself.
    pub here: Option<Span>,
    /// `credentials` is the directory that the packaged unit takes them from, not one that a unit has set: others may take
    /// them from elsewhere, so what isn't there is no problem.
    pub guessed: bool,
    needs_secrets: bool,
    findings: Vec<Finding>,
}

impl Check {
    /// A check of a file in `dir`.
    pub fn new(dir: impl Into<PathBuf>, credentials: Option<PathBuf>, for_service: bool) -> Self {
        Self {
            dir: dir.into(),
            credentials,
            for_service,
            here: None,
            guessed: false,
            needs_secrets: true,
            findings: Vec::new(),
        }
    }

    /// The same for a command that can do without secrets: one that can't be read is only noted.
    #[must_use]
    pub fn without_secrets(self) -> Self {
        Self {
            needs_secrets: false,
            ..self
        }
    }

    fn secret_problem(&mut self, span: Span, text: String) {
        if self.needs_secrets {
            self.problem(span, text);
        } else {
            self.note(span, text);
        }
    }

    /// Something that forbids the use of this configuration.
    pub fn problem(&mut self, span: impl Into<Option<Span>>, text: impl Into<String>) {
        self.findings.push(Finding {
            weight: Weight::Problem,
            span: span.into().or_else(|| self.here.clone()),
            text: text.into(),
        });
    }

    /// Something that is probably not meant.
    pub fn warning(&mut self, span: impl Into<Option<Span>>, text: impl Into<String>) {
        self.findings.push(Finding {
            weight: Weight::Warning,
            span: span.into().or_else(|| self.here.clone()),
            text: text.into(),
        });
    }

    /// Something that couldn't be looked at from here.
    pub fn note(&mut self, span: impl Into<Option<Span>>, text: impl Into<String>) {
        self.findings.push(Finding {
            weight: Weight::Note,
            span: span.into().or_else(|| self.here.clone()),
            text: text.into(),
        });
    }

    /// Everything found, in the order of the file.
    pub fn findings(&self) -> Vec<Finding> {
        let mut found = self.findings.clone();
        found.sort_by_key(|f| (f.span.as_ref().map_or(usize::MAX, |s| s.start), f.weight));
        found.dedup();
        found
    }

    /// Whether the configuration can't be used.
    pub fn has_problems(&self) -> bool {
        self.findings.iter().any(|f| f.weight == Weight::Problem)
    }

    /// A path of the configuration, made absolute as the contract says: relative to the file that names it.
    pub fn path(&self, path: &Path) -> PathBuf {
        self.dir.join(path)
    }

    /// Reads a secret. `None`: it couldn't be read, and a problem (or, for a credential outside the unit, a note) says so.
    pub fn secret(&mut self, source: &SecretSource) -> Option<Secret> {
        let span = source.span.clone();
        match &source.from {
            From::Plain(secret) => {
                self.warning(
                    span,
                    "a secret stands in the file itself; write { credential = \"…\" }, { file = \"…\" } or { env = \"…\" }",
                );
                Some(secret.clone())
            }
            From::Env(name) => match std::env::var(name) {
                Ok(value) if !value.is_empty() => Some(Secret::new(value)),
                _ => {
                    self.secret_problem(
                        span,
                        format!("the environment variable {name} is not set or empty"),
                    );
                    None
                }
            },
            From::File(path) => {
                let path = self.path(path);
                self.secret_file(&path, span)
            }
            From::Credential(name) => match self.credentials.clone() {
                Some(dir) if !self.guessed || credential(&dir, name).exists() => {
                    self.secret_file(&credential(&dir, name), span)
                }
                None if self.for_service => {
                    self.secret_problem(
                        span,
                        format!("the credential {name} can't be read: $CREDENTIALS_DIRECTORY is not set (LoadCredential= in the unit sets it)"),
                    );
                    None
                }
                _ => {
                    self.note(
                        span,
                        format!("the credential {name} can't be seen outside the service unit"),
                    );
                    None
                }
            },
        }
    }

    fn secret_file(&mut self, path: &Path, span: Span) -> Option<Secret> {
        let mut text = String::new();
        let read = std::fs::File::open(path)
            .and_then(|file| file.take(MAX_SECRET_BYTES).read_to_string(&mut text));
        // Wiped on drop, as the copy in the secret is.
        let text = zeroize::Zeroizing::new(text);
        match read {
            Ok(_) if !text.trim_end_matches(['\r', '\n']).is_empty() => {
                Some(Secret::new(text.trim_end_matches(['\r', '\n'])))
            }
            Ok(_) => {
                self.secret_problem(span, format!("{} is empty", path.display()));
                None
            }
            Err(e) => {
                self.secret_problem(span, format!("{} can't be read: {e}", path.display()));
                None
            }
        }
    }
}

/// The file of a credential: `NAME`, as `LoadCredential=NAME:FILE` makes it, else `ftm-relay_NAME`, as
/// `LoadCredential=ftm-relay:DIRECTORY` makes it of the directory's file `NAME`.
fn credential(dir: &Path, name: &str) -> PathBuf {
    let of_a_directory = dir.join(format!("{CREDENTIAL_PREFIX}{name}"));
    let alone = dir.join(name);
    if !alone.exists() && of_a_directory.exists() {
        of_a_directory
    } else {
        alone
    }
}

/// Where a secret stands: `{ credential = "…" }`, `{ file = "…" }`, `{ env = "…" }`, or plain text for a quick trial.
#[derive(Clone, Debug)]
pub struct SecretSource {
    /// Its place in the file.
    pub span: Span,
    from: From,
}

impl SecretSource {
    /// The text, where it stands in the file itself: for values that are a secret only sometimes, such as a URL.
    pub fn plain(&self) -> Option<&Secret> {
        match &self.from {
            From::Plain(secret) => Some(secret),
            _ => None,
        }
    }
}

#[derive(Clone, Debug)]
enum From {
    Plain(Secret),
    Env(String),
    File(PathBuf),
    Credential(String),
}

impl<'de> Deserialize<'de> for SecretSource {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let spanned = toml::Spanned::<From>::deserialize(from)?;
        Ok(Self {
            span: spanned.span(),
            from: spanned.into_inner(),
        })
    }
}

const NOT_TEXT: &str = "a secret is text; put it in quotes";
/// The key under which the TOML reader hands a date over.
const TOML_TIME: &str = "$__toml_private_datetime";

impl<'de> Deserialize<'de> for From {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = From;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("{ credential = \"name\" }, { file = \"path\" } or { env = \"NAME\" }")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<From, E> {
                Ok(From::Plain(Secret::new(text)))
            }

            // A secret of a wrong type must not be named in the error.
            fn visit_i64<E: de::Error>(self, _: i64) -> Result<From, E> {
                Err(E::custom(NOT_TEXT))
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<From, E> {
                Err(E::custom(NOT_TEXT))
            }

            fn visit_bool<E: de::Error>(self, _: bool) -> Result<From, E> {
                Err(E::custom(NOT_TEXT))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<From, A::Error> {
                let Some(key) = map.next_key::<String>()? else {
                    return Err(de::Error::custom(
                        "an empty table names no secret; write { credential = \"name\" }",
                    ));
                };
                if key == TOML_TIME {
                    return Err(de::Error::custom(NOT_TEXT));
                }
                let value: String = map.next_value()?;
                if let Some((second, _)) = map.next_entry::<String, de::IgnoredAny>()? {
                    return Err(de::Error::custom(format!(
                        "a secret has one source, not both `{key}` and `{second}`"
                    )));
                }
                match key.as_str() {
                    "credential" if value.contains('/') => {
                        Err(de::Error::custom("a credential's name holds no /"))
                    }
                    "credential" => Ok(From::Credential(value)),
                    "file" => Ok(From::File(value.into())),
                    "env" => Ok(From::Env(value)),
                    other => Err(de::Error::unknown_field(
                        other,
                        &["credential", "file", "env"],
                    )),
                }
            }
        }
        from.deserialize_any(Visitor)
    }
}

/// Whether a URL's host is this machine, so that nobody on the way reads what goes there.
pub fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    match address.parse::<std::net::IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => host == "localhost",
    }
}

/// The candidate that was probably meant by `name`: at most two letters away, and closer than its own length.
pub fn nearest<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    candidates
        .into_iter()
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(d, candidate)| *d <= 2 && *d < candidate.chars().count())
        .min()
        .map(|(_, candidate)| candidate)
}

/// Edit distance, with a swap of neighbours as one edit.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) =
        (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// A duration as the configuration writes it: `"90s"`, `"10m"`, `"72h"`, `"30d"`, `"500ms"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period(pub Duration);

impl Period {
    /// So many seconds.
    pub const fn seconds(n: u64) -> Self {
        Self(Duration::from_secs(n))
    }
}

impl std::str::FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "\"{text}\" is no duration; write a number and ms, s, m, h or d, such as \"90s\" or \"72h\""
            )
        };
        let at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = text[..at].parse().map_err(|_| wrong())?;
        let unit_ms = match &text[at..] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        // A century is longer than anything here lives, and keeps every later addition of times within its type.
        match number.checked_mul(unit_ms) {
            Some(ms) if ms <= 100 * 365 * 86_400_000 => Ok(Self(Duration::from_millis(ms))),
            _ => Err(format!("\"{text}\" is too long")),
        }
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested_only_when_it_is_near() {
        assert_eq!(nearest("mali", ["mail", "desk"]), Some("mail"));
        assert_eq!(nearest("transprt", ["transport"]), Some("transport"));
        assert_eq!(nearest("hook", ["mail", "desk"]), None);
        assert_eq!(nearest("ab", ["x"]), None);
    }

    #[test]
    fn a_period_is_a_number_and_a_unit() {
        assert_eq!("90s".parse(), Ok(Period::seconds(90)));
        assert_eq!("30d".parse(), Ok(Period::seconds(30 * 86_400)));
        assert_eq!("500ms".parse(), Ok(Period(Duration::from_millis(500))));
        for wrong in [
            "",
            "90",
            "s",
            "1w",
            "-1s",
            "1.5h",
            "99999999999999999999d",
            "999999999d",
        ] {
            assert!(wrong.parse::<Period>().is_err(), "{wrong}");
        }
    }
}
