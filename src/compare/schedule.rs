//! What is run, and in which order: the product of the dimensions, round by round.
//!
//! Rounds are interleaved: every engine runs once before any of them runs again. What slows the machine down
//! for a minute then slows all of them, and shows as spread instead of as a difference.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Bytes of a file that is asked for cold: more than the servers hold in memory, so that it is sent from the
/// disk and not loaded first.
pub const COLD_SIZE: u64 = 2 << 20;
/// What a quick comparison may take in all, with something kept back for the start and the report.
const QUICK: Duration = Duration::from_secs(50);
/// What a run takes beside its load: start, clients, readings, stop.
pub const OVERHEAD: Duration = Duration::from_millis(600);

/// Requests of a sample: as few as that for large files, and as many for small ones.
const SAMPLE: (u64, u64) = (4, 2000);
/// Of small files, so many for each client.
const SAMPLE_PER_CLIENT: u64 = 8;
/// The bytes that decide between them.
const SAMPLE_BYTES: u64 = 128 << 20;
/// The time for a sample at a fixed rate.
const SAMPLE_TIME: Duration = Duration::from_millis(500);
/// What a run takes in which strace looks on, beside that.
pub const TRACE: Duration = Duration::from_millis(400);

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// The next one when the last is answered: it finds how much a server can do.
    Closed,
    /// At fixed times, whatever the server does, and each latency counts from the time at which the request
    /// was due: a server that stalls is not asked less for it.
    Fixed {
        /// Requests per second.
        rate: f64,
    },
}

/// When the load ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// After this time.
    After(Duration),
    /// After so many requests.
    Requests(u64),
}

/// What is asked of a server: one value of each dimension.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Clients that ask.
    pub connections: usize,
    /// Bytes of the file.
    pub size: u64,
    /// Whether a connection carries more than one request.
    pub keep_alive: bool,
    /// Requests on their way at once on each connection.
    pub pipeline: usize,
    /// Clients that are connected and ask nothing.
    pub idle: usize,
    /// Whether the files are not in the page cache.
    pub cold: bool,
    /// Requests per second, where they are sent at fixed times.
    pub rate: Option<f64>,
}

impl Case {
    /// The pace it means.
    pub fn pace(&self) -> Pace {
        self.rate.map_or(Pace::Closed, |rate| Pace::Fixed { rate })
    }

    /// Requests that are enough to find out what each of them takes.
    pub fn sample(&self) -> u64 {
        let for_size = (SAMPLE_BYTES / self.size.max(1)).clamp(SAMPLE.0, SAMPLE.1);
        let wanted =
            for_size.max(SAMPLE_PER_CLIENT * self.connections as u64 * u64::from(for_size == SAMPLE.1));
        match self.rate {
            Some(rate) => wanted.min((rate * SAMPLE_TIME.as_secs_f64()).ceil() as u64),
            None => wanted,
        }
    }

    /// Clients that an engine gets which serves so many at once: those who ask, and those who do not.
    pub fn clients(&self, clients_max: Option<usize>) -> (usize, usize) {
        // One of them is the hot client.
        let max = clients_max.unwrap_or(usize::MAX).saturating_sub(usize::from(self.cold)).max(1);
        let active = self.connections.min(max);
        (active, self.idle.min(max - active))
    }

    /// What it is, as a heading.
    pub fn title(&self) -> String {
        let plural = if self.connections == 1 { "" } else { "s" };
        let mut text = format!("{} to {} client{plural}", size_text(self.size), self.connections);
        if !self.keep_alive {
            text += ", a connection per request";
        }
        if self.pipeline > 1 {
            text += &format!(", {} requests at once on each", self.pipeline);
        }
        if self.idle > 0 {
            text += &format!(", {} idle beside them", self.idle);
        }
        if self.cold {
            text += ", files not in the page cache";
        }
        if let Some(rate) = self.rate {
            text += &format!(", {rate} requests/s");
        }
        text
    }
}

/// `16 KiB`, `1 MiB` or `1000 B`.
pub fn size_text(bytes: u64) -> String {
    for (unit, factor) in [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= factor && bytes.is_multiple_of(factor) {
            return format!("{} {unit}", bytes / factor);
        }
    }
    format!("{bytes} B")
}

/// The values of each dimension.
#[derive(Clone, Debug)]
pub struct Dimensions {
    /// Clients that ask.
    pub connections: Vec<usize>,
    /// Bytes of files.
    pub sizes: Vec<u64>,
    /// Long connections, short ones, or both.
    pub keep_alive: Vec<bool>,
    /// Requests on their way at once.
    pub pipeline: Vec<usize>,
    /// Clients that ask nothing.
    pub idle: Vec<usize>,
    /// Whether there are runs with cold files, too.
    pub cold: bool,
    /// Requests per second; `None` for as many as can be had.
    pub rate: Option<f64>,
}

impl Dimensions {
    /// Every combination, the simplest first.
    pub fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for &keep_alive in &self.keep_alive {
            for &size in &self.sizes {
                for &pipeline in &self.pipeline {
                    for &connections in &self.connections {
                        for &idle in &self.idle {
                            // Without keep-alive there is nothing to pipeline, and nobody stays.
                            if !keep_alive && (pipeline > 1 || idle > 0) {
                                continue;
                            }
                            let (cold, rate) = (false, self.rate);
                            cases.push(Case { connections, size, keep_alive, pipeline, idle, cold, rate });
                        }
                    }
                }
            }
        }
        if self.cold {
            cases.extend(self.connections.iter().map(|&connections| Case {
                connections,
                size: COLD_SIZE,
                keep_alive: true,
                pipeline: 1,
                idle: 0,
                cold: true,
                rate: None,
            }));
        }
        cases
    }
}

