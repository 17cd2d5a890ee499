//! Whether this kernel lets the engine run: every operation it relies on is done once, on a small ring. And
//! if not, why, as far as a process can find out, and what would allow it.
#![allow(unsafe_code)]

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use io_uring::types::{Fd, Fixed, OpenHow};
use io_uring::{IoUring, opcode, squeue};

use crate::engines::Refusal;

use super::ring::{BUFFER_GROUP, Completion, Refused, Ring, Size};

/// How long an operation may take that has nothing to wait for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Tries it.
pub fn available() -> Result<(), Refusal> {
    try_all().map_err(|refused| explain(&refused))
}

/// Tries whether there may be a ring at all, for a runtime that brings its own: one is made, and entered.
pub fn any_ring_available() -> Result<(), Refusal> {
    let refused = |step| move |error| explain(&Refused { step, error });
    let ring = IoUring::new(8).map_err(refused("io_uring_setup"))?;
    // Nothing is submitted and nothing waited for.
    ring.submit().map_err(refused("io_uring_enter"))?;
    Ok(())
}

/// Why a runtime could not make its ring.
pub fn setup_refused(error: io::Error) -> Refusal {
    explain(&Refused { step: "io_uring_setup", error })
}

/// Names of the sockets that this process has tried it on.
static TRIALS: AtomicU32 = AtomicU32::new(0);

fn try_all() -> Result<(), Refused> {
    let mut probe = Probe {
        ring: Ring::new(Size { submissions: 8, completions: 16, files: 4, buffers: 2, buffer_size: 64 })?,
    };
    let ours = |step| move |error| Refused { step, error };
    // A connection of our own, on a name in the abstract namespace, which leaves nothing behind.
    let name = format!("ringserve-probe-{}-{}", std::process::id(), TRIALS.fetch_add(1, Ordering::Relaxed));
    let address = SocketAddr::from_abstract_name(name).map_err(ours("a socket to try it on"))?;
    let listener = UnixListener::bind_addr(&address).map_err(ours("a socket to try it on"))?;
    let mut client = UnixStream::connect_addr(&address).map_err(ours("a socket to try it on"))?;
    client.write_all(b"x").map_err(ours("a socket to try it on"))?;

    let accept = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).allocate_file_index(true).build();
    let socket = Fixed(probe.try_one("a multishot accept into a direct descriptor", &accept)? as u32);
    let receive = opcode::Recv::new(socket, std::ptr::null_mut(), 64).buf_group(BUFFER_GROUP).build();
    probe.try_one("a receive into a provided buffer", &receive.flags(squeue::Flags::BUFFER_SELECT))?;
    // Given up where something fails, for it might still be in flight then.
    let memory = Box::into_raw(Box::new(Memory {
        how: OpenHow::new().flags((libc::O_RDONLY | libc::O_CLOEXEC) as u64),
        // SAFETY: a plain C struct, for which all zeros is an empty message.
        message: unsafe { std::mem::zeroed() },
        byte: 0,
    }));
    // SAFETY: three fields of one allocation.
    let (how, message, byte) =
        unsafe { (&raw const (*memory).how, &raw const (*memory).message, &raw mut (*memory).byte) };
    probe.try_one("a send", &opcode::Send::new(socket, byte, 1).build())?;
    probe.try_one("a sendmsg", &opcode::SendMsg::new(socket, message).build())?;
    probe.try_one("a poll", &opcode::PollAdd::new(socket, libc::POLLOUT as u32).build())?;
    let open = opcode::OpenAt2::new(Fd(libc::AT_FDCWD), c"/".as_ptr(), how).build();
    let directory = probe.try_one("an openat2", &open)?;
    // SAFETY: the ring has opened it just now.
    drop(unsafe { OwnedFd::from_raw_fd(directory) });
    // A pipe: in a container there may be no file that is sure to exist.
    let (file, mut writer) = io::pipe().map_err(ours("a pipe to try it on"))?;
    writer.write_all(b"z").map_err(ours("a pipe to try it on"))?;
    let read = opcode::Read::new(Fd(file.as_raw_fd()), byte, 1).build();
    probe.try_one("a read", &read)?;
    // SAFETY: it came from a box, and nothing that points to it is in flight.
    drop(unsafe { Box::from_raw(memory) });
    probe.try_one("a shutdown", &opcode::Shutdown::new(socket, libc::SHUT_WR).build())?;
    probe.try_one("a close of a direct descriptor", &opcode::Close::new(socket).build())?;
    // Of the accept, which is still in flight.
    probe.try_one("a cancellation", &opcode::AsyncCancel::new(OTHERS).build())?;
    Ok(())
}

