//! What this process can see of the kernel it runs on and of what holds it back: sysctl, seccomp, security
//! modules. All of it is read from `/proc` and `/sys`; where those are hidden, less is known.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use rustix::process::{Resource, getegid, getgroups, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

/// The first kernel that has what the ring's engine needs.
pub const RING_SINCE: (u32, u32) = (6, 1);
/// The first kernel that can serve at all, for every file is opened by `openat2(2)`.
pub const SERVING_SINCE: (u32, u32) = (5, 6);

/// How to allow more descriptors.
pub const ALLOW_DESCRIPTORS: &str = "a higher limit on descriptors, as in ulimit -n 65536; \
    docker run --ulimit nofile=65536; compose ulimits: {nofile: 65536}; \
    Kubernetes: LimitNOFILE of the node's container runtime";

/// How to allow more memory to be locked.
pub const ALLOW_MEMLOCK: &str = "a higher limit, as in ulimit -l 8192; docker run --ulimit memlock=8388608; \
    compose ulimits: {memlock: 8388608}; Kubernetes: LimitMEMLOCK of the node's container runtime";

/// The host as seen from here.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// The kernel's release, such as `6.12.5-amd64`; empty where it is hidden.
    pub release: String,
    /// `kernel.io_uring_disabled`, which Linux has since 6.6 where it is built with io_uring.
    pub io_uring_disabled: Option<u8>,
    /// `kernel.io_uring_group`; `None` where no group is exempt.
    pub io_uring_group: Option<u32>,
    /// The groups of this process.
    pub groups: Vec<u32>,
    /// Whether it has CAP_SYS_ADMIN.
    pub is_admin: bool,
    /// Bytes of memory that its user may have locked; `None` where there is no limit, or it has CAP_IPC_LOCK.
    pub memlock: Option<u64>,
    /// `Seccomp` of proc_pid_status(5): 0 for none, 1 for strict, 2 for a filter.
    pub seccomp: Option<u8>,
    /// The security module that confines this process.
    pub module: Option<Module>,
}

/// A security module that confines this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Module {
    /// SELinux, with the process's context.
    Selinux(String),
    /// AppArmor, with the profile's name and mode.
    AppArmor(String),
}

impl Host {
    /// Looks around.
    pub fn look() -> Host {
        let read = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        let status = read("/proc/self/status").unwrap_or_default();
        let own = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
        Host {
            release: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
            io_uring_disabled: read("/proc/sys/kernel/io_uring_disabled").and_then(|text| text.parse().ok()),
            io_uring_group: read("/proc/sys/kernel/io_uring_group").and_then(|text| text.parse().ok()),
            groups: getgroups()
                .unwrap_or_default()
                .into_iter()
                .chain([getegid()])
                .map(rustix::process::Gid::as_raw)
                .collect(),
            is_admin: own.contains(CapabilitySet::SYS_ADMIN),
            memlock: getrlimit(Resource::Memlock).current.filter(|_| !own.contains(CapabilitySet::IPC_LOCK)),
            seccomp: status.lines().find_map(|line| line.strip_prefix("Seccomp:")?.trim().parse().ok()),
            module: read("/proc/self/attr/current")
                .and_then(|text| Module::parse(&text, read("/sys/fs/selinux/enforce").as_deref())),
        }
    }

    /// Major and minor number of the kernel, where they can be read.
    pub fn version(&self) -> Option<(u32, u32)> {
        let mut numbers = self.release.split(|c: char| !c.is_ascii_digit());
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }

    /// The release, to be read by people.
    pub fn shown_release(&self) -> &str {
        if self.release.is_empty() { "of unknown release" } else { &self.release }
    }

    /// Whether the sysctl keeps this process from making a ring.
    pub fn forbids_io_uring(&self) -> bool {
        let is_exempt = || self.is_admin || self.io_uring_group.is_some_and(|id| self.groups.contains(&id));
        match self.io_uring_disabled {
            None | Some(0) => false,
            Some(1) => !is_exempt(),
            Some(_) => true,
        }
    }

    /// Whether a seccomp filter is in force.
    pub fn is_filtered(&self) -> bool {
        self.seccomp == Some(2)
    }
}

/// Whether every address could not be had because IPv6 is off; then every address of IPv4 is what is meant.
pub fn lacks_ipv6(address: IpAddr, error: &io::Error) -> bool {
    address == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        && matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

impl Module {
    /// `/proc/self/attr/current` is `USER:ROLE:TYPE:LEVEL` under SELinux and `NAME (MODE)` under AppArmor. An
    /// unconfined process is confined by none.
    fn parse(current: &str, enforce: Option<&str>) -> Option<Module> {
        let current = current.trim_end_matches('\0').trim();
        if current.ends_with("(enforce)") {
            return Some(Module::AppArmor(current.to_owned()));
        }
        let kind = current.split(':').nth(2)?;
        let is_free = enforce == Some("0") || matches!(kind, "unconfined_t" | "spc_t" | "kernel_t");
        (!is_free).then(|| Module::Selinux(current.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_the_release() {
        for (release, version) in [
            ("6.12.5-amd64", Some((6, 12))),
            ("5.15.0", Some((5, 15))),
            ("6.1+deb12", Some((6, 1))),
            ("", None),
            ("unknown", None),
        ] {
            assert_eq!(Host { release: release.to_owned(), ..Host::default() }.version(), version);
        }
    }

    #[test]
    fn the_sysctl_has_its_exemptions() {
        let host = |disabled, group, is_admin| Host {
            io_uring_disabled: disabled,
            io_uring_group: group,
            groups: vec![1000, 27],
            is_admin,
            ..Host::default()
        };
        for (disabled, group, is_admin, forbidden) in [
            (None, None, false, false),
            (Some(0), None, false, false),
            (Some(1), None, false, true),
            (Some(1), None, true, false),
            (Some(1), Some(27), false, false),
            (Some(1), Some(28), false, true),
            (Some(2), Some(27), true, true),
        ] {
            let host = host(disabled, group, is_admin);
            assert_eq!(host.forbids_io_uring(), forbidden, "{host:?}");
        }
    }

    #[test]
    fn a_security_module_is_known_by_what_it_says_of_the_process() {
        let context = "system_u:system_r:container_t:s0:c1,c2";
        let selinux = Some(Module::Selinux(context.to_owned()));
        let apparmor = Some(Module::AppArmor("docker-default (enforce)".to_owned()));
        for (current, enforce, module) in [
            (context, Some("1"), selinux.clone()),
            ("system_u:system_r:container_t:s0:c1,c2\0", None, selinux),
            (context, Some("0"), None),
            ("unconfined_u:unconfined_r:unconfined_t:s0", Some("1"), None),
            ("docker-default (enforce)", None, apparmor),
            ("docker-default (complain)", None, None),
            ("unconfined", None, None),
            ("", None, None),
        ] {
            assert_eq!(Module::parse(current, enforce), module, "{current:?}");
        }
    }
}
