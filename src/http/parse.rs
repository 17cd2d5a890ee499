//! Request heads (RFC 9112 sections 2 to 6): bytes in, a [`Request`] that borrows them out.
//!
//! `httparse` does the grammar; this file decides what the fields mean for the framing. Whatever could be
//! read in two ways (RFC 9112 section 11.2, request smuggling) is refused rather than guessed.

use std::mem::MaybeUninit;

use httparse::Header;

use super::status::Status;

/// Field lines a head may have.
pub const FIELDS_MAX: usize = 100;

/// Room for the field lines of one head.
pub type Fields<'a> = [MaybeUninit<Header<'a>>; FIELDS_MAX];

/// Empty room for [`head`] to fill.
pub const fn fields<'a>() -> Fields<'a> {
    [const { MaybeUninit::uninit() }; FIELDS_MAX]
}

/// Request methods (RFC 9110 section 9) as far as this server tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET
    Get,
    /// HEAD
    Head,
    /// OPTIONS
    Options,
    /// CONNECT: refused like the other known ones, and nothing behind it is a request.
    Connect,
    /// A registered method that a static site does not allow: 405.
    NotAllowed,
    /// Anything else: 501.
    Unknown,
}

/// How the request's body is framed (RFC 9112 section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// `Content-Length`, above 0.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// A field that may stand once. Where it stands twice it means nothing (RFC 9110 section 5.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Single<'a> {
    /// The field is absent.
    #[default]
    Absent,
    /// Its one value.
    One(&'a [u8]),
    /// It stands more than once.
    Repeated,
}

/// A request head that has passed every check.
#[derive(Debug)]
pub struct Request<'a> {
    /// What is asked for.
    pub method: Method,
    /// The path as it came, still encoded, up to the `?`; `*` in asterisk-form.
    pub path: &'a [u8],
    /// The query behind the `?`, if there is one.
    pub query: Option<&'a [u8]>,
    /// Minor version: 0 or 1.
    pub minor: u8,
    /// Whether the client wants the connection to persist (RFC 9112 section 9.3).
    pub keep_alive: bool,
    /// How the body that follows is framed.
    pub framing: Framing,
    /// `Expect: 100-continue` stands in a request of HTTP/1.1 (RFC 9110 section 10.1.1).
    pub expects_continue: bool,
    /// Some other expectation stands there, which cannot be met.
    pub expects_unknown: bool,
    /// `Range`.
    pub range: Single<'a>,
    /// `If-Range`.
    pub if_range: Single<'a>,
    /// `If-Modified-Since`.
    pub if_modified_since: Single<'a>,
    /// `If-Unmodified-Since`.
    pub if_unmodified_since: Single<'a>,
    /// Whether there is an `If-Match`; its lines come from [`Request::lines`].
    pub has_if_match: bool,
    /// Whether there is an `If-None-Match`.
    pub has_if_none_match: bool,
    /// Whether there is an `Accept-Encoding`.
    pub has_accept_encoding: bool,
    /// Bytes of the head, its empty line included.
    pub length: usize,
    /// The request line without its line end, for the access log.
    pub line: &'a [u8],
    fields: &'a [Header<'a>],
}

impl<'a> Request<'a> {
    /// Whether a precondition is there that may name an entity tag.
    #[inline]
    pub fn names_a_tag(&self) -> bool {
        self.has_if_match || self.has_if_none_match || self.if_range != Single::Absent
    }

    /// The values of all field lines of that name (lower case), in order.
    pub fn lines(&self, name: &'static str) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a> {
        self.fields.iter().filter(move |f| f.name.eq_ignore_ascii_case(name)).map(|f| f.value)
    }
}

/// Why bytes are no request: the status to answer before the connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Malformed, ambiguous or not supported.
    Status(Status),
    /// A later minor version of HTTP/1. It is to be read as 1.1 (RFC 9110 section 2.5): overwrite the byte at
    /// this index with `1` and parse again.
    LaterMinor(usize),
}

impl From<Status> for Refused {
    fn from(status: Status) -> Refused {
        Refused::Status(status)
    }
}

