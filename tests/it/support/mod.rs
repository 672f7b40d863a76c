//! What the tests share.

pub mod authority;
pub mod postfix;
pub mod smtp_sink;
