//! Firewalls: which device a record comes from (`[[device]]`), under which name, how long its codes live, and who may speak
//! for it.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use serde::Deserializer;
use serde::de;
use toml::Spanned;

use crate::activation::Device;
use crate::frame::Peer;
use crate::settings::Check;
use crate::settings::Period;
use crate::settings::SecretSource;
use crate::settings::Span;

/// `[[device]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Serial numbers and host names of one device or of a cluster's members; the first is its canonical id.
    pub id: Spanned<Ids>,
    /// How people know it; default the device name in the log.
    pub name: Option<String>,
    /// Who may speak for it: addresses, networks, names in client certificates. Absent: anybody the listener allows.
    pub peers: Option<Spanned<Vec<String>>>,
    /// How long its codes live; default the `validity` of the whole configuration.
    pub validity: Option<Spanned<Period>>,
    /// The address of its REST API, such as `https://10.20.0.1`. Without it the keys below have no use.
    pub api: Option<Spanned<String>>,
    /// The key of a REST API administrator.
    pub token: Option<SecretSource>,
    /// The authorities that may sign the API's certificate; default those of the system.
    pub ca_file: Option<Spanned<PathBuf>>,
    /// The one certificate that is believed, in place of any authority: `sha256:` and its digest in hexadecimal.
    pub fingerprint: Option<Spanned<String>>,
    /// Nothing is sent before the API confirms token, user and code.
    pub confirm: Option<Spanned<bool>>,
    /// How often the device's own event log is read for what syslog lost; zero: never.
    pub catch_up: Option<Spanned<Period>>,
    /// The VDOMs whose logs are read; default `root`, and those that its log names and it knows.
    pub vdoms: Option<Spanned<Vec<String>>>,
}

impl Config {
    /// Where `peers` stands, if it names a certificate.
    pub fn certified_peers(&self) -> Option<Span> {
        let peers = self.peers.as_ref()?;
        let mut speakers = peers
            .get_ref()
            .iter()
            .filter_map(|peer| Speaker::parse(peer));
        speakers
            .any(|speaker| matches!(speaker, Speaker::Certificate(_)))
            .then(|| peers.span())
    }
}

/// `id`: one, or a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids(pub Vec<String>);

impl<'de> Deserialize<'de> for Ids {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Ids;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a serial number or host name, or a list of them")
            }

            fn visit_str<E: de::Error>(self, id: &str) -> Result<Ids, E> {
                Ok(Ids(vec![id.to_owned()]))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Ids, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = list.next_element()? {
                    ids.push(id);
                }
                Ok(Ids(ids))
            }
        }
        from.deserialize_any(Visitor)
    }
}

/// One entry of `peers`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Speaker {
    Network(IpNet),
    Certificate(String),
}

impl Speaker {
    fn parse(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Some(Self::Network(address.to_canonical().into()));
        }
        if let Ok(network) = text.parse::<IpNet>() {
            return Some(Self::Network(network));
        }
        // A name has a letter outside hexadecimal somewhere, or it is a mistyped address.
        let is_name = text.contains(|c: char| c.is_ascii_alphabetic() && !c.is_ascii_hexdigit())
            && !text.contains(|c: char| c.is_whitespace() || c.is_control() || "/:@*".contains(c));
        is_name.then(|| Self::Certificate(text.to_lowercase()))
    }

    fn is(&self, peer: &Peer) -> bool {
        match self {
            Self::Network(network) => {
                let is_within = |address: IpAddr| network.contains(&address.to_canonical());
                // A certificate may be made out to an address: whoever holds its key speaks for it, wherever from.
                let mut certified = peer.certificate_names.iter().filter_map(|n| n.parse().ok());
                peer.address.is_some_and(is_within)
                    || network.prefix_len() == network.max_prefix_len() && certified.any(is_within)
            }
            Self::Certificate(name) => peer
                .certificate_names
                .iter()
                .any(|other| other.to_lowercase() == *name),
        }
    }
}

/// A configured device.
#[derive(Clone, Debug)]
struct Known {
    id: String,
    name: Option<String>,
    speakers: Option<Vec<Speaker>>,
    validity: Duration,
    has_api: bool,
    confirm: bool,
}

/// All configured devices, and what holds for any other.
#[derive(Clone, Debug)]
pub struct Devices {
    known: Vec<Known>,
    by_id: HashMap<String, usize>,
    default_validity: Duration,
}

/// What a record says about its origin.
#[derive(Clone, Copy, Debug, Default)]
pub struct Claim<'a> {
    /// The field `devid`.
    pub devid: Option<&'a str>,
    /// The field `devname`.
    pub devname: Option<&'a str>,
    /// The host name in the header.
    pub host: Option<&'a str>,
    /// The field `vd`.
    pub vdom: Option<&'a str>,
}

/// A device as it was recognised.
#[derive(Clone, Debug)]
pub struct Recognised<'a> {
    /// The device.
    pub device: Device,
    /// The id as the record (or the peer's address) gives it.
    pub logged_id: String,
    /// How long its codes live.
    pub validity: Duration,
    known: Option<&'a Known>,
}

