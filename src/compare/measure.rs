//! Readings of `/proc` (proc(5)): what processes have cost so far.
//!
//! A server may be several processes. They are found by their process group, which a forked child shares with
//! its parent; the time of those that have ended is in their parent's record.

use std::fs;
use std::net::SocketAddr;
use std::ops::Sub;
use std::path::Path;

/// Processes that are measured as one.
#[derive(Clone, Debug)]
pub enum Processes {
    /// All of that process group.
    Group(i32),
    /// Those, by their ids.
    These(Vec<i32>),
}

/// What processes have used since they began. The difference of two readings is what lies between.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Seconds of CPU time outside the kernel.
    pub user: f64,
    /// Seconds of CPU time within it.
    pub system: f64,
    /// Times a thread had to give up its core before it wanted to. Of threads that live, only.
    pub involuntary: u64,
}

impl Usage {
    /// CPU time in all.
    pub fn cpu(&self) -> f64 {
        self.user + self.system
    }
}

impl Sub for Usage {
    type Output = Usage;

    fn sub(self, before: Usage) -> Usage {
        Usage {
            user: (self.user - before.user).max(0.0),
            system: (self.system - before.system).max(0.0),
            involuntary: self.involuntary.saturating_sub(before.involuntary),
        }
    }
}

impl Processes {
    /// The local processes that listen at an address; `None` if it is elsewhere, or if they cannot be seen.
    pub fn that_listen(address: SocketAddr) -> Option<Processes> {
        let sockets = ["/proc/net/tcp", "/proc/net/tcp6"].map(fs::read_to_string);
        let wanted: Vec<_> = sockets
            .iter()
            .flatten()
            .flat_map(|table| table.lines().filter_map(|line| listener_at(line, address.port())))
            .map(|inode| format!("socket:[{inode}]"))
            .collect();
        if !address.ip().is_loopback() || wanted.is_empty() {
            return None;
        }
        let holds = |id: &i32| {
            let Ok(descriptors) = fs::read_dir(format!("/proc/{id}/fd")) else { return false };
            descriptors.flatten().any(|descriptor| {
                let link = fs::read_link(descriptor.path()).unwrap_or_default();
                wanted.iter().any(|socket| link == Path::new(socket))
            })
        };
        let found: Vec<_> = all_ids().filter(holds).collect();
        (!found.is_empty()).then_some(Processes::These(found))
    }

    /// What they have used so far.
    pub fn usage(&self) -> Usage {
        let second = rustix::param::clock_ticks_per_second() as f64;
        let mut usage = Usage::default();
        for stat in self.stats() {
            let [user, system, ended_user, ended_system] =
                [stat.user_ticks, stat.system_ticks, stat.ended_user_ticks, stat.ended_system_ticks]
                    .map(|ticks| ticks as f64 / second);
            // Each process's time is shown in whole ticks, and of many that live for a moment not much would
            // be left. The scheduler knows the sum exactly, though only of threads that live.
            let shown = user + system;
            let exact = run_time(stat.id).max(shown);
            let scale = if shown > 0.0 { exact / shown } else { 0.0 };
            usage.user += user * scale + ended_user;
            usage.system += exact - user * scale + ended_system;
            usage.involuntary += involuntary_switches(stat.id);
        }
        usage
    }

    /// Their ids, of those that live and have not ended either.
    pub fn ids(&self) -> Vec<i32> {
        self.stats().into_iter().filter(|stat| !stat.has_ended).map(|stat| stat.id).collect()
    }

    /// Bytes of memory they hold now; what several share is divided among them.
    pub fn memory(&self) -> Option<u64> {
        let sizes = self.stats().into_iter().map(|stat| {
            let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", stat.id)).ok()?;
            field(&rollup, "Pss:").map(|kibibytes| kibibytes * 1024)
        });
        let sizes: Vec<u64> = sizes.flatten().collect();
        (!sizes.is_empty()).then(|| sizes.iter().sum())
    }

    fn stats(&self) -> Vec<Stat> {
        match self {
            Processes::Group(group) => {
                all_ids().filter_map(stat_of).filter(|stat| stat.group == *group).collect()
            }
            Processes::These(ids) => ids.iter().copied().filter_map(stat_of).collect(),
        }
    }
}

