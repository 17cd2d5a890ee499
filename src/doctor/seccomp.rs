//! The seccomp profile that ringserve asks for: what container engines allow by default, and the three calls
//! of io_uring. Nothing else is allowed in addition.

use clap::ValueEnum;
use serde_json::{Map, Value, json};

/// Docker's default profile, from moby/profiles; `docker/seccomp-base.LICENSE` has its licence.
const BASE: &str = include_str!("../../docker/seccomp-base.json");
/// What the base does not allow and a ring needs.
const RING: [&str; 3] = ["io_uring_enter", "io_uring_register", "io_uring_setup"];
/// The architectures of the flat profile. Those of one kernel must have the same byte order.
const ARCHITECTURES: [&str; 2] = ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"];
/// What the base's conditions call these and the 32-bit ones that run on them.
const CONDITION_NAMES: [&str; 5] = ["amd64", "x32", "x86", "arm64", "arm"];

/// Who is to read the profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Reader {
    /// Docker and Podman, which know conditions on capabilities, architectures and kernels.
    Docker,
    /// containerd and CRI-O, which take the list as it stands.
    Kubernetes,
}

/// The profile for that reader, as a JSON text that ends with a newline.
pub fn profile(reader: Reader) -> String {
    let mut profile: Value = serde_json::from_str(BASE).expect("the base is JSON");
    if reader == Reader::Kubernetes {
        profile = flat(&profile);
    }
    let calls = profile["syscalls"].as_array_mut().expect("the base has calls");
    calls.push(json!({ "names": RING, "action": "SCMP_ACT_ALLOW" }));
    let mut text = serde_json::to_string_pretty(&profile).expect("a value without foreign keys");
    text.push('\n');
    text
}

/// The profile without conditions, as it holds for a container that has no capabilities. A rule that holds on
/// condition of a kernel's age is left out, too: it lets debuggers in, which a server has no need of.
fn flat(profile: &Value) -> Value {
    let rules = profile["syscalls"].as_array().expect("the base has calls");
    let list = |rule: &Value, condition: &str, of: &str| -> Vec<String> {
        let names = rule[condition][of].as_array().into_iter().flatten();
        names.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let is_ours = |name: &String| CONDITION_NAMES.contains(&name.as_str());
    let holds = |rule: &&Value| {
        let only_arches =
            rule["includes"].as_object().is_none_or(|all| all.keys().all(|key| key == "arches"));
        let arches = list(rule, "includes", "arches");
        let excluded = list(rule, "excludes", "arches").iter().any(is_ours);
        only_arches && (arches.is_empty() || arches.iter().any(is_ours)) && !excluded
    };
    let without_conditions = |rule: &Value| -> Value {
        let kept = ["names", "action", "errnoRet", "args"];
        let fields = kept.iter().filter_map(|&key| Some((key.to_owned(), rule.get(key)?.clone())));
        fields.collect::<Map<_, _>>().into()
    };
    let architectures = profile["archMap"].as_array().into_iter().flatten();
    let architectures: Vec<&Value> = architectures
        .filter(|entry| ARCHITECTURES.iter().any(|name| entry["architecture"] == *name))
        .flat_map(|entry| {
            [&entry["architecture"]]
                .into_iter()
                .chain(entry["subArchitectures"].as_array().into_iter().flatten())
        })
        .collect();
    json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": architectures,
        "syscalls": rules.iter().filter(holds).map(without_conditions).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(reader: Reader) -> Value {
        serde_json::from_str(&profile(reader)).unwrap()
    }

    /// Names of the calls that a profile allows, with or without conditions.
    fn allowed(profile: &Value) -> Vec<&str> {
        let rules = profile["syscalls"].as_array().unwrap();
        let allowing = rules.iter().filter(|rule| rule["action"] == "SCMP_ACT_ALLOW");
        allowing
            .flat_map(|rule| rule["names"].as_array().unwrap())
            .map(|name| name.as_str().unwrap())
            .collect()
    }

    #[test]
    fn dockers_is_the_base_and_three_calls() {
        let mut docker = parsed(Reader::Docker);
        let added = docker["syscalls"].as_array_mut().unwrap().pop().unwrap();
        assert_eq!(added, json!({ "names": RING, "action": "SCMP_ACT_ALLOW" }));
        assert_eq!(docker, serde_json::from_str::<Value>(BASE).unwrap());
        for call in RING {
            assert!(!allowed(&docker).contains(&call), "the base has {call} already");
        }
    }

    #[test]
    fn the_flat_one_has_no_conditions_and_nothing_for_the_privileged() {
        let flat = parsed(Reader::Kubernetes);
        let text = flat.to_string();
        for word in ["\"includes\"", "\"excludes\"", "\"caps\"", "minKernel", "archMap", "comment", "null"] {
            assert!(!text.contains(word), "{word}");
        }
        assert_eq!(flat["defaultAction"], "SCMP_ACT_ERRNO");
        let names =
            ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"];
        assert_eq!(flat["architectures"], json!(names));
        let allowed = allowed(&flat);
        for call in
            ["mount", "bpf", "ptrace", "clone3", "unshare", "setns", "reboot", "init_module", "chroot"]
        {
            assert!(!allowed.contains(&call), "{call}");
        }
        for call in RING.into_iter().chain(["openat2", "accept4", "clone", "arch_prctl", "socket"]) {
            assert!(allowed.contains(&call), "{call}");
        }
        // A C library that is told ENOSYS falls back to clone, whose arguments a filter can see.
        let clone3 =
            flat["syscalls"].as_array().unwrap().iter().find(|rule| rule["names"] == json!(["clone3"]));
        assert_eq!(clone3.unwrap()["errnoRet"], 38);
    }
}
