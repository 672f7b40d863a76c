//! The JSON of FortiOS's REST API, tolerant in everything that doesn't decide: absent members, numbers as text.

use std::fmt;
use std::marker::PhantomData;

use jiff::Timestamp;
use serde::Deserialize;
use serde::Deserializer;
use serde::de;

use super::Code;
use super::Holder;
use super::Owner;
use super::Token;

/// What every answer is wrapped in.
#[derive(Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
pub(super) struct Envelope<T> {
    #[serde(default)]
    pub(super) vdom: Option<String>,
    #[serde(default)]
    pub(super) serial: Option<String>,
    #[serde(default)]
    pub(super) results: Rows<T>,
    /// Of a log: which search this was.
    #[serde(default)]
    pub(super) session_id: Option<Number>,
    /// Of a log: how much of the search is done, in per cent.
    #[serde(default)]
    pub(super) completed: Option<Number>,
}

/// `results`: a list, or a single object.
pub(super) struct Rows<T>(pub(super) Vec<T>);

impl<T> Default for Rows<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Rows<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Visitor<T> {
            type Value = Rows<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list or an object")
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Rows<T>, A::Error> {
                let mut rows = Vec::new();
                while let Some(row) = list.next_element()? {
                    rows.push(row);
                }
                Ok(Rows(rows))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Rows<T>, A::Error> {
                T::deserialize(de::value::MapAccessDeserializer::new(map))
                    .map(|row| Rows(vec![row]))
            }

            fn visit_unit<E>(self) -> Result<Rows<T>, E> {
                Ok(Rows::default())
            }
        }
        from.deserialize_any(Visitor(PhantomData))
    }
}

/// A whole number, which FortiOS writes with quotes or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number(pub(super) i64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }

            fn visit_i64<E>(self, number: i64) -> Result<Number, E> {
                Ok(Number(number))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Number, E> {
                Ok(Number(i64::try_from(number).unwrap_or(i64::MAX)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Number, E> {
                match text.trim() {
                    "" => Ok(Number(0)),
                    text => text.parse().map(Number).map_err(|_| E::custom("no number")),
                }
            }
        }
        from.deserialize_any(Visitor)
    }
}

/// `activation-code`. It is looked at where it stands, so that no copy of it is made on the way.
struct Shown(Code);

impl<'de> Deserialize<'de> for Shown {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Shown;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text")
            }

            fn visit_str<E>(self, text: &str) -> Result<Shown, E> {
                Ok(Shown(Code::read(text)))
            }

            fn visit_unit<E>(self) -> Result<Shown, E> {
                Ok(Shown(Code::Absent))
            }
        }
        from.deserialize_any(Visitor)
    }
}

/// An object of `user/fortitoken`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct TokenRow {
    serial_number: String,
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    activation_code: Option<Shown>,
    #[serde(default)]
    activation_expire: Option<Number>,
    #[serde(default)]
    reg_id: Option<String>,
}

impl TokenRow {
    pub(super) fn serial(&self) -> &str {
        &self.serial_number
    }

    fn is_activated(&self) -> bool {
        self.reg_id
            .as_deref()
            .is_some_and(|id| !id.trim().is_empty())
    }

    /// Provisioned, and no phone has it yet.
    pub(super) fn is_pending(&self) -> bool {
        let has_code = match &self.activation_code {
            None | Some(Shown(Code::Absent)) => false,
            Some(Shown(_)) => true,
        };
        let expires = self.activation_expire.is_some_and(|at| at.0 > 0);
        (has_code || expires) && !self.is_activated()
    }

    pub(super) fn token(self, owner: Option<Owner>) -> Token {
        let is_activated = self.is_activated();
        Token {
            serial: self.serial_number,
            code: self.activation_code.map_or(Code::Absent, |shown| shown.0),
            expires_at: self
                .activation_expire
                .filter(|at| at.0 > 0)
                .and_then(|at| Timestamp::from_second(at.0).ok()),
            is_activated,
            is_locked: self.status.as_deref() == Some("lock"),
            owner,
        }
    }
}

/// An object of `user/local` or `system/admin`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct UserRow {
    name: String,
    #[serde(default)]
    two_factor: Option<String>,
    #[serde(default)]
    fortitoken: Option<String>,
    #[serde(default)]
    email_to: Option<String>,
    #[serde(default)]
    sms_phone: Option<String>,
}

impl UserRow {
    pub(super) fn is_named(&self, name: &str) -> bool {
        self.name.to_lowercase() == name.to_lowercase()
    }

    /// The serial number of its token. One that stands there while `two-factor` is something else is left over.
    pub(super) fn token(&self) -> Option<&str> {
        let uses_tokens = self
            .two_factor
            .as_deref()
            .is_none_or(|kind| kind == "fortitoken");
        self.fortitoken
            .as_deref()
            .filter(|serial| uses_tokens && !serial.is_empty())
    }

    pub(super) fn owner(self, kind: Holder) -> Owner {
        let filled = |text: Option<String>| {
            text.map(|text| text.trim().to_owned())
                .filter(|text| !text.is_empty())
        };
        Owner {
            kind,
            token: self.token().map(str::to_owned),
            name: self.name,
            email: filled(self.email_to),
            phone: filled(self.sms_phone),
        }
    }
}
