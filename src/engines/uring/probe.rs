//! Whether this kernel lets the engine run: every operation it relies on is done once, on a small ring. And
//! if not, why, as far as a process can find out, and what would allow it.
#![allow(unsafe_code)]

use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use io_uring::types::{DestinationSlot, Fd, Fixed, OpenHow, Timespec};
use io_uring::{IoUring, opcode, squeue};
use socket2::{Domain, Socket, Type};

use crate::engines::{Culprit, Refusal, Trial};
use crate::host::{ALLOW_DESCRIPTORS, ALLOW_MEMLOCK, Host, Module};

use super::ring::{self, BUFFER_GROUP, Completion, Refused, Ring, Size};
use super::send;

/// How long an operation may take that has nothing to wait for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Direct descriptors of the ring it is tried on; the last is not given out by the kernel before the others.
const FILES: u32 = 4;
/// Of the timeout that is tried.
static AT_ONCE: Timespec = Timespec::new();

/// What the engine does without where it must: the step, the Linux that has it, and what is lost without it.
const EXTRAS: [(&str, &str, &str); 8] = [
    ("IORING_SETUP_NO_SQARRAY", "6.6", "a submission costs a little more"),
    ("IORING_ENTER_NO_IOWAIT", "6.15", "an idle server is shown as waiting for disks"),
    ("IORING_REGISTER_IOWQ_MAX_WORKERS", "5.15", "the kernel chooses how many threads wait for disks"),
    ("IORING_REGISTER_IOWQ_AFF", "5.14", "threads that wait for disks may run on any CPU"),
    ("IORING_REGISTER_FILES_UPDATE", "5.5", "who is in the backlog when the server ends is turned away"),
    ("IORING_OP_FIXED_FD_INSTALL", "6.8", "large files are copied on their way"),
    ("SOCKET_URING_OP_SIOCOUTQ", "6.7", "a slow client is given up sooner"),
    ("SOCKET_URING_OP_SETSOCKOPT", "6.7", "what a client given up has not taken stays in memory for a while"),
];

/// Tries what the engine relies on, up to the first refusal.
pub fn available() -> Result<(), Refusal> {
    Probe::new().and_then(|mut probe| probe.try_needed()).map_err(|refused| explain(&refused))
}

/// Tries all that the engine uses, with so many threads: what it relies on, up to the first refusal, and then
/// what it only profits from.
pub fn trials(threads: usize) -> Vec<Trial> {
    let passed = |step| Trial { step, needed: true, result: Ok(()) };
    let failed = |refused: &Refused| Trial { step: refused.step, needed: true, result: Err(blame(refused)) };
    let mut probe = match Probe::new() {
        Ok(probe) => probe,
        Err(refused) => {
            let before = ring::STEPS.into_iter().take_while(|&step| step != refused.step);
            return before.map(passed).chain([failed(&refused)]).collect();
        }
    };
    let tried = probe.try_needed().and_then(|()| probe.try_rings(threads));
    let mut trials: Vec<Trial> = probe.done.iter().copied().map(passed).collect();
    match tried {
        Ok(()) => trials.extend(probe.try_extras().into_iter().map(extra)),
        Err(refused) => trials.push(failed(&refused)),
    }
    trials
}

fn extra((step, result): ring::Extra) -> Trial {
    let since = |error: io::Error| {
        let (_, since, lost) = EXTRAS.iter().find(|(name, ..)| *name == step).expect("it is in the table");
        if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) {
            let (culprit, Refusal { cause, remedy }) = blame(&Refused { step, error });
            return (culprit, Refusal { cause: format!("{cause}; without it {lost}"), remedy });
        }
        let (cause, remedy) =
            (format!("{step}: {error}: without it {lost}"), format!("Linux {since} or later"));
        (Culprit::Kernel, Refusal { cause, remedy })
    };
    Trial { step, needed: false, result: result.map_err(since) }
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

/// A small ring to try it on, and what was done on it.
struct Probe {
    ring: Ring,
    done: Vec<&'static str>,
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
    fn new() -> Result<Probe, Refused> {
        let size = Size { submissions: 8, completions: 16, files: FILES, buffers: 2, buffer_size: 64 };
        Ok(Probe { ring: Ring::new(size)?, done: ring::STEPS.to_vec() })
    }

