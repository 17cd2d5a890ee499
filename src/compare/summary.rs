//! From runs to figures: medians over the rounds, their spread, and what makes one doubt them.

use crate::engines::Family;

use super::samples::{CallSource, Latency, Run, Samples};
use super::schedule::Case;

/// A spread of more than this is remarked upon.
const SPREAD_MAX: f64 = 0.12;
/// A core that is used more than this is full.
const FULL: f64 = 0.9;
/// Where so many clients ask without a pause, one of the two cores is full, if it is theirs alone.
const CLIENTS_TO_FILL: usize = 8;
/// A core that is used less than this, though there is enough to do, has served somebody else.
const STARVED: f64 = 0.7;
/// At the end of a load, a few requests may be due and not sent yet.
const BEHIND_MAX: f64 = 0.01;
/// A machine that had more than this to do, per core, was not quiet.
const LOAD_MAX: f64 = 0.25;

/// The median of several values, and the least and the greatest of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// How many there are.
    pub count: usize,
}

impl Spread {
    /// Of these values; `None` if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Spread { median, min, max, count: values.len() })
    }

    /// How far the values lie from the median, at the most, as a part of it; `None` for a single one.
    pub fn relative(&self) -> Option<f64> {
        let far = (self.max - self.median).max(self.median - self.min);
        (self.count > 1 && self.median > 0.0).then(|| far / self.median)
    }
}

/// All that is known of one target in one case.
#[derive(Clone, Debug)]
pub struct Cell<'a> {
    /// The engine, or the URL.
    pub target: &'a str,
    /// Its family.
    pub family: Family,
    /// One run for each round.
    pub runs: Vec<&'a Run>,
}

/// All targets in one case, grouped by family.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// The case.
    pub case: &'a Case,
    /// The targets.
    pub cells: Vec<Cell<'a>>,
}

impl<'a> Cell<'a> {
    /// A figure that every run has.
    fn every(&self, value: impl Fn(&'a Run) -> f64) -> Spread {
        Spread::of(self.runs.iter().map(|run| value(run))).expect("a cell has a run")
    }

    /// A figure that a run may lack.
    fn some(&self, value: impl Fn(&'a Run) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.runs.iter().filter_map(|run| value(run)))
    }

    /// Requests per second.
    pub fn throughput(&self) -> Spread {
        self.every(|run| run.requests as f64 / run.seconds.max(1e-9))
    }

    /// Bytes per second.
    pub fn bytes(&self) -> Spread {
        self.every(|run| run.bytes as f64 / run.seconds.max(1e-9))
    }

    /// Microseconds of CPU per request, outside the kernel and within it.
    pub fn cpu(&self) -> Option<(Spread, Spread)> {
        let user = self.some(|run| per_request(run, run.cost?.user * 1e6))?;
        let system = self.some(|run| per_request(run, run.cost?.system * 1e6))?;
        Some((user, system))
    }

    /// The same together.
    pub fn cpu_total(&self) -> Option<Spread> {
        self.some(|run| {
            let cost = run.cost?;
            per_request(run, (cost.user + cost.system) * 1e6)
        })
    }

    /// System calls per request, and who has counted them: where strace was let look on in some of the
    /// rounds, the figure is from those.
    pub fn system_calls(&self) -> Option<(Spread, CallSource)> {
        let counts = || self.runs.iter().filter_map(|run| run.calls.as_ref());
        let source = counts().map(|calls| calls.source).min()?;
        let from_it = counts().filter(|calls| calls.source == source);
        Some((Spread::of(from_it.map(|calls| calls.per_request))?, source))
    }

    /// Why strace has not counted, where it was wanted and never did.
    pub fn untraced(&self) -> Option<&'a str> {
        let (_, source) = self.system_calls()?;
        let refusals = self.runs.iter().find_map(|run| run.calls.as_ref()?.refusal.as_deref());
        refusals.filter(|_| source == CallSource::EngineInPart)
    }

    /// A figure of the latencies, in microseconds.
    pub fn latency(&self, value: impl Fn(&Latency) -> f64) -> Option<Spread> {
        self.some(|run| (run.requests > 0).then(|| value(&run.latency)))
    }

    /// The 99th percentile of the hot client's latencies, in microseconds.
    pub fn hot_p99(&self) -> Option<Spread> {
        self.some(|run| run.hot.as_ref().map(|hot| hot.p99))
    }

    /// Bytes of memory.
    pub fn memory(&self) -> Option<Spread> {
        self.some(|run| run.cost?.memory.map(|bytes| bytes as f64))
    }

    /// Involuntary context switches per second.
    pub fn involuntary(&self) -> Option<Spread> {
        self.some(|run| Some(run.cost?.involuntary as f64 / run.seconds.max(1e-9)))
    }

    /// The part of a core that was used while nobody asked.
    pub fn idle_cpu(&self) -> Option<Spread> {
        self.some(|run| Some(run.cost?.idle))
    }

    /// The part of its core that the generator has used.
    pub fn generator(&self) -> Spread {
        self.every(|run| run.generator_cpu / run.seconds.max(1e-9))
    }

    /// The part of its cores that the server has used, where it is known which they are.
    fn server(&self) -> Option<Spread> {
        self.some(|run| {
            let cost = run.cost?;
            Some((cost.user + cost.system) / run.seconds.max(1e-9) / cost.cores? as f64)
        })
    }

    /// Whether there was always somebody to serve, and yet neither this server nor the generator had a full
    /// core: something else ran on them.
    pub fn is_starved(&self) -> bool {
        let asked = |run: &&Run| !run.case.cold && run.case.rate.is_none() && run.active >= CLIENTS_TO_FILL;
        self.runs.iter().all(asked)
            && self.generator().median < STARVED
            && self.server().is_some_and(|server| server.median < STARVED)
    }

    /// Requests that have failed, in all rounds.
    pub fn errors(&self) -> u64 {
        self.runs.iter().map(|run| run.errors).sum()
    }

    /// Clients who waited for the engine to have room.
    pub fn waiting(&self) -> usize {
        self.runs.iter().map(|run| run.waiting).max().unwrap_or(0)
    }

    /// Whether it had as many clients as the case has.
    pub fn is_whole(&self) -> bool {
        self.waiting() == 0 && self.errors() == 0
    }
}

fn per_request(run: &Run, value: f64) -> Option<f64> {
    (run.requests > 0).then(|| value / run.requests as f64)
}

/// The runs by case and target, both in the order in which they were run first, targets by family.
pub fn groups(samples: &Samples) -> Vec<Group<'_>> {
    let mut groups: Vec<Group> = Vec::new();
    for run in &samples.runs {
        let at = groups.iter().position(|group| *group.case == run.case).unwrap_or_else(|| {
            groups.push(Group { case: &run.case, cells: Vec::new() });
            groups.len() - 1
        });
        let cells = &mut groups[at].cells;
        match cells.iter_mut().find(|cell| cell.target == run.target) {
            Some(cell) => cell.runs.push(run),
            None => cells.push(Cell { target: &run.target, family: run.family, runs: vec![run] }),
        }
    }
    for group in &mut groups {
        group.cells.sort_by_key(|cell| cell.family);
    }
    groups
}

