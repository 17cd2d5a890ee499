//! A site whose pages are made when they are asked for, instead of lying in a folder.

use std::fmt;

use crate::http::Status;

/// What a path means at the moment.
#[derive(Debug)]
pub enum Page {
    /// A text.
    Text {
        /// Its media type, with parameters (RFC 9110 section 8.3.1).
        content_type: &'static str,
        /// The text.
        text: String,
    },
    /// Nothing but a status.
    Status(Status),
}

/// Makes the page of a canonical path.
pub struct Pages(Box<Make>);

type Make = dyn Fn(&[u8]) -> Page + Send + Sync;

impl Pages {
    /// Pages made by a function, which is called for each request.
    pub fn new(make: impl Fn(&[u8]) -> Page + Send + Sync + 'static) -> Pages {
        Pages(Box::new(make))
    }

    /// The page of a canonical path as it is now.
    pub(super) fn make(&self, path: &[u8]) -> Page {
        (self.0)(path)
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Pages")
    }
}
