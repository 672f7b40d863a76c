//! `[[test]]`: a log line, and what should become of it. `check` compares.

use std::net::IpAddr;

use serde::Deserialize;
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
        let mut failures = Vec::new();
        let mut expect = |what: &str, expected: Option<String>, got: Option<String>| {
            if let Some(expected) = expected
                && got.as_ref() != Some(&expected)
            {
                let got = got.unwrap_or_else(|| "none".to_owned());
                failures.push(redactor.clean(&format!(
                    "the test \"{}\" expects the {what} {expected}, but got {got}",
                    self.name
                )));
            }
        };
        let person_is_known = got.unasked.is_none();
        let verdict = self.verdict.filter(|expected| {
            let hangs = expected.needs_person() && ["relay", "no-recipient"].contains(&got.verdict);
            person_is_known || !hangs
        });
        expect(
            "verdict",
            verdict.map(|v| v.as_str().to_owned()),
            Some(got.verdict.to_owned()),
        );
        expect("user", self.user.clone(), got.user.map(str::to_owned));
        expect(
            "stage",
            self.stage.map(|s| s.to_string()),
            got.stage.map(|s| s.to_string()),
        );
        let device = got.device.map(|d| match &self.device {
            Some(expected) if *expected == d.name => d.name.clone(),
            _ => d.id.clone(),
        });
        expect("device", self.device.clone(), device);
        if person_is_known {
            let channels = |list: &[String]| match list {
                [] => "none".to_owned(),
                some => some.join(", "),
            };
            expect(
                "channels",
                self.channels.as_deref().map(channels),
                Some(channels(got.channels)),
            );
            let same = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
            if let Some(expected) = &self.recipient
                && !got.recipient.is_some_and(|got| same(got, expected))
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
