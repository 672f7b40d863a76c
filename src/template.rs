//! What people and programs read: an activation, an escalation or a test becomes a [`Notification`].
//!
//! The texts are the files of `config/templates`, built in; `[templates] dir` replaces any of them, or adds a language.
//! Whatever a log may have brought in (names, devices) is cleaned here once, before any template sees it.

use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;

use jiff::SignedDuration;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use minijinja::Environment;
use minijinja::UndefinedBehavior;
use minijinja::Value;
use minijinja::context;
use minijinja::syntax::SyntaxConfig;
use serde::Deserialize;
use serde_json::json;
use toml::Spanned;

use crate::activation::Activation;
use crate::activation::ActivationCode;
use crate::activation::Device;
use crate::activation::Stage;
use crate::message::Notification;
use crate::message::Recipient;
use crate::outbox::Escalation;
use crate::secret::replace_ignoring_case;
use crate::settings::Check;

/// The language that is always there.
const DEFAULT_LANGUAGE: &str = "en";
/// A code of the right length that no app takes: its first byte is not that of an activation code.
pub const TEST_CODE: &str = "NOTAREALCODETEST";
/// How long a test claims to be valid.
const TEST_VALIDITY: SignedDuration = SignedDuration::from_hours(1);
/// The work one template may do; the built-in ones need less than a tenth.
const FUEL: u64 = 50_000;
/// The longest template file.
const MAX_TEMPLATE_BYTES: u64 = 64 * 1024;
/// The longest value of a log or a directory that is shown.
const MAX_VALUE_CHARS: usize = 200;
/// The longest subject.
const MAX_SUBJECT_CHARS: usize = 150;
/// The longest name in a short text, which has room for two segments of an SMS.
const MAX_SHORT_VALUE_CHARS: usize = 24;
/// The longest short text, whatever a template of the operator says.
const MAX_SHORT_CHARS: usize = 306;
/// The most paragraphs a chat gets.
const MAX_PARAGRAPHS: usize = 20;
/// The longest paragraph a chat gets; Slack takes 3000.
const MAX_PARAGRAPH_CHARS: usize = 2_500;

macro_rules! files {
    ($($name:expr),+ $(,)?) => {
        &[$(($name, include_str!(concat!("../config/templates/", $name)))),+]
    };
}

/// The files of one language; [`PER_LANGUAGE`] in the same words.
macro_rules! language {
    ($tag:literal) => {
        files![
            concat!("activation.", $tag, ".subject"),
            concat!("activation.", $tag, ".txt"),
            concat!("activation.", $tag, ".html"),
            concat!("activation.", $tag, ".chat"),
            concat!("activation.", $tag, ".sms"),
            concat!("notice.", $tag, ".subject"),
            concat!("notice.", $tag, ".txt"),
            concat!("escalation.", $tag, ".subject"),
            concat!("escalation.", $tag, ".txt"),
            concat!("headline.", $tag, ".txt"),
            concat!("date.", $tag, ".txt"),
            concat!("left.", $tag, ".txt"),
        ]
    };
}

/// The built-in files: the shared ones, then each language. To add a language, write its files and name it here.
const BUILTIN: &[&[(&str, &str)]] = &[
    files!["layout.html", "activation.html", "paragraphs.html"],
    language!("en"),
    language!("ar"),
    language!("de"),
    language!("es"),
    language!("fr"),
    language!("it"),
    language!("ja"),
    language!("nl"),
    language!("pl"),
    language!("pt"),
];

/// Kind and part of the files that every language has.
const PER_LANGUAGE: [(&str, &str); 12] = [
    ("activation", "subject"),
    ("activation", "txt"),
    ("activation", "html"),
    ("activation", "chat"),
    ("activation", "sms"),
    ("notice", "subject"),
    ("notice", "txt"),
    ("escalation", "subject"),
    ("escalation", "txt"),
    ("headline", "txt"),
    ("date", "txt"),
    ("left", "txt"),
];

/// Stands behind each dot of a value that a mail program might turn into a link. No value brings it in: [`one_line`]
/// takes it out.
const NO_LINK: char = '\u{2060}';
/// What [`NO_LINK`] becomes in HTML: nothing that is copied along, and no host name in one piece.
const NO_LINK_DOT: &str = "<span>.</span>";

/// What programs turn into a link even without slashes.
const LINK_SCHEMES: [&str; 5] = ["data:", "javascript:", "mailto:", "sms:", "tel:"];

/// The primary subtags of languages written from right to left.
const RIGHT_TO_LEFT: [&str; 6] = ["ar", "dv", "fa", "he", "ur", "yi"];

/// `[templates]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Files here replace the built-in ones of the same name.
    pub dir: Option<Spanned<PathBuf>>,
    /// Whom to ask, as the texts name it, such as `the service desk, extension 4711`.
    pub contact: Option<String>,
}

