//! What an operator sees: the access log, what is counted, and the address where it is asked for.

pub mod access_log;
pub mod admin;
pub mod counters;
pub mod metrics;
