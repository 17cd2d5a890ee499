//! The memory limit of the control group this process runs in (cgroups(7), versions 1 and 2).

use std::fs;
use std::path::Path;

/// The smallest limit of the group and of those above it, in bytes; `None` where there is none.
pub fn memory_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    groups.lines().filter_map(|line| limit_of(line, Path::new("/sys/fs/cgroup"))).min()
}

/// The limit of one line of `/proc/self/cgroup`, `ID:CONTROLLERS:PATH`.
fn limit_of(line: &str, mounted: &Path) -> Option<u64> {
    let (_, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    let (base, file) = match controllers {
        "" => (mounted.to_owned(), "memory.max"),
        _ if controllers.split(',').any(|controller| controller == "memory") => {
            (mounted.join("memory"), "memory.limit_in_bytes")
        }
        _ => return None,
    };
    // In a container the path may name a place outside; its own group is then mounted at the top.
    let group = base.join(path.trim_start_matches('/'));
    group
        .ancestors()
        .take_while(|folder| folder.starts_with(&base))
        .filter_map(|folder| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok())
        // Version 1 says "no limit" with a number near 2^63.
        .filter(|&limit| limit < 1 << 62)
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_limit_on_the_way_up_counts() {
        let mounted = tempfile::tempdir().unwrap();
        let write = |path: &str, value: &str| {
            let path = mounted.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value).unwrap();
        };
        write("a/memory.max", "1000000\n");
        write("a/b/memory.max", "max\n");
        write("memory/x/memory.limit_in_bytes", "2000000\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        let limit = |line| limit_of(line, mounted.path());
        assert_eq!(limit("0::/a/b"), Some(1_000_000));
        assert_eq!(limit("0::/elsewhere"), None);
        assert_eq!(limit("5:cpu,memory:/x"), Some(2_000_000));
        assert_eq!(limit("6:cpu:/x"), None);
        assert_eq!(limit("nonsense"), None);
    }
}
