//! What is counted, as the text that Prometheus scrapes.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::content::Site;
use crate::shutdown::Shutdown;

use super::counters::{Board, Counter};

/// The media type of [`Overview::text`] (OpenMetrics 1.0).
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers by the class of their status.
const ANSWERS: [(Counter, &str); 4] = [
    (Counter::Answered2xx, "2xx"),
    (Counter::Answered3xx, "3xx"),
    (Counter::Answered4xx, "4xx"),
    (Counter::Answered5xx, "5xx"),
];

/// The engine of each worker, and why that one, in the words of the log. One that breaks is replaced.
#[derive(Clone, Debug, Default)]
pub struct EnginesInUse(Arc<Mutex<Vec<(&'static str, String)>>>);

impl EnginesInUse {
    /// All workers, so many, run that engine.
    pub fn all(&self, workers: usize, engine: &'static str, why: &str) {
        *self.lock() = vec![(engine, why.to_owned()); workers];
    }

    /// The worker of that number runs that engine from now on.
    pub fn replace(&self, worker: usize, engine: &'static str, why: String) {
        self.lock()[worker] = (engine, why);
    }

    /// Each engine that runs, with each reason why, once.
    fn distinct(&self) -> Vec<(&'static str, String)> {
        let mut distinct = Vec::new();
        for one in &*self.lock() {
            if !distinct.contains(one) {
                distinct.push(one.clone());
            }
        }
        distinct
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(&'static str, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The server as an operator sees it.
#[derive(Clone, Debug)]
pub struct Overview {
    /// The engines that serve.
    pub engines: EnginesInUse,
    /// Threads that serve.
    pub workers: usize,
    /// What they count.
    pub board: Board,
    /// What they serve.
    pub site: Arc<Site>,
    /// When they stop.
    pub shutdown: Arc<Shutdown>,
}

impl Overview {
    /// Whether new clients should be sent here: until the first signal to end.
    pub fn is_ready(&self) -> bool {
        !self.shutdown.is_expected()
    }

    /// All metrics, in the text format of OpenMetrics.
    pub fn text(&self) -> String {
        let mut registry = Registry::with_prefix("ringserve");
        registry.register_collector(Box::new(self.clone()));
        let mut out = String::new();
        text::encode(&mut out, &registry).expect("a string takes all");
        out
    }
}

impl Collector for Overview {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let what = "The engine that serves, and why; two of them where some workers' has broken.";
        let mut info = encoder.encode_descriptor("engine", what, None, MetricType::Info)?;
        for (name, why) in self.engines.distinct() {
            info.encode_info(&[("name", name), ("reason", &why), ("version", env!("CARGO_PKG_VERSION"))])?;
        }
        // In this order, so that nobody is counted as ended and not as accepted.
        let ended = self.board.total(Counter::ConnectionsEnded);
        let open = self.board.total(Counter::Connections).saturating_sub(ended);
        let gauges = [
            ("connections_open", "Connections at this moment.", open),
            ("ready", "Whether new clients should be sent here.", u64::from(self.is_ready())),
            ("workers", "Threads that serve.", self.workers as u64),
            ("body_memory_bytes", "Bodies in memory, cached, read or sent.", self.site.ledger().alive()),
        ];
        for (name, what, value) in gauges {
            let gauge = ConstGauge::new(value as i64);
            gauge.encode(encoder.encode_descriptor(name, what, None, gauge.metric_type())?)?;
        }
        let counter = |counter| ConstCounter::new(self.board.total(counter));
        let mut answers =
            encoder.encode_descriptor("answers", "Answers by class of status.", None, MetricType::Counter)?;
        for (class, name) in ANSWERS {
            counter(class).encode(answers.encode_family(&[("class", name)])?)?;
        }
        for &counted in Counter::ALL {
            if ANSWERS.iter().all(|(class, _)| *class != counted) {
                let metric = counter(counted);
                let (name, what) = (counted.name(), counted.what());
                metric.encode(encoder.encode_descriptor(name, what, None, metric.metric_type())?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::site::Rules;
    use std::path::Path;

    #[test]
    fn all_that_is_counted_is_shown_once() {
        let board = Board::new().unwrap();
        board.tally(0).add(Counter::Answered4xx, 3);
        board.tally(1).add(Counter::Loads, 2);
        board.tally(1).add(Counter::Connections, 7);
        board.tally(0).add(Counter::ConnectionsEnded, 4);
        let engines = EnginesInUse::default();
        engines.all(3, "name", "it was \"asked for\"\nand more");
        engines.replace(1, "other", "name broke".into());
        let overview = Overview {
            engines,
            workers: 2,
            board,
            site: Arc::new(Site::open(Path::new("/"), Rules::default()).unwrap()),
            shutdown: Arc::new(Shutdown::new().unwrap()),
        };
        let text = overview.text();
        for line in [
            "ringserve_engine_info{name=\"name\",reason=\"it was \\\"asked for\\\"\\nand more\",version=",
            "ringserve_engine_info{name=\"other\",reason=\"name broke\",version=",
            "ringserve_ready 1\n",
            "ringserve_workers 2\n",
            "ringserve_answers_total{class=\"4xx\"} 3\n",
            "ringserve_answers_total{class=\"2xx\"} 0\n",
            "ringserve_loads_total 2\n",
            "ringserve_connections_open 3\n",
            "ringserve_connections_total 7\n",
            "# TYPE ringserve_loads counter\n",
        ] {
            assert_eq!(text.matches(line).count(), 1, "{line} in {text}");
        }
        assert!(text.ends_with("# EOF\n"));
        overview.shutdown.expect();
        assert!(overview.text().contains("ringserve_ready 0\n"));
    }
}
