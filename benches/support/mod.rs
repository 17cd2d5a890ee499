//! One connection driven through the whole in-memory path: for benchmarks and the allocation count.

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, openat, openat2};
use rustix::io::{Errno, pread};

use ringserve::content::cache::Budget;
use ringserve::content::site::Rules;
use ringserve::content::{Load, Loaded, Site, Step};
use ringserve::http::connection::Limits;
use ringserve::http::{Chunk, Connection, Outbox};
use ringserve::observe::counters::Tally;
use ringserve::serve::{Want, Worker};
use ringserve::shutdown::Draining;

/// A worker with one connection.
pub struct Exchange {
    worker: Worker,
    conn: Connection,
    outbox: Outbox,
}

impl Exchange {
    /// Serves a folder; what is loaded once is trusted for an hour.
    pub fn new(folder: &Path) -> Exchange {
        let site = Arc::new(Site::open(folder, Rules::default()).expect("the folder exists"));
        let budget = Budget { bytes: 256 << 20, descriptors: 8, fresh_for: Duration::from_secs(3600) };
        let mut worker =
            Worker::new(site, budget, Limits::default(), Draining::default(), None, Tally::default());
        let mut conn = Connection::new(None);
        worker.accepted(&mut conn);
        Exchange { worker, conn, outbox: Outbox::default() }
    }

    /// Answers what is in `request` and empties the outbox; says how many bytes went out.
    pub fn run(&mut self, request: &[u8]) -> usize {
        let mut sent = 0;
        self.drive(request, |bytes| sent += bytes.len());
        sent
    }

    /// The same, and hands on what goes out.
    #[allow(dead_code, reason = "most measurements only want it gone")]
    pub fn pass(&mut self, request: &[u8], take: impl FnMut(&[u8])) {
        self.drive(request, take);
    }

    /// The same, and gives what went out: to see that a measurement measures what it is meant to.
    #[allow(dead_code, reason = "the allocation count looks at no answer")]
    pub fn answer(&mut self, request: &[u8]) -> Vec<u8> {
        let mut sent = Vec::new();
        self.drive(request, |bytes| sent.extend_from_slice(bytes));
        sent
    }

    #[inline]
    fn drive(&mut self, request: &[u8], mut take: impl FnMut(&[u8])) {
        let Exchange { worker, conn, outbox } = self;
        let mut want = worker.turn(conn, request, outbox);
        loop {
            want = match want {
                Want::Send { .. } => {
                    empty(outbox, &mut take);
                    worker.turn(conn, &[], outbox)
                }
                Want::Load(wanted) => worker.loaded(conn, load(*wanted), outbox),
                Want::Read => return,
                other => panic!("{other:?}"),
            };
        }
    }
}

#[inline]
fn empty(outbox: &mut Outbox, take: &mut impl FnMut(&[u8])) {
    while !outbox.is_empty() {
        let mut slices = [IoSlice::new(&[]); 4];
        let n = match outbox.front(&mut slices) {
            Chunk::Memory { slices: count, .. } => {
                slices[..count].iter().for_each(|slice| take(slice));
                slices[..count].iter().map(|slice| slice.len()).sum()
            }
            Chunk::File { len, .. } => len as usize,
            Chunk::Empty => 0,
        };
        outbox.sent(n as u64);
    }
}

fn load(mut load: Load) -> Loaded {
    loop {
        match load.next() {
            Step::Open { root, path, flags, resolve } => {
                let result = match openat2(root, path, flags, Mode::empty(), resolve) {
                    // Valgrind may not know the call, and nothing here hangs on what it checks.
                    Err(Errno::NOSYS) => openat(root, path, flags, Mode::empty()),
                    result => result,
                };
                load.opened(result.map_err(Into::into));
            }
            Step::Read { file, buffer, at } => {
                let result = pread(file, spare_capacity(buffer), at);
                load.read(result.map_err(Into::into));
            }
            Step::Note { .. } => load.noted(),
            Step::Gather(gathering) => {
                let _ = gathering.run();
                load.gathered();
            }
            Step::List(listing) => {
                listing.run();
                load.listed();
            }
            Step::Done => return load.finish(),
        }
    }
}
