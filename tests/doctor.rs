//! `ringserve doctor` and `ringserve healthcheck`: what they find, what they say, and their exit codes.

use std::io::{Read, Write};
use std::net::TcpListener;

use ringserve::engines::AUTO;
use rustix::process::Signal;
use serde_json::Value;

use crate::common::confine::{REFUSALS, filtered, is_permitted_at_all, with_memlock};
use crate::common::{Ended, Server, Setup, Site};

mod common;

/// Examines a site and a free port of the loopback interface.
fn doctor(site: &Site) -> Setup {
    Setup::new().arg("doctor").arg(site.root()).args(["--host", "127.0.0.1", "--port", "0"])
}

fn report(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

/// The first check of that subject and status.
fn find<'a>(report: &'a Value, subject: &str, status: &str) -> &'a Value {
    let checks = report["checks"].as_array().unwrap();
    let mut found = checks.iter().filter(|check| check["subject"] == subject && check["status"] == status);
    found.next().unwrap_or_else(|| panic!("no {subject} is {status}: {report}"))
}

fn site() -> Site {
    Site::with(&[("index.html", "hello\n")])
}

/// Or a script would go on with half a seccomp profile.
#[test]
fn what_cannot_be_written_is_a_failure() {
    let site = site();
    let profile = || Setup::new().args(["doctor", "--seccomp-profile", "docker"]);
    for mut setup in [doctor(&site), doctor(&site).arg("--json"), profile()] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = setup.command.stdout(full).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.starts_with("ringserve: cannot write to standard output: "), "{said}");
    }
}

#[test]
fn where_the_ring_is_permitted_all_is_well() {
    let site = site();
    if !is_permitted_at_all() {
        return;
    }
    let ended = doctor(&site).run();
    assert_eq!((ended.code, &*ended.stderr), (Some(0), ""), "{ended:?}");
    assert!(ended.stdout.ends_with(&format!("{} runs here\n", AUTO.0.name)), "{ended:?}");
    assert!(!ended.stdout.contains("refused"), "{ended:?}");
    let report = report(&doctor(&site).args(["--json"]).run());
    assert_eq!((&report["engine"], &report["exit_code"]), (&AUTO.0.name.into(), &0.into()));
    let order = [
        "kernel",
        "sysctl",
        "seccomp",
        "security module",
        "memlock",
        "cpu",
        "memory",
        "descriptors",
        "ring",
        "openat2",
        "landlock",
        "root",
        "port",
    ];
    let mut subjects: Vec<&str> =
        report["checks"].as_array().unwrap().iter().map(|check| check["subject"].as_str().unwrap()).collect();
    subjects.dedup();
    assert_eq!(subjects, order);
}

/// The four refusals of the kernel, each said in the words of the server's first line.
#[test]
fn a_refusal_is_explained_in_the_servers_own_words() {
    let site = site();
    if !is_permitted_at_all() {
        return;
    }
    for (call, errno, words) in REFUSALS {
        let ended = filtered(doctor(&site).args(["--json"]), call, errno).run();
        assert_eq!(ended.code, Some(3), "{words}: {ended:?}");
        let report = report(&ended);
        assert_eq!((&report["engine"], &report["exit_code"]), (&AUTO.1.name.into(), &3.into()));
        let refused = find(&report, "ring", "refused");
        let cause = refused["text"].as_str().unwrap();
        let remedies = refused["remedies"].as_array().unwrap();
        for tool in ["docker run --security-opt", "compose security_opt", "Kubernetes securityContext"] {
            assert!(remedies.iter().any(|remedy| remedy.as_str().unwrap().starts_with(tool)), "{remedies:?}");
        }
        assert_eq!(find(&report, "seccomp", "refused")["remedies"], refused["remedies"]);
        let mut server = filtered(Setup::new().serving("auto", &site), call, errno).start();
        let first = server.stdout().lines().next().unwrap().to_owned();
        assert!(first.contains(&format!("cannot run here: {cause}; to allow it: ")), "{first}");
        server.signal(Signal::TERM);
        server.ends_well();
    }
}

