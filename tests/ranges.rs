//! Parts and conditions: ranges, preconditions and validators, of files in memory and behind a descriptor.

use std::fs::File;
use std::time::{Duration, SystemTime};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::common::{Response, Server, Site, numbered_bytes, on_every_engine};

mod common;

/// Beyond it, a file is served from its descriptor.
const HELD_MAX: &str = "64KiB";
/// Copied behind its head; lent from memory; sent from a descriptor.
const SIZES: [(&str, usize); 3] = [("/small.bin", 1000), ("/middle.bin", 50_000), ("/large.bin", 2_000_000)];

fn site() -> Site {
    let site = Site::new();
    for (target, size) in SIZES {
        site.write(&target[1..], numbered_bytes(size));
    }
    site
}

#[test]
fn one_range() {
    on_every_engine(|engine| {
        let site = site();
        let server = Server::start(engine, &site, &["--cache-file-max", HELD_MAX]);
        for (target, size) in SIZES {
            let bytes = numbered_bytes(size);
            let last = size - 1;
            let mut client = server.connect();
            for (value, wanted) in [
                ("bytes=0-0".to_owned(), Some(0..1)),
                ("bytes=1-9".to_owned(), Some(1..10)),
                ("bytes=0-".to_owned(), Some(0..size)),
                (format!("bytes={last}-"), Some(last..size)),
                (format!("bytes=7-{last}"), Some(7..size)),
                (format!("bytes=7-{}", size + 7), Some(7..size)),
                ("bytes=-1".to_owned(), Some(last..size)),
                ("bytes=-999".to_owned(), Some(size - 999..size)),
                ("bytes=-99999999".to_owned(), Some(0..size)),
                (format!("bytes={size}-,3-5"), Some(3..6)),
                ("BYTES=3-5".to_owned(), Some(3..6)),
                (format!("bytes={size}-"), None),
                ("bytes=-0".to_owned(), None),
                ("bytes=99999999999999999999-".to_owned(), None),
            ] {
                client.request("GET", target, &[&format!("Range: {value}")]);
                let response = client.response();
                let case = format!("{value} of {target}");
                if let Some(range) = wanted {
                    assert_eq!(response.status, 206, "{case}");
                    let said = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                    assert_eq!(response.value("content-range"), said, "{case}");
                    assert!(response.body == bytes[range], "{case}");
                } else {
                    assert_eq!(response.status, 416, "{case}");
                    assert_eq!(response.value("content-range"), format!("bytes */{size}"), "{case}");
                }
            }
            for value in ["bytes=5-2", "bytes=", "bytes=a-b", "lines=0-1", "bytes 0-1", "bytes=0-9,0-", "0-1"]
            {
                client.request("GET", target, &[&format!("Range: {value}")]);
                let response = client.response();
                assert_eq!((response.status, response.field("content-range")), (200, None), "{value}");
                assert!(response.body == bytes, "{value} of {target}");
            }
            client.request("GET", target, &["Range: bytes=0-1", "Range: bytes=2-3"]);
            assert_eq!(client.response().status, 200, "a field that stands twice means nothing");
            client.request("HEAD", target, &["Range: bytes=0-1"]);
            assert_eq!(client.head().status, 200, "a range is for GET");
        }
    });
}

/// Reads a multipart/byteranges body strictly; the spans and their bytes.
fn parts(response: &Response) -> Vec<(String, Vec<u8>)> {
    let boundary = response.value("content-type").strip_prefix("multipart/byteranges; boundary=").unwrap();
    let mut rest = &response.body[..];
    let mut parts = Vec::new();
    let expect = |rest: &mut &[u8], text: &str| {
        let (start, tail) = rest.split_at(text.len().min(rest.len()));
        assert_eq!(String::from_utf8_lossy(start), text);
        *rest = tail;
    };
    expect(&mut rest, &format!("--{boundary}"));
    while rest.starts_with(b"\r\n") {
        let end = rest.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let head = std::str::from_utf8(&rest[2..end]).unwrap();
        rest = &rest[end + 4..];
        let mut lines = head.split("\r\n");
        assert_eq!(lines.next(), Some("Content-Type: application/octet-stream"));
        let range = lines.next().unwrap().strip_prefix("Content-Range: bytes ").unwrap();
        assert_eq!(lines.next(), None);
        let (first, last) = range.split('/').next().unwrap().split_once('-').unwrap();
        let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
        let (bytes, tail) = rest.split_at(last + 1 - first);
        parts.push((range.to_owned(), bytes.to_vec()));
        rest = tail;
        expect(&mut rest, &format!("\r\n--{boundary}"));
    }
    assert_eq!(rest, b"--\r\n");
    parts
}

