//! The command line: [`Args`] as typed, [`Command`] as meant.
//!
//! A flag on the command line wins over its environment variable `SERVER_<FLAG>`, and that over the default.
//! The bare `PORT`, which some platforms set, comes last of all, above only the default.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::compare;
use crate::content::Symlinks;
use crate::content::site::Rules;
use crate::doctor::{self, seccomp};
use crate::engines::{self, ENGINES, Engine};
use crate::healthcheck;
use crate::http::connection::Limits;
use crate::observe::access_log::Format;

/// Arguments as typed.
#[derive(Clone, Debug, Parser)]
#[command(name = "ringserve", version, about, max_term_width = 100, after_help = after_help())]
// A folder may be called as a command is: behind any flag, and as `./compare`, it is a folder.
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Sub>,

    #[command(flatten)]
    place: Place,

    #[command(flatten)]
    address: Address,

    /// The I/O model: `auto`, or one of those below
    #[arg(short, long, value_name = "NAME", env = "SERVER_ENGINE", default_value = "auto",
          value_parser = engine)]
    engine: EngineChoice,

    /// Threads that serve [default: one for each CPU that this process may use]
    #[arg(short, long, value_name = "N", env = "SERVER_WORKERS",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: Option<u16>,

    /// Time a request head may take from its first byte to its end
    #[arg(long, value_name = "TIME", env = "SERVER_HEADER_TIMEOUT", default_value = "10s",
          value_parser = positive_duration)]
    header_timeout: Duration,

    /// Time a connection may lie idle between requests
    #[arg(long, value_name = "TIME", env = "SERVER_IDLE_TIMEOUT", default_value = "60s",
          value_parser = positive_duration)]
    idle_timeout: Duration,

    /// Time a client may take nothing of its answer
    #[arg(long, value_name = "TIME", env = "SERVER_SEND_TIMEOUT", default_value = "30s",
          value_parser = positive_duration)]
    send_timeout: Duration,

    /// Time that answers under way may take when the server ends; a second signal ends it at once
    #[arg(long, value_name = "TIME", env = "SERVER_GRACE_PERIOD", default_value = "30s",
          value_parser = duration)]
    grace_period: Duration,

    /// Time between the signal to end and the end of accepting
    #[arg(long, value_name = "TIME", env = "SERVER_SHUTDOWN_DELAY", default_value = "0s",
          value_parser = duration)]
    shutdown_delay: Duration,

    /// Whether a connection may carry more than one request
    #[arg(long, value_name = "SWITCH", env = "SERVER_KEEP_ALIVE", default_value = "on")]
    keep_alive: Switch,

    /// Bytes a request head may have
    #[arg(long, value_name = "SIZE", env = "SERVER_HEAD_SIZE", default_value = "16KiB",
          value_parser = head_size)]
    head_size: usize,

    /// Connections held at once; their descriptors come before those of files [default: what the limit on
    /// descriptors allows]
    #[arg(long, value_name = "N", env = "SERVER_MAX_CONNECTIONS",
          value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: Option<u32>,

    /// Memory for files, over all workers; of what there is no room for, descriptors are kept [default:
    /// 256MiB, or a quarter of the control group's limit, less below 32 MiB]
    #[arg(long, value_name = "SIZE", env = "SERVER_CACHE_SIZE", value_parser = size)]
    cache_size: Option<u64>,

    /// A file up to this size is held in memory, a larger one as an open descriptor; one of 128 KiB and more
    /// that comes from the disk not before it is asked for again
    #[arg(long, value_name = "SIZE", env = "SERVER_CACHE_FILE_MAX", default_value = "1MiB",
          value_parser = size)]
    cache_file_max: u64,

    /// Time a file is trusted to be unchanged before it is looked at again
    #[arg(long, value_name = "TIME", env = "SERVER_FRESH", default_value = "1s", value_parser = duration)]
    fresh: Duration,

    /// Symbolic links to follow
    #[arg(long, value_name = "POLICY", env = "SERVER_SYMLINKS", default_value = "inside")]
    symlinks: Symlinks,

    /// Serve names that start with a dot, too; without it only `/.well-known`
    #[arg(long, env = "SERVER_INCLUDE_HIDDEN")]
    include_hidden: bool,

    /// Names tried for a directory, in order, separated by commas
    #[arg(long, value_name = "NAMES", env = "SERVER_INDEX_FILES", default_value = "index.html",
          value_delimiter = ',', value_parser = index_file)]
    index_files: Vec<String>,

    /// The value of Cache-Control on files, such as `max-age=3600`
    #[arg(long, value_name = "VALUE", env = "SERVER_CACHE_CONTROL", value_parser = field_value)]
    cache_control: Option<String>,

    /// Log each request to standard output
    #[arg(long, value_name = "FORMAT", env = "SERVER_ACCESS_LOG", default_value = "off")]
    access_log: Format,

    /// What the server says about itself on standard error
    #[arg(long, value_name = "LEVEL", env = "SERVER_LOG_LEVEL", default_value = "info")]
    log_level: Level,

    /// An address of its own for /healthz, /readyz and /metrics, as in 127.0.0.1:9090
    #[arg(long, value_name = "ADDR:PORT", env = "SERVER_ADMIN")]
    admin: Option<String>,

    /// An existing file to count into, so that whoever measures the server can read along
    #[arg(long, value_name = "FILE", env = "SERVER_COUNTERS_FILE", hide = true)]
    counters_file: Option<PathBuf>,

    /// The process that has started this one, so that both end together
    #[arg(long, value_name = "PID", env = "SERVER_END_WITH_PARENT", hide = true,
          value_parser = clap::value_parser!(i32).range(1..))]
    end_with_parent: Option<i32>,
}

