//! One channel by itself: built from its keys, tried once.

use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use ftm_relay::channel::Attempt;
use ftm_relay::channel::Channel;
use ftm_relay::channel::Commit;
use ftm_relay::channel::Common;
use ftm_relay::channel::Config;
use ftm_relay::channel::Receipt;
use ftm_relay::channel::SendError;
use ftm_relay::channel::Transcript;
use ftm_relay::message::Notification;
use ftm_relay::message::Recipient;
use ftm_relay::secret::Secret;
use ftm_relay::settings::Check;
use ftm_relay::template::Templates;

use crate::template::activation;
use crate::template::alice;
use crate::template::berlin;
use crate::template::style;

/// The code of [`note`].
pub const CODE: &str = "EEIOTCU3LENEDJMR";

/// Builds a channel from its keys; every problem and warning as text.
pub fn build(kind: &str, keys: &str, common: &str) -> (Option<Channel>, Vec<String>) {
    build_in(Path::new("/"), kind, keys, common)
}

pub fn build_in(
    dir: &Path,
    kind: &str,
    keys: &str,
    common: &str,
) -> (Option<Channel>, Vec<String>) {
    let mut check = Check::new(dir, None, true);
    let keys = toml::Deserializer::parse(keys).unwrap();
    let config = Config::read(kind, keys).unwrap().unwrap();
    let common: Common = toml::from_str(common).unwrap();
    let built = config.build("hook", common, &dir.join("state"), &mut check);
    let findings = check.findings();
    let said = findings
        .iter()
        .map(|f| format!("{:?}: {}", f.weight, f.text));
    (built, said.collect())
}

pub fn channel(kind: &str, keys: &str) -> Channel {
    let (built, said) = build(kind, keys, "timeout = \"5s\"");
    built.unwrap_or_else(|| panic!("{said:?}"))
}

/// Counts the commits, and allows them or not.
pub struct Commits(pub AtomicUsize, pub Option<SendError>);

impl Commits {
    pub fn good() -> Self {
        Self(AtomicUsize::new(0), None)
    }
}

#[async_trait]
impl Commit for Commits {
    async fn commit(&self) -> Result<(), SendError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        self.1.clone().map_or(Ok(()), Err)
    }
}

/// An activation as alice reads it, with its code or without.
pub fn note(reveal: bool) -> Notification {
    let zone = berlin();
    Templates::built_in()
        .activation(&activation(), Some(&alice(None)), &style(&zone, reveal))
        .unwrap()
}

/// Alice gets it.
pub async fn send(channel: &Channel, note: &Notification) -> (Result<Receipt, SendError>, String) {
    send_to(channel, Some(&alice(None)), note, &Commits::good()).await
}

/// One try, and its transcript.
pub async fn send_to(
    channel: &Channel,
    to: Option<&Recipient>,
    note: &Notification,
    commit: &Commits,
) -> (Result<Receipt, SendError>, String) {
    let transcript = Transcript::on();
    let redactor = channel.redactor.with([Secret::new(CODE)]);
    let attempt = Attempt {
        to,
        note,
        commit,
        redactor: &redactor,
        transcript: &transcript,
    };
    let result = channel.carrier.send(&attempt).await;
    (result, transcript.lines().join("\n"))
}

/// Alice with another mail address.
pub fn person(name: &str) -> Recipient {
    Recipient {
        email: format!("{name}@example.com"),
        ..alice(None)
    }
}
