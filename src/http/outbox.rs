//! What is to be sent, in order: text of its own, shared memory, spans of files.
//!
//! The connection's turn fills it, the engine empties it. Between `front` and `sent` nothing else touches it,
//! so the kernel may read the memory that `front` showed for as long as it likes.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;

use super::blob::{Blob, Source};

/// Text is collected up to about this many bytes before it must be sent; a single answer may pass it.
pub const TEXT_MAX: usize = 64 * 1024;
/// Bytes of memory shown at once: the kernel copies them, and others wait meanwhile.
pub const PIECE: usize = 256 * 1024;
/// Text from which on no more spans are taken into it.
const TAKEN_MAX: usize = 2 * TEXT_MAX;
/// Parts in the queue before it must be sent; bounds what a client that never reads can pin.
const PARTS_MAX: usize = 48;
/// An emptied text buffer larger than this is given back, so that one burst does not stay for ever.
const TEXT_KEPT_MAX: usize = 96 * 1024;

/// An ordered queue of bytes to send. One that is empty from the start is no more than a pointer: an idle
/// connection holds one of these.
#[derive(Debug, Default)]
pub struct Outbox(Option<Box<Queue>>);

/// What an outbox holds.
#[derive(Debug, Default)]
pub(super) struct Queue {
    text: Vec<u8>,
    parts: VecDeque<Part>,
}

#[derive(Debug)]
enum Part {
    /// A piece of `Queue::text`.
    Text(Range<usize>),
    Shared(Blob, Range<usize>),
    File(Arc<Source>, Range<u64>),
}

/// What stands at the front of the queue, to be sent next.
#[derive(Debug)]
pub enum Chunk<'a> {
    /// The first `slices` of the slices passed in were filled; `more` follows behind them.
    Memory {
        /// How many slices were filled.
        slices: usize,
        /// Whether something stands behind them, so that the kernel may wait with a half-full packet.
        more: bool,
    },
    /// `len` bytes of a file from offset `at` on.
    File {
        /// The open file.
        file: &'a Arc<Source>,
        /// Offset of the first byte.
        at: u64,
        /// Number of bytes, never 0.
        len: u64,
    },
    /// Nothing is left to send.
    Empty,
}

impl Queue {
    /// Appends text, copied.
    #[expect(clippy::inline_always, reason = "by itself the compiler does so or not as code elsewhere grows")]
    #[inline(always)]
    pub fn text(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let start = self.text.len();
        self.text.extend_from_slice(bytes);
        match self.parts.back_mut() {
            Some(Part::Text(range)) => range.end = self.text.len(),
            _ => self.parts.push_back(Part::Text(start..self.text.len())),
        }
    }

    /// Appends a piece of shared memory, by reference.
    pub fn shared(&mut self, blob: &Blob, range: Range<usize>) {
        assert!(range.end <= blob.bytes().len());
        if !range.is_empty() {
            self.parts.push_back(Part::Shared(blob.clone(), range));
        }
    }

    /// Appends a span of a file, by descriptor.
    pub fn file(&mut self, file: &Arc<Source>, range: Range<u64>) {
        if !range.is_empty() {
            self.parts.push_back(Part::File(file.clone(), range));
        }
    }
}

impl Outbox {
    /// The end of the queue, to append to.
    #[inline]
    pub(super) fn end(&mut self) -> &mut Queue {
        self.0.get_or_insert_default()
    }

    /// Has short spans of files read into the text, so that they leave in one piece with the heads around
    /// them: those up to a length that `len_max` says for their file. `read` appends so many bytes of it from
    /// an offset on, or fewer where it would have to wait, and then that span stays as it was.
    pub fn take_in(
        &mut self,
        len_max: impl Fn(&Source) -> u64,
        mut read: impl FnMut(&Source, &mut Vec<u8>, u64, usize),
    ) {
        let Some(queue) = &mut self.0 else { return };
        let Queue { text, parts } = &mut **queue;
        let mut taken = false;
        // Once round the queue: each part comes off the front and goes to the back.
        for number in 0..parts.len() {
            let Some(part) = parts.pop_front() else { return };
            let start = text.len();
            let has_moved = match &part {
                Part::File(file, span) if span.end - span.start <= len_max(file) && start < TAKEN_MAX => {
                    let len = (span.end - span.start) as usize;
                    read(file, text, file.start() + span.start, len);
                    taken = text.len() == start + len;
                    if !taken {
                        text.truncate(start);
                    }
                    taken
                }
                // It follows on what was read, and so it does in the text from now on.
                Part::Text(range) if taken => {
                    text.extend_from_within(range.clone());
                    true
                }
                _ => {
                    taken = false;
                    false
                }
            };
            match parts.back_mut() {
                _ if !has_moved => parts.push_back(part),
                Some(Part::Text(range)) if number > 0 && range.end == start => range.end = text.len(),
                _ => parts.push_back(Part::Text(start..text.len())),
            }
        }
    }

