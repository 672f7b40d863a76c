//! People listed in a CSV file or in the configuration itself.

mod csv;
mod file;
mod people;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;
use toml::Spanned;

use crate::activation::Activation;
use crate::message::Recipient;
use crate::recipients::Recipients;
use crate::settings::Check;
use crate::settings::Span;

use super::Answer;
use super::Directory;
use super::LookupError;
use super::Match;
use super::shown;

use file::File;
use people::Draft;
use people::Fields;
use people::Found;
use people::People;

/// `type = "table"`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A CSV file whose first line names its columns: user,email,name,phone,language.
    pub file: Option<Spanned<PathBuf>>,
    /// The people themselves.
    pub people: Option<Vec<Spanned<Person>>>,
    /// Whose events it answers for.
    #[serde(rename = "match", default)]
    pub matches: Match,
}

/// One entry of `people`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Person {
    /// The name the FortiGate logs; case, and the domain as `strip_domain` says, do not matter.
    pub user: String,
    /// Where the code goes.
    pub email: String,
    /// The name to greet with.
    pub name: Option<String>,
    /// The phone number in international form.
    pub phone: Option<String>,
    /// A language tag such as `de`.
    pub language: Option<String>,
}

impl Config {
    pub(super) fn build(
        self,
        span: Span,
        recipients: &Recipients,
        check: &mut Check,
    ) -> Option<Table> {
        match (self.file, self.people) {
            (Some(file), None) => {
                let shown = file.get_ref().display().to_string();
                let path = check.path(file.get_ref());
                match File::open(path, shown.clone(), recipients.clone()) {
                    Ok((file_, warnings)) => {
                        for warning in warnings {
                            check.warning(file.span(), warning);
                        }
                        Some(Table {
                            name: format!("table {shown}"),
                            source: Source::File(Arc::new(file_)),
                        })
                    }
                    Err(problems) => {
                        for problem in problems {
                            check.problem(file.span(), problem);
                        }
                        None
                    }
                }
            }
            (None, Some(people)) => inline(&people, recipients, check),
            (Some(_), Some(people)) => {
                check.problem(
                    people.first().map_or(span, Spanned::span),
                    "a table has a `file` or `people`, not both; write a second [[directory]]",
                );
                None
            }
            (None, None) => {
                check.problem(
                    span,
                    "a table needs `file = \"people.csv\"` or `people = [{ user = …, email = … }]`",
                );
                None
            }
        }
    }
}

fn inline(people: &[Spanned<Person>], recipients: &Recipients, check: &mut Check) -> Option<Table> {
    let mut draft = Draft::new(recipients, 0);
    let mut good = true;
    for (entry, number) in people.iter().zip(1..) {
        let person = entry.get_ref();
        let fields = Fields {
            user: &person.user,
            email: &person.email,
            name: person.name.as_deref().unwrap_or_default(),
            phone: person.phone.as_deref().unwrap_or_default(),
            language: person.language.as_deref().unwrap_or_default(),
        };
        match draft.add(number, &fields) {
            Ok(warnings) => {
                for warning in warnings {
                    check.warning(entry.span(), warning.text());
                }
            }
            Err(why) => {
                check.problem(entry.span(), why);
                good = false;
            }
        }
    }
    let people_ = draft.finish();
    for (user, entries) in people_.conflicts() {
        check.warning(
            people[entries[0] as usize - 1].span(),
            format!(
                "two entries for {}, numbers {}, differ, so nobody gets that user's code",
                shown(user),
                and(&entries)
            ),
        );
    }
    if people.is_empty() {
        check.warning(None, "`people` of a table is empty");
    }
    good.then(|| Table {
        name: "table".to_owned(),
        source: Source::Inline(Box::new(people_)),
    })
}

/// Knows who is listed.
pub(super) struct Table {
    name: String,
    source: Source,
}

enum Source {
    Inline(Box<People>),
    File(Arc<File>),
}

#[async_trait]
impl Directory for Table {
    fn name(&self) -> &str {
        &self.name
    }

    async fn find(&self, who: &Activation) -> Result<Answer, LookupError> {
        match &self.source {
            Source::Inline(people) => answer(people.find(&who.person), &who.person, || {
                "the table, numbers".to_owned()
            }),
            Source::File(file) => {
                let people = file.current().await;
                answer(people.find(&who.person), &who.person, || {
                    format!("{}, lines", file.shown())
                })
            }
        }
    }
}

fn answer(found: Found<'_>, user: &str, place: impl Fn() -> String) -> Result<Answer, LookupError> {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    match found {
        Found::Nobody => Ok(Answer::Unknown("does not know the user".to_owned())),
        Found::One(fields) => Ok(Answer::Person(Recipient {
            email: fields.email.to_owned(),
            name: some(fields.name),
            phone: some(fields.phone),
            language: some(fields.language),
            source: "table".to_owned(),
        })),
        Found::Several(lines) => Err(LookupError::Ambiguous(format!(
            "two entries for {} in {} {}",
            shown(user),
            place(),
            and(&lines)
        ))),
    }
}

/// `3 and 9`, `3, 9 and 12`.
fn and(numbers: &[u32]) -> String {
    let (last, first) = numbers.split_last().expect("a conflict has lines");
    let first: Vec<String> = first.iter().map(u32::to_string).collect();
    match first.is_empty() {
        true => last.to_string(),
        false => format!("{} and {last}", first.join(", ")),
    }
}
