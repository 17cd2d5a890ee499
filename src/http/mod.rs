//! HTTP/1.1 without I/O: bytes and times come in as arguments, answers go into an [`Outbox`].
//!
//! Nothing in this room opens a socket or reads a file. A test in `tests/layering.rs` keeps it so.

pub mod blob;
pub mod chunked;
pub mod conditional;
pub mod connection;
pub mod date;
pub mod negotiate;
pub mod outbox;
pub mod parse;
pub mod range;
pub mod reply;
pub mod status;

pub use blob::{Blob, Ledger, Reserved, Residence, Source};
pub use connection::Connection;
pub use outbox::{Chunk, Outbox};
pub use parse::{Method, Request};
pub use reply::{Body, Reply};
pub use status::Status;
