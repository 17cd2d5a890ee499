//! The descriptors this process may have, and how they are shared out between files and clients, so that none
//! is promised twice.

use std::io;
use std::os::fd::RawFd;

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::cgroup;
use crate::engines::{Capabilities, Engine};

/// Descriptors counted on, however high the limit is.
const LIMIT_MAX: u64 = 1 << 20;
/// Descriptors that the kernel's table has room for from the beginning; it takes 8 bytes for each.
const TABLE_SIZE: usize = 32 * 1024;
/// Descriptors of the process itself: its streams, the root, signals, the log, the admin address.
const OF_PROCESS: usize = 16;
/// A limit that leaves none for files that need not be open.
const FEW: usize = 4096;
/// Files kept open at the most for want of room in memory.
const KEPT_MAX: usize = 12 * 1024;
/// Bytes of memory for a file that is kept open: the kernel's, for its inode, its name and the open file, and
/// what is known of it here.
const KEPT_SIZE: u64 = 2304;
/// Descriptors of every engine thread: its listener, what it waits with, what wakes it.
pub(crate) const OF_THREAD: usize = 4;

/// How the process's descriptors are shared out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptors {
    pub(crate) limit: usize,
    /// Clients that there are to be descriptors for, before files are kept open.
    pub(crate) clients: usize,
    /// Files that there is memory for to keep them open.
    pub(crate) kept: usize,
}

impl Descriptors {
    /// Raises the soft limit to the hard one (setrlimit(2)), or sets it so that no descriptor is larger than
    /// the engine can do with. So many `clients` were asked for, if any number was.
    pub(crate) fn raise(descriptor_max: Option<usize>, clients: Option<usize>) -> Descriptors {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let wanted = match descriptor_max {
            Some(max) => Some(maximum.map_or(max as u64 + 1, |maximum| maximum.min(max as u64 + 1))),
            None => maximum,
        };
        let raised = setrlimit(Resource::Nofile, Rlimit { current: wanted, maximum });
        let limit = if raised.is_ok() { wanted } else { current };
        // Nobody needs more, and a ring cannot have more.
        let limit = limit.unwrap_or(LIMIT_MAX).min(LIMIT_MAX) as usize;
        make_room(limit.min(TABLE_SIZE));
        let kept = cgroup::memory_share().map_or(usize::MAX, |share| (share / KEPT_SIZE) as usize);
        Descriptors { limit, clients: clients.unwrap_or(0), kept }
    }

    /// Files that the caches keep open: large ones, and those for whose bytes there is no room. Half of what
    /// most have no use for otherwise is for these, as far as there is memory for so many.
    pub(crate) fn for_cache(self) -> usize {
        self.for_cache_in_plenty().min(self.kept.max(1))
    }

    fn for_cache_in_plenty(self) -> usize {
        let others = 3 * self.share() + self.for_loads() + self.clients;
        self.share() + (self.limit.saturating_sub(others + FEW) / 2).min(KEPT_MAX)
    }

    /// Such files that have left the caches while they are still sent, as far as it is a matter of choice.
    pub(crate) fn for_answers(self) -> usize {
        self.share()
    }

    /// Files in memory.
    pub(crate) fn for_memory(self) -> usize {
        self.share()
    }

    fn share(self) -> usize {
        (self.limit / 32).clamp(1, 4096)
    }

    /// Clients of the admin address.
    pub(crate) fn for_admin(self) -> usize {
        (self.limit / 32).clamp(1, 32)
    }

    /// Files that are being loaded.
    pub(crate) fn for_loads(self) -> usize {
        (self.limit / 8).min(32).max(self.limit / 64).max(2)
    }

    /// Those of a process that can do with none larger than this.
    pub(crate) fn up_to(descriptor_max: usize) -> Descriptors {
        Descriptors { limit: descriptor_max + 1, clients: 0, kept: usize::MAX }
    }

    /// Clients at once of an engine on so many threads, beside others who need some.
    pub(crate) fn for_clients(self, engine: &Engine, threads: usize, others: usize) -> usize {
        let Capabilities { own_descriptors, clients_max, .. } = engine.capabilities;
        let possible = self.for_connections((OF_THREAD + own_descriptors) * threads + others);
        clients_max.map_or(possible, |max| max.min(possible))
    }

    /// Sockets of clients: what is left of the limit, where the threads need so many for themselves. They
    /// take memory, too, so that there are no more of them where there is little.
    pub(crate) fn for_connections(self, for_threads: usize) -> usize {
        let files = self.for_cache_in_plenty() + self.for_answers() + self.for_memory() + self.for_loads();
        self.limit.saturating_sub(files + OF_PROCESS + for_threads).max(1)
    }
}

/// Has the kernel make its table of so many descriptors now. It doubles it when one does not fit, and where a
/// process has threads it waits, for some 10 ms, until no processor can be looking into the old one: whoever
/// opens or accepts just then, and all clients of his.
fn make_room(descriptors: usize) {
    // The highest there can be, for a moment. Where it cannot be had, the table grows as it always does.
    let _ = fcntl_dupfd_cloexec(io::stdin(), descriptors.saturating_sub(1) as RawFd);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines;

    #[test]
    fn descriptors_are_never_promised_twice() {
        for (limit, clients) in
            [(20, 0), (64, 0), (256, 500), (1024, 0), (20_000, 0), (20_000, 13_000), (1 << 20, 1 << 19)]
        {
            let descriptors = Descriptors { limit, clients, kept: usize::MAX };
            let kept = descriptors.for_cache() + descriptors.for_answers() + descriptors.for_memory();
            let files = kept + descriptors.for_loads();
            for threads in [1, 2, 64] {
                let connections = descriptors.for_connections(threads * OF_THREAD);
                assert!(files + connections < limit, "{limit} {threads}");
                assert!(connections >= clients || limit < clients + FEW, "{limit} {clients}");
            }
        }
    }

    #[test]
    fn an_engine_has_as_many_clients_as_it_says_and_as_there_are_descriptors_for() {
        let clients = |name, threads| {
            let engine = engines::by_name(name).unwrap();
            let limit = engine.capabilities.descriptor_max.unwrap_or(20_000);
            Descriptors::up_to(limit).for_clients(engine, threads, 0)
        };
        assert_eq!(clients("blocking", 1), 1);
        assert!((800..1000).contains(&clients("select", 1)));
        assert_eq!(clients("select", 3) + 2 * OF_THREAD, clients("select", 1));
        assert!(clients("poll", 1) > 10_000);
    }

    #[test]
    fn no_more_files_are_kept_open_than_there_is_memory_for() {
        let descriptors = |kept| Descriptors { limit: 20_000, clients: 0, kept };
        let [little, plenty] = [descriptors(1000), descriptors(usize::MAX)];
        assert_eq!((little.for_cache(), descriptors(0).for_cache()), (1000, 1));
        assert_eq!(little.for_connections(0), plenty.for_connections(0));
    }
}
