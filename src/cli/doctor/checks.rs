//! The checks: one function for each, one table of all. To add one: a function and its line.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use jiff::SignedDuration;
use jiff::Timestamp;

use super::Finding;
use super::facts::Facts;
use super::facts::Relay;
use crate::config;
use crate::ingest;
use crate::outbox;
use crate::outbox::Examined;
use crate::outbox::OpenError;
use crate::outbox::State;

/// A check. It finds nothing where it can't look.
type Check = fn(&Facts) -> Vec<Finding>;

/// Every check, in the order in which they are shown.
pub const CHECKS: &[(&str, Check)] = &[
    ("configuration", configuration),
    ("service", service),
    ("version", version),
    ("readiness", readiness),
    ("reload", reload),
    ("listeners", listeners),
    ("devices", devices),
    ("filter", filter),
    ("turned away", turned_away),
    ("UDP", udp),
    ("clocks", clocks),
    ("channels", channels),
    ("queue", queue),
    ("outbox", outbox),
    ("permissions", permissions),
    ("disk", disk),
];

/// A device that is silent for so long is named, and an activation that is open for so long.
const LONG: SignedDuration = SignedDuration::from_hours(1);
/// A device's clock that is off by more is not believed.
const MOST_SKEW: f64 = 300.0;
/// Less space than this soon ends the taking of codes.
const LITTLE_SPACE_BYTES: u64 = 256 << 20;
/// Less than this is as good as none.
const NO_SPACE_BYTES: u64 = 16 << 20;
/// So many lines of one kind are shown.
const MAX_SHOWN: usize = 20;
/// What the kernel lets a receive buffer be.
const RMEM_MAX: &str = "/proc/sys/net/core/rmem_max";

// === Configuration and service ===

fn configuration(facts: &Facts) -> Vec<Finding> {
    let mut found: Vec<_> = facts
        .report
        .0
        .iter()
        .filter_map(|placed| {
            let at = placed
                .line
                .map_or_else(String::new, |line| format!(":{line}"));
            let text = format!("{}{at}: {}", placed.file, placed.text);
            match placed.weight {
                "problem" => Some(Finding::problem(text, "correct it, then `ftm-relay check`")),
                "warning" => Some(Finding::warn(text, "see `ftm-relay check`")),
                _ => None,
            }
        })
        .take(MAX_SHOWN)
        .collect();
    if found.is_empty() {
        found.push(Finding::ok(format!("{} is good", facts.path.display())));
    }
    found
}

fn service(facts: &Facts) -> Vec<Finding> {
    vec![match &facts.relay {
        Relay::Answers(status, _) => {
            let since = status.since.strftime("%Y-%m-%dT%H:%M:%SZ");
            Finding::ok(format!("ftm-relay runs since {since}"))
        }
        Relay::Refuses(why) if why.contains("no request") => Finding::warn(
            "the relay that runs is an older version and can't say how it fares",
            "systemctl restart ftm-relay",
        ),
        Relay::Refuses(why) => Finding::problem(
            format!("the relay that runs can't be asked: {why}"),
            "run this as root or as the user that runs ftm-relay; if it hangs, systemctl restart ftm-relay",
        ),
        Relay::NotRunning => Finding::problem(
            "ftm-relay does not run",
            "systemctl enable --now ftm-relay; if it ends again, the other lines here and `journalctl -u ftm-relay` say why",
        ),
    }]
}

fn version(facts: &Facts) -> Vec<Finding> {
    let Some((status, _)) = facts.status() else {
        return Vec::new();
    };
    let here = env!("CARGO_PKG_VERSION");
    vec![if status.version == here {
        Finding::ok(format!("{here} is installed and runs"))
    } else {
        Finding::warn(
            format!("{} runs, {here} is installed", status.version),
            "systemctl restart ftm-relay",
        )
    }]
}

fn readiness(facts: &Facts) -> Vec<Finding> {
    let Some((status, _)) = facts.status() else {
        return Vec::new();
    };
    let reasons = status.not_ready.iter();
    let mut found: Vec<_> = reasons
        .map(|why| {
            Finding::problem(
                format!("not ready: {why}"),
                "until then nothing new is taken; the service goes on by itself once the cause is gone",
            )
        })
        .collect();
    if found.is_empty() {
        found.push(Finding::ok("it takes codes"));
    }
    found
}

