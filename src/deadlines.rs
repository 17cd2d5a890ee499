//! A coarse wheel of deadlines that costs nothing per request.
//!
//! A connection's deadline moves with every request, nearly always to later. So the wheel holds one entry per
//! connection and does not move it: when the entry comes up, its owner is asked for the deadline as it is
//! now, and is entered again if that is still ahead. Only a deadline that moves to *earlier* than its entry
//! costs a second entry; the first is then stale and is passed over. An entry may come up late by the time
//! between two looks.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Tick;

/// No entry stands longer than this, so that those of connections that have gone do not gather.
const HORIZON: Duration = Duration::from_secs(15);

/// The deadlines of the connections of one engine thread, by a key the engine chooses.
#[derive(Debug)]
pub struct Deadlines<K> {
    by_tick: BTreeMap<Tick, Vec<K>>,
}

impl<K> Default for Deadlines<K> {
    fn default() -> Deadlines<K> {
        Deadlines { by_tick: BTreeMap::new() }
    }
}

impl<K> Deadlines<K> {
    /// Sees to it that a key comes up by its deadline, or sooner. `entered` belongs to the key: when its live
    /// entry comes up.
    #[inline]
    pub fn cover(&mut self, key: K, deadline: Tick, now: Tick, entered: &mut Tick) {
        if deadline < *entered && deadline != Tick::NEVER {
            let rounded = round_up(deadline.min(now.after(HORIZON)));
            if rounded < *entered {
                *entered = rounded;
                self.by_tick.entry(rounded).or_default().push(key);
            }
        }
    }

    /// When the next entry comes up; `None` if there is none, and nothing need wake for a deadline.
    pub fn next(&self) -> Option<Tick> {
        self.by_tick.first_key_value().map(|(&tick, _)| tick)
    }

    /// Takes the keys out whose entries come up by `now`, each with the tick it was entered for. The caller
    /// drops a key whose `entered` is another tick (the entry is stale), and otherwise resets `entered` to
    /// [`Tick::NEVER`], acts if the deadline has passed, and covers it again if not.
    pub fn take_due(&mut self, now: Tick) -> Option<(Tick, Vec<K>)> {
        let entry = self.by_tick.first_entry()?;
        if *entry.key() <= now { Some(entry.remove_entry()) } else { None }
    }
}

/// Entries gather on half seconds, so that few wake-ups serve many connections.
fn round_up(tick: Tick) -> Tick {
    const STEP: u32 = Tick::PER_SECOND / 2;
    Tick::from_number(tick.number().div_ceil(STEP).saturating_mul(STEP))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tick(n: u32) -> Tick {
        Tick::from_number(n)
    }

    #[test]
    fn a_deadline_that_moves_later_keeps_its_one_entry() {
        let mut wheel = Deadlines::default();
        let mut entered = Tick::NEVER;
        wheel.cover('a', tick(100), tick(0), &mut entered);
        wheel.cover('a', tick(200), tick(0), &mut entered);
        assert_eq!(entered, tick(100));
        assert_eq!(wheel.take_due(tick(99)), None);
        assert_eq!(wheel.take_due(tick(100)), Some((tick(100), vec!['a'])));
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn a_deadline_that_moves_earlier_gets_a_second_entry_and_the_first_is_stale() {
        let mut wheel = Deadlines::default();
        let mut entered = Tick::NEVER;
        wheel.cover('a', tick(140), tick(0), &mut entered);
        wheel.cover('a', tick(103), tick(0), &mut entered);
        assert_eq!((entered, wheel.next()), (tick(105), Some(tick(105))));
        assert_eq!(wheel.take_due(tick(105)), Some((tick(105), vec!['a'])));
        let (stale, _) = wheel.take_due(tick(140)).unwrap();
        assert_ne!(stale, entered);
    }

    #[test]
    fn a_distant_deadline_comes_up_on_the_way() {
        let mut wheel = Deadlines::default();
        let mut entered = Tick::NEVER;
        wheel.cover('a', tick(36_000), tick(0), &mut entered);
        assert!(entered < tick(200));
    }

    #[test]
    fn never_is_never_entered() {
        let mut wheel = Deadlines::default();
        let mut entered = Tick::NEVER;
        wheel.cover('a', Tick::NEVER, tick(0), &mut entered);
        assert_eq!(wheel.next(), None);
    }
}
