//! What was measured, as it is saved: the raw samples of every run, and where they come from.
//!
//! Tables, plots and pages are drawn from this and nothing else, so that they can be drawn anew at any time.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::engines::Family;

use super::environment::Environment;
use super::schedule::Case;

/// The version of this format.
const FORMAT: u32 = 1;
/// The file in a folder of results.
pub const FILE: &str = "samples.json";
/// Shares of requests whose latency is kept, in per cent.
const CURVE: [f64; 20] = [
    0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 75.0, 80.0, 85.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.9,
    99.95, 99.99, 100.0,
];

/// A comparison.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Samples {
    /// The version of this format.
    pub format: u32,
    /// Where it was made.
    pub environment: Environment,
    /// Engines that could not run.
    pub refusals: Vec<Refused>,
    /// Runs that were planned.
    pub planned: usize,
    /// Runs that were made, in their order.
    pub runs: Vec<Run>,
}

/// An engine that could not run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Its name.
    pub engine: String,
    /// Why not.
    pub reason: String,
}

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// The engine, or the URL.
    pub target: String,
    /// Its family.
    pub family: Family,
    /// What was asked.
    pub case: Case,
    /// Counted from 0.
    pub round: usize,
    /// Clients that asked.
    pub active: usize,
    /// Clients that were connected, had been served once, and asked nothing.
    pub idle: usize,
    /// Clients the engine has no room for. They were not counted as errors, and waited.
    pub waiting: usize,
    /// Length of the load.
    pub seconds: f64,
    /// Good responses.
    pub requests: u64,
    /// Bytes received.
    pub bytes: u64,
    /// Requests that have failed.
    pub errors: u64,
    /// What was wrong with the first of them.
    pub first_error: Option<String>,
    /// Requests that were due and never sent.
    pub behind: u64,
    /// Whether cold files were cold indeed.
    pub was_cold: Option<bool>,
    /// Latencies.
    pub latency: Latency,
    /// Latencies of the hot client beside the cold ones.
    pub hot: Option<Latency>,
    /// What the server has used; `None` where it cannot be seen.
    pub cost: Option<Cost>,
    /// Counters of the server that have moved, by name.
    pub counters: BTreeMap<String, u64>,
    /// Its system calls; `None` where nobody counts them.
    #[serde(default)]
    pub calls: Option<Calls>,
    /// CPU seconds of the load generator.
    pub generator_cpu: f64,
}

/// System calls of a server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calls {
    /// For each request.
    pub per_request: f64,
    /// Who has counted.
    pub source: CallSource,
    /// Why it was not strace, where that was wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
}

impl Calls {
    /// So many, counted by these.
    pub fn new(per_request: f64, source: CallSource) -> Calls {
        Calls { per_request, source, refusal: None }
    }
}

/// Who has counted system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum CallSource {
    /// The engine, which sees all of its own.
    #[serde(rename = "counted")]
    Engine,
    /// strace(1), in a short load after the measured one.
    #[serde(rename = "strace")]
    Strace,
    /// The engine, which sees only those that it makes itself.
    #[serde(rename = "own calls only: runtime not counted")]
    EngineInPart,
}

impl CallSource {
    /// In samples and tables.
    pub fn name(self) -> &'static str {
        match self {
            CallSource::Engine => "counted",
            CallSource::Strace => "strace",
            CallSource::EngineInPart => "own calls only: runtime not counted",
        }
    }
}

/// What a server has used during a run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Cost {
    /// CPU seconds outside the kernel.
    pub user: f64,
    /// CPU seconds within it.
    pub system: f64,
    /// Context switches it did not want.
    pub involuntary: u64,
    /// Bytes of memory at the end of the load.
    pub memory: Option<u64>,
    /// CPU seconds per second with all clients connected and none asking.
    pub idle: f64,
    /// Cores it may use; `None` where that is not known.
    pub cores: Option<usize>,
}

/// Latencies of a run, in microseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Latency {
    /// The mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// Nine of ten were as fast or faster; and so on.
    pub p90: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1000.
    pub p999: f64,
    /// The slowest.
    pub max: f64,
    /// Per cent of requests, and the latency they did not exceed.
    pub curve: Vec<(f64, f64)>,
}

