//! When a record says that its event happened.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;

use super::Record;

/// A record's own time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// `eventtime`, or date and time with a zone, or a header's time with year and zone.
    At(Timestamp),
    /// Date and time of an unknown zone, read as if it were UTC: right within 14 hours.
    Somewhere(Timestamp),
    /// None that can be read.
    Nothing,
}

impl Record<'_> {
    /// When the event happened: `eventtime`, else date, time and zone, else the header's time.
    pub fn claimed_time(&self) -> Claimed {
        if let Some(time) = self.event_seconds_and_time() {
            return Claimed::At(time.1);
        }
        let local = self.local_time();
        let offset = self.get("tz").and_then(|zone| parse_offset(zone.trim()));
        match (local, offset, self.time) {
            (Some(local), Some(offset), _) => match offset.to_timestamp(local) {
                Ok(time) => Claimed::At(time),
                Err(_) => Claimed::Nothing,
            },
            (_, _, Some(time)) => Claimed::At(time),
            (Some(local), None, None) => match Offset::UTC.to_timestamp(local) {
                Ok(time) => Claimed::Somewhere(time),
                Err(_) => Claimed::Nothing,
            },
            (None, _, None) => Claimed::Nothing,
        }
    }

    /// What tells this event from the next one like it: `eventtime` in whole seconds, else date, time and zone as logged.
    pub fn time_key(&self) -> Option<String> {
        if let Some((seconds, _)) = self.event_seconds_and_time() {
            return Some(seconds.to_string());
        }
        let field = |name| self.get(name).filter(|text| !text.trim().is_empty());
        let (date, time) = (field("date")?, field("time")?);
        let zone = field("tz").unwrap_or_default();
        Some(format!("{} {} {}", date.trim(), time.trim(), zone.trim()))
    }

    fn event_seconds_and_time(&self) -> Option<(i64, Timestamp)> {
        let time = parse_event_time(self.get("eventtime")?.trim())?;
        Some((time.as_second(), time))
    }

    fn local_time(&self) -> Option<DateTime> {
        let (date, time) = (self.get("date")?, self.get("time")?);
        let date: jiff::civil::Date = date.trim().parse().ok()?;
        let time: jiff::civil::Time = time.trim().parse().ok()?;
        Some(date.to_datetime(time))
    }
}

/// `eventtime` is seconds up to FortiOS 6.0 and nanoseconds from 6.2 on, but not everywhere at once: its length decides.
pub fn parse_event_time(text: &str) -> Option<Timestamp> {
    let per_second = match text.len() {
        9..=11 => 1,
        12..=14 => 1_000,
        15..=17 => 1_000_000,
        18..=20 => 1_000_000_000,
        _ => return None,
    };
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: i128 = text.parse().ok()?;
    Timestamp::from_nanosecond(number * (1_000_000_000 / per_second)).ok()
}

/// `+0300`, `+03:00`, `UTC-5:00`, `UTC+2`, `Z`, `UTC`.
fn parse_offset(zone: &str) -> Option<Offset> {
    let rest = zone
        .strip_prefix("UTC")
        .or_else(|| zone.strip_prefix("GMT"))
        .unwrap_or(zone);
    let (sign, digits) = match rest.split_at_checked(1) {
        Some(("+", digits)) => (1, digits),
        Some(("-", digits)) => (-1, digits),
        _ => return matches!(zone, "UTC" | "GMT" | "Z").then_some(Offset::UTC),
    };
    let (hours, minutes) = match digits.split_once(':') {
        Some(parts) => parts,
        None if digits.len() == 4 => digits.split_at_checked(2)?,
        None => (digits, "0"),
    };
    let number = |text: &str| {
        (1..=2)
            .contains(&text.len())
            .then(|| text.bytes().all(|b| b.is_ascii_digit()))
            .filter(|good| *good)
            .and_then(|_| text.parse::<i32>().ok())
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    if hours > 14 || minutes > 59 {
        return None;
    }
    Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::syslog::parse;

    fn claimed(line: &str) -> Claimed {
        parse(line.as_bytes()).unwrap().claimed_time()
    }

    #[test]
    fn the_length_of_eventtime_says_its_unit() {
        let second = Timestamp::from_second(1_764_000_000).unwrap();
        for text in [
            "1764000000",
            "1764000000000",
            "1764000000000000",
            "1764000000000000000",
        ] {
            assert_eq!(parse_event_time(text), Some(second), "{text}");
        }
        for wrong in ["", "0", "-764000000", "17640000x0", "176400000000000000000"] {
            assert_eq!(parse_event_time(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_zone_has_many_forms() {
        for (zone, seconds) in [
            ("+0300", Some(10_800)),
            ("+03:00", Some(10_800)),
            ("-0930", Some(-34_200)),
            ("UTC-5:00", Some(-18_000)),
            ("UTC+2", Some(7_200)),
            ("GMT+05:30", Some(19_800)),
            ("UTC", Some(0)),
            ("Z", Some(0)),
            ("+00:00", Some(0)),
            ("", None),
            ("CET", None),
            ("+", None),
            ("+9900", None),
            ("+03é0", None),
            ("UTCé", None),
        ] {
            assert_eq!(parse_offset(zone).map(Offset::seconds), seconds, "{zone}");
        }
    }

    #[test]
    fn eventtime_counts_before_date_and_time() {
        let at = |text: &str| Claimed::At(text.parse().unwrap());
        assert_eq!(
            claimed("date=2026-11-24 time=11:00:00 tz=\"+0100\" eventtime=1764000000"),
            at("2025-11-24T16:00:00Z")
        );
        assert_eq!(
            claimed("date=2026-11-24 time=11:00:00 tz=\"+0100\""),
            at("2026-11-24T10:00:00Z")
        );
        assert_eq!(
            claimed("date=2026-11-24 time=11:00:00"),
            Claimed::Somewhere("2026-11-24T11:00:00Z".parse().unwrap())
        );
        assert_eq!(
            claimed("2026-11-24T11:00:00+02:00 relay time=11:00:00 logid=1"),
            at("2026-11-24T09:00:00Z")
        );
        assert_eq!(claimed("date=yesterday time=noon"), Claimed::Nothing);
    }

    #[test]
    fn the_same_second_is_the_same_event_in_any_unit() {
        let key = |line: &str| parse(line.as_bytes()).unwrap().time_key();
        assert_eq!(
            key("eventtime=1764000000"),
            key("eventtime=1764000000123456789")
        );
        assert_eq!(
            key("date=2026-11-24 time=11:00:00 tz=\"+0100\"").as_deref(),
            Some("2026-11-24 11:00:00 +0100")
        );
        assert_eq!(key("date=2026-11-24 eventtime=x"), None);
    }
}
