//! Which channels an activation takes: the first `[[route]]` that matches.

use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use crate::activation::Activation;
use crate::activation::Stage;
use crate::domain;
use crate::glob::Glob;
use crate::recipients::Recipients;
use crate::settings::Check;
use crate::settings::Period;
use crate::settings::nearest;

/// One `[[route]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which activations take it.
    #[serde(rename = "match", default)]
    pub matches: Match,
    /// Narrows `recipients.domains`.
    pub domains: Option<Spanned<Vec<String>>>,
    /// All of these channels.
    pub to: Spanned<Vec<Spanned<String>>>,
    /// These, when no channel of `to` that carries the code was reached.
    #[serde(default)]
    pub fallback: Vec<Spanned<String>>,
    /// How long `to` may take.
    #[serde(default = "fallback_after")]
    pub fallback_after: Spanned<Period>,
    /// Who is told when something goes wrong, without the code.
    #[serde(default)]
    pub escalate: Vec<Spanned<String>>,
    /// The language of those whose directory names none.
    pub language: Option<String>,
}

fn fallback_after() -> Spanned<Period> {
    Spanned::new(0..0, Period::seconds(600))
}

/// `match` of a route: globs, all optional.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Match {
    /// On the device's id or name.
    pub device: Option<Glob>,
    /// On the VDOM.
    pub vdom: Option<Glob>,
    /// On the user, as logged or normalised.
    pub user: Option<Glob>,
    /// On the stage; default `code-sent`.
    pub stage: Option<Spanned<Glob>>,
}

/// What a route needs to know about a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelFacts {
    /// Its name.
    pub name: String,
    /// It carries the code.
    pub reveals: bool,
    /// It can send only to a person whose address is known.
    pub needs_person: bool,
}

/// One route, ready to be followed.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its place among the routes, from 1, for traces.
    pub number: usize,
    /// Narrows `recipients.domains`; each in its normal form.
    pub domains: Option<Vec<String>>,
    /// All of these channels.
    pub to: Vec<String>,
    /// These, when no channel of `to` that carries the code was reached.
    pub fallback: Vec<String>,
    /// How long `to` may take.
    pub fallback_after: Duration,
    /// Who is told when something goes wrong, without the code.
    pub escalate: Vec<String>,
    /// The language of those whose directory names none.
    pub language: Option<String>,
    matches: Match,
}

#[cfg(test)]
impl Route {
    /// A route that takes everything, with the defaults of the configuration.
    pub(crate) fn to(to: Vec<String>, fallback: Vec<String>, escalate: Vec<String>) -> Self {
        Self {
            number: 1,
            domains: None,
            to,
            fallback,
            fallback_after: Duration::from_secs(600),
            escalate,
            language: None,
            matches: Match::default(),
        }
    }
}

const STAGES: [Stage; 4] = [
    Stage::Requested,
    Stage::CodeSent,
    Stage::Activated,
    Stage::Failed,
];

impl Match {
    fn covers(&self, who: &Activation) -> bool {
        let any = |glob: &Option<Glob>, texts: &[&str]| {
            glob.as_ref()
                .is_none_or(|glob| texts.iter().any(|text| glob.matches(text)))
        };
        self.covers_stage(who.stage)
            && any(&self.device, &[&who.device.id, &who.device.name])
            && any(&self.vdom, &[&who.device.vdom])
            && any(&self.user, &[&who.user, &who.person])
    }

    fn covers_stage(&self, stage: Stage) -> bool {
        match &self.stage {
            Some(glob) => glob.get_ref().matches(stage.as_str()),
            None => stage == Stage::CodeSent,
        }
    }

    /// Whether everything of this stage that `other` takes is taken by this one too, as far as equal globs and `*` show.
    fn includes(&self, other: &Self, stage: Stage) -> bool {
        let wider = |mine: &Option<Glob>, other: &Option<Glob>| is_any(mine) || mine == other;
        self.covers_stage(stage)
            && wider(&self.device, &other.device)
            && wider(&self.vdom, &other.vdom)
            && wider(&self.user, &other.user)
    }
}

