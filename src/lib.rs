//! `ftm-relay` receives FortiGate syslog, spots FortiToken Mobile activation codes, and brings each to its person.
//!
//! # Data flow
//!
//! ```text
//! wire bytes ⟨gate⟩ → Frame → Record → Activation ⟨commit = accepted⟩ → Recipient, deliveries ⟨commit⟩ → Lease → Notification → Carrier → Settlement
//! ingest              ingest  syslog   rules       outbox              directory, routing  outbox       outbox  template       channel   outbox
//! ```
//!
//! Facts first, the outside world later. Everything left of the first commit is one pure function,
//! [`Pipeline::process`](pipeline::Pipeline::process): no socket, clock or database. Whatever can fail because of
//! somebody else comes after a commit and is retried by the one loop there is, in [`dispatch`].
//!
//! # Two things are leased from the outbox
//!
//! A *case* is an accepted activation about which something must be decided: ask the device, find the person, start the fallback,
//! warn, expire. All of that is one pure function too, [`dispatch::case::decide`], and what it decides is carried out
//! in one transaction. A *delivery* is one message on its way by one channel; [`dispatch::worker`] sends it. Every end
//! of a try makes the case due again, so that a crash between the two loses nothing.
//!
//! # Modules in reading order
//!
//! | | |
//! | --- | --- |
//! | [`secret`], [`settings`], [`tls`], [`glob`], [`domain`], [`metrics`] | used everywhere, import nothing of ours but each other |
//! | [`systemd`], [`frame`], [`ingest`] | sockets to frames |
//! | [`syslog`], [`activation`], [`recipients`], [`devices`], [`rules`], [`pipeline`] | frames to activations; pure |
//! | [`outbox`] | the durable store |
//! | [`message`], [`fortios`], [`directory`], [`routing`], [`limits`], [`template`], [`channel`], [`backoff`], [`dispatch`] | activations to accepted messages |
//! | [`catch_up`] | what syslog lost, from the devices' own logs |
//! | [`readiness`], [`pulse`], [`seen`], [`pending`], [`web`], [`control`] | how it is watched and asked |
//! | [`example`], [`config`], [`relay`], [`simulate`], [`logging`], [`cli`] | the whole |
//!
//! Who may import whom is a test: `tests/it/layers.rs`. No module imports [`config`]; each owns its own `Config` with a
//! `build`, and the root adds them up. To add a format, channel or directory: one file, and its lines in the list of
//! the folder's `mod.rs`.
#![warn(missing_docs)]

pub mod domain;
pub mod glob;
pub mod metrics;
pub mod secret;
pub mod settings;
pub mod systemd;
pub mod tls;

pub mod frame;
pub mod ingest;

pub mod activation;
pub mod devices;
pub mod pipeline;
pub mod recipients;
pub mod rules;
pub mod syslog;

pub mod outbox;

pub mod backoff;
pub mod channel;
pub mod directory;
pub mod dispatch;
pub mod fortios;
pub mod limits;
pub mod message;
pub mod routing;
pub mod template;

pub mod catch_up;
pub mod control;
pub mod pending;
pub mod pulse;
pub mod readiness;
pub mod seen;
pub mod web;

pub mod cli;
pub mod config;
pub mod example;
pub mod logging;
pub mod relay;
pub mod simulate;