/// A text that can't be made; it holds nothing of what was to be said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the template {name}, line {line}, can't be rendered: {what}")]
pub struct RenderError {
    /// The file.
    pub name: String,
    /// The line in it; 0 when unknown.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

/// How one delivery is to be worded.
#[derive(Clone, Copy)]
pub struct Style<'a> {
    /// The message id: the same over all tries.
    pub id: &'a str,
    /// Whether the code may stand in it.
    pub reveal: bool,
    /// In which zone times are given.
    pub time_zone: &'a TimeZone,
    /// The route's language, for those who have none of their own.
    pub language: Option<&'a str>,
    /// The time of the try.
    pub now: Timestamp,
}

/// All texts in all languages, checked.
#[derive(Debug)]
pub struct Templates {
    texts: Environment<'static>,
    languages: Vec<String>,
    contact: Option<String>,
}

/// What the texts of an activation say.
struct Facts<'a> {
    user: &'a str,
    name: Option<&'a str>,
    device: &'a Device,
    stage: Stage,
    code: Option<&'a str>,
    token: Option<&'a str>,
    event_time: Timestamp,
    expires_at: Timestamp,
    test: bool,
}

/// The texts of one notification.
struct Texts {
    subject: String,
    text: String,
    html: String,
    chat: Vec<String>,
    short: String,
}

impl Config {
    /// Reads the operator's files, and renders every template of every language with difficult data.
    pub fn build(self, check: &mut Check) -> Option<Templates> {
        let mut good = true;
        let mut texts = Environment::new();
        texts.set_undefined_behavior(UndefinedBehavior::Strict);
        texts.set_syntax(lines());
        texts.set_fuel(Some(FUEL));
        for (name, source) in BUILTIN.iter().copied().flatten() {
            texts
                .add_template(name, source)
                .expect("the built-in templates are tested");
        }
        let span = self.dir.as_ref().map(Spanned::span);
        let mut theirs = BTreeSet::new();
        if let Some(dir) = &self.dir {
            (theirs, good) = read_dir(&check.path(dir.get_ref()), &mut texts, dir.span(), check);
        }
        let mut templates = Templates {
            texts,
            languages: Vec::new(),
            contact: self.contact,
        };
        templates.inherit();
        for (language, missing) in templates.found_languages() {
            if missing.is_empty() {
                templates.languages.push(language);
            } else {
                good = false;
                check.problem(
                    span.clone(),
                    format!(
                        "the language {language} lacks {} of {} files: {}",
                        missing.len(),
                        PER_LANGUAGE.len(),
                        missing.join(", ")
                    ),
                );
            }
        }
        for wrong in templates.try_all() {
            good = false;
            let whose = match theirs.contains(&wrong.name) {
                true => "",
                false => "the built-in ",
            };
            check.problem(
                span.clone(),
                format!("{whose}{}, line {}: {}", wrong.name, wrong.line, wrong.what),
            );
        }
        good.then_some(templates)
    }
}

/// A line that holds only a tag leaves nothing behind.
fn lines() -> SyntaxConfig {
    SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .expect("the delimiters are the usual ones")
}

/// Puts the operator's files over the built-in ones; answers their names, and whether all could be taken.
fn read_dir(
    dir: &Path,
    texts: &mut Environment<'static>,
    span: std::ops::Range<usize>,
    check: &mut Check,
) -> (BTreeSet<String>, bool) {
    let (mut names, mut good) = (BTreeSet::new(), true);
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) => {
            check.problem(span, format!("{} can't be read: {e}", dir.display()));
            return (names, false);
        }
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || path.is_dir() {
            continue;
        }
        if !is_template(&name) {
            let meant = match meant(&name) {
                Some(meant) => format!("name it {meant}"),
                None => "templates have names such as activation.en.txt".to_owned(),
            };
            check.warning(
                span.clone(),
                format!("{} is no template and is not used; {meant}", path.display()),
            );
            continue;
        }
        let read = match std::fs::metadata(&path) {
            Ok(about) if about.len() > MAX_TEMPLATE_BYTES => {
                Err(format!("is longer than {MAX_TEMPLATE_BYTES} bytes"))
            }
            Ok(_) => std::fs::read_to_string(&path).map_err(|e| format!("can't be read: {e}")),
            Err(e) => Err(format!("can't be read: {e}")),
        };
        let source = match read {
            Ok(source) => source,
            Err(why) => {
                good = false;
                check.problem(span.clone(), format!("{} {why}", path.display()));
                continue;
            }
        };
        match texts.add_template_owned(name.clone(), source) {
            Ok(()) => {
                names.insert(name);
            }
            Err(e) => {
                good = false;
                let (path, line) = (path.display(), e.line().unwrap_or(0));
                check.problem(
                    span.clone(),
                    format!("{path}, line {line}: {}", describe(&e)),
                );
            }
        }
    }
    (names, good)
}

fn is_template(name: &str) -> bool {
    BUILTIN[0].iter().any(|(shared, _)| *shared == name) || split_name(name).is_some()
}

