//! What the control groups of this process allow it of CPU and memory (cgroups(7), versions 1 and 2).

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Duration;

/// Bytes of memory of a server that knows no file yet: its program, stacks, buffers, and what the kernel
/// holds for it.
const OF_PROGRAM: u64 = 8 << 20;

/// The smallest memory limit of the group and of those above it, in bytes; `None` where there is none.
pub fn memory_limit() -> Option<u64> {
    Groups::of_this_process()?.memory_limit()
}

/// Bytes of memory for either of two things of which there can be more or less: the bytes of files, and files
/// that are kept open. A quarter of the limit, and what is left beside the program where that is little;
/// `None` where there is no limit.
pub fn memory_share() -> Option<u64> {
    memory_limit().map(share_of)
}

fn share_of(limit: u64) -> u64 {
    (limit / 4).min(limit.saturating_sub(OF_PROGRAM) / 3)
}

/// CPUs that the group, and those above it, may use at the same time, such as 0.5; `None` where there is no
/// quota.
pub fn cpu_quota() -> Option<f64> {
    Groups::of_this_process()?.cpu_quota()
}

/// How many threads can run at the same time: the CPUs this process is bound to, and no more than its quota
/// has of whole ones. At least 1.
pub fn cpus() -> usize {
    let bound = available_parallelism().map_or(1, usize::from);
    cpu_quota().map_or(bound, |quota| bound.min(quota as usize)).max(1)
}

/// The groups of one process, and where they can be looked at.
struct Groups {
    /// `/proc/self/cgroup`: lines of `ID:CONTROLLERS:PATH`, with no controllers for version 2.
    own: String,
    mounts: Vec<Mount>,
}

/// Where a hierarchy of groups is mounted.
struct Mount {
    /// `None` for version 2, which has all controllers in one hierarchy.
    controllers: Option<String>,
    /// The group that is seen at the top.
    root: String,
    place: PathBuf,
}

impl Groups {
    fn of_this_process() -> Option<Groups> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        Some(Groups { own, mounts: mounts.lines().filter_map(Mount::parse).collect() })
    }

    fn memory_limit(&self) -> Option<u64> {
        let limit = |folder: &Path, version| {
            let file = if version == 1 { "memory.limit_in_bytes" } else { "memory.max" };
            number(&folder.join(file))
        };
        // Version 1 says "no limit" with a number near 2^63.
        self.folders("memory")
            .filter_map(|(folder, version)| limit(&folder, version))
            .filter(|&limit| limit < 1 << 62)
            .min()
    }

    fn cpu_quota(&self) -> Option<f64> {
        let quota = |folder: &Path, version| {
            let (quota, period) = if version == 1 {
                (number(&folder.join("cpu.cfs_quota_us"))?, number(&folder.join("cpu.cfs_period_us"))?)
            } else {
                let text = fs::read_to_string(folder.join("cpu.max")).ok()?;
                let (quota, period) = text.trim().split_once(' ')?;
                (quota.parse().ok()?, period.parse().ok()?)
            };
            (period > 0).then(|| Duration::from_micros(quota).div_duration_f64(Duration::from_micros(period)))
        };
        self.folders("cpu").filter_map(|(folder, version)| quota(&folder, version)).min_by(f64::total_cmp)
    }

    /// The folders of the group that has this controller and of those above it, each with its version. Both
    /// versions can be mounted at the same time; a controller is then in one of them.
    fn folders<'a>(&'a self, controller: &'a str) -> impl Iterator<Item = (PathBuf, u8)> + 'a {
        let has = move |list: &str| list.split(',').any(|name| name == controller);
        let lines = self.own.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        lines.flat_map(move |(controllers, path)| {
            let version = if controllers.is_empty() { 2 } else { 1 };
            let mount = self.mounts.iter().find(|mount| match &mount.controllers {
                None => version == 2,
                Some(mounted) => version == 1 && has(controllers) && has(mounted),
            });
            mount.into_iter().flat_map(|mount| mount.way_up(path)).map(move |folder| (folder, version))
        })
    }
}

impl Mount {
    /// One line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)): `ID PARENT DEVICE ROOT PLACE OPTIONS
    /// [TAGS] - TYPE SOURCE OPTIONS`.
    fn parse(line: &str) -> Option<Mount> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut filesystem = filesystem.split(' ');
        let controllers = match filesystem.next()? {
            "cgroup2" => None,
            "cgroup" => Some(filesystem.nth(1)?.to_owned()),
            _ => return None,
        };
        let mut fields = mount.split(' ').skip(3);
        Some(Mount { controllers, root: fields.next()?.to_owned(), place: fields.next()?.into() })
    }

    /// The folder of a group, and those above it up to the top.
    fn way_up(&self, path: &str) -> Vec<PathBuf> {
        // In a container the path may name a place outside; its own group is then mounted at the top.
        let below = Path::new(path).strip_prefix(&self.root).unwrap_or(Path::new(""));
        let folder = self.place.join(below);
        folder.ancestors().take_while(|folder| folder.starts_with(&self.place)).map(Path::to_owned).collect()
    }
}