#[test]
fn memory_that_may_not_be_locked_is_found_out() {
    let site = site();
    if !is_permitted_at_all() {
        return;
    }
    let ended = with_memlock(doctor(&site).args(["--json"]), 0).run();
    let report = report(&ended);
    // Not every kernel counts rings as locked memory, but each counts the program's pages.
    let status = if ended.code == Some(0) { "warning" } else { "refused" };
    let remedies = find(&report, "memlock", status)["remedies"].to_string();
    assert!(remedies.contains("--ulimit memlock="), "{remedies}");
}

#[test]
fn what_keeps_every_engine_from_serving_is_told_apart() {
    let site = site();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let nowhere = site.outside().join("nowhere");
    let setup = || Setup::new().args(["doctor", "--host", "127.0.0.1"]);
    for (setup, subject, words) in [
        (setup().arg(site.root()).args(["--port", &port]), "port", "another server has it"),
        (setup().arg(&nowhere).args(["--port", "0"]), "root", "give an existing folder"),
        (filtered(doctor(&site), libc::SYS_openat2, libc::EPERM), "openat2", "libseccomp"),
        (filtered(doctor(&site), libc::SYS_openat2, libc::ENOSYS), "openat2", "libseccomp"),
    ] {
        let ended = setup.args(["--json"]).run();
        assert_eq!(ended.code, Some(1), "{subject}: {ended:?}");
        let report = report(&ended);
        assert_eq!(report["engine"], Value::Null);
        let remedies = find(&report, subject, "refused")["remedies"].to_string();
        assert!(remedies.contains(words), "{words:?}: {remedies}");
    }
}

#[test]
fn the_address_and_the_root_come_from_the_environment_too() {
    let site = site();
    let setup = Setup::new().arg("doctor").env("SERVER_ROOT", site.root()).env("SERVER_HOST", "127.0.0.1");
    let ended = setup.env("PORT", "0").run();
    assert!(ended.stdout.contains("127.0.0.1 port 0 is free"), "{ended:?}");
    assert!(ended.stdout.contains(&format!("{} can be read", site.root().display())), "{ended:?}");
}

/// Asks as the image's HEALTHCHECK does, through the environment.
fn healthcheck(port: u16) -> Setup {
    Setup::new().arg("healthcheck").env("SERVER_PORT", port.to_string())
}

#[test]
fn a_server_that_answers_is_healthy_whatever_the_site() {
    for (files, status) in [(&[("index.html", "hello\n")][..], "200\n"), (&[("a.txt", "a\n")], "404\n")] {
        let site = Site::with(files);
        let server = Setup::new().serving("auto", &site).start();
        // Every address stands for the loopback interface.
        for host in ["127.0.0.1", "0.0.0.0", "::"] {
            let ended = healthcheck(server.port).env("SERVER_HOST", host).run();
            assert_eq!((ended.code, &*ended.stdout), (Some(0), status), "{host}: {ended:?}");
        }
        let ended = Setup::new().arg("healthcheck").env("PORT", server.port.to_string()).run();
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
}

#[test]
fn a_server_that_is_stopped_is_unhealthy() {
    let mut server: Server = Setup::new().serving("auto", &site()).start();
    server.signal(Signal::STOP);
    let ended = healthcheck(server.port).args(["--timeout", "200ms"]).run();
    assert_eq!((ended.code, &*ended.stdout), (Some(1), ""), "{ended:?}");
    assert!(ended.stderr.contains("no answer within 200ms"), "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    server.signal(Signal::CONT);
    assert!(server.is_running());
    assert_eq!(healthcheck(server.port).run().code, Some(0));
}

#[test]
fn what_is_no_server_or_a_broken_one_is_unhealthy() {
    for (answer, words) in [
        (&b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"[..], "answers 503"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
        (b"", "does not speak HTTP"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let answering = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut room = [0; 1024];
            assert!(stream.read(&mut room).unwrap() > 0);
            stream.write_all(answer).unwrap();
        });
        let ended = healthcheck(port).run();
        answering.join().unwrap();
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains(words), "{words:?}: {ended:?}");
        // Nobody is there any more.
        let ended = healthcheck(port).run();
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("is the server running"), "{ended:?}");
    }
}