/// `activation.pt-BR.txt` → kind, language, part, if there is such a file.
fn split_name(name: &str) -> Option<(&str, &str, &str)> {
    let (kind, rest) = name.split_once('.')?;
    let (language, part) = rest.rsplit_once('.')?;
    let known = PER_LANGUAGE.contains(&(kind, part)) && canonical(language)? == language;
    known.then_some((kind, language, part))
}

/// The template that a misspelt name stands for: `Activation.DE_ch.txt`, `activation.de-CH.txt.j2`.
fn meant(name: &str) -> Option<String> {
    let name = name.to_ascii_lowercase().replace('_', "-");
    let name = name.strip_suffix(".j2").unwrap_or(&name);
    if BUILTIN[0].iter().any(|(shared, _)| *shared == name) {
        return Some(name.to_owned());
    }
    let (kind, rest) = name.split_once('.')?;
    let (language, part) = rest.rsplit_once('.')?;
    let known = PER_LANGUAGE.contains(&(kind, part));
    known.then_some(file(kind, &canonical(language)?, part))
}

/// A language tag in the usual spelling: `pt-BR`, `zh-Hant`.
fn canonical(tag: &str) -> Option<String> {
    let good = |part: &str| {
        (1..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    if !tag.split('-').all(good) {
        return None;
    }
    let parts: Vec<String> = tag
        .split('-')
        .enumerate()
        .map(|(i, part)| match (i, part.len()) {
            (1.., 2) => part.to_ascii_uppercase(),
            (1.., 4) => part[..1].to_ascii_uppercase() + &part[1..].to_ascii_lowercase(),
            _ => part.to_ascii_lowercase(),
        })
        .collect();
    Some(parts.join("-"))
}

fn describe(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

impl Templates {
    /// The texts as they are built in.
    pub fn built_in() -> Self {
        let mut check = Check::new(".", None, false);
        Config::default()
            .build(&mut check)
            .expect("the built-in templates are tested")
    }

    /// The languages there are, as tags.
    pub fn languages(&self) -> &[String] {
        &self.languages
    }

    /// An activation to its person (with the code) or to a shared place (a notice without it).
    pub fn activation(
        &self,
        activation: &Activation,
        recipient: Option<&Recipient>,
        style: &Style<'_>,
    ) -> Result<Notification, RenderError> {
        let code = activation.code.as_ref().map(|code| code.expose());
        let language = self.language(recipient, style);
        let facts = Facts {
            user: &activation.user,
            name: recipient.and_then(|r| r.name.as_deref()),
            device: &activation.device,
            stage: activation.stage,
            code,
            token: activation.token.as_deref(),
            event_time: activation.event_time,
            expires_at: activation.expires_at,
            test: false,
        };
        let texts = self.texts_of(&facts, style, language)?;
        let event = event(activation, recipient, style.reveal);
        Ok(texts.into_notification(style.id, language, event, activation.expires_at))
    }

    /// Something needs attention; never with a code.
    pub fn escalation(
        &self,
        escalation: &Escalation,
        expires_at: Timestamp,
        style: &Style<'_>,
    ) -> Result<Notification, RenderError> {
        let language = self.language(None, style);
        let texts = self.texts_of_escalation(escalation, style, language)?;
        let event = json!({
            "type": "fortitoken.escalation",
            "timestamp": rfc3339(escalation.since),
            "data": {
                "reason": escalation.reason,
                "text": without_codes(&escalation.text),
                "count": escalation.count,
                "subjects": escalation.newest.iter().map(|s| without_codes(s)).collect::<Vec<_>>(),
                "since": rfc3339(escalation.since),
            },
        });
        Ok(texts.into_notification(style.id, language, event, expires_at))
    }

    /// A clearly marked test, with a code that can't be redeemed where the channel shows codes.
    pub fn test(
        &self,
        recipient: Option<&Recipient>,
        style: &Style<'_>,
    ) -> Result<Notification, RenderError> {
        let language = self.language(recipient, style);
        let expires_at = style.now.saturating_add(TEST_VALIDITY).unwrap_or(style.now);
        let device = Device {
            id: "TEST".to_owned(),
            name: "TEST".to_owned(),
            vdom: "TEST".to_owned(),
        };
        let facts = Facts {
            user: "test",
            name: recipient.and_then(|r| r.name.as_deref()),
            device: &device,
            stage: Stage::CodeSent,
            code: Some(TEST_CODE),
            token: None,
            event_time: style.now,
            expires_at,
            test: true,
        };
        let texts = self.texts_of(&facts, style, language)?;
        let event = json!({
            "type": "fortitoken.test",
            "timestamp": rfc3339(style.now),
            "data": {
                "id": style.id,
                "user": facts.user,
                "code": style.reveal.then_some(TEST_CODE),
                "token": null,
                "expires_at": rfc3339(expires_at),
                "device": device,
                "recipient": about(recipient),
                "event": null,
            },
        });
        Ok(texts.into_notification(style.id, language, event, expires_at))
    }

    fn texts_of(
        &self,
        facts: &Facts<'_>,
        style: &Style<'_>,
        language: &str,
    ) -> Result<Texts, RenderError> {
        let show = |text: &str| shown(text, facts.code, language);
        let when = |at: Timestamp| self.date(at, style.time_zone, language);
        let common = context! {
            lang => language,
            dir => direction(language),
            user => show(facts.user),
            name => facts.name.map(show).filter(|name| !name.is_empty()),
            device => show(&facts.device.name),
            device_id => show(&facts.device.id),
            vdom => show(&facts.device.vdom),
            stage => facts.stage.as_str(),
            token => facts.token.map(show),
            time => when(facts.event_time)?,
            expires => when(facts.expires_at)?,
            left => self.left(facts.expires_at.duration_since(style.now), language)?,
            contact => self.contact.as_deref().map(|contact| bounded(contact, MAX_VALUE_CHARS)),
            test => facts.test,
        };
        match facts.code {
            Some(code) if style.reveal && facts.stage == Stage::CodeSent => {
                // The subject's context has no code, so that no template can put it there.
                let subject = self.subject("activation", language, &common)?;
                let full = context! { code => code, subject => &subject, ..common };
                let brief = context! {
                    user => clean(facts.user, facts.code, MAX_SHORT_VALUE_CHARS),
                    device => clean(host_part(&facts.device.name), facts.code, MAX_SHORT_VALUE_CHARS),
                    expires => brief_date(facts.expires_at, style.time_zone),
                    ..full.clone()
                };
                let render =
                    |part, values| self.render(&file("activation", language, part), values);
                Ok(Texts {
                    text: tidy(&plain(&render("txt", &full)?)),
                    html: without_links(&render("html", &full)?),
                    chat: paragraphs(&plain(&render("chat", &full)?)),
                    short: cut(render("sms", &brief)?.trim().to_owned(), MAX_SHORT_CHARS),
                    subject,
                })
            }
            _ => self.of_paragraphs("notice", language, common),
        }
    }

    fn texts_of_escalation(
        &self,
        escalation: &Escalation,
        style: &Style<'_>,
        language: &str,
    ) -> Result<Texts, RenderError> {
        let show = |text: &str| shown(&without_codes(text), None, language);
        // A channel's own troubles carry its name: `suspended:mail`.
        let (reason, channel) = escalation
            .reason
            .split_once(':')
            .unwrap_or((&escalation.reason, ""));
        let text = self.render(
            &file("headline", language, "txt"),
            &context! {
                reason => reason,
                channel => show(channel),
                text => clean(&without_codes(&escalation.text), None, MAX_VALUE_CHARS),
            },
        )?;
        let text = text.trim();
        let common = context! {
            lang => language,
            dir => direction(language),
            headline => text.trim_end_matches(['.', '。']),
            text => text,
            reason => reason,
            channel => show(channel),
            count => escalation.count,
            subjects => escalation.newest.iter().map(|s| show(s)).collect::<Vec<_>>(),
            since => self.date(escalation.since, style.time_zone, language)?,
            contact => self.contact.as_deref().map(|contact| bounded(contact, MAX_VALUE_CHARS)),
        };
        self.of_paragraphs("escalation", language, common)
    }

    /// A kind whose HTML and chat are made of its text's paragraphs.
    fn of_paragraphs(
        &self,
        kind: &str,
        language: &str,
        common: Value,
    ) -> Result<Texts, RenderError> {
        let subject = self.subject(kind, language, &common)?;
        let text = self.render(&file(kind, language, "txt"), &common)?;
        let page = context! { subject => &subject, paragraphs => paragraphs(&text), ..common };
        let html = without_links(&self.render("paragraphs.html", &page)?);
        let text = tidy(&plain(&text));
        Ok(Texts {
            short: subject.clone(),
            subject,
            chat: paragraphs(&text),
            text,
            html,
        })
    }

    fn subject(&self, kind: &str, language: &str, common: &Value) -> Result<String, RenderError> {
        let subject = self.render(&file(kind, language, "subject"), common)?;
        Ok(bounded(&subject, MAX_SUBJECT_CHARS))
    }

    fn date(&self, at: Timestamp, zone: &TimeZone, language: &str) -> Result<String, RenderError> {
        let local = at.to_zoned_datetime(zone.clone());
        let text = self.render(
            &file("date", language, "txt"),
            &context! {
                year => local.year(),
                month => local.month(),
                day => local.day(),
                weekday => local.weekday().to_monday_one_offset(),
                hour => format!("{:02}", local.hour()),
                minute => format!("{:02}", local.minute()),
                zone => zone_name(at, zone),
            },
        )?;
        Ok(bounded(&text, MAX_VALUE_CHARS))
    }

    /// To the minute, rounded, so that 72 hours less a second are three days.
    fn left(&self, left: SignedDuration, language: &str) -> Result<String, RenderError> {
        let minutes = (left.as_secs().max(0) + 30) / 60;
        let text = self.render(
            &file("left", language, "txt"),
            &context! {
                days => minutes / (24 * 60),
                hours => minutes / 60 % 24,
                minutes => minutes % 60,
            },
        )?;
        Ok(bounded(&text, MAX_VALUE_CHARS))
    }

    fn render(&self, name: &str, values: &Value) -> Result<String, RenderError> {
        self.texts
            .get_template(name)
            .and_then(|template| template.render(values))
            .map_err(|e| RenderError {
                name: e.name().unwrap_or(name).to_owned(),
                line: e.line().unwrap_or(0),
                what: describe(&e),
            })
    }

    /// The recipient's language, else the route's, else English: the tag itself, else its beginning, else a relative.
    fn language(&self, recipient: Option<&Recipient>, style: &Style<'_>) -> &str {
        [
            recipient.and_then(|r| r.language.as_deref()),
            style.language,
        ]
        .into_iter()
        .flatten()
        // Directories also hold lists in the manner of Accept-Language: `de-CH, en;q=0.5`.
        .flat_map(|wish| wish.split(','))
        .find_map(|wish| self.nearest(wish))
        .unwrap_or(DEFAULT_LANGUAGE)
    }

    /// `de` for `de_CH.UTF-8`, and for `pt-PT` and `pt` a `pt-BR` where there is no `pt`.
    fn nearest(&self, wish: &str) -> Option<&str> {
        // What follows is a weight, or a locale's encoding or variant.
        let tag = wish.split([';', '.', '@']).next()?.trim();
        let mut tag = tag.replace('_', "-");
        loop {
            let same = |l: &&String| l.eq_ignore_ascii_case(&tag);
            if let Some(found) = self.languages.iter().find(same) {
                return Some(found);
            }
            match tag.rfind('-') {
                Some(end) => tag.truncate(end),
                None => break,
            }
        }
        let relative = |l: &&String| primary(l).eq_ignore_ascii_case(&tag);
        self.languages.iter().find(relative).map(String::as_str)
    }

    /// Gives `de-CH` the files of `de` that it hasn't itself.
    fn inherit(&mut self) {
        let mut files = Vec::new();
        for (language, missing) in self.found_languages() {
            let bases = language.match_indices('-').rev();
            let bases: Vec<&str> = bases.map(|(end, _)| &language[..end]).collect();
            for name in missing {
                let Some((kind, _, part)) = split_name(&name) else {
                    continue;
                };
                let base = bases.iter().find_map(|base| {
                    let base = self.texts.get_template(&file(kind, base, part)).ok()?;
                    Some(base.source().to_owned())
                });
                files.extend(base.map(|source| (name.clone(), source)));
            }
        }
        for (name, source) in files {
            self.texts
                .add_template_owned(name, source)
                .expect("it has been added under another name");
        }
    }

    /// Every language that has at least one file, with the files it lacks.
    fn found_languages(&self) -> Vec<(String, Vec<String>)> {
        let names: BTreeSet<&str> = self.texts.templates().map(|(name, _)| name).collect();
        let languages: BTreeSet<&str> = names
            .iter()
            .filter_map(|name| split_name(name))
            .map(|(_, language, _)| language)
            .collect();
        languages
            .into_iter()
            .map(|language| {
                let missing = PER_LANGUAGE
                    .iter()
                    .map(|(kind, part)| file(kind, language, part))
                    .filter(|name| !names.contains(name.as_str()))
                    .collect();
                (language.to_owned(), missing)
            })
            .collect()
    }

    /// Renders everything with difficult data; what went wrong, each thing once.
    fn try_all(&self) -> Vec<RenderError> {
        let mut wrong = Vec::new();
        for language in &self.languages {
            for facts in &difficult() {
                for reveal in [true, false] {
                    self.try_facts(facts, reveal, language, &mut wrong);
                }
            }
            for count in [1, 1_000] {
                let escalation = Escalation {
                    reason: "no-code".to_owned(),
                    text: format!("{MARKUP} no code was found."),
                    count,
                    newest: vec![DIFFICULT[0].repeat(20); count.min(10) as usize],
                    since: Timestamp::UNIX_EPOCH,
                };
                let style = trial_style(false);
                match self.texts_of_escalation(&escalation, &style, language) {
                    Ok(texts) => texts.judge("escalation", "txt", language, None, &mut wrong),
                    Err(e) => wrong.push(e),
                }
            }
            for minutes in [0, 1, 2, 59, 60, 61, 24 * 60, 25 * 60, 49 * 60, 168 * 60] {
                if let Err(e) = self.left(SignedDuration::from_mins(minutes), language) {
                    wrong.push(e);
                }
            }
            // Every day of a month, every day of the week, every month.
            for days in (0..31).chain((31..366).step_by(28)) {
                let at = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24 * days);
                if let Err(e) = self.date(at, &TimeZone::UTC, language) {
                    wrong.push(e);
                }
            }
        }
        let mut once = BTreeSet::new();
        wrong.retain(|e| once.insert((e.name.clone(), e.line, e.what.clone())));
        wrong
    }

    fn try_facts(
        &self,
        facts: &Facts<'_>,
        reveal: bool,
        language: &str,
        wrong: &mut Vec<RenderError>,
    ) {
        let (kind, part, code) = match reveal && facts.stage == Stage::CodeSent {
            true => ("activation", "html", facts.code),
            false => ("notice", "txt", None),
        };
        match self.texts_of(facts, &trial_style(reveal), language) {
            Ok(texts) => texts.judge(kind, part, language, code, wrong),
            Err(e) => wrong.push(e),
        }
    }
}

impl Texts {
    fn into_notification(
        self,
        id: &str,
        language: &str,
        event: serde_json::Value,
        expires_at: Timestamp,
    ) -> Notification {
        Notification {
            id: id.to_owned(),
            subject: self.subject,
            text: self.text,
            html: self.html,
            chat: self.chat,
            short: self.short,
            event,
            language: language.to_owned(),
            expires_at,
        }
    }

    /// What a template must do besides rendering.
    fn judge(
        &self,
        kind: &str,
        html_from: &str,
        language: &str,
        code: Option<&str>,
        wrong: &mut Vec<RenderError>,
    ) {
        let mut say = |part: &str, what: &str| {
            wrong.push(RenderError {
                name: file(kind, language, part),
                line: 1,
                what: what.to_owned(),
            });
        };
        if self.subject.is_empty() {
            say("subject", "the subject is empty");
        }
        if self.chat.is_empty() {
            let part = if kind == "activation" { "chat" } else { "txt" };
            say(part, "the text is empty");
        }
        if self.html.contains(MARKUP) {
            say(html_from, "text of a log gets into the HTML unescaped");
        }
        if let Some(code) = code {
            let missing = "the code doesn't stand in it; write {{ code }}";
            if !self.text.contains(code) {
                say("txt", missing);
            }
            if !self.html.contains(code) {
                say("html", missing);
            }
            if !self.chat.iter().any(|p| p.contains(code)) {
                say("chat", missing);
            }
            if !self.short.contains(code) {
                say("sms", missing);
            }
            if self.short.chars().count() > MAX_SHORT_CHARS {
                let most = format!("it is longer than {MAX_SHORT_CHARS} characters");
                say("sms", &most);
            }
        }
    }
}

/// Stands in the difficult data, and must never come out of HTML like this.
const MARKUP: &str = "<b>\"x\"&'y'</b>";
/// What a log may say, and a template must get along with.
const DIFFICULT: [&str; 4] = [
    "<b>\"x\"&'y'</b> محمد 🦀 {{ code }}",
    "x\r\nBcc: eve@example.com\u{202e}\u{7}\0",
    "https://evil.example/<!channel>*_`[a](b)",
    "",
];

fn trial_style(reveal: bool) -> Style<'static> {
    static UTC: TimeZone = TimeZone::UTC;
    Style {
        id: "check",
        reveal,
        time_zone: &UTC,
        language: None,
        now: Timestamp::UNIX_EPOCH,
    }
}

/// Everything a template may meet: long and short, with and without what may be missing, every stage.
fn difficult() -> Vec<Facts<'static>> {
    static VALUES: std::sync::LazyLock<[(String, Device); 4]> = std::sync::LazyLock::new(|| {
        DIFFICULT.map(|text| {
            let long = text.repeat(40);
            let device = Device {
                id: long.clone(),
                name: long.clone(),
                vdom: long.clone(),
            };
            (long, device)
        })
    });
    let of = |(text, device): &'static (String, Device), stage, test| {
        let given = (!text.is_empty()).then_some(text.as_str());
        Facts {
            user: text,
            name: given,
            device,
            stage,
            code: Some(TEST_CODE),
            token: given,
            event_time: Timestamp::UNIX_EPOCH,
            expires_at: Timestamp::UNIX_EPOCH + SignedDuration::from_hours(72),
            test,
        }
    };
    let mut all: Vec<_> = VALUES
        .iter()
        .map(|values| of(values, Stage::CodeSent, false))
        .collect();
    for stage in [Stage::Requested, Stage::Activated, Stage::Failed] {
        all.push(of(&VALUES[0], stage, false));
    }
    all.push(of(&VALUES[0], Stage::CodeSent, true));
    all
}

