//! A client of HTTP/1.1 that is strict: what a careful reader of RFC 9112 would refuse fails the test.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::PATIENCE;

/// Room for bytes that a client which does not read leaves to the kernel.
const SMALL_BUFFER: usize = 16 * 1024;
/// Bytes of a packet that is one of many.
const SMALL_PACKET: u32 = 536;

/// One connection to a server.
pub struct Client {
    stream: TcpStream,
    /// Bytes that have come behind what was asked for so far.
    buffer: Vec<u8>,
}

/// How a connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Closed,
    Reset,
}

/// The head of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub status: u16,
    fields: Vec<(String, String)>,
}

/// A whole response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub head: Head,
    pub status: u16,
    pub body: Vec<u8>,
}

impl Client {
    /// Connects over the loopback interface.
    #[track_caller]
    pub fn connect(port: u16) -> Client {
        Client::connect_to((Ipv4Addr::LOCALHOST, port))
    }

    /// Connects to whatever address.
    #[track_caller]
    pub fn connect_to(address: impl ToSocketAddrs) -> Client {
        Client::of(TcpStream::connect(address).unwrap())
    }

    /// Connects, or says that nobody listens.
    pub fn try_connect(port: u16) -> Option<Client> {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            Ok(stream) => Some(Client::of(stream)),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => None,
            // The listener has ended while the connection waited there.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
            Err(error) => panic!("cannot connect: {error}"),
        }
    }

    /// Connects with little room for bytes that are not read, so that a sender is stopped early.
    pub fn connect_slow(port: u16) -> Client {
        Client::connect_after(port, |socket| socket.set_recv_buffer_size(SMALL_BUFFER))
    }

    /// The same with small packets, too, upon which the server's side has little room either.
    pub fn connect_narrow(port: u16) -> Client {
        Client::connect_after(port, |socket| {
            socket.set_recv_buffer_size(SMALL_BUFFER)?;
            socket.set_tcp_mss(SMALL_PACKET)
        })
    }

    /// Connects from another address of the loopback network.
    pub fn connect_from(address: [u8; 4], port: u16) -> Client {
        Client::connect_after(port, |socket| {
            socket.bind(&SocketAddr::from((IpAddr::from(address), 0)).into())
        })
    }

    fn connect_after(port: u16, prepare: impl FnOnce(&Socket) -> std::io::Result<()>) -> Client {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        prepare(&socket).unwrap();
        socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).unwrap();
        Client::of(socket.into())
    }

    fn of(stream: TcpStream) -> Client {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client { stream, buffer: Vec::new() }
    }

    /// Sends bytes as they are.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).unwrap();
    }

    /// The same, to a server that may have hung up already.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Sends from a thread of its own, for what is more than the buffers between client and server hold.
    pub fn send_aside(&self, bytes: Vec<u8>) {
        self.send_pieces_aside(vec![bytes], Duration::ZERO);
    }

    /// The same for pieces, with a pause behind each.
    pub fn send_pieces_aside(&self, pieces: Vec<Vec<u8>>, pause: Duration) {
        let mut stream = self.stream.try_clone().unwrap();
        std::thread::spawn(move || {
            pieces.iter().try_for_each(|piece| {
                stream.write_all(piece)?;
                std::thread::sleep(pause);
                std::io::Result::Ok(())
            })
        });
    }

    /// Sends a request of HTTP/1.1 with the fields it must have and more.
    pub fn request(&mut self, method: &str, target: &str, fields: &[&str]) {
        self.send(request(method, target, fields));
    }

    /// Sends a GET, and receives its response.
    #[track_caller]
    pub fn get(&mut self, target: &str) -> Response {
        self.request("GET", target, &[]);
        self.response()
    }

    /// Says that it will send nothing more, unless the server has reset the connection already.
    pub fn finish_sending(&mut self) {
        let said = self.stream.shutdown(std::net::Shutdown::Write);
        said.or_else(|error| if error.kind() == ErrorKind::NotConnected { Ok(()) } else { Err(error) })
            .unwrap();
    }

    /// Goes away without a goodbye: the server sees a reset.
    pub fn abort(self) {
        let socket = Socket::from(self.stream);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Receives a whole response, to any method but HEAD.
    #[track_caller]
    pub fn response(&mut self) -> Response {
        match self.try_response() {
            Ok(response) => response,
            Err(end) => panic!("{end:?} instead of a response"),
        }
    }

    /// The same, unless the connection ends before the first byte of it.
    #[track_caller]
    pub fn try_response(&mut self) -> Result<Response, End> {
        if self.buffer.is_empty() {
            self.receive()?;
        }
        let head = self.head();
        let body = self.take(head.body_length());
        Ok(Response { status: head.status, head, body })
    }

    /// Receives the head of a response, and leaves its body, if it has one, to be taken.
    #[track_caller]
    pub fn head(&mut self) -> Head {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(self.buffer.len() < 64 * 1024, "the head of a response has no end");
            if let Err(end) = self.receive() {
                panic!("{end:?} within a head: {:?}", String::from_utf8_lossy(&self.buffer));
            }
        };
        Head::parse(&self.buffer.drain(..end).collect::<Vec<_>>())
    }

    /// Receives so many bytes.
    #[track_caller]
    pub fn take(&mut self, size: usize) -> Vec<u8> {
        match self.try_take(size) {
            Ok(bytes) => bytes,
            Err(end) => panic!("{end:?} after {} of {size} bytes", self.buffer.len()),
        }
    }

    /// The same, unless the connection ends before.
    #[track_caller]
    pub fn try_take(&mut self, size: usize) -> Result<Vec<u8>, End> {
        while self.buffer.len() < size {
            self.receive()?;
        }
        let rest = self.buffer.split_off(size);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    /// Receives all that comes until the connection ends.
    #[track_caller]
    pub fn rest(&mut self) -> (Vec<u8>, End) {
        loop {
            if let Err(end) = self.receive() {
                return (std::mem::take(&mut self.buffer), end);
            }
        }
    }

    /// The connection must end here, with nothing more said and no reset.
    #[track_caller]
    pub fn closes(&mut self) {
        assert_eq!(self.ends(), End::Closed);
    }

    /// The connection must end here, with nothing more said; says how.
    #[track_caller]
    pub fn ends(&mut self) -> End {
        let (rest, end) = self.rest();
        assert!(
            rest.is_empty(),
            "more was sent: {:?}",
            String::from_utf8_lossy(&rest[..rest.len().min(300)])
        );
        end
    }

    /// Whether a response begins to come within that time.
    pub fn is_answered_within(&self, time: Duration) -> bool {
        self.stream.set_read_timeout(Some(time)).unwrap();
        let answered = !self.buffer.is_empty() || self.stream.peek(&mut [0]).is_ok_and(|n| n > 0);
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        answered
    }

    #[track_caller]
    fn receive(&mut self) -> Result<(), End> {
        let mut room = [0; 16 * 1024];
        loop {
            return match self.stream.read(&mut room) {
                Ok(0) => Err(End::Closed),
                Ok(n) => {
                    self.buffer.extend_from_slice(&room[..n]);
                    Ok(())
                }
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => continue,
                    ErrorKind::ConnectionReset => Err(End::Reset),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => panic!(
                        "nothing came for {PATIENCE:?}, after {:?}",
                        String::from_utf8_lossy(&self.buffer[..self.buffer.len().min(300)])
                    ),
                    _ => panic!("cannot receive: {error}"),
                },
            };
        }
    }
}