/// Reads the head at the start of `bytes`. `Ok(None)`: it is not complete yet.
///
/// # Errors
/// [`Refused`], where the bytes are no request this server can answer.
pub fn head<'a>(bytes: &'a [u8], room: &'a mut Fields<'a>) -> Result<Option<Request<'a>>, Refused> {
    let mut parsed = httparse::Request::new(&mut []);
    let length = match parsed.parse_with_uninit_headers(bytes, room) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Status::FieldsTooLarge.into()),
        Err(httparse::Error::Version) => return Err(version(bytes)),
        Err(_) => return Err(Status::BadRequest.into()),
    };
    let invariant = "a complete head has all three";
    let method = method(parsed.method.expect(invariant));
    let minor = parsed.version.expect(invariant);
    let target = parsed.path.expect(invariant).as_bytes();
    let mut request = Request {
        method,
        path: target,
        query: None,
        minor,
        keep_alive: minor == 1,
        framing: Framing::None,
        expects_continue: false,
        expects_unknown: false,
        range: Single::Absent,
        if_range: Single::Absent,
        if_modified_since: Single::Absent,
        if_unmodified_since: Single::Absent,
        has_if_match: false,
        has_if_none_match: false,
        has_accept_encoding: false,
        length,
        line: line(bytes, target),
        fields: parsed.headers,
    };
    request.read_fields()?;
    request.read_target(target)?;
    Ok(Some(request))
}

impl Request<'_> {
    fn read_fields(&mut self) -> Result<(), Status> {
        let mut host = Single::Absent;
        let mut length = Single::Absent;
        let mut coding = Coding::Absent;
        let mut close = false;
        let mut keep = false;
        for field in self.fields {
            let name = field.name.as_bytes();
            let is = |wanted: &[u8]| name.eq_ignore_ascii_case(wanted);
            match name.len() {
                4 if is(b"host") => host.add(field.value),
                5 if is(b"range") => self.range.add(field.value),
                6 if is(b"expect") => {
                    for member in list(field.value) {
                        if member.eq_ignore_ascii_case(b"100-continue") {
                            self.expects_continue = self.minor == 1;
                        } else {
                            self.expects_unknown = self.minor == 1;
                        }
                    }
                }
                8 if is(b"if-match") => self.has_if_match = true,
                8 if is(b"if-range") => self.if_range.add(field.value),
                10 if is(b"connection") => {
                    for option in list(field.value) {
                        close |= option.eq_ignore_ascii_case(b"close");
                        keep |= option.eq_ignore_ascii_case(b"keep-alive");
                    }
                }
                13 if is(b"if-none-match") => self.has_if_none_match = true,
                14 if is(b"content-length") => length.add(field.value),
                15 if is(b"accept-encoding") => self.has_accept_encoding = true,
                17 if is(b"transfer-encoding") => coding.add(field.value),
                17 if is(b"if-modified-since") => self.if_modified_since.add(field.value),
                19 if is(b"if-unmodified-since") => self.if_unmodified_since.add(field.value),
                _ => {}
            }
        }
        self.keep_alive = !close && (self.minor == 1 || keep);
        self.framing = framing(self.minor, length, coding)?;
        match host {
            Single::One(value) if is_host(value) => Ok(()),
            Single::Absent if self.minor == 0 => Ok(()),
            _ => Err(Status::BadRequest),
        }
    }
}

impl<'a> Request<'a> {
    /// Splits the target by its form (RFC 9112 section 3.2).
    fn read_target(&mut self, target: &'a [u8]) -> Result<(), Status> {
        let origin = match target {
            [b'/', ..] => target,
            b"*" if self.method == Method::Options => target,
            _ if self.method == Method::Connect => target,
            _ => absolute(target)?,
        };
        if origin.contains(&b'#') {
            return Err(Status::BadRequest);
        }
        let mark = origin.iter().position(|&b| b == b'?');
        match mark {
            None => self.path = origin,
            Some(mark) => {
                self.path = &origin[..mark];
                self.query = Some(&origin[mark + 1..]);
            }
        }
        if self.path.is_empty() {
            self.path = b"/"; // absolute-form with an empty path (RFC 9112 section 3.2.1)
        }
        Ok(())
    }
}

/// Cuts scheme and authority off an absolute-form target. Its authority overrides `Host`, which this server,
/// having one site only, needs for nothing but the checks.
fn absolute(target: &[u8]) -> Result<&[u8], Status> {
    let rest = [&b"http://"[..], b"https://"]
        .into_iter()
        .find(|scheme| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)))
        .map(|scheme| &target[scheme.len()..])
        .ok_or(Status::BadRequest)?;
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    // An empty host is invalid (RFC 9110 section 4.2.1), and so is user information (section 4.2.4).
    let authority = &rest[..end];
    if authority.is_empty() || !is_host(authority) {
        return Err(Status::BadRequest);
    }
    Ok(&rest[end..])
}

