//! Detection rules (`[[rule]]`): which records are wanted events, by message id and fields, and what to read from them.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use regex::Regex;
use regex::RegexBuilder;
use serde::Deserialize;
use toml::Spanned;

use crate::activation;
use crate::activation::ActivationCode;
use crate::activation::Found;
use crate::activation::Stage;
use crate::glob::Glob;
use crate::settings::Check;
use crate::syslog::Record;

/// The rules that come with the program.
const BUILT_IN: &str = include_str!("../config/rules.toml");

/// A compiled expression may take so much memory; those that need more are mistakes.
const MAX_REGEX_BYTES: usize = 4 << 20;
/// Message ids have six digits.
const MAX_MESSAGE_ID: u32 = 999_999;

/// `[[rule]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What `explain`, queue and log call it.
    pub name: String,
    /// The message ids it is about: the last six digits of `logid`.
    pub logid: Spanned<Vec<u32>>,
    /// Globs on fields, all of which must match; a missing field is an empty text.
    #[serde(default, rename = "where")]
    pub conditions: BTreeMap<String, Glob>,
    /// A regular expression on `msg` with `(?P<code>…)`; absent: by the shape of an activation code.
    pub code: Option<Spanned<String>>,
    /// A regular expression on `msg` with `(?P<user>…)`; absent: the field `user`.
    pub user: Option<Spanned<String>>,
    /// Where in a token's life the event stands.
    #[serde(default = "code_sent")]
    pub stage: Stage,
}

fn code_sent() -> Stage {
    Stage::CodeSent
}

/// One rule, ready to be asked.
#[derive(Clone, Debug)]
struct Rule {
    name: String,
    ids: Vec<u32>,
    conditions: Vec<(String, Glob)>,
    code: Option<Regex>,
    user: Option<Regex>,
    stage: Stage,
}

/// All rules, the operator's first.
#[derive(Clone, Debug)]
pub struct Rules(Vec<Rule>);

/// What a rule read from a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match<'a> {
    /// The rule's name.
    pub rule: &'a str,
    /// Where in a token's life the event stands.
    pub stage: Stage,
    /// The user as logged.
    pub user: User,
    /// The code; never searched in an event that carries none.
    pub code: Found,
}

/// Whose event it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// As logged; empty where the event names nobody.
    Named(String),
    /// The rule's expression found nobody in the message. The field `user` may then be somebody else, such as the
    /// administrator.
    NotFound,
    /// The rule's expression found different users.
    Several,
}

impl Rules {
    /// Checks the operator's rules and puts the built-in ones behind them.
    pub fn build(configs: Vec<Config>, check: &mut Check) -> Option<Self> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            rule: Vec<Config>,
        }
        let built_in: File =
            toml::from_str(BUILT_IN).expect("the built-in rules are read by every test");
        let count = configs.len() + built_in.rule.len();
        let rules: Vec<Rule> = configs
            .into_iter()
            .chain(built_in.rule)
            .filter_map(|config| Rule::build(config, check))
            .collect();
        (rules.len() == count).then_some(Self(rules))
    }

    /// The message ids that any rule is about, each once, in order.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        let ids: BTreeSet<u32> = self.0.iter().flat_map(|rule| &rule.ids).copied().collect();
        ids.into_iter()
    }

    /// What the first rule that matches reads from the record.
    pub fn read(&self, id: u32, record: &Record<'_>) -> Option<Match<'_>> {
        let rule = self.0.iter().find(|rule| rule.matches(id, record))?;
        let msg = record.get("msg").unwrap_or_default();
        let user = match &rule.user {
            Some(expression) => captured_user(expression, &msg),
            None => User::Named(record.get("user").unwrap_or_default().into_owned()),
        };
        let code = match (&rule.code, rule.stage) {
            (Some(expression), Stage::CodeSent) => {
                Found::of(captures(expression, "code", &msg).filter_map(ActivationCode::captured))
            }
            (None, Stage::CodeSent) => activation::find(&msg),
            (_, Stage::Requested | Stage::Activated | Stage::Failed) => Found::None,
        };
        Some(Match {
            rule: &rule.name,
            stage: rule.stage,
            user,
            code,
        })
    }
}

