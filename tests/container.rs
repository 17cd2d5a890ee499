//! What the folder `docker/` promises: profiles that cannot drift and that hold when they are applied, and an
//! image and manifests of the right shape.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use ringserve::engines::AUTO;
use rustix::process::Signal;
use seccompiler::{BpfProgram, compile_from_json};
use serde_json::{Value, json};

use crate::common::confine::{is_permitted_at_all, under};
use crate::common::{Setup, Site};

mod common;

fn checkout(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(checkout(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(path: &str) -> Value {
    yaml_serde::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn printed_profile(reader: &str) -> String {
    let ended = Setup::new().args(["doctor", "--seccomp-profile", reader]).run();
    assert_eq!((ended.code, &*ended.stderr), (Some(0), ""), "{ended:?}");
    ended.stdout
}

#[test]
fn the_profiles_are_what_doctor_prints() {
    for (reader, path) in
        [("docker", "docker/seccomp.json"), ("kubernetes", "docker/kubernetes/seccomp.json")]
    {
        assert!(read(path) == printed_profile(reader), "make {path} anew: doctor --seccomp-profile {reader}");
    }
}

/// Compiles rules of a flat profile for this machine, with what is done where one matches, and else.
fn compile<'a>(rules: impl Iterator<Item = &'a Value>, matched: &Value, else_do: &Value) -> BpfProgram {
    let compiled = |filter: &Value| {
        let thread = json!({ "mismatch_action": else_do, "match_action": matched, "filter": filter });
        let arch = std::env::consts::ARCH.try_into().expect("an architecture that seccompiler knows");
        compile_from_json(json!({ "it": thread }).to_string().as_bytes(), arch)
    };
    let condition = |arg: &Value| {
        let (op, value) = match arg["op"].as_str().unwrap() {
            "SCMP_CMP_EQ" => (json!("eq"), arg["value"].clone()),
            "SCMP_CMP_LT" => (json!("lt"), arg["value"].clone()),
            "SCMP_CMP_GT" => (json!("gt"), arg["value"].clone()),
            "SCMP_CMP_MASKED_EQ" => {
                (json!({ "masked_eq": arg["value"] }), json!(arg["valueTwo"].as_u64().unwrap_or(0)))
            }
            other => panic!("{other}"),
        };
        json!({ "index": arg["index"], "type": "qword", "op": op, "val": value })
    };
    let mut filter = Vec::new();
    for rule in rules {
        for name in rule["names"].as_array().unwrap() {
            // Many a name is another architecture's.
            if compiled(&json!([{ "syscall": name }])).is_err() {
                continue;
            }
            let conditions: Option<Vec<Value>> =
                rule["args"].as_array().map(|args| args.iter().map(condition).collect());
            filter.push(match conditions {
                Some(conditions) => json!({ "syscall": name, "args": conditions }),
                None => json!({ "syscall": name }),
            });
        }
    }
    compiled(&filter.into()).unwrap().remove("it").unwrap()
}

/// A flat profile as filters, as a container runtime would load it.
fn filters(profile: &Value) -> Vec<BpfProgram> {
    let rules = || profile["syscalls"].as_array().unwrap().iter();
    let errno = |number: &Value| json!({ "errno": number });
    let allowed = rules().filter(|rule| rule["action"] == "SCMP_ACT_ALLOW");
    let mut filters = vec![compile(allowed, &json!("allow"), &errno(&profile["defaultErrnoRet"]))];
    // Of two errors the filter loaded last has its way.
    for rule in rules().filter(|rule| rule["action"] == "SCMP_ACT_ERRNO") {
        filters.push(compile([rule].into_iter(), &errno(&rule["errnoRet"]), &json!("allow")));
    }
    filters
}

/// The error of a system call with these arguments in a process under filters.
fn error_under(filters: Vec<BpfProgram>, call: i64, args: [i64; 2]) -> Option<i32> {
    let mut setup = under(Setup::new(), filters);
    let try_it = move || {
        // SAFETY: none of the calls tried touches memory of ours with these arguments.
        if unsafe { libc::syscall(call, args[0], args[1], 0, 0, 0, 0) } == -1 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes a system call and takes no memory.
    unsafe { setup.command.arg("--version").pre_exec(try_it) };
    match setup.command.spawn() {
        Ok(mut child) => {
            child.wait().unwrap();
            None
        }
        Err(error) => error.raw_os_error(),
    }
}

#[test]
fn under_the_flat_profile_a_ring_is_permitted_and_what_escapes_is_not() {
    let profile: Value = serde_json::from_str(&printed_profile("kubernetes")).unwrap();
    let with_ring = filters(&profile);
    for (name, call, args) in [
        ("mount", libc::SYS_mount, [0, 0]),
        ("bpf", libc::SYS_bpf, [9999, 0]),
        ("ptrace", libc::SYS_ptrace, [i64::from(libc::PTRACE_PEEKDATA), 0]),
        ("unshare", libc::SYS_unshare, [1, 0]),
        ("add_key", libc::SYS_add_key, [0, 0]),
    ] {
        assert_eq!(error_under(with_ring.clone(), call, args), Some(libc::EPERM), "{name}");
        // So that it is the profile that is measured, and no lack of privileges.
        if error_under(Vec::new(), call, args) == Some(libc::EPERM) {
            println!("{name} is forbidden to this user in any case");
        }
    }
    assert_eq!(error_under(with_ring.clone(), libc::SYS_clone3, [0, 0]), Some(libc::ENOSYS));
    if !is_permitted_at_all() {
        return;
    }
    assert_eq!(error_under(with_ring.clone(), libc::SYS_io_uring_enter, [-1, 0]), Some(libc::EBADF));
    let site = Site::with(&[("index.html", "hello\n"), ("large.bin", &"0123456789".repeat(300_000))]);
    // The base is what the runtimes set by default: all of it but the last rule.
    let mut base = profile;
    base["syscalls"].as_array_mut().unwrap().pop();
    for (filters, engine, code) in [(with_ring, AUTO.0, 0), (filters(&base), AUTO.1, 3)] {
        let mut server = under(Setup::new().serving("auto", &site), filters.clone()).start();
        assert_eq!(server.get("/").text(), "hello\n");
        assert_eq!(server.get("/large.bin").body.len(), 3_000_000);
        let stdout = server.stdout();
        assert!(stdout.contains(&format!("with {} (", engine.name)), "{stdout}");
        assert!(code == 0 || stdout.contains("seccomp filter"), "{stdout}");
        server.signal(Signal::TERM);
        server.ends_well();
        let doctor = Setup::new().arg("doctor").arg(site.root()).args(["--host", "127.0.0.1", "-p", "0"]);
        let ended = under(doctor, filters).run();
        assert_eq!(ended.code, Some(code), "{ended:?}");
    }
}

/// The instructions of a Dockerfile: the word, and what stands behind it.
fn instructions(text: &str) -> Vec<(String, String)> {
    let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    let joined = code.join("\n").replace("\\\n", " ");
    let words = joined.lines().filter_map(|line| line.trim().split_once(' '));
    words.map(|(word, rest)| (word.to_ascii_uppercase(), rest.trim().to_owned())).collect()
}

#[test]
fn the_image_is_one_static_binary_for_an_ordinary_user() {
    let all = instructions(&read("docker/Dockerfile"));
    let last = all.iter().rposition(|(word, _)| word == "FROM").unwrap();
    let (build, image) = all.split_at(last);
    let of = |word: &str| -> Vec<&str> {
        image.iter().filter(|(found, _)| found == word).map(|(_, rest)| &**rest).collect()
    };
    assert_eq!(of("FROM"), ["${RUN_IMAGE}"]);
    assert!(all.contains(&("ARG".into(), "RUN_IMAGE=scratch".into())));
    assert!(build.iter().any(|(word, rest)| word == "FROM" && rest == "${BUILD_IMAGE} AS build"));
    assert_eq!(of("USER"), ["1000:1000"]);
    assert_eq!(of("EXPOSE"), ["8080"]);
    assert_eq!(of("STOPSIGNAL"), ["SIGTERM"]);
    assert_eq!(of("ENTRYPOINT"), [r#"["/ringserve"]"#]);
    assert!(of("HEALTHCHECK")[0].ends_with(r#"CMD ["/ringserve", "healthcheck"]"#));
    assert!(of("ENV").contains(&"SERVER_ROOT=/public"));
    let labels = of("LABEL").join(" ");
    for label in ["title", "description", "version", "revision", "licenses"] {
        assert!(labels.contains(&format!("org.opencontainers.image.{label}=")), "{label}");
    }
    let version = format!("VERSION={}", env!("CARGO_PKG_VERSION"));
    assert_eq!(of("ARG")[0], version);
    // In the last stage nothing runs, for there is nothing that could.
    assert!(of("RUN").is_empty());
    assert!(all.iter().all(|(word, _)| word != "ADD"));
    for (_, rest) in all.iter().filter(|(word, _)| word == "COPY") {
        let words: Vec<&str> = rest.split_whitespace().collect();
        if words[0] == "--from=build" {
            continue;
        }
        let (sources, _) = words.split_at(words.len() - 1);
        for source in sources {
            assert!(checkout(source).exists(), "{source} is copied and does not exist");
        }
    }
    let cargo = build.iter().find(|(word, rest)| word == "RUN" && rest.contains("cargo build")).unwrap();
    assert!(cargo.1.contains("--locked"), "{cargo:?}");
    // Whatever the program takes in when it is built must be there.
    let copied: String = build.iter().filter(|(word, _)| word == "COPY").map(|(_, rest)| &**rest).collect();
    for needed in ["Cargo.lock", "src", "docker/seccomp-base.json"] {
        assert!(copied.contains(needed), "{needed}");
    }
}

#[test]
fn compose_limits_the_server_and_lets_it_end_in_peace() {
    let compose = yaml("docker/compose.yaml");
    let server = &compose["services"]["server"];
    let seconds =
        |value: &Value| -> u32 { value.as_str().unwrap().strip_suffix('s').unwrap().parse().unwrap() };
    let grace = seconds(&server["environment"]["SERVER_GRACE_PERIOD"]);
    assert!(seconds(&server["stop_grace_period"]) > grace);
    for service in ["server", "compare"] {
        let service = &compose["services"][service];
        assert_eq!(service["user"], "1000:1000");
        assert_eq!(service["read_only"], true);
        assert_eq!(service["cap_drop"], json!(["ALL"]));
        assert_eq!(service["security_opt"], json!(["no-new-privileges:true", "seccomp=seccomp.json"]));
        let limits = &service["deploy"]["resources"]["limits"];
        assert!(limits["memory"].is_string() && limits["cpus"].is_string(), "{limits}");
    }
    // It writes the files that it asks for, and has nowhere else to.
    assert_eq!(compose["services"]["compare"]["tmpfs"], json!(["/tmp"]));
    let build = &server["build"];
    let context = checkout("docker").join(build["context"].as_str().unwrap());
    assert!(context.join(build["dockerfile"].as_str().unwrap()).exists());
    let command = compose["services"]["compare"]["command"].as_array().unwrap();
    assert_eq!(command[..2], [json!("compare"), json!("--url")]);
    assert!(server["volumes"][0].as_str().unwrap().ends_with(":/public:ro"));
    assert!(!read("docker/compose.yaml").contains("unconfined"));
}

/// The value of a variable of the first container.
fn variable<'a>(pod: &'a Value, name: &str) -> &'a str {
    let variables = pod["containers"][0]["env"].as_array().unwrap();
    let found = variables.iter().find(|variable| variable["name"] == name);
    found.unwrap_or_else(|| panic!("no {name}"))["value"].as_str().unwrap()
}

#[test]
fn the_deployments_confine_the_server_and_roll_without_a_gap() {
    let local = yaml("docker/kubernetes/deployment.yaml");
    let default = yaml("docker/kubernetes/deployment-runtime-default.yaml");
    let profile = "/spec/template/spec/securityContext/seccompProfile";
    assert_eq!(
        local.pointer(profile),
        Some(&json!({ "type": "Localhost", "localhostProfile": "ringserve.json" }))
    );
    assert_eq!(default.pointer(profile), Some(&json!({ "type": "RuntimeDefault" })));
    // But for that they are one.
    let mut same = default;
    *same.pointer_mut(profile).unwrap() = local.pointer(profile).unwrap().clone();
    assert_eq!(same, local);

    assert_eq!((&local["apiVersion"], &local["kind"]), (&json!("apps/v1"), &json!("Deployment")));
    let spec = &local["spec"];
    assert_eq!(spec["selector"]["matchLabels"], spec["template"]["metadata"]["labels"]);
    assert_eq!(spec["strategy"]["rollingUpdate"]["maxUnavailable"], 0);
    assert!(spec["replicas"].as_u64().unwrap() >= 3);
    let pod = &spec["template"]["spec"];
    assert_eq!(pod["enableServiceLinks"], false);
    assert_eq!(pod["automountServiceAccountToken"], false);
    for (key, value) in
        [("runAsNonRoot", json!(true)), ("runAsUser", json!(1000)), ("runAsGroup", json!(1000))]
    {
        assert_eq!(pod["securityContext"][key], value, "{key}");
    }
    let container = &pod["containers"][0];
    let security = &container["securityContext"];
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["capabilities"], json!({ "drop": ["ALL"] }));
    let ports: Vec<&Value> =
        container["ports"].as_array().unwrap().iter().map(|port| &port["name"]).collect();
    assert_eq!(ports, ["http", "admin"]);
    assert_eq!(variable(pod, "SERVER_ADMIN"), format!("[::]:{}", container["ports"][1]["containerPort"]));
    for (probe, path) in [("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")] {
        assert_eq!(container[probe]["httpGet"], json!({ "path": path, "port": "admin" }), "{probe}");
    }
    // Readiness is lost, and everybody knows, well before clients are turned away.
    let probe = |name: &str| container["readinessProbe"][name].as_u64().unwrap();
    let noticed = probe("periodSeconds") * probe("failureThreshold") + probe("timeoutSeconds");
    assert!(container.get("lifecycle").is_none(), "the delay takes the place of a preStop hook");
    for kind in ["requests", "limits"] {
        let amounts = &container["resources"][kind];
        assert!(amounts["cpu"].is_string() && amounts["memory"].is_string(), "{kind}");
    }
    let seconds = |name| -> u64 { variable(pod, name).strip_suffix('s').unwrap().parse().unwrap() };
    let (delay, grace) = (seconds("SERVER_SHUTDOWN_DELAY"), seconds("SERVER_GRACE_PERIOD"));
    assert!(delay > noticed, "{delay} {noticed}");
    assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() > delay + grace);
}

#[test]
fn service_budget_and_autoscaler_mean_the_deployment() {
    let deployment = yaml("docker/kubernetes/deployment.yaml");
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    let service = yaml("docker/kubernetes/service.yaml");
    assert_eq!(&service["spec"]["selector"], labels);
    let port = &deployment["spec"]["template"]["spec"]["containers"][0]["ports"][0];
    assert_eq!(port["containerPort"], 8080);
    let ports = service["spec"]["ports"].as_array().unwrap();
    // What is for operators is not among them.
    assert_eq!(ports.iter().map(|port| &port["targetPort"]).collect::<Vec<_>>(), [&port["name"]]);
    let budget = yaml("docker/kubernetes/disruption-budget.yaml");
    assert_eq!(
        (&budget["apiVersion"], &budget["kind"]),
        (&json!("policy/v1"), &json!("PodDisruptionBudget"))
    );
    assert_eq!(&budget["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(budget["spec"]["maxUnavailable"], 1);
    let autoscaler = yaml("docker/kubernetes/autoscaler.yaml");
    assert_eq!(autoscaler["apiVersion"], "autoscaling/v2");
    let spec = &autoscaler["spec"];
    let target =
        json!({ "apiVersion": "apps/v1", "kind": "Deployment", "name": deployment["metadata"]["name"] });
    assert_eq!(spec["scaleTargetRef"], target);
    assert_eq!(spec["minReplicas"], deployment["spec"]["replicas"]);
    assert!(spec["maxReplicas"].as_u64() > spec["minReplicas"].as_u64());
}

/// Every variable in the manifests is one that the program knows.
#[test]
fn no_manifest_sets_a_variable_that_nobody_reads() {
    let help = Setup::new().arg("--help").run().stdout;
    let texts = ["compose.yaml", "kubernetes/deployment.yaml", "Dockerfile"]
        .map(|name| read(&format!("docker/{name}")));
    let code = |text: &str| -> String { text.lines().filter(|line| !line.trim().starts_with('#')).collect() };
    let names: BTreeSet<String> = texts
        .iter()
        .flat_map(|text| {
            let words: Vec<String> =
                code(text).split(|c: char| !c.is_ascii_uppercase() && c != '_').map(str::to_owned).collect();
            words
        })
        .filter(|word| word.starts_with("SERVER_"))
        .collect();
    assert!(names.len() >= 3, "{names:?}");
    for name in names {
        assert!(help.contains(&name), "{name}");
    }
}
