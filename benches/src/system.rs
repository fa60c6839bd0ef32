//! What the system shows of clocks, heat, energy and of what slows a machine down. What it does not show is left out.

use std::fs;
use std::process::Command;
use std::sync::OnceLock;

/// Where Linux shows each core.
const CORES: &str = "/sys/devices/system/cpu";

/// A small file, without the space around it.
pub(crate) fn text(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Paths of what a folder holds.
pub(crate) fn folder(path: &str) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.path().to_str().map(str::to_owned)).collect()
}

/// The value of the first line `name : value`.
pub(crate) fn field(text: &str, name: &str) -> Option<String> {
    fields(text, name).next()
}

/// The values of all lines `name : value`.
fn fields<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = String> + 'a {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.filter(move |(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
}

fn number(path: &str) -> Option<f64> {
    text(path)?.parse().ok()
}

/// The slowest and the fastest clock of all cores at this moment, in MHz.
pub(crate) fn megahertz() -> Option<[f64; 2]> {
    let of_core = |core: String| number(&format!("{core}/cpufreq/scaling_cur_freq")).map(|kilohertz| kilohertz / 1e3);
    let clocks: Vec<f64> = folder(CORES).into_iter().filter_map(of_core).collect();
    range(&clocks).or_else(|| range(&clocks_of(&text("/proc/cpuinfo")?)))
}

/// Those of `/proc/cpuinfo`.
fn clocks_of(cpuinfo: &str) -> Vec<f64> {
    fields(cpuinfo, "cpu MHz").filter_map(|mhz| mhz.parse().ok()).collect()
}

fn range(values: &[f64]) -> Option<[f64; 2]> {
    let least = values.iter().copied().reduce(f64::min)?;
    Some([least, values.iter().copied().fold(least, f64::max)])
}

/// The hottest sensor, in degrees Celsius: of thermal zones, and of hardware monitors, which alone have those of many AMD and
/// Arm processors.
pub(crate) fn celsius() -> Option<f64> {
    let zones = folder("/sys/class/thermal").into_iter().map(|zone| format!("{zone}/temp"));
    let monitors = folder("/sys/class/hwmon").into_iter().flat_map(|monitor| folder(&monitor));
    let inputs = monitors.filter(|path| {
        let name = path.rsplit('/').next().unwrap_or_default();
        name.starts_with("temp") && name.ends_with("_input")
    });
    zones.chain(inputs).filter_map(|path| number(&path)).map(|thousandths| thousandths / 1e3).reduce(f64::max)
}

/// Joules that all processor packages have taken since some moment, with the largest number that the counter shows; most
/// systems let only root read them.
pub(crate) fn joules() -> Option<[f64; 2]> {
    // `intel-rapl:0` is a package, `intel-rapl:0:1` a part of one. AMD's are called the same.
    let packages = folder("/sys/class/powercap").into_iter().filter(|path| path.matches("rapl:").count() == 1);
    let packages = packages.filter(|path| path.matches(':').count() == 1);
    let of_package = |path: String| {
        let [now, most] = ["energy_uj", "max_energy_range_uj"].map(|name| number(&format!("{path}/{name}")));
        Some([1e-6 * now?, 1e-6 * most?])
    };
    packages.map(of_package).reduce(|sum, one| Some([sum?[0] + one?[0], sum?[1] + one?[1]])).flatten()
}

/// Times at which a core or its package was slowed down for its heat.
pub(crate) fn thermal_throttles() -> u64 {
    let counts = ["core_throttle_count", "package_throttle_count"];
    let paths = folder(CORES).into_iter().flat_map(|core| counts.map(|name| format!("{core}/thermal_throttle/{name}")));
    paths.filter_map(|path| text(&path)?.parse::<u64>().ok()).sum()
}

/// Times at which this process's control group had used up its share of the processor (`docker --cpus`).
pub(crate) fn quota_throttles() -> u64 {
    let groups = text("/proc/self/cgroup").unwrap_or_default();
    // A container sees its own group as the root, or is shown where it is.
    let paths = ["/sys/fs/cgroup/cpu.stat".to_owned(), "/sys/fs/cgroup/cpu/cpu.stat".to_owned()];
    let paths = paths.into_iter().chain(group_files(&groups));
    paths.filter_map(|path| throttled(&text(&path)?)).max().unwrap_or(0)
}

