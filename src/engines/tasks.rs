//! A task for each client, all on one thread: what the two engines made of coroutines have in common.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell, RefMut};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::clock::Tick;
use crate::serve::Worker;
use crate::shutdown::Shutdown;

use super::helpers::{Done, Job};
use super::{CUT_CHECK, Seat, calls};

/// Threads that wait for disks.
pub const DISK_THREADS: usize = 16;

/// What the tasks of one thread share. They run one at a time, and lend nothing out while they wait.
pub struct Room<D> {
    worker: RefCell<Worker>,
    /// What is lent to whichever task is busy.
    pub desk: RefCell<D>,
    pub shutdown: Arc<Shutdown>,
    clients: Cell<usize>,
    /// A client has left.
    left: Notify,
    /// The server drains now, or cuts.
    ending: Notify,
}

/// A client's place in the room, until it is dropped.
pub struct Place<D>(Rc<Room<D>>);

impl<D> Room<D> {
    /// An empty room. The worker is one like the seat's, for tasks may not borrow.
    pub fn new(seat: &Seat, desk: D) -> Rc<Room<D>> {
        Rc::new(Room {
            worker: RefCell::new(seat.worker.another()),
            desk: RefCell::new(desk),
            shutdown: seat.shutdown.clone(),
            clients: Cell::new(0),
            left: Notify::new(),
            ending: Notify::new(),
        })
    }

    /// The worker, for a turn. Not to be kept while anything is waited for.
    pub fn turn(&self) -> RefMut<'_, Worker> {
        let mut worker = self.worker.borrow_mut();
        worker.clock.read();
        worker
    }

    /// How many clients there are.
    pub fn clients(&self) -> usize {
        self.clients.get()
    }

    /// A client comes in.
    pub fn enter(self: &Rc<Room<D>>) -> Place<D> {
        self.clients.set(self.clients.get() + 1);
        Place(self.clone())
    }

    /// Waits until a client leaves, but no longer than that.
    pub async fn wait_for_leaver(&self, time: Duration) {
        let _ = tokio::time::timeout(time, self.left.notified()).await;
    }

    /// Waits for an event until a deadline, or until the server begins to end: `None` for these.
    pub async fn wait<T>(&self, deadline: Tick, event: impl Future<Output = T>) -> Option<T> {
        calls::publish(&mut self.worker.borrow_mut());
        let time = self.worker.borrow().clock.now().until(deadline);
        tokio::time::timeout(time, unless(event, self.ending.notified())).await.ok().flatten()
    }

    /// Whoever waits is to look at the shutdown.
    pub fn announce_end(&self) {
        self.ending.notify_waiters();
    }

    /// Nobody is accepted any more: waits until nobody is left, or all are to be cut.
    pub async fn empty(&self) {
        self.announce_end();
        while self.clients() > 0 && !self.shutdown.is_cut() {
            self.wait_for_leaver(CUT_CHECK).await;
        }
        self.announce_end();
    }
}

impl<D> Drop for Place<D> {
    fn drop(&mut self) {
        self.0.clients.set(self.0.clients.get() - 1);
        self.0.left.notify_one();
        // Nobody else may have a turn for long.
        if let Ok(mut worker) = self.0.worker.try_borrow_mut() {
            calls::publish(&mut worker);
        }
    }
}

/// Registers a descriptor with the runtime.
pub fn register<T: AsFd + AsRawFd>(source: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: whatever is borrowed or owned as a descriptor is open, and stays the same one until it is
    // dropped.
    let registered = unsafe { AsyncFd::register_with_interest(source, interest) };
    registered.map_err(|refused| refused.into_parts().1)
}

/// What comes of an event, unless something else comes first.
pub async fn unless<T, O>(event: impl Future<Output = T>, other: impl Future<Output = O>) -> Option<T> {
    let (mut event, mut other) = (pin!(event), pin!(other));
    poll_fn(|context| match event.as_mut().poll(context) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending => other.as_mut().poll(context).map(|_| None),
    })
    .await
}

/// Has a thread of the runtime's pool do what waits for a disk. `None`: it could not be done.
pub async fn run_aside(job: Job) -> Option<Done> {
    let (done, calls) = tokio::task::spawn_blocking(|| (job.run(), calls::taken())).await.ok()?;
    calls::add(calls);
    Some(done)
}