struct Probe {
    ring: Ring,
}

/// What the operations tried point to.
struct Memory {
    how: OpenHow,
    message: libc::msghdr,
    byte: u8,
}

/// Marks the operation being tried.
const TRIED: u64 = 1;
/// Marks the accept, which goes on.
const OTHERS: u64 = 2;

impl Probe {
    fn try_one(&mut self, step: &'static str, entry: &squeue::Entry) -> Result<i32, Refused> {
        let refused = |error| Refused { step, error };
        let is_accept = entry.get_opcode() == u32::from(opcode::AcceptMulti::CODE);
        let mark = if is_accept { OTHERS } else { TRIED };
        // SAFETY: what the entry points to is a `Memory` that the caller only frees when all has gone well.
        unsafe { self.ring.push(&entry.clone().user_data(mark)) }.map_err(refused)?;
        let mut completions: Vec<Completion> = Vec::new();
        for _ in 0..16 {
            self.ring.wait(Some(PATIENCE / 16), &mut completions).map_err(refused)?;
            if let Some(completion) = completions.iter().find(|completion| completion.user_data == mark) {
                return match completion.result {
                    error if error < 0 => Err(refused(io::Error::from_raw_os_error(-error))),
                    result => Ok(result),
                };
            }
        }
        Err(refused(io::ErrorKind::TimedOut.into()))
    }
}

/// Finds the cause of a refusal out, as far as the process can see it.
pub fn explain(refused: &Refused) -> Refusal {
    let Refused { step, error } = refused;
    let sysctl = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let (cause, remedy) = match (error.raw_os_error(), sysctl.trim()) {
        (Some(libc::EPERM), "2") => (
            "kernel.io_uring_disabled is 2: forbidden for all".to_owned(),
            "sysctl kernel.io_uring_disabled=0",
        ),
        (Some(libc::EPERM), "1") => (
            "kernel.io_uring_disabled is 1: forbidden for all but the group kernel.io_uring_group".to_owned(),
            "sysctl kernel.io_uring_disabled=0, or run in that group",
        ),
        (Some(libc::EPERM | libc::EACCES | libc::ENOSYS | libc::EOPNOTSUPP), _) if is_filtered() => (
            format!(
                "{step}: {error}, most likely by this process's seccomp filter, as container engines set one"
            ),
            "a seccomp profile that adds io_uring_setup, io_uring_enter and io_uring_register to the default",
        ),
        (Some(libc::ENOSYS), _) => (
            format!("{step}: {error}: this kernel has no io_uring"),
            "Linux 6.1 or later, built with io_uring",
        ),
        (Some(libc::EPERM | libc::EACCES), _) => (
            format!("{step}: {error}, by a security module such as SELinux or AppArmor"),
            "a policy that permits io_uring",
        ),
        (Some(libc::ENOMEM), _) => (
            format!("{step}: {error}: this user may lock too little memory"),
            "a higher limit, as in ulimit -l 8192 or --ulimit memlock=8388608",
        ),
        (Some(libc::EMFILE | libc::ENFILE), _) => {
            (format!("{step}: {error}"), "a higher limit on descriptors, as in ulimit -n 1024")
        }
        (Some(libc::EINVAL | libc::EOPNOTSUPP), _) => {
            (format!("{step}: {error}: this kernel ({}) does not know it", release()), "Linux 6.1 or later")
        }
        _ => (format!("{step}: {error}"), "Linux 6.1 or later that permits io_uring"),
    };
    Refusal { cause, remedy: remedy.to_owned() }
}

/// Whether a seccomp filter is in force (proc_pid_status(5)).
fn is_filtered() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
}

fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".into(), |text| text.trim().into())
}
