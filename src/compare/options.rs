//! The command line of `ringserve compare`: [`Args`] as typed, [`Options`] as meant.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, ValueEnum};

use crate::cli;
use crate::engines::{self, ENGINES, Engine};

use super::schedule::{Dimensions, quick_cases};
use super::url::Url;

/// The longest load of one run.
const DURATION_MAX: Duration = Duration::from_secs(3600);
/// The largest file that is generated.
const SIZE_MAX: u64 = 1 << 30;
/// The dimensions that `--quick` chooses by itself.
const DIMENSIONS: [&str; 9] =
    ["connections", "sizes", "keep_alive", "pipeline", "idle", "cold", "duration", "rounds", "rate"];

/// Load every engine in turn on this machine, and show what it did and what that cost
#[derive(Clone, Debug, clap::Args)]
#[command(group = ArgGroup::new("dimension").args(DIMENSIONS).multiple(true).conflicts_with("quick"))]
pub struct Args {
    /// Engines to compare: `all`, `none`, or names separated by commas
    #[arg(long, value_name = "NAMES", default_value = "all", value_delimiter = ',', value_parser = engine)]
    engines: Vec<Choice>,

    /// Clients that ask at once, separated by commas
    #[arg(long, value_name = "N,...", default_value = "1,64,512", value_delimiter = ',',
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    connections: Vec<u32>,

    /// Sizes of files, separated by commas
    #[arg(long, value_name = "SIZE,...", default_value = "1KiB,16KiB,1MiB,64MiB", value_delimiter = ',',
          value_parser = size)]
    sizes: Vec<u64>,

    /// Whether a connection carries more than one request; `on,off` compares both
    #[arg(long, value_name = "SWITCH,...", default_value = "on,off", value_delimiter = ',')]
    keep_alive: Vec<Switch>,

    /// Requests on their way at once on each connection, separated by commas
    #[arg(long, value_name = "N,...", default_value = "1", value_delimiter = ',',
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pipeline: Vec<u32>,

    /// Clients connected beside them that ask nothing, separated by commas
    #[arg(long, value_name = "N,...", default_value = "0", value_delimiter = ',',
          value_parser = clap::value_parser!(u32).range(0..=100_000))]
    idle: Vec<u32>,

    /// Also load files of 2 MiB that are not in the page cache, with a client beside them who asks for one
    /// that is
    #[arg(long)]
    cold: bool,

    /// Time that each run loads its server [default: 2s]
    #[arg(long, value_name = "TIME", value_parser = run_time)]
    duration: Option<Duration>,

    /// How often everything is run [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,

    /// Requests per second, sent when they are due whether answers come or not [default: as many as are
    /// answered]
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,

    /// A choice of cases that takes less than a minute
    #[arg(long)]
    quick: bool,

    /// Another server to load beside the engines, by a file of it; may be given several times
    #[arg(long = "url", value_name = "URL", value_parser = url)]
    urls: Vec<Url>,

    /// Threads of each engine that can have several
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: u16,

    /// A folder for samples, tables and the report
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,

    /// Measure nothing; draw what `--output` has saved there
    #[arg(long, value_name = "DIR", conflicts_with_all = ["quick", "urls", "dimension"])]
    from: Option<PathBuf>,

    /// Samples of an earlier comparison, to print the ratios to them
    #[arg(long, value_name = "JSON")]
    against: Option<PathBuf>,
}

/// Options as meant.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to draw.
    pub source: Source,
    /// A folder for samples, tables and the report.
    pub output: Option<PathBuf>,
    /// Earlier samples to compare with.
    pub against: Option<PathBuf>,
}

/// Where samples come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// An earlier comparison.
    Saved(PathBuf),
    /// A new one.
    Measured(Box<Plan>),
}

/// What is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The engines.
    pub engines: Vec<&'static Engine>,
    /// Other servers.
    pub urls: Vec<Url>,
    /// The values of each dimension; `None` for a quick comparison.
    pub dimensions: Option<Dimensions>,
    /// The time of each run's load, where the dimensions are given.
    pub duration: Duration,
    /// How often everything is run.
    pub rounds: usize,
    /// Threads of each engine that can have several.
    pub workers: usize,
}

#[derive(Clone, Copy, Debug)]
enum Choice {
    All,
    None,
    One(&'static Engine),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

impl Args {
    /// What they mean.
    pub fn into_options(self) -> Options {
        if let Some(from) = self.from {
            return Options { source: Source::Saved(from), output: self.output, against: self.against };
        }
        let chosen = |engine: &&Engine| {
            self.engines.iter().any(|choice| match choice {
                Choice::All => true,
                Choice::None => false,
                Choice::One(one) => one.name == engine.name,
            })
        };
        let dimensions = Dimensions {
            connections: counts(&self.connections),
            sizes: each_once(self.sizes),
            keep_alive: each_once(self.keep_alive.iter().map(|&switch| switch == Switch::On)),
            pipeline: counts(&self.pipeline),
            idle: counts(&self.idle),
            cold: self.cold,
            rate: self.rate,
        };
        let rounds = if self.quick { 1 } else { self.rounds.unwrap_or(3) as usize };
        let plan = Plan {
            engines: ENGINES.iter().filter(chosen).collect(),
            urls: self.urls,
            dimensions: (!self.quick).then_some(dimensions),
            duration: self.duration.unwrap_or(Duration::from_secs(2)),
            rounds,
            workers: usize::from(self.workers),
        };
        Options { source: Source::Measured(Box::new(plan)), output: self.output, against: self.against }
    }
}

impl Plan {
    /// Every case, for the engines.
    pub fn cases(&self) -> Vec<super::schedule::Case> {
        self.dimensions.as_ref().map_or_else(quick_cases, Dimensions::cases)
    }
}

fn counts(values: &[u32]) -> Vec<usize> {
    each_once(values.iter().map(|&value| value as usize))
}

fn each_once<T: PartialEq>(values: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut once = Vec::new();
    for value in values {
        if !once.contains(&value) {
            once.push(value);
        }
    }
    once
}

fn engine(name: &str) -> Result<Choice, String> {
    match name {
        "all" => return Ok(Choice::All),
        "none" => return Ok(Choice::None),
        _ => {}
    }
    engines::by_name(name).map(Choice::One).ok_or_else(|| {
        let names: Vec<_> = ENGINES.iter().map(|engine| engine.name).collect();
        format!("no such engine; there are all, none, {}", names.join(", "))
    })
}

fn size(text: &str) -> Result<u64, String> {
    match cli::size(text)? {
        size @ ..=SIZE_MAX => Ok(size),
        _ => Err("files have 1GiB at the most".into()),
    }
}

fn run_time(text: &str) -> Result<Duration, String> {
    match cli::duration(text)? {
        Duration::ZERO => Err("it must be more than 0".into()),
        time if time > DURATION_MAX => Err("that is more than an hour for each run".into()),
        time => Ok(time),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.1..=1e7).contains(&rate) => Ok(rate),
        _ => Err("a rate is a number of requests per second, from 0.1 to 10000000".into()),
    }
}

fn url(text: &str) -> Result<Url, String> {
    Url::parse(text)
}
