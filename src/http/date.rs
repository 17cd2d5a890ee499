//! Dates of HTTP (RFC 9110 section 5.6.7): written as IMF-fixdate, read in all three forms.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Length of an IMF-fixdate, as in `Sun, 06 Nov 1994 08:49:37 GMT`.
pub const LENGTH: usize = 29;

/// The last second that four digits can name a year for: 31 Dec 9999, 23:59:59.
const LAST: u64 = 253_402_300_799;

/// Writes seconds since 1970 as an IMF-fixdate. Later than the year 9999 is written as its last second.
pub fn format(unix_seconds: u64) -> [u8; LENGTH] {
    let time = UNIX_EPOCH + Duration::from_secs(unix_seconds.min(LAST));
    let mut text = [0; LENGTH];
    write!(&mut text[..], "{}", httpdate::HttpDate::from(time)).expect("an IMF-fixdate has 29 bytes");
    text
}

/// Reads a date in any of the three forms, as seconds since 1970; `None` where it is none.
pub fn parse(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?;
    let time: SystemTime = httpdate::parse_http_date(text).ok()?;
    time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_three_forms_are_read_and_the_first_is_written() {
        for form in
            ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
        {
            assert_eq!(parse(form.as_bytes()), Some(784_111_777), "{form}");
        }
        assert_eq!(&format(784_111_777), b"Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(&format(u64::MAX)[..16], b"Fri, 31 Dec 9999");
    }

    #[test]
    fn what_is_no_date_is_none() {
        for text in [
            "",
            "0",
            "garbage",
            "1700000000",
            "Tue, 99 Nov 2023 22:13:20 GMT",
            "Tue, 14 Foo 2023 22:13:20 GMT",
            "Tue, 14 Nov 2023 25:61:61 GMT",
            "2023-11-14T22:13:20Z",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }
}