impl Recognised<'_> {
    /// Whether this peer may speak for the device. Without `peers`, anybody may.
    pub fn may_be_spoken_for_by(&self, peer: &Peer) -> bool {
        match self.known.and_then(|known| known.speakers.as_ref()) {
            Some(speakers) => speakers.iter().any(|speaker| speaker.is(peer)),
            None => true,
        }
    }

    /// `confirm = true`: what it logs counts for nothing before the device itself has confirmed it.
    pub fn must_be_confirmed(&self) -> bool {
        self.known.is_some_and(|known| known.confirm)
    }

    /// It has `api`: whose a code is, the device itself can say.
    pub fn can_be_asked(&self) -> bool {
        self.known.is_some_and(|known| known.has_api)
    }

    /// Whether it has `peers` at all.
    pub fn has_peers(&self) -> bool {
        self.known.is_some_and(|known| known.speakers.is_some())
    }
}

impl Devices {
    /// Checks all `[[device]]` tables.
    pub fn build(
        configs: Vec<Config>,
        default_validity: Duration,
        check: &mut Check,
    ) -> Option<Self> {
        let mut devices = Self {
            known: Vec::with_capacity(configs.len()),
            by_id: HashMap::new(),
            default_validity,
        };
        let mut is_good = true;
        for config in configs {
            is_good &= devices.add(config, check);
        }
        is_good.then_some(devices)
    }

    fn add(&mut self, config: Config, check: &mut Check) -> bool {
        let mut is_good = true;
        let mut problem = |span, text: String| {
            check.problem(Some(span), text);
            is_good = false;
        };
        let span = config.id.span();
        let ids = config.id.into_inner().0;
        let Some(first) = ids.first().cloned() else {
            problem(
                span,
                "`id` is an empty list; write the device's serial number".to_owned(),
            );
            return false;
        };
        for id in &ids {
            if id.trim().is_empty() || id.trim() != id || id.contains(char::is_control) {
                problem(
                    span.clone(),
                    format!("\"{id}\" is no device id; write a serial number or a host name"),
                );
            } else if let Some(other) = self.by_id.insert(id.to_lowercase(), self.known.len()) {
                let text = if other == self.known.len() {
                    format!("the id {id} stands twice in this device")
                } else {
                    format!("the id {id} belongs to another [[device]] already")
                };
                problem(span.clone(), text);
            }
        }
        let speakers = config.peers.map(|peers| {
            let span = peers.span();
            let peers = peers.into_inner();
            if peers.is_empty() {
                problem(
                    span.clone(),
                    "`peers` is empty, so nobody could speak for this device; leave it out to believe any peer that the listener allows"
                        .to_owned(),
                );
            }
            peers
                .iter()
                .filter_map(|peer| {
                    let speaker = Speaker::parse(peer);
                    if speaker.is_none() {
                        problem(
                            span.clone(),
                            format!("\"{peer}\" is no address, network or certificate name; write it as in \"10.20.0.1\", \"10.20.0.0/24\" or \"fgt.example.com\""),
                        );
                    }
                    speaker
                })
                .collect()
        });
        let validity = config.validity.map(|validity| {
            if validity.get_ref().0.is_zero() {
                problem(
                    validity.span(),
                    "`validity` is zero, so every code would be expired; write two-factor-ftm-expiry of the device, such as \"72h\""
                        .to_owned(),
                );
            }
            validity.into_inner().0
        });
        self.known.push(Known {
            id: first,
            name: config.name,
            speakers,
            validity: validity.unwrap_or(self.default_validity),
            has_api: config.api.is_some(),
            confirm: config.confirm.is_some_and(Spanned::into_inner),
        });
        is_good
    }

    /// The canonical id of each `[[device]]`, and its name if it has one.
    pub fn configured(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.known
            .iter()
            .map(|d| (d.id.as_str(), d.name.as_deref()))
    }