    /// Does what the engine relies on, up to the first refusal.
    fn try_needed(&mut self) -> Result<(), Refused> {
        let ours = |step| move |error| Refused { step, error };
        // A connection of our own, on a name in the abstract namespace, which leaves nothing behind.
        let name =
            format!("ringserve-probe-{}-{}", std::process::id(), TRIALS.fetch_add(1, Ordering::Relaxed));
        let address = SocketAddr::from_abstract_name(name).map_err(ours("a socket to try it on"))?;
        let listener = UnixListener::bind_addr(&address).map_err(ours("a socket to try it on"))?;
        let connect = || UnixStream::connect_addr(&address).map_err(ours("a socket to try it on"));

        let _first = connect()?;
        let place = Some(DestinationSlot::auto_target());
        let nobody = (std::ptr::null_mut(), std::ptr::null_mut());
        let accept =
            opcode::Accept::new(Fd(listener.as_raw_fd()), nobody.0, nobody.1).file_index(place).build();
        let first = Fixed(self.try_one("an accept into a direct descriptor", &accept)? as u32);
        let mut client = connect()?;
        client.write_all(b"x").map_err(ours("a socket to try it on"))?;
        let accept = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).allocate_file_index(true).build();
        let socket = Fixed(self.try_one("a multishot accept into a direct descriptor", &accept)? as u32);
        let receive = opcode::Recv::new(socket, std::ptr::null_mut(), 64).buf_group(BUFFER_GROUP).build();
        self.try_one("a receive into a provided buffer", &receive.flags(squeue::Flags::BUFFER_SELECT))?;
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
        self.try_one("a send", &opcode::Send::new(socket, byte, 1).build())?;
        self.try_one("a sendmsg", &opcode::SendMsg::new(socket, message).build())?;
        self.try_one("a poll", &opcode::PollAdd::new(socket, libc::POLLOUT as u32).build())?;
        let open = opcode::OpenAt2::new(Fd(libc::AT_FDCWD), c"/".as_ptr(), how).build();
        let directory = self.try_one("an openat2", &open)?;
        // SAFETY: the ring has opened it just now.
        drop(unsafe { OwnedFd::from_raw_fd(directory) });
        // A pipe: in a container there may be no file that is sure to exist.
        let (file, mut writer) = io::pipe().map_err(ours("a pipe to try it on"))?;
        writer.write_all(b"z").map_err(ours("a pipe to try it on"))?;
        let read = opcode::Read::new(Fd(file.as_raw_fd()), byte, 1).build();
        self.try_one("a read", &read)?;
        // SAFETY: it came from a box, and nothing that points to it is in flight.
        drop(unsafe { Box::from_raw(memory) });
        self.try_one("a shutdown", &opcode::Shutdown::new(socket, libc::SHUT_WR).build())?;
        self.try_one("a close of a direct descriptor", &opcode::Close::new(first).build())?;
        match self.try_one("a timeout", &opcode::Timeout::new(&raw const AT_ONCE).build()) {
            Err(Refused { step, error }) if error.raw_os_error() == Some(libc::ETIME) => self.done.push(step),
            result => result.map(drop)?,
        }
        // Of the multishot accept, which is still in flight.
        self.try_one("a cancellation", &opcode::AsyncCancel::new(OTHERS).build())?;
        Ok(())
    }

    /// Makes the rings of so many threads, all at the same time: memory that may be locked is counted for a
    /// user's rings together.
    fn try_rings(&mut self, threads: usize) -> Result<(), Refused> {
        let step = "a ring for each worker";
        let rings: Result<Vec<Ring>, Refused> = (0..threads).map(|_| Ring::to_serve(FILES)).collect();
        rings.map_err(|Refused { error, .. }| Refused { step, error })?;
        self.done.push(step);
        Ok(())
    }

    fn try_one(&mut self, step: &'static str, entry: &squeue::Entry) -> Result<i32, Refused> {
        let result = self.submit(entry).map_err(|error| Refused { step, error })?;
        self.done.push(step);
        Ok(result)
    }

    fn submit(&mut self, entry: &squeue::Entry) -> io::Result<i32> {
        let is_accept = entry.get_opcode() == u32::from(opcode::AcceptMulti::CODE);
        let mark = if is_accept { OTHERS } else { TRIED };
        // SAFETY: what the entry points to is a `Memory` that the caller only frees when all has gone well,
        // or a constant.
        unsafe { self.ring.push(&entry.clone().user_data(mark)) }?;
        let mut completions: Vec<Completion> = Vec::new();
        for _ in 0..16 {
            self.ring.wait(Some(PATIENCE / 16), &mut completions)?;
            if let Some(completion) = completions.iter().find(|completion| completion.user_data == mark) {
                return match completion.result {
                    error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
                    result => Ok(result),
                };
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

impl Probe {
    /// Tries what the engine only profits from.
    fn try_extras(mut self) -> Vec<ring::Extra> {
        let [.., update, install, queued, set_option] = EXTRAS.map(|(step, ..)| step);
        let mut extras = self.ring.take_extras();
        let place = FILES - 1;
        // A socket of another kind answers no such question; this one need not be connected.
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None);
        extras.push((update, socket.and_then(|socket| self.ring.install(place, &socket))));
        let socket = Fixed(place);
        let installed = self.submit(&opcode::FixedFdInstall::new(socket, 0).build()).map(|descriptor| {
            // SAFETY: the ring has made it just now, and nobody else knows of it.
            drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
        });
        extras.push((install, installed));
        let ask = send::ask_queued(socket);
        extras.push((queued, self.submit(&ask).map(drop)));
        extras.push((set_option, self.submit(&send::abandon(socket)).map(drop)));
        extras
    }
}

/// Finds the cause of a refusal out, as far as the process can see it.
pub fn explain(refused: &Refused) -> Refusal {
    blame(refused).1
}

/// Finds out who it was, too.
fn blame(refused: &Refused) -> (Culprit, Refusal) {
    blame_on(&Host::look(), calls_forbidden(), refused)
}

/// Whether a call that the kernel itself answers differently is refused for want of permission: then it is
/// certain that a filter of system calls does it. To a descriptor that is none, the sysctl and the security
/// modules say nothing.
fn calls_forbidden() -> bool {
    let null = std::ptr::null::<libc::c_void>();
    let is_forbidden = |result: libc::c_long| {
        result < 0 && matches!(io::Error::last_os_error().raw_os_error(), Some(libc::EPERM | libc::EACCES))
    };
    // SAFETY: there is no such ring, and the kernel reads or writes no memory for it.
    let enter = unsafe { libc::syscall(libc::SYS_io_uring_enter, -1, 0, 0, 0, null, 0) };
    let enter_is = is_forbidden(enter);
    // SAFETY: as above.
    let register = unsafe { libc::syscall(libc::SYS_io_uring_register, -1, 0, null, 0) };
    enter_is || is_forbidden(register)
}

const ALLOW_BY_SECCOMP: &str = "a seccomp profile that adds io_uring_setup, io_uring_enter and \
    io_uring_register to the default, as `ringserve doctor --seccomp-profile docker` (or kubernetes) prints; \
    docker run --security-opt seccomp=seccomp.json; compose security_opt: [\"seccomp=seccomp.json\"]; \
    Kubernetes securityContext.seccompProfile: {type: Localhost, localhostProfile: ringserve.json}";
const ALLOW_BY_SELINUX: &str = "a policy that permits io_uring to this domain (ausearch -m avc names the \
    denial, audit2allow makes the rule); docker run --security-opt label=type:DOMAIN; \
    compose security_opt: [\"label=type:DOMAIN\"]; Kubernetes securityContext.seLinuxOptions.type: DOMAIN";
const ALLOW_BY_APPARMOR: &str = "a profile with the rule `io_uring,`; \
    docker run --security-opt apparmor=PROFILE; compose security_opt: [\"apparmor=PROFILE\"]; \
    Kubernetes securityContext.appArmorProfile: {type: Localhost, localhostProfile: PROFILE}";

/// What a refusal means on such a host.
fn blame_on(host: &Host, calls_forbidden: bool, refused: &Refused) -> (Culprit, Refusal) {
    let Refused { step, error } = refused;
    let release = host.shown_release();
    if error.raw_os_error() == Some(libc::EPERM) && *step == ring::STEPS[0] && host.forbids_io_uring() {
        return (Culprit::Sysctl, blame_sysctl(host));
    }
    let is_call = ring::STEPS.contains(step);
    let is_forbidden = matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES));
    let (culprit, cause, remedy) = match error.raw_os_error() {
        // A module says EACCES; a filter says what it was told to, and that is EPERM nearly always.
        Some(libc::EACCES) if host.module.is_some() && !calls_forbidden => blame_module(host, refused),
        _ if is_forbidden && host.is_filtered() => {
            let likely = if calls_forbidden { "" } else { " most likely" };
            let cause = format!(
                "{step}: {error},{likely} by this process's seccomp filter, as container engines set one"
            );
            (Culprit::Seccomp, cause, ALLOW_BY_SECCOMP)
        }
        _ if is_forbidden => blame_module(host, refused),
        // Linux that has the sysctl has io_uring, so it is not the kernel that does not know the call.
        Some(libc::ENOSYS) if host.is_filtered() && host.io_uring_disabled.is_some() => (
            Culprit::Seccomp,
            format!("{step}: {error}, by this process's seccomp filter, for the kernel ({release}) has it"),
            ALLOW_BY_SECCOMP,
        ),
        Some(libc::ENOSYS | libc::EOPNOTSUPP) if host.is_filtered() && is_call => (
            Culprit::Seccomp,
            format!(
                "{step}: {error}, by this process's seccomp filter, or because this kernel ({release}) is \
                 built without io_uring: from inside it cannot be told which"
            ),
            ALLOW_BY_SECCOMP,
        ),
        Some(libc::ENOSYS) => (
            Culprit::Kernel,
            format!("{step}: {error}: this kernel ({release}) has no io_uring, or a sandbox hides it"),
            "Linux 6.1 or later, built with io_uring, and no sandbox such as gVisor in front of it",
        ),
        Some(libc::ENOMEM) => match host.memlock {
            Some(bytes) => (
                Culprit::Memlock,
                format!("{step}: {error}: this user may lock no more than {} KiB of memory", bytes >> 10),
                ALLOW_MEMLOCK,
            ),
            None => (
                Culprit::Unknown,
                format!(
                    "{step}: {error}: the kernel has no memory for it, or the control group allows no more"
                ),
                "more memory; docker run --memory 256m; compose deploy.resources.limits.memory: 256M; \
                 Kubernetes resources.limits.memory: 256Mi",
            ),
        },
        Some(libc::EMFILE | libc::ENFILE) => {
            (Culprit::Descriptors, format!("{step}: {error}"), ALLOW_DESCRIPTORS)
        }
        Some(libc::EINVAL | libc::EOPNOTSUPP) => (
            Culprit::Kernel,
            format!("{step}: {error}: this kernel ({release}) does not know it"),
            "Linux 6.1 or later",
        ),
        _ => (Culprit::Unknown, format!("{step}: {error}"), "Linux 6.1 or later that permits io_uring"),
    };
    (culprit, Refusal { cause, remedy: remedy.to_owned() })
}

