//! Time to read request heads and chunked bodies: those that clients send, and those that attackers would.
//!
//! `cargo bench --bench parse`. What matters in the hostile ones is the throughput: a head that takes far
//! longer per byte than an honest one would be a way to keep the server busy at little cost. Each case is
//! first seen to come to what it is meant to come to.

#[path = "support/requests.rs"]
mod requests;

use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};

use ringserve::http::Status;
use ringserve::http::chunked::{Chunks, Malformed};
use ringserve::http::parse::{self, FIELDS_MAX, Refused};

use requests::{BROWSER, WRK};

/// The largest head that the server takes, and the most that it ever parses at once.
const HEAD_MAX: usize = 16 * 1024;

/// What comes of a head: taken whole, more wanted, or refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Head {
    Taken,
    Unfinished,
    Refused(Status),
}

fn heads(criterion: &mut Criterion) {
    use Head::{Refused, Taken, Unfinished};

    let with = |lines: &str| format!("GET / HTTP/1.1\r\nHost: h\r\n{lines}\r\n");
    let fields_to_fill = FIELDS_MAX - 1;
    let value_to_fill = (HEAD_MAX - with("").len()) / fields_to_fill - "X-000: \r\n".len();
    let largest = with(&fields(fields_to_fill, &"v".repeat(value_to_fill)));
    let lists_to_fill = HEAD_MAX - with("Connection: \r\n").len();
    assert!((HEAD_MAX - 200..=HEAD_MAX).contains(&largest.len()), "{} bytes", largest.len());

    let legal = [
        ("minimal", with(""), Taken),
        ("wrk", WRK.to_owned(), Taken),
        ("browser", BROWSER.to_owned(), Taken),
        ("largest", largest, Taken),
        // RFC 9112 section 2.2 lets a recipient take a bare LF for a line end.
        ("browser, bare LF", BROWSER.replace("\r\n", "\n"), Taken),
        ("absolute-form", WRK.replace("/1k", "http://127.0.0.1:8080/1k"), Taken),
    ];
    measure_heads(criterion, "parse legal", &legal);

    let too_many = fields(FIELDS_MAX, "v");
    let many_empty = "a:\r\n".repeat(fields_to_fill);
    let framing = |lines: &str| WRK.replace("GET", "POST").replace("\r\n\r\n", lines);
    let hostile = [
        // Cut short: read again when more has come, so the time is paid once for each line that comes.
        ("cut before the end", BROWSER[..BROWSER.len() - 1].to_owned(), Unfinished),
        ("endless target", format!("GET /{}", "a".repeat(HEAD_MAX - 5)), Unfinished),
        ("endless field name", endless("GET / HTTP/1.1\r\n", "a"), Unfinished),
        ("endless field value", endless("GET / HTTP/1.1\r\nHost: ", "a"), Unfinished),
        ("endless spaces before a value", endless("GET / HTTP/1.1\r\nHost:", " "), Unfinished),
        ("empty lines only", "\r\n".repeat(HEAD_MAX / 2), Unfinished),
        // Taken, but with more work per byte than an honest client makes.
        ("99 empty fields", with(&many_empty), Taken),
        ("list of empty members", with(&list("Connection", ",", lists_to_fill)), Taken),
        ("list of many members", with(&list("Connection", "a,", lists_to_fill)), Taken),
        ("unknown expectations", with(&list("Expect", "a,  ", lists_to_fill)), Taken),
        ("long host", WRK.replace("127.0.0.1", &"%41".repeat(5000)), Taken),
        ("long query", WRK.replace(".html", &format!("?{}", "?".repeat(HEAD_MAX - 100))), Taken),
        // Refused.
        ("101 fields", with(&too_many), Refused(Status::FieldsTooLarge)),
        ("bad byte in a field name", BROWSER.replace("Cookie:", "Coo\u{1}kie:"), BAD),
        ("bad byte in a value", BROWSER.replace("theme=dark", "theme=\0ark"), BAD),
        ("NUL bytes only", "\0".repeat(HEAD_MAX), BAD),
        ("white space before the colon", BROWSER.replace("Cookie:", "Cookie :"), BAD),
        ("obs-fold", BROWSER.replace("; theme", ";\r\n theme"), BAD),
        ("bare CR", BROWSER.replace("; theme", ";\r theme"), BAD),
        ("no Host", BROWSER.replace("Host:", "Hos:"), BAD),
        ("two Host", with("Host: other\r\n"), BAD),
        ("two lengths", framing("\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n"), BAD),
        ("length of 16,000 digits", with(&list("Content-Length", "1", 16_000)), BAD),
        ("length and coding", framing("\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"), BAD),
        ("codings without end", with(&list("Transfer-Encoding", "chunked,", 16_000)), BAD),
        ("HTTP/2.0", BROWSER.replace("HTTP/1.1", "HTTP/2.0"), Refused(Status::VersionNotSupported)),
    ];
    measure_heads(criterion, "parse hostile", &hostile);
}

