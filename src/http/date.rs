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

/// Reads a date in any of the three forms, as seconds since 1970; `None` where it is none. `now`, likewise,
/// decides which century a year of two digits means: never more than 50 years ahead.
pub fn parse(value: &[u8], now: u64) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?;
    let time = match httpdate::parse_http_date(text) {
        // Its own reading of two digits is another one.
        Ok(time) if !text.contains('-') => time,
        _ => rfc850(text, now)?,
    };
    time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

/// `Sunday, 06-Nov-94 08:49:37 GMT`, rewritten as an IMF-fixdate. Which weekday it names does not matter.
fn rfc850(text: &str, now: u64) -> Option<SystemTime> {
    const SECONDS_OF_YEAR: u64 = 31_556_952;
    const WEEKDAYS: [&str; 7] =
        ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
    let (weekday, rest) = text.split_once(", ")?;
    let (day, rest) = rest.split_once('-')?;
    let (month, rest) = rest.split_once('-')?;
    let (year, time) = rest.split_once(' ')?;
    if !WEEKDAYS.contains(&weekday) || year.len() != 2 || !year.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let this_year = 1970 + now / SECONDS_OF_YEAR;
    let mut year = this_year / 100 * 100 + year.parse::<u64>().ok()?;
    if year > this_year + 50 {
        year -= 100;
    }
    // httpdate wants the weekday to be right, and one of the seven is.
    WEEKDAYS.iter().find_map(|weekday| {
        httpdate::parse_http_date(&format!("{}, {day} {month} {year} {time}", &weekday[..3])).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some day in 2026.
    const NOW: u64 = 1_795_000_000;

    #[test]
    fn two_digits_are_never_more_than_fifty_years_ahead() {
        for (text, wanted) in [
            ("Thursday, 06-Nov-86 08:49:37 GMT", Some(531_650_977)),
            ("Monday, 06-Nov-86 08:49:37 GMT", Some(531_650_977)),
            ("Friday, 06-Nov-76 08:49:37 GMT", Some(3_371_878_177)),
            ("Someday, 06-Nov-86 08:49:37 GMT", None),
            ("Monday, 06-Nov-1986 08:49:37 GMT", None),
            ("Monday, 99-Nov-86 08:49:37 GMT", None),
        ] {
            assert_eq!(parse(text.as_bytes(), NOW), wanted, "{text}");
        }
    }

    #[test]
    fn all_three_forms_are_read_and_the_first_is_written() {
        for form in
            ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
        {
            assert_eq!(parse(form.as_bytes(), NOW), Some(784_111_777), "{form}");
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
            assert_eq!(parse(text.as_bytes(), NOW), None, "{text}");
        }
    }
}
