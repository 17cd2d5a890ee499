//! Time per request through the whole in-memory path: bytes in, answer in the outbox, outbox emptied.
//!
//! `cargo bench --bench turn`. No socket is involved, so this is the server's own share of a request.

mod support;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

use support::Exchange;

const WRK: &str = "GET /1k.html HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n";
const BROWSER: &str = "GET /1k.html HTTP/1.1\r\nHost: localhost:8080\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nDNT: 1\r\n\
    Connection: keep-alive\r\nCookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\n\
    Upgrade-Insecure-Requests: 1\r\nSec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\n\
    Sec-Fetch-Site: none\r\nPriority: u=0, i\r\n\r\n";

fn turn(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("1k.html"), vec![b'x'; 1024]).expect("a file to serve");
    let mut exchange = Exchange::new(folder.path());

    let with = |field: &str| WRK.replace("\r\n\r\n", &format!("\r\n{field}\r\n\r\n"));
    let mut group = criterion.benchmark_group("turn");
    for (name, request, count) in [
        ("hit, as wrk asks", WRK.to_owned(), 1),
        ("hit, as a browser asks", BROWSER.to_owned(), 1),
        ("304", with("If-None-Match: *"), 1),
        ("404", WRK.replace("1k", "missing"), 1),
        ("range", with("Range: bytes=100-199"), 1),
        ("16 pipelined", WRK.repeat(16), 16),
    ] {
        exchange.run(request.as_bytes());
        group.throughput(Throughput::Elements(count));
        group.bench_function(name, |bencher| {
            bencher.iter(|| exchange.run(black_box(request.as_bytes())));
        });
    }
    group.finish();
}

criterion_group!(benches, turn);
criterion_main!(benches);
