//! Where io_uring is forbidden: `auto` serves with another engine and says why; the engine that was asked for
//! by name does not start, and says the same.

use std::fs;
use std::io;

use ringserve::engines::AUTO;
use rustix::process::{Resource, Signal, getrlimit};
use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use crate::common::confine::{REFUSALS, compiled, filtered, is_permitted_at_all, under, with_memlock};
use crate::common::{Client, Setup, Site, numbered_bytes, on_every_engine};

mod common;

/// cachestat(2), Linux 6.5; the same number on every architecture.
const SYS_CACHESTAT: i64 = 451;

#[test]
fn auto_serves_without_io_uring_and_says_why() {
    let site = Site::with(&[("a.txt", "alpha\n")]);
    let (best, fallback) = AUTO;
    if !is_permitted_at_all() {
        return;
    }
    for (call, errno, words) in REFUSALS {
        let case = format!("{words}, {}", io::Error::from_raw_os_error(errno));
        for choice in [&["--engine", "auto"][..], &[]] {
            let setup =
                Setup::new().arg(site.root()).args(["--host", "127.0.0.1", "--port", "0"]).args(choice);
            let mut server = filtered(setup, call, errno).start();
            assert_eq!(server.get("/a.txt").text(), "alpha\n", "{case}");
            server.signal(Signal::TERM);
            server.ends_well();
            for (text, place) in [(server.stdout(), "output"), (server.stderr(), "error")] {
                for words in [fallback.name, best.name, words, "seccomp", "to allow it: "] {
                    assert!(text.contains(words), "{case}: no {words:?} on standard {place}: {text}");
                }
            }
            assert!(server.stdout().contains(&format!("with {} (", fallback.name)), "{}", server.stdout());
        }
    }
}

#[test]
fn an_engine_asked_for_by_name_is_not_replaced() {
    let site = Site::with(&[("a.txt", "alpha\n")]);
    let best = AUTO.0.name;
    if !is_permitted_at_all() {
        return;
    }
    for (call, errno, words) in REFUSALS {
        let ended = filtered(Setup::new().serving(best, &site), call, errno).run();
        assert_eq!((ended.code, &*ended.stdout), (Some(1), ""), "{ended:?}");
        for words in ["ringserve: ", best, words, "seccomp", "to allow it: "] {
            assert!(ended.stderr.contains(words), "no {words:?}: {ended:?}");
        }
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    }
}

/// The memory is counted for all threads of a user together, so any of them can be the one that is refused.
#[test]
fn auto_serves_with_however_little_memory_that_may_be_locked() {
    let site = Site::with(&[("a.txt", "alpha\n")]);
    for kibibytes in [0, 16, 64, 128, 256, 512, 1024, 2048, 8192] {
        let setup = Setup::new().serving("auto", &site).args(["--workers", "4"]);
        let mut server = with_memlock(setup, kibibytes << 10).start();
        for _ in 0..8 {
            assert_eq!(server.get("/a.txt").text(), "alpha\n", "{kibibytes} KiB");
        }
        server.signal(Signal::TERM);
        server.ends_well();
    }
}

/// The pages of a file that nobody has locked leave memory where it is short.
#[test]
fn the_program_stays_in_memory_as_far_as_it_may() {
    let site = Site::with(&[("a.txt", "alpha\n")]);
    let locked = |setup: Setup| {
        let mut server = setup.serving("auto", &site).start();
        let status = fs::read_to_string(format!("/proc/{}/status", server.pid().as_raw_nonzero())).unwrap();
        server.signal(Signal::TERM);
        server.ends_well();
        let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
        line.trim_end_matches("kB").trim().parse::<u64>().unwrap()
    };
    assert_eq!(locked(with_memlock(Setup::new(), 0)), 0);
    match getrlimit(Resource::Memlock).current {
        Some(bytes) if bytes < 8 << 20 => println!("skipped: no more than {bytes} bytes may be locked here"),
        _ => assert!(locked(Setup::new()) > 0),
    }
}

/// Where there is no IPv6, every address is every address of IPv4, for the public and for the operator.
#[test]
fn without_ipv6_it_listens_on_ipv4() {
    let site = Site::with(&[("a.txt", "alpha\n")]);
    let is_ipv6 = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, libc::AF_INET6 as u64);
    let rule = SeccompRule::new(vec![is_ipv6.unwrap()]).unwrap();
    for errno in [libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL] {
        let filter = compiled(libc::SYS_socket, vec![rule.clone()], errno);
        let setup = Setup::new().arg(site.root()).args(["--port", "0", "--admin", "[::]:0"]);
        let mut server = under(setup, vec![filter]).start();
        assert_eq!(server.get("/a.txt").text(), "alpha\n");
        assert_eq!(Client::connect(server.admin_port()).get("/readyz").status, 200);
        assert!(server.stderr().contains("IPv6 is off"), "{}", server.stderr());
        server.signal(Signal::TERM);
        server.ends_well();
    }
}

/// What an engine does better with one of these calls, it does without it too.
#[test]
fn calls_that_only_help_may_be_forbidden() {
    on_every_engine(|engine| {
        let large = numbered_bytes(3 << 20);
        let middle = numbered_bytes(100_000);
        let site = Site::with(&[("large.bin", large.clone()), ("middle.bin", middle.clone())]);
        for call in [libc::SYS_memfd_create, SYS_CACHESTAT, libc::SYS_preadv2, libc::SYS_fstatfs] {
            let mut server = filtered(Setup::new().serving(engine.name, &site), call, libc::EPERM).start();
            for _ in 0..3 {
                assert!(server.get("/middle.bin").body == middle, "{call}");
                assert!(server.get("/large.bin").body == large, "{call}");
                let span = server.ask("GET", "/large.bin", &["Range: bytes=100-199"]);
                assert_eq!((span.status, &*span.body), (206, &large[100..200]), "{call}");
            }
            server.signal(Signal::TERM);
            server.ends_well();
        }
    });
}
