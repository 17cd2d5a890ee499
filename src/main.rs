//! The program: an exit code, and nothing else. 0 clean, 2 wrong usage, 1 everything else.

use std::io::Write;
use std::process::ExitCode;

use ringserve::{cli, launch};

fn main() -> ExitCode {
    let options = match cli::parse() {
        Ok(options) => options,
        Err(error) => {
            let code = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    tracing_subscriber::fmt()
        .with_max_level(tracing::level_filters::LevelFilter::from(options.log_level))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        // It would panic where standard error cannot be written.
        .log_internal_errors(false)
        .init();
    match launch::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "ringserve: {message}");
            ExitCode::FAILURE
        }
    }
}