/// Where the files are, as typed.
#[derive(Clone, Debug, clap::Args)]
struct Place {
    /// The folder to serve [default: static]
    #[arg(value_name = "ROOT")]
    positional_root: Option<PathBuf>,

    /// The folder to serve, as a flag or from the environment
    #[arg(long, value_name = "ROOT", env = "SERVER_ROOT")]
    root: Option<PathBuf>,
}

/// Where the clients come to, as typed.
#[derive(Clone, Debug, clap::Args)]
struct Address {
    /// The port; 0 takes any free one and prints it. The environment variable PORT comes after `SERVER_PORT`
    #[arg(short, long, value_name = "N", env = "SERVER_PORT", default_value_t = 8080)]
    port: u16,

    /// The address to listen on; `::` is every address, IPv4 ones too
    #[arg(short = 'a', long, value_name = "ADDR", env = "SERVER_HOST", default_value = "::")]
    host: String,
}

/// What else the program can do.
#[derive(Clone, Debug, Subcommand)]
enum Sub {
    Compare(Box<compare::options::Args>),

    /// Say what this kernel and container allow, why not, and how to allow it
    ///
    /// Exit codes: 0 where the best engine runs, 3 where only the fallback does, 1 where nothing can serve.
    Doctor {
        #[command(flatten)]
        place: Place,

        #[command(flatten)]
        address: Address,

        /// Report as JSON
        #[arg(long)]
        json: bool,

        /// Print the seccomp profile that allows io_uring beside the default, and check nothing
        #[arg(long, value_name = "READER")]
        seccomp_profile: Option<seccomp::Reader>,
    },

    /// Ask the server for a page; exit 0 if it answers with anything below 500, else 1
    Healthcheck {
        #[command(flatten)]
        address: Address,

        /// What to ask for
        #[arg(long, value_name = "PATH", default_value = "/", value_parser = request_path)]
        path: String,

        /// Time for all of it
        #[arg(long, value_name = "TIME", default_value = "2s", value_parser = positive_duration)]
        timeout: Duration,
    },
}

/// What the program is asked to do.
#[derive(Clone, Debug)]
pub enum Command {
    /// To serve.
    Serve(Box<Options>),
    /// To compare engines.
    Compare(Box<compare::Options>),
    /// To examine the system.
    Doctor(doctor::Options),
    /// To print a seccomp profile.
    SeccompProfile(seccomp::Reader),
    /// To ask a server for a sign of life.
    Healthcheck(healthcheck::Options),
}

