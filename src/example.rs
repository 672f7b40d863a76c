//! `[[test]]`: a log line, and what should become of it. `check` compares.

use std::net::IpAddr;

use serde::Deserialize;
use serde::Deserializer;
use serde::de;
use toml::Spanned;

use crate::activation::Device;
use crate::activation::Stage;
use crate::secret::Redactor;
use crate::secret::Secret;
use crate::secret::mask_address;
use crate::settings::Check;
use crate::settings::Span;

/// One `[[test]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What findings call it.
    pub name: String,
    /// The log line.
    pub line: String,
    /// As if it came in here.
    pub listener: Option<Spanned<String>>,
    /// As if it came from here.
    #[serde(default, deserialize_with = "peer")]
    pub peer: Option<IpAddr>,
    /// What `explain` should say of it.
    pub verdict: Option<Verdict>,
    /// The user as the log names it.
    pub user: Option<String>,
    /// The address that the code should go to.
    pub recipient: Option<String>,
    /// The channels by which it should go.
    pub channels: Option<Vec<String>>,
    /// The stage of the token event.
    pub stage: Option<Stage>,
    /// The id or the name of the device.
    pub device: Option<String>,
}

fn peer<'de, D: Deserializer<'de>>(from: D) -> Result<Option<IpAddr>, D::Error> {
    let text = String::deserialize(from)?;
    let wrong = || de::Error::custom(format!("\"{text}\" is no IP address, such as 10.20.0.1"));
    text.parse().map(Some).map_err(|_| wrong())
}

/// What `explain` says of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Verdict {
    Relay,
    Lifecycle,
    NoCode,
    NoRecipient,
    Rejected,
    Ignore,
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Lifecycle => "lifecycle",
            Self::NoCode => "no-code",
            Self::NoRecipient => "no-recipient",
            Self::Rejected => "rejected",
            Self::Ignore => "ignore",
        }
    }

    /// Whether it hangs on who the person is.
    fn needs_person(self) -> bool {
        matches!(self, Self::Relay | Self::NoRecipient)
    }
}

/// What became of a line.
pub struct Outcome<'o> {
    /// The word of `explain`.
    pub verdict: &'o str,
    /// Its sentence.
    pub reason: &'o str,
    /// The user.
    pub user: Option<&'o str>,
    /// The address.
    pub recipient: Option<&'o str>,
    /// The channels.
    pub channels: &'o [String],
    /// The stage.
    pub stage: Option<Stage>,
    /// The device.
    pub device: Option<&'o Device>,
    /// Never shown.
    pub code: Option<Secret>,
    /// Why the directory that would know the person was not asked, if it was not.
    pub unasked: Option<&'o str>,
}

impl Config {
    /// Says what can't be right. `listeners` are the names that there are.
    pub fn check(&self, span: Span, listeners: &[String], check: &mut Check) {
        if let Some(name) = &self.listener
            && !listeners.contains(name.get_ref())
        {
            let all = listeners.join(", ");
            check.problem(
                name.span(),
                format!(
                    "there is no listener \"{name}\"; there are {all}",
                    name = name.get_ref()
                ),
            );
        }
        if self.verdict.is_none()
            && self.user.is_none()
            && self.recipient.is_none()
            && self.channels.is_none()
            && self.stage.is_none()
            && self.device.is_none()
        {
            check.problem(
                span,
                format!(
                    "the test \"{}\" expects nothing; write at least verdict = \"relay\"",
                    self.name
                ),
            );
        }
    }

    /// What is not as expected, one sentence each; without any code, and with addresses masked.
    pub fn failures(&self, got: &Outcome<'_>) -> Vec<String> {
        let redactor = Redactor::new(got.code.clone());
        let failure = |what: &str, expected: &str, got: &str| {
            redactor.clean(&format!(
                "the test \"{}\" expects the {what} {expected}, but got {got}",
                self.name
            ))
        };
        let mut failures = Vec::new();
        let person_is_known = got.unasked.is_none();
        let verdict = self.verdict.filter(|expected| {
            let hangs = expected.needs_person() && ["relay", "no-recipient"].contains(&got.verdict);
            person_is_known || !hangs
        });
        if let Some(expected) = verdict
            && expected.as_str() != got.verdict
        {
            // Of what is sent the sentence says to whom; of the others, what is amiss.
            let why = match got.verdict {
                "rejected" | "ignore" | "no-code" => format!("{} ({})", got.verdict, got.reason),
                other => other.to_owned(),
            };
            failures.push(failure("verdict", expected.as_str(), &why));
        }
        let device = got.device.map(|d| match &self.device {
            Some(expected) if *expected == d.name => d.name.as_str(),
            _ => d.id.as_str(),
        });
        for (what, expected, got) in [
            ("user", self.user.as_deref(), got.user),
            (
                "stage",
                self.stage.map(Stage::as_str),
                got.stage.map(Stage::as_str),
            ),
            ("device", self.device.as_deref(), device),
        ] {
            if let Some(expected) = expected
                && got != Some(expected)
            {
                failures.push(failure(what, expected, got.unwrap_or("none")));
            }
        }
        if person_is_known {
            let channels = |list: &[String]| match list {
                [] => "none".to_owned(),
                some => some.join(", "),
            };
            if let Some(expected) = &self.channels
                && *expected != got.channels
            {
                failures.push(failure(
                    "channels",
                    &channels(expected),
                    &channels(got.channels),
                ));
            }
            if let Some(expected) = &self.recipient
                && !got
                    .recipient
                    .is_some_and(|got| got.eq_ignore_ascii_case(expected))
            {
                let (expected, got) = (
                    mask_address(expected),
                    got.recipient
                        .map_or_else(|| "none".to_owned(), mask_address),
                );
                let other = if expected == got { "another " } else { "" };
                failures.push(format!(
                    "the test \"{}\" expects the recipient {expected}, but got {other}{got}",
                    self.name
                ));
            }
        }
        failures
    }

    /// What of it could not be compared, if anything.
    pub fn skipped(&self, got: &Outcome<'_>) -> Option<String> {
        let why = got.unasked?;
        let hangs = self.recipient.is_some()
            || self.channels.is_some()
            || self.verdict.is_some_and(Verdict::needs_person);
        hangs.then(|| {
            format!(
                "whom the code of the test \"{}\" goes to is not compared: {why}",
                self.name
            )
        })
    }
}