/// The body of a webhook.
fn event(
    activation: &Activation,
    recipient: Option<&Recipient>,
    reveal: bool,
) -> serde_json::Value {
    let code = activation.code.as_ref().map(|code| code.expose());
    // A forged record may carry its code in a second field; a place that gets no code gets it from nowhere.
    let show = |text: &str| match code {
        Some(code) if !reveal => replace_ignoring_case(text, code),
        _ => text.to_owned(),
    };
    json!({
        "type": format!("fortitoken.{}", activation.stage),
        "timestamp": rfc3339(activation.event_time),
        "data": {
            "id": activation.event_id,
            "user": show(&activation.user),
            "code": if reveal { code } else { None },
            "token": activation.token.as_deref().map(show),
            "expires_at": rfc3339(activation.expires_at),
            "device": {
                "id": show(&activation.device.id),
                "name": show(&activation.device.name),
                "vdom": show(&activation.device.vdom),
            },
            "recipient": about(recipient),
            "event": {
                "logid": activation.logid,
                "description": show(&activation.description),
                "time": rfc3339(activation.event_time),
            },
        },
    })
}

fn about(recipient: Option<&Recipient>) -> serde_json::Value {
    json!({
        "email": recipient.map(|r| &r.email),
        "name": recipient.and_then(|r| r.name.as_ref()),
        "phone": recipient.and_then(|r| r.phone.as_ref()),
        "language": recipient.and_then(|r| r.language.as_ref()),
    })
}

fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The name of the zone at that time, or its distance from UTC.
fn zone_name(at: Timestamp, zone: &TimeZone) -> String {
    let info = zone.to_offset_info(at);
    let name = info.abbreviation();
    match name.bytes().all(|b| b.is_ascii_alphabetic()) {
        true => name.to_owned(),
        false => format!("UTC{}", at.to_zoned_datetime(zone.clone()).strftime("%:z")),
    }
}

/// A time that is short and means the same in every language.
fn brief_date(at: Timestamp, zone: &TimeZone) -> String {
    let local = at.to_zoned_datetime(zone.clone());
    format!(
        "{} {}",
        local.strftime("%Y-%m-%d %H:%M"),
        zone_name(at, zone)
    )
}

/// `fw1` of `fw1.example.com`: short, and nothing that a phone turns into a link. An address stays whole.
fn host_part(name: &str) -> &str {
    match name.parse::<std::net::IpAddr>() {
        Ok(_) => name,
        Err(_) => name.split('.').next().unwrap_or(name),
    }
}

fn file(kind: &str, language: &str, part: &str) -> String {
    format!("{kind}.{language}.{part}")
}

/// `pt` of `pt-BR`.
fn primary(language: &str) -> &str {
    language.split('-').next().unwrap_or(language)
}

