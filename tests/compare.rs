//! `ringserve compare` from outside: small comparisons, what they write, and what is wrong usage.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::common::{Setup, Site};

mod common;

/// Two engines that run on every kernel.
const SMALL: &str =
    "--engines blocking,epoll --connections 2 --sizes 1KiB --keep-alive on --duration 150ms --rounds 1";

fn command(args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringserve"));
    command.arg("compare").args(args.split_ascii_whitespace()).stdin(Stdio::null());
    command
}

fn run(args: &str) -> Output {
    command(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs it; it must succeed. What it has printed.
#[track_caller]
fn good(args: &str) -> String {
    let output = run(args);
    assert!(output.status.success(), "{args}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Runs it; it must fail with that code, and say so in one line, behind what it says about its progress.
#[track_caller]
fn bad(args: &str, code: i32) -> String {
    let output = run(args);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args}: {said}");
    assert!(!said.contains("panicked"), "{said}");
    let last = said.lines().find(|line| line.starts_with("ringserve: ") || line.starts_with("error: "));
    last.unwrap_or_else(|| panic!("{args}: {said}")).to_owned()
}

fn samples(folder: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(folder.join("samples.json")).unwrap()).unwrap()
}

/// Only the tables, as they stand at the top.
fn tables(printed: &str) -> &str {
    printed.split("Drawn in").next().unwrap()
}

#[test]
fn a_comparison_is_saved_and_drawn_anew() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("deep/er");
    let show = out.display();
    let printed = good(&format!("{SMALL} --idle 0,3 --output {show}"));
    let saved = samples(&out);
    let runs = saved["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 4);
    for run in runs {
        assert_eq!((run["errors"].as_u64(), run["case"]["size"].as_u64()), (Some(0), Some(1024)), "{run}");
        assert!(run["requests"].as_u64().unwrap() > 0);
        assert!(run["cost"]["system"].as_f64().is_some());
        // The one serves one client at a time; the others wait, and that is no error.
        let (wanted, waiting) = (run["case"]["idle"].as_u64().unwrap(), run["waiting"].as_u64().unwrap());
        match run["target"].as_str().unwrap() {
            "blocking" => assert_eq!((run["active"].as_u64(), waiting), (Some(1), 1 + wanted)),
            _ => assert_eq!((run["idle"].as_u64(), waiting), (Some(wanted), 0)),
        }
    }
    let csv = fs::read_to_string(out.join("samples.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + runs.len());
    for run in runs {
        let start = format!("{},", run["target"].as_str().unwrap());
        let requests = format!(",{},", run["requests"]);
        assert!(csv.lines().any(|line| line.starts_with(&start) && line.contains(&requests)), "{csv}");
    }
    let markdown = fs::read_to_string(out.join("table.md")).unwrap();
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    for name in ["blocking", "epoll"] {
        assert!(markdown.contains(&format!("| {name} |")) && page.contains(&format!(">{name}</th>")));
    }
    assert!(page.ends_with("</html>") && page.contains("<svg ") && !page.contains("<script"));

    let again = good(&format!("--from {show}"));
    assert_eq!(tables(&again), tables(&printed));
    assert_eq!(fs::read_to_string(out.join("report.html")).unwrap(), page);
    let from_file = good(&format!("--from {show}/samples.json --against {show}/samples.json"));
    assert!(from_file.starts_with(tables(&printed)));
    assert!(from_file.contains("Ratios") && from_file.contains("1.00"), "{from_file}");
}

#[test]
fn short_connections_pipelines_rates_and_cold_files_make_no_errors() {
    for args in [
        "--engines all --keep-alive off --connections 4 --sizes 16KiB",
        "--engines all --pipeline 8 --connections 4 --sizes 0,1KiB --keep-alive on",
        "--engines epoll,tokio --rate 300 --connections 4 --sizes 1KiB --keep-alive on",
        "--engines processes,epoll --connections 4 --sizes 3MiB --keep-alive on",
        "--engines blocking,epoll --connections 4 --sizes 1KiB --keep-alive on --cold",
    ] {
        let folder = TempDir::new().unwrap();
        let out = folder.path().display();
        good(&format!("--duration 150ms --rounds 1 {args} --output {out}"));
        for run in samples(folder.path())["runs"].as_array().unwrap() {
            assert!(run["requests"].as_u64().unwrap() > 0, "{args}: {run}");
            // An engine for one client has no room for the hot one.
            let hot = run["case"]["cold"] == true && run["target"] != "blocking";
            assert_eq!(run["hot"].is_object(), hot, "{args}: {run}");
        }
    }
}

/// An engine whose runtime makes calls of its own is looked at by strace, where there is one; where there is
/// none, the figure says that it is not all.
#[test]
fn calls_that_an_engine_does_not_see_are_counted_by_strace_or_marked() {
    const ARGS: &str = "--engines processes,epoll,tokio,tokio-uring --connections 4 --sizes 1KiB \
                        --keep-alive on,off --duration 150ms --rounds 1";
    let has_strace = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status();
    let has_strace = has_strace.is_ok_and(|status| status.success());
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    let is_guarded = scope.is_ok_and(|scope| scope.trim() != "0");
    for with_strace in [true, false] {
        let folder = TempDir::new().unwrap();
        let mut command = command(&format!("{ARGS} --output {}", folder.path().display()));
        if !with_strace {
            command.env("PATH", "/nowhere");
        }
        let output = command.output().unwrap();
        let printed = text(&output.stdout);
        assert!(output.status.success(), "{printed}{}", text(&output.stderr));
        for run in samples(folder.path())["runs"].as_array().unwrap() {
            let calls = &run["calls"];
            // What a server forks is open to nobody there, unless he may trace everybody.
            if run["target"] == "processes" && is_guarded {
                continue;
            }
            let source = match run["target"].as_str().unwrap() {
                "epoll" => "counted",
                _ if with_strace && has_strace => "strace",
                _ => "own calls only: runtime not counted",
            };
            assert_eq!(calls["source"], source, "{run}");
            let per_request = calls["per_request"].as_f64().unwrap();
            let own = run["counters"]["system_calls"].as_f64().unwrap_or(0.0);
            let own = own / run["requests"].as_f64().unwrap();
            match (source, run["case"]["keep_alive"].as_bool().unwrap()) {
                // The kernel may complete several submissions of tokio-uring in one call.
                ("strace", true) => assert!((0.05..4.0).contains(&per_request), "{run}"),
                // A connection takes four calls at the least, and a process many more.
                ("strace", false) => assert!((3.0..100.0).contains(&per_request), "{run}"),
                _ => assert!((per_request - own).abs() < 1e-9, "{run}"),
            }
        }
        let (strace, not) =
            (printed.contains("† counted by strace"), printed.contains("‡ runtime not counted"));
        assert_eq!(strace, with_strace && has_strace, "{printed}");
        assert!(not != strace || is_guarded, "{printed}");
        if !with_strace {
            assert!(printed.contains("strace is not installed"), "{printed}");
        }
    }
}

#[test]
fn another_server_is_a_further_row() {
    let site = Site::with(&[("page", "x".repeat(1024))]);
    let server = Setup::new().serving("epoll", &site).start();
    let url = format!("http://127.0.0.1:{}/page", server.port);
    let printed = good(&format!("{SMALL} --url {url}"));
    assert_eq!(printed.matches("2 clients").count(), 1, "{printed}");
    assert!(printed.contains(&url), "{printed}");
    let printed =
        good(&format!("{SMALL} --engines none --url {url}").replace("--engines blocking,epoll", ""));
    assert!(printed.contains(&url) && !printed.contains("epoll"), "{printed}");
    let missing = bad(&format!("{SMALL} --url {url}s"), 1);
    assert!(missing.contains("status 404 instead of 200"), "{missing}");
}

#[test]
fn what_is_wrong_is_said_in_one_line() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "{ not samples").unwrap();
    let file = file.display();
    for (args, code, part) in [
        ("--engines warp".to_owned(), 2, "no such engine"),
        ("--rounds 0".into(), 2, "--rounds"),
        ("--duration 0".into(), 2, "--duration"),
        ("--sizes many".into(), 2, "--sizes"),
        ("--quick --rounds 2".into(), 2, "--quick"),
        ("--from x --quick".into(), 2, "--from"),
        ("--url https://x/".into(), 2, "https"),
        ("--rate 0".into(), 2, "--rate"),
        ("--engines none".into(), 1, "nothing to compare"),
        ("--engines epoll --keep-alive off --pipeline 8".into(), 1, "want --keep-alive on"),
        ("--engines epoll --keep-alive off --idle 800".into(), 1, "want --keep-alive on"),
        (format!("{SMALL} --url http://127.0.0.1:1/"), 1, "cannot reach http://127.0.0.1:1/"),
        (format!("{SMALL} --output {file}/x"), 1, "cannot write to"),
        (format!("{SMALL} --output /proc/x"), 1, "cannot write to /proc/x"),
        (format!("--from {file}"), 1, "holds no samples"),
        ("--from /nowhere".into(), 1, "cannot read /nowhere"),
        (format!("{SMALL} --against {file}"), 1, "holds no samples"),
    ] {
        let error = bad(&args, code);
        assert!(error.contains(part), "{args}: {error}");
    }
}

#[test]
fn an_interrupt_keeps_what_was_measured_and_leaves_nobody_behind() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().display();
    let args =
        format!("--engines epoll --connections 2 --sizes 1KiB --duration 300ms --rounds 50 --output {out}");
    let comparison = command(&args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env("TMPDIR", folder.path())
        .spawn()
        .unwrap();
    let runs = || {
        let text = fs::read_to_string(folder.path().join("samples.json")).unwrap_or_default();
        let saved: Option<serde_json::Value> = serde_json::from_str(&text).ok();
        saved.map_or(0, |saved| saved["runs"].as_array().map_or(0, Vec::len))
    };
    common::eventually("two runs are saved", || runs() >= 2);
    let begin = Instant::now();
    kill_process(Pid::from_child(&comparison), Signal::INT).unwrap();
    let output = comparison.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert!((2..50).contains(&runs()));
    // Whoever shows it later has not interrupted anything.
    good(&format!("--from {out}"));
    assert!(folder.path().join("report.html").exists());
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "{left:?}");
}

/// Servers of a site in that folder that run at the moment.
fn servers(folder: &TempDir) -> usize {
    let root = folder.path().display().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| fs::read_to_string(process.path().join("cmdline")).ok());
    lines.filter(|line| line.contains("--engine") && line.contains(&root)).count()
}

