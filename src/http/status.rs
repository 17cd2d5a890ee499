//! Status codes (RFC 9110 section 15), each with the texts that are written for it.

macro_rules! statuses {
    ($($name:ident $code:literal $reason:literal)*) => {
        /// A status code this server sends.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Status { $(#[doc = concat!($code, " ", $reason)] $name = $code),* }

        impl Status {
            /// Every status, for tests that walk them.
            pub const ALL: &'static [Status] = &[$(Status::$name),*];

            /// The status line with its line end (RFC 9112 section 4).
            pub const fn line(self) -> &'static [u8] {
                match self {
                    $(Status::$name => concat!("HTTP/1.1 ", $code, " ", $reason, "\r\n").as_bytes()),*
                }
            }

            /// The text a person sees when there is nothing else to show.
            pub const fn page(self) -> &'static [u8] {
                match self { $(Status::$name => concat!($code, " ", $reason, "\n").as_bytes()),* }
            }
        }
    };
}

statuses! {
    Ok 200 "OK"
    NoContent 204 "No Content"
    PartialContent 206 "Partial Content"
    MovedPermanently 301 "Moved Permanently"
    NotModified 304 "Not Modified"
    BadRequest 400 "Bad Request"
    Forbidden 403 "Forbidden"
    NotFound 404 "Not Found"
    MethodNotAllowed 405 "Method Not Allowed"
    RequestTimeout 408 "Request Timeout"
    PreconditionFailed 412 "Precondition Failed"
    UriTooLong 414 "URI Too Long"
    RangeNotSatisfiable 416 "Range Not Satisfiable"
    ExpectationFailed 417 "Expectation Failed"
    FieldsTooLarge 431 "Request Header Fields Too Large"
    InternalError 500 "Internal Server Error"
    NotImplemented 501 "Not Implemented"
    Unavailable 503 "Service Unavailable"
    VersionNotSupported 505 "HTTP Version Not Supported"
}

impl Status {
    /// The three digits as a number.
    pub const fn code(self) -> u16 {
        self as u16
    }
}