/// The cases of a quick comparison: long connections, idle ones beside them, short ones, and a larger file.
pub fn quick_cases() -> Vec<Case> {
    let plain = Case {
        connections: 64,
        size: 1 << 10,
        keep_alive: true,
        pipeline: 1,
        idle: 0,
        cold: false,
        rate: None,
    };
    vec![
        plain.clone(),
        // As many as select(2) can have beside the others.
        Case { idle: 800, ..plain.clone() },
        Case { keep_alive: false, ..plain.clone() },
        Case { connections: 16, size: 1 << 20, ..plain },
    ]
}

/// The time for each run's load, so that so many of them fit into a quick comparison. In some of them strace
/// looks on.
pub fn quick_duration(runs: usize, traced: usize) -> Duration {
    let time = QUICK.as_secs_f64() - TRACE.as_secs_f64() * traced as f64;
    let each = time / runs.max(1) as f64 - OVERHEAD.as_secs_f64();
    Duration::from_secs_f64(each.clamp(0.15, 1.0))
}

/// One run: a case, on a target, in a round. The last two are numbers, counted from 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// What is asked.
    pub case: Case,
    /// Of whom.
    pub target: usize,
    /// For the how many-th time.
    pub round: usize,
}

/// All runs in their order. `has` says whether a target takes part in a case.
pub fn plan(cases: &[Case], targets: usize, rounds: usize, has: impl Fn(usize, &Case) -> bool) -> Vec<Run> {
    let mut runs = Vec::new();
    for round in 0..rounds {
        for case in cases {
            let fit = (0..targets).filter(|&target| has(target, case));
            runs.extend(fit.map(|target| Run { case: case.clone(), target, round }));
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dimensions() -> Dimensions {
        Dimensions {
            connections: vec![1, 64],
            sizes: vec![1024, 16384],
            keep_alive: vec![true, false],
            pipeline: vec![1, 8],
            idle: vec![0, 800],
            cold: true,
            rate: None,
        }
    }

    #[test]
    fn all_combinations_that_mean_something() {
        let cases = dimensions().cases();
        // Long connections 2 * 2 * 2 * 2, short ones a quarter of that, and two cold ones.
        assert_eq!(cases.len(), 16 + 4 + 2);
        assert!(cases.iter().all(|case| case.keep_alive || (case.pipeline, case.idle) == (1, 0)));
        assert_eq!(cases.iter().filter(|case| case.cold).count(), 2);
    }

    #[test]
    fn rounds_are_interleaved() {
        let cases = dimensions().cases();
        let runs = plan(&cases[..2], 3, 2, |target, case| target != 1 || case == &cases[0]);
        let order: Vec<_> = runs.iter().map(|run| (run.round, run.target)).collect();
        assert_eq!(order, [(0, 0), (0, 1), (0, 2), (0, 0), (0, 2), (1, 0), (1, 1), (1, 2), (1, 0), (1, 2)]);
    }

    #[test]
    fn an_engine_gets_no_more_clients_than_it_serves() {
        let case = &quick_cases()[1];
        assert_eq!(case.clients(None), (64, 800));
        assert_eq!(case.clients(Some(1)), (1, 0));
        assert_eq!(case.clients(Some(500)), (64, 436));
        assert_eq!(Case { cold: true, ..case.clone() }.clients(Some(1)), (1, 0));
    }

    #[test]
    fn eleven_engines_fit_into_a_minute() {
        let (runs, traced) = (11 * quick_cases().len(), 4 * quick_cases().len());
        let loads = (quick_duration(runs, traced) + OVERHEAD) * (runs as u32);
        assert!(loads + TRACE * (traced as u32) < Duration::from_secs(55));
        assert_eq!(quick_duration(1, 0), Duration::from_secs(1));
        assert_eq!(quick_duration(1000, 0), Duration::from_millis(150));
    }

    #[test]
    fn a_sample_is_large_enough_and_soon_done() {
        let plain = &quick_cases()[0];
        assert_eq!(plain.sample(), 2000);
        assert_eq!(Case { connections: 512, ..plain.clone() }.sample(), 4096);
        assert_eq!(Case { size: 1 << 20, connections: 512, ..plain.clone() }.sample(), 128);
        assert_eq!(Case { size: 64 << 20, ..plain.clone() }.sample(), 4);
        assert_eq!(Case { rate: Some(100.0), ..plain.clone() }.sample(), 50);
        assert_eq!(Case { rate: Some(0.1), size: 0, ..plain.clone() }.sample(), 1);
    }

    #[test]
    fn titles_say_what_differs() {
        let title = Case { rate: Some(500.0), ..quick_cases()[1].clone() }.title();
        assert_eq!(title, "1 KiB to 64 clients, 800 idle beside them, 500 requests/s");
        assert_eq!(size_text(1000), "1000 B");
        assert_eq!(size_text(64 << 20), "64 MiB");
    }
}