    /// Shows what is to be sent next. Memory is shown as slices, as many as there are side by side and fit.
    pub fn front<'a, const N: usize>(&'a self, slices: &mut [IoSlice<'a>; N]) -> Chunk<'a> {
        let Some(queue) = &self.0 else { return Chunk::Empty };
        let mut count = 0;
        let mut room = PIECE;
        let mut clipped = false;
        for part in &queue.parts {
            let bytes = match part {
                Part::Text(range) => &queue.text[range.clone()],
                Part::Shared(blob, range) => &blob.bytes()[range.clone()],
                Part::File(file, range) if count == 0 => {
                    return Chunk::File {
                        file,
                        at: file.start() + range.start,
                        len: range.end - range.start,
                    };
                }
                Part::File(..) => break,
            };
            if count == N || room == 0 {
                break;
            }
            let shown = &bytes[..bytes.len().min(room)];
            clipped = shown.len() < bytes.len();
            room -= shown.len();
            slices[count] = IoSlice::new(shown);
            count += 1;
        }
        match count {
            0 => Chunk::Empty,
            _ => Chunk::Memory { slices: count, more: clipped || count < queue.parts.len() },
        }
    }

    /// Takes `n` bytes off the front: they were sent. `n` is never more than `front` showed.
    pub fn sent(&mut self, n: u64) {
        let Some(queue) = &mut self.0 else {
            assert_eq!(n, 0, "no more is sent than front showed");
            return;
        };
        let mut left = n;
        while left > 0 {
            let part = queue.parts.front_mut().expect("no more is sent than front showed");
            let (taken, rest) = match part {
                Part::Text(range) | Part::Shared(_, range) => {
                    let taken = left.min(range.len() as u64);
                    range.start += taken as usize;
                    (taken, range.len() as u64)
                }
                Part::File(_, range) => {
                    let taken = left.min(range.end - range.start);
                    range.start += taken;
                    (taken, range.end - range.start)
                }
            };
            left -= taken;
            if rest == 0 {
                queue.parts.pop_front();
            }
        }
        if queue.parts.is_empty() {
            queue.text.clear();
            if queue.text.capacity() > TEXT_KEPT_MAX {
                queue.text = Vec::new();
            }
        }
    }

    /// Whether one more whole reply fits.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.0.as_ref().is_none_or(|queue| queue.text.len() < TEXT_MAX && queue.parts.len() < PARTS_MAX)
    }

    /// Whether nothing is left to send.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|queue| queue.parts.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Ledger;

    fn drain(out: &mut Outbox, step: usize) -> Vec<u8> {
        let mut seen = Vec::new();
        loop {
            let mut slices = [IoSlice::new(&[]); 3];
            let n = match out.front(&mut slices) {
                Chunk::Empty => return seen,
                Chunk::File { .. } => unreachable!("no file in these tests"),
                Chunk::Memory { slices: count, .. } => {
                    let flat: Vec<u8> = slices[..count].iter().flat_map(|s| s.iter().copied()).collect();
                    let n = flat.len().min(step);
                    seen.extend_from_slice(&flat[..n]);
                    n
                }
            };
            out.sent(n as u64);
        }
    }

    #[test]
    fn bytes_leave_in_the_order_they_came_whatever_the_step() {
        let ledger = Ledger::default();
        let blob = Blob::new(b"0123456789".to_vec(), &ledger);
        for step in 1..40 {
            let mut out = Outbox::default();
            out.end().text(b"head ");
            out.end().text(b"one ");
            out.end().shared(&blob, 2..8);
            out.end().shared(&blob, 0..0);
            out.end().text(b" two ");
            out.end().shared(&blob, 9..10);
            assert_eq!(drain(&mut out, step), b"head one 234567 two 9", "step {step}");
            assert!(out.is_empty());
        }
        assert_eq!(ledger.alive(), 10);
    }

