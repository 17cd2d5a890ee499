//! Polling without waiting: everybody is tried in turn, over and over.
//!
//! **How it waits.** It does not. A socket can be told never to block: then `accept` and `recv` return at
//! once, with a client, with bytes, or with the news that there is nothing yet. So the thread runs in
//! circles: it tries to accept, tries to read from the first client, tries the second, and so on, then begins
//! again.
//!
//! **What it gives.** One thread serves many clients and none of them holds up another. And as long as it has
//! nothing else to do, no engine answers sooner: it is always awake.
//!
//! **What it costs.** A whole core, idle or not. One circle makes a system call for every client that is
//! connected, nearly all of them in vain, so the more clients are connected the longer each of them waits.
//!
//! **Where it breaks.** At some hundreds of clients, and wherever somebody pays for the electricity. What is
//! wanted is a call that sleeps until one of many sockets has news: see [select](super::select). There is
//! only one such thread, whatever `--workers` says, for a second one would burn a second core.

use std::io;

use super::crowd::{Crowd, Key, Unwatched};
use super::{Capabilities, Engine, Family, Seat, Threads, always_available};

/// The table's row.
pub const ENGINE: Engine = Engine {
    name: "spin",
    summary: "polling without waiting: tries every client in turn, over and over",
    family: Family::Scanned,
    threads: Threads::One,
    capabilities: Capabilities { sleeps: false, ..Capabilities::UNLIMITED },
    runtime_counted: true,
    available: always_available,
    run,
};

fn run(seat: &mut Seat) -> io::Result<()> {
    let mut crowd = Crowd::new(seat, Unwatched)?;
    if !crowd.ready() {
        return Ok(());
    }
    let mut clients: Vec<Key> = Vec::new();
    loop {
        crowd.begin_turn();
        if crowd.is_to_drain() {
            crowd.drain()?;
        }
        crowd.accept()?;
        clients.clear();
        clients.extend(crowd.sessions().map(|(key, ..)| key));
        for &key in &clients {
            crowd.wake(key, false);
        }
        if crowd.is_anything_done() {
            crowd.take_done();
        }
        if !crowd.end_turn(clients.len())? {
            return Ok(());
        }
    }
}