/// Options for serving, as meant.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder.
    pub root: PathBuf,
    /// The port; 0 for any.
    pub port: u16,
    /// The address or name to listen on.
    pub host: String,
    /// The I/O model.
    pub engine: EngineChoice,
    /// Threads; `None` for one per CPU.
    pub workers: Option<usize>,
    /// Limits of each connection.
    pub limits: Limits,
    /// From the end of accepting to cutting what is left.
    pub grace_period: Duration,
    /// From the signal to the end of accepting.
    pub shutdown_delay: Duration,
    /// Connections in all; `None` for what descriptors allow.
    pub connections_max: Option<usize>,
    /// Memory for files in bytes; `None` for the default.
    pub cache_size: Option<u64>,
    /// How long an entry of the cache is fresh.
    pub fresh_for: Duration,
    /// What is served and how. What depends on memory and descriptors, and `shares_looks`, is set at launch.
    pub rules: Rules,
    /// The access log's format.
    pub access_log: Format,
    /// What is logged.
    pub log_level: Level,
    /// Where `/healthz`, `/readyz` and `/metrics` are served, if at all.
    pub admin: Option<String>,
    /// Where to count into; `None` for memory of this process.
    pub counters_file: Option<PathBuf>,
    /// The parent process, if its end is a signal to end.
    pub end_with_parent: Option<i32>,
}

