//! `ringserve compare`: every engine under the same load on this machine, one after the other.
//!
//! The way of a figure is the order of the files:
//!
//! 1. [`options`]: what is wanted; [`schedule`]: which runs that makes, in which order,
//! 2. [`site`]: generated files; [`server`]: this same program as a child that serves them; [`url`]: a server
//!    of somebody else's,
//! 3. [`load`] and [`generator`]: the load; [`measure`]: what the processes have used meanwhile; [`tracer`]:
//!    the system calls that an engine does not see; [`runner`]: one run,
//! 4. [`samples`]: what was measured, saved after every run, together with its [`environment`],
//! 5. [`summary`]: medians, spread and doubts, grouped by the engines' families,
//! 6. [`table`], [`plots`], [`report`], [`against`]: what is shown, drawn from the samples and nothing else.
#![allow(clippy::cast_precision_loss, reason = "a count that a f64 cannot hold is no count of this room")]

mod against;
mod environment;
mod generator;
mod load;
mod measure;
pub mod options;
mod plots;
mod progress;
mod report;
mod response;
mod runner;
mod samples;
mod schedule;
mod server;
mod site;
mod summary;
mod table;
mod tracer;
mod url;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::output;

pub use self::options::Options;
use self::options::Source;
use self::samples::Samples;

/// What the shell is told where the user has interrupted a program.
const INTERRUPTED: i32 = 130;

/// How a comparison has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With all runs made.
    Done,
    /// By the user, with what was measured until then.
    Interrupted,
}

/// Measures, or reads what was measured, and shows it.
///
/// # Errors
/// One line for the user: what could not be done, or which runs have failed.
pub fn run(options: Options) -> Result<Ended, String> {
    let is_measured = matches!(options.source, Source::Measured(_));
    let old = options.against.as_deref().map(Samples::read).transpose()?;
    if let Some(folder) = &options.output {
        prepare(folder)?;
    }
    let (samples, folder) = match options.source {
        Source::Saved(from) => {
            let samples = Samples::read(&from)?;
            if let Some(folder) = &options.output {
                samples.save(folder)?;
            }
            let folder = options.output.or(from.is_dir().then_some(from));
            (samples, folder)
        }
        Source::Measured(plan) => {
            let interrupted = watch_interrupts()?;
            let samples = runner::measure(&plan, options.output.as_deref(), &interrupted)?;
            (samples, options.output)
        }
    };
    output::say(&table::text(&samples))?;
    if let Some(folder) = &folder
        && !samples.runs.is_empty()
    {
        draw(&samples, folder)?;
    }
    if let Some(old) = old {
        output::say(&against::text(&samples, &old)?)?;
    }
    if is_measured && samples.runs.len() < samples.planned {
        return Ok(Ended::Interrupted);
    }
    if samples.runs.is_empty() {
        return Err("nothing was measured; the reasons stand above".to_owned());
    }
    let failed = samples.runs.iter().filter(|run| run.errors > 0).count();
    if failed > 0 {
        return Err(format!("{failed} of {} runs had errors; the warnings say which", samples.runs.len()));
    }
    Ok(Ended::Done)
}

/// A flag that a signal raises. A second one ends the process at once.
fn watch_interrupts() -> Result<Arc<AtomicBool>, String> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, INTERRUPTED, flag.clone())
            .and_then(|_| signal_hook::flag::register(signal, flag.clone()))
            .map_err(|error| format!("cannot watch for signals: {error}"))?;
    }
    Ok(flag)
}

fn is_set(flag: &AtomicBool) -> bool {
    flag.load(Ordering::Relaxed)
}

/// Makes the folder, and finds out at once whether it can be written to.
fn prepare(folder: &Path) -> Result<(), String> {
    let trial = folder.join(".ringserve-compare");
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&trial, ""))
        .and_then(|()| fs::remove_file(&trial))
        .map_err(|error| format!("cannot write to {}: {error}; give a folder of yours", folder.display()))
}

/// Writes what is drawn from the samples.
fn draw(samples: &Samples, folder: &Path) -> Result<(), String> {
    let files: [(PathBuf, String); 3] = [
        (folder.join("samples.csv"), samples.csv()),
        (folder.join("table.md"), table::markdown(samples)),
        (folder.join("report.html"), report::page(samples)),
    ];
    for (path, text) in files {
        fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    output::say(&format!("Drawn in {}: samples.csv, table.md, report.html\n", folder.display()))
}
