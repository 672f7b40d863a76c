//! The device's own event log, record by record, as bytes that the pipeline reads like any other frame.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::de;
use zeroize::Zeroizing;

use crate::syslog;

use super::FortiGate;
use super::client::Resource;
use super::error::ApiError;

/// Where a FortiGate keeps logs that it can read back. Where it keeps none itself, the log server it writes to is asked.
const OWN: [&str; 2] = ["disk", "memory"];
const FORTIANALYZER: &str = "fortianalyzer";
/// So many records are asked for at a time.
const ROWS_PER_PAGE: usize = 500;
/// So many pages are read: on a device that ignores `filter` these are its last 20,000 system events.
const MAX_PAGES: usize = 40;
/// A search that isn't finished is asked for again so often, with this pause.
const MAX_WAITS: usize = 5;
const SEARCH_PAUSE: Duration = Duration::from_millis(500);
/// So many message ids stand in one filter; with more, the device isn't asked to filter.
const MAX_IDS_PER_FILTER: usize = 16;

/// One record of the log: a JSON object as a FortiGate with `set format json` would send it. It may hold a code.
pub struct Record {
    /// The object.
    pub bytes: Zeroizing<Vec<u8>>,
    /// When it happened, if it says so.
    pub time: Option<Timestamp>,
}

/// What a device's log holds.
#[derive(Default)]
pub struct Events {
    /// Oldest first.
    pub records: Vec<Record>,
    /// One of its logs could not be read this time, so there may be more.
    pub missing: Option<ApiError>,
}

impl FortiGate {
    /// The records of these message ids since a time, from wherever the device keeps its log.
    ///
    /// Both disk and memory are read, for nobody documents what a device answers for a log that is switched off; what
    /// stands in both is told apart by whoever takes it. Each record names this device, whatever it says itself.
    pub async fn events(
        &self,
        vdom: &str,
        ids: &BTreeSet<u32>,
        since: Timestamp,
    ) -> Result<Events, ApiError> {
        let mut events = Events::default();
        let (mut answered, mut refused) = (false, None);
        for place in OWN.into_iter().chain([FORTIANALYZER]) {
            if place == FORTIANALYZER && answered {
                break;
            }
            match self.read_log(place, vdom, ids, since).await {
                Ok(read) => {
                    answered = true;
                    events.records.extend(read.records);
                    events.missing = events.missing.or(read.missing);
                }
                // It has no such log.
                Err(e @ ApiError::Refused { .. }) => {
                    refused.get_or_insert(e);
                }
                // It has no such VDOM, which says more.
                Err(e @ ApiError::Missing { .. }) => refused = Some(e),
                Err(e @ ApiError::Forbidden { .. }) => return Err(e),
                Err(e) => {
                    events.missing.get_or_insert(e);
                }
            }
        }
        if !answered && let Some(error) = events.missing.take().or(refused) {
            return Err(error);
        }
        events.records.sort_by_key(|record| record.time);
        Ok(events)
    }

    async fn read_log(
        &self,
        place: &'static str,
        vdom: &str,
        ids: &BTreeSet<u32>,
        since: Timestamp,
    ) -> Result<Events, ApiError> {
        let filter = ids
            .iter()
            .map(|id| format!("logid==0100{id:06}"))
            .collect::<Vec<_>>()
            .join(",");
        let rows = ROWS_PER_PAGE.to_string();
        let mut found = Events::default();
        let mut session: Option<String> = None;
        let (mut start, mut waits) = (0, 0);
        for _ in 0..MAX_PAGES + MAX_WAITS {
            let from = start.to_string();
            let mut query = vec![("rows", rows.as_str()), ("start", from.as_str())];
            if ids.len() <= MAX_IDS_PER_FILTER {
                query.push(("filter", &filter));
            }
            if let Some(session) = &session {
                query.push(("session_id", session));
            }
            let page = self
                .client
                .page::<Entry>(Resource::Log(place), vdom, &query)
                .await?;
            session = page.session_id.map(|id| id.0.to_string()).or(session);
            let entries = page.results.0;
            let is_searching = page.completed.is_some_and(|done| done.0 < 100);
            let read = entries.len();
            let is_unfinished = is_searching && read < ROWS_PER_PAGE;
            if is_unfinished && waits < MAX_WAITS {
                waits += 1;
                tokio::time::sleep(SEARCH_PAUSE).await;
                continue;
            }
            let time_of = |entry: Option<&Entry>| entry.and_then(|entry| entry.time);
            // The newest come first: behind an old one there are only older ones.
            let is_past = match (time_of(entries.first()), time_of(entries.last())) {
                (Some(first), Some(last)) => first >= last && last < since,
                _ => false,
            };
            let wanted = entries.into_iter().filter(|entry| {
                entry.message_id.is_some_and(|id| ids.contains(&id))
                    && entry.time.is_none_or(|time| time >= since)
                    && self.may_speak_for(entry.devid.as_deref())
            });
            found
                .records
                .extend(wanted.map(|entry| entry.record(&self.id, vdom)));
            if is_unfinished && !is_past {
                found.missing = Some(ApiError::away(format!(
                    "{} does not finish searching its log ({place})",
                    self.host()
                )));
            }
            if read < ROWS_PER_PAGE || is_past {
                return Ok(found);
            }
            start += read;
            if start >= ROWS_PER_PAGE * MAX_PAGES {
                break;
            }
        }
        // What was found is of use, and on a device whose newest come first it is what matters.
        found.missing = Some(ApiError::nonsense(format!(
            "{} has more than {} records in its log ({place})",
            self.host(),
            ROWS_PER_PAGE * MAX_PAGES
        )));
        Ok(found)
    }

