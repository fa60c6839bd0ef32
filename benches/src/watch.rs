//! Whether something else had its hand in a measurement (other programs, the host of a virtual machine, a container's share, heat),
//! and what clocks, heat and power were meanwhile.
//!
//! What the system does not show counts as undisturbed.

use std::time::Instant;

use serde::Serialize;

use crate::system::{self, GPU_SLOWDOWNS, folder, text};

/// Share of the machine's time that others may take before a measurement counts as disturbed.
const OTHERS: f64 = 0.05;
/// Share of the machine's time that a host may withhold.
const STEAL: f64 = 0.01;
/// Involuntary changes of thread a second.
const SWITCHES: f64 = 200.0;
/// Share of the time in which a GPU may be slowed down.
const SLOWED: f64 = 0.01;
/// What has to be left of the fastest core's clock. Less is a lower clock for many cores, and common.
const CLOCK: f64 = 0.75;
/// Ticks that a counter has to be above to say anything; below it is rounding.
const FEW_TICKS: u64 = 4;

/// The machine at one moment. Times are ticks of the system, a hundred a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counters {
    /// All time of all cores.
    total: u64,
    /// Time in which some program ran.
    busy: u64,
    /// Time that a host withheld.
    steal: u64,
    /// Time in which this program ran, and processes of its own that have ended.
    own: u64,
    /// Times at which a thread of this program had to leave its core.
    switches: u64,
    /// Times at which a core was slowed down for its heat.
    throttled: u64,
    /// Times at which the control group had used up its share.
    quota: u64,
    /// Microseconds for which GPUs were slowed down, by reason.
    gpu: [u64; 4],
    /// The slowest and the fastest clock, in MHz.
    megahertz: Option<[f64; 2]>,
    /// Energy of the processor, and where its counter starts again.
    joules: Option<[f64; 2]>,
}

impl Counters {
    fn now() -> Self {
        let show = |path: &str| text(path).unwrap_or_default();
        let of_task = |task: String| switches(&show(&format!("{task}/status")));
        Self {
            switches: folder("/proc/self/task").into_iter().map(of_task).sum(),
            throttled: system::thermal_throttles(),
            quota: system::quota_throttles(),
            gpu: system::gpu_slowdowns(),
            megahertz: system::megahertz(),
            joules: system::joules(),
            ..Self::parse(&show("/proc/stat"), &show("/proc/self/stat"))
        }
    }

    /// From the machine's and the process's `stat`.
    fn parse(machine: &str, process: &str) -> Self {
        let line = machine.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
        // user nice system idle iowait irq softirq steal; guests are in user already.
        let ticks: Vec<u64> = line.split_whitespace().take(8).map_while(|word| word.parse().ok()).collect();
        let at = |index: usize| ticks.get(index).copied().unwrap_or(0);
        let total: u64 = ticks.iter().sum();
        // The name may hold anything, so fields count from behind it: utime stime cutime cstime.
        let fields = process.rsplit_once(')').map_or("", |(_, fields)| fields);
        let own = fields.split_whitespace().skip(11).take(4).filter_map(|word| word.parse::<u64>().ok()).sum();
        Self { total, busy: total - at(3) - at(4) - at(7), steal: at(7), own, ..Self::default() }
    }
}

fn switches(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// What a watch saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Seen {
    /// What disturbed the measurement, in words; nothing where all was quiet.
    #[serde(skip)]
    pub disturbances: Vec<String>,
    /// The slowest and the fastest core's clock at the end, in MHz.
    pub megahertz: Option<[f64; 2]>,
    /// The hottest sensor at the end, in degrees Celsius.
    pub celsius: Option<f64>,
    /// What the processor took on average, in watts.
    pub watts: Option<f64>,
}

/// Looks on while something is measured.
#[derive(Debug)]
pub struct Watch {
    before: Counters,
    since: Instant,
    is_crowded: bool,
}

impl Watch {
    /// Starts to look.
    pub fn start() -> Self {
        Self { before: Counters::now(), since: Instant::now(), is_crowded: false }
    }

    /// Starts to look at what has more threads than there are cores, or processes of its own beside it: that threads are
    /// interrupted is part of it.
    pub fn crowded() -> Self {
        Self { is_crowded: true, ..Self::start() }
    }

    /// What was to be seen since the start. Processes of this one's own have to have ended, or they count as others.
    pub fn seen(&self) -> Seen {
        let (seconds, after) = (self.since.elapsed().as_secs_f64(), Counters::now());
        let mut before = self.before;
        if self.is_crowded {
            before.switches = after.switches;
        }
        Seen {
            disturbances: disturbances(&before, &after, seconds),
            megahertz: after.megahertz,
            celsius: system::celsius(),
            watts: before.joules.zip(after.joules).map(|(before, after)| watts(before, after, seconds)),
        }
    }
}

