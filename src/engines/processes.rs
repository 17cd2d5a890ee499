//! A process for each client: the oldest way to serve many, and the one with the thickest walls.
//!
//! **How it waits.** One process blocks in `accept`, and forks for every client that comes. The child has a
//! copy of everything, the client's socket too; it serves this one client with calls that block, as
//! [blocking](super::blocking) does, and exits. The parent closes its own copy of the socket and accepts the
//! next.
//!
//! **What it gives.** Isolation: nothing a child does, not even crashing, touches anybody else. What is
//! shared is shared on purpose: the counters, and the word that the server is to end, lie in memory that all
//! of them map.
//!
//! **What it costs.** A fork for every connection: page tables are copied, and then, one by one, the pages
//! that are written to. A process for every client, with all that the kernel keeps of one. And no memory in
//! common: a child begins with the parent's cache as it was at the fork, which is empty, for the parent
//! serves nobody; and what the child loads goes with it. So the first request of each connection goes to the
//! disk.
//!
//! **The traps.** A child that has ended stays as a *zombie* until its parent asks how it ended: each round
//! of the accepting [reaps](Children::reap) those that have. Unless whoever has started the server ignores
//! such ends, which is inherited: then there are no zombies, and no answer either. And only the thread that
//! forks lives on in the child. A lock that another thread held at that moment is never released there, so a
//! child uses none of the others' locks: it logs nothing, and writes its lines of the access log by itself.
//!
//! **Where it breaks.** At hundreds to thousands of clients, by memory and by the process table. So there is
//! a cap: beyond it accepting pauses until a child ends.
#![allow(unsafe_code)]

use std::collections::HashSet;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions};

use crate::clock::Tick;
use crate::serve::Worker;
use crate::shutdown::ENDING;
use crate::sys;

use super::crew::{self, Crew};
use super::one_client::{self, Client, LOOK_UP};
use super::session::Desk;
use super::{Capabilities, Engine, Family, Seat, Threads, always_available, calls};

/// The table's row. What the C library does to start a process is not counted.
pub const ENGINE: Engine = Engine {
    name: "processes",
    summary: "a process for each client: forked, isolated, and reaped",
    family: Family::Blocking,
    threads: Threads::PerConnection,
    capabilities: Capabilities { clients_max: Some(1000), ..Capabilities::UNLIMITED },
    runtime_counted: false,
    available: always_available,
    run,
};

/// How often is looked whether a child has ended, where that is waited for.
const REAP_CHECK: Duration = Duration::from_millis(10);

fn run(seat: &mut Seat) -> io::Result<()> {
    // Children inherit this. A signal to end is for the parent alone: it tells them.
    sys::hold_signals(&ENDING)?;
    sys::keep_ended_children();
    // Each child may fill a cache of its own.
    seat.worker.divide_cache(seat.connections_max);
    // And would find out about directories for itself alone.
    seat.worker.site().list_nothing();
    seat.worker.site().hold_plainly();
    if !seat.ready() {
        return Ok(());
    }
    crew::serve_all(seat, &mut Children::default())
}

/// The processes that serve.
#[derive(Default)]
struct Children(HashSet<Pid>);

impl Crew for Children {
    fn count(&mut self) -> usize {
        self.reap();
        self.0.len()
    }

    fn tend(&mut self, seat: &mut Seat) {
        seat.worker.tell_log_losses();
    }

    fn start(&mut self, seat: &mut Seat, client: Client) -> io::Result<()> {
        let parent = rustix::process::getpid();
        // What was counted so far is published, and the child counts from nothing.
        calls::publish(&mut seat.worker);
        // SAFETY: this process has other threads, so the child may only use what is its own. It allocates
        // memory, which the C library makes safe; it uses its copies of what this thread owns, and system
        // calls. It takes no lock of another thread, and never returns from here.
        match unsafe { libc::fork() } {
            0 => serve_and_exit(seat, client, parent),
            child => {
                calls::add(1);
                calls::close(client.socket);
                let child = Pid::from_raw(child).filter(|_| child > 0);
                self.0.insert(child.ok_or_else(io::Error::last_os_error)?);
                Ok(())
            }
        }
    }

    fn wait(&mut self, time: Duration) {
        let before = self.0.len();
        for _ in 0..time.div_duration_f32(REAP_CHECK) as u32 {
            std::thread::sleep(REAP_CHECK);
            if self.count() < before {
                return;
            }
        }
    }

    fn cut(&mut self) {
        for &child in &self.0 {
            // One that has just ended is a zombie still, so the number is no other process's yet.
            let _ = calls::counted(|| rustix::process::kill_process(child, Signal::KILL));
        }
    }
}

impl Children {
    /// Asks for those that have ended, which makes the kernel forget them.
    fn reap(&mut self) {
        while !self.0.is_empty()
            && let Ok(Some((child, _))) = calls::counted(|| rustix::process::wait(WaitOptions::NOHANG))
        {
            self.0.remove(&child);
        }
    }
}

/// The whole life of a child.
fn serve_and_exit(seat: &mut Seat, client: Client, parent: Pid) -> ! {
    let serve = AssertUnwindSafe(|| {
        // It is not to outlive the server, however that ends; unless it has done so already.
        let _ = calls::counted(|| rustix::process::set_parent_process_death_signal(Some(Signal::KILL)));
        if calls::counted(rustix::process::getppid) == Some(parent) {
            seat.worker.log_directly();
            // Whoever does so for the parent is not here.
            let mut next_look = Tick::now().after(LOOK_UP);
            let look_for_root = |worker: &Worker| {
                let now = worker.clock.now();
                if now >= next_look {
                    next_look = now.after(LOOK_UP);
                    let _ = worker.site().renew_root();
                }
            };
            one_client::serve(&mut seat.worker, &seat.shutdown, client, &mut Desk::new(), look_for_root);
        }
    });
    let result = catch_unwind(serve);
    // SAFETY: it ends the process here and now; nothing of what belongs to the parent is run down.
    unsafe { libc::_exit(i32::from(result.is_err())) }
}
