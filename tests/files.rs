//! Files that are large, and files that change: between two requests, and while an answer is under way.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use twox_hash::XxHash3_128;

use crate::common::{
    Client, HUGE, Server, Setup, Site, eventually, numbered_bytes, on_every_engine, serves_several,
};

mod common;

/// A change on disk is seen within this time.
const VISIBLE_WITHIN: Duration = Duration::from_secs(2);

/// A client that has asked for a file and received the first thousand bytes of its body.
fn begin(server: &Server, target: &str) -> (Client, usize, Vec<u8>) {
    let mut client = Client::connect_slow(server.port);
    client.request("GET", target, &["Connection: close"]);
    let head = client.head();
    assert_eq!(head.status, 200, "{target}");
    let body = client.take(1000);
    (client, head.body_length(), body)
}

/// A client that has ended its own side cannot be waited for like others: poll(2) always has news of it.
#[test]
fn who_ends_his_side_and_stalls_is_sent_every_byte() {
    let bytes = numbered_bytes(1 << 20);
    let (hash, count) = (XxHash3_128::oneshot(&bytes), 12);
    on_every_engine(|engine| {
        let site = Site::with(&[("middle.bin", &bytes)]);
        let server = Server::start(engine, &site, &["--send-timeout", "20s"]);
        let clients = if serves_several(engine) { 3 } else { 1 };
        let mut clients: Vec<_> = (0..clients).map(|_| Client::connect_slow(server.port)).collect();
        for client in &mut clients {
            for _ in 0..count {
                client.request("GET", "/middle.bin", &[]);
            }
            client.finish_sending();
        }
        // Until the server has looked once whether they still take anything.
        std::thread::sleep(Duration::from_millis(2900));
        for client in &mut clients {
            for number in 0..count {
                assert_eq!(XxHash3_128::oneshot(&client.response().body), hash, "answer {number}");
            }
            client.closes();
        }
    });
}

/// `ulimit -f`: a file in memory counts as a file, and one that is too large for the limit must not end the
/// server.
#[test]
fn a_limit_on_the_size_of_files_ends_nothing() {
    let bytes = numbered_bytes(200 << 10);
    on_every_engine(|engine| {
        let site = Site::with(&[("middle.bin", &bytes)]);
        let server = Setup::limited("-f 20").serving(engine.name, &site).start();
        let mut client = server.connect();
        for _ in 0..3 {
            assert!(client.get("/middle.bin").body == bytes);
        }
    });
}