fn direction(language: &str) -> &'static str {
    let primary = primary(language);
    match RIGHT_TO_LEFT
        .iter()
        .any(|l| l.eq_ignore_ascii_case(primary))
    {
        true => "rtl",
        false => "ltr",
    }
}

/// Makes a value of a log or a directory fit to stand in a text: one line, no direction tricks, no code, nothing that a
/// mail program turns into a link, not too long.
fn clean(text: &str, code: Option<&str>, max: usize) -> String {
    // The code first: a cut must not leave half of it.
    let mut text = one_line(text);
    if let Some(code) = code {
        text = replace_ignoring_case(&text, code);
    }
    text = cut(text, max);
    if looks_like_a_link(&text) {
        text = text
            .replace('.', ". ")
            .replace('/', "/ ")
            .replace(':', ": ");
    }
    text
}

/// A cleaned value for a text in this language: with its own direction where that is another one, and with [`NO_LINK`].
fn shown(text: &str, code: Option<&str>, language: &str) -> String {
    let text = clean(text, code, MAX_VALUE_CHARS);
    let mut marked = String::with_capacity(text.len());
    let mut before = None;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        marked.push(c);
        let inside = |c: &char| c.is_alphanumeric();
        if c == '.' && before.as_ref().is_some_and(inside) && rest.peek().is_some_and(inside) {
            marked.push(NO_LINK);
        }
        before = Some(c);
    }
    match direction(language) == "rtl" || text.chars().any(is_right_to_left) {
        true if !text.is_empty() => format!("\u{2068}{marked}\u{2069}"),
        _ => marked,
    }
}