/// A counter that is lower than before has started again, at most once.
fn watts(before: [f64; 2], after: [f64; 2], seconds: f64) -> f64 {
    let passed = after[0] - before[0];
    (if passed < 0.0 { passed + after[1] } else { passed }) / seconds
}

fn disturbances(before: &Counters, after: &Counters, seconds: f64) -> Vec<String> {
    let passed = |field: fn(&Counters) -> u64| field(after).saturating_sub(field(before));
    let total = passed(|c| c.total).max(1) as f64;
    let mut found = Vec::new();
    let mut share = |ticks: u64, bound: f64, what: &str| {
        if ticks > FEW_TICKS && ticks as f64 / total > bound {
            found.push(format!("{what} {:.0}% of the machine", 100.0 * ticks as f64 / total));
        }
    };
    share(passed(|c| c.busy).saturating_sub(passed(|c| c.own)), OTHERS, "other programs took");
    share(passed(|c| c.steal), STEAL, "the host withheld");
    let switches = passed(|c| c.switches) as f64 / seconds;
    if switches > SWITCHES {
        found.push(format!("threads were interrupted {switches:.0} times a second"));
    }
    if passed(|c| c.throttled) > 0 {
        found.push("cores were slowed down for their heat".into());
    }
    if passed(|c| c.quota) > 0 {
        found.push("the container's share of the processor was used up".into());
    }
    if let (Some([_, first]), Some([_, last])) = (before.megahertz, after.megahertz)
        && last < CLOCK * first
    {
        found.push(format!("the clock fell from {first:.0} to {last:.0} MHz"));
    }
    for ((_, why), (before, after)) in GPU_SLOWDOWNS.iter().zip(before.gpu.iter().zip(&after.gpu)) {
        let share = 1e-6 * after.saturating_sub(*before) as f64 / seconds;
        if share > SLOWED {
            found.push(format!("a GPU was slowed down by {why}"));
        }
    }
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_those_that_the_system_shows() {
        let machine = "cpu  100 10 20 500 30 1 2 7 4 0\ncpu0 1 1 1 1\n";
        // Of its own 78 ticks, and 5 of processes of its own.
        let process = "42 (a name) 9) R 1 2 3 4 5 6 7 8 9 10 70 8 3 2 20 0";
        let counters = Counters::parse(machine, process);
        assert_eq!(counters, Counters { total: 670, busy: 133, steal: 7, own: 83, ..Counters::default() });
        assert_eq!(Counters::parse("", ""), Counters::default());
        assert_eq!(switches("voluntary_ctxt_switches:\t9\nnonvoluntary_ctxt_switches:\t5\n"), 5);
    }

    #[test]
    fn what_others_took_is_told_and_what_is_ours_is_not() {
        let before = Counters { megahertz: Some([1_000.0, 3_000.0]), gpu: [5; 4], ..Counters::default() };
        let clocks = Some([800.0, 2_500.0]);
        let quiet = Counters { total: 400, busy: 210, own: 200, steal: 3, switches: 50, megahertz: clocks, ..before };
        assert_eq!(disturbances(&before, &quiet, 2.0), Vec::<String>::new());
        let loud = Counters {
            total: 400,
            busy: 300,
            own: 200,
            steal: 20,
            switches: 1_000,
            throttled: 1,
            quota: 2,
            megahertz: Some([800.0, 1_500.0]),
            gpu: [5, 5, 5, 1_000_005],
            ..before
        };
        let found = disturbances(&before, &loud, 2.0);
        assert_eq!(found.len(), 7, "{found:?}");
        for (found, part) in found.iter().zip(["25%", "5%", "500", "heat", "share", "3000 to 1500 MHz", "its power"]) {
            assert!(found.contains(part), "{found}");
        }
    }

    #[test]
    fn a_gpu_that_is_hot_says_so_once() {
        let hot = Counters { gpu: [1_000_000, 1_000_000, 0, 0], ..Counters::default() };
        assert_eq!(disturbances(&Counters::default(), &hot, 2.0), ["a GPU was slowed down by heat"]);
    }

    #[test]
    fn power_is_energy_over_time_also_where_its_counter_starts_again() {
        assert_eq!(watts([100.0, 1_000.0], [160.0, 1_000.0], 2.0), 30.0);
        assert_eq!(watts([990.0, 1_000.0], [50.0, 1_000.0], 2.0), 30.0);
    }
}
