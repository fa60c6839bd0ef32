//! The machine that a measurement was made on, as far as the system shows it.

use std::fs;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// Features that decide which kernels run, and how fast.
const FLAGS: [&str; 14] = [
    "avx2",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx_vnni",
    "avx512_vbmi",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "sha_ni",
    "asimd",
    "asimddp",
    "i8mm",
];

/// What was there when the measurement began. What the system does not show is left out.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    /// Version of the program.
    pub version: &'static str,
    /// Seconds since 1970.
    pub unix_time: u64,
    /// Operating system and architecture.
    pub system: String,
    /// Name of the CPU; virtual machines often hide the real one.
    pub cpu: Option<String>,
    /// Those of its features that matter here.
    pub cpu_flags: Vec<String>,
    /// Cores that this program may use.
    pub cores: usize,
    /// The governor of the first core's clock.
    pub governor: Option<String>,
    /// Clock of the first core at the start, in MHz.
    pub cpu_megahertz: Option<f64>,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Whether memory is given out in huge pages: always, madvise, never.
    pub huge_pages: Option<String>,
    /// Programs that wanted to run, averaged over the last minute.
    pub load: Option<f64>,
    /// The hottest sensor, in degrees Celsius.
    pub celsius: Option<f64>,
    /// NVIDIA devices: name, driver, clocks, power, temperature and why they are slowed down.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<String>,
}

/// What is asked of `nvidia-smi`, in the order of [`Environment::gpus`].
const GPU_FIELDS: &str =
    "name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_throttle_reasons.active";

impl Environment {
    /// Looks around.
    pub fn capture() -> Self {
        let cpuinfo = text("/proc/cpuinfo").unwrap_or_default();
        let flags = field(&cpuinfo, "flags").or_else(|| field(&cpuinfo, "Features")).unwrap_or_default();
        let known = |flag: &&str| FLAGS.contains(flag);
        Self {
            version: env!("CARGO_PKG_VERSION"),
            unix_time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            cpu: field(&cpuinfo, "model name"),
            cpu_flags: flags.split_whitespace().filter(known).map(str::to_owned).collect(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            governor: text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            cpu_megahertz: field(&cpuinfo, "cpu MHz").and_then(|mhz| mhz.parse().ok()),
            memory_bytes: text("/proc/meminfo").and_then(|info| kilobytes(&info, "MemTotal")),
            huge_pages: text("/sys/kernel/mm/transparent_hugepage/enabled").and_then(|modes| chosen(&modes)),
            load: text("/proc/loadavg").and_then(|load| load.split_whitespace().next()?.parse().ok()),
            celsius: hottest(),
            gpus: gpus(),
        }
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let cpu = self.cpu.as_deref().unwrap_or("unknown CPU");
        let mut line = format!("{cpu}, {} cores, {}", self.cores, self.cpu_flags.join(" "));
        if let Some(bytes) = self.memory_bytes {
            line += &format!("; {:.0} GiB", bytes as f64 / f64::from(1 << 30));
        }
        if let Some(governor) = &self.governor {
            line += &format!("; governor {governor}");
        }
        if let Some(load) = self.load {
            line += &format!("; load {load:.1} at the start");
        }
        self.gpus.iter().fold(line, |line, gpu| line + "; " + gpu)
    }
}

fn text(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The value of the first line `name : value`.
fn field(text: &str, name: &str) -> Option<String> {
    let value = |line: &str| {
        line.split_once(':').filter(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
    };
    text.lines().find_map(value)
}

fn kilobytes(text: &str, name: &str) -> Option<u64> {
    field(text, name)?.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The word in brackets.
fn chosen(modes: &str) -> Option<String> {
    let (_, rest) = modes.split_once('[')?;
    rest.split_once(']').map(|(mode, _)| mode.to_owned())
}

fn hottest() -> Option<f64> {
    let zones = fs::read_dir("/sys/class/thermal").ok()?.flatten();
    let degrees = |zone: fs::DirEntry| text(zone.path().join("temp").to_str()?)?.parse::<f64>().ok();
    zones.filter_map(degrees).map(|thousandths| thousandths / 1e3).reduce(f64::max)
}

/// One line for each device; none where there is no driver.
fn gpus() -> Vec<String> {
    let query = [format!("--query-gpu={GPU_FIELDS}"), "--format=csv,noheader".into()];
    let Ok(output) = Command::new("nvidia-smi").args(query).output() else { return Vec::new() };
    if !output.status.success() {
        return Vec::new();
    }
    String::from_utf8_lossy(&output.stdout).lines().map(|line| line.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name() {
        let info = "processor\t: 0\nmodel name\t: Some: CPU\nflags\t\t: fpu avx2\n";
        assert_eq!(field(info, "model name").as_deref(), Some("Some: CPU"));
        assert_eq!(field(info, "model"), None);
        assert_eq!(kilobytes("MemTotal:   100 kB\n", "MemTotal"), Some(102_400));
        assert_eq!(chosen("always [madvise] never").as_deref(), Some("madvise"));
        assert_eq!(chosen("nothing"), None);
    }
}
