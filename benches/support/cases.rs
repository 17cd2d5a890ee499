//! The requests whose whole in-memory path is measured: in time by turn.rs, in instructions by
//! instructions.rs.

use std::path::Path;

use crate::requests::{BROWSER, WRK};
use crate::support::Exchange;

/// One kind of request.
pub struct Case {
    /// What it is called in results.
    pub name: &'static str,
    /// The bytes that come in at once.
    pub bytes: Vec<u8>,
    /// Requests in them.
    pub requests: u64,
}

/// An exchange that serves `folder`, into which the file to serve is put, and all cases. Each was asked once
/// by then, so that what is measured afterwards is a hit; and each had the answer that it is meant to have.
pub fn prepare(folder: &Path) -> (Exchange, Vec<Case>) {
    std::fs::write(folder.join("1k.html"), vec![b'x'; 1024]).expect("a file to serve");
    let mut exchange = Exchange::new(folder);
    let answer = exchange.answer(WRK.as_bytes());
    let with = |field: &str| WRK.replace("\r\n\r\n", &format!("\r\n{field}\r\n\r\n"));
    // A browser sends both validators back.
    let validators = format!(
        "If-None-Match: {}\r\nIf-Modified-Since: {}",
        value(&answer, "\r\nETag: "),
        value(&answer, "\r\nLast-Modified: ")
    );
    let cases = [
        ("hit-wrk", WRK.to_owned(), 1, "200 OK"),
        ("hit-browser", BROWSER.to_owned(), 1, "200 OK"),
        ("304", with(&validators), 1, "304 Not Modified"),
        ("404", WRK.replace("1k", "missing"), 1, "404 Not Found"),
        ("range", with("Range: bytes=100-199"), 1, "206 Partial Content"),
        ("pipelined-16", WRK.repeat(16), 16, "200 OK"),
    ]
    .map(|(name, text, requests, status)| {
        let answer = exchange.answer(text.as_bytes());
        let line = format!("HTTP/1.1 {status}\r\n");
        let count = answer.windows(line.len()).filter(|&window| window == line.as_bytes()).count();
        assert_eq!(count as u64, requests, "{name}: answers that begin with {line:?}");
        Case { name, bytes: text.into_bytes(), requests }
    });
    (exchange, cases.into())
}

/// What stands in an answer between `before` and the end of the line.
fn value<'a>(answer: &'a [u8], before: &str) -> &'a str {
    let text = std::str::from_utf8(answer).expect("a head and a body in ASCII");
    let (_, rest) = text.split_once(before).expect("a field that every file has");
    rest.split_once("\r\n").expect("a whole line").0
}
