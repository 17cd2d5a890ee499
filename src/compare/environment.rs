//! Where a comparison was made: figures mean little without it.

use std::fs;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::cgroup;

use super::measure::load_average;
use super::schedule::size_text;
use super::server::{Cores, allowed_cores};
use super::tracer;

/// The machine, and what was asked of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Environment {
    /// When it began, as HTTP writes times.
    pub date: String,
    /// The version of this program.
    pub version: String,
    /// The command line.
    pub command: Vec<String>,
    /// Name and version of the kernel.
    pub kernel: String,
    /// The processor.
    pub cpu: String,
    /// Cores this process may use.
    pub cores: usize,
    /// Cores the servers were kept on; empty where they were not.
    pub server_cores: Vec<usize>,
    /// The core the generator was kept on.
    pub generator_core: Option<usize>,
    /// Weaknesses of the processor that the kernel knows of, and what it does about them.
    pub mitigations: Vec<String>,
    /// The control group's limits on CPU and memory, where it has any.
    pub limits: Vec<String>,
    /// The load average before the first run.
    pub load: f64,
    /// The version of strace, where it is installed.
    #[serde(default)]
    pub strace: Option<String>,
}

impl Environment {
    /// That of this process.
    pub fn read(cores: Option<&Cores>) -> Environment {
        let system = rustix::system::uname();
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        Environment {
            date: httpdate::fmt_http_date(SystemTime::now()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            command: std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect(),
            kernel: format!("{} {}", text(system.sysname()), text(system.release())),
            cpu: processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            cores: allowed_cores().len(),
            server_cores: cores.map(|cores| cores.server.clone()).unwrap_or_default(),
            generator_core: cores.map(|cores| cores.generator),
            mitigations: mitigations(),
            limits: limits(),
            load: load_average(),
            strace: tracer::version(),
        }
    }

    /// It as lines of a name and a value.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let list = |items: &[usize]| items.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let placed = match self.generator_core {
            Some(own) => format!("servers on {}, generator on {own}", list(&self.server_cores)),
            None => "servers and generator share one".to_owned(),
        };
        let or_none = |items: &[String]| {
            if items.is_empty() { "none".to_owned() } else { items.join("; ") }
        };
        vec![
            ("date", self.date.clone()),
            ("version", format!("ringserve {}", self.version)),
            ("strace", self.strace.clone().unwrap_or_else(|| "not installed".to_owned())),
            ("command line", self.command.join(" ")),
            ("kernel", self.kernel.clone()),
            ("processor", self.cpu.clone()),
            ("cores", format!("{}; {placed}", self.cores)),
            ("load average at the start", format!("{:.2}", self.load)),
            ("limits of the control group", or_none(&self.limits)),
            ("mitigations", or_none(&self.mitigations)),
        ]
    }
}

/// The model's name, of `/proc/cpuinfo`.
fn processor(text: &str) -> String {
    let line = text.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim());
    name.unwrap_or(std::env::consts::ARCH).to_owned()
}

fn mitigations() -> Vec<String> {
    let folder = fs::read_dir("/sys/devices/system/cpu/vulnerabilities").into_iter().flatten().flatten();
    let mut found: Vec<_> = folder
        .filter_map(|file| {
            let state = fs::read_to_string(file.path()).ok()?;
            let name = file.file_name().to_string_lossy().into_owned();
            (state.trim() != "Not affected").then(|| format!("{name}: {}", state.trim()))
        })
        .collect();
    found.sort();
    found
}

fn limits() -> Vec<String> {
    let mut found = Vec::new();
    if let Some(bytes) = cgroup::memory_limit() {
        found.push(format!("memory {}", size_text(bytes)));
    }
    // In a container, its own group is at the top.
    let cpu = fs::read_to_string("/sys/fs/cgroup/cpu.max").unwrap_or_default();
    if let Some(cores) = cpu_limit(&cpu) {
        found.push(format!("{cores:.2} cores"));
    }
    found
}

/// How many cores' time `cpu.max` grants.
fn cpu_limit(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_read() {
        assert_eq!(processor("processor\t: 0\nmodel name\t: A CPU @ 3 GHz\n"), "A CPU @ 3 GHz");
        assert_eq!(processor(""), std::env::consts::ARCH);
        assert_eq!(cpu_limit("150000 100000\n"), Some(1.5));
        assert_eq!(cpu_limit("max 100000\n"), None);
        assert!(!Environment::read(None).kernel.is_empty());
    }
}
