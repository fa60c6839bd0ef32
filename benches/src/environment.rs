//! The machine that a measurement was made on, as far as the system shows it.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::system::{celsius, field, megahertz, nvidia, text};

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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Environment {
    /// Version of the program.
    pub version: String,
    /// The start of the BLAKE3 of the program's file: the same for the same build.
    pub program: Option<String>,
    /// Its command line.
    pub command: Vec<String>,
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
    /// What sets the clocks, and by which rule, as the first core has them.
    pub clock_driver: Option<String>,
    /// See there.
    pub governor: Option<String>,
    /// The slowest and the fastest core's clock at the start, in MHz.
    pub megahertz: Option<[f64; 2]>,
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
    /// The device that computes, with its driver, where it is reached by Vulkan, Metal or Direct3D 12.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
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
        let of_clock = |what: &str| text(&format!("/sys/devices/system/cpu/cpu0/cpufreq/{what}"));
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            program: program(),
            command: std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect(),
            unix_time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            cpu: field(&cpuinfo, "model name"),
            cpu_flags: flags.split_whitespace().filter(known).map(str::to_owned).collect(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            clock_driver: of_clock("scaling_driver"),
            governor: of_clock("scaling_governor"),
            megahertz: megahertz(),
            memory_bytes: memory_bytes(),
            huge_pages: text("/sys/kernel/mm/transparent_hugepage/enabled").and_then(|modes| chosen(&modes)),
            load: text("/proc/loadavg").and_then(|load| load.split_whitespace().next()?.parse().ok()),
            celsius: celsius(),
            gpus: nvidia(GPU_FIELDS),
            adapter: None,
        }
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let cpu = self.cpu.as_deref().unwrap_or("unknown CPU");
        let mut line = format!("{cpu}, {} cores, {}", self.cores, self.cpu_flags.join(" "));
        if let Some(bytes) = self.memory_bytes {
            line += &format!("; {:.0} GiB", bytes as f64 / f64::from(1 << 30));
        }
        if let Some([least, most]) = self.megahertz {
            line += &format!("; {least:.0} to {most:.0} MHz");
        }
        if let Some(governor) = &self.governor {
            line += &format!("; governor {governor}");
        }
        if let Some(celsius) = self.celsius {
            line += &format!("; {celsius:.0} °C");
        }
        if let Some(load) = self.load {
            line += &format!("; load {load:.1} at the start");
        }
        line = self.gpus.iter().chain(&self.adapter).fold(line, |line, gpu| line + "; " + gpu);
        line += &format!("; lockstep {}", self.version);
        self.program.iter().fold(line, |line, program| format!("{line} ({program})"))
    }

    /// In what the other one differs that decides how fast something is, in words.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        // Behind name and driver stands what changes by the second.
        let gpus = |one: &Self| {
            one.gpus.iter().map(|gpu| gpu.split(',').take(2).collect::<Vec<_>>().join(",")).collect::<Vec<_>>()
        };
        let differs = [
            ("the processor", self.cpu != other.cpu),
            ("what the processor can do", self.cpu_flags != other.cpu_flags),
            ("the number of cores", self.cores != other.cores),
            ("the system", self.system != other.system),
            ("what sets the clocks", (&self.clock_driver, &self.governor) != (&other.clock_driver, &other.governor)),
            ("the version of lockstep", (&self.version, &self.program) != (&other.version, &other.program)),
            ("the GPUs or their driver", gpus(self) != gpus(other) || self.adapter != other.adapter),
        ];
        differs.into_iter().filter(|(_, differs)| *differs).map(|(what, _)| what.to_owned()).collect()
    }
}

/// Bytes of memory of this machine.
pub fn memory_bytes() -> Option<u64> {
    kilobytes(&text("/proc/meminfo")?, "MemTotal")
}

fn kilobytes(text: &str, name: &str) -> Option<u64> {
    field(text, name)?.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The start of the hash of this program's file.
fn program() -> Option<String> {
    static HASH: OnceLock<Option<String>> = OnceLock::new();
    let hash = || {
        let bytes = std::fs::read(std::env::current_exe().ok()?).ok()?;
        Some(blake3::hash(&bytes).to_hex()[..16].to_owned())
    };
    HASH.get_or_init(hash).clone()
}

/// The word in brackets.
fn chosen(modes: &str) -> Option<String> {
    let (_, rest) = modes.split_once('[')?;
    rest.split_once(']').map(|(mode, _)| mode.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_sizes_are_found() {
        assert_eq!(kilobytes("MemTotal:   100 kB\n", "MemTotal"), Some(102_400));
        assert_eq!(chosen("always [madvise] never").as_deref(), Some("madvise"));
        assert_eq!(chosen("nothing"), None);
    }

    #[test]
    fn an_environment_comes_back_from_its_report() {
        let here = Environment::capture();
        let json = serde_json::to_string(&here).expect("JSON");
        assert_eq!(serde_json::from_str::<Environment>(&json).expect("an environment"), here);
        // Older reports lack what was added since.
        assert_eq!(serde_json::from_str::<Environment>("{\"cores\": 2}").expect("an environment").cores, 2);
        assert!(here.line().contains(&here.version));
    }

    #[test]
    fn what_decides_how_fast_something_is_and_differs_is_named() {
        let gpu = |clock: &str, driver: &str| vec![format!("a GPU, {driver}, {clock}")];
        let one =
            Environment { cpu: Some("a".into()), gpus: gpu("1000", "550"), load: Some(1.0), ..Default::default() };
        let later = Environment { gpus: gpu("900", "550"), load: Some(2.0), unix_time: 5, ..one.clone() };
        assert_eq!(one.differences(&later), Vec::<String>::new());
        let other = Environment { cpu: None, gpus: gpu("900", "560"), program: Some("b".into()), ..one.clone() };
        assert_eq!(one.differences(&other), ["the processor", "the version of lockstep", "the GPUs or their driver"]);
    }
}
