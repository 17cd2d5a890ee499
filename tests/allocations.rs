//! A request that hits the cache allocates nothing. This counts.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, openat2};

use ringserve::content::cache::Budget;
use ringserve::content::site::Rules;
use ringserve::content::{Load, Loaded, Site, Step};
use ringserve::http::connection::Limits;
use ringserve::http::{Chunk, Connection, Outbox};
use ringserve::serve::{Want, Worker};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is the one needed.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the one needed.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn load(mut load: Load) -> Loaded {
    loop {
        match load.next() {
            Step::Open { root, path, flags, resolve } => {
                let opened = openat2(root, path, flags, Mode::empty(), resolve);
                load.opened(opened.map_err(Into::into));
            }
            Step::Read { file, buffer, at } => {
                let result = rustix::io::pread(file, buffer, at);
                load.read(result.map_err(Into::into));
            }
            Step::Done => return load.finish(),
        }
    }
}

/// Answers, "sends", and comes back to wanting to read.
fn exchange(worker: &mut Worker, conn: &mut Connection, outbox: &mut Outbox, request: &[u8]) -> usize {
    let mut sent = 0;
    let mut want = worker.turn(conn, request, outbox);
    loop {
        want = match want {
            Want::Send { .. } => {
                while !outbox.is_empty() {
                    let mut slices = [IoSlice::new(&[]); 4];
                    let n = match outbox.front(&mut slices) {
                        Chunk::Memory { slices: count, .. } => {
                            slices[..count].iter().map(|slice| slice.len()).sum()
                        }
                        Chunk::File { len, .. } => len as usize,
                        Chunk::Empty => 0,
                    };
                    outbox.sent(n as u64);
                    sent += n;
                }
                worker.turn(conn, &[], outbox)
            }
            Want::Load(wanted) => worker.loaded(conn, load(*wanted), outbox),
            Want::Read => return sent,
            other => panic!("{other:?}"),
        };
    }
}

#[test]
fn a_cached_hit_allocates_nothing() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.txt"), vec![b'a'; 1024]).unwrap();
    std::fs::write(folder.path().join("b.bin"), vec![b'b'; 100_000]).unwrap();
    std::fs::write(folder.path().join("c.html"), "c").unwrap();
    std::fs::write(folder.path().join("c.html.gz"), "gz").unwrap();
    let site = Arc::new(Site::open(folder.path(), Rules::default()).unwrap());
    let budget = Budget { bytes: 1 << 20, descriptors: 8, fresh_for: Duration::from_secs(3600) };
    let mut worker = Worker::new(site, budget, Limits::default(), None);
    let mut conn = Connection::new(None);
    let mut outbox = Outbox::default();
    worker.accepted(&mut conn);

    let plain = "GET /a.txt HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let browser = "GET /c.html?v=1 HTTP/1.1\r\nHost: localhost:8080\r\n\
        User-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n\
        Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8\r\nAccept-Language: en-US,en;q=0.5\r\n\
        Accept-Encoding: gzip, deflate, br, zstd\r\nConnection: keep-alive\r\nCookie: a=b; c=d\r\n\
        Upgrade-Insecure-Requests: 1\r\nSec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\n\
        Sec-Fetch-Site: none\r\nPriority: u=0, i\r\n\r\n";
    for (name, request) in [
        ("hit", plain.to_owned()),
        ("browser with a precompressed sibling", browser.to_owned()),
        ("lent body", plain.replace("a.txt", "b.bin")),
        ("head", plain.replace("GET", "HEAD")),
        ("304", plain.replace("\r\n\r\n", "\r\nIf-None-Match: *\r\n\r\n")),
        ("range", plain.replace("\r\n\r\n", "\r\nRange: bytes=5-9\r\n\r\n")),
        ("404", plain.replace("a.txt", "missing")),
        ("decoded path", plain.replace("a.txt", "%61.txt")),
        ("16 pipelined", plain.repeat(16)),
        ("options", plain.replace("GET", "OPTIONS")),
    ] {
        // The first rounds load and let buffers grow.
        for _ in 0..3 {
            assert!(exchange(&mut worker, &mut conn, &mut outbox, request.as_bytes()) > 0);
        }
        let before = ALLOCATIONS.with(Cell::get);
        for _ in 0..100 {
            exchange(&mut worker, &mut conn, &mut outbox, request.as_bytes());
        }
        assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0, "allocations in 100 times: {name}");
    }
}
