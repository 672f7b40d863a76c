//! What the tests share: a relay to start, servers to send to, log lines to send.

pub mod authority;
pub mod channel;
pub mod fortigate;
pub mod http_sink;
pub mod microsoft;
pub mod postfix;
pub mod proxy;
pub mod relay;
pub mod samples;
pub mod slack;
pub mod slapd;
pub mod smtp_sink;
pub mod teams;
pub mod twilio;

mod until;

pub use until::until;