/// What of `/proc/PID/stat` is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    id: i32,
    group: i32,
    /// Only its parent has not asked yet how.
    has_ended: bool,
    user_ticks: u64,
    system_ticks: u64,
    /// Of children that have ended.
    ended_user_ticks: u64,
    ended_system_ticks: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Stat> {
        // The name, in brackets, may itself hold blanks and brackets.
        let (front, rest) = text.rsplit_once(')')?;
        let id = front.split_once(' ')?.0.parse().ok()?;
        let fields: Vec<_> = rest.split_ascii_whitespace().collect();
        // The first of them is number 3 in proc_pid_stat(5).
        let number = |place: usize| fields.get(place - 3)?.parse::<u64>().ok();
        Some(Stat {
            id,
            group: fields.get(5 - 3)?.parse().ok()?,
            has_ended: matches!(*fields.first()?, "Z" | "X"),
            user_ticks: number(14)?,
            system_ticks: number(15)?,
            ended_user_ticks: number(16)?,
            ended_system_ticks: number(17)?,
        })
    }
}

fn stat_of(id: i32) -> Option<Stat> {
    Stat::parse(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?)
}

fn all_ids() -> impl Iterator<Item = i32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|process| process.file_name().to_str()?.parse().ok())
}

/// Seconds that the threads of a process have run, of those that live.
fn run_time(id: i32) -> f64 {
    let threads = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    let times = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_ascii_whitespace().next()?.parse::<u64>().ok()
    });
    times.sum::<u64>() as f64 / 1e9
}

fn involuntary_switches(id: i32) -> u64 {
    statuses(id).filter_map(|status| field(&status, "nonvoluntary_ctxt_switches:")).sum()
}

/// Who traces each thread of a process (ptrace(2)); 0 for nobody.
pub fn tracers(id: i32) -> impl Iterator<Item = u64> {
    statuses(id).filter_map(|status| field(&status, "TracerPid:"))
}

/// What `/proc` says of each thread of a process.
fn statuses(id: i32) -> impl Iterator<Item = String> {
    let threads = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    threads.filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok())
}

/// The number behind a name, in a file of lines `NAME: NUMBER ...`.
fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_ascii_whitespace().next()?.parse().ok()
}

/// The inode of a socket that listens on that port, from a line of `/proc/net/tcp`.
fn listener_at(line: &str, port: u16) -> Option<u64> {
    const LISTENS: &str = "0A";
    let fields: Vec<_> = line.split_ascii_whitespace().collect();
    let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
    let listens = *fields.get(3)? == LISTENS && u16::from_str_radix(local_port, 16) == Ok(port);
    listens.then(|| fields.get(9)?.parse().ok()).flatten()
}

/// The load average of the last minute.
pub fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_name_may_hold_anything() {
        let text = "42 (a) b (c) S 1 40 40 0 -1 4194304 1 2 3 4 100 20 3 4 20 0 1 0 5 6 7";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.id, stat.group, stat.has_ended), (42, 40, false));
        assert!(Stat::parse(&text.replace(" S ", " Z ")).unwrap().has_ended);
        assert_eq!((stat.user_ticks, stat.system_ticks), (100, 20));
        assert_eq!((stat.ended_user_ticks, stat.ended_system_ticks), (3, 4));
        assert_eq!(Stat::parse("42 (x) S 1"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn fields_are_found_by_their_names() {
        let text = "Rss:   10 kB\nPss:      1234 kB\nPss_Dirty: 5 kB\n";
        assert_eq!(field(text, "Pss:"), Some(1234));
        assert_eq!(field(text, "Swap:"), None);
    }

    #[test]
    fn only_listeners_count() {
        let line = |state| {
            format!(
                "   0: 0100007F:1F90 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0 \
                 0 4711 1 0 100 0 0 10 0"
            )
        };
        assert_eq!(listener_at(&line("0A"), 8080), Some(4711));
        assert_eq!(listener_at(&line("01"), 8080), None);
        assert_eq!(listener_at(&line("0A"), 8081), None);
        assert_eq!(listener_at("  sl  local_address rem_address   st", 8080), None);
    }

    #[test]
    fn this_process_is_found_and_has_used_something() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let Some(Processes::These(ids)) = Processes::that_listen(listener.local_addr().unwrap()) else {
            panic!("not found");
        };
        let own = std::process::id() as i32;
        assert!(ids.contains(&own));
        let processes = Processes::These(vec![own]);
        assert!(processes.memory().unwrap() > 100_000);
        let spent = processes.usage() - Usage::default();
        assert!(spent.cpu() > 0.0 && spent.user >= 0.0 && spent.system >= 0.0);
        assert!(load_average() >= 0.0);
    }
}