fn method(name: &str) -> Method {
    match name {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "OPTIONS" => Method::Options,
        "CONNECT" => Method::Connect,
        "POST" | "PUT" | "DELETE" | "PATCH" | "TRACE" | "COPY" | "LOCK" | "MKCOL" | "MOVE" | "PROPFIND"
        | "PROPPATCH" | "UNLOCK" => Method::NotAllowed,
        _ => Method::Unknown,
    }
}

/// Tells a version that exists but is not spoken here from one that is malformed.
fn version(bytes: &[u8]) -> Refused {
    let start = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(0);
    let end = bytes[start..].iter().position(|&b| b == b'\n').map_or(bytes.len(), |n| start + n);
    let line = bytes[start..end].trim_ascii_end();
    let mut words = line.split(|&b| b == b' ').skip(2);
    match (words.next(), words.next()) {
        (Some([b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'2'..=b'9']), None) => {
            Refused::LaterMinor(start + line.len() - 1)
        }
        (Some([b'H', b'T', b'T', b'P', b'/', b'0' | b'2'..=b'9', b'.', b'0'..=b'9']), None) => {
            Status::VersionNotSupported.into()
        }
        _ => Status::BadRequest.into(),
    }
}

/// The request line, for the log: from the method to the version.
fn line<'a>(bytes: &'a [u8], target: &[u8]) -> &'a [u8] {
    let start = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(0);
    let target_end = target.as_ptr() as usize + target.len() - bytes.as_ptr() as usize;
    &bytes[start..target_end + " HTTP/1.x".len()]
}

/// What `Transfer-Encoding` lines say together (RFC 9112 section 6.1).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Coding {
    Absent,
    Chunked,
    /// A coding that is not spoken here, with nothing wrong about the framing: 501.
    Unknown,
    /// `chunked` twice, or not last, or nothing at all: the end of the body cannot be told.
    Faulty,
}

impl Coding {
    fn add(&mut self, value: &[u8]) {
        if *self == Coding::Absent && list(value).next().is_none() {
            *self = Coding::Faulty;
        }
        for coding in list(value) {
            *self = match (*self, coding.eq_ignore_ascii_case(b"chunked")) {
                (Coding::Absent, true) => Coding::Chunked,
                (Coding::Absent | Coding::Unknown, _) => Coding::Unknown,
                (Coding::Chunked | Coding::Faulty, _) => Coding::Faulty,
            };
        }
    }
}

fn framing(minor: u8, length: Single, coding: Coding) -> Result<Framing, Status> {
    match (coding, length) {
        (Coding::Absent, Single::Absent) => Ok(Framing::None),
        (Coding::Absent, Single::One(value)) => match content_length(value).ok_or(Status::BadRequest)? {
            0 => Ok(Framing::None),
            n => Ok(Framing::Length(n)),
        },
        // A coding in HTTP/1.0 is faulty framing, too (RFC 9112 section 6.1).
        (Coding::Chunked, Single::Absent) if minor == 1 => Ok(Framing::Chunked),
        (Coding::Unknown, Single::Absent) if minor == 1 => Err(Status::NotImplemented),
        _ => Err(Status::BadRequest),
    }
}

/// `1*DIGIT` that fits; anything else, lists of equal values too, is refused.
fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// `uri-host [ ":" port ]` (RFC 9110 section 7.2, RFC 3986 section 3.2.2).
fn is_host(value: &[u8]) -> bool {
    let end = value.iter().position(|&b| !is_name(b)).unwrap_or(value.len());
    match &value[end..] {
        [] => return true,
        [b':', port @ ..] => return end > 0 && port.iter().all(u8::is_ascii_digit),
        _ => {}
    }
    let (host, port) = match value {
        [b'[', rest @ ..] => {
            let Some(end) = rest.iter().position(|&b| b == b']') else { return false };
            let literal = std::str::from_utf8(&rest[..end]).unwrap_or("");
            let future = literal.starts_with(['v', 'V']) && literal.bytes().all(|b| b == b':' || is_name(b));
            if !future && literal.parse::<core::net::Ipv6Addr>().is_err() {
                return false;
            }
            (&b""[..], &rest[end + 1..])
        }
        _ => value.split_at(value.iter().position(|&b| b == b':').unwrap_or(value.len())),
    };
    let port_is_valid = port.is_empty() || (port[0] == b':' && port[1..].iter().all(u8::is_ascii_digit));
    let host_is_missing = value.starts_with(b":");
    port_is_valid && !host_is_missing && is_registered_name(host)
}

