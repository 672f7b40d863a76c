//! Where simulated lines go, as it is written on the command line: `tcp://relay.example.com:514`.

use std::fmt;
use std::str::FromStr;

/// Where the lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// How.
    pub transport: Transport,
    /// A name or an address, IPv6 without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// How lines travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// One datagram each.
    Udp,
    /// A TCP stream with a count of bytes in front of each (`set mode reliable`).
    TcpCounted,
    /// A TCP stream with a LF behind each.
    TcpLines,
    /// The same as counted TCP, inside TLS (`set enc-algorithm`).
    Tls,
}

/// The schemes of a target.
const TRANSPORTS: [(&str, Transport); 4] = [
    ("udp", Transport::Udp),
    ("tcp", Transport::TcpCounted),
    ("tcp+lf", Transport::TcpLines),
    ("tls", Transport::Tls),
];

impl Transport {
    fn scheme(self) -> &'static str {
        TRANSPORTS
            .iter()
            .find(|(_, t)| *t == self)
            .map_or("udp", |(scheme, _)| scheme)
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let schemes = TRANSPORTS.map(|(scheme, _)| format!("{scheme}://"));
        let Some((scheme, place)) = text.split_once("://") else {
            return Err(format!(
                "\"{text}\" says no transport; write for example udp://{text}"
            ));
        };
        let Some((_, transport)) = TRANSPORTS.iter().find(|(name, _)| *name == scheme) else {
            return Err(format!(
                "{scheme}:// is not known; write {}",
                schemes.join(", ")
            ));
        };
        let place = place.strip_suffix('/').unwrap_or(place);
        let (host, port) = match place.strip_prefix('[') {
            Some(v6) => match v6.split_once(']') {
                Some((host, rest)) => (host, rest.strip_prefix(':')),
                None => return Err(format!("\"{text}\": the ] behind the address is missing")),
            },
            None => match place.rsplit_once(':') {
                Some((host, _)) if host.contains(':') => {
                    return Err(format!(
                        "\"{text}\": write an IPv6 address in brackets, such as {scheme}://[::1]:514"
                    ));
                }
                Some((host, port)) => (host, Some(port)),
                None => (place, None),
            },
        };
        if host.is_empty() {
            return Err(format!(
                "\"{text}\" names no host; write for example {scheme}://127.0.0.1:514"
            ));
        }
        let Some(port) = port else {
            return Err(format!(
                "\"{text}\" names no port; write for example {text}:514"
            ));
        };
        match port.parse() {
            Ok(port) if port > 0 => Ok(Self {
                transport: *transport,
                host: host.to_owned(),
                port,
            }),
            _ => Err(format!("\"{text}\": \"{port}\" is no port from 1 to 65535")),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            transport,
            host,
            port,
        } = self;
        let scheme = transport.scheme();
        if host.contains(':') {
            write!(f, "{scheme}://[{host}]:{port}")
        } else {
            write!(f, "{scheme}://{host}:{port}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_transport_a_host_and_a_port() {
        for (text, transport, host, port) in [
            ("udp://127.0.0.1:514", Transport::Udp, "127.0.0.1", 514),
            ("tcp://[::1]:6514", Transport::TcpCounted, "::1", 6514),
            (
                "tls://fw.example.com:6514",
                Transport::Tls,
                "fw.example.com",
                6514,
            ),
            (
                "tcp+lf://relay.example.com:514/",
                Transport::TcpLines,
                "relay.example.com",
                514,
            ),
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!(
                (target.transport, target.host.as_str(), target.port),
                (transport, host, port)
            );
            assert_eq!(target.to_string(), text.trim_end_matches('/'));
        }
        for (text, why) in [
            ("127.0.0.1:514", "udp://127.0.0.1:514"),
            ("http://a:1", "write udp://, tcp://, tcp+lf://, tls://"),
            ("udp://:514", "no host"),
            ("udp://a", "no port"),
            ("udp://[::1]", "no port"),
            ("udp://[::1:5", "missing"),
            ("udp://::1:514", "brackets"),
            ("udp://a:x", "no port from 1"),
            ("udp://a:0", "no port from 1"),
            ("udp://a:65536", "no port from 1"),
        ] {
            let said = text.parse::<Target>().unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }
}