fn is_any(glob: &Option<Glob>) -> bool {
    glob.as_ref().is_none_or(|glob| {
        let pattern = glob.to_string();
        !pattern.is_empty() && pattern.bytes().all(|b| b == b'*')
    })
}

/// All `[[route]]`, in their order.
#[derive(Clone, Debug, Default)]
pub struct Routes(Vec<Route>);

impl Routes {
    /// Checks names, domains and what can never happen. `None`: there are problems, which `check` knows.
    pub fn build(
        configs: Vec<Config>,
        channels: &[ChannelFacts],
        recipients: &Recipients,
        check: &mut Check,
    ) -> Option<Self> {
        let mut routes: Vec<Route> = Vec::new();
        let mut good = true;
        for (config, number) in configs.into_iter().zip(1..) {
            let here = config.to.span();
            good &= check_channels(&config, channels, check);
            good &= check_stage(&config.matches, check);
            let domains = match config.domains.map(|d| check_domains(d, recipients, check)) {
                Some(None) => {
                    good = false;
                    None
                }
                Some(domains) => domains,
                None => None,
            };
            if config.fallback_after.get_ref().0.is_zero() {
                check.problem(
                    config.fallback_after.span(),
                    "the fallback would start before the first try; write a longer `fallback_after`, such as \"10m\"",
                );
                good = false;
            }
            let earlier = |stage| {
                routes
                    .iter()
                    .find(|r| r.matches.includes(&config.matches, stage))
            };
            let mut stages = STAGES
                .into_iter()
                .filter(|&s| config.matches.covers_stage(s))
                .map(earlier)
                .peekable();
            if let Some(Some(first)) = stages.peek().copied()
                && stages.all(|earlier| earlier.is_some())
            {
                check.warning(
                    here,
                    format!(
                        "no activation gets to this route: route {} takes them all",
                        first.number
                    ),
                );
            }
            routes.push(Route {
                number,
                domains,
                to: names(config.to.into_inner()),
                fallback: names(config.fallback),
                fallback_after: config.fallback_after.into_inner().0,
                escalate: names(config.escalate),
                language: config.language,
                matches: config.matches,
            });
        }
        let everything = Match::default();
        if !routes
            .iter()
            .any(|r| r.matches.includes(&everything, Stage::CodeSent))
        {
            check.warning(
                None,
                "an activation that matches no route will wait for a person; end with a [[route]] without `match`",
            );
        }
        good.then_some(Self(routes))
    }

    /// The first route that matches.
    pub fn find(&self, who: &Activation) -> Option<&Route> {
        self.0.iter().find(|route| route.matches.covers(who))
    }

    /// Every channel that some route escalates to.
    pub fn escalate_all(&self) -> Vec<String> {
        distinct(self.0.iter().flat_map(|r| &r.escalate))
    }

    /// The channels that are told of what happens to `channel`: those of the routes that use it.
    pub fn escalate_for(&self, channel: &str) -> Vec<String> {
        let uses = |r: &&Route| {
            [&r.to, &r.fallback, &r.escalate]
                .into_iter()
                .flatten()
                .any(|c| c == channel)
        };
        distinct(self.0.iter().filter(uses).flat_map(|r| &r.escalate))
    }

    /// All of them, in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.0.iter()
    }
}

fn distinct<'n>(names: impl Iterator<Item = &'n String>) -> Vec<String> {
    let mut distinct: Vec<String> = Vec::new();
    for name in names {
        if !distinct.contains(name) {
            distinct.push(name.clone());
        }
    }
    distinct
}

fn names(list: Vec<Spanned<String>>) -> Vec<String> {
    let mut names: Vec<String> = Vec::with_capacity(list.len());
    for name in list {
        if !names.contains(name.get_ref()) {
            names.push(name.into_inner());
        }
    }
    names
}

