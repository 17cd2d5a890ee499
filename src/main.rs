//! The program: an exit code, and nothing else. 0 clean, 2 wrong usage, 1 everything else; `compare` also has
//! 130, where the user interrupts it, and `doctor` 3, where only the fallback can serve.

use std::io::Write;
use std::process::ExitCode;

use ringserve::cli::{self, Command, Options};
use ringserve::compare::{self, Ended};
use ringserve::doctor::{self, seccomp};
use ringserve::{healthcheck, launch, output};

fn main() -> ExitCode {
    let command = match cli::parse() {
        Ok(command) => command,
        Err(error) => {
            let code = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match command {
        Command::Serve(options) => serve(*options),
        Command::Compare(options) => match compare::run(*options) {
            Ok(Ended::Done) => ExitCode::SUCCESS,
            Ok(Ended::Interrupted) => ExitCode::from(130),
            Err(message) => fail(&message),
        },
        Command::Doctor(options) => {
            let report = doctor::examine(&options);
            print(&(if options.json { report.json() } else { report.to_string() } + "\n"), report.exit_code())
        }
        Command::SeccompProfile(reader) => print(&seccomp::profile(reader), ExitCode::SUCCESS),
        Command::Healthcheck(options) => match healthcheck::run(&options) {
            Ok(status) => {
                // The exit code is what matters.
                let _ = output::say(&format!("{status}\n"));
                ExitCode::SUCCESS
            }
            Err(message) => fail(&message),
        },
    }
}

fn serve(options: Options) -> ExitCode {
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
        Err(message) => fail(&message),
    }
}

fn fail(message: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "ringserve: {message}");
    ExitCode::FAILURE
}

/// Says what was asked for, and ends so; unless it cannot be said.
fn print(text: &str, code: ExitCode) -> ExitCode {
    output::say(text).map_or_else(|message| fail(&message), |()| code)
}
