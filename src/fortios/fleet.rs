//! Which devices have a REST API (`[[device]]` with `api`), and how each is reached.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use rustls::RootCertStore;
use toml::Spanned;

use crate::activation::Device;
use crate::devices;
use crate::settings::Check;
use crate::settings::Period;
use crate::settings::Span;
use crate::settings::is_loopback;
use crate::tls;
use crate::tls::Fingerprint;

use super::FortiGate;
use super::client::Client;

/// How often a device's own log is read, unless it says otherwise.
const CATCH_UP: Period = Period::seconds(5 * 60);
/// More often than this helps nobody and wears the device out.
const MIN_CATCH_UP: Duration = Duration::from_secs(1);
/// So many VDOMs of one device are read.
pub(super) const MAX_VDOMS: usize = 500;

/// Whether and where a device's own log is read for what syslog lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatchUp {
    /// How often; `None`: never.
    pub every: Option<Duration>,
    /// The VDOMs; `None`: `root`, and those that its log names and it knows.
    pub vdoms: Option<Vec<String>>,
    /// How long the device's codes live: older events have nothing to send.
    pub validity: Duration,
}

/// All `[[device]]` with `api`.
#[derive(Default)]
pub struct Fleet {
    by_id: HashMap<String, Arc<FortiGate>>,
    has_any: bool,
}

impl Fleet {
    /// Checks the keys of every `[[device]]` that concern its API. A device whose key can't be read here is left out, and
    /// `check` says so. `None`: one of them can't be used.
    pub fn build(
        configs: &[devices::Config],
        default_validity: Duration,
        check: &mut Check,
    ) -> Option<Arc<Self>> {
        let mut fleet = Self::default();
        let mut trust = Trust::default();
        let mut is_good = true;
        for config in configs {
            fleet.has_any |= config.api.is_some();
            match build(config, default_validity, &mut trust, check) {
                Ok(Some(device)) => {
                    fleet.by_id.insert(device.id.clone(), Arc::new(device));
                }
                Ok(None) => {}
                Err(Unusable) => is_good = false,
            }
        }
        is_good.then(|| Arc::new(fleet))
    }

    /// The device that a record comes from, if its API may be asked.
    pub fn device(&self, device: &Device) -> Option<&Arc<FortiGate>> {
        self.by_id.get(&device.id)
    }

    /// The device of this id.
    pub fn by_id(&self, id: &str) -> Option<&Arc<FortiGate>> {
        self.by_id.get(id)
    }

    /// All of them, in no particular order.
    pub fn all(&self) -> impl Iterator<Item = &Arc<FortiGate>> {
        self.by_id.values()
    }

    /// Whether any device has an API, also one whose key can't be read here.
    pub fn has_any(&self) -> bool {
        self.has_any
    }
}

struct Unusable;

/// Authorities that were read already: a thousand devices often share one file.
#[derive(Default)]
struct Trust(HashMap<Option<PathBuf>, Arc<RootCertStore>>);

impl Trust {
    fn roots(
        &mut self,
        file: Option<&Spanned<PathBuf>>,
        check: &mut Check,
    ) -> Option<Arc<RootCertStore>> {
        let key = file.map(|file| file.get_ref().clone());
        if let Some(roots) = self.0.get(&key) {
            return Some(Arc::clone(roots));
        }
        let roots = tls::roots(file, check)?;
        self.0.insert(key, Arc::clone(&roots));
        Some(roots)
    }
}