impl Rule {
    fn build(config: Config, check: &mut Check) -> Option<Self> {
        let span = config.logid.span();
        let ids = config.logid.into_inner();
        let mut is_good = true;
        if ids.is_empty() {
            check.problem(
                span.clone(),
                "`logid` is empty, so the rule never matches; write message ids such as [38406]",
            );
            is_good = false;
        }
        for id in &ids {
            if *id > MAX_MESSAGE_ID {
                check.problem(
                    span.clone(),
                    format!(
                        "{id} is no message id; write the last six digits of logid, such as {}",
                        id % (MAX_MESSAGE_ID + 1)
                    ),
                );
                is_good = false;
            }
        }
        let code = compile(config.code, "code", check);
        let user = compile(config.user, "user", check);
        Some(Self {
            name: config.name,
            ids,
            conditions: config.conditions.into_iter().collect(),
            code: code.ok()?,
            user: user.ok()?,
            stage: config.stage,
        })
        .filter(|_| is_good)
    }

    fn matches(&self, id: u32, record: &Record<'_>) -> bool {
        self.ids.contains(&id)
            && self
                .conditions
                .iter()
                .all(|(field, glob)| glob.matches(&record.get(field).unwrap_or_default()))
    }
}

/// `Err`: the problem was said.
fn compile(
    pattern: Option<Spanned<String>>,
    group: &str,
    check: &mut Check,
) -> Result<Option<Regex>, ()> {
    let Some(pattern) = pattern else {
        return Ok(None);
    };
    let compiled = RegexBuilder::new(pattern.get_ref())
        .size_limit(MAX_REGEX_BYTES)
        .build();
    match compiled {
        Ok(expression)
            if expression
                .capture_names()
                .flatten()
                .any(|name| name == group) =>
        {
            Ok(Some(expression))
        }
        Ok(_) => {
            check.problem(
                pattern.span(),
                format!("`{group}` captures nothing; put (?P<{group}>…) around the part that is the {group}"),
            );
            Err(())
        }
        Err(regex::Error::CompiledTooBig(_)) => {
            check.problem(
                pattern.span(),
                format!("`{group}` needs too much memory; write a shorter expression"),
            );
            Err(())
        }
        Err(e) => {
            check.problem(
                pattern.span(),
                format!("`{group}` is no regular expression: {}", last_line(&e)),
            );
            Err(())
        }
    }
}

/// `regex` draws the place into several lines; the last one says what is wrong.
fn last_line(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    last.trim_start_matches("error: ").to_owned()
}

fn captures<'m>(
    expression: &'m Regex,
    group: &'m str,
    msg: &'m str,
) -> impl Iterator<Item = &'m str> {
    expression
        .captures_iter(msg)
        .filter_map(move |found| found.name(group).map(|part| part.as_str()))
}

