//! From the path of a target to a canonical one: decoded once, without dot segments, empty or hidden
//! segments.
//!
//! One file has one canonical path, and only that is a key of the cache: a client cannot fill the cache with
//! aliases of the same file by encoding its name in many ways.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use crate::http::Status;

/// What stands in a redirect's path as it is: `pchar` and `/` (RFC 3986 section 3.3), without the characters
/// that somebody might read as markup or as the start of an authority.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'!')
    .remove(b'$')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b':')
    .remove(b'@');

/// What stands in a redirect's query as it is: all that a target may hold, but for what is no URI character.
const KEPT_IN_QUERY: &AsciiSet = &percent_encoding::CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'<')
    .add(b'>')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// The canonical form of a raw path that starts with `/`. A plain one is returned as it is; `scratch` is only
/// written where something must be decoded or resolved.
///
/// # Errors
/// 400 for a malformed escape, a NUL or a way out of the root; 404 for a name that no file can have or that
/// is hidden.
pub fn canonical<'a>(
    raw: &'a [u8],
    include_hidden: bool,
    scratch: &'a mut Vec<u8>,
) -> Result<&'a [u8], Status> {
    debug_assert!(raw.starts_with(b"/"));
    if is_plain(raw) {
        return Ok(raw);
    }
    scratch.clear();
    let mut directory = true;
    for segment in raw[1..].split(|&b| b == b'/') {
        let start = scratch.len();
        scratch.push(b'/');
        decode(segment, scratch)?;
        directory = match &scratch[start + 1..] {
            b"" | b"." => {
                scratch.truncate(start);
                true
            }
            b".." => {
                scratch.truncate(start);
                let parent = scratch.iter().rposition(|&b| b == b'/').ok_or(Status::BadRequest)?;
                scratch.truncate(parent);
                true
            }
            _ => false,
        };
    }
    if directory {
        scratch.push(b'/');
    }
    if !include_hidden && has_hidden_segment(scratch) {
        return Err(Status::NotFound);
    }
    Ok(scratch)
}

/// The path as it stands in a `Location`.
pub fn encode(path: &[u8]) -> String {
    percent_encode(path, KEPT).to_string()
}

/// The query as it stands in a `Location`.
pub fn encode_query(query: &[u8]) -> String {
    percent_encode(query, KEPT_IN_QUERY).to_string()
}

/// Nothing is encoded, and no segment is empty or starts with a dot.
fn is_plain(raw: &[u8]) -> bool {
    let mut after_slash = false;
    for &b in raw {
        if b > b'/' {
            after_slash = false;
            continue;
        }
        if b == b'%' || b == 0 || (after_slash && (b == b'/' || b == b'.')) {
            return false;
        }
        after_slash = b == b'/';
    }
    true
}

/// A segment that starts with a dot, but for `/.well-known` (RFC 8615).
fn has_hidden_segment(path: &[u8]) -> bool {
    path[1..]
        .split(|&b| b == b'/')
        .enumerate()
        .any(|(depth, segment)| segment.starts_with(b".") && !(depth == 0 && segment == b".well-known"))
}

fn decode(segment: &[u8], out: &mut Vec<u8>) -> Result<(), Status> {
    let mut rest = segment;
    while let [first, tail @ ..] = rest {
        let (byte, tail) = match first {
            b'%' => {
                let [high, low, tail @ ..] = tail else { return Err(Status::BadRequest) };
                let digit = |b: &u8| char::from(*b).to_digit(16).ok_or(Status::BadRequest);
                ((digit(high)? * 16 + digit(low)?) as u8, tail)
            }
            &byte => (byte, tail),
        };
        match byte {
            0 => return Err(Status::BadRequest),
            // An encoded slash is part of a name, and no file has such a name.
            b'/' => return Err(Status::NotFound),
            _ => out.push(byte),
        }
        rest = tail;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn resolved(raw: &[u8], hidden: bool) -> Result<String, u16> {
        let mut scratch = Vec::new();
        canonical(raw, hidden, &mut scratch)
            .map(|path| String::from_utf8_lossy(path).into_owned())
            .map_err(Status::code)
    }

    #[test]
    fn the_table_of_paths() {
        for (raw, wanted) in [
            ("/", Ok("/")),
            ("/a.txt", Ok("/a.txt")),
            ("/sub/", Ok("/sub/")),
            ("/%61.txt", Ok("/a.txt")),
            ("/a%2etxt", Ok("/a.txt")),
            ("/a+b", Ok("/a+b")),
            ("/%2541", Ok("/%41")),
            ("/a..b", Ok("/a..b")),
            ("/caf%C3%A9", Ok("/café")),
            ("//a.txt", Ok("/a.txt")),
            ("///", Ok("/")),
            ("/./a.txt", Ok("/a.txt")),
            ("/sub/../a.txt", Ok("/a.txt")),
            ("/sub/%2e%2e/a.txt", Ok("/a.txt")),
            ("/sub/..", Ok("/")),
            ("/sub/.", Ok("/sub/")),
            ("//evil.com/..", Ok("/")),
            ("/\\evil.com", Ok("/\\evil.com")),
            ("/.well-known/x", Ok("/.well-known/x")),
            ("/x/.well-known/x", Err(404)),
            ("/.well-known/.x", Err(404)),
            ("/.env", Err(404)),
            ("/%2eenv", Err(404)),
            ("/sub/.hidden", Err(404)),
            ("/.../x", Err(404)),
            ("/.git/../a.txt", Ok("/a.txt")),
            ("/%2f", Err(404)),
            ("/..%2fetc", Err(404)),
            ("/%00", Err(400)),
            ("/%zz", Err(400)),
            ("/%", Err(400)),
            ("/%4", Err(400)),
            ("/..", Err(400)),
            ("/../etc", Err(400)),
            ("/%2e%2e/etc", Err(400)),
            ("/a/../../etc", Err(400)),
        ] {
            assert_eq!(resolved(raw.as_bytes(), false), wanted.map(String::from), "{raw}");
        }
        assert_eq!(resolved(b"/.env", true), Ok("/.env".into()));
    }

    #[test]
    fn a_location_stays_on_this_host_and_is_a_uri() {
        assert_eq!(encode(b"/\\evil.com/"), "/%5Cevil.com/");
        assert_eq!(encode("/\u{fc}ber dir\r\nX: y/".as_bytes()), "/%C3%BCber%20dir%0D%0AX:%20y/");
        assert_eq!(encode_query("a=1&b=\u{fc}\"".as_bytes()), "a=1&b=%C3%BC%22");
    }

    proptest! {
        /// Whatever comes in, what comes out has no dot, empty or hidden segment and is its own canonical
        /// form.
        #[test]
        fn a_canonical_path_is_safe_and_stable(raw in "/[a./%25eEfF0-9~\\\\ -]{0,40}") {
            let mut scratch = Vec::new();
            if let Ok(path) = canonical(raw.as_bytes(), false, &mut scratch) {
                let path = path.to_vec();
                prop_assert!(path.starts_with(b"/") && !path.contains(&0));
                let inner = path[1..].strip_suffix(b"/").unwrap_or(&path[1..]);
                if !inner.is_empty() {
                    for segment in inner.split(|&b| b == b'/') {
                        prop_assert!(!segment.is_empty() && !matches!(segment, b"." | b".."));
                    }
                }
                // Encoded again and read again, it is the same.
                let again = encode(&path);
                let mut scratch = Vec::new();
                prop_assert_eq!(canonical(again.as_bytes(), false, &mut scratch), Ok(&path[..]));
            }
        }
    }
}
