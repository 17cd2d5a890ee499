//! Conditional requests (RFC 9110 section 13): the five preconditions and their order.

use super::date;
use super::parse::{Request, Single};

/// What a representation is known by.
#[derive(Clone, Copy, Debug)]
pub struct Validators<'a> {
    /// The entity tag with its quotes, a strong one.
    pub etag: &'a [u8],
    /// Another that it has been told by.
    pub first_etag: Option<&'a [u8]>,
    /// `Last-Modified` as it is sent, an IMF-fixdate.
    pub modified_text: &'a [u8],
    /// The same in seconds since 1970.
    pub modified: u64,
    /// The present, likewise.
    pub now: u64,
}

/// What the preconditions come to (RFC 9110 section 13.2.2), `If-Range` apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answer as if there were none.
    Proceed,
    /// 304
    NotModified,
    /// 412
    Failed,
}

/// Weighs `If-Match`, `If-Unmodified-Since`, `If-None-Match` and `If-Modified-Since`, in that order, for a
/// GET or HEAD.
#[inline]
pub fn evaluate(request: &Request, validators: &Validators) -> Outcome {
    if request.has_if_match {
        if !matches(request, "if-match", validators, Compare::Strong) {
            return Outcome::Failed;
        }
    } else if let Single::One(value) = request.if_unmodified_since
        && date::parse(value, validators.now).is_some_and(|since| validators.modified > since)
    {
        return Outcome::Failed;
    }
    if request.has_if_none_match {
        if matches(request, "if-none-match", validators, Compare::Weak) {
            return Outcome::NotModified;
        }
    } else if let Single::One(value) = request.if_modified_since
        // Nearly always the client sends back what it was given, byte for byte.
        && (value == validators.modified_text
            || date::parse(value, validators.now).is_some_and(|since| validators.modified <= since))
    {
        return Outcome::NotModified;
    }
    Outcome::Proceed
}

/// Whether `Range` counts: there is no `If-Range`, or it names exactly this version (RFC 9110 section
/// 13.1.5). A date only does so if it is a strong validator, at least a second old (section 8.8.2.2).
pub fn range_applies(request: &Request, validators: &Validators) -> bool {
    match request.if_range {
        Single::Absent => true,
        Single::One(value) if value.starts_with(b"\"") => {
            value == validators.etag || Some(value) == validators.first_etag
        }
        Single::One(value) => {
            date::parse(value, validators.now) == Some(validators.modified)
                && validators.modified < validators.now
        }
        Single::Repeated => false,
    }
}