/// The sysctl is looked at when a ring is made, before anything else is.
fn blame_sysctl(host: &Host) -> Refusal {
    let remedy = "sysctl -w kernel.io_uring_disabled=0 on the host, for no container can set it";
    if host.io_uring_disabled != Some(1) {
        let cause = "kernel.io_uring_disabled is 2: forbidden for all".to_owned();
        return Refusal { cause, remedy: remedy.to_owned() };
    }
    let cause = "kernel.io_uring_disabled is 1: forbidden to all without CAP_SYS_ADMIN";
    let run_in = |group: &str| {
        format!(
            "docker run --group-add {group}; compose group_add: [{group}]; \
             Kubernetes securityContext.supplementalGroups: [{group}]"
        )
    };
    match host.io_uring_group.map(|group| group.to_string()) {
        Some(group) => Refusal {
            cause: format!("{cause} who are not in the group {group}, kernel.io_uring_group"),
            remedy: format!("{remedy}; or run in that group: {}", run_in(&group)),
        },
        None => Refusal {
            cause: format!("{cause}, and kernel.io_uring_group names no group"),
            remedy: format!(
                "{remedy}; or sysctl -w kernel.io_uring_group=GID there, and run in that group: {}",
                run_in("GID")
            ),
        },
    }
}

/// Somebody forbids it, and it is no filter.
fn blame_module(host: &Host, Refused { step, error }: &Refused) -> (Culprit, String, &'static str) {
    match &host.module {
        Some(Module::Selinux(context)) => (
            Culprit::Module,
            format!("{step}: {error}, by SELinux, most likely; the context is {context}"),
            ALLOW_BY_SELINUX,
        ),
        Some(Module::AppArmor(profile)) => (
            Culprit::Module,
            format!("{step}: {error}, by AppArmor, most likely; the profile is {profile}"),
            ALLOW_BY_APPARMOR,
        ),
        None => (
            Culprit::Unknown,
            format!("{step}: {error}; by whom cannot be seen from inside: a security module or a sandbox"),
            "a policy that permits io_uring; the host's audit log names who forbids it, as in \
             journalctl -k --grep audit",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_its_words_and_its_remedy() {
        let free = Host { release: "6.12.0".into(), io_uring_disabled: Some(0), ..Host::default() };
        let filtered = Host { seccomp: Some(2), ..free.clone() };
        let old = Host { io_uring_disabled: None, release: "5.15.0".into(), ..filtered.clone() };
        let sysctl =
            |value| Host { io_uring_disabled: Some(value), io_uring_group: Some(27), ..filtered.clone() };
        let selinux = Host { module: Some(Module::Selinux("a:b:container_t:s0".into())), ..free.clone() };
        let both = Host { seccomp: Some(2), ..selinux.clone() };
        let apparmor = Host { module: Some(Module::AppArmor("mine (enforce)".into())), ..free.clone() };
        let groupless = Host { io_uring_group: None, ..sysctl(1) };
        let narrow = Host { memlock: Some(65_536), ..free.clone() };
        let setup = ring::STEPS[0];
        for (host, sure, step, errno, cause, remedy) in [
            (&sysctl(2), true, setup, libc::EPERM, "io_uring_disabled is 2", "sysctl -w"),
            (&sysctl(1), true, setup, libc::EPERM, "io_uring_disabled is 1", "--group-add 27"),
            (&groupless, true, setup, libc::EPERM, "names no group", "io_uring_group=GID"),
            // The sysctl is asked when a ring is made, and at no other time.
            (&sysctl(2), true, ring::STEPS[1], libc::EPERM, "by this process's seccomp", "seccompProfile"),
            (&filtered, true, setup, libc::EPERM, "by this process's seccomp", "seccomp=seccomp.json"),
            (&filtered, false, setup, libc::EPERM, "most likely by this process's seccomp", "compose"),
            (&filtered, false, setup, libc::ENOSYS, "for the kernel (6.12.0) has it", "seccomp=seccomp.json"),
            (&old, false, setup, libc::ENOSYS, "cannot be told which", "seccomp=seccomp.json"),
            (&filtered, false, "a send", libc::EOPNOTSUPP, "does not know it", "Linux 6.1"),
            (&free, false, setup, libc::ENOSYS, "has no io_uring", "gVisor"),
            (&selinux, false, setup, libc::EACCES, "by SELinux", "seLinuxOptions"),
            (&both, false, setup, libc::EACCES, "by SELinux", "label=type"),
            (&both, true, setup, libc::EPERM, "by this process's seccomp", "seccomp=seccomp.json"),
            (&apparmor, false, setup, libc::EPERM, "by AppArmor", "appArmorProfile"),
            (&free, false, setup, libc::EPERM, "cannot be seen from inside", "audit log"),
            (&narrow, false, setup, libc::ENOMEM, "no more than 64 KiB", "--ulimit memlock"),
            (&free, false, setup, libc::ENOMEM, "no memory for it", "--memory"),
            (&free, false, setup, libc::EMFILE, "io_uring_setup", "--ulimit nofile"),
            (&free, false, setup, libc::EINVAL, "(6.12.0) does not know it", "Linux 6.1"),
        ] {
            let error = io::Error::from_raw_os_error(errno);
            let (_, refusal) = blame_on(host, sure, &Refused { step, error });
            assert!(refusal.cause.contains(cause), "{cause:?}: {refusal}");
            assert!(refusal.remedy.contains(remedy), "{remedy:?}: {refusal}");
            assert!(!refusal.to_string().contains('\n'), "{refusal}");
        }
    }

    #[test]
    fn all_that_is_tried_is_listed_once() {
        if let Err(refusal) = available() {
            println!("skipped: {refusal}");
            return;
        }
        let trials = trials(2);
        let needed = trials.iter().filter(|trial| trial.needed);
        assert!(needed.clone().all(|trial| trial.result.is_ok()), "{trials:?}");
        assert_eq!(trials.len() - needed.count(), EXTRAS.len(), "{trials:?}");
        let mut steps: Vec<_> = trials.iter().map(|trial| trial.step).collect();
        steps.sort_unstable();
        steps.dedup();
        assert_eq!(steps.len(), trials.len(), "{trials:?}");
    }
}
