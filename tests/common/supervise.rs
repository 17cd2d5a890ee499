//! The program under a supervisor who is asked about system calls: each can go on, fail, or be passed over,
//! with the caller told that it was done (seccomp_unotify(2)). So what the kernel does wrong while a server
//! is running can be brought about from outside, and the program knows nothing of it.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::Setup;

/// What becomes of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    GoOn,
    /// It fails with this error.
    Fail(i32),
    /// Nothing is done, and the caller is told that it was.
    Pretend,
}

type Judge = Box<dyn FnMut(i64, [u64; 6]) -> Verdict + Send>;

/// Whoever is asked.
#[derive(Clone)]
pub struct Supervisor(Arc<Supervised>);

struct Supervised {
    judge: Mutex<Judge>,
    asked: AtomicU64,
}

impl Supervisor {
    /// The program, whose calls of these numbers go on for now.
    pub fn of(mut setup: Setup, calls: [i64; 2]) -> (Setup, Supervisor) {
        let supervised = Supervised { judge: Mutex::new(Box::new(|_, _| Verdict::GoOn)), asked: 0.into() };
        let supervisor = Supervisor(Arc::new(supervised));
        let (ours, theirs) = UnixStream::pair().unwrap();
        let filter = filter(calls);
        // SAFETY: between fork and exec the closure makes system calls and takes no memory.
        unsafe { setup.command.pre_exec(move || send(&theirs, install(&filter)?.as_fd())) };
        let asked = supervisor.clone();
        std::thread::spawn(move || asked.answer(&receive(&ours)));
        (setup, supervisor)
    }

    /// From now on judges by the call's number and its arguments.
    pub fn judge(&self, judge: impl FnMut(i64, [u64; 6]) -> Verdict + Send + 'static) {
        *self.0.judge.lock().unwrap() = Box::new(judge);
    }

    /// The next call of that number fails, and those after it go on.
    pub fn fail_next(&self, call: i64, errno: i32) {
        let mut left = Some(errno);
        self.judge(move |number, _| match left {
            Some(errno) if number == call => {
                left = None;
                Verdict::Fail(errno)
            }
            _ => Verdict::GoOn,
        });
    }

    /// How often it has been asked.
    pub fn asked(&self) -> u64 {
        self.0.asked.load(SeqCst)
    }

    /// Answers until nobody is left who could ask.
    fn answer(&self, listener: &OwnedFd) {
        loop {
            let mut polled = [PollFd::new(listener, PollFlags::IN)];
            if poll(&mut polled, None).is_ok() && !polled[0].revents().contains(PollFlags::IN) {
                return;
            }
            // SAFETY: a plain C struct; the kernel wants it to be all zeros.
            let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
            // SAFETY: the kernel writes a struct of that kind.
            if unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut asked) }
                != 0
            {
                // Who asked has died before he was heard.
                continue;
            }
            self.0.asked.fetch_add(1, SeqCst);
            let verdict = self.0.judge.lock().unwrap()(asked.data.nr.into(), asked.data.args);
            let (error, flags) = match verdict {
                Verdict::GoOn => (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
                Verdict::Fail(errno) => (-errno, 0),
                Verdict::Pretend => (0, 0),
            };
            let answer = libc::seccomp_notif_resp { id: asked.id, val: 0, error, flags };
            // SAFETY: the kernel reads a struct of that kind. It fails where the caller has died meanwhile.
            unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const answer) };
        }
    }
}

/// A filter that asks about these calls and permits all others.
fn filter(calls: [i64; 2]) -> [libc::sock_filter; 5] {
    let line = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let jump = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    [
        // The number stands first in seccomp_data.
        line(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        line(jump, 2, 0, calls[0] as u32),
        line(jump, 1, 0, calls[1] as u32),
        line(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        line(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
    ]
}

/// Puts this process under the filter; returns the descriptor at which its supervisor listens.
fn install(filter: &[libc::sock_filter]) -> io::Result<OwnedFd> {
    rustix::thread::set_no_new_privs(true)?;
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    // SAFETY: the kernel reads the program, which lives across the call.
    let listener = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) };
    if listener < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has made it just now.
    Ok(unsafe { OwnedFd::from_raw_fd(listener as i32) })
}

fn send(to: &UnixStream, descriptor: BorrowedFd) -> io::Result<()> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    assert!(message.push(SendAncillaryMessage::ScmRights(&descriptors)));
    sendmsg(to, &[io::IoSlice::new(b"x")], &mut message, SendFlags::empty())?;
    Ok(())
}

fn receive(from: &UnixStream) -> OwnedFd {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = RecvAncillaryBuffer::new(&mut space);
    recvmsg(from, &mut [io::IoSliceMut::new(&mut [0])], &mut message, RecvFlags::CMSG_CLOEXEC).unwrap();
    let received = message.drain().find_map(|part| match part {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    received.expect("a descriptor")
}
