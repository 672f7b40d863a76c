//! The integration tests: real sockets, files, databases and servers. One binary, one module per subject.
#![allow(clippy::unwrap_used)]

mod support;

mod cli; // the commands, run as commands
mod config; // valid and invalid configurations, and what is said about them
mod crash; // the process is killed at random moments
mod detection; // a line becomes an activation, or does not
mod directory; // who the person is
mod dispatch; // cases, fallbacks, escalations
mod docs; // the pages of docs/, as they are typed
mod ingest; // bytes on sockets become frames
mod layers; // who may import whom
mod outbox; // the promises of the store
mod postfix; // a real mail relay
mod relay; // the whole, through its sockets
mod secrets; // planted codes are searched everywhere
mod smtp; // an SMTP server that misbehaves
mod stitch; // records by HTTP, answered once they are committed
mod syslog; // bytes become records
mod template; // what people read
mod tls; // syslog over TLS, and who may speak
mod web; // page, health, metrics
mod webhook; // HTTP channels
