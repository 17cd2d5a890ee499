//! The time, read once per turn of an engine's loop, and the `Date` line, written once per second.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::http::date;

/// A moment on the coarse clock that deadlines are kept in: tenths of a second since the machine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(u32);

impl Tick {
    /// Ticks in a second.
    pub const PER_SECOND: u32 = 10;
    /// The end of time: a deadline that never comes.
    pub const NEVER: Tick = Tick(u32::MAX);

    /// This moment, by the kernel's coarse clock: a load from memory, no system call.
    pub fn now() -> Tick {
        let since_boot = clock_gettime(ClockId::MonotonicCoarse);
        let milliseconds = since_boot.tv_sec as u64 * 1000 + since_boot.tv_nsec as u64 / 1_000_000;
        Tick((milliseconds / u64::from(1000 / Tick::PER_SECOND)) as u32)
    }

    /// The moment `duration` later; never before the duration is really over.
    #[must_use]
    pub fn after(self, duration: Duration) -> Tick {
        let part = duration.subsec_nanos().div_ceil(1_000_000_000 / Tick::PER_SECOND);
        let ticks = duration
            .as_secs()
            .saturating_mul(u64::from(Tick::PER_SECOND))
            .saturating_add(u64::from(part) + 1);
        Tick(u32::try_from(ticks).map_or(u32::MAX, |ticks| self.0.saturating_add(ticks)))
    }

    /// How long from `self` until `later`; nothing if that is past.
    pub fn until(self, later: Tick) -> Duration {
        let ticks = later.0.saturating_sub(self.0);
        Duration::from_millis(u64::from(ticks) * u64::from(1000 / Tick::PER_SECOND))
    }

    /// A tick by its number.
    pub const fn from_number(ticks: u32) -> Tick {
        Tick(ticks)
    }

    /// The number of this tick.
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// What time it is, as of the last [`Clock::read`].
#[derive(Clone, Debug)]
pub struct Clock {
    now: Tick,
    unix_seconds: u64,
    date_line: [u8; DATE_LINE],
}

const DATE_LINE: usize = "Date: ".len() + date::LENGTH + "\r\n".len();

impl Clock {
    /// A clock that has been read.
    pub fn new() -> Clock {
        let mut clock = Clock::at(Tick(0), 0);
        clock.read();
        clock
    }

    /// A clock that stands still at the given time, for tests.
    pub fn at(now: Tick, unix_seconds: u64) -> Clock {
        let mut clock = Clock { now, unix_seconds, date_line: *b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n" };
        clock.write_date();
        clock
    }

    /// Reads the kernel's clocks, the coarse ones: two loads from memory, no system call.
    pub fn read(&mut self) {
        self.now = Tick::now();
        let unix_seconds = u64::try_from(clock_gettime(ClockId::RealtimeCoarse).tv_sec).unwrap_or(0);
        if unix_seconds != self.unix_seconds {
            self.unix_seconds = unix_seconds;
            self.write_date();
        }
    }

    /// The moment of the last reading.
    pub const fn now(&self) -> Tick {
        self.now
    }

    /// Seconds since 1970 at the last reading.
    pub const fn unix_seconds(&self) -> u64 {
        self.unix_seconds
    }

    /// The `Date` field line with its line end (RFC 9110 section 6.6.1).
    pub const fn date_line(&self) -> &[u8] {
        &self.date_line
    }

    fn write_date(&mut self) {
        self.date_line["Date: ".len()..][..date::LENGTH].copy_from_slice(&date::format(self.unix_seconds));
    }
}

impl Default for Clock {
    fn default() -> Clock {
        Clock::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_never_early() {
        let now = Tick::from_number(100);
        assert_eq!(now.after(Duration::from_millis(1)).number(), 102);
        assert_eq!(now.after(Duration::from_secs(5)).number(), 151);
        assert_eq!(now.after(Duration::MAX), Tick::NEVER);
        assert_eq!(now.until(now.after(Duration::from_secs(1))), Duration::from_millis(1100));
        assert_eq!(now.until(Tick::from_number(1)), Duration::ZERO);
    }

    #[test]
    fn the_date_line_is_whole() {
        let clock = Clock::at(Tick::default(), 784_111_777);
        assert_eq!(clock.date_line(), b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n");
    }
}