/// Whether a precondition names this very tag, be it as a weak one.
pub fn names(request: &Request, etag: &[u8]) -> bool {
    ["if-match", "if-none-match", "if-range"]
        .into_iter()
        .flat_map(|name| request.lines(name))
        .any(|line| any_tag_in(line, etag, Compare::Weak))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Compare {
    /// Weak tags never match (RFC 9110 section 8.8.3.2).
    Strong,
    /// `W/` is passed over.
    Weak,
}

/// Whether the field of that name matches: a tag it has been told by, or `*`.
#[inline]
fn matches(request: &Request, name: &'static str, validators: &Validators, compare: Compare) -> bool {
    let matches_tag = |etag| request.lines(name).any(|line| line == b"*" || any_tag_in(line, etag, compare));
    matches_tag(validators.etag) || validators.first_etag.is_some_and(matches_tag)
}

/// Walks one list of entity tags. A comma may stand inside the quotes, so splitting at commas would be wrong.
fn any_tag_in(line: &[u8], etag: &[u8], compare: Compare) -> bool {
    let mut rest = line;
    loop {
        while let [b' ' | b'\t' | b',', tail @ ..] = rest {
            rest = tail;
        }
        let (weak, tag) = match rest {
            [] => return false,
            [b'W', b'/', tail @ ..] => (true, tail),
            _ => (false, rest),
        };
        let end = match tag {
            [b'"', tail @ ..] => tail.iter().position(|&b| b == b'"').map(|at| at + 2),
            _ => None,
        };
        match end {
            Some(end) => {
                if tag[..end] == *etag && !(weak && compare == Compare::Strong) {
                    return true;
                }
                rest = &tag[end..];
            }
            // No tag: pass over to the next comma.
            None => rest = &tag[tag.iter().position(|&b| b == b',').unwrap_or(tag.len())..],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::parse;

    const MODIFIED: &str = "Tue, 14 Nov 2023 22:13:20 GMT";
    const BEFORE: &str = "Tue, 14 Nov 2023 22:13:19 GMT";
    const AFTER: &str = "Tue, 14 Nov 2023 22:13:21 GMT";
    const VALIDATORS: Validators<'static> = Validators {
        etag: b"\"e,1\"",
        first_etag: Some(b"\"f\""),
        modified_text: MODIFIED.as_bytes(),
        modified: 1_700_000_000,
        now: 1_795_000_000,
    };

    fn with<T>(fields: &str, check: impl Fn(&Request) -> T) -> T {
        let head = format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        let mut room = parse::fields();
        check(&parse::head(head.as_bytes(), &mut room).unwrap().unwrap())
    }

    #[test]
    fn the_table_of_preconditions() {
        use Outcome::{Failed, NotModified, Proceed};
        for (fields, wanted) in [
            (String::new(), Proceed),
            ("If-None-Match: \"e,1\"\r\n".into(), NotModified),
            ("If-None-Match: W/\"e,1\"\r\n".into(), NotModified),
            ("If-None-Match: *\r\n".into(), NotModified),
            ("If-None-Match: \"x\" ,\t\"e,1\"\r\n".into(), NotModified),
            ("If-None-Match: \"x\"\r\nIf-None-Match: \"e,1\"\r\n".into(), NotModified),
            ("If-None-Match: bad, \"e,1\"\r\n".into(), NotModified),
            ("If-None-Match: e,1\r\n".into(), Proceed),
            ("If-None-Match: \"e,1\r\n".into(), Proceed),
            ("If-None-Match: \"x\"\r\n".into(), Proceed),
            ("If-None-Match: \r\n".into(), Proceed),
            ("If-Match: \"e,1\"\r\n".into(), Proceed),
            ("If-Match: *\r\n".into(), Proceed),
            ("If-Match: \"x\", \"e,1\"\r\n".into(), Proceed),
            ("If-Match: W/\"e,1\"\r\n".into(), Failed),
            ("If-None-Match: W/\"f\"\r\n".into(), NotModified),
            ("If-Match: \"f\"\r\n".into(), Proceed),
            ("If-Match: W/\"f\"\r\n".into(), Failed),
            ("If-Match: W/\"f\", \"e,1\"\r\n".into(), Proceed),
            ("If-Match: \"e,1\"\r\nIf-None-Match: \"f\"\r\n".into(), NotModified),
            ("If-Match: \"f\"\r\nIf-None-Match: \"e,1\"\r\n".into(), NotModified),
            ("If-Match: \"x\"\r\n".into(), Failed),
            (format!("If-Modified-Since: {MODIFIED}\r\n"), NotModified),
            (format!("If-Modified-Since: {AFTER}\r\n"), NotModified),
            (format!("If-Modified-Since: {BEFORE}\r\n"), Proceed),
            (format!("If-Modified-Since: {AFTER}\r\nIf-Modified-Since: {AFTER}\r\n"), Proceed),
            ("If-Modified-Since: yesterday\r\n".into(), Proceed),
            (format!("If-Unmodified-Since: {BEFORE}\r\n"), Failed),
            (format!("If-Unmodified-Since: {MODIFIED}\r\n"), Proceed),
            ("If-Unmodified-Since: yesterday\r\n".into(), Proceed),
            // Precedence: a tag overrides the date of its kind, and If-Match comes before If-None-Match.
            (format!("If-None-Match: \"x\"\r\nIf-Modified-Since: {MODIFIED}\r\n"), Proceed),
            (format!("If-None-Match: \"e,1\"\r\nIf-Modified-Since: {BEFORE}\r\n"), NotModified),
            (format!("If-Match: \"e,1\"\r\nIf-Unmodified-Since: {BEFORE}\r\n"), Proceed),
            ("If-Match: \"x\"\r\nIf-None-Match: \"e,1\"\r\n".into(), Failed),
            ("If-Match: \"e,1\"\r\nIf-None-Match: \"e,1\"\r\n".into(), NotModified),
        ] {
            assert_eq!(with(&fields, |r| evaluate(r, &VALIDATORS)), wanted, "{fields:?}");
        }
    }

    #[test]
    fn if_range_wants_exactly_this_version() {
        for (fields, now, wanted) in [
            (String::new(), 0, true),
            ("If-Range: \"e,1\"\r\n".into(), 0, true),
            ("If-Range: W/\"e,1\"\r\n".into(), 0, false),
            ("If-Range: \"x\"\r\n".into(), 0, false),
            ("If-Range: \"f\"\r\n".into(), 0, true),
            ("If-Range: W/\"f\"\r\n".into(), 0, false),
            ("If-Range: *\r\n".into(), 0, false),
            (format!("If-Range: {MODIFIED}\r\n"), 1_700_000_001, true),
            (format!("If-Range: {MODIFIED}\r\n"), 1_700_000_000, false),
            (format!("If-Range: {AFTER}\r\n"), 1_800_000_000, false),
            ("If-Range: \"e,1\"\r\nIf-Range: \"e,1\"\r\n".into(), 0, false),
        ] {
            let validators = Validators { now, ..VALIDATORS };
            assert_eq!(with(&fields, |r| range_applies(r, &validators)), wanted, "{fields:?}");
        }
    }
}