    /// Which device a record comes from: by `devid`, else by its name in the log or the header, else by the peer's address.
    pub fn recognise(&self, claim: Claim<'_>, peer: &Peer) -> Recognised<'_> {
        let said = |text: Option<&str>| text.map(tidy).filter(|text| !text.is_empty());
        let (devname, host) = (said(claim.devname), said(claim.host));
        let from_log = said(claim.devid)
            .or_else(|| devname.clone())
            .or_else(|| host.clone());
        let logged_id = from_log.unwrap_or_else(|| match peer.address {
            Some(address) => address.to_canonical().to_string(),
            None => "unknown".to_owned(),
        });
        let known = self
            .by_id
            .get(&logged_id.to_lowercase())
            .and_then(|&at| self.known.get(at));
        let device = Device {
            id: known.map_or_else(|| logged_id.clone(), |known| known.id.clone()),
            name: known
                .and_then(|known| known.name.clone())
                .or(devname)
                .unwrap_or_else(|| logged_id.clone()),
            vdom: said(claim.vdom).unwrap_or_else(|| "root".to_owned()),
        };
        Recognised {
            device,
            logged_id,
            validity: known.map_or(self.default_validity, |known| known.validity),
            known,
        }
    }
}

/// The longest name of a device or a VDOM that is kept; FortiOS allows fewer characters.
const MAX_NAME_CHARS: usize = 128;

/// A name fit for logs, labels and mails: one line, no control characters, bounded.
fn tidy(text: &str) -> String {
    text.trim()
        .chars()
        .filter(|c| !c.is_control())
        .take(MAX_NAME_CHARS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(toml: &str) -> Result<Devices, Vec<String>> {
        #[derive(Deserialize)]
        struct File {
            device: Vec<Config>,
        }
        let mut check = Check::new(".", None, false);
        let file: File = toml::from_str(toml).map_err(|e| vec![e.message().to_owned()])?;
        match Devices::build(file.device, Duration::from_secs(72 * 3600), &mut check) {
            Some(devices) if !check.has_problems() => Ok(devices),
            _ => Err(check.findings().into_iter().map(|f| f.text).collect()),
        }
    }

    fn by_devid<'a>(devices: &'a Devices, devid: &str) -> Recognised<'a> {
        let claim = Claim {
            devid: Some(devid),
            ..Claim::default()
        };
        devices.recognise(claim, &Peer::unknown())
    }

    #[test]
    fn the_members_of_a_cluster_are_one_device() {
        let devices = build(
            "[[device]]\nid = [\"FGT1\", \"FGT2\", \"fw-b\"]\nname = \"branch\"\nvalidity = \"1h\"\n",
        )
        .unwrap();
        for id in ["FGT1", "fgt2", "FW-B"] {
            let recognised = by_devid(&devices, id);
            assert_eq!(recognised.device.id, "FGT1");
            assert_eq!(recognised.device.name, "branch");
            assert_eq!(recognised.device.vdom, "root");
            assert_eq!(recognised.validity, Duration::from_secs(3600));
            assert_eq!(recognised.logged_id, id);
        }
        let other = by_devid(&devices, "FGT3");
        assert_eq!(other.device.id, "FGT3");
        assert_eq!(other.validity, Duration::from_secs(72 * 3600));
    }

    #[test]
    fn a_device_without_devid_is_known_by_its_name_then_host_then_address() {
        let devices = build("[[device]]\nid = \"FGT1\"\n").unwrap();
        let peer = Peer::at("::ffff:192.0.2.7".parse().unwrap());
        let mut claim = Claim {
            devid: Some(""),
            devname: Some("fgt1"),
            host: Some("relay"),
            vdom: Some("customer-a"),
        };
        assert_eq!(devices.recognise(claim, &peer).device.id, "FGT1");
        assert_eq!(devices.recognise(claim, &peer).device.name, "fgt1");
        assert_eq!(devices.recognise(claim, &peer).device.vdom, "customer-a");
        claim.devname = None;
        assert_eq!(devices.recognise(claim, &peer).device.id, "relay");
        claim.host = None;
        assert_eq!(devices.recognise(claim, &peer).device.id, "192.0.2.7");
        assert_eq!(
            devices.recognise(claim, &Peer::unknown()).device.id,
            "unknown"
        );
    }

    #[test]
    fn only_the_configured_peers_speak_for_a_device() {
        let devices = build(
            "[[device]]\nid = \"FGT1\"\npeers = [\"10.20.0.1\", \"2001:db8::/32\", \"fgt1.example.com\"]\n",
        )
        .unwrap();
        let device = by_devid(&devices, "FGT1");
        for (address, may) in [
            ("10.20.0.1", true),
            ("::ffff:10.20.0.1", true),
            ("10.20.0.2", false),
            ("2001:db8::7", true),
        ] {
            let peer = Peer::at(address.parse().unwrap());
            assert_eq!(device.may_be_spoken_for_by(&peer), may, "{address}");
        }
        let mut peer = Peer::at("10.9.9.9".parse().unwrap());
        peer.certificate_names = ["FGT1.example.com".to_owned()].into();
        assert!(device.may_be_spoken_for_by(&peer));
        assert!(by_devid(&devices, "FGT2").may_be_spoken_for_by(&Peer::unknown()));
    }

    #[test]
    fn a_name_from_the_wire_is_one_bounded_line() {
        let devices = build("device = []").unwrap();
        let recognised = by_devid(&devices, &format!("FGT\r\n1{}", "x".repeat(1000)));
        assert!(recognised.device.id.starts_with("FGT1x"));
        assert_eq!(recognised.device.id.chars().count(), MAX_NAME_CHARS);
    }

    #[test]
    fn every_problem_is_said() {
        let said = build(concat!(
            "[[device]]\nid = [\"FGT1\", \"fgt1\"]\npeers = [\"10.20.0.300\", \"a b\"]\n",
            "[[device]]\nid = \"fgt1\"\nvalidity = \"0s\"\n",
            "[[device]]\nid = []\n",
            "[[device]]\nid = \" \"\npeers = []\n",
        ))
        .unwrap_err();
        assert_eq!(said.len(), 8, "{said:#?}");
        assert!(said[0].contains("twice"), "{}", said[0]);
    }
}
