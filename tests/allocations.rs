//! A request that hits the cache allocates nothing. This counts.
#![allow(unsafe_code)]

#[path = "../benches/support/mod.rs"]
mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use support::Exchange;

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

#[test]
fn a_cached_hit_allocates_nothing() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.txt"), vec![b'a'; 1024]).unwrap();
    std::fs::write(folder.path().join("b.bin"), vec![b'b'; 100_000]).unwrap();
    std::fs::write(folder.path().join("c.html"), "c").unwrap();
    std::fs::write(folder.path().join("c.html.gz"), "gz").unwrap();
    let mut exchange = Exchange::new(folder.path());

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
            assert!(exchange.run(request.as_bytes()) > 0);
        }
        let before = ALLOCATIONS.with(Cell::get);
        for _ in 0..100 {
            exchange.run(request.as_bytes());
        }
        assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0, "allocations in 100 times: {name}");
    }
}
