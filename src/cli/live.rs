//! What `check --live` tries: everything around the relay, without anybody getting anything.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream;
use tokio::time::timeout;

use crate::channel::Transcript;
use crate::channel::probe::Probe;
use crate::channel::probe::Standing;
use crate::config::Config;
use crate::control;
use crate::control::Answer;
use crate::control::Request;
use crate::ingest;
use crate::outbox;
use crate::outbox::OpenError;

/// So many things are tried at the same time.
const AT_ONCE: usize = 16;
/// How long a running relay may take to say that it runs.
const MAX_ASK: Duration = Duration::from_secs(5);
/// With less space than this for the outbox the relay soon takes nothing in.
const LOW_DISK_BYTES: u64 = 64 << 20;
/// Up to this one a port is given to root, or to a unit that may bind it.
const LAST_PRIVILEGED_PORT: u16 = 1023;

/// One thing that was tried: a channel, a listener, a device.
pub(super) struct Tried {
    /// How the configuration calls it.
    pub(super) thing: String,
    pub(super) probes: Vec<Probe>,
    /// What was said on the wire, without secrets.
    pub(super) exchange: Vec<String>,
}

impl Tried {
    fn of(thing: impl Into<String>, probes: Vec<Probe>) -> Self {
        Self {
            thing: thing.into(),
            probes,
            exchange: Vec::new(),
        }
    }

    /// Whether anything of it doesn't work.
    pub(super) fn is_bad(&self) -> bool {
        self.probes.iter().any(|p| p.standing == Standing::Bad)
    }
}

/// Tries everything, several things at once; the results come in the order of the reference file.
pub(super) async fn try_all(config: &Config) -> Vec<Tried> {
    let is_running = is_running(&config.state_dir).await;
    let mut jobs: Vec<LocalBoxFuture<'_, Vec<Tried>>> = Vec::new();
    jobs.push(Box::pin(async move {
        vec![Tried::of(
            "outbox",
            store(&config.state_dir, &config.outbox, is_running),
        )]
    }));
    if let Some(http) = &config.http {
        jobs.push(Box::pin(async move {
            let bound = std::net::TcpListener::bind(http.listen).map(drop);
            vec![Tried::of(
                "http",
                vec![port(http.listen, bound, is_running)],
            )]
        }));
    }
    for listener in &config.listeners {
        jobs.push(Box::pin(async move {
            let bound = ingest::bind(listener).map(drop);
            vec![Tried::of(
                format!("listener {} ({})", listener.name(), listener.transport()),
                vec![port(listener.address(), bound, is_running)],
            )]
        }));
    }
    jobs.push(Box::pin(directories(config)));
    jobs.push(Box::pin(devices(config)));
    for name in config.channels.iter().map(|facts| &facts.name) {
        jobs.push(Box::pin(async move { vec![channel(config, name).await] }));
    }
    let tried: Vec<_> = stream::iter(jobs).buffered(AT_ONCE).collect().await;
    tried.into_iter().flatten().collect()
}

/// Whether a relay works with this state directory; `None`: this user may not ask.
async fn is_running(state_dir: &Path) -> Option<bool> {
    match timeout(MAX_ASK, control::ask(state_dir, &Request::Stats)).await {
        Ok(Ok(Some(Answer::Stats(_)))) => Some(true),
        Ok(Ok(Some(_))) | Err(_) => Some(true),
        Ok(Ok(None)) => Some(false),
        Ok(Err(_)) => None,
    }
}

/// What can be said about a port from whether it could be bound.
fn port(address: SocketAddr, bound: io::Result<()>, is_running: Option<bool>) -> Probe {
    let what = address.to_string();
    let Err(e) = bound else {
        return Probe::good(what, "is free");
    };
    match (e.kind(), is_running) {
        (io::ErrorKind::AddrInUse, Some(true)) => Probe::good(
            what,
            "is in use, and a relay with this state_dir is running",
        ),
        (io::ErrorKind::AddrInUse, None) => Probe::unknown(
            what,
            "is in use; whether by the relay can be seen as root or as the user that runs it",
        ),
        (io::ErrorKind::AddrInUse, Some(false)) => Probe::bad(
            what,
            "is in use, but no relay with this state_dir is running; `ss -lntup` says who has it (systemd has it while the relay's .socket unit is active, which is well)",
        ),
        (io::ErrorKind::AddrNotAvailable, _) => Probe::bad(
            what,
            "is no address of this machine; write one of those that `ip address` shows, or 0.0.0.0 or [::] for all of them",
        ),
        (io::ErrorKind::PermissionDenied, _) if address.port() <= LAST_PRIVILEGED_PORT => {
            Probe::unknown(
                what,
                "can't be tried by this user; ports below 1024 need root, CAP_NET_BIND_SERVICE or the relay's .socket unit",
            )
        }
        _ => Probe::bad(what, format!("can't be bound: {e}")),
    }
}

