//! The program held back as containers hold it back: by filters of system calls and by limits.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;

use ringserve::engines::AUTO;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule, apply_filter};

use super::Setup;

/// The program under a filter of system calls, as container engines set one: this call fails with that error.
pub fn filtered(setup: Setup, call: i64, errno: i32) -> Setup {
    under(setup, vec![compiled(call, Vec::new(), errno)])
}

/// A filter under which this call fails with that error where one of the rules holds, or there is none.
pub fn compiled(call: i64, rules: Vec<SeccompRule>, errno: i32) -> BpfProgram {
    let arch = std::env::consts::ARCH.try_into().expect("an architecture that seccompiler knows");
    let forbidden = [(call, rules)].into_iter().collect();
    let (others, this) = (SeccompAction::Allow, SeccompAction::Errno(errno.cast_unsigned()));
    SeccompFilter::new(forbidden, others, this, arch).unwrap().try_into().unwrap()
}

/// The program under these filters, all of them at the same time.
pub fn under(mut setup: Setup, filters: Vec<BpfProgram>) -> Setup {
    let apply = move || filters.iter().try_for_each(|filter| apply_filter(filter).map_err(io::Error::other));
    // SAFETY: between fork and exec the closure makes system calls (prctl, seccomp) and nothing else: the
    // filters were compiled before, and memory is only taken where it fails.
    unsafe { setup.command.pre_exec(apply) };
    setup
}

/// The program with so many bytes of memory that may be locked, without the capability that lifts the limit.
pub fn with_memlock(mut setup: Setup, bytes: u64) -> Setup {
    let limit = move || {
        let rlimit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
        setrlimit(Resource::Memlock, rlimit)?;
        // Who may not do this has not got the capability in the first place.
        let _ = remove_capability_from_bounding_set(CapabilitySet::IPC_LOCK);
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes two system calls and takes no memory.
    unsafe { setup.command.pre_exec(limit) };
    setup
}

/// What the kernel refuses: the call, the error, and what of it must be said.
pub const REFUSALS: [(i64, i32, &str); 4] = [
    (libc::SYS_io_uring_setup, libc::EPERM, "io_uring_setup"),
    (libc::SYS_io_uring_setup, libc::ENOSYS, "io_uring_setup"),
    (libc::SYS_io_uring_register, libc::EPERM, "REGISTER"),
    (libc::SYS_io_uring_enter, libc::EPERM, "seccomp"),
];

/// Whether there is something to forbid.
pub fn is_permitted_at_all() -> bool {
    match (AUTO.0.available)() {
        Ok(()) => true,
        Err(refusal) => {
            println!("skipped: {refusal}");
            false
        }
    }
}
