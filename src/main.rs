//! The program: an exit code, and nothing else. 0 clean, 2 wrong usage, 130 interrupted, 1 everything else.

use std::io::Write;
use std::process::ExitCode;

use ringserve::cli::{self, Options, Task};
use ringserve::compare::{self, Ended};
use ringserve::launch;

fn main() -> ExitCode {
    let task = match cli::parse() {
        Ok(task) => task,
        Err(error) => {
            let code = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let done = match task {
        Task::Serve(options) => serve(*options).map(|()| ExitCode::SUCCESS),
        Task::Compare(options) => compare::run(*options).map(|ended| match ended {
            Ended::Done => ExitCode::SUCCESS,
            Ended::Interrupted => ExitCode::from(130),
        }),
    };
    done.unwrap_or_else(|message| {
        let _ = writeln!(std::io::stderr(), "ringserve: {message}");
        ExitCode::FAILURE
    })
}

fn serve(options: Options) -> Result<(), String> {
    tracing_subscriber::fmt()
        .with_max_level(tracing::level_filters::LevelFilter::from(options.log_level))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        // It would panic where standard error cannot be written.
        .log_internal_errors(false)
        .init();
    launch::run(options)
}
