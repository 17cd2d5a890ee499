//! One connection driven through the whole in-memory path: for benchmarks and the allocation count.

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, openat2};
use rustix::io::pread;

use ringserve::content::cache::Budget;
use ringserve::content::site::Rules;
use ringserve::content::{Load, Loaded, Site, Step};
use ringserve::http::connection::Limits;
use ringserve::http::{Chunk, Connection, Outbox};
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
        let budget = Budget { bytes: 1 << 20, descriptors: 8, fresh_for: Duration::from_secs(3600) };
        let mut worker = Worker::new(site, budget, Limits::default(), Draining::default(), None);
        let mut conn = Connection::new(None);
        worker.accepted(&mut conn);
        Exchange { worker, conn, outbox: Outbox::default() }
    }

    /// Answers what is in `request` and empties the outbox; says how many bytes went out.
    pub fn run(&mut self, request: &[u8]) -> usize {
        let Exchange { worker, conn, outbox } = self;
        let mut sent = 0;
        let mut want = worker.turn(conn, request, outbox);
        loop {
            want = match want {
                Want::Send { .. } => {
                    sent += empty(outbox);
                    worker.turn(conn, &[], outbox)
                }
                Want::Load(wanted) => worker.loaded(conn, load(*wanted), outbox),
                Want::Read => return sent,
                other => panic!("{other:?}"),
            };
        }
    }
}

fn empty(outbox: &mut Outbox) -> usize {
    let mut sent = 0;
    while !outbox.is_empty() {
        let mut slices = [IoSlice::new(&[]); 4];
        let n = match outbox.front(&mut slices) {
            Chunk::Memory { slices: count, .. } => slices[..count].iter().map(|slice| slice.len()).sum(),
            Chunk::File { len, .. } => len as usize,
            Chunk::Empty => 0,
        };
        outbox.sent(n as u64);
        sent += n;
    }
    sent
}

fn load(mut load: Load) -> Loaded {
    loop {
        match load.next() {
            Step::Open { root, path, flags, resolve } => {
                let result = openat2(root, path, flags, Mode::empty(), resolve);
                load.opened(result.map_err(Into::into));
            }
            Step::Read { file, buffer, at } => {
                let result = pread(file, buffer, at);
                load.read(result.map_err(Into::into));
            }
            Step::Done => return load.finish(),
        }
    }
}
