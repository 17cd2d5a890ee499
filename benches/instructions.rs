//! The in-memory path of a request, some number of times and nothing else: for instructions.sh, which has
//! valgrind count the instructions. Nothing here is timed, and no machine is too noisy for it.
//!
//! - `--cases` lists the cases;
//! - `--run CASE COUNT` answers so many requests;
//! - `--exec PROGRAM ARGUMENT...` becomes another program, one that valgrind can be.
//!
//! With any other arguments, as `cargo bench` and `cargo test` give them, it says what it is for.

#[path = "support/cases.rs"]
mod cases;
#[path = "support/requests.rs"]
mod requests;
mod support;

use std::hint::black_box;
use std::os::unix::process::CommandExt;
use std::process::Command;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--cases"] => list(),
        ["--run", case, count] => run(case, count.parse().expect("a number of requests")),
        ["--exec", program, ref arguments @ ..] => exec(program, arguments),
        _ => println!("instructions: benches/instructions.sh counts them, with valgrind"),
    }
}

fn list() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for case in cases::prepare(folder.path()).1 {
        println!("{}", case.name);
    }
}

fn run(name: &str, count: u64) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (mut exchange, cases) = cases::prepare(folder.path());
    let case = cases.iter().find(|case| case.name == name).expect("a case that --cases lists");
    assert_eq!(count % case.requests, 0, "{name} asks for {} at a time", case.requests);
    for _ in 0..count / case.requests {
        black_box(exchange.run(black_box(&case.bytes)));
    }
}

/// Becomes `program`, with one system call forbidden: prctl(PR_GET_AUXV), through which rustix finds the
/// vDSO. Valgrind passes it on to the kernel, which tells of a vDSO that valgrind has unmapped, and the
/// program dies. Refused, rustix reads /proc/self/auxv, which valgrind shows as it should be.
fn exec(program: &str, arguments: &[&str]) {
    const PR_GET_AUXV: u64 = 0x4155_5856;
    let arch = std::env::consts::ARCH.try_into().expect("an architecture that seccompiler knows");
    let is_it = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, PR_GET_AUXV)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .expect("a rule of one condition");
    let forbidden = [(libc::SYS_prctl, vec![is_it])].into_iter().collect();
    let refused = SeccompAction::Errno(libc::EINVAL.cast_unsigned());
    let filter: BpfProgram = SeccompFilter::new(forbidden, SeccompAction::Allow, refused, arch)
        .and_then(TryInto::try_into)
        .expect("a filter that can be compiled");
    apply_filter(&filter).expect("a kernel with seccomp");
    let error = Command::new(program).args(arguments).exec();
    panic!("cannot run {program}: {error}");
}
