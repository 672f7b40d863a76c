//! `ftm-relay` receives FortiGate syslog, spots FortiToken Mobile activation codes, and brings each to its person.
//!
//! # Data flow
//!
//! ```text
//! wire bytes ⟨gate⟩ → Frame → Record → Activation ⟨commit = accepted⟩ → Recipient, one delivery per channel ⟨commit⟩ → Lease → Notification → Carrier::send → Settlement
//!   ingest            ingest   syslog    rules       outbox                directory, routing            outbox        outbox     template       channel        outbox
//! ```
#![warn(missing_docs)]

pub mod glob;
pub mod metrics;
pub mod secret;
pub mod settings;

pub mod frame;
pub mod ingest;

pub mod activation;
pub mod devices;
pub mod pipeline;
pub mod recipients;
pub mod rules;
pub mod syslog;

pub mod channel;
pub mod directory;
pub mod message;
pub mod outbox;
pub mod routing;
pub mod template;

pub mod simulate;