/// A request of HTTP/1.1 as text. Each of `fields` is a line without its end.
pub fn request(method: &str, target: &str, fields: &[&str]) -> String {
    let lines: String = fields.iter().flat_map(|field| [field, "\r\n"]).collect();
    format!("{method} {target} HTTP/1.1\r\nHost: test\r\n{lines}\r\n")
}

impl Head {
    fn parse(bytes: &[u8]) -> Head {
        let text = std::str::from_utf8(bytes).expect("a head is ASCII");
        let wrong = |what: &str| -> ! { panic!("{what} in {text:?}") };
        if !text.bytes().all(|b| matches!(b, b' '..=b'~' | b'\r' | b'\n')) {
            wrong("a control or a byte beyond ASCII");
        }
        let mut lines = text.strip_suffix("\r\n\r\n").unwrap().split("\r\n");
        if text.replace("\r\n", "").contains(['\r', '\n']) {
            wrong("half a line end");
        }
        let status = match lines.next().unwrap().as_bytes() {
            [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1', b' ', code @ ..] if code.len() > 4 => {
                let (code, reason) = code.split_at(3);
                let code = std::str::from_utf8(code).unwrap().parse().unwrap_or_else(|_| wrong("no status"));
                if !(200..600).contains(&code) || reason[0] != b' ' {
                    wrong("an odd status line");
                }
                code
            }
            _ => wrong("no status line"),
        };
        let fields = lines
            .map(|line| {
                let (name, value) = line.split_once(':').unwrap_or_else(|| wrong("a line without a colon"));
                let is_token = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
                if name.is_empty() || !is_token || value.trim().is_empty() || !value.starts_with(' ') {
                    wrong("an odd field");
                }
                (name.to_ascii_lowercase(), value.trim().to_owned())
            })
            .collect();
        let head = Head { status, fields };
        head.check();
        head
    }

    /// What must hold for every response of this server.
    fn check(&self) {
        let names: Vec<_> = self.fields.iter().map(|(name, _)| name).collect();
        for (at, name) in names.iter().enumerate() {
            assert!(!names[..at].contains(name), "{name} stands twice: {self:?}");
        }
        let date = self.field("date").unwrap_or_else(|| panic!("no Date: {self:?}"));
        assert!(httpdate::parse_http_date(date).is_ok() && date.ends_with(" GMT"), "{date}");
        assert_eq!(self.field("transfer-encoding"), None);
        assert_eq!(self.has_length(), !matches!(self.status, 204 | 304), "Content-Length: {self:?}");
        if self.has_length() {
            assert_eq!(self.field("x-content-type-options"), Some("nosniff"), "{self:?}");
            assert!(self.field("content-type").is_some(), "{self:?}");
        }
    }

    fn has_length(&self) -> bool {
        self.field("content-length").is_some()
    }

    /// The value of a field, named in lower case.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(other, _)| other == name).map(|(_, value)| &**value)
    }

    /// The value of a field that must be there.
    pub fn value(&self, name: &str) -> &str {
        self.field(name).unwrap_or_else(|| panic!("no {name}: {self:?}"))
    }

    /// Bytes of the body that follows, unless the method was HEAD.
    pub fn body_length(&self) -> usize {
        self.field("content-length").map_or(0, |length| length.parse().unwrap())
    }

    /// Whether the server says that this is the last response of the connection.
    pub fn says_close(&self) -> bool {
        self.field("connection") == Some("close")
    }

    /// All fields but Date, in order.
    pub fn lasting_fields(&self) -> impl Iterator<Item = &(String, String)> {
        self.fields.iter().filter(|(name, _)| name != "date")
    }
}

impl Response {
    /// The value of a field, named in lower case.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.field(name)
    }

    /// The value of a field that must be there.
    pub fn value(&self, name: &str) -> &str {
        self.head.value(name)
    }

    /// The body as text, for messages one can read.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}