#[test]
fn a_large_file_arrives_byte_for_byte() {
    let bytes = numbered_bytes((8 << 20) + 5);
    let hash = XxHash3_128::oneshot(&bytes);
    on_every_engine(|engine| {
        let site = Site::with(&[("large.bin", &bytes)]);
        let server = Server::start(engine, &site, &["--cache-file-max", "64KiB"]);
        let mut client = server.connect();
        for _ in 0..2 {
            assert_eq!(XxHash3_128::oneshot(&client.get("/large.bin").body), hash);
        }
        for (first, last) in
            [(0, 0), (1, 65_536), (262_143, 262_144), (7_000_001, 8_388_612), (8_388_612, 8_388_612)]
        {
            client.request("GET", "/large.bin", &[&format!("Range: bytes={first}-{last}")]);
            assert_eq!(
                XxHash3_128::oneshot(&client.response().body),
                XxHash3_128::oneshot(&bytes[first..=last]),
                "{first}-{last}"
            );
        }
        drop(client);
        let (mut slow, length, mut body) = begin(&server, "/large.bin");
        while body.len() < length {
            body.extend(slow.take(200_000.min(length - body.len())));
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(XxHash3_128::oneshot(&body), hash);
        slow.closes();
    });
}

#[test]
fn sizes_around_every_limit_are_whole() {
    // What is copied, what is held in memory, what is read at once, what is sent at once.
    let limits = [0, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 2 << 20, 4 << 20];
    let sizes = || limits.into_iter().flat_map(|limit: usize| limit.saturating_sub(2)..=limit + 1);
    on_every_engine(|engine| {
        let site = Site::new();
        for size in sizes() {
            site.write(&format!("{size}.bin"), numbered_bytes(size));
        }
        let server = Server::start(engine, &site, &["--cache-file-max", "64KiB"]);
        let mut client = server.connect();
        for size in sizes() {
            let body = client.get(&format!("/{size}.bin")).body;
            assert!(body == numbered_bytes(size), "{size}: {} bytes", body.len());
        }
    });
}

#[test]
fn a_file_may_be_larger_than_32_bits_can_say() {
    const LENGTH: u64 = (4 << 30) + 10;
    const PIECE: usize = 1_000_000;
    on_every_engine(|engine| {
        let site = Site::with(&[("vast.bin", "start")]);
        let file = File::options().write(true).open(site.path("vast.bin")).unwrap();
        // Between start and end lies a hole, which takes no room on the disk.
        file.write_all_at(b"end", LENGTH - 3).unwrap();
        let server = Server::start(engine, &site, &[]);
        let mut client = server.connect();
        client.request("HEAD", "/vast.bin", &[]);
        assert_eq!(client.head().value("content-length"), LENGTH.to_string());
        for (range, from, body) in [("-5", LENGTH - 5, "\0\0end"), ("0-5", 0, "start\0")] {
            client.request("GET", "/vast.bin", &[&format!("Range: bytes={range}")]);
            let response = client.response();
            let said = format!("bytes {from}-{}/{LENGTH}", from + body.len() as u64 - 1);
            assert_eq!((response.text(), response.value("content-range")), (body.to_owned(), &*said));
        }
        // Across the limit, and from the start of all of it.
        client.request("GET", "/vast.bin", &[&format!("Range: bytes=-{PIECE}")]);
        let body = client.response().body;
        assert!(body.len() == PIECE && body.ends_with(b"\0end") && body[..PIECE - 3].iter().all(|&b| b == 0));
        client.request("GET", "/vast.bin", &[]);
        client.head();
        let body = client.take(PIECE);
        assert!(body.starts_with(b"start\0") && body[5..].iter().all(|&b| b == 0));
    });
}

#[test]
fn many_clients_take_a_large_file_at_once() {
    let bytes = numbered_bytes(2 << 20);
    on_every_engine(|engine| {
        if !serves_several(engine) {
            return;
        }
        let site = Site::with(&[("large.bin", &bytes)]);
        let server = Server::start(engine, &site, &["--cache-file-max", "64KiB"]);
        // More of them than any engine has buffers for.
        let mut clients: Vec<_> = (0..100).map(|_| begin(&server, "/large.bin")).collect();
        assert_eq!(server.get("/none").status, 404, "nobody else is held up");
        for (client, size, body) in clients.iter_mut().rev() {
            body.extend(client.take(*size - 1000));
            assert!(*body == bytes);
            client.closes();
        }
    });
}

#[test]
fn a_cache_too_small_for_the_site_serves_it_all_the_same() {
    on_every_engine(|engine| {
        let site = Site::new();
        let body = |number: usize| vec![number as u8; 1 + number * 997 % 24_000];
        for number in 0..250 {
            site.write(&format!("{number}.bin"), body(number));
        }
        // From here on they lie still, so that those may stay in their files that there is no room for.
        std::thread::sleep(Duration::from_millis(3100));
        for cache in ["0", "64KiB", "1MiB"] {
            let args = ["--cache-size", cache, "--cache-file-max", "16KiB", "--workers", "2"];
            let server = Server::start(engine, &site, &[&args[..], &["--fresh", "200ms"]].concat());
            let mut client = server.connect();
            for step in 0..500 {
                let number = step * step * 31 % 250;
                let name = format!("/{number}.bin");
                assert!(client.get(&name).body == body(number), "{number}, cache of {cache}");
                if step % 5 == 0 {
                    client.request("GET", &name, &["Range: bytes=-3"]);
                    let (part, body) = (client.response().body, body(number));
                    assert!(part == body[body.len().saturating_sub(3)..], "{number}, cache of {cache}");
                }
            }
            let names: Vec<_> = (230..250).map(|number| format!("{number}.bin")).collect();
            for name in &names {
                site.write(name, cache);
            }
            std::thread::sleep(Duration::from_secs(1));
            for name in &names {
                // The first to ask has it looked at again.
                let _ = client.get(&format!("/{name}"));
                assert_eq!(client.get(&format!("/{name}")).text(), cache, "{name}");
            }
            for number in 230..250 {
                site.write(&format!("{number}.bin"), body(number));
            }
        }
    });
}

/// What a request comes to: the status, and the start of the body.
type Outcome = (u16, String);

/// A file that is served from its descriptor.
fn long(word: &str) -> String {
    word.to_owned() + &"-".repeat(100_000)
}

fn outcome(status: u16, body: &str) -> Outcome {
    (status, body.to_owned())
}

/// Asks on a new connection, which may fall to any of the threads that serve.
fn ask(server: &Server, target: &str) -> Outcome {
    let response = server.ask("GET", target, &["Accept-Encoding: br"]);
    let body = if response.status == 200 { response.text() } else { String::new() };
    (response.status, body.chars().take(12).collect())
}

#[test]
fn changes_are_seen_within_two_seconds_and_never_taken_back() {
    type Change = fn(&Site);
    let changes: [(&str, Outcome, Outcome, Change); 13] = [
        ("/edited.txt", outcome(200, "old"), outcome(200, "new"), |site| site.write("edited.txt", "new")),
        ("/grown.txt", outcome(200, "old"), outcome(200, "new and more"), |site| {
            site.write("grown.txt", "new and more");
        }),
        ("/replaced.txt", outcome(200, "old"), outcome(200, "new"), |site| {
            site.replace("replaced.txt", "new");
        }),
        ("/deleted.txt", outcome(200, "old"), outcome(404, ""), |site| {
            fs::remove_file(site.path("deleted.txt")).unwrap();
        }),
        ("/created.txt", outcome(404, ""), outcome(200, "new"), |site| site.write("created.txt", "new")),
        ("/emptied.txt", outcome(200, "old"), outcome(200, ""), |site| site.write("emptied.txt", "")),
        ("/large.txt", outcome(200, "old---------"), outcome(200, "new---------"), |site| {
            site.replace("large.txt", long("new"));
        }),
        ("/swollen.txt", outcome(200, "old"), outcome(200, "new---------"), |site| {
            site.write("swollen.txt", long("new"));
        }),
        ("/folder.txt", outcome(200, "old"), outcome(301, ""), |site| {
            fs::remove_file(site.path("folder.txt")).unwrap();
            fs::create_dir(site.path("folder.txt")).unwrap();
        }),
        ("/bare/", outcome(404, ""), outcome(200, "new"), |site| site.write("bare/index.html", "new")),
        ("/link.txt", outcome(200, "one"), outcome(200, "two"), |site| {
            symlink("two.txt", site.path("link2")).unwrap();
            fs::rename(site.path("link2"), site.path("link.txt")).unwrap();
        }),
        ("/coded.txt", outcome(200, "plain"), outcome(200, "br"), |site| site.write("coded.txt.br", "br")),
        ("/bared.txt", outcome(200, "br"), outcome(200, "plain"), |site| {
            fs::remove_file(site.path("bared.txt.br")).unwrap();
        }),
    ];
    on_every_engine(|engine| {
        let site = Site::with(&[
            ("one.txt", "one"),
            ("two.txt", "two"),
            ("coded.txt", "plain"),
            ("bared.txt", "plain"),
            ("bared.txt.br", "br"),
            ("bare/x", "x"),
            ("large.txt", &long("old")),
        ]);
        for name in ["edited", "grown", "replaced", "deleted", "emptied", "swollen", "folder"] {
            site.write(&format!("{name}.txt"), "old");
        }
        symlink("one.txt", site.path("link.txt")).unwrap();
        let server = Server::start(engine, &site, &["--workers", "2", "--cache-file-max", "64KiB"]);
        for _ in 0..6 {
            for (target, before, ..) in &changes {
                assert_eq!(ask(&server, target), *before, "{target}");
            }
        }
        for (.., change) in &changes {
            change(&site);
        }
        let begin = Instant::now();
        let mut seen = [false; 13];
        let mut rounds_left = 10;
        while rounds_left > 0 {
            for ((target, before, after, _), seen) in changes.iter().zip(&mut seen) {
                let asked = begin.elapsed();
                let got = ask(&server, target);
                if got != *after {
                    assert_eq!(got, *before, "{target}: neither the old nor the new");
                    assert!(!*seen, "{target}: it was new already, and now is old again");
                    assert!(asked < VISIBLE_WITHIN, "{target}: still old after {asked:?}");
                }
                *seen |= got == *after;
            }
            rounds_left -= i32::from(seen.iter().all(|&seen| seen));
            std::thread::sleep(Duration::from_millis(20));
        }
    });
}

#[test]
fn with_fresh_0_a_change_is_seen_at_once() {
    on_every_engine(|engine| {
        let site = Site::new();
        let server = Server::start(engine, &site, &["--fresh", "0", "--cache-file-max", "64KiB"]);
        let mut client = server.connect();
        for round in 0..60 {
            // The same length each time, and within the same tick of the file system's clock.
            let small = format!("{round:03}");
            let large = small.repeat(30_000);
            let write = if round % 2 == 0 { Site::write } else { Site::replace };
            write(&site, "small.txt", &small);
            write(&site, "large.txt", &large);
            assert_eq!(client.get("/small.txt").text(), small);
            assert!(client.get("/large.txt").text() == large, "round {round}");
        }
    });
}

/// A link that a deployment points elsewhere, or a folder that is made anew.
#[test]
fn another_folder_of_the_name_of_the_root_is_served_before_long() {
    on_every_engine(|engine| {
        let site = Site::new();
        let place = |name: &str| site.outside().join(name);
        let release = |name: &str, text: &str| {
            fs::create_dir(place(name)).unwrap();
            fs::write(place(name).join("a.txt"), text).unwrap();
        };
        let switch_to = |name: &str| {
            symlink(name, place("next")).unwrap();
            fs::rename(place("next"), place("current")).unwrap();
        };
        release("first", "one\n");
        release("second", "two\n");
        switch_to("first");
        let args = ["--engine", engine.name, "--host", "127.0.0.1", "--port", "0"];
        let server = Setup::new().arg(place("current")).args(args).start();
        let mut stays = server.connect();
        let mut is_served = |text: &str| {
            let mut answers = vec![stays.get("/a.txt").text()];
            if serves_several(engine) {
                answers.push(server.get("/a.txt").text());
            }
            answers.iter().all(|answer| answer == text)
        };
        let mut comes = |text: &str| {
            eventually(text, || is_served(text));
            // Whoever has it has it for good.
            assert!((0..20).all(|_| is_served(text)));
        };
        comes("one\n");
        switch_to("second");
        comes("two\n");
        fs::remove_dir_all(place("second")).unwrap();
        comes("404 Not Found\n");
        release("second", "three\n");
        comes("three\n");
    });
}

#[test]
fn an_answer_under_way_is_not_mixed_with_what_replaces_its_file() {
    on_every_engine(|engine| {
        // Of the first all that is left lies in the socket.
        for (size, held_max) in [(100_000, "1MiB"), (900_000, "1MiB"), (HUGE, "1MiB")] {
            let site = Site::with(&[("a.bin", vec![b'A'; size])]);
            let server = Server::start(engine, &site, &["--cache-file-max", held_max, "--fresh", "0"]);
            let (mut client, length, _) = begin(&server, "/a.bin");
            assert_eq!(length, size);
            site.replace("a.bin", vec![b'B'; size]);
            if size < HUGE {
                // From here on nothing else holds the old one.
                assert!(server.get("/a.bin").body == vec![b'B'; size]);
            }
            let rest = client.take(size - 1000);
            assert!(rest.iter().all(|&byte| byte == b'A'));
            client.closes();
            let (mut client, ..) = begin(&server, "/a.bin");
            fs::remove_file(site.path("a.bin")).unwrap();
            let rest = client.take(size - 1000);
            assert!(rest.iter().all(|&byte| byte == b'B'));
            client.closes();
            assert_eq!(server.get("/a.bin").status, 404);
        }
    });
}

#[test]
fn a_file_replaced_again_and_again_is_always_whole() {
    on_every_engine(|engine| {
        // Each version has a letter and a length of its own; the last three are sent from a descriptor.
        let versions: Vec<_> =
            (0..6).map(|n| (b'a' + n, 20_000 * (n as usize + 1))).map(|(c, n)| vec![c; n]).collect();
        let site = Site::with(&[("a.bin", &versions[0])]);
        let server = Server::start(engine, &site, &["--cache-file-max", "64KiB", "--fresh", "0"]);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for version in versions.iter().cycle() {
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                    site.replace("a.bin", version);
                }
            });
            let check = std::panic::AssertUnwindSafe(|| {
                let mut client = server.connect();
                for _ in 0..150 {
                    let response = client.get("/a.bin");
                    assert_eq!(response.status, 200);
                    assert!(versions.contains(&response.body), "{} bytes of a mixture", response.body.len());
                }
            });
            let result = std::panic::catch_unwind(check);
            done.store(true, Ordering::Relaxed);
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
    });
}

#[test]
fn a_file_cut_short_under_way_ends_the_connection_short() {
    let bytes = numbered_bytes(HUGE);
    on_every_engine(|engine| {
        let site = Site::with(&[("a.bin", &bytes)]);
        let server = Server::start(engine, &site, &["--fresh", "0"]);
        let (mut client, length, mut body) = begin(&server, "/a.bin");
        assert_eq!(length, HUGE);
        let cut = 100_000;
        File::options().write(true).open(site.path("a.bin")).unwrap().set_len(cut).unwrap();
        let (rest, _) = client.rest();
        body.extend(rest);
        assert!(body.len() < HUGE, "a whole answer of a file that is not whole");
        // sendfile(2) queues pages without a copy: those cut off while they wait there are sent as zeros.
        let is_faithful = body.iter().zip(&bytes).all(|(sent, original)| sent == original || *sent == 0);
        assert!(is_faithful, "something else was sent in place of what is missing");
        assert_eq!(server.get("/a.bin").body.len() as u64, cut);
    });
}
