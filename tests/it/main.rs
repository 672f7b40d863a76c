//! The integration tests: real sockets, files, databases and servers. One binary, one module per subject.
#![allow(clippy::unwrap_used)]

mod support;

mod catch_up; // what syslog lost
mod cli; // the commands, run as commands
mod config; // valid and invalid configurations, and what is said about them
mod crash; // the process is killed at random moments
mod detection; // a line becomes an activation, or does not
mod directory; // who the person is
mod dispatch; // cases, fallbacks, escalations
mod docs; // the pages of docs/, as they are typed
mod doctor; // what is wrong with an installation
mod forged; // text that spells an event is none
mod fortios; // what a FortiGate's REST API says
mod fuzz; // what the fuzzers start from and found
mod gate; // what is turned away before it is read
mod ingest; // bytes on sockets become frames
mod init; // a first configuration
mod inquiry; // what a FortiGate's word does to a case
mod layers; // who may import whom
mod ldap; // people in a real slapd
mod live; // what check --live and send-test say
mod mail; // several relays, tokens in place of passwords, Graph
mod outbox; // the promises of the store
mod pending; // tokens that wait for their phone
mod postfix; // a real mail relay
mod qr; // the image of a code, read back
mod reference; // the pages of keys, metrics and alerts
mod relay; // the whole, through its sockets
mod secrets; // planted codes are searched everywhere
mod simulate; // a FortiGate that is none
mod slack; // people and places in a workspace
mod sms; // text messages
mod smtp; // an SMTP server that misbehaves
mod stitch; // records by HTTP, answered once they are committed
mod syslog; // bytes become records
mod systemd; // what the service manager gives and is told
mod teams; // cards to a flow
mod template; // what people read
mod tls; // syslog over TLS, and who may speak
mod web; // page, health, metrics
mod webhook; // HTTP channels
mod worker; // one channel over time
