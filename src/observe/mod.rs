//! What an operator sees: the access log.

pub mod access_log;
