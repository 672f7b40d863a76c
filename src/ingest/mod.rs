//! Stub.
pub mod framing;
