//! What a directory said lately, per device, VDOM and user.

use std::collections::HashMap;
use std::time::Duration;
use std::time::Instant;

use crate::activation::Activation;
use crate::directory::Answer;
use crate::directory::LookupError;
use crate::message::Recipient;

/// So many answers are kept, in two halves; the half that was of use longer ago goes first.
const MAX_ANSWERS: usize = 20_000;
/// That somebody is not known, or known twice, is mended by an administrator who then waits for the code.
const LONGEST_BAD_NEWS: Duration = Duration::from_secs(30);
/// How long an address stands in while the directory is away.
const LAST_GOOD: Duration = Duration::from_secs(24 * 3600);

/// What a directory said: anything but that it is away.
pub(super) type Said = Result<Answer, LookupError>;

/// Who was asked about. One customer's jsmith is never another's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    device: String,
    vdom: String,
    person: String,
}

impl Key {
    pub(super) fn of(who: &Activation) -> Self {
        Self {
            device: who.device.id.clone(),
            vdom: who.device.vdom.clone(),
            person: who.person.clone(),
        }
    }
}

struct Kept {
    said: Said,
    at: Instant,
}

/// The answers.
pub(super) struct Cache {
    good_news: Duration,
    young: HashMap<Key, Kept>,
    old: HashMap<Key, Kept>,
}

impl Cache {
    /// Answers count for `good_news`, bad news for at most half a minute of it.
    pub(super) fn new(good_news: Duration) -> Self {
        Self {
            good_news,
            young: HashMap::new(),
            old: HashMap::new(),
        }
    }

    /// What was said lately enough to say it again.
    pub(super) fn fresh(&mut self, key: &Key, now: Instant) -> Option<Said> {
        let good_news = self.good_news;
        let kept = self.kept(key)?;
        let life = match kept.said {
            Ok(Answer::Person(_)) => good_news,
            _ => good_news.min(LONGEST_BAD_NEWS),
        };
        (now.saturating_duration_since(kept.at) < life).then(|| kept.said.clone())
    }

    /// Who it was, and how long ago that was said, if nothing else has been said since.
    pub(super) fn last_good(&mut self, key: &Key, now: Instant) -> Option<(Recipient, Duration)> {
        let kept = self.kept(key)?;
        let age = now.saturating_duration_since(kept.at);
        match &kept.said {
            Ok(Answer::Person(recipient)) if age < LAST_GOOD => Some((recipient.clone(), age)),
            _ => None,
        }
    }

    /// Keeps an answer in place of an older one.
    pub(super) fn keep(&mut self, key: Key, said: Said, now: Instant) {
        self.old.remove(&key);
        self.store(key, Kept { said, at: now });
    }

    fn kept(&mut self, key: &Key) -> Option<&Kept> {
        if let Some((key, kept)) = self.old.remove_entry(key) {
            self.store(key, kept);
        }
        self.young.get(key)
    }

    fn store(&mut self, key: Key, kept: Kept) {
        if self.young.len() >= MAX_ANSWERS / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> Key {
        Key {
            device: "FGT".to_owned(),
            vdom: "root".to_owned(),
            person: format!("user{n}"),
        }
    }

    fn person() -> Said {
        Ok(Answer::Person(Recipient {
            email: "alice@example.com".to_owned(),
            name: None,
            phone: None,
            language: None,
            source: "ldap".to_owned(),
        }))
    }

    fn nobody() -> Said {
        Ok(Answer::Unknown("has no entry".to_owned()))
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn bad_news_is_forgotten_sooner_than_good() {
        let mut cache = Cache::new(10 * MINUTE);
        let now = Instant::now();
        cache.keep(key(1), person(), now);
        cache.keep(key(2), nobody(), now);
        assert_eq!(cache.fresh(&key(1), now + 9 * MINUTE), Some(person()));
        assert_eq!(cache.fresh(&key(1), now + 10 * MINUTE), None);
        assert_eq!(cache.fresh(&key(2), now + MINUTE / 3), Some(nobody()));
        assert_eq!(cache.fresh(&key(2), now + MINUTE / 2), None);
        let mut short = Cache::new(MINUTE / 60);
        short.keep(key(2), nobody(), now);
        assert_eq!(short.fresh(&key(2), now + MINUTE / 60), None);
    }

    #[test]
    fn an_address_stands_in_for_a_day_unless_something_else_was_said_since() {
        let mut cache = Cache::new(MINUTE);
        let now = Instant::now();
        cache.keep(key(1), person(), now);
        let age = cache
            .last_good(&key(1), now + 60 * MINUTE)
            .map(|(_, age)| age);
        assert_eq!(age, Some(60 * MINUTE));
        assert_eq!(cache.last_good(&key(1), now + LAST_GOOD), None);
        cache.keep(key(1), nobody(), now + MINUTE);
        assert_eq!(cache.last_good(&key(1), now + 2 * MINUTE), None);
    }

    #[test]
    fn it_keeps_what_is_of_use_and_never_too_much() {
        let mut cache = Cache::new(MINUTE);
        let now = Instant::now();
        cache.keep(key(0), person(), now);
        for n in 1..3 * MAX_ANSWERS {
            cache.keep(key(n), nobody(), now);
            assert!(cache.fresh(&key(0), now).is_some(), "lost after {n}");
            assert!(cache.young.len() + cache.old.len() <= MAX_ANSWERS);
        }
        assert_eq!(cache.fresh(&key(1), now), None);
    }
}
