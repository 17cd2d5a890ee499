//! What is counted, as the text that Prometheus scrapes.

use std::fmt;
use std::sync::Arc;

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

/// The server as an operator sees it.
#[derive(Clone, Debug)]
pub struct Overview {
    /// The engine that serves.
    pub engine: &'static str,
    /// Why that one, in the words of the start-up line.
    pub why: String,
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
        encoder
            .encode_descriptor("engine", "The engine that serves, and why.", None, MetricType::Info)?
            .encode_info(&[
                ("name", self.engine),
                ("reason", &*self.why),
                ("version", env!("CARGO_PKG_VERSION")),
            ])?;
        // In this order, so that nobody is counted as ended and not as accepted.
        let ended = self.board.total(Counter::ConnectionsEnded);
        let open = self.board.total(Counter::Connections).saturating_sub(ended);
        let gauges = [
            ("connections_open", "Connections at this moment.", open),
            ("ready", "Whether new clients should be sent here.", u64::from(self.is_ready())),
            ("workers", "Threads that serve.", self.workers as u64),
            ("body_memory_bytes", "Memory of bodies, cached or being sent.", self.site.ledger().alive()),
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
        let overview = Overview {
            engine: "name",
            why: "it was \"asked for\"\nand more".into(),
            workers: 2,
            board,
            site: Arc::new(Site::open(Path::new("/"), Rules::default()).unwrap()),
            shutdown: Arc::new(Shutdown::new().unwrap()),
        };
        let text = overview.text();
        for line in [
            "ringserve_engine_info{name=\"name\",reason=\"it was \\\"asked for\\\"\\nand more\",version=",
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