impl From<&Histogram<u64>> for Latency {
    fn from(histogram: &Histogram<u64>) -> Latency {
        let at = |percent| histogram.value_at_percentile(percent) as f64 / 1000.0;
        Latency {
            mean: histogram.mean() / 1000.0,
            p50: at(50.0),
            p90: at(90.0),
            p99: at(99.0),
            p999: at(99.9),
            max: histogram.max() as f64 / 1000.0,
            curve: CURVE.map(|percent| (percent, at(percent))).to_vec(),
        }
    }
}

impl Samples {
    /// With no run yet.
    pub fn new(environment: Environment, planned: usize) -> Samples {
        Samples { format: FORMAT, environment, refusals: Vec::new(), planned, runs: Vec::new() }
    }

    /// Reads them from a file, or from the folder that holds it.
    ///
    /// # Errors
    /// Why they cannot be read.
    pub fn read(path: &Path) -> Result<Samples, String> {
        let file = if path.is_dir() { path.join(FILE) } else { path.to_owned() };
        let show = file.display();
        let text = fs::read_to_string(&file).map_err(|error| {
            format!("cannot read {show}: {error}; give what `ringserve compare --output` has written")
        })?;
        let samples: Samples = serde_json::from_str(&text)
            .map_err(|error| format!("{show} holds no samples of ringserve compare: {error}"))?;
        if samples.format != FORMAT {
            return Err(format!(
                "{show} has the format {}, and this program reads {FORMAT}; measure again",
                samples.format
            ));
        }
        Ok(samples)
    }

    /// Saves them in a folder. A reader finds the old ones or the new ones, whole.
    ///
    /// # Errors
    /// Why they cannot be saved.
    pub fn save(&self, folder: &Path) -> Result<(), String> {
        let (file, new) = (folder.join(FILE), folder.join(format!("{FILE}.new")));
        let text = serde_json::to_string_pretty(self).expect("numbers and texts only");
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &file))
            .map_err(|error| format!("cannot write {}: {error}", file.display()))
    }

    /// The runs as comma-separated values, one line for each.
    pub fn csv(&self) -> String {
        let mut text = String::from(
            "target,family,round,connections,size,keep_alive,pipeline,idle,cold,rate,active,waiting,seconds,\
             requests,errors,bytes,user_seconds,system_seconds,involuntary_switches,memory_bytes,idle_cpu,\
             system_calls,calls_per_request,calls_source,generator_cpu_seconds,mean_us,p50_us,p90_us,p99_us,\
             p999_us,max_us,hot_p99_us\n",
        );
        let optional = |value: Option<String>| value.unwrap_or_default();
        for run in &self.runs {
            let Run { case, latency, cost, calls, .. } = run;
            let counted = run.counters.get("system_calls");
            let fields = [
                quoted(&run.target),
                run.family.name().to_owned(),
                run.round.to_string(),
                case.connections.to_string(),
                case.size.to_string(),
                case.keep_alive.to_string(),
                case.pipeline.to_string(),
                run.idle.to_string(),
                case.cold.to_string(),
                optional(case.rate.map(|rate| rate.to_string())),
                run.active.to_string(),
                run.waiting.to_string(),
                format!("{:.6}", run.seconds),
                run.requests.to_string(),
                run.errors.to_string(),
                run.bytes.to_string(),
                optional(cost.map(|cost| format!("{:.2}", cost.user))),
                optional(cost.map(|cost| format!("{:.2}", cost.system))),
                optional(cost.map(|cost| cost.involuntary.to_string())),
                optional(cost.and_then(|cost| cost.memory).map(|memory| memory.to_string())),
                optional(cost.map(|cost| format!("{:.3}", cost.idle))),
                optional(counted.map(u64::to_string)),
                optional(calls.as_ref().map(|calls| format!("{:.4}", calls.per_request))),
                calls.as_ref().map_or("", |calls| calls.source.name()).to_owned(),
                format!("{:.6}", run.generator_cpu),
                format!("{:.1}", latency.mean),
                format!("{:.1}", latency.p50),
                format!("{:.1}", latency.p90),
                format!("{:.1}", latency.p99),
                format!("{:.1}", latency.p999),
                format!("{:.1}", latency.max),
                optional(run.hot.as_ref().map(|hot| format!("{:.1}", hot.p99))),
            ];
            text += &fields.join(",");
            text.push('\n');
        }
        text
    }
}