const BAD: Head = Head::Refused(Status::BadRequest);

fn fields(count: usize, value: &str) -> String {
    (0..count).fold(String::new(), |lines, n| lines + &format!("X-{n:03}: {value}\r\n"))
}

/// A start with as much of `filling` as the server reads, and no end.
fn endless(start: &str, filling: &str) -> String {
    start.to_owned() + &filling.repeat(HEAD_MAX - start.len())
}

/// One field line with a value of about `size` bytes that repeats `member`.
fn list(name: &str, member: &str, size: usize) -> String {
    format!("{name}: {}\r\n", member.repeat(size / member.len()))
}

fn measure_heads(criterion: &mut Criterion, group: &str, cases: &[(&str, String, Head)]) {
    let mut group = criterion.benchmark_group(group);
    for (name, text, wanted) in cases {
        let bytes = text.as_bytes();
        assert!(bytes.len() <= HEAD_MAX, "{name}: the server would not read {} bytes", bytes.len());
        assert_eq!(outcome(bytes), *wanted, "{name}");
        measure(&mut group, name, bytes, |bytes| {
            let mut room = parse::fields();
            parse::head(bytes, &mut room).is_ok()
        });
    }
    group.finish();
}

fn outcome(bytes: &[u8]) -> Head {
    match parse::head(bytes, &mut parse::fields()) {
        Ok(Some(request)) => {
            assert_eq!(request.length, bytes.len(), "the head is all there is");
            Head::Taken
        }
        Ok(None) => Head::Unfinished,
        Err(Refused::Status(status)) => Head::Refused(status),
        Err(Refused::LaterMinor(at)) => panic!("none of the cases is of a later minor version: {at}"),
    }
}

fn bodies(criterion: &mut Criterion) {
    const BODY: usize = 16 * 1024;
    let ending = "0\r\n\r\n";
    let long = "x".repeat(BODY - 100);
    let cases = [
        ("one chunk", format!("{BODY:x}\r\n{}\r\n{ending}", "x".repeat(BODY)), Ok(true)),
        ("1 KiB chunks", format!("400\r\n{}\r\n", "x".repeat(1024)).repeat(16) + ending, Ok(true)),
        ("chunks of one byte", "1\r\nx\r\n".repeat(BODY / 6) + ending, Ok(true)),
        ("long extension", format!("1;{long}\r\nx\r\n{ending}"), Ok(true)),
        ("long trailer", format!("0\r\nX: {long}\r\n\r\n"), Ok(true)),
        ("extension too long", format!("1;{long}{long}"), Err(Malformed)),
        ("size that overflows", format!("{}5\r\n", "F".repeat(16)), Err(Malformed)),
        ("bare LF", "5\nhello\n0\n\n".to_owned(), Err(Malformed)),
    ];
    let mut group = criterion.benchmark_group("parse chunked");
    for (name, text, wanted) in &cases {
        let bytes = text.as_bytes();
        let outcome = Chunks::new().pass(bytes);
        assert_eq!(outcome.map(|(_, ended)| ended), *wanted, "{name}");
        if let Ok((passed, _)) = outcome {
            assert_eq!(passed, bytes.len(), "{name}: the body is all there is");
        }
        measure(&mut group, name, bytes, |bytes| Chunks::new().pass(bytes).is_ok());
    }
    group.finish();
}

fn measure(group: &mut BenchmarkGroup<WallTime>, name: &str, bytes: &[u8], read: impl Fn(&[u8]) -> bool) {
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function(name, |bencher| bencher.iter(|| read(black_box(bytes))));
}

criterion_group! {
    name = benches;
    // There are many cases, and each is short: half the usual time is enough.
    config = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(2));
    targets = heads, bodies
}
criterion_main!(benches);