/// What stands in the folder is worth more than nothing.
#[test]
fn where_nothing_was_measured_nothing_is_written() {
    let (folder, sites) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let out = folder.path().display();
    good(&format!("{SMALL} --output {out}"));
    let files = || {
        let names = ["samples.json", "samples.csv", "table.md", "report.html"];
        names.map(|name| fs::read(folder.path().join(name)).unwrap())
    };
    let before = files();
    let args = format!("--engines epoll --connections 2 --sizes 1KiB --duration 60s --output {out}");
    let mut command = command(&args);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).env("TMPDIR", sites.path());
    let comparison = command.spawn().unwrap();
    common::eventually("a server runs", || servers(&sites) == 1);
    kill_process(Pid::from_child(&comparison), Signal::INT).unwrap();
    let output = comparison.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(files() == before);
}

/// Clients of an engine for which there are no descriptors are not failures of it.
#[test]
fn who_has_no_descriptor_waits() {
    let folder = TempDir::new().unwrap();
    let args = "--engines select --connections 1000 --sizes 1KiB --keep-alive on --duration 300ms --rounds 1";
    good(&format!("{args} --output {}", folder.path().display()));
    let run = &samples(folder.path())["runs"][0];
    let [active, waiting] = ["active", "waiting"].map(|name| run[name].as_u64().unwrap());
    assert_eq!(active + waiting, 1000);
    assert!((800..1000).contains(&active), "{run}");
}

#[test]
fn a_server_does_not_outlive_a_comparison_that_was_killed() {
    let folder = TempDir::new().unwrap();
    let args = "--engines epoll --connections 2 --sizes 1KiB --duration 60s";
    let mut comparison = command(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .env("TMPDIR", folder.path())
        .spawn()
        .unwrap();
    common::eventually("a server runs", || servers(&folder) == 1);
    comparison.kill().unwrap();
    comparison.wait().unwrap();
    common::eventually("it has ended", || servers(&folder) == 0);
}