fn captured_user(expression: &Regex, msg: &str) -> User {
    let mut users = captures(expression, "user", msg).filter(|user| !user.trim().is_empty());
    match users.next() {
        None => User::NotFound,
        Some(first) if users.all(|other| other == first) => User::Named(first.to_owned()),
        Some(_) => User::Several,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::syslog;

    type Said = (Option<std::ops::Range<usize>>, String);

    fn build(toml: &str) -> Result<Rules, Vec<Said>> {
        #[derive(Deserialize)]
        struct File {
            #[serde(default)]
            rule: Vec<Config>,
        }
        let mut check = Check::new(".", None, false);
        let file: File = toml::from_str(toml).map_err(|e| vec![(e.span(), e.to_string())])?;
        Rules::build(file.rule, &mut check).ok_or_else(|| {
            check
                .findings()
                .into_iter()
                .map(|f| (f.span, f.text))
                .collect()
        })
    }

    fn read(rules: &Rules, line: &str) -> Option<(String, Stage, User, Found)> {
        let record = syslog::parse(line.as_bytes()).unwrap();
        rules
            .read(record.message_id().unwrap(), &record)
            .map(|m| (m.rule.to_owned(), m.stage, m.user, m.code))
    }

    const GUEST: &str = concat!(
        "[[rule]]\nname = \"guest account\"\nlogid = [38406, 38412]\nwhere = { action = \"send*\" }\n",
        "code = 'password (?P<code>\\S+)'\nuser = 'user (?P<user>\\S+)'\n",
    );

    #[test]
    fn the_built_in_rules_know_the_life_of_a_token() {
        let rules = build("").unwrap();
        assert_eq!(
            rules.ids().collect::<Vec<_>>(),
            [32155, 32156, 32159, 38412]
        );
        for (id, stage) in [
            (38412, Some(Stage::CodeSent)),
            (32155, Some(Stage::Requested)),
            (32156, Some(Stage::Activated)),
            (32159, Some(Stage::Failed)),
            (38411, None),
            (32157, None),
        ] {
            let line = format!("logid=\"01000{id}\" msg=\"EEIOTCU3LENEDJMR\"");
            assert_eq!(read(&rules, &line).map(|m| m.1), stage, "{id}");
        }
    }

    #[test]
    fn only_a_code_sent_event_carries_a_code() {
        let rules = build("").unwrap();
        let line = "logid=0100032155 user=\"admin\" msg=\"EEIOTCU3LENEDJMR EEIMI3ZFJEC2CCPL\"";
        assert_eq!(read(&rules, line).unwrap().3, Found::None);
    }

    #[test]
    fn a_rule_captures_user_and_code_from_the_message() {
        let rules = build(GUEST).unwrap();
        let line =
            "logid=0100038406 user=admin action=\"send-sms\" msg=\"user bob, password Xy12ab\"";
        let (rule, _, user, code) = read(&rules, line).unwrap();
        assert_eq!(rule, "guest account");
        assert_eq!(user, User::Named("bob,".to_owned()));
        assert_eq!(
            code,
            Found::One(ActivationCode::captured("Xy12ab").unwrap())
        );
    }

    #[test]
    fn an_operators_rule_is_asked_first_and_only_where_it_applies() {
        let rules = build(GUEST).unwrap();
        let sent = "logid=0100038412 user=alice action=send msg=\"EEIOTCU3LENEDJMR\"";
        assert_eq!(read(&rules, sent).unwrap().0, "guest account");
        let other = sent.replace("action=send", "action=other");
        assert_eq!(
            read(&rules, &other).unwrap().0,
            "token activation code sent"
        );
    }

    #[test]
    fn a_rule_that_finds_nobody_does_not_fall_back_to_the_field() {
        let rules = build(GUEST).unwrap();
        let line = "logid=0100038406 user=admin action=send msg=\"password Xy12ab\"";
        assert_eq!(read(&rules, line).unwrap().2, User::NotFound);
    }

    #[test]
    fn different_captures_are_an_ambiguity() {
        let rules = build(GUEST).unwrap();
        let line =
            "logid=0100038406 action=send msg=\"user bob password Xy12 user eve password Ab34\"";
        let (_, _, user, code) = read(&rules, line).unwrap();
        assert_eq!((user, code), (User::Several, Found::Several));
        let twice =
            "logid=0100038406 action=send msg=\"user bob password Xy12 user bob password Xy12\"";
        assert_eq!(
            read(&rules, twice).unwrap().2,
            User::Named("bob".to_owned())
        );
    }

    #[test]
    fn a_wrong_rule_is_named_with_its_place() {
        for (toml, part) in [
            ("code = '(?P<code>'", "unclosed group"),
            ("code = 'password'", "captures nothing"),
            ("user = '(?P<code>x)'", "captures nothing"),
            ("code = '(?P<code>\\w{1000}{1000})'", "too much memory"),
            ("stage = 'sent'", "unknown variant"),
        ] {
            let text = format!("[[rule]]\nname = \"x\"\nlogid = [1]\n{toml}\n");
            let said = build(&text).unwrap_err();
            assert!(said[0].1.contains(part), "{toml}: {said:?}");
            let span = said[0].0.clone().unwrap();
            assert!(text[span].starts_with('\''), "{toml}");
        }
        let said = build("[[rule]]\nname = \"x\"\nlogid = [100038412]\n").unwrap_err();
        assert!(said[0].1.contains("such as 38412"), "{said:?}");
        assert!(build("[[rule]]\nname = \"x\"\nlogid = []\n").is_err());
    }
}