#[test]
fn several_ranges() {
    on_every_engine(|engine| {
        let site = site();
        let server = Server::start(engine, &site, &["--cache-file-max", HELD_MAX]);
        for (target, size) in SIZES {
            let bytes = numbered_bytes(size);
            let many: Vec<_> = (0..32).map(|n| (n * 20, n * 20 + 9)).collect();
            for spans in [vec![(0, 0), (size - 1, size - 1)], vec![(500, 899), (0, 99), (100, 299)], many] {
                let list: Vec<_> = spans.iter().map(|(first, last)| format!("{first}-{last}")).collect();
                let response = server.ask("GET", target, &[&format!("Range: bytes={}", list.join(", "))]);
                assert_eq!((response.status, response.field("content-range")), (206, None), "{target}");
                let parts = parts(&response);
                assert_eq!(parts.len(), spans.len(), "{target}");
                for ((first, last), (range, part)) in spans.into_iter().zip(parts) {
                    assert_eq!(range, format!("{first}-{last}/{size}"), "{target}");
                    assert!(part == bytes[first..=last], "{target} {range}");
                }
            }
            let flood = format!("Range: bytes={}", "0-0,".repeat(1000));
            let response = server.ask("GET", target, &[&flood]);
            assert_eq!((response.status, response.body.len()), (200, size), "too many are ignored");
        }
    });
}

#[test]
fn a_range_holds_only_for_the_version_it_was_asked_for() {
    on_every_engine(|engine| {
        let site = site();
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        for (target, _) in SIZES {
            File::options()
                .write(true)
                .open(site.path(&target[1..]))
                .unwrap()
                .set_modified(modified)
                .unwrap();
        }
        let server = Server::start(engine, &site, &["--cache-file-max", HELD_MAX]);
        for (target, _) in SIZES {
            let etag = server.get(target).value("etag").to_owned();
            for (value, status) in [
                (&*etag, 206),
                (&format!("W/{etag}"), 200),
                ("\"other\"", 200),
                ("Tue, 14 Nov 2023 22:13:20 GMT", 206),
                ("Tue, 14 Nov 2023 22:13:21 GMT", 200),
                ("Tue, 14 Nov 2023 22:13:19 GMT", 200),
                ("yesterday", 200),
            ] {
                let response =
                    server.ask("GET", target, &["Range: bytes=0-1", &format!("If-Range: {value}")]);
                assert_eq!(response.status, status, "{target} If-Range: {value}");
            }
            let unconditional = server.ask("GET", target, &[&format!("If-Range: {etag}")]);
            assert_eq!(unconditional.status, 200, "without a Range there is nothing to it");
        }
    });
}

