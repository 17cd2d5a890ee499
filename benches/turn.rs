//! Time per request through the whole in-memory path: bytes in, answer in the outbox, outbox emptied.
//!
//! `cargo bench --bench turn`. No socket is involved, so this is the server's own share of a request. The
//! throughput of the pipelined case is per request, its time per sixteen of them.
//!
//! `many` asks for one of 10,000 files at random, and what goes out is copied as the kernel would: nothing of
//! an entry is in the processor's caches when it is asked for, so this measures how many places it lies in.

#[path = "support/cases.rs"]
mod cases;
#[path = "support/requests.rs"]
mod requests;
mod support;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn turn(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (mut exchange, cases) = cases::prepare(folder.path());
    let mut group = criterion.benchmark_group("turn");
    for case in cases {
        group.throughput(Throughput::Elements(case.requests));
        group.bench_function(case.name, |bencher| {
            bencher.iter(|| exchange.run(black_box(&case.bytes)));
        });
    }
    group.finish();
}

fn many(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut random = fastrand::Rng::with_seed(1);
    for number in 0..FILES {
        let size = random.usize(512..=32 * 1024);
        std::fs::write(folder.path().join(name(number)), vec![b'x'; size]).expect("a file to serve");
    }
    let mut exchange = support::Exchange::new(folder.path());
    let requests: Vec<_> = (0..FILES).map(|number| requests::WRK.replace("1k.html", &name(number))).collect();
    // The first request loads, and the second may have the body held otherwise.
    for request in requests.iter().chain(&requests) {
        exchange.run(request.as_bytes());
    }
    let mut sockets = vec![0; SOCKETS];
    let mut at = 0;
    criterion.bench_function("many", |bencher| {
        bencher.iter(|| {
            let request = &requests[random.usize(..FILES)];
            exchange.pass(black_box(request.as_bytes()), |bytes| {
                at = if at + bytes.len() > SOCKETS { 0 } else { at };
                sockets[at..][..bytes.len()].copy_from_slice(bytes);
                at += bytes.len();
            });
        });
    });
}

fn name(number: usize) -> String {
    format!("{number:05}.html")
}

/// Files of `many`.
const FILES: usize = 10_000;
/// Bytes that are on their way to clients at once.
const SOCKETS: usize = 4 << 20;

criterion_group!(benches, turn, many);
criterion_main!(benches);
