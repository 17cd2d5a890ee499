//! What an operator sees: the access log, and what is counted.

pub mod access_log;
pub mod counters;
