//! Files that must come from the disk: cold ones, many at once, and those of a disk that fails.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use ringserve::engines::ENGINES;
use rustix::process::{Pid, Signal};
use twox_hash::XxHash3_128;

use crate::common::{Client, Server, Setup, Site, numbered_bytes, on_every_engine, serves_several};

mod common;

/// Throws a file out of the page cache, as far as the kernel and the file system do as they are told.
fn chill(site: &Site, name: &str) {
    let file = File::open(site.path(name)).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

/// Whether the last byte of a file can be had without waiting for the disk; file systems that cannot tell say
/// that it cannot.
fn is_in_page_cache(path: &Path) -> bool {
    let file = File::open(path).unwrap();
    let last = file.metadata().unwrap().len() - 1;
    let mut byte = [0];
    let flags = rustix::io::ReadWriteFlags::NOWAIT;
    rustix::io::preadv2(&file, &mut [std::io::IoSliceMut::new(&mut byte)], last, flags) == Ok(1)
}

/// Who asks for what must come from the disk, and who asks for what need not, at once on several connections.
#[test]
fn files_that_are_not_in_the_page_cache_arrive_byte_for_byte() {
    cold_files_arrive(&["0", "64KiB", "8MiB"], |_| Setup::new());
}

/// The same where the kernel does not tell the server what is in the page cache: the files are another's.
#[test]
fn cold_files_of_somebody_else_arrive_byte_for_byte() {
    if Setup::unprivileged().arg("--version").try_run().is_none() || !rustix::process::geteuid().is_root() {
        println!("skipped: only a superuser can give files away, and setpriv must be there");
        return;
    }
    cold_files_arrive(&["64KiB"], |site| {
        for name in ["large.bin", "a.txt"] {
            std::os::unix::fs::chown(site.path(name), Some(65534), None).unwrap();
        }
        Setup::unprivileged()
    });
}

/// And where nobody is told.
#[test]
fn cold_files_on_overlayfs_arrive_byte_for_byte() {
    let site = Site::with(&[("a.txt", b"alpha\n")]);
    if Setup::on_overlayfs(&site).arg("--version").try_run().is_none() {
        println!("skipped: overlayfs cannot be mounted here");
        return;
    }
    cold_files_arrive(&["64KiB", "8MiB"], Setup::on_overlayfs);
}

fn cold_files_arrive(file_maxima: &[&str], setup: impl Fn(&Site) -> Setup + Sync) {
    let bytes = numbered_bytes(3 << 20);
    let hash = XxHash3_128::oneshot(&bytes);
    on_every_engine(|engine| {
        for file_max in file_maxima {
            let site = Site::with(&[("large.bin", &*bytes), ("a.txt", b"alpha\n")]);
            let setup = setup(&site).serving(engine.name, &site);
            let server = setup.args(["--cache-file-max", file_max, "--fresh", "0"]).start();
            let clients = if serves_several(engine) { 4 } else { 1 };
            let mut clients: Vec<_> = (0..clients).map(|_| server.connect()).collect();
            for _ in 0..3 {
                chill(&site, "large.bin");
                chill(&site, "a.txt");
                for client in &mut clients {
                    client.request("GET", "/large.bin", &[]);
                    client.request("GET", "/a.txt", &[]);
                    client.request("GET", "/large.bin", &["Range: bytes=2097150-2097160"]);
                }
                for client in &mut clients {
                    assert_eq!(XxHash3_128::oneshot(&client.response().body), hash, "{file_max}");
                    assert_eq!(client.response().text(), "alpha\n");
                    assert_eq!(client.response().body, &bytes[2_097_150..=2_097_160]);
                }
            }
        }
    });
}

/// A disk is given so much at once and no more; who leaves meanwhile must not take his place with him.
#[test]
fn more_clients_than_a_disk_is_given_at_once_all_get_their_files() {
    const FILES: usize = 12;
    let bytes = numbered_bytes((3 << 20) + FILES * 8);
    let content = |file: usize| &bytes[file * 8..][..3 << 20];
    on_every_engine(|engine| {
        if !serves_several(engine) {
            return;
        }
        let names: Vec<_> = (0..FILES).map(|number| format!("{number}.bin")).collect();
        let files: Vec<_> =
            names.iter().enumerate().map(|(number, name)| (&**name, content(number))).collect();
        let site = Site::with(&files);
        let server = Server::start(engine, &site, &["--cache-file-max", "64KiB"]);
        for stays in [false, false, true] {
            for name in &names {
                chill(&site, name);
            }
            let clients: Vec<_> = (0..60)
                .map(|number| {
                    let mut client = server.connect();
                    client.request("GET", &format!("/{}", names[number % FILES]), &[]);
                    client
                })
                .collect();
            assert_eq!(server.get("/none").status, 404, "nobody else is held up");
            for (number, mut client) in clients.into_iter().enumerate().filter(|_| stays) {
                assert!(client.response().body == content(number % FILES), "client {number}");
            }
        }
    });
}

/// To note down when a file was read is a write, for which whoever reads it may have to wait for a disk.
#[test]
fn reading_leaves_the_access_time_as_it_was() {
    let long_ago = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    on_every_engine(|engine| {
        let site = Site::with(&[("large.bin", &*numbered_bytes(3 << 20)), ("small.txt", b"alpha\n")]);
        let names = ["small.txt", "large.bin"];
        for name in names {
            let times = fs::FileTimes::new().set_accessed(long_ago);
            File::options().write(true).open(site.path(name)).unwrap().set_times(times).unwrap();
            chill(&site, name);
        }
        let server = Server::start(engine, &site, &[]);
        for name in names {
            assert_eq!(server.get(&format!("/{name}")).status, 200);
            assert_eq!(fs::metadata(site.path(name)).unwrap().accessed().unwrap(), long_ago, "{name}");
        }
    });
}

/// Bytes of a disk, and of the one file that takes most of it; what is left of the disk when it fails, and
/// where in the file those begin who ask then.
const DISK: u64 = 16 << 20;
const FILE: usize = 12 << 20;
const LEFT: u64 = 8 << 20;
const START: usize = 4 << 20;

/// What cannot be read ends the answers that need it, and no others. There are more of them than places.
#[test]
fn a_disk_that_fails_ends_the_answers_that_need_it_and_no_others() {
    let bytes = numbered_bytes(FILE);
    let disk = |site: &Site| {
        let disk = site.outside().join("disk");
        File::create(&disk).unwrap().set_len(DISK).unwrap();
        let mut make = Command::new("/sbin/mkfs.ext4");
        make.args(["-q", "-O", "^has_journal", "-d"]).args([site.root(), &disk]);
        make.status().is_ok_and(|status| status.success()).then_some(disk)
    };
    let site = Site::with(&[("small.txt", "alpha\n")]);
    let can_fail = disk(&site).is_some_and(|disk| {
        [false, true]
            .into_iter()
            .all(|overlaid| Setup::on_disk(&site, &disk, overlaid).arg("--version").try_run().is_some())
    });
    if !can_fail {
        println!("skipped: no disk can be made of a file here (mkfs.ext4, mount -o loop, overlayfs)");
        return;
    }
    on_every_engine(|engine| {
        for overlaid in [false, true] {
            let site = Site::with(&[("large.bin", &*bytes), ("small.txt", b"alpha\n")]);
            let disk = disk(&site).unwrap();
            let setup = Setup::on_disk(&site, &disk, overlaid).serving(engine.name, &site);
            let mut server = setup.args(["--fresh", "1h", "--workers", "1"]).start();
            assert_eq!(server.get("/small.txt").text(), "alpha\n");
            File::options().write(true).open(&disk).unwrap().set_len(LEFT).unwrap();
            for _ in 0..50 {
                let mut client = server.connect();
                client.request("GET", "/large.bin", &[&format!("Range: bytes={START}-")]);
                assert_eq!(client.head().status, 206);
                let (body, _) = client.rest();
                let is_cut = !body.is_empty() && body.len() < FILE - START;
                assert!(is_cut && bytes[START..].starts_with(&body), "{} bytes", body.len());
            }
            assert_eq!(server.get("/small.txt").text(), "alpha\n");
            server.signal(Signal::TERM);
            server.ends_well();
        }
    });
}

/// Whether the process has a file open that lies there.
fn holds(process: Pid, path: &Path) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", process.as_raw_nonzero())).unwrap();
    descriptors.flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == path))
}

