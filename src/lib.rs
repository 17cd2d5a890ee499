//! ringserve: a static HTTP file server for Linux.
//!
//! The path of a request is the order of the rooms:
//!
//! 1. a **socket** ([`launch`] binds it, one listener per worker),
//! 2. an **engine** ([`engines`]) receives bytes in the manner that gives the engine its name,
//! 3. [`serve`] turns bytes into answers: [`Worker::turn`](serve::Worker::turn) is the one function to read,
//! 4. [`http`] knows the protocol, without any I/O,
//! 5. [`content`] knows which bytes a target means,
//! 6. and the answer goes **back** through the outbox, which the engine empties into the socket.
//!
//! Beside it, [`compare`] starts this program again and again, loads it and measures it.
//!
//! Dependencies run one way: `engines -> serve -> content -> http`.

pub mod cgroup;
pub mod cli;
pub mod clock;
pub mod compare;
pub mod content;
pub mod deadlines;
mod descriptors;
pub mod doctor;
mod doors;
pub mod engines;
pub mod healthcheck;
pub mod host;
pub mod http;
pub mod launch;
pub mod observe;
pub mod output;
pub mod program;
pub mod serve;
pub mod shutdown;
mod sys;