fn check_channels(config: &Config, channels: &[ChannelFacts], check: &mut Check) -> bool {
    let here = config.to.span();
    let to = config.to.get_ref();
    let known = |name: &Spanned<String>| channels.iter().find(|c| c.name == *name.get_ref());
    let mut good = true;
    for name in to.iter().chain(&config.fallback).chain(&config.escalate) {
        if known(name).is_none() {
            check.problem(name.span(), unknown_channel(name.get_ref(), channels));
            good = false;
        }
    }
    for (key, list) in [
        ("to", to),
        ("fallback", &config.fallback),
        ("escalate", &config.escalate),
    ] {
        for (at, name) in list.iter().enumerate() {
            if list[..at].iter().any(|n| n.get_ref() == name.get_ref()) {
                check.warning(
                    name.span(),
                    format!("{} stands twice in `{key}`; once counts", name.get_ref()),
                );
            }
        }
    }
    for name in &config.fallback {
        if to.iter().any(|n| n.get_ref() == name.get_ref()) {
            check.warning(
                name.span(),
                format!(
                    "{} is already in `to`, so it does nothing as a fallback",
                    name.get_ref()
                ),
            );
        }
    }
    for name in &config.escalate {
        if known(name).is_some_and(|c| c.needs_person) {
            check.warning(
                name.span(),
                format!("{} has no fixed recipient, so nobody is told by it; give it `to`, or name another channel", name.get_ref()),
            );
        }
    }
    let all_known = good;
    let carries = |list: &[Spanned<String>]| list.iter().filter_map(known).any(|c| c.reveals);
    if to.is_empty() {
        check.problem(here.clone(), "`to` is empty; name at least one channel");
        good = false;
    } else if all_known && config.matches.covers_stage(Stage::CodeSent) && !carries(to) {
        check.warning(
            here.clone(),
            "no channel of `to` carries the code, so nobody gets it by this route",
        );
    }
    if let Some(first) = config.fallback.first()
        && all_known
        && !carries(&config.fallback)
    {
        check.warning(
            first.span(),
            "no channel of `fallback` carries the code, so it can't stand in for `to`",
        );
    }
    if config.escalate.is_empty() {
        check.warning(
            here,
            "`escalate` is empty, so nobody is told when a code doesn't arrive",
        );
    }
    good
}

fn check_stage(matches: &Match, check: &mut Check) -> bool {
    let Some(stage) = &matches.stage else {
        return true;
    };
    if STAGES.iter().any(|s| matches.covers_stage(*s)) {
        return true;
    }
    let names: Vec<&str> = STAGES.iter().map(|s| s.as_str()).collect();
    check.problem(
        stage.span(),
        format!(
            "no stage is called {}; there are {}",
            stage.get_ref(),
            names.join(", ")
        ),
    );
    false
}

fn check_domains(
    domains: Spanned<Vec<String>>,
    recipients: &Recipients,
    check: &mut Check,
) -> Option<Vec<String>> {
    let span = domains.span();
    let domains: Vec<String> = domains
        .into_inner()
        .iter()
        .map(|d| domain::normal(d))
        .collect();
    let mut good = true;
    if domains.is_empty() {
        check.problem(
            span.clone(),
            "`domains` is empty, so this route would reach nobody; leave it out to keep `recipients.domains`",
        );
        good = false;
    }
    for domain in &domains {
        if domain.contains('@') || !recipients.allows(&format!("user@{domain}")) {
            check.problem(
                span.clone(),
                format!("{domain} is not among `recipients.domains`; a route can only narrow them"),
            );
            good = false;
        }
    }
    good.then_some(domains)
}

fn unknown_channel(name: &str, channels: &[ChannelFacts]) -> String {
    let names: Vec<&str> = channels.iter().map(|c| c.name.as_str()).collect();
    match nearest(name, names.iter().copied()) {
        Some(nearest) => format!("there is no [channel.{name}]; did you mean \"{nearest}\"?"),
        None if channels.is_empty() => format!("there is no [channel.{name}], nor any other"),
        None => format!(
            "there is no [channel.{name}]; there are {}",
            names.join(", ")
        ),
    }
}
