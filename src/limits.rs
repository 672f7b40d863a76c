//! How many activations one person may get (`[limits]`): forged events must not become a mail bomb.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use serde::Deserializer;
use serde::de;

/// `[limits]`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Activations to one address; more are held and escalated.
    pub per_person: Rate,
}

/// So many in such a time, written as `10/h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// So many, at least 1.
    pub count: u32,
    /// In such a time.
    pub window: Duration,
}

const UNITS_SECONDS: [(&str, u64); 4] = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)];

impl Default for Rate {
    fn default() -> Self {
        Self {
            count: 10,
            window: Duration::from_secs(3_600),
        }
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "\"{text}\" is no rate; write a number, / and s, m, h or d, such as \"10/h\" for ten in an hour"
            )
        };
        let (count, unit) = text.split_once('/').ok_or_else(wrong)?;
        let (count, unit) = (count.trim(), unit.trim());
        if count.is_empty() || !count.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        let &(_, seconds) = UNITS_SECONDS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(wrong)?;
        match count.parse() {
            Ok(0) => Err(format!(
                "\"{text}\" would hold every code; write at least 1"
            )),
            Ok(count) => Ok(Self {
                count,
                window: Duration::from_secs(seconds),
            }),
            Err(_) => Err(format!("\"{text}\" is too many; at most {}", u32::MAX)),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.window.as_secs();
        match UNITS_SECONDS.iter().find(|(_, s)| *s == seconds) {
            Some((unit, _)) => write!(f, "{}/{unit}", self.count),
            None => write!(f, "{} in {seconds} s", self.count),
        }
    }
}

impl<'de> Deserialize<'de> for Rate {
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
    fn a_rate_is_a_number_in_a_unit_of_time() {
        for (text, count, seconds) in [
            ("10/h", 10, 3_600),
            ("1/s", 1, 1),
            ("5 / m", 5, 60),
            ("200/d", 200, 86_400),
        ] {
            let window = Duration::from_secs(seconds);
            assert_eq!(text.parse(), Ok(Rate { count, window }), "{text}");
        }
        assert_eq!(Config::default().per_person.to_string(), "10/h");
    }

    #[test]
    fn anything_else_is_told_what_to_write() {
        for (text, says) in [
            ("10", "such as \"10/h\""),
            ("/h", "such as \"10/h\""),
            ("10/w", "such as \"10/h\""),
            ("-1/h", "such as \"10/h\""),
            ("1.5/h", "such as \"10/h\""),
            ("0/h", "at least 1"),
            ("99999999999/h", "too many"),
        ] {
            let error = text.parse::<Rate>().unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
        let error = toml::from_str::<Config>("per_persom = \"1/h\"").unwrap_err();
        assert!(error.message().contains("per_person"), "{error}");
    }
}