/// A rendered text that is not HTML.
fn plain(rendered: &str) -> String {
    rendered.replace(NO_LINK, "")
}

/// A rendered HTML in which no mail program finds a host name that a log brought in. Whoever copies the name copies it as it is.
fn without_links(rendered: &str) -> String {
    plain(&rendered.replace(&format!(".{NO_LINK}"), NO_LINK_DOT))
}

/// One line of at most `max` characters, without control and direction characters.
fn bounded(text: &str, max: usize) -> String {
    cut(one_line(text), max)
}

fn one_line(text: &str) -> String {
    let text: String = text
        .chars()
        .filter(|c| !is_invisible(*c))
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn cut(mut text: String, max: usize) -> String {
    if let Some((at, _)) = text.char_indices().nth(max) {
        text.truncate(at);
        text.push('…');
    }
    text
}

/// An escalation has no code of its own to look for, but what it is about was read from a log.
fn without_codes(text: &str) -> String {
    let mut text = one_line(text);
    let words: Vec<String> = text
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| ActivationCode::parse(&word.to_ascii_uppercase()).is_some())
        .map(str::to_owned)
        .collect();
    for word in words {
        text = text.replace(&word, "…");
    }
    text
}

/// Characters that change the direction of a text or hide in it. The joiners of scripts and emoji stay.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{061c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