/// The engine that was asked for.
#[derive(Clone, Copy, Debug)]
pub enum EngineChoice {
    /// The best that the kernel permits.
    Auto,
    /// That one and no other.
    Named(&'static Engine),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// Nothing.
    Off,
    /// What has failed.
    Error,
    /// And what is about to.
    Warn,
    /// And what an operator wants to know.
    Info,
    /// And what a developer does.
    Debug,
}

impl From<Level> for tracing::level_filters::LevelFilter {
    fn from(level: Level) -> Self {
        match level {
            Level::Off => Self::OFF,
            Level::Error => Self::ERROR,
            Level::Warn => Self::WARN,
            Level::Info => Self::INFO,
            Level::Debug => Self::DEBUG,
        }
    }
}

/// Reads the arguments of this process and its environment.
///
/// # Errors
/// What is wrong with them, ready to be printed; also `--help` and `--version`, which are no mistakes.
pub fn parse() -> Result<Command, clap::Error> {
    parse_from(std::env::args_os(), std::env::var_os("PORT"))
}

fn parse_from(
    args: impl IntoIterator<Item = OsString>,
    port: Option<OsString>,
) -> Result<Command, clap::Error> {
    let matches = Args::command().try_get_matches_from(args).map_err(naming_variable)?;
    let mut args = Args::from_arg_matches(&matches)?;
    let port = port.filter(|port| !port.is_empty());
    let inner = matches.subcommand().map_or(&matches, |(_, inner)| inner);
    match args.command.take() {
        None => Ok(Command::Serve(Box::new(args.into_options(&matches, port)?))),
        Some(Sub::Compare(args)) => Ok(Command::Compare(Box::new(args.into_options()))),
        Some(Sub::Doctor { seccomp_profile: Some(reader), .. }) => Ok(Command::SeccompProfile(reader)),
        Some(Sub::Doctor { place, mut address, json, seccomp_profile: None }) => {
            address.heed(port, inner)?;
            let root = place.root(inner)?;
            let workers = args.workers.map(usize::from);
            let Address { host, port } = address;
            Ok(Command::Doctor(doctor::Options { root, host, port, workers, json }))
        }
        Some(Sub::Healthcheck { mut address, path, timeout }) => {
            address.heed(port, inner)?;
            let Address { host, port } = address;
            Ok(Command::Healthcheck(healthcheck::Options { host, port, path, timeout }))
        }
    }
}

impl Place {
    fn root(self, matches: &ArgMatches) -> Result<PathBuf, clap::Error> {
        let root_is_typed = matches.value_source("root") == Some(ValueSource::CommandLine);
        match (self.positional_root, self.root) {
            (Some(_), Some(_)) if root_is_typed => {
                let message = "the root is given twice, as ROOT and as --root; leave one of them out";
                Err(usage(ErrorKind::ArgumentConflict, message))
            }
            (Some(root), _) | (None, Some(root)) => Ok(root),
            (None, None) => Ok(PathBuf::from("static")),
        }
    }
}

impl Address {
    /// Takes the bare `PORT` where no other port is given.
    fn heed(&mut self, port: Option<OsString>, matches: &ArgMatches) -> Result<(), clap::Error> {
        if let Some(port) = port
            && matches.value_source("port") == Some(ValueSource::DefaultValue)
        {
            self.port = port.to_str().and_then(|port| port.parse().ok()).ok_or_else(|| {
                let message = format!(
                    "invalid value '{port}' in the environment variable PORT: not a port number",
                    port = port.display()
                );
                usage(ErrorKind::ValueValidation, &message)
            })?;
        }
        Ok(())
    }
}

impl Args {
    fn into_options(mut self, matches: &ArgMatches, port: Option<OsString>) -> Result<Options, clap::Error> {
        self.address.heed(port, matches)?;
        let root = self.place.root(matches)?;
        Ok(Options {
            root,
            port: self.address.port,
            host: self.address.host,
            engine: self.engine,
            workers: self.workers.map(usize::from),
            limits: Limits {
                header_timeout: self.header_timeout,
                idle_timeout: self.idle_timeout,
                send_timeout: self.send_timeout,
                head_max: self.head_size,
                keep_alive: self.keep_alive == Switch::On,
                ..Limits::default()
            },
            grace_period: self.grace_period,
            shutdown_delay: self.shutdown_delay,
            connections_max: self.max_connections.map(|n| n as usize),
            cache_size: self.cache_size,
            fresh_for: self.fresh,
            rules: Rules {
                symlinks: self.symlinks,
                include_hidden: self.include_hidden,
                index_files: self.index_files.into_iter().filter(|name| !name.is_empty()).collect(),
                cache_control: self.cache_control,
                cache_file_max: self.cache_file_max,
                ..Rules::default()
            },
            access_log: self.access_log,
            log_level: self.log_level,
            admin: self.admin.filter(|address| !address.is_empty()),
            counters_file: self.counters_file,
            end_with_parent: self.end_with_parent,
        })
    }
}

/// The same error, which says so where the wrong value is that of a flag's environment variable.
fn naming_variable(mut error: clap::Error) -> clap::Error {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    let (arg, value) = (text(ContextKind::InvalidArg), text(ContextKind::InvalidValue));
    if let Some(flag) = arg.split(' ').next().and_then(|flag| flag.strip_prefix("--")) {
        let variable = format!("SERVER_{}", flag.replace('-', "_").to_uppercase());
        if std::env::var(&variable).is_ok_and(|set| set == value || set.split(',').any(|one| one == value)) {
            let arg = format!("{arg}, which {variable} sets");
            error.insert(ContextKind::InvalidArg, ContextValue::String(arg));
        }
    }
    error
}

fn usage(kind: ErrorKind, message: &str) -> clap::Error {
    Args::command().error(kind, message)
}

fn after_help() -> String {
    let mut text = String::from(
        "Every flag has an environment variable SERVER_<FLAG>, as in SERVER_IDLE_TIMEOUT=5s.\n\
         TIME is a number with ms, s, m or h behind it, or bare seconds; SIZE one with B, KiB, MiB or GiB, \
         or bare bytes.\n\nEngines:\n  auto         ",
    );
    let (best, fallback) = engines::AUTO;
    text += &format!("{} where the kernel permits it, {} elsewhere\n", best.name, fallback.name);
    for engine in ENGINES {
        text += &format!("  {:<13}{}\n", engine.name, engine.summary);
    }
    text
}

fn engine(name: &str) -> Result<EngineChoice, String> {
    if name == "auto" {
        return Ok(EngineChoice::Auto);
    }
    engines::by_name(name).map(EngineChoice::Named).ok_or_else(|| {
        let names: Vec<_> = ENGINES.iter().map(|engine| engine.name).collect();
        format!("no such engine; there are auto, {}", names.join(", "))
    })
}

/// `5s`, `500ms`, `2m`, `1h`, or bare seconds, with decimals if need be.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const WRONG: &str =
        "a time is a number with ms, s, m or h behind it, or bare seconds, such as 500ms or 5s";
    let (number, seconds) =
        split_unit(text, &[("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("", 1.0)]);
    let number: f64 = number.parse().map_err(|_| WRONG)?;
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(WRONG.into());
    }
    let time = Duration::try_from_secs_f64(number * seconds).map_err(|_| WRONG)?;
    if time > Duration::from_secs(10 * 366 * 24 * 3600) {
        return Err("that is more than ten years".into());
    }
    Ok(time)
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it must be more than 0, or no client could be served".into()),
        time => Ok(time),
    }
}

/// `256MiB`, `64K`, `1GB` (binary all of them), or bare bytes.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    const WRONG: &str =
        "a size is a whole number with B, KiB, MiB or GiB behind it, or bare bytes, such as 256MiB";
    let upper = text.to_ascii_uppercase();
    let (number, factor) = split_unit(
        &upper,
        &[
            ("KIB", 1 << 10),
            ("MIB", 1 << 20),
            ("GIB", 1 << 30),
            ("KB", 1 << 10),
            ("MB", 1 << 20),
            ("GB", 1 << 30),
            ("K", 1 << 10),
            ("M", 1 << 20),
            ("G", 1u64 << 30),
            ("B", 1),
            ("", 1),
        ],
    );
    if !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(WRONG.into());
    }
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(|| WRONG.into())
}

