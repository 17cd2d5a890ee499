//! The address of another server's file: `http://HOST[:PORT]/PATH`.

use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::load::Target;
use super::response::{Event, Known, Parser};
use super::site::request;

/// How long the first answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The largest file that is loaded.
const LENGTH_MAX: u64 = 1 << 30;

/// A file of another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// Host and port, as the Host field has them.
    authority: String,
    host: String,
    port: u16,
    path: String,
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

impl Url {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Url, String> {
        const WRONG: &str = "a URL here is http://HOST:PORT/PATH";
        if text.starts_with("https://") {
            return Err("https is not spoken here; give an http:// URL".into());
        }
        let rest = text.strip_prefix("http://").ok_or(WRONG)?;
        let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
        let (authority, path) = rest.find(['/', '?']).map_or((rest, ""), |at| rest.split_at(at));
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let is_graphic = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| WRONG)?),
            _ => (authority, 80),
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_whole = bare.is_some() || !host.contains([':', '[', ']']);
        let host = bare.unwrap_or(host).to_owned();
        if host.is_empty() || host.contains('@') || port == 0 || !is_whole || !is_graphic(text) {
            return Err(WRONG.into());
        }
        Ok(Url { authority: authority.to_owned(), host, port, path })
    }

    /// What to ask for.
    pub fn request(&self, keep_alive: bool) -> Vec<u8> {
        request(&self.authority, &self.path, keep_alive)
    }

    /// Asks once: where the server is, and what must come from now on.
    ///
    /// # Errors
    /// Why it cannot be loaded.
    pub fn look_up(&self) -> Result<(SocketAddr, Target), String> {
        let cannot =
            |error: std::io::Error| format!("cannot reach {self}: {error}; see that the server runs");
        let address = (&*self.host, self.port).to_socket_addrs().map_err(cannot)?.next();
        let address = address.ok_or_else(|| format!("cannot reach {self}: the name has no address"))?;
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(cannot)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(cannot)?;
        let request = self.request(false);
        stream.write_all(&request).map_err(cannot)?;
        let (mut parser, mut known) = (Parser::default(), Known::default());
        let mut room = [0; 4096];
        loop {
            let n = stream.read(&mut room).map_err(cannot)?;
            if n == 0 {
                return Err(format!("cannot load {self}: it closed without an answer"));
            }
            match parser.next(&mut known, &mut &room[..n]) {
                Err(what) => return Err(format!("cannot load {self}: it gave {what}")),
                Ok(Some(Event::Head(head))) if head.status != 200 => {
                    return Err(format!("cannot load {self}: status {} instead of 200", head.status));
                }
                Ok(Some(Event::Head(head))) if head.length > LENGTH_MAX => {
                    return Err(format!("cannot load {self}: it has more than 1 GiB"));
                }
                Ok(Some(Event::Head(head))) => {
                    return Ok((address, Target { request, length: head.length, hash: None }));
                }
                Ok(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read() {
        for (text, shown, host, port, path) in [
            ("http://a", "http://a/", "a", 80, "/"),
            ("http://a.b:81/c?d#e", "http://a.b:81/c?d", "a.b", 81, "/c?d"),
            ("http://[::1]:82/", "http://[::1]:82/", "::1", 82, "/"),
            ("http://[::1]", "http://[::1]/", "::1", 80, "/"),
            ("http://a?x", "http://a/?x", "a", 80, "/?x"),
        ] {
            let url = Url::parse(text).unwrap();
            assert_eq!((&*url.to_string(), &*url.host, url.port, &*url.path), (shown, host, port, path));
        }
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for text in [
            "",
            "a",
            "http://",
            "http:///x",
            "http://a:x/",
            "http://a:0/",
            "http://a b/",
            "http://u@a/",
            "http://a:b:1",
        ] {
            assert!(Url::parse(text).unwrap_err().contains("http://HOST:PORT/PATH"), "{text}");
        }
        assert!(Url::parse("https://a/").unwrap_err().contains("https"));
    }

    #[test]
    fn nobody_there_is_one_line() {
        let error = Url::parse("http://127.0.0.1:1/").unwrap().look_up().unwrap_err();
        assert!(error.starts_with("cannot reach http://127.0.0.1:1/"), "{error}");
        assert!(!error.contains('\n'));
    }
}