fn reload(facts: &Facts) -> Vec<Finding> {
    let Some((_, samples)) = facts.status() else {
        return Vec::new();
    };
    let refused = samples.of("config_reload_success").any(|s| s.value == 0.0);
    match refused {
        true => vec![Finding::warn(
            "the last reload was refused, so an older configuration runs",
            "`ftm-relay check` says why; then systemctl reload ftm-relay",
        )],
        false => Vec::new(),
    }
}

// === Ways in ===

fn listeners(facts: &Facts) -> Vec<Finding> {
    let Some(config) = &facts.config else {
        return Vec::new();
    };
    let running = facts.status().map(|(_, samples)| samples);
    let look = |listener: &ingest::Config| {
        let name = listener.name();
        if let Some(samples) = running {
            let frames = samples
                .of("frames_total")
                .find(|s| s.label("listener") == name);
            return match frames {
                Some(frames) => Finding::ok(format!(
                    "{name} is bound to {}; {} frames since the start",
                    listener.address(),
                    frames.value
                )),
                None => Finding::problem(
                    format!("the relay that runs has no listener {name}"),
                    "the configuration was changed since: systemctl reload ftm-relay",
                ),
            };
        }
        match ingest::bind(listener) {
            Ok(_) => Finding::ok(format!("{} is free for {name}", listener.address())),
            Err(e) if e.kind() == ErrorKind::AddrInUse => Finding::problem(
                format!(
                    "{} of {name} is taken by another program",
                    listener.address()
                ),
                "`ss -lntup` says by which; if it is systemd, ftm-relay.socket holds it for the service, which is right",
            ),
            Err(e) if e.kind() == ErrorKind::AddrNotAvailable => Finding::problem(
                format!(
                    "this machine has no address {} for {name}",
                    listener.address().ip()
                ),
                "write one that it has, or 0.0.0.0, as `address`",
            ),
            Err(e) if e.kind() == ErrorKind::PermissionDenied => Finding::ok(format!(
                "whether {} is free for {name} can't be tried by this user",
                listener.address()
            )),
            Err(e) => Finding::problem(
                format!("{name} can't be bound to {}: {e}", listener.address()),
                "correct `address`",
            ),
        }
    };
    // Not while something that can't be asked holds them.
    match &facts.relay {
        Relay::Refuses(_) => Vec::new(),
        _ => config.listeners.iter().map(look).collect(),
    }
}

fn devices(facts: &Facts) -> Vec<Finding> {
    let Some((status, samples)) = facts.status() else {
        return Vec::new();
    };
    let advice = "a FortiGate that sends token events alone is silent for long; if there was one, see `diagnose log test` and `get log syslogd2 setting` on it, and the way between (`tcpdump port 514`)";
    let mut heard = BTreeMap::new();
    for sample in samples.of("device_last_seen_timestamp_seconds") {
        heard.insert(sample.label("device"), sample.value);
    }
    let seconds = |at: Timestamp| at.as_second() as f64;
    let mut silent = Vec::new();
    for (device, at) in &heard {
        let ago = Duration::try_from_secs_f64(seconds(facts.now) - at).unwrap_or_default();
        if ago.as_secs_f64() > LONG.as_secs_f64() {
            let hours = ago.as_secs() / 3600;
            silent.push(Finding::warn(
                format!("no line of {device} was read for {hours} h"),
                advice,
            ));
        }
    }
    if facts.now.duration_since(status.since) > LONG
        && let Some(config) = &facts.config
    {
        for (id, name) in config.pipeline.devices().configured() {
            if !heard.contains_key(id) {
                let name = name.map_or_else(String::new, |name| format!(" ({name})"));
                silent.push(Finding::warn(
                    format!("no line of {id}{name} was read since the start"),
                    advice,
                ));
            }
        }
    }
    if silent.is_empty() {
        return vec![Finding::ok(format!("{} were heard", heard.len()))];
    }
    silent.truncate(MAX_SHOWN);
    silent
}

fn filter(facts: &Facts) -> Vec<Finding> {
    let Some((status, samples)) = facts.status() else {
        return Vec::new();
    };
    let frames = samples.sum("frames_total");
    let events = samples.sum("activations_total");
    let kept = status.stats.as_ref().map_or(0, |stats| {
        stats.items.iter().map(|(_, count)| count).sum::<u64>()
    });
    let advice = "`ftm-relay fortigate-cli` prints a filter that lets token events through; its severity must be information or notification, since they are of level notice. Then activate a token to try it";
    vec![if frames == 0.0 && kept == 0 {
        Finding::warn(
            "no FortiGate has sent anything since the start",
            "paste what `ftm-relay fortigate-cli` prints into it; `diagnose log test` on it sends something",
        )
    } else if events == 0.0 && kept == 0 {
        Finding::warn(
            format!(
                "{frames} frames came, but never a token event: the FortiGate's filter or severity may be too strict"
            ),
            advice,
        )
    } else {
        Finding::ok("token events came")
    }]
}