    /// A log server may hold other devices' records as well.
    fn may_speak_for(&self, devid: Option<&str>) -> bool {
        devid.is_none_or(|devid| self.ids.iter().any(|id| id.eq_ignore_ascii_case(devid)))
    }
}

/// One record as the API gives it: its plain members written down again, those left out that say which device it is.
struct Entry {
    members: Zeroizing<Vec<u8>>,
    message_id: Option<u32>,
    time: Option<Timestamp>,
    devid: Option<String>,
    has_vdom: bool,
}

/// Enough for most records, so that their bytes are moved seldom.
const USUAL_RECORD_BYTES: usize = 2048;

impl Entry {
    fn record(mut self, device: &str, vdom: &str) -> Record {
        self.push("devid", &device);
        if !self.has_vdom {
            self.push("vd", &vdom);
        }
        self.members.insert(0, b'{');
        self.members.push(b'}');
        Record {
            bytes: self.members,
            time: self.time,
        }
    }

    fn push(&mut self, name: &str, value: &impl Serialize) {
        if !self.members.is_empty() {
            self.members.push(b',');
        }
        let written = serde_json::to_writer(&mut *self.members, name)
            .map(|()| self.members.push(b':'))
            .and_then(|()| serde_json::to_writer(&mut *self.members, value));
        debug_assert!(written.is_ok(), "writing plain values to memory can't fail");
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
                let mut entry = Entry {
                    members: Zeroizing::new(Vec::with_capacity(USUAL_RECORD_BYTES)),
                    message_id: None,
                    time: None,
                    devid: None,
                    has_vdom: false,
                };
                while let Some((name, value)) = map.next_entry::<Text, Plain>()? {
                    let text = value.text();
                    match &*name.0 {
                        "devid" => {
                            entry.devid = text.map(Cow::into_owned);
                            continue;
                        }
                        "logid" => entry.message_id = text.and_then(|id| message_id(&id)),
                        "eventtime" => {
                            entry.time = text.and_then(|time| syslog::parse_event_time(&time));
                        }
                        "vd" => entry.has_vdom = true,
                        _ => {}
                    }
                    if !matches!(value, Plain::Nothing) {
                        entry.push(&name.0, &value);
                    }
                }
                Ok(entry)
            }
        }
        from.deserialize_map(Visitor)
    }
}

/// The last six digits of `logid`.
fn message_id(logid: &str) -> Option<u32> {
    let digits = logid.trim();
    let from = digits.len().saturating_sub(6);
    digits
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| digits[from..].parse().ok())
        .flatten()
}

/// A member's name.
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match Plain::deserialize(from)? {
            Plain::Text(text) => Ok(Self(text)),
            _ => Err(de::Error::custom("no text")),
        }
    }
}

/// A member's value, if it is a plain one.
#[derive(Serialize)]
#[serde(untagged)]
enum Plain<'a> {
    Text(Cow<'a, str>),
    Positive(u64),
    Negative(i64),
    Fraction(f64),
    Truth(bool),
    Nothing,
}

impl Plain<'_> {
    fn text(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Text(text) => Some(Cow::Borrowed(text)),
            Self::Positive(number) => Some(Cow::Owned(number.to_string())),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Plain<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Plain<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Plain<'de>, E> {
                Ok(Plain::Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Plain<'de>, E> {
                Ok(Plain::Text(Cow::Owned(text.to_owned())))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Plain<'de>, E> {
                Ok(Plain::Positive(number))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Plain<'de>, E> {
                Ok(Plain::Negative(number))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Plain<'de>, E> {
                Ok(Plain::Fraction(number))
            }

            fn visit_bool<E>(self, truth: bool) -> Result<Plain<'de>, E> {
                Ok(Plain::Truth(truth))
            }

            fn visit_unit<E>(self) -> Result<Plain<'de>, E> {
                Ok(Plain::Nothing)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Plain<'de>, A::Error> {
                while list.next_element::<de::IgnoredAny>()?.is_some() {}
                Ok(Plain::Nothing)
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Plain<'de>, A::Error> {
                while map
                    .next_entry::<de::IgnoredAny, de::IgnoredAny>()?
                    .is_some()
                {}
                Ok(Plain::Nothing)
            }
        }
        from.deserialize_any(Visitor)
    }
}