/// The number in a file; `None` for `max` and `-1`, which stand for no limit, and where there is no file.
fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fake `/sys/fs/cgroup`.
    struct Fake(tempfile::TempDir);

    impl Fake {
        fn with(files: &[(&str, &str)]) -> Fake {
            let fake = Fake(tempfile::tempdir().unwrap());
            for (name, value) in files {
                let path = fake.0.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, value).unwrap();
            }
            fake
        }

        /// The groups of a process, with mounts as `(ROOT, PLACE, TYPE, OPTIONS)`.
        fn groups(&self, own: &str, mounts: &[(&str, &str, &str, &str)]) -> Groups {
            let line = |&(root, place, kind, options): &(&str, &str, &str, &str)| {
                let place = self.0.path().join(place);
                let line = format!("30 25 0:26 {root} {} rw shared:9 - {kind} x {options}", place.display());
                Mount::parse(&line).unwrap()
            };
            Groups { own: own.to_owned(), mounts: mounts.iter().map(line).collect() }
        }
    }

    #[test]
    fn in_version_2_the_smallest_limit_on_the_way_up_counts() {
        let fake = Fake::with(&[
            ("a/memory.max", "1000000\n"),
            ("a/cpu.max", "max 100000\n"),
            ("a/b/memory.max", "max\n"),
            ("a/b/cpu.max", "150000 100000\n"),
        ]);
        let groups = |own| fake.groups(own, &[("/", "", "cgroup2", "rw")]);
        assert_eq!(groups("0::/a/b\n").memory_limit(), Some(1_000_000));
        assert_eq!(groups("0::/a/b\n").cpu_quota(), Some(1.5));
        assert_eq!(groups("0::/a\n").cpu_quota(), None);
        assert_eq!(groups("0::/elsewhere\n").memory_limit(), None);
        assert_eq!(groups("nonsense\n").memory_limit(), None);
    }

    #[test]
    fn in_version_1_each_controller_has_a_tree_of_its_own() {
        let fake = Fake::with(&[
            ("memory/x/memory.limit_in_bytes", "2000000\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("cpu/x/cpu.cfs_quota_us", "50000\n"),
            ("cpu/x/cpu.cfs_period_us", "100000\n"),
            ("cpu/cpu.cfs_quota_us", "-1\n"),
            ("cpu/cpu.cfs_period_us", "100000\n"),
        ]);
        let mounts = [("/", "memory", "cgroup", "rw,memory"), ("/", "cpu", "cgroup", "rw,cpu,cpuacct")];
        let groups = fake.groups("5:memory:/x\n3:cpuset:/y\n2:cpu,cpuacct:/x\n", &mounts);
        assert_eq!((groups.memory_limit(), groups.cpu_quota()), (Some(2_000_000), Some(0.5)));
        let groups = fake.groups("5:memory:/\n2:cpu,cpuacct:/\n", &mounts);
        assert_eq!((groups.memory_limit(), groups.cpu_quota()), (None, None));
    }

    #[test]
    fn both_versions_may_be_mounted_and_a_container_may_see_its_group_at_the_top() {
        let fake = Fake::with(&[
            ("unified/memory.max", "1\n"),
            ("memory/memory.limit_in_bytes", "3000000\n"),
            ("inner/cpu.max", "25000 100000\n"),
        ]);
        let mounts = [("/docker/abc", "memory", "cgroup", "rw,memory"), ("/", "empty", "cgroup2", "rw")];
        let groups = fake.groups("4:memory:/docker/abc\n0::/\n", &mounts);
        assert_eq!((groups.memory_limit(), groups.cpu_quota()), (Some(3_000_000), None));
        // As without a namespace of groups: the path is the host's, and does not exist in here.
        let groups = fake.groups("0::/docker/abc\n", &[("/../..", "inner", "cgroup2", "rw")]);
        assert_eq!(groups.cpu_quota(), Some(0.25));
    }

    #[test]
    fn there_is_always_a_cpu() {
        assert!(cpus() >= 1);
    }

    #[test]
    fn where_there_is_little_memory_the_program_comes_first() {
        for (limit, share) in [(1024, 256), (32, 8), (23, 5), (11, 1), (8, 0), (1, 0)] {
            assert_eq!(share_of(limit << 20), share << 20, "{limit}");
        }
    }
}