fn turned_away(facts: &Facts) -> Vec<Finding> {
    let Some((status, samples)) = facts.status() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for sample in samples.of("frames_rejected_total") {
        if sample.value == 0.0 {
            continue;
        }
        let (listener, reason) = (sample.label("listener"), sample.label("reason"));
        let (what, advice) = match reason {
            "peer" => (
                "from peers that may not speak there",
                "add those that may to `allow`, `devices` or `peers`; the log names them",
            ),
            "size" => ("longer than `max_frame_bytes`", "raise it"),
            "framing" => (
                "without a record",
                "is it syslog? the log says what was seen",
            ),
            "tls" => ("at the TLS handshake", "the log says why"),
            "backlog" => (
                "since the relay was too busy",
                "let the FortiGate filter, or use TCP",
            ),
            "outbox" => (
                "since the outbox could not commit",
                "see disk and outbox below",
            ),
            other => (other, "see the log"),
        };
        found.push(Finding::warn(
            format!("{} were turned away at {listener} {what}", sample.value),
            advice,
        ));
    }
    let strangers = status.strangers.iter().take(MAX_SHOWN);
    found.extend(strangers.map(|(why, count)| {
        Finding::warn(
            format!("{count} records were not believed: {why}"),
            "if they were right, add the peer or the device there",
        )
    }));
    if found.is_empty() {
        found.push(Finding::ok("nothing"));
    }
    found
}

fn udp(facts: &Facts) -> Vec<Finding> {
    let (Some((_, samples)), Some(config)) = (facts.status(), &facts.config) else {
        return Vec::new();
    };
    if !config.listeners.iter().any(ingest::Config::is_datagram) {
        return Vec::new();
    }
    let wanted = ingest::RECEIVE_BUFFER_BYTES;
    let granted: usize = std::fs::read_to_string(RMEM_MAX)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(wanted);
    let small = granted < wanted;
    let dropped = samples.sum("udp_dropped_total");
    vec![if dropped > 0.0 && small {
        Finding::problem(
            format!("the kernel dropped {dropped} datagrams; net.core.rmem_max is {granted}"),
            format!(
                "`sysctl -w net.core.rmem_max={wanted}` (and into /etc/sysctl.d), then restart; or let the FortiGate filter, or use TCP"
            ),
        )
    } else if dropped > 0.0 {
        Finding::problem(
            format!("the kernel dropped {dropped} datagrams"),
            "let the FortiGate filter (`ftm-relay fortigate-cli`), or use TCP",
        )
    } else if small {
        Finding::ok(format!(
            "no datagram was dropped; net.core.rmem_max is {granted}, {wanted} would hold more"
        ))
    } else {
        Finding::ok("no datagram was dropped")
    }]
}

fn clocks(facts: &Facts) -> Vec<Finding> {
    let Some((_, samples)) = facts.status() else {
        return Vec::new();
    };
    let skews = samples.of("device_clock_skew_seconds");
    let mut found: Vec<_> = skews
        .filter(|s| s.value.abs() > MOST_SKEW)
        .take(MAX_SHOWN)
        .map(|s| {
            let side = if s.value > 0.0 { "ahead of" } else { "behind" };
            Finding::warn(
                format!(
                    "the clock of {} was {:.0} s {side} ours in its last token event",
                    s.label("device"),
                    s.value.abs()
                ),
                "set NTP there and here, or codes expire too early; a replayed log looks the same",
            )
        })
        .collect();
    if found.is_empty() {
        found.push(Finding::ok("no device's clock is off"));
    }
    found
}

// === Ways out ===

fn channels(facts: &Facts) -> Vec<Finding> {
    let Some((status, _)) = facts.status() else {
        return Vec::new();
    };
    let suspended = status.suspended.iter();
    let mut found: Vec<_> = suspended
        .map(|(name, why)| {
            Finding::problem(
                format!("{name} is suspended: {why}"),
                format!("mend it; it is tried every 5 min, and at once by `ftm-relay queue retry`. `ftm-relay send-test --channel {name} --to YOU` shows the dialogue"),
            )
        })
        .collect();
    if found.is_empty() {
        found.push(Finding::ok("none is suspended"));
    }
    found
}