/// Where the counters of the groups of `/proc/self/cgroup` are: version 2 has one for all, version 1 one for the processor.
fn group_files(groups: &str) -> Vec<String> {
    let file = |line: &str| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let path = path.trim_end_matches('/');
        match controllers {
            "" => Some(format!("/sys/fs/cgroup{path}/cpu.stat")),
            names if names.split(',').any(|name| name == "cpu") => Some(format!("/sys/fs/cgroup/cpu{path}/cpu.stat")),
            _ => None,
        }
    };
    groups.lines().filter_map(file).collect()
}

fn throttled(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("nr_throttled "))?.trim().parse().ok()
}

/// What `nvidia-smi` says of each GPU, a line each; none where it is missing or does not know what is asked.
pub(crate) fn nvidia(fields: &str) -> Vec<String> {
    static IS_THERE: OnceLock<bool> = OnceLock::new();
    let ask = |arguments: &[&str]| Command::new("nvidia-smi").args(arguments).output().ok();
    if !*IS_THERE.get_or_init(|| ask(&["--list-gpus"]).is_some_and(|output| output.status.success())) {
        return Vec::new();
    }
    let answer = ask(&[&format!("--query-gpu={fields}"), "--format=csv,noheader,nounits"]);
    let Some(output) = answer.filter(|output| output.status.success()) else { return Vec::new() };
    String::from_utf8_lossy(&output.stdout).lines().map(|line| line.trim().to_owned()).collect()
}

/// Why NVIDIA's GPUs run slower than they could, as newer drivers count it.
pub(crate) const GPU_SLOWDOWNS: [(&str, &str); 4] = [
    ("clocks_event_reasons_counters.sw_thermal_slowdown", "heat"),
    ("clocks_event_reasons_counters.hw_thermal_slowdown", "heat"),
    ("clocks_event_reasons_counters.hw_power_brake_slowdown", "the power supply"),
    ("clocks_event_reasons_counters.sw_power_cap", "the limit to its power"),
];

/// Microseconds for which GPUs were slowed down, for each of [`GPU_SLOWDOWNS`], of all GPUs together.
pub(crate) fn gpu_slowdowns() -> [u64; 4] {
    let names: Vec<&str> = GPU_SLOWDOWNS.iter().map(|(name, _)| *name).collect();
    sums(&nvidia(&names.join(",")))
}

fn sums(lines: &[String]) -> [u64; 4] {
    let mut sums = [0_u64; 4];
    for line in lines {
        for (sum, count) in sums.iter_mut().zip(line.split(',')) {
            // The unit may stand behind it; what a GPU does not count is `[N/A]`.
            let count = count.split_whitespace().next().and_then(|count| count.parse().ok());
            *sum = sum.saturating_add(count.unwrap_or(0));
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name() {
        let info = "processor\t: 0\nmodel name\t: Some: CPU\nflags\t\t: fpu avx2\n";
        assert_eq!(field(info, "model name").as_deref(), Some("Some: CPU"));
        assert_eq!(field(info, "model"), None);
    }

    #[test]
    fn clocks_are_those_of_all_cores() {
        let info = "processor : 0\ncpu MHz : 2000.5\nprocessor : 1\ncpu MHz : 3100\n";
        assert_eq!(range(&clocks_of(info)), Some([2000.5, 3100.0]));
        assert_eq!(range(&clocks_of("processor : 0\n")), None);
    }

    #[test]
    fn groups_of_both_versions_say_how_often_they_were_held_back() {
        let groups = "5:devices:/\n3:cpu,cpuacct:/docker/1\n0::/user/2\n";
        assert_eq!(group_files(groups), ["/sys/fs/cgroup/cpu/docker/1/cpu.stat", "/sys/fs/cgroup/user/2/cpu.stat"]);
        assert_eq!(group_files("0::/\n"), ["/sys/fs/cgroup/cpu.stat"]);
        assert_eq!(throttled("usage_usec 9\nnr_periods 7\nnr_throttled 3\n"), Some(3));
        assert_eq!(throttled("usage_usec 9\n"), None);
    }

    #[test]
    fn slowdowns_of_all_gpus_are_added_up() {
        let lines = ["10, 0, 5, [N/A]".to_owned(), "1 us, 2 us, 3 us, 4 us".to_owned()];
        assert_eq!(sums(&lines), [11, 2, 8, 4]);
        assert_eq!(sums(&[]), [0; 4]);
    }
}