/// The outbox: its directory, the space there, its database and its key.
fn store(state_dir: &Path, settings: &outbox::Settings, is_running: Option<bool>) -> Vec<Probe> {
    let what = state_dir.display().to_string();
    let mut probes = Vec::new();
    let there = state_dir.ancestors().find(|dir| dir.exists());
    if let Some(Ok(disk)) = there.map(rustix::fs::statvfs) {
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let mib = free >> 20;
        probes.push(match free < LOW_DISK_BYTES {
            true => Probe::bad(&what, format!("has {mib} MiB left on its disk; make room, for without it nothing can be accepted")),
            false => Probe::good(&what, format!("has {mib} MiB left on its disk")),
        });
    }
    if is_running == Some(true) {
        probes.push(Probe::good(what, "is open in a running relay"));
        return probes;
    }
    let not_this_user = |e: &OpenError| matches!(e, OpenError::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied);
    let (opened, key) = (
        outbox::open_without_key(state_dir).map(drop),
        settings.has_key(state_dir),
    );
    let is_new = matches!(opened, Err(OpenError::Missing(_)));
    probes.push(match opened {
        Ok(()) => Probe::good(&what, "can be opened"),
        Err(OpenError::Missing(_)) => Probe::unknown(
            &what,
            "holds no outbox yet; the service makes it when it first starts",
        ),
        Err(e) if not_this_user(&e) || is_running.is_none() => Probe::unknown(
            &what,
            "can't be looked into by this user; do this as root or as the user that runs ftm-relay",
        ),
        Err(e) => Probe::bad(&what, format!("can't be opened: {e}")),
    });
    probes.push(match key {
        Ok(true) => Probe::good("key", "can be read"),
        Ok(false) if is_new => Probe::unknown(
            "key",
            "isn't there yet; the service makes it when it first starts",
        ),
        Ok(false) => Probe::bad(
            "key",
            "is gone, and what waits in the outbox can't be read without it; put it back",
        ),
        Err(OpenError::KeyUnread) => Probe::unknown(
            "key",
            "can't be read from here; the service reads it from its credentials",
        ),
        Err(e) if not_this_user(&e) => Probe::unknown("key", "can't be read by this user"),
        Err(e) => Probe::bad("key", format!("can't be used: {e}")),
    });
    probes
}

async fn directories(config: &Config) -> Vec<Tried> {
    let probes: Vec<Probe> = config
        .dispatch
        .directories
        .probe()
        .await
        .into_iter()
        .map(|probe| match probe.outcome {
            Ok(text) => Probe::good(probe.what, text),
            Err(text) => Probe::bad(probe.what, text),
        })
        .collect();
    match probes.is_empty() {
        true => Vec::new(),
        false => vec![Tried::of("directory", probes)],
    }
}

async fn devices(config: &Config) -> Vec<Tried> {
    let of_device = |(id, vdom, findings): (String, String, Vec<crate::fortios::Finding>)| {
        let probes = findings.into_iter().map(|finding| match finding.is_good {
            true => Probe::good("api", finding.text),
            false => Probe::bad("api", finding.text),
        });
        Tried::of(format!("device {id} (vdom {vdom})"), probes.collect())
    };
    let mut tried: Vec<Tried> = config
        .fleet
        .probe()
        .await
        .into_iter()
        .map(of_device)
        .collect();
    if config.fleet.has_any() && tried.is_empty() {
        tried.push(Tried::of("device", vec![Probe::unknown("api", NO_SECRET)]));
    }
    tried
}

/// Why something was not tried.
const NO_SECRET: &str = "was not tried: its secret can't be read here; run this as the service does, or set CREDENTIALS_DIRECTORY to where the credentials are";

async fn channel(config: &Config, name: &str) -> Tried {
    let Some(channel) = config.dispatch.channels.iter().find(|c| c.name == name) else {
        return Tried::of(
            format!("channel {name}"),
            vec![Probe::unknown(name, NO_SECRET)],
        );
    };
    let transcript = Transcript::on();
    let probes = channel.probe(&transcript).await;
    Tried {
        thing: format!("channel {name} ({})", channel.kind),
        probes,
        exchange: transcript.lines(),
    }
}
