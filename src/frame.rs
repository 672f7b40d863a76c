//! One undecoded message and who sent it: what `ingest` makes and `pipeline` takes.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;

/// Who sent a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The address, an IPv4-mapped one as IPv4; `None` when unknown, as in `explain` without `--peer`.
    pub address: Option<IpAddr>,
    /// The names a verified client certificate carries.
    pub certificate_names: Arc<[String]>,
}

impl Peer {
    /// A peer known by its address alone.
    pub fn at(address: IpAddr) -> Self {
        Self {
            address: Some(address.to_canonical()),
            certificate_names: Arc::new([]),
        }
    }

    /// A peer of whom nothing is known.
    pub fn unknown() -> Self {
        Self {
            address: None,
            certificate_names: Arc::new([]),
        }
    }
}

/// One message as it came, without framing.
#[derive(Clone)]
pub struct Frame {
    /// The message's bytes. They may hold a code: never log them.
    pub bytes: Vec<u8>,
    /// Who sent it.
    pub peer: Peer,
    /// The name of the listener that took it; `None` in `explain` without `--listener`.
    pub listener: Option<Arc<str>>,
    /// When it was taken.
    pub received_at: Timestamp,
}