fn is_right_to_left(c: char) -> bool {
    matches!(c, '\u{0590}'..='\u{08ff}' | '\u{fb1d}'..='\u{fdff}' | '\u{fe70}'..='\u{fefc}')
}

/// `https://…`, `www.…`, `mailto:…` or `host.example/path`. A host or user name alone is none.
fn looks_like_a_link(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.contains("//")
        || text.contains("www.")
        || text.split_whitespace().any(|word| {
            let path = word.rfind(['/', '?', '#', ':']);
            LINK_SCHEMES.iter().any(|scheme| word.contains(scheme))
                || matches!((word.find('.'), path), (Some(dot), Some(path)) if dot < path)
        })
}

/// A text without blanks at line ends, with at most one empty line in a row, and one line break at its end.
fn tidy(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut empty = true;
    for line in text.lines().map(str::trim_end) {
        if line.is_empty() && empty {
            continue;
        }
        empty = line.is_empty();
        out.push_str(line);
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

fn paragraphs(text: &str) -> Vec<String> {
    tidy(text)
        .split("\n\n")
        .map(str::trim)
        .filter(|paragraph| !paragraph.is_empty())
        .take(MAX_PARAGRAPHS)
        .map(
            |paragraph| match paragraph.char_indices().nth(MAX_PARAGRAPH_CHARS) {
                Some((at, _)) => format!("{}…", &paragraph[..at]),
                None => paragraph.to_owned(),
            },
        )
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_language_has_every_file() {
        for files in &BUILTIN[1..] {
            let (_, language, _) = split_name(files[0].0).unwrap();
            let want: Vec<_> = PER_LANGUAGE
                .iter()
                .map(|(kind, part)| file(kind, language, part))
                .collect();
            assert_eq!(
                files.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
                want
            );
        }
    }

    #[test]
    fn the_built_in_templates_take_difficult_data_on_a_tenth_of_the_fuel() {
        let mut templates = Templates::built_in();
        templates.texts.set_fuel(Some(FUEL / 10));
        assert_eq!(templates.try_all(), []);
    }

    #[test]
    fn a_value_is_one_line_without_direction_tricks_links_or_the_code() {
        let clean = |text: &str, code| clean(text, code, MAX_VALUE_CHARS);
        assert_eq!(
            clean("a\r\nBcc: b\u{2028}c\u{202e}d\0", None),
            "a Bcc: b cd"
        );
        let code = "EEIOTCU3LENEDJMR";
        assert_eq!(clean("x eeioTCU3LENEDJMR", Some(code)), "x …");
        assert_eq!(clean("x EEIO\u{200b}TCU3LENEDJMR", Some(code)), "x …");
        let long = clean(
            &format!("{}{code}", "y".repeat(MAX_VALUE_CHARS - 8)),
            Some(code),
        );
        assert!(!long.contains("EEIO"), "{long}");
        assert_eq!(
            without_codes("for (EEIOTCU3LENEDJMR), eeiotcu3lenedjmr."),
            "for (…), …."
        );
        assert_eq!(
            clean("https://evil.example/x", None),
            "https: / / evil. example/ x"
        );
        assert_eq!(clean("WWW.evil.example", None), "WWW. evil. example");
        assert_eq!(clean("evil.example/x", None), "evil. example/ x");
        assert_eq!(clean("fw1.example.com", None), "fw1.example.com");
        assert_eq!(clean("EXAMPLE\\o'neil", None), "EXAMPLE\\o'neil");
        assert_eq!(clean("evil.example:8443", None), "evil. example: 8443");
        assert_eq!(clean("mailto:eve@evil", None), "mailto: eve@evil");
        assert_eq!(shown("محمد", None, "en"), "\u{2068}محمد\u{2069}");
        assert_eq!(shown("alice", None, "ar"), "\u{2068}alice\u{2069}");
        assert_eq!(shown("alice", None, "en"), "alice");
        let marked = shown("fw1.example.com. x", None, "en");
        assert_eq!(plain(&marked), "fw1.example.com. x");
        assert_eq!(
            without_links(&marked),
            "fw1<span>.</span>example<span>.</span>com. x"
        );
        assert_eq!(
            clean(&"é".repeat(5_000), None).chars().count(),
            MAX_VALUE_CHARS + 1
        );
    }

    #[test]
    fn the_time_left_is_rounded_to_the_minute() {
        let templates = Templates::built_in();
        let left = |secs, language| {
            templates
                .left(SignedDuration::from_secs(secs), language)
                .unwrap()
        };
        assert_eq!(left(72 * 3600 - 2, "en"), "3 days");
        assert_eq!(left(25 * 3600, "en"), "1 day 1 hour");
        assert_eq!(left(3600 + 120, "en"), "1 hour 2 minutes");
        assert_eq!(left(61, "en"), "1 minute");
        assert_eq!(left(-5, "en"), "0 minutes");
        assert_eq!(left(48 * 3600, "de"), "2 Tage");
    }
}