/// The first to ask is sent it from the page cache, once it is there; for the second it is read into memory.
#[test]
fn a_file_that_was_on_the_disk_is_the_same_for_the_first_and_the_second_to_ask() {
    let bytes = numbered_bytes(1 << 20);
    let tag = format!("\"{:032x}\"", XxHash3_128::oneshot(&bytes));
    let sites = ENGINES.iter().map(|engine| (engine.name, Site::with(&[("large.bin", &*bytes)])));
    let sites: HashMap<_, _> = sites.collect();
    // Until then it may change without its `stat` telling, and is held in memory at once.
    std::thread::sleep(Duration::from_millis(3100));
    on_every_engine(|engine| {
        let site = &sites[engine.name];
        let path = fs::canonicalize(site.path("large.bin")).unwrap();
        chill(site, "large.bin");
        let is_on_disk = !is_in_page_cache(&path);
        let server = Server::start(engine, site, &["--workers", "1"]);
        let mut tags = Vec::new();
        for request in 1..=3 {
            let response = server.get("/large.bin");
            assert!(response.body == bytes, "{request}");
            tags.push(response.value("etag").to_owned());
            // These answer all clients in the process that was started, from one cache.
            if is_on_disk && matches!(engine.name, "uring" | "epoll" | "poll" | "threads") {
                assert_eq!(holds(server.pid(), &path), request == 1, "{request}");
                assert_eq!(tags[request - 1] == tag, request > 1, "{request}");
            }
        }
        for own in tags {
            let response = server.ask("GET", "/large.bin", &[&format!("If-None-Match: {own}")]);
            assert_eq!((response.status, response.value("etag")), (304, &*own));
        }
    });
}

