//! The machine that figures were taken on.

use std::fmt;
use std::path::Path;

use super::process;

#[derive(Debug, Clone, Default)]
pub struct Machine {
    cpu: String,
    cores: usize,
    memory_gib: f64,
    kernel: String,
    /// Device, file system and disk under the bench's folder.
    storage: String,
    date: String,
}

impl Machine {
    /// The one we are on, with the storage under `path`.
    pub fn here(path: &Path) -> Machine {
        let cpu = read("/proc/cpuinfo");
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.split_once(':').map(|(_, value)| value.trim().to_string())
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
        let kib: f64 = memory.trim_end_matches(" kB").parse().unwrap_or(0.0);
        let virtual_machine = if cpu.contains(" hypervisor") { ", virtual" } else { "" };
        Machine {
            cpu: field(&cpu, "model name").unwrap_or_else(|| "unknown processor".into()) + virtual_machine,
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: kib / f64::from(1 << 20),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_string(),
            storage: storage(path),
            date: process::output("date", &["+%Y-%m-%d %H:%M"]).unwrap_or_default().trim().to_string(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{}, {} cores, {:.0} GiB memory, Linux {}, {}; {}",
            self.cpu, self.cores, self.memory_gib, self.kernel, self.storage, self.date
        )
    }
}

fn storage(path: &Path) -> String {
    let Ok(text) = process::output("df", &["--output=source,fstype", &path.to_string_lossy()]) else {
        return "unknown storage".into();
    };
    let mut words = text.lines().nth(1).unwrap_or_default().split_whitespace();
    let (device, file_system) = (words.next().unwrap_or("?"), words.next().unwrap_or("?"));
    let name = device.trim_start_matches("/dev/");
    let attribute = |name: &str, attribute: &str| read(&format!("/sys/block/{name}/{attribute}")).trim().to_string();
    let scheduler = attribute(name, "queue/scheduler");
    let chosen = scheduler.split(['[', ']']).nth(1).unwrap_or(&scheduler).to_string();
    let cache = attribute(name, "queue/write_cache");
    let more: Vec<String> = [("scheduler", chosen), ("write cache", cache)]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(what, value)| format!("{what} {value}"))
        .collect();
    format!("{file_system} on {device} ({})", more.join(", "))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
