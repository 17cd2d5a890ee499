//! What a load is: who asks for what, at which times, and what has come of it.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// What is asked for, and what must come.
#[derive(Clone, Debug)]
pub struct Target {
    /// The request, to the last byte.
    pub request: Vec<u8>,
    /// Bytes of the body.
    pub length: u64,
    /// The hash of the body (XXH3, 64 bits), where it is known.
    pub hash: Option<u64>,
}

/// Who is connected.
#[derive(Clone, Copy, Debug)]
pub struct Clients {
    /// Clients that ask.
    pub active: usize,
    /// Clients that ask once, so that they are accepted, and then never again.
    pub idle: usize,
    /// Whether one more asks for the first target a thousand times a second, and is measured by itself.
    pub hot: bool,
    /// Requests on their way at once on each connection.
    pub pipeline: usize,
    /// Whether a connection carries more than one request.
    pub keep_alive: bool,
}

/// What a load has shown.
#[derive(Debug)]
pub struct Outcome {
    /// From the first request to the last response.
    pub elapsed: Duration,
    /// Responses that have passed their checks.
    pub requests: u64,
    /// Bytes received, heads included.
    pub bytes: u64,
    /// Nanoseconds from when a request was due to the end of its response.
    pub latency: Histogram<u64>,
    /// The same for the hot client.
    pub hot: Histogram<u64>,
    /// Requests that have failed.
    pub errors: u64,
    /// What was wrong with the first of them.
    pub first_error: Option<String>,
    /// Requests that were due, at a fixed rate, and could not be sent before the end.
    pub behind: u64,
    /// CPU time of this thread.
    pub cpu: Duration,
}

impl Default for Outcome {
    fn default() -> Outcome {
        Outcome {
            elapsed: Duration::ZERO,
            requests: 0,
            bytes: 0,
            latency: histogram(),
            hot: histogram(),
            errors: 0,
            first_error: None,
            behind: 0,
            cpu: Duration::ZERO,
        }
    }
}

/// A histogram of nanoseconds, up to ten minutes, with three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(100, 600_000_000_000, 3).expect("the bounds are in order")
}

/// Points in time at equal distances.
#[derive(Clone, Copy, Debug)]
pub struct Rhythm {
    begin: Instant,
    /// Seconds.
    distance: f64,
    passed: u64,
}

impl Rhythm {
    /// The first of them is `begin`; `rate` of them come in a second.
    pub fn new(begin: Instant, rate: f64) -> Rhythm {
        Rhythm { begin, distance: 1.0 / rate, passed: 0 }
    }

    /// The next one.
    pub fn next(&self) -> Instant {
        self.begin + Duration::from_secs_f64(self.distance * self.passed as f64)
    }

    /// The next one, which then has passed.
    pub fn take(&mut self) -> Instant {
        let next = self.next();
        self.passed += 1;
        next
    }
}