#[test]
fn preconditions() {
    const MODIFIED: &str = "Tue, 14 Nov 2023 22:13:20 GMT";
    const BEFORE: &str = "Tue, 14 Nov 2023 22:13:19 GMT";
    const OBSOLETE: &str = "Tuesday, 14-Nov-23 22:13:20 GMT";
    on_every_engine(|engine| {
        let site = site();
        let server = Server::start(engine, &site, &["--cache-file-max", HELD_MAX]);
        for (target, size) in SIZES {
            let file = File::options().write(true).open(site.path(&target[1..])).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)).unwrap();
            let whole = server.get(target);
            let etag = whole.value("etag");
            assert!(etag.starts_with('"') && etag.ends_with('"') && etag.len() > 2, "{etag}");
            assert_eq!(whole.value("last-modified"), MODIFIED);
            let mut client = server.connect();
            for (fields, status) in [
                (vec![format!("If-None-Match: {etag}")], 304),
                (vec![format!("If-None-Match: W/{etag}")], 304),
                (vec![format!("If-None-Match: \"a,b\", {etag}, \"c\"")], 304),
                (vec!["If-None-Match: \"x\"".into(), format!("If-None-Match: {etag}")], 304),
                (vec!["If-None-Match: *".into()], 304),
                (vec!["If-None-Match: \"x\"".into()], 200),
                (vec![format!("If-Modified-Since: {MODIFIED}")], 304),
                (vec![format!("If-Modified-Since: {OBSOLETE}")], 304),
                (vec![format!("If-Modified-Since: {BEFORE}")], 200),
                (vec!["If-Modified-Since: never".into()], 200),
                (vec!["If-None-Match: \"x\"".into(), format!("If-Modified-Since: {MODIFIED}")], 200),
                (vec![format!("If-Match: {etag}")], 200),
                (vec![format!("If-Match: W/{etag}")], 412),
                (vec!["If-Match: \"x\"".into()], 412),
                (vec![format!("If-Unmodified-Since: {MODIFIED}")], 200),
                (vec![format!("If-Unmodified-Since: {BEFORE}")], 412),
                (vec![format!("If-Match: {etag}"), format!("If-None-Match: {etag}")], 304),
                (vec![format!("If-Match: {etag}"), "Range: bytes=0-1".into()], 206),
                (vec![format!("If-None-Match: {etag}"), "Range: bytes=0-1".into()], 304),
            ] {
                let lines: Vec<_> = fields.iter().map(String::as_str).collect();
                client.request("GET", target, &lines);
                let response = client.response();
                assert_eq!(response.status, status, "{target} {fields:?}");
                match status {
                    304 => {
                        assert_eq!((response.value("etag"), response.field("last-modified")), (etag, None));
                    }
                    200 => assert_eq!(response.body.len(), size),
                    _ => {}
                }
            }
            // What does not exist fails no precondition.
            client.request("GET", "/none", &["If-Match: \"x\"", "If-None-Match: *"]);
            assert_eq!(client.response().status, 404);
        }
    });
}

#[test]
fn a_modification_in_the_future_is_said_to_be_now() {
    on_every_engine(|engine| {
        let site = site();
        for (target, _) in SIZES {
            let file = File::options().write(true).open(site.path(&target[1..])).unwrap();
            file.set_modified(SystemTime::now() + Duration::from_secs(1_000_000)).unwrap();
        }
        let server = Server::start(engine, &site, &["--cache-file-max", HELD_MAX]);
        for (target, _) in SIZES {
            let response = server.get(target);
            let time = |name| httpdate::parse_http_date(response.value(name)).unwrap();
            assert!(time("last-modified") <= time("date"), "{target}: {:?}", response.head);
        }
    });
}

/// The tag of a file in memory is the same on every replica exactly where the bytes are, whatever their
/// dates; and no change goes unnoticed, be it of the same length and in the same moment.
#[test]
fn equal_bytes_have_equal_tags_and_others_have_others() {
    on_every_engine(|engine| {
        let sites = [Site::new(), Site::new()];
        let servers = sites.each_ref().map(|site| Server::start(engine, site, &["--fresh", "0"]));
        let bytes = || vec(0u8..2, 0..4);
        let config = Config { cases: 40, failure_persistence: None, ..Config::default() };
        let compare = |(one, other): (Vec<u8>, Vec<u8>)| {
            for (site, bytes) in sites.iter().zip([&one, &other]) {
                site.write("a.txt", bytes);
            }
            let [a, b] = servers.each_ref().map(|server| server.get("/a.txt"));
            prop_assert_eq!((&a.body, &b.body), (&one, &other));
            prop_assert_eq!(a.value("etag") == b.value("etag"), one == other);
            let condition = format!("If-None-Match: {}", b.value("etag"));
            let status = servers[0].ask("GET", "/a.txt", &[&condition]).status;
            prop_assert_eq!(status, if one == other { 304 } else { 200 });
            Ok(())
        };
        TestRunner::new(config).run(&(bytes(), bytes()), compare).unwrap();
    });
}
