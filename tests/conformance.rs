//! The conformance battery, a program of its own, against every engine. `RINGSERVE_CONFORMANCE` names its
//! `run.py`.

use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use ringserve::engines::ENGINES;

use crate::common::{Site, on_every_engine};

mod common;

/// Times short enough for the battery to wait for.
const LIMITS: &str =
    "--host 127.0.0.1 --header-timeout 5s --idle-timeout 5s --send-timeout 5s --grace-period 10s";
/// The parts that ask nothing of more than one client at a time.
const FOR_ONE_CLIENT: [&str; 8] = ["rl-", "hd-", "fr-", "cd-", "rg-", "rp-", "ae-", "pa-"];
/// Engines that it asks at the same time.
const LANES: usize = 4;
/// Lines of its report that are worth showing.
const TAIL: usize = 40;

#[test]
fn the_battery_finds_no_must_that_fails() {
    let Some(battery) = std::env::var_os("RINGSERVE_CONFORMANCE") else {
        println!("skipped: RINGSERVE_CONFORMANCE is not set");
        return;
    };
    // A few engines at a time: the battery mostly waits, but measures times, too.
    let queues = [const { Mutex::new(()) }; LANES];
    on_every_engine(|engine| {
        let place = ENGINES.iter().position(|other| other.name == engine.name).unwrap_or(0);
        let _turn = queues[place % LANES].lock().unwrap_or_else(PoisonError::into_inner);
        let server = env!("CARGO_BIN_EXE_ringserve");
        let command = format!("{server} --root {{root}} --port {{port}} --engine {} {LIMITS}", engine.name);
        let mut run = Command::new("python3");
        run.arg(&battery).args(["--quiet", "--server-cmd", &command]);
        if engine.capabilities.clients_max == Some(1) {
            run.args(FOR_ONE_CLIENT.iter().flat_map(|part| ["--only", part]));
        }
        // What it leaves behind goes with the folder.
        let folder = Site::new();
        run.env("TMPDIR", folder.outside()).stdin(Stdio::null());
        let output = run.output().expect("python3 runs");
        let report = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let lines: Vec<_> = report.lines().collect();
        println!("--- {}\n{}", engine.name, lines[lines.len().saturating_sub(TAIL)..].join("\n"));
        assert!(output.status.success(), "the battery has failed on {}: {}", engine.name, output.status);
    });
}
