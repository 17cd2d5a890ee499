//! Responses as the generator reads them: where the head ends, what it says, how many bytes follow.
//!
//! [`Parser`] is fed pieces of whatever size and says what it has found in them. It keeps only a head that is
//! not whole yet; of bodies it counts the bytes. Whoever reads a connection may throw bytes of a body away
//! unseen, and tells it with [`Parser::discard`].
//!
//! A server under load says the same head thousands of times, down to the last byte, until its clock has
//! moved on by a second. So the last one is kept ([`Known`]): to compare bytes costs less than to read them.

/// A head longer than this is taken for a mistake.
const HEAD_MAX: usize = 64 * 1024;

/// What a head says, as far as the generator wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The status code.
    pub status: u16,
    /// Bytes of the body.
    pub length: u64,
    /// Whether it is the last response of its connection.
    pub close: bool,
}

/// What a piece of input holds next.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A head has come to its end.
    Head(Head),
    /// Bytes of the body.
    Body(&'a [u8]),
    /// The response has come to its end.
    End,
}

/// The head that was read last, on whichever connection: what it says need not be found out again.
#[derive(Debug, Default)]
pub struct Known {
    bytes: Vec<u8>,
    head: Option<Head>,
}

impl Known {
    /// What the head says that `input` begins with, if it is this one, and how long it is. A head ends where
    /// an empty line does for the first time, so one that has these bytes has no others.
    fn at_front_of(&self, input: &[u8]) -> Option<(Head, usize)> {
        let head = self.head?;
        input.starts_with(&self.bytes).then_some((head, self.bytes.len()))
    }

    /// Reads a head, and keeps it.
    fn learn(&mut self, bytes: &[u8]) -> Result<Head, &'static str> {
        let head = parse(bytes)?;
        self.bytes.clear();
        self.bytes.extend_from_slice(bytes);
        self.head = Some(head);
        Ok(head)
    }
}

/// Reads the responses of one connection.
#[derive(Debug, Default)]
pub struct Parser {
    /// A head that is not whole yet.
    partial: Vec<u8>,
    /// Bytes of the body still to come; `None` within a head.
    left: Option<u64>,
}

impl Parser {
    /// Takes the next event from the front of `input`; `None` if more input is wanted first.
    ///
    /// # Errors
    /// What makes these bytes no response that can be measured, as half a sentence.
    pub fn next<'a>(
        &mut self,
        known: &mut Known,
        input: &mut &'a [u8],
    ) -> Result<Option<Event<'a>>, &'static str> {
        match self.left {
            Some(0) => {
                self.left = None;
                Ok(Some(Event::End))
            }
            Some(left) if !input.is_empty() => {
                let take = input.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let (body, rest) = input.split_at(take);
                *input = rest;
                self.left = Some(left - take as u64);
                Ok(Some(Event::Body(body)))
            }
            None if !input.is_empty() => {
                let head = self.head(known, input)?;
                self.left = head.map(|head| head.length);
                Ok(head.map(Event::Head))
            }
            _ => Ok(None),
        }
    }

    /// Bytes of the present body that are still to come.
    pub fn left(&self) -> u64 {
        self.left.unwrap_or(0)
    }

    /// Bytes of the present body have come, and were thrown away.
    pub fn discard(&mut self, bytes: u64) {
        let left = self.left();
        assert!(bytes <= left, "more was thrown away than the body has left");
        self.left = Some(left - bytes);
    }

    /// Whether the connection stands between two responses.
    pub fn is_between(&self) -> bool {
        self.left.is_none() && self.partial.is_empty()
    }

    fn head(&mut self, known: &mut Known, input: &mut &[u8]) -> Result<Option<Head>, &'static str> {
        if self.partial.is_empty() {
            if let Some((head, length)) = known.at_front_of(input) {
                *input = &input[length..];
                return Ok(Some(head));
            }
            if let Some(end) = end_of_head(input, 0) {
                let (head, rest) = input.split_at(end);
                *input = rest;
                return known.learn(head).map(Some);
            }
        }
        // The end may have begun in the piece before.
        let before = self.partial.len();
        self.partial.extend_from_slice(input);
        let Some(end) = end_of_head(&self.partial, before.saturating_sub(3)) else {
            *input = &[];
            return if self.partial.len() > HEAD_MAX { Err("a head without end") } else { Ok(None) };
        };
        *input = &input[end - before..];
        self.partial.truncate(end);
        let head = known.learn(&self.partial);
        self.partial.clear();
        head.map(Some)
    }
}

/// Where the empty line ends, searched from `from` on.
fn end_of_head(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(found) = bytes[at..].iter().position(|&byte| byte == b'\n') {
        at += found + 1;
        if at >= 4 && &bytes[at - 4..at] == b"\r\n\r\n" {
            return Some(at);
        }
    }
    None
}

