//! Byte ranges (RFC 9110 section 14): which spans of a representation a `Range` field selects.

use std::ops::Range;

use super::parse::list;

/// Ranges one request may ask for; with more, the field is ignored (RFC 9110 section 14.2, CVE-2011-3192).
pub const RANGES_MAX: usize = 32;

/// What a `Range` field means for a representation of a given size.
#[derive(Debug, PartialEq, Eq)]
pub enum Selection {
    /// Send all of it: the field is malformed, of another unit, or asks for too much.
    All,
    /// One span: 206.
    One(Range<u64>),
    /// Several spans, in the order asked for: 206 with multipart/byteranges.
    Several(Vec<Range<u64>>),
    /// Well-formed, but no span lies within: 416.
    Unsatisfiable,
}

/// Reads a `Range` value against a size in bytes.
pub fn select(value: &[u8], size: u64) -> Selection {
    let Some((unit, set)) = value.iter().position(|&b| b == b'=').map(|at| (&value[..at], &value[at + 1..]))
    else {
        return Selection::All;
    };
    if !unit.eq_ignore_ascii_case(b"bytes") {
        return Selection::All;
    }
    let mut first = None;
    let mut rest = Vec::new();
    let mut count = 0;
    for spec in list(set) {
        count += 1;
        match span(spec, size) {
            Some(span) if !span.is_empty() && first.is_none() => first = Some(span),
            Some(span) if !span.is_empty() => rest.push(span),
            Some(_) => {}
            None => return Selection::All,
        }
        if count > RANGES_MAX {
            return Selection::All;
        }
    }
    match first {
        None if count == 0 => Selection::All,
        // A suffix of an empty file is satisfiable, but no Content-Range can say so.
        None if size == 0 && list(set).any(|spec| spec.starts_with(b"-") && spec != b"-0") => Selection::All,
        None => Selection::Unsatisfiable,
        Some(only) if rest.is_empty() => Selection::One(only),
        Some(first) => {
            rest.insert(0, first);
            let total = rest.iter().fold(0u64, |sum, span| sum.saturating_add(span.end - span.start));
            // More than the whole would come back: overlapping ranges, which nobody needs.
            if total > size { Selection::All } else { Selection::Several(rest) }
        }
    }
}

/// One `int-range` or `suffix-range`, clamped to the size; empty where unsatisfiable, `None` where malformed.
fn span(spec: &[u8], size: u64) -> Option<Range<u64>> {
    let dash = spec.iter().position(|&b| b == b'-')?;
    match (&spec[..dash], &spec[dash + 1..]) {
        (b"", suffix) => Some(size.saturating_sub(number(suffix)?)..size),
        (first, b"") => Some(number(first)?.min(size)..size),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return None;
            }
            Some(first.min(size)..last.saturating_add(1).min(size))
        }
    }
}

/// Digits as a number; beyond 64 bits it stays at the largest, which is beyond any file as well.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0u64, |n, &d| n.saturating_mul(10).saturating_add(u64::from(d - b'0'))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_table_of_selections() {
        use Selection::{All, One, Several, Unsatisfiable};
        for (value, size, wanted) in [
            ("bytes=0-9", 1000, One(0..10)),
            ("Bytes=0-0", 1000, One(0..1)),
            ("bytes=990-", 1000, One(990..1000)),
            ("bytes=-10", 1000, One(990..1000)),
            ("bytes=-5000", 1000, One(0..1000)),
            ("bytes=990-5000", 1000, One(990..1000)),
            ("bytes=0-18446744073709551615", 1000, One(0..1000)),
            ("bytes=4-99999999999999999999999999", 1000, One(4..1000)),
            ("bytes= 0-3 , ,-4,", 1000, Several(vec![0..4, 996..1000])),
            ("bytes=1000-,0-3", 1000, One(0..4)),
            ("bytes=1000-", 1000, Unsatisfiable),
            ("bytes=5000-6000,7000-", 1000, Unsatisfiable),
            ("bytes=18446744073709551616-", 1000, Unsatisfiable),
            ("bytes=-0", 1000, Unsatisfiable),
            ("bytes=0-", 0, Unsatisfiable),
            ("bytes=-1", 0, All),
            ("bytes=0-9,0-", 1000, All),
            ("bytes=5-2", 1000, All),
            ("bytes=", 1000, All),
            ("bytes=-", 1000, All),
            ("bytes=0-3,x", 1000, All),
            ("bytes=0 -3", 1000, All),
            ("bytes=+1-3", 1000, All),
            ("bytes 0-4", 1000, All),
            ("lines=0-4", 1000, All),
            ("", 1000, All),
        ] {
            assert_eq!(select(value.as_bytes(), size), wanted, "{value:?} of {size}");
        }
    }

    #[test]
    fn too_many_ranges_are_ignored() {
        let value = format!("bytes={}", "0-0,".repeat(RANGES_MAX + 1));
        assert_eq!(select(value.as_bytes(), 1000), Selection::All);
    }

    proptest! {
        /// Whatever stands in the field, every span lies within the size and all together are no more than
        /// it.
        #[test]
        fn spans_stay_within_the_size(value in "bytes=[-0-9, ]{0,60}", size in 0u64..5000) {
            let spans = match select(value.as_bytes(), size) {
                Selection::One(span) => vec![span],
                Selection::Several(spans) => spans,
                Selection::All | Selection::Unsatisfiable => vec![],
            };
            for span in &spans {
                prop_assert!(span.start < span.end && span.end <= size);
            }
            prop_assert!(spans.iter().map(|s| s.end - s.start).sum::<u64>() <= size);
        }
    }
}