/// A text as one value (RFC 4180, section 2).
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::compare::load;
    use crate::compare::schedule::quick_cases;

    /// A run of made-up figures.
    pub fn run(target: &str, case: usize, round: usize, requests: u64) -> Run {
        let mut histogram = load::histogram();
        for number in 1..=1000 {
            histogram.record(number * 1000).unwrap();
        }
        Run {
            target: target.to_owned(),
            family: crate::engines::by_name(target).map_or(Family::Other, |engine| engine.family),
            case: quick_cases()[case].clone(),
            round,
            active: 64,
            idle: quick_cases()[case].idle,
            waiting: 0,
            seconds: 1.0,
            requests,
            bytes: requests * 1200,
            errors: 0,
            first_error: None,
            behind: 0,
            was_cold: None,
            latency: Latency::from(&histogram),
            hot: None,
            cost: Some(Cost {
                user: 0.2,
                system: 0.7,
                involuntary: 3,
                memory: Some(5 << 20),
                idle: 0.0,
                cores: Some(1),
            }),
            counters: BTreeMap::from([("system_calls".to_owned(), requests * 2)]),
            calls: Some(Calls::new(2.0, CallSource::Engine)),
            generator_cpu: 0.5,
        }
    }

    /// Two engines in two cases, three rounds.
    pub fn samples() -> Samples {
        let mut samples = Samples::new(Environment::default(), 12);
        for round in 0..3 {
            for case in 0..2 {
                samples.runs.push(run("epoll", case, round, 10_000 + round as u64 * 100));
                samples.runs.push(run("uring", case, round, 12_000));
            }
        }
        samples.refusals.push(Refused { engine: "tokio".into(), reason: "not <here>".into() });
        samples
    }

    #[test]
    fn what_is_saved_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        samples().save(folder.path()).unwrap();
        for path in [folder.path().to_owned(), folder.path().join(FILE)] {
            assert_eq!(Samples::read(&path).unwrap().csv(), samples().csv());
        }
        fs::write(folder.path().join(FILE), "{").unwrap();
        assert!(Samples::read(folder.path()).unwrap_err().contains("holds no samples"));
        let other = serde_json::to_string(&Samples { format: 99, ..samples() }).unwrap();
        fs::write(folder.path().join(FILE), other).unwrap();
        assert!(Samples::read(folder.path()).unwrap_err().contains("format 99"));
        assert!(Samples::read(&folder.path().join("none")).unwrap_err().contains("cannot read"));
        assert!(samples().save(&folder.path().join("none")).unwrap_err().contains("cannot write"));
    }

    #[test]
    fn a_line_of_values_has_as_many_as_there_are_names() {
        let text = samples().csv();
        let mut lines = text.lines();
        let names = lines.next().unwrap().split(',').count();
        assert_eq!(lines.clone().count(), 12);
        assert!(lines.all(|line| line.split(',').count() == names));
        assert_eq!(quoted("a,\"b\""), "\"a,\"\"b\"\"\"");
    }

    #[test]
    fn a_source_is_called_the_same_everywhere() {
        for source in [CallSource::Engine, CallSource::Strace, CallSource::EngineInPart] {
            assert_eq!(serde_json::to_value(source).unwrap(), source.name());
        }
    }

    #[test]
    fn percentiles_are_those_of_the_histogram() {
        let latency = run("epoll", 0, 0, 1).latency;
        for (value, wanted) in
            [(latency.p50, 500.0), (latency.p90, 900.0), (latency.p999, 999.0), (latency.max, 1000.0)]
        {
            assert!((value / wanted - 1.0).abs() < 0.002, "{value} {wanted}");
        }
        assert!(latency.curve.is_sorted_by(|a, b| a.1 <= b.1));
    }
}
