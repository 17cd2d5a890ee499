//! Content codings (RFC 9110 section 12.5.3): which of the variants that exist a client is sent.

use super::parse::list;

/// A content coding that a precompressed sibling may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coding {
    /// Brotli, RFC 7932: `NAME.br`
    Brotli,
    /// Zstandard, RFC 8878: `NAME.zst`
    Zstd,
    /// gzip, RFC 1952: `NAME.gz`
    Gzip,
}

impl Coding {
    /// All codings, best first: where a client likes several equally well, the first that exists is sent.
    pub const ALL: [Coding; 3] = [Coding::Brotli, Coding::Zstd, Coding::Gzip];

    /// The name in `Content-Encoding`.
    pub const fn name(self) -> &'static str {
        match self {
            Coding::Brotli => "br",
            Coding::Zstd => "zstd",
            Coding::Gzip => "gzip",
        }
    }

    /// The ending of a sibling's file name.
    pub const fn suffix(self) -> &'static str {
        match self {
            Coding::Brotli => ".br",
            Coding::Zstd => ".zst",
            Coding::Gzip => ".gz",
        }
    }
}

/// A set of codings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Codings(u8);

impl Codings {
    /// The set of all.
    pub const ALL: Codings = Codings((1 << Coding::ALL.len()) - 1);

    /// Adds one.
    pub fn insert(&mut self, coding: Coding) {
        self.0 |= 1 << coding as u8;
    }

    /// Takes one out.
    pub fn remove(&mut self, coding: Coding) {
        self.0 &= !(1 << coding as u8);
    }

    /// Whether it is in.
    pub const fn contains(self, coding: Coding) -> bool {
        self.0 & (1 << coding as u8) != 0
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The best of the available variants; `None` is the file as it is. It is also what a client gets that
/// accepts nothing at all: RFC 9110 section 12.5.3 allows to disregard the field, and bytes beat a 406.
pub fn choose<'a>(lines: impl Iterator<Item = &'a [u8]> + Clone, available: Codings) -> Option<Coding> {
    let mut quality: [Option<u16>; 3] = [None; 3];
    let mut identity = None;
    let mut others = None;
    for member in lines.flat_map(list) {
        let mut pieces = member.split(|&b| b == b';').map(<[u8]>::trim_ascii);
        let name = pieces.next().unwrap_or_default();
        let q = pieces.next().map_or(Some(1000), weight).unwrap_or(0);
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
        if is("identity") {
            identity = Some(q);
        } else if is("*") {
            others = Some(q);
        } else if is("x-gzip") {
            quality[Coding::Gzip as usize] = Some(q);
        } else if let Some(coding) = Coding::ALL.into_iter().find(|coding| is(coding.name())) {
            quality[coding as usize] = Some(q);
        }
    }
    // Not mentioned at all, the plain file is acceptable but the last choice.
    let mut best = (identity.or(others).unwrap_or(0), None);
    for coding in Coding::ALL.into_iter().filter(|&coding| available.contains(coding)) {
        let q = quality[coding as usize].or(others).unwrap_or(0);
        let wins = if best.1.is_none() { q >= best.0 } else { q > best.0 };
        if q > 0 && wins {
            best = (q, Some(coding));
        }
    }
    best.1
}

/// `q=0.123` in thousandths (RFC 9110 section 12.4.2); `None` where it is malformed.
fn weight(parameter: &[u8]) -> Option<u16> {
    let [b'q' | b'Q', b'=', value @ ..] = parameter else { return None };
    let (whole, decimals) = match value {
        [whole] => (whole, &b""[..]),
        [whole, b'.', decimals @ ..] if decimals.len() <= 3 => (whole, decimals),
        _ => return None,
    };
    let mut thousandths: u16 = 0;
    for place in 0..3 {
        let digit = decimals.get(place).unwrap_or(&b'0');
        thousandths = thousandths * 10 + u16::from(digit.is_ascii_digit().then(|| digit - b'0')?);
    }
    match (whole, thousandths) {
        (b'0', q) => Some(q),
        (b'1', 0) => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(field: &str, available: &[Coding]) -> &'static str {
        let mut set = Codings::default();
        for &coding in available {
            set.insert(coding);
        }
        let lines: Vec<&[u8]> = field.split('\n').map(str::as_bytes).collect();
        choose(lines.iter().copied(), set).map_or("identity", Coding::name)
    }

    #[test]
    fn the_table_of_choices() {
        use Coding::{Brotli, Gzip, Zstd};
        let all = &[Brotli, Zstd, Gzip][..];
        for (field, available, wanted) in [
            ("", all, "identity"),
            ("gzip", all, "gzip"),
            ("x-gzip", all, "gzip"),
            ("GZIP", all, "gzip"),
            ("gzip, deflate, br", all, "br"),
            ("gzip, deflate, br, zstd", all, "br"),
            ("gzip\nbr", all, "br"),
            ("gzip, deflate, br", &[Gzip], "gzip"),
            ("gzip, zstd", all, "zstd"),
            ("br;q=0.1, gzip;q=0.9", all, "gzip"),
            ("gzip;q=0.1, br;q=0.9", all, "br"),
            ("gzip ; q=0.5 , br ; q=0", all, "gzip"),
            ("gzip;q=0", all, "identity"),
            ("gzip;q=0.000", all, "identity"),
            ("gzip;Q=0", all, "identity"),
            ("gzip;q=0.0001", all, "identity"),
            ("gzip;q=2", all, "identity"),
            ("gzip;level=9", all, "identity"),
            ("*", all, "br"),
            ("*;q=0", all, "identity"),
            ("*, gzip;q=0", &[Gzip], "identity"),
            ("*, br;q=0", all, "zstd"),
            ("identity", all, "identity"),
            ("identity, gzip;q=0.5", all, "identity"),
            ("identity;q=0.5, gzip", all, "gzip"),
            ("gzip;q=0.5", all, "gzip"),
            ("identity;q=0, gzip", all, "gzip"),
            ("identity;q=0", all, "identity"),
            ("deflate", all, "identity"),
            ("gzipped, brx", all, "identity"),
            (",, ,gzip,", all, "gzip"),
        ] {
            assert_eq!(chosen(field, available), wanted, "{field:?} of {available:?}");
        }
    }
}