fn build(
    config: &devices::Config,
    default_validity: Duration,
    trust: &mut Trust,
    check: &mut Check,
) -> Result<Option<FortiGate>, Unusable> {
    let Some(api) = &config.api else {
        return without_api(config, check);
    };
    let mut is_good = true;
    let base = address(api, check);
    let Some(source) = &config.token else {
        check.problem(
            api.span(),
            "`api` needs `token`, the key of a REST API administrator; write token = { credential = \"…\" }",
        );
        return Err(Unusable);
    };
    let token = check.secret(source);
    let is_plain = base.as_ref().is_some_and(|(url, _)| url.scheme() == "http");
    let tls = match (&config.fingerprint, &config.ca_file) {
        (Some(fingerprint), Some(_)) => {
            check.problem(
                fingerprint.span(),
                "`fingerprint` and `ca_file` are two ways to trust a device; write one of them",
            );
            None
        }
        (Some(fingerprint), None) => match fingerprint.get_ref().parse::<Fingerprint>() {
            Ok(pin) => Some(tls::client_pinned(pin)),
            Err(()) => {
                check.problem(
                    fingerprint.span(),
                    "`fingerprint` is sha256: and 64 hexadecimal digits, as `openssl x509 -noout -fingerprint -sha256` prints them",
                );
                None
            }
        },
        (None, None) if is_plain => Some(tls::trusting_nobody()),
        (None, ca_file) => trust
            .roots(ca_file.as_ref(), check)
            .map(tls::client_trusting),
    };
    let catch_up = catch_up(config, default_validity, check);
    is_good &= base.is_some() && tls.is_some() && catch_up.is_some();
    let (Some((base, host)), Some(tls), Some(catch_up), true) = (base, tls, catch_up, is_good)
    else {
        return Err(Unusable);
    };
    // A key that can't be read here has been noted, or is a problem already.
    let Some(token) = token else { return Ok(None) };
    let ids = config.id.get_ref().0.clone();
    let Some(id) = ids.first().cloned() else {
        return Err(Unusable);
    };
    let serials = ids.iter().filter(|id| is_device_serial(id)).cloned();
    let Some(client) = Client::new(base, host, token, &tls, serials.collect()) else {
        check.problem(
            source.span.clone(),
            "this key can't stand in a request; it must be one line of plain characters",
        );
        return Err(Unusable);
    };
    Ok(Some(FortiGate {
        id,
        ids,
        confirm: config.confirm.as_ref().is_some_and(|c| *c.get_ref()),
        catch_up,
        client,
        held: Default::default(),
    }))
}

/// The keys that have no use without `api`.
fn without_api(config: &devices::Config, check: &mut Check) -> Result<Option<FortiGate>, Unusable> {
    let keys: [(&str, Option<Span>); 6] = [
        ("token", config.token.as_ref().map(|s| s.span.clone())),
        ("ca_file", config.ca_file.as_ref().map(Spanned::span)),
        (
            "fingerprint",
            config.fingerprint.as_ref().map(Spanned::span),
        ),
        ("confirm", config.confirm.as_ref().map(Spanned::span)),
        ("catch_up", config.catch_up.as_ref().map(Spanned::span)),
        ("vdoms", config.vdoms.as_ref().map(Spanned::span)),
    ];
    let mut is_good = true;
    for (key, span) in keys {
        if let Some(span) = span {
            check.problem(
                span,
                format!("`{key}` needs `api`, the address of the device's REST API"),
            );
            is_good = false;
        }
    }
    match is_good {
        true => Ok(None),
        false => Err(Unusable),
    }
}

/// The URL, and the host and port to show.
fn address(api: &Spanned<String>, check: &mut Check) -> Option<(Url, String)> {
    let span = api.span();
    let url = Url::parse(api.get_ref()).ok();
    let is_usable = |url: &Url| {
        matches!(url.scheme(), "https" | "http")
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
    };
    let Some(url) = url.filter(is_usable) else {
        check.problem(
            span,
            "`api` is the https address of the FortiGate's administration page and nothing more, such as \"https://10.20.0.1\" or \"https://fw.example.com:8443\"",
        );
        return None;
    };
    let host = url.host_str()?.to_owned();
    let shown = match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.clone(),
    };
    if url.scheme() == "http" && !is_loopback(&host) {
        check.warning(
            span,
            format!(
                "http:// to {shown} shows the key and codes to everybody on the way; use https://"
            ),
        );
    }
    Some((url, shown))
}

fn catch_up(
    config: &devices::Config,
    default_validity: Duration,
    check: &mut Check,
) -> Option<CatchUp> {
    let every = config
        .catch_up
        .as_ref()
        .map_or(CATCH_UP.0, |c| c.get_ref().0);
    if let Some(written) = &config.catch_up
        && !every.is_zero()
        && every < MIN_CATCH_UP
    {
        check.problem(
            written.span(),
            "`catch_up` is at least \"1s\", such as \"5m\"; \"0s\" switches it off",
        );
        return None;
    }
    if let Some(vdoms) = &config.vdoms {
        let names = vdoms.get_ref();
        let is_name = |name: &String| !name.is_empty() && !name.contains(char::is_whitespace);
        if names.is_empty() || names.len() > MAX_VDOMS || !names.iter().all(is_name) {
            check.problem(
                vdoms.span(),
                format!("`vdoms` is a list of 1 to {MAX_VDOMS} names of VDOMs, such as [\"root\"]"),
            );
            return None;
        }
    }
    Some(CatchUp {
        every: (!every.is_zero()).then_some(every),
        vdoms: config.vdoms.as_ref().map(|v| v.get_ref().clone()),
        validity: config
            .validity
            .as_ref()
            .map_or(default_validity, |v| v.get_ref().0),
    })
}

/// Whether an id is the serial number of a device (as in `FGT60FTK20000001`) and not a host name.
fn is_device_serial(id: &str) -> bool {
    id.len() == 16
        && id.starts_with('F')
        && id
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
}
