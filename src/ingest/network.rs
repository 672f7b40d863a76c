//! A network of peers, as `allow` names it.

use std::fmt;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::str::FromStr;

use ipnet::IpNet;
use ipnet::Ipv4Net;
use serde::Deserialize;
use serde::Deserializer;
use serde::de;

/// `10.20.0.0/16`, `2001:db8::/32`, or a single address. IPv4-mapped IPv6 counts as IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network(IpNet);

/// `::ffff:0:0/96` holds the IPv4-mapped addresses.
const MAPPED_PREFIX_BITS: u8 = 96;

impl Network {
    /// `127.0.0.0/8` and `::1`.
    pub fn loopback() -> Vec<Self> {
        vec![
            Self(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8).into()),
            Self(IpNet::from(IpAddr::from(Ipv6Addr::LOCALHOST))),
        ]
    }

    /// Whether the address lies within.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }

    /// The network itself.
    pub fn net(&self) -> IpNet {
        self.0
    }

    /// Whether every address of its kind lies within.
    pub fn is_everything(&self) -> bool {
        self.0.prefix_len() == 0
    }
}

impl From<IpNet> for Network {
    fn from(net: IpNet) -> Self {
        let unmapped = match net {
            IpNet::V6(v6) if v6.prefix_len() >= MAPPED_PREFIX_BITS => v6
                .addr()
                .to_ipv4_mapped()
                .and_then(|v4| Ipv4Net::new(v4, v6.prefix_len() - MAPPED_PREFIX_BITS).ok()),
            _ => None,
        };
        Self(unmapped.map_or(net, IpNet::from).trunc())
    }
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        Self(address.to_canonical().into())
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(address.into());
        }
        if let Ok(net) = text.parse::<IpNet>() {
            return Ok(net.into());
        }
        let why = match text.split_once('/') {
            Some((address, bits)) if address.parse::<Ipv4Addr>().is_ok() => {
                format!("{bits:?} is no prefix length from 0 to 32")
            }
            Some((address, bits)) if address.parse::<IpAddr>().is_ok() => {
                format!("{bits:?} is no prefix length from 0 to 128")
            }
            _ => "names are not looked up here".to_owned(),
        };
        Err(format!(
            "\"{text}\" is no network ({why}); write an address such as \"10.20.0.1\" or a network such as \"10.20.0.0/16\" or \"2001:db8::/32\""
        ))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() {
            self.0.addr().fmt(f)
        } else {
            self.0.fmt(f)
        }
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_contains_its_addresses_in_either_spelling() {
        for (network, address, contains) in [
            ("10.20.0.0/16", "10.20.255.1", true),
            ("10.20.0.1/16", "10.20.255.1", true),
            ("10.20.0.0/16", "10.21.0.1", false),
            ("10.20.0.0/16", "::ffff:10.20.0.1", true),
            ("::ffff:10.20.0.0/112", "10.20.0.1", true),
            ("::ffff:10.20.0.1", "10.20.0.1", true),
            ("2001:db8::/32", "2001:db8::1", true),
            ("2001:db8::1", "2001:db8::2", false),
            ("0.0.0.0/0", "::1", false),
            ("0.0.0.0/0", "192.0.2.1", true),
        ] {
            let network: Network = network.parse().unwrap();
            assert_eq!(
                network.contains(address.parse().unwrap()),
                contains,
                "{network} {address}"
            );
        }
    }

    #[test]
    fn what_is_no_network_is_explained() {
        for (text, why) in [
            ("fgt.example.com", "names are not looked up"),
            ("10.0.0.0/33", "from 0 to 32"),
            ("::/129", "from 0 to 128"),
            ("", "names are not looked up"),
        ] {
            let said = text.parse::<Network>().unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }
}
