//! Time per request through the whole in-memory path: bytes in, answer in the outbox, outbox emptied.
//!
//! `cargo bench --bench turn`. No socket is involved, so this is the server's own share of a request. The
//! throughput of the pipelined case is per request, its time per sixteen of them.

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

criterion_group!(benches, turn);
criterion_main!(benches);