fn head_size(text: &str) -> Result<usize, String> {
    match size(text)? {
        bytes @ 1024..=1_048_576 => Ok(bytes as usize),
        _ => Err("it must lie between 1KiB and 1MiB".into()),
    }
}

fn split_unit<'a, T: Copy>(text: &'a str, units: &[(&str, T)]) -> (&'a str, T) {
    let (unit, factor) = units.iter().find(|(unit, _)| text.ends_with(unit)).expect("the last unit is empty");
    (text[..text.len() - unit.len()].trim_end(), *factor)
}

fn index_file(name: &str) -> Result<String, String> {
    if name.contains(['/', '\0']) || matches!(name, "." | "..") {
        return Err("an index file is a plain name, without a slash".into());
    }
    Ok(name.to_owned())
}

fn request_path(path: &str) -> Result<String, String> {
    if !path.starts_with('/') || !path.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("a path begins with a slash and has printable ASCII characters only".into());
    }
    Ok(path.to_owned())
}

fn field_value(value: &str) -> Result<String, String> {
    let value = value.trim();
    if value.is_empty() || value.len() > 1024 || !value.bytes().all(|b| matches!(b, b' '..=b'~')) {
        return Err("a field value is 1 to 1024 printable ASCII characters".into());
    }
    Ok(value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(args: &[&str], port: Option<&str>) -> Result<Command, String> {
        let args = ["ringserve"].iter().chain(args).map(OsString::from);
        parse_from(args, port.map(OsString::from)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_folder_may_be_called_as_a_command_is() {
        assert!(matches!(command(&["compare"], None), Ok(Command::Compare(_))));
        for args in [&["./compare"][..], &["-p", "80", "compare"], &["--", "compare"], &["--root", "compare"]]
        {
            assert!(parsed(args, None).unwrap().root.ends_with("compare"), "{args:?}");
        }
        assert_eq!(parsed(&["help"], None).unwrap().root, PathBuf::from("help"));
    }

    fn parsed(args: &[&str], port: Option<&str>) -> Result<Options, String> {
        match command(args, port)? {
            Command::Serve(options) => Ok(*options),
            other => panic!("{args:?} is read as {other:?}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_flag_has_its_environment_variable() {
        for arg in Args::command().get_arguments() {
            let Some(flag) = arg.get_long() else { continue };
            if matches!(flag, "help" | "version") {
                continue;
            }
            let wanted = format!("SERVER_{}", flag.to_ascii_uppercase().replace('-', "_"));
            assert_eq!(arg.get_env().and_then(|name| name.to_str()), Some(&*wanted), "--{flag}");
        }
    }

    #[test]
    fn times_and_sizes_are_read() {
        for (text, wanted) in [
            ("5s", Some(5000)),
            ("500ms", Some(500)),
            ("1.5", Some(1500)),
            ("2m", Some(120_000)),
            ("1h", Some(3_600_000)),
            ("0", Some(0)),
            ("", None),
            ("s", None),
            ("-1s", None),
            ("5 parsecs", None),
            ("nan", None),
            ("inf", None),
            ("1e300s", None),
        ] {
            assert_eq!(duration(text).ok(), wanted.map(Duration::from_millis), "{text}");
        }
        for (text, wanted) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("1KiB", Some(1024)),
            ("64k", Some(65536)),
            ("256 MiB", Some(256 << 20)),
            ("1GB", Some(1 << 30)),
            ("", None),
            ("MiB", None),
            ("-1", None),
            ("1.5M", None),
            ("99999999999G", None),
        ] {
            assert_eq!(size(text).ok(), wanted, "{text}");
        }
    }

    #[test]
    fn the_root_may_be_given_once() {
        assert_eq!(parsed(&[], None).unwrap().root, PathBuf::from("static"));
        assert_eq!(parsed(&["x"], None).unwrap().root, PathBuf::from("x"));
        assert_eq!(parsed(&["--root", "y"], None).unwrap().root, PathBuf::from("y"));
        assert!(parsed(&["x", "--root", "y"], None).unwrap_err().contains("given twice"));
    }

    #[test]
    fn the_bare_port_comes_above_the_default_only() {
        assert_eq!(parsed(&[], None).unwrap().port, 8080);
        assert_eq!(parsed(&[], Some("81")).unwrap().port, 81);
        assert_eq!(parsed(&["-p", "82"], Some("81")).unwrap().port, 82);
        assert!(parsed(&[], Some("http")).unwrap_err().contains("PORT"));
    }

    #[test]
    fn subcommands_read_root_and_address_as_the_server_does() {
        let doctor = |args: &[&str], port| match command(args, port) {
            Ok(Command::Doctor(options)) => options,
            other => panic!("{args:?} is read as {other:?}"),
        };
        assert_eq!(doctor(&["doctor"], None).root, PathBuf::from("static"));
        let options = doctor(&["doctor", "x", "-p", "82", "--json"], Some("81"));
        assert_eq!((options.root, options.port, options.json), (PathBuf::from("x"), 82, true));
        let Ok(Command::Healthcheck(options)) = command(&["healthcheck", "--path", "/a"], Some("81")) else {
            panic!("it is no healthcheck");
        };
        assert_eq!((options.port, &*options.host, &*options.path), (81, "::", "/a"));
        // A folder of that name is still to be had.
        assert_eq!(parsed(&["./doctor"], None).unwrap().root, PathBuf::from("./doctor"));
        assert!(command(&["healthcheck", "--path", "a b"], None).unwrap_err().contains("slash"));
        assert!(command(&["doctor", "x", "--root", "y"], None).unwrap_err().contains("given twice"));
    }

    #[test]
    fn wrong_values_name_the_flag_and_what_is_right() {
        for (args, part) in [
            (&["--engine", "warp"][..], "auto, "),
            (&["--port", "99999"], "--port"),
            (&["--workers", "0"], "--workers"),
            (&["--idle-timeout", "0"], "more than 0"),
            (&["--cache-size", "lots"], "256MiB"),
            (&["--cache-control", "a\nb"], "printable"),
            (&["--index-files", "a/b"], "plain name"),
            (&["--head-size", "10"], "1KiB"),
            (&["--nonsense"], "--nonsense"),
        ] {
            let error = parsed(args, None).unwrap_err();
            assert!(error.contains(part), "{args:?}: {error}");
        }
    }
}
