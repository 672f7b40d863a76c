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
    let mut deserializer = serde_json::Deserializer::from_str(&text);
    let members = Members::deserialize(&mut deserializer).map_err(|_| RecordError::Json)?;
    // An object with text behind it is the object of somebody's value, cut out of another message.
    deserializer.end().map_err(|_| RecordError::Json)?;
    let mut fields = Fields::new(String::from_utf8_lossy);
    for (name, value) in members.0 {
        let Some(value) = value.0 else {
            continue;
        };
        // No FortiGate writes a name with escapes; one that spells a deciding field is an attempt.
        let at = memmem::find(body, name.text.as_bytes()).filter(|_| name.is_plain);
        let Some(at) = at else {
            if super::deciding(name.text.as_bytes()).is_some() {
                return Err(RecordError::Json);
            }
            continue;
        };
        // The gate looks for the id in the bytes; one that is written in another way would pass it by.
        if name.text == "logid" && !value.is_plain {
            return Err(RecordError::EscapedId);
        }
        fields.push(&body[at..at + name.text.len()], Value::Text(value.text))?;
    }
    Ok(fields)
}

/// Text, and whether it stands in the message just so.
struct Text {
    text: String,
    is_plain: bool,
}

impl Text {
    fn plain(text: impl ToString) -> Self {
        Self {
            text: text.to_string(),
            is_plain: true,
        }
    }

    fn rewritten(text: impl ToString) -> Self {
        Self {
            text: text.to_string(),
            is_plain: false,
        }
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match Scalar::deserialize(from)?.0 {
            Some(text) => Ok(text),
            None => Err(de::Error::custom("no text")),
        }
    }
}

/// The members of an object, in its order, each as often as it stands there.
struct Members(Vec<(Text, Scalar)>);

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
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        from.deserialize_map(Visitor)
    }
}

/// A string, a number or a truth value as text; anything else as nothing.
struct Scalar(Option<Text>);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Scalar, E> {
                Ok(Scalar(Some(Text::plain(text))))
            }

            fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar(Some(Text::rewritten(text))))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Scalar, E> {
                Ok(Scalar(Some(Text::plain(number))))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Scalar, E> {
                Ok(Scalar(Some(Text::rewritten(number))))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Scalar, E> {
                Ok(Scalar(Some(Text::rewritten(number))))
            }

            fn visit_bool<E>(self, truth: bool) -> Result<Scalar, E> {
                Ok(Scalar(Some(Text::plain(truth))))
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