fn parse(head: &[u8]) -> Result<Head, &'static str> {
    let mut lines = head.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let line = lines.next().unwrap_or_default();
    let (version, rest) = line.split_at_checked(9).ok_or("no status line")?;
    let code = rest.get(..3).ok_or("no status line")?;
    if !matches!(version, b"HTTP/1.1 " | b"HTTP/1.0 ") || !code.iter().all(u8::is_ascii_digit) {
        return Err("no status line");
    }
    let status = code.iter().fold(0, |number, digit| number * 10 + u16::from(digit - b'0'));
    let mut length = None;
    let mut close = version == b"HTTP/1.0 ";
    for line in lines {
        if let Some(value) = value_of(line, b"content-length:") {
            let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            let number = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
            length = Some(number.filter(|_| digits).ok_or("a Content-Length that is no number")?);
        } else if value_of(line, b"transfer-encoding:").is_some() {
            return Err("a response in chunks, which the generator does not read");
        } else if let Some(value) = value_of(line, b"connection:") {
            close = value.eq_ignore_ascii_case(b"close");
        }
    }
    match (status, length) {
        (100..200, _) => Err("an interim response"),
        (204 | 304, _) => Ok(Head { status, length: 0, close }),
        (_, Some(length)) => Ok(Head { status, length, close }),
        (_, None) => Err("a response without Content-Length"),
    }
}

fn value_of<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, value) = line.split_at_checked(name.len())?;
    start.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TWO: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nDate: x\r\n\r\nhello\
        HTTP/1.1 404 Not Found\r\ncontent-length:0\r\nConnection: close\r\n\r\n";

    /// Heads, all bytes of bodies, and how many responses have ended.
    fn read(pieces: &[&[u8]]) -> Result<(Vec<Head>, Vec<u8>, usize), &'static str> {
        let (mut heads, mut bodies, mut ends) = (Vec::new(), Vec::new(), 0);
        let (mut parser, mut known) = (Parser::default(), Known::default());
        for piece in pieces {
            let mut input = *piece;
            while let Some(event) = parser.next(&mut known, &mut input)? {
                match event {
                    Event::Head(head) => heads.push(head),
                    Event::Body(bytes) => bodies.extend_from_slice(bytes),
                    Event::End => ends += 1,
                }
            }
            assert!(input.is_empty());
        }
        Ok((heads, bodies, ends))
    }

    #[test]
    fn two_responses_in_one_piece() {
        let (heads, bodies, ends) = read(&[TWO]).unwrap();
        let first = Head { status: 200, length: 5, close: false };
        assert_eq!(heads, [first, Head { status: 404, length: 0, close: true }]);
        assert_eq!((&*bodies, ends), (&b"hello"[..], 2));
    }

    #[test]
    fn what_cannot_be_measured_is_named() {
        for (head, part) in [
            (&b"HTTP/1.1 200 OK\r\n\r\n"[..], "without Content-Length"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "chunks"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "no number"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n", "no number"),
            (b"HTTP/1.1 100 Continue\r\n\r\n", "interim"),
            (b"HTTP/2 200\r\n\r\n", "no status line"),
            (b"SSH-2.0\r\n\r\n", "no status line"),
        ] {
            let error = read(&[head]).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        let endless = vec![b'x'; HEAD_MAX + 1];
        assert!(read(&[&endless]).unwrap_err().contains("without end"));
    }

    #[test]
    fn bytes_thrown_away_count() {
        let (mut parser, mut known) = (Parser::default(), Known::default());
        let mut input = &b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"[..];
        while parser.next(&mut known, &mut input).unwrap().is_some() {}
        assert_eq!(parser.left(), 97);
        parser.discard(97);
        assert_eq!(parser.next(&mut known, &mut input), Ok(Some(Event::End)));
        assert!(parser.is_between());
    }

    #[test]
    fn a_head_like_the_last_one_is_told_from_one_that_only_begins_like_it() {
        const FIRST: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na";
        const LONGER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\nb";
        let (heads, bodies, ends) = read(&[FIRST, FIRST, LONGER, FIRST]).unwrap();
        assert_eq!(heads.iter().map(|head| head.close).collect::<Vec<_>>(), [false, false, true, false]);
        assert_eq!((&*bodies, ends), (&b"aaba"[..], 4));
        // What is wrong is not kept, and wrong again.
        let (mut parser, mut known) = (Parser::default(), Known::default());
        for _ in 0..2 {
            assert!(parser.next(&mut known, &mut &b"HTTP/1.1 200 OK\r\n\r\n"[..]).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same(cuts in proptest::collection::vec(0..TWO.len(), 0..12)) {
            let mut cuts = cuts;
            cuts.extend([0, TWO.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|cut| &TWO[cut[0]..cut[1]]).collect();
            prop_assert_eq!(read(&pieces), read(&[TWO]));
        }

        #[test]
        fn no_bytes_whatever_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let (mut parser, mut known) = (Parser::default(), Known::default());
            let mut input = &bytes[..];
            while let Ok(Some(_)) = parser.next(&mut known, &mut input) {}
        }
    }
}