    #[test]
    fn text_side_by_side_is_one_slice_and_more_is_told() {
        let file = Arc::new(Source::on_disk(std::io::pipe().unwrap().0.into(), 9, &Ledger::default()));
        let mut out = Outbox::default();
        out.end().text(b"a");
        out.end().text(b"b");
        out.end().file(&file, 5..9);
        let mut slices = [IoSlice::new(&[]); 2];
        assert!(matches!(out.front(&mut slices), Chunk::Memory { slices: 1, more: true }));
        assert_eq!(&*slices[0], b"ab");
        out.sent(2);
        assert!(matches!(out.front(&mut [IoSlice::new(&[])]), Chunk::File { at: 5, len: 4, .. }));
        out.sent(1);
        assert!(matches!(out.front(&mut [IoSlice::new(&[])]), Chunk::File { at: 6, len: 3, .. }));
        out.sent(3);
        assert!(matches!(out.front(&mut [IoSlice::new(&[])]), Chunk::Empty));
    }

    #[test]
    fn a_short_span_is_taken_in_or_left_where_it_is() {
        let file = Arc::new(Source::on_disk(std::io::pipe().unwrap().0.into(), 9, &Ledger::default()));
        let outbox = |len: u64| {
            let mut out = Outbox::default();
            out.end().text(b"head");
            out.end().file(&file, 2..2 + len);
            out
        };
        let read = |count: usize| {
            move |_: &Source, into: &mut Vec<u8>, _: u64, _: usize| into.resize(4 + count, b'x')
        };
        for (len, had, is_taken) in [(3, 3, true), (3, 2, false), (3, 0, false), (4, 4, false)] {
            let mut out = outbox(len);
            out.take_in(|_| 3, read(had));
            let mut slices = [IoSlice::new(&[]); 2];
            let front = out.front(&mut slices);
            assert!(matches!(front, Chunk::Memory { slices: 1, more } if more != is_taken), "{len} {had}");
            assert_eq!(&*slices[0], if is_taken { &b"headxxx"[..] } else { b"head" });
        }
    }

    #[test]
    fn spans_are_taken_in_wherever_they_stand_and_the_order_stays() {
        let file = Arc::new(Source::on_disk(std::io::pipe().unwrap().0.into(), 99, &Ledger::default()));
        let blob = Blob::new(b"blob".to_vec(), &Ledger::default());
        // What is asked for, and which of the spans can be had at once.
        for had in 0..8 {
            let mut out = Outbox::default();
            for (number, name) in ["a", "b", "c"].iter().enumerate() {
                out.end().text(name.as_bytes());
                out.end().file(&file, number as u64 * 10..number as u64 * 10 + 2);
                if number == 1 {
                    out.end().shared(&blob, 0..4);
                }
            }
            out.end().text(b"end");
            out.sent(1);
            out.take_in(
                |_| 2,
                |_, text, at, len| {
                    let has = had >> (at / 10) & 1 == 1;
                    text.extend(std::iter::repeat_n(b'0' + (at / 10) as u8, if has { len } else { 1 }));
                },
            );
            let mut seen = Vec::new();
            loop {
                let mut slices = [IoSlice::new(&[]); 9];
                let n = match out.front(&mut slices) {
                    Chunk::Empty => break,
                    Chunk::File { at, len, .. } => {
                        assert_eq!(had >> (at / 10) & 1, 0);
                        seen.extend(std::iter::repeat_n(b'0' + (at / 10) as u8, len as usize));
                        len
                    }
                    Chunk::Memory { slices: count, .. } => {
                        let before = seen.len();
                        slices[..count].iter().for_each(|slice| seen.extend_from_slice(slice));
                        (seen.len() - before) as u64
                    }
                };
                out.sent(n);
            }
            assert_eq!(String::from_utf8(seen).unwrap(), "00b11blobc22end", "{had}");
        }
    }

    #[test]
    fn no_more_than_a_piece_is_shown_at_once() {
        let blob = Blob::new(vec![7; PIECE + 5], &Ledger::default());
        let mut out = Outbox::default();
        out.end().text(b"head");
        out.end().shared(&blob, 0..PIECE + 5);
        let mut slices = [IoSlice::new(&[]); 3];
        assert!(matches!(out.front(&mut slices), Chunk::Memory { slices: 2, more: true }));
        assert_eq!((slices[0].len(), slices[1].len()), (4, PIECE - 4));
        out.sent(PIECE as u64);
        let mut slices = [IoSlice::new(&[]); 3];
        assert!(matches!(out.front(&mut slices), Chunk::Memory { slices: 1, more: false }));
        assert_eq!(slices[0].len(), 9);
    }

    #[test]
    fn room_ends_at_the_named_limits() {
        let mut out = Outbox::default();
        out.end().text(&vec![0; TEXT_MAX - 1]);
        assert!(out.has_room());
        out.end().text(&[0]);
        assert!(!out.has_room());
    }
}
