//! What an operator's tools ask, at an address of its own: whether the server lives, whether it is ready, and
//! what it has counted.
//!
//! It is served by one of the simple engines, on a thread of its own, through the same HTTP code. It never
//! shares a port with the public, nor a thread with those who serve it: it answers while they are busy, and
//! while they drain.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use crate::content::Site;
use crate::content::cache::Budget;
use crate::content::pages::{Page, Pages};
use crate::content::site::Rules;
use crate::engines::{SIMPLEST, Seat};
use crate::host;
use crate::http::Status;
use crate::http::connection::Limits;
use crate::observe::counters::Tally;
use crate::observe::metrics::{self, Overview};
use crate::serve::Worker;
use crate::shutdown::{Draining, Shutdown};

/// How long a client may take to ask, and to take its answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// And to leave with it: nobody sends anything behind a question.
const LEAVE: Duration = Duration::from_millis(200);
const TEXT: &str = "text/plain; charset=utf-8";

/// A listener that nobody is accepted at yet.
#[derive(Debug)]
pub struct Admin(TcpListener);

impl Admin {
    /// Binds an address such as `127.0.0.1:9090` or `[::]:9090`, which is every one, also where IPv6 is off.
    /// The error is one line for the user.
    ///
    /// # Errors
    /// What is wrong with the address.
    pub fn bind(address: &str) -> Result<Admin, String> {
        let cannot = |error: io::Error| {
            let advice = "give an address and a port, as in 127.0.0.1:9090";
            format!("cannot listen on {address} for --admin: {error}; {advice}")
        };
        let addresses: Vec<SocketAddr> = address.to_socket_addrs().map_err(cannot)?.collect();
        let listener = TcpListener::bind(&*addresses).or_else(|error| match &*addresses {
            [one] if host::lacks_ipv6(one.ip(), &error) => {
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, one.port()))
            }
            _ => Err(error),
        });
        listener.map(Admin).map_err(cannot)
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What `getsockname(2)` says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Answers for as long as the process lives, so many clients at once: a probe must not wait behind others
    /// who take their time.
    ///
    /// # Errors
    /// What keeps the thread from starting.
    pub fn serve(self, overview: Overview, clients_max: usize) -> io::Result<()> {
        let rules = Rules { cache_control: Some("no-store".into()), ..Rules::default() };
        let pages = Pages::new(move |path| page(&overview, path));
        let site = Arc::new(Site::of_pages(pages, rules)?);
        let budget = Budget { bytes: 0, descriptors: 1, fresh_for: Duration::ZERO };
        // With connections that last, a few clients could keep all others away.
        let limits = Limits {
            header_timeout: PATIENCE,
            idle_timeout: PATIENCE,
            send_timeout: PATIENCE,
            linger_timeout: LEAVE,
            keep_alive: false,
            ..Limits::default()
        };
        let worker = Worker::new(site, budget, limits, Draining::default(), None, Tally::default());
        let mut seat = Seat {
            listener: self.0,
            worker,
            shutdown: Arc::new(Shutdown::new()?),
            connections_max: clients_max,
            loads_max: 1,
            start: Box::new(|| true),
        };
        let run = move || {
            if let Err(error) = (SIMPLEST.run)(&mut seat) {
                tracing::error!("the admin address is no longer served: {error}");
            }
        };
        std::thread::Builder::new().name("admin".into()).spawn(run).map(drop)
    }
}

/// What a path means.
fn page(overview: &Overview, path: &[u8]) -> Page {
    let text = |text: &str| Page::Text { content_type: TEXT, text: text.to_owned() };
    match path {
        b"/healthz" => text("alive\n"),
        b"/readyz" if overview.is_ready() => text("ready\n"),
        b"/readyz" => Page::Status(Status::Unavailable),
        b"/metrics" => Page::Text { content_type: metrics::CONTENT_TYPE, text: overview.text() },
        _ => Page::Status(Status::NotFound),
    }
}