fn is_registered_name(host: &[u8]) -> bool {
    let mut rest = host;
    while let [first, tail @ ..] = rest {
        rest = match first {
            b'%' => match tail {
                [a, b, tail @ ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => tail,
                _ => return false,
            },
            &b if is_name(b) => tail,
            _ => return false,
        };
    }
    true
}

/// `unreserved` or `sub-delims` (RFC 3986 sections 2.2 and 2.3).
fn is_name(b: u8) -> bool {
    const NAMES: [bool; 256] = {
        let mut names = [false; 256];
        let mut b = 0;
        while b < 256 {
            names[b] = (b as u8).is_ascii_alphanumeric();
            b += 1;
        }
        let others = b"-._~!$&'()*+,;=";
        let mut n = 0;
        while n < others.len() {
            names[others[n] as usize] = true;
            n += 1;
        }
        names
    };
    NAMES[b as usize]
}

/// The members of a comma-separated list, trimmed, empty ones passed over (RFC 9110 section 5.6.1).
pub(super) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

impl<'a> Single<'a> {
    fn add(&mut self, value: &'a [u8]) {
        *self = match self {
            Single::Absent => Single::One(value),
            _ => Single::Repeated,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What comes of a head, in short.
    fn read(head: &str) -> Result<(Method, String, bool, Framing), Refused> {
        let mut room = fields();
        let request = super::head(head.as_bytes(), &mut room)?.expect("the head is complete");
        assert_eq!(request.length, head.len());
        let path = String::from_utf8_lossy(request.path).into_owned();
        Ok((request.method, path, request.keep_alive, request.framing))
    }

    fn status(head: &str) -> Status {
        match read(head) {
            Err(Refused::Status(status)) => status,
            other => panic!("{head:?} gave {other:?}"),
        }
    }

    #[test]
    fn the_forms_of_a_target() {
        for (line, wanted) in [
            ("GET /a?b=c HTTP/1.1", Ok("/a")),
            ("GET /a?b?c HTTP/1.1", Ok("/a")),
            ("OPTIONS * HTTP/1.1", Ok("*")),
            ("GET http://h:80/a?x HTTP/1.1", Ok("/a")),
            ("GET HTTPS://H HTTP/1.1", Ok("/")),
            ("GET http://h?q HTTP/1.1", Ok("/")),
            ("GET http://[::1]:8080/a HTTP/1.1", Ok("/a")),
            ("CONNECT h:443 HTTP/1.1", Ok("h:443")),
            ("GET * HTTP/1.1", Err(Status::BadRequest)),
            ("GET a HTTP/1.1", Err(Status::BadRequest)),
            ("GET h:80 HTTP/1.1", Err(Status::BadRequest)),
            ("GET http:///a HTTP/1.1", Err(Status::BadRequest)),
            ("GET http://u@h/a HTTP/1.1", Err(Status::BadRequest)),
            ("GET ftp://h/a HTTP/1.1", Err(Status::BadRequest)),
            ("GET /a#b HTTP/1.1", Err(Status::BadRequest)),
            ("GET /a b HTTP/1.1", Err(Status::BadRequest)),
            ("GET /a HTTP/2.0", Err(Status::VersionNotSupported)),
            ("GET /a HTTP/0.9", Err(Status::VersionNotSupported)),
            ("GET /a HTTP/1", Err(Status::BadRequest)),
            ("GET /a http/1.1", Err(Status::BadRequest)),
            ("GET /a HTTP/11.1", Err(Status::BadRequest)),
        ] {
            let result = read(&format!("{line}\r\nHost: h\r\n\r\n")).map(|(_, path, ..)| path);
            assert_eq!(result, wanted.map(String::from).map_err(Refused::Status), "{line}");
        }
    }

    #[test]
    fn a_later_minor_version_is_found_where_it_stands() {
        let head = b"\r\nGET / HTTP/1.7\r\nHost: h\r\n\r\n";
        assert_eq!(super::head(head, &mut fields()).unwrap_err(), Refused::LaterMinor(15));
        assert_eq!(head[15], b'7');
    }

    #[test]
    fn the_framing_of_bodies() {
        use Framing::{Chunked, Length, None};
        use Status::{BadRequest, NotImplemented};
        for (lines, wanted) in [
            ("", Ok(None)),
            ("Content-Length: 0", Ok(None)),
            ("Content-Length: 007", Ok(Length(7))),
            ("Transfer-Encoding: chunked", Ok(Chunked)),
            ("Transfer-Encoding: , Chunked ,", Ok(Chunked)),
            ("Content-Length: 5\r\nContent-Length: 5", Err(BadRequest)),
            ("Content-Length: 5, 5", Err(BadRequest)),
            ("Content-Length: +5", Err(BadRequest)),
            ("Content-Length:", Err(BadRequest)),
            ("Content-Length: 18446744073709551616", Err(BadRequest)),
            ("Content-Length: 5\r\nTransfer-Encoding: chunked", Err(BadRequest)),
            ("Transfer-Encoding: chunked, chunked", Err(BadRequest)),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: x", Err(BadRequest)),
            ("Transfer-Encoding: chunked, gzip", Err(BadRequest)),
            ("Transfer-Encoding:", Err(BadRequest)),
            ("Transfer-Encoding: gzip", Err(NotImplemented)),
            ("Transfer-Encoding: gzip, chunked", Err(NotImplemented)),
            ("Transfer-Encoding: chunked;q=1", Err(NotImplemented)),
        ] {
            let separator = if lines.is_empty() { "" } else { "\r\n" };
            let result = read(&format!("POST / HTTP/1.1\r\nHost: h\r\n{lines}{separator}\r\n"));
            assert_eq!(result.map(|r| r.3), wanted.map_err(Refused::Status), "{lines:?}");
        }
        assert_eq!(status("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), BadRequest);
    }

    #[test]
    fn persistence_by_version_and_options() {
        for (version, lines, wanted) in [
            ("1.1", "", true),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "Connection: x, CLOSE\r\n", false),
            ("1.1", "Connection: keep-alive\r\nConnection: close\r\n", false),
            ("1.1", "Connection: closed\r\n", true),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
            ("1.0", "Connection: keep-alive, close\r\n", false),
        ] {
            let head = format!("GET / HTTP/{version}\r\nHost: h\r\n{lines}\r\n");
            assert_eq!(read(&head).unwrap().2, wanted, "{head:?}");
        }
    }

    #[test]
    fn hosts() {
        for host in
            ["h", "h:80", "h:", "", "127.0.0.1", "[::1]", "[::1]:80", "a-b.example.", "H%41", "[v1.x:y]"]
        {
            assert!(read(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).is_ok(), "{host:?}");
        }
        for host in
            ["a b", "a/b", "<x>", "http://h", "h:x", ":80", "[::1", "[::1]x", "[h]", "u@h", "h%4", "a,b:c"]
        {
            assert_eq!(
                status(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")),
                Status::BadRequest,
                "{host:?}"
            );
        }
        assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), Status::BadRequest);
        assert_eq!(status("GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n"), Status::BadRequest);
        assert!(read("GET / HTTP/1.0\r\n\r\n").is_ok());
    }

    #[test]
    fn too_many_fields_are_refused() {
        let lines = "X: v\r\n".repeat(FIELDS_MAX);
        assert_eq!(status(&format!("GET / HTTP/1.1\r\nHost: h\r\n{lines}\r\n")), Status::FieldsTooLarge);
    }

    proptest! {
        /// No bytes whatever make the parser panic, and what it takes for a head lies within them.
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(Some(request)) = head(&bytes, &mut fields()) {
                prop_assert!(request.length <= bytes.len());
            }
        }

        /// The same for bytes that are nearly a head.
        #[test]
        fn nearly_heads_are_answered(
            start in "(GET|POST|get|)( |)(/|\\*|http://)[a-z%?#]{0,9}( |)HTTP/[0-9].[0-9](\r|)\n",
            fields in proptest::collection::vec(
                "(Host|Content-Length|Transfer-Encoding|X)(:|) {0,2}[0-9a-z,:]{0,9}(\r|)\n", 0..4),
        ) {
            let head = format!("{start}{}\r\n", fields.concat());
            if let Ok(Some(request)) = super::head(head.as_bytes(), &mut super::fields()) {
                prop_assert!(request.length <= head.len());
                prop_assert!(request.path.starts_with(b"/") || request.path == b"*");
            }
        }
    }
}