/// What makes one doubt the figures, one sentence each.
pub fn warnings(samples: &Samples) -> Vec<String> {
    let mut warnings = Vec::new();
    let environment = &samples.environment;
    if environment.generator_core.is_none() {
        warnings.push(
            "There was only one core: servers and generator took turns on it, so throughput says little. CPU \
             per request still counts."
                .to_owned(),
        );
    }
    if environment.load > LOAD_MAX * environment.cores.max(1) as f64 {
        warnings.push(format!(
            "The load average was {:.2} before the first run: the machine had other things to do. Run it \
             again on a quiet one.",
            environment.load
        ));
    }
    if samples.runs.len() < samples.planned {
        warnings.push(format!(
            "Only {} of {} runs were made; medians rest on what there is.",
            samples.runs.len(),
            samples.planned
        ));
    }
    let mut starved = Vec::new();
    for Group { case, cells } in groups(samples) {
        let title = case.title();
        let mut wide = Vec::new();
        let mut bound = Vec::new();
        for cell in &cells {
            if let Some(spread) = cell.throughput().relative().filter(|&spread| spread > SPREAD_MAX) {
                wide.push(format!("{} {:.0} %", cell.target, spread * 100.0));
            }
            if case.rate.is_none()
                && cell.generator().median > FULL
                && cell.server().is_some_and(|server| server.median < FULL)
            {
                bound.push(cell.target);
            }
            let behind: u64 = cell.runs.iter().map(|run| run.behind).sum();
            let requests: u64 = cell.runs.iter().map(|run| run.requests).sum();
            if behind as f64 > requests as f64 * BEHIND_MAX {
                warnings.push(format!(
                    "{title}: {} did not keep up with the rate; {behind} requests were due and not sent, and \
                     count with the time they had waited.",
                    cell.target
                ));
            }
            if cell.runs.iter().any(|run| run.was_cold == Some(false)) {
                warnings.push(format!(
                    "{title}: the files of {} could not be dropped from the page cache and were not cold. \
                     Set TMPDIR to a folder on a disk.",
                    cell.target
                ));
            }
            if let Some(error) = cell.runs.iter().find_map(|run| run.first_error.as_ref()) {
                warnings.push(format!("{title}: {} of {} failed: {error}.", cell.errors(), cell.target));
            }
        }
        if !wide.is_empty() {
            warnings.push(format!(
                "{title}: rounds differ by more than {:.0} % from their median ({}). Something else ran \
                 meanwhile; try more rounds, or a longer --duration.",
                SPREAD_MAX * 100.0,
                wide.join(", ")
            ));
        }
        if cells.iter().any(Cell::is_starved) {
            starved.push(title.clone());
        }
        if !bound.is_empty() {
            warnings.push(format!(
                "{title}: the generator's core was full and the server's was not ({}): these could do more \
                 than the figure says.",
                bound.join(", ")
            ));
        }
    }
    if !starved.is_empty() {
        warnings.push(format!(
            "Neither the server's core nor the generator's was full with {}. Something else ran on them: CPU \
             per request still counts; throughput and latency do not.",
            starved.join("; with ")
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::samples::Calls;
    use crate::compare::samples::tests::{run, samples};

    #[test]
    fn medians_and_spreads() {
        assert_eq!(Spread::of([]), None);
        let one = Spread::of([5.0]).unwrap();
        assert_eq!((one.median, one.relative()), (5.0, None));
        let even = Spread::of([4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((even.median, even.min, even.max, even.count), (2.5, 1.0, 4.0, 4));
        let odd = Spread::of([90.0, 100.0, 120.0]).unwrap();
        assert_eq!(odd.relative(), Some(0.2));
        assert_eq!(Spread::of([0.0, 0.0]).unwrap().relative(), None);
    }

    #[test]
    fn runs_are_grouped_by_case_and_target() {
        let samples = samples();
        let groups = groups(&samples);
        assert_eq!(groups.len(), 2);
        for group in groups {
            let targets: Vec<_> = group.cells.iter().map(|cell| (cell.target, cell.runs.len())).collect();
            assert_eq!(targets, [("epoll", 3), ("uring", 3)]);
            let epoll = &group.cells[0];
            assert_eq!(epoll.throughput(), Spread { median: 10_100.0, min: 1e4, max: 10_200.0, count: 3 });
            assert_eq!(
                epoll.system_calls(),
                Spread::of([2.0, 2.0, 2.0]).map(|two| (two, CallSource::Engine))
            );
            let cpu = epoll.cpu_total().unwrap().median;
            assert!((cpu - 0.9e6 / 10_100.0).abs() < 1e-6, "{cpu}");
        }
    }

    #[test]
    fn what_strace_has_seen_counts_more_than_what_an_engine_knows_of_itself() {
        let mut samples = samples();
        let calls = |source, per_request, refusal: Option<&str>| {
            Some(Calls { per_request, source, refusal: refusal.map(str::to_owned) })
        };
        for run in &mut samples.runs {
            run.calls = calls(CallSource::EngineInPart, 1.0, Some("no"));
        }
        let figures = |samples: &Samples| {
            let groups = groups(samples);
            let cell = &groups[0].cells[0];
            let (spread, source) = cell.system_calls().unwrap();
            (spread.median, spread.count, source, cell.untraced().map(str::to_owned))
        };
        assert_eq!(figures(&samples), (1.0, 3, CallSource::EngineInPart, Some("no".to_owned())));
        samples.runs[0].calls = calls(CallSource::Strace, 3.0, None);
        assert_eq!(figures(&samples), (3.0, 1, CallSource::Strace, None));
    }

    #[test]
    fn doubts_are_told() {
        let mut samples = samples();
        samples.environment.generator_core = Some(1);
        samples.environment.cores = 2;
        assert_eq!(warnings(&samples), Vec::<String>::new());
        samples.environment.load = 3.0;
        samples.runs.push(run("uring", 0, 3, 1));
        samples.planned = 20;
        samples.runs[0].generator_cpu = 0.99;
        samples.runs[4].generator_cpu = 0.99;
        samples.runs[0].cost.as_mut().unwrap().system = 0.1;
        samples.runs[4].cost.as_mut().unwrap().system = 0.1;
        for run in samples.runs.iter_mut().filter(|run| run.target == "uring" && run.case.idle > 0) {
            run.cost.as_mut().unwrap().system = 0.1;
        }
        samples.runs[1].errors = 1;
        samples.runs[1].first_error = Some("status 500".into());
        samples.runs[2].behind = 7000;
        samples.runs[3].was_cold = Some(false);
        let text = warnings(&samples).join("\n");
        for part in
            ["load average was 3", "13 of 20", "uring 100 %", "core was full", "status 500", "7000 requests"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(
            text.contains("were not cold") && text.contains("was full with 1 KiB to 64 clients, 800 idle")
        );
        samples.environment.generator_core = None;
        assert!(warnings(&samples)[0].contains("only one core"));
    }
}