/// His socket is tried again after a pause, and what comes next may have to be read from the disk.
#[test]
fn who_ends_his_side_and_takes_a_cold_file_in_bursts_is_not_forgotten() {
    const BURST: usize = 300_000;
    let bytes = numbered_bytes(25 * BURST);
    on_every_engine(|engine| {
        let site = Site::with(&[("large.bin", &bytes)]);
        // So he is not looked at in vain for more than a minute.
        let server = Server::start(engine, &site, &["--send-timeout", "10m", "--cache-file-max", "64KiB"]);
        chill(&site, "large.bin");
        let mut client = Client::connect_slow(server.port);
        client.request("GET", "/large.bin", &["Connection: close"]);
        client.finish_sending();
        assert_eq!(client.head().body_length(), bytes.len());
        for burst in bytes.chunks(BURST) {
            let (taken, left) = burst.split_at(BURST / 2);
            assert!(client.take(taken.len()) == taken);
            std::thread::sleep(Duration::from_millis(120));
            chill(&site, "large.bin");
            let began = Instant::now();
            assert!(client.take(left.len()) == left);
            assert!(began.elapsed() < Duration::from_secs(8), "nobody thought of him");
        }
        client.closes();
    });
}

/// A container that has 64 MiB of memory was killed when 32 files of 1 MB were read into it at once.
#[test]
fn what_many_files_are_read_into_at_once_goes_back_to_the_kernel() {
    const FILES: usize = 40;
    on_every_engine(|engine| {
        let site = Site::new();
        let names: Vec<_> = (0..FILES).map(|number| format!("{number}.bin")).collect();
        for name in &names {
            site.write(name, vec![1; 1_000_000]);
        }
        // So that it may no longer change without its times telling.
        std::thread::sleep(Duration::from_millis(3100));
        let server = Server::start(engine, &site, &[]);
        let clients = if serves_several(engine) { FILES } else { 1 };
        for _ in 0..2 {
            for name in &names {
                chill(&site, name);
            }
            for names in names.chunks(clients) {
                let mut clients: Vec<_> = names.iter().map(|_| server.connect()).collect();
                for (client, name) in clients.iter_mut().zip(names) {
                    // What names a range needs the tag of the bytes.
                    client.request("GET", &format!("/{name}"), &["Range: bytes=0-9"]);
                }
                for mut client in clients {
                    assert_eq!(client.response().status, 206);
                }
            }
        }
        let status = fs::read_to_string(format!("/proc/{}/status", server.pid().as_raw_pid())).unwrap();
        let own = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap().trim();
        assert!(own.strip_suffix(" kB").unwrap().parse::<usize>().unwrap() < 8000, "{own}");
    });
}
