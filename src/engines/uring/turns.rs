//! Whose turn it is among those with much to do.

use std::collections::VecDeque;

use super::ring::Completion;

/// Completions that bring much to do, of which few have their turn at a time, so that small requests do not
/// wait behind all of them. In their order, but for one thing: who may make a disk begin and the others, who
/// send what has come from it as a rule, have their turns alternately. A disk may be done with all that it
/// was asked for at once, and would then have nothing to do until all of it has been sent.
#[derive(Default)]
pub(super) struct Turns {
    beginning: VecDeque<Completion>,
    others: VecDeque<Completion>,
    /// Whether the last turn was of one who may make a disk begin.
    has_begun: bool,
}

impl Turns {
    /// One who may make a disk begin.
    pub fn add_beginning(&mut self, completion: Completion) {
        self.beginning.push_back(completion);
    }

    /// Another.
    pub fn add(&mut self, completion: Completion) {
        self.others.push_back(completion);
    }

    /// Whose turn it is.
    pub fn next(&mut self) -> Option<Completion> {
        self.has_begun = !self.beginning.is_empty() && (!self.has_begun || self.others.is_empty());
        if self.has_begun { self.beginning.pop_front() } else { self.others.pop_front() }
    }

    /// Whether nobody waits for a turn.
    pub fn is_empty(&self) -> bool {
        self.beginning.is_empty() && self.others.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_begins_takes_turns_with_the_others() {
        let mut turns = Turns::default();
        let completion = |user_data| Completion { user_data, result: 0, flags: 0 };
        assert!(turns.is_empty() && turns.next().is_none());
        for number in 10..14 {
            turns.add(completion(number));
        }
        for number in 20..22 {
            turns.add_beginning(completion(number));
        }
        let order: Vec<_> =
            std::iter::from_fn(|| turns.next()).map(|completion| completion.user_data).collect();
        assert_eq!(order, [20, 10, 21, 11, 12, 13]);
        for number in 0..2 {
            turns.add_beginning(completion(number));
        }
        assert!(!turns.is_empty());
        let order: Vec<_> =
            std::iter::from_fn(|| turns.next()).map(|completion| completion.user_data).collect();
        assert_eq!(order, [0, 1]);
    }
}
