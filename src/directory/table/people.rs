//! Who is in a table, stored for a hundred thousand users: one text, and where in it each row begins, sorted by user.

use std::collections::BTreeMap;

use crate::directory::address;
use crate::message::international;
use crate::recipients::Recipients;

/// Ends each field in the text. No field holds a control character.
const END: char = '\x1f';
/// How many rows of one user a sentence names.
const MAX_NAMED: usize = 5;

/// The fields of one row; an empty one is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fields<'a> {
    pub(super) user: &'a str,
    pub(super) email: &'a str,
    pub(super) name: &'a str,
    pub(super) phone: &'a str,
    pub(super) language: &'a str,
}

/// What is odd about a row that is taken nevertheless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Oddity {
    Outside,
    Phone,
    Language,
}

impl Oddity {
    /// One sentence for one row.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Outside => {
                "the address is outside `recipients.domains`, so this user's codes go nowhere"
            }
            Self::Phone => {
                "the phone number is left out, for it is not in international form, such as +49 170 1234567"
            }
            Self::Language => "the language is left out, for it is no tag such as de or pt-BR",
        }
    }
}

/// People being listed.
pub(super) struct Draft<'a> {
    recipients: &'a Recipients,
    people: People,
}

/// People, ready to be asked for.
#[derive(Debug, Default)]
pub(super) struct People {
    /// `user END email END name END phone END language END`, row after row.
    text: String,
    rows: Vec<Row>,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    at: u32,
    line: u32,
}

/// Who a user is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    Nobody,
    One(Fields<'a>),
    /// Rows that contradict each other, by their lines.
    Several(Vec<u32>),
}

impl<'a> Draft<'a> {
    /// `bytes`: about how much text will come. Growing step by step would leave as much again in the heap's holes.
    pub(super) fn new(recipients: &'a Recipients, bytes: usize) -> Self {
        Self {
            recipients,
            people: People {
                text: String::with_capacity(bytes),
                rows: Vec::new(),
            },
        }
    }

    /// Adds a row, or says what is wrong with it in a sentence that shows no address.
    pub(super) fn add(&mut self, line: u32, row: &Fields<'_>) -> Result<Vec<Oddity>, String> {
        for (column, text) in row.columns() {
            if text.contains(char::is_control) {
                return Err(format!("`{column}` holds a control character"));
            }
        }
        let user = self.recipients.normalise(row.user);
        if user.is_empty() {
            return Err("`user` is empty".to_owned());
        }
        let email = row.email.trim();
        if email.is_empty() {
            return Err("`email` is empty".to_owned());
        }
        if let Err(why) = address(email) {
            return Err(format!("`email` {why}"));
        }
        let mut odd = Vec::new();
        if !self.recipients.allows(email) {
            odd.push(Oddity::Outside);
        }
        let phone = international(row.phone);
        if phone.is_none() && !row.phone.trim().is_empty() {
            odd.push(Oddity::Phone);
        }
        let mut language = row.language.trim();
        if !is_language(language) {
            odd.push(Oddity::Language);
            language = "";
        }
        let Ok(at) = u32::try_from(self.people.text.len()) else {
            return Err("the table is too large".to_owned());
        };
        self.people.rows.push(Row { at, line });
        for field in [
            &user,
            email,
            row.name.trim(),
            phone.as_deref().unwrap_or_default(),
            language,
        ] {
            self.people.text.push_str(field);
            self.people.text.push(END);
        }
        Ok(odd)
    }

    pub(super) fn finish(self) -> People {
        let People { mut text, mut rows } = self.people;
        rows.sort_unstable_by(|a, b| {
            let user = |row: &Row| user_of(&text, *row);
            user(a).cmp(user(b)).then(a.line.cmp(&b.line))
        });
        text.shrink_to_fit();
        rows.shrink_to_fit();
        People { text, rows }
    }
}

impl People {
    /// How many rows there are.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Who a normalised user is.
    pub(super) fn find(&self, user: &str) -> Found<'_> {
        let from = self
            .rows
            .partition_point(|row| user_of(&self.text, *row) < user);
        let rows = &self.rows[from..];
        let until = rows.partition_point(|row| user_of(&self.text, *row) == user);
        self.judge(&rows[..until])
    }

    /// Users whose rows contradict each other, with their lines.
    pub(super) fn conflicts(&self) -> BTreeMap<&str, Vec<u32>> {
        self.rows
            .chunk_by(|a, b| user_of(&self.text, *a) == user_of(&self.text, *b))
            .filter_map(|rows| match self.judge(rows) {
                Found::Several(lines) => Some((user_of(&self.text, rows[0]), lines)),
                _ => None,
            })
            .collect()
    }

    /// A name or language that differs is no other person: then the first row counts.
    fn judge(&self, rows: &[Row]) -> Found<'_> {
        let Some((first, others)) = rows.split_first() else {
            return Found::Nobody;
        };
        let first_fields = fields(&self.text, *first);
        let same = |row: &Row| {
            let other = fields(&self.text, *row);
            other.email.eq_ignore_ascii_case(first_fields.email)
                && other.phone == first_fields.phone
        };
        if others.iter().all(same) {
            return Found::One(first_fields);
        }
        let different = others.iter().filter(|row| !same(row));
        let lines = std::iter::once(first).chain(different);
        Found::Several(lines.take(MAX_NAMED).map(|row| row.line).collect())
    }
}

fn user_of(text: &str, row: Row) -> &str {
    let rest = &text[row.at as usize..];
    rest.find(END).map_or(rest, |end| &rest[..end])
}

fn fields(text: &str, row: Row) -> Fields<'_> {
    let mut parts = text[row.at as usize..].split(END);
    let mut next = || parts.next().unwrap_or_default();
    Fields {
        user: next(),
        email: next(),
        name: next(),
        phone: next(),
        language: next(),
    }
}

impl<'a> Fields<'a> {
    fn columns(&self) -> [(&'static str, &'a str); 5] {
        [
            ("user", self.user),
            ("email", self.email),
            ("name", self.name),
            ("phone", self.phone),
            ("language", self.language),
        ]
    }
}

fn is_language(tag: &str) -> bool {
    tag.len() <= 35
        && tag
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}
