//! FortiOS's `json` format (7.4.1 and later): one object, its members the fields of the default format.
//!
//! No capture of it is public, so this is tolerant: with a priority or without, numbers or strings, other values skipped.

use std::fmt;

use memchr::memmem;
use serde::Deserialize;
use serde::Deserializer;
use serde::de;

use super::Fields;
use super::Format;
use super::RecordError;
use super::Value;

pub(super) const FORMAT: Format = Format {
    name: "json",
    parse: |header| header.body.starts_with(b"{").then(|| fields(header.body)),
};

fn fields(body: &[u8]) -> Result<Fields<'_>, RecordError> {
    let text = String::from_utf8_lossy(body);
    let members = Members::deserialize(&mut serde_json::Deserializer::from_str(&text))
        .map_err(|_| RecordError::Json)?;
    let mut fields = Fields::new(String::from_utf8_lossy);
    for (name, value) in members.0 {
        // The gate looks for the id's digits in the bytes; an id written with escapes would pass it by.
        if name == "logid" && memmem::find(body, value.as_bytes()).is_none() {
            return Err(RecordError::EscapedId);
        }
        // A name with escapes is not found in the body; FortiOS has none, and a deciding one can't be meant.
        let Some(at) = memmem::find(body, name.as_bytes()) else {
            if super::deciding(name.as_bytes()).is_some() {
                return Err(RecordError::Json);
            }
            continue;
        };
        fields.push(&body[at..at + name.len()], Value::Text(value))?;
    }
    Ok(fields)
}

/// The scalar members of an object, in its order, each as often as it stands there.
struct Members(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::with_capacity(Fields::USUAL);
                while let Some((name, value)) = map.next_entry::<String, Scalar>()? {
                    if let Some(text) = value.0 {
                        members.push((name, text));
                    }
                }
                Ok(Members(members))
            }
        }
        from.deserialize_map(Visitor)
    }
}

/// A string, a number or a truth value as text; anything else as nothing.
struct Scalar(Option<String>);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar(Some(text.to_owned())))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Scalar, E> {
                Ok(Scalar(Some(number.to_string())))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Scalar, E> {
                Ok(Scalar(Some(number.to_string())))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Scalar, E> {
                Ok(Scalar(Some(number.to_string())))
            }

            fn visit_bool<E>(self, truth: bool) -> Result<Scalar, E> {
                Ok(Scalar(Some(truth.to_string())))
            }

            fn visit_unit<E>(self) -> Result<Scalar, E> {
                Ok(Scalar(None))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Scalar, A::Error> {
                while list.next_element::<de::IgnoredAny>()?.is_some() {}
                Ok(Scalar(None))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Scalar, A::Error> {
                while map
                    .next_entry::<de::IgnoredAny, de::IgnoredAny>()?
                    .is_some()
                {}
                Ok(Scalar(None))
            }
        }
        from.deserialize_any(Visitor)
    }
}