fn queue(facts: &Facts) -> Vec<Finding> {
    let Some(stats) = facts.status().and_then(|(status, _)| status.stats.as_ref()) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let waiting = stats
        .items
        .iter()
        .find(|(state, _)| *state == State::NeedsAttention)
        .map_or(0, |(_, count)| *count);
    if waiting > 0 {
        found.push(Finding::warn(
            format!("{waiting} need attention"),
            "`ftm-relay queue list --state needs-attention` says why; `queue retry` releases, `queue cancel` ends",
        ));
    }
    let age = stats.oldest.map(|oldest| facts.now.duration_since(oldest));
    match age.filter(|age| *age > LONG) {
        Some(age) => found.push(Finding::warn(
            format!(
                "the oldest that is not settled waits for {} h",
                age.as_hours()
            ),
            "`ftm-relay queue list` says for what",
        )),
        None if found.is_empty() => found.push(Finding::ok("nothing waits for long")),
        None => {}
    }
    found
}

// === What lies on the disk ===

fn outbox(facts: &Facts) -> Vec<Finding> {
    let Some(dir) = &facts.state_dir else {
        return Vec::new();
    };
    vec![match outbox::examine(dir) {
        Ok(Examined::Sound) => Finding::ok("no damage"),
        Ok(Examined::TooLarge(bytes)) => Finding::ok(format!(
            "{} MiB, too much to be read through here",
            bytes >> 20
        )),
        Err(OpenError::Missing(_)) if facts.status().is_none() => {
            Finding::ok("there is none yet; the service makes it")
        }
        Err(e @ (OpenError::Missing(_) | OpenError::Damaged { .. })) => Finding::problem(
            e.to_string(),
            "systemctl restart ftm-relay; then have the FortiGates send again what was open",
        ),
        Err(e) => Finding::warn(
            format!("it can't be looked at: {e}"),
            "run this as root or as the user that runs ftm-relay",
        ),
    }]
}

fn permissions(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut private = |path: &Path, mode: u32| {
        if path.is_symlink() {
            return;
        }
        if let Ok(is) = path.metadata()
            && is.permissions().mode() & 0o077 != 0
        {
            found.push(Finding::problem(
                format!(
                    "others may open {} (mode {:o})",
                    path.display(),
                    is.permissions().mode() & 0o777
                ),
                format!("chmod {mode:o} {}", path.display()),
            ));
        }
    };
    let credentials = config::credentials_of(&facts.path);
    for dir in [facts.state_dir.as_deref(), Some(&credentials)] {
        let Some(dir) = dir else { continue };
        // Where systemd keeps it for a DynamicUser, the name is a link.
        let dir = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
        private(&dir, 0o700);
        for path in inside(&dir) {
            private(&path, 0o600);
        }
    }
    if let Some(dir) = &facts.state_dir
        && let Ok(owner) = std::fs::metadata(dir).map(|m| m.uid())
    {
        for path in inside(dir) {
            if !path.is_symlink() && path.metadata().is_ok_and(|m| m.uid() != owner) {
                found.push(Finding::problem(
                    format!(
                        "{} belongs to another user than its directory",
                        path.display()
                    ),
                    format!("chown --reference={} {}", dir.display(), path.display()),
                ));
            }
        }
    }
    if let Ok(is) = std::fs::metadata(&facts.path)
        && is.permissions().mode() & 0o022 != 0
    {
        found.push(Finding::problem(
            format!("others may change {}", facts.path.display()),
            format!("chmod 644 {}", facts.path.display()),
        ));
    }
    if found.is_empty() {
        found.push(Finding::ok("what is secret is closed to others"));
    }
    found.truncate(MAX_SHOWN);
    found
}

fn inside(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn disk(facts: &Facts) -> Vec<Finding> {
    let Some(dir) = facts.state_dir.as_deref().filter(|dir| dir.is_dir()) else {
        return Vec::new();
    };
    let Ok(of) = rustix::fs::statvfs(dir) else {
        return Vec::new();
    };
    let free = of.f_bavail.saturating_mul(of.f_frsize);
    let text = format!("{} MiB are free in {}", free >> 20, dir.display());
    let advice = "make room; a full disk keeps codes in memory only, and at last at the FortiGate";
    vec![match free {
        ..NO_SPACE_BYTES => Finding::problem(text, advice),
        NO_SPACE_BYTES..LITTLE_SPACE_BYTES => Finding::warn(text, advice),
        _ => Finding::ok(text),
    }]
}
