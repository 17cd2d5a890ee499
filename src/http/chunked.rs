//! Passing over a chunked body (RFC 9112 section 7.1), byte by byte and strictly.
//!
//! Nothing in the body is wanted; all that matters is to find its end exactly where the client put it. So a
//! bare LF, a space before a size or a size that overflows is an error, never a guess.

/// Bytes of extensions and trailers that one body may have.
const OVERHEAD_MAX: u32 = 16 * 1024;
/// Hexadecimal digits a chunk size may have.
const DIGITS_MAX: u8 = 16;

/// Where in a chunked body the next byte stands.
#[derive(Clone, Copy, Debug)]
pub struct Chunks {
    at: At,
    /// Bytes of the chunk under way that are still to come, or its size as far as read.
    left: u64,
    overhead: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Size { digits: u8 },
    SpaceBeforeExtension,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
}

/// The bytes are no chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl Chunks {
    /// The state before the first byte.
    pub const fn new() -> Chunks {
        Chunks { at: At::Size { digits: 0 }, left: 0, overhead: 0 }
    }

    /// Passes over as much of `bytes` as belongs to the body: how many bytes that was, and whether it is
    /// over.
    ///
    /// # Errors
    /// [`Malformed`], where the bytes are no chunked body or its overhead passes the limit.
    pub fn pass(&mut self, bytes: &[u8]) -> Result<(usize, bool), Malformed> {
        let mut n = 0;
        while n < bytes.len() {
            if self.at == At::Data {
                let taken = (bytes.len() - n).min(usize::try_from(self.left).unwrap_or(usize::MAX));
                n += taken;
                self.left -= taken as u64;
                if self.left == 0 {
                    self.at = At::DataCr;
                }
                continue;
            }
            let ended = self.step(bytes[n])?;
            n += 1;
            if ended {
                return Ok((n, true));
            }
        }
        Ok((n, false))
    }

    fn step(&mut self, byte: u8) -> Result<bool, Malformed> {
        self.at = match (self.at, byte) {
            (At::Size { digits }, b) if b.is_ascii_hexdigit() && digits < DIGITS_MAX => {
                let value = char::from(b).to_digit(16).expect("a hexadecimal digit");
                self.left = self.left.checked_mul(16).ok_or(Malformed)? + u64::from(value);
                At::Size { digits: digits + 1 }
            }
            (At::Size { digits: 1.. } | At::Extension, b'\r') => At::SizeLf,
            (At::Size { digits: 1.. }, b' ' | b'\t') => At::SpaceBeforeExtension,
            (At::SpaceBeforeExtension, b' ' | b'\t') => self.overhead(At::SpaceBeforeExtension)?,
            (At::Size { digits: 1.. } | At::SpaceBeforeExtension, b';') => At::Extension,
            (At::Extension, b) if is_text(b) => self.overhead(At::Extension)?,
            (At::SizeLf, b'\n') if self.left == 0 => At::TrailerStart,
            (At::SizeLf, b'\n') => At::Data,
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Size { digits: 0 },
            (At::TrailerStart, b'\r') => At::EndLf,
            // A trailer line that starts with white space would be a fold, which no sender may make.
            (At::TrailerStart, b) if is_text(b) && b != b' ' && b != b'\t' => self.overhead(At::Trailer)?,
            (At::Trailer, b'\r') => At::TrailerLf,
            (At::Trailer, b) if is_text(b) => self.overhead(At::Trailer)?,
            (At::TrailerLf, b'\n') => At::TrailerStart,
            (At::EndLf, b'\n') => return Ok(true),
            _ => return Err(Malformed),
        };
        Ok(false)
    }

    fn overhead(&mut self, next: At) -> Result<At, Malformed> {
        self.overhead += 1;
        if self.overhead > OVERHEAD_MAX { Err(Malformed) } else { Ok(next) }
    }
}

impl Default for Chunks {
    fn default() -> Chunks {
        Chunks::new()
    }
}

/// What may stand in a field value or an extension: no control character but the tab.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the whole input cut in two at every position; all cuts must agree.
    fn pass(input: &[u8]) -> Result<Option<usize>, Malformed> {
        let whole = Chunks::new().pass(input).map(|(n, ended)| ended.then_some(n));
        for cut in 0..input.len() {
            let mut chunks = Chunks::new();
            let split = match chunks.pass(&input[..cut]) {
                Ok((n, true)) => Ok(Some(n)),
                Ok((_, false)) => chunks.pass(&input[cut..]).map(|(n, ended)| ended.then_some(cut + n)),
                Err(malformed) => Err(malformed),
            };
            assert_eq!(split, whole, "cut at {cut}");
        }
        whole
    }

    #[test]
    fn the_end_is_found_and_nothing_behind_it_is_touched() {
        for body in [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "5;a=b\r\nhello\r\n00\r\n\r\n",
            "A ; q=\"x;y\"\r\n0123456789\r\n0;last\r\nX-Sum: 1\r\nY:\r\n\r\n",
            "0000000000000003\r\nabc\r\n0\r\n\r\n",
        ] {
            let input = format!("{body}GET / HTTP/1.1");
            assert_eq!(pass(input.as_bytes()), Ok(Some(body.len())), "{body:?}");
        }
        assert_eq!(pass(b"5\r\nhel"), Ok(None));
    }

    #[test]
    fn malformed_framing_is_refused() {
        for body in [
            "5g\r\n",
            "0x5\r\n",
            "-5\r\n",
            "+5\r\n",
            " 5\r\n",
            "\r\n",
            "5 5\r\n",
            "5 \r\n",
            "g\r\n",
            "5_0\r\n",
            "5\nhello",
            "5\r\nhelloX",
            "5\r\nhello\n0\r\n",
            "10000000000000005\r\n",
            "FFFFFFFFFFFFFFFF5\r\n",
            "0\r\n folded\r\n\r\n",
            "0\r\nX: y\n\r\n",
            "0\r\nX: \0\r\n\r\n",
            "0\r\n\n",
            "1;\x01\r\na\r\n",
        ] {
            assert_eq!(pass(body.as_bytes()), Err(Malformed), "{body:?}");
        }
    }

    #[test]
    fn overhead_is_bounded() {
        let long = format!("5;{}\r\n", "x".repeat(OVERHEAD_MAX as usize + 1));
        assert_eq!(Chunks::new().pass(long.as_bytes()), Err(Malformed));
    }
}
