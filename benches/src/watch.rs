//! Whether something else had its hand in a measurement: other programs, the host of a virtual machine, heat.
//!
//! What the system does not show counts as undisturbed.

use std::fs;
use std::time::Instant;

/// Share of the machine's time that others may take before a measurement counts as disturbed.
const OTHERS: f64 = 0.05;
/// Share of the machine's time that a host may withhold.
const STEAL: f64 = 0.01;
/// Involuntary changes of thread a second.
const SWITCHES: f64 = 200.0;
/// Ticks that a counter has to be above to say anything; below it is rounding.
const FEW_TICKS: u64 = 4;

/// The machine at one moment. Times are ticks of the system, a hundred a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counters {
    /// All time of all cores.
    total: u64,
    /// Time in which some program ran.
    busy: u64,
    /// Time that a host withheld.
    steal: u64,
    /// Time in which this program ran.
    own: u64,
    /// Times at which a thread of this program had to leave its core.
    switches: u64,
    /// Times at which a core was slowed down for its heat.
    throttled: u64,
}

impl Counters {
    fn now() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let mut counters = Self::parse(&text("/proc/stat"), &text("/proc/self/stat"));
        for task in folder("/proc/self/task") {
            counters.switches += switches(&text(&format!("{task}/status")));
        }
        for core in folder("/sys/devices/system/cpu") {
            let count = text(&format!("{core}/thermal_throttle/core_throttle_count"));
            counters.throttled += count.trim().parse::<u64>().unwrap_or(0);
        }
        counters
    }

    /// From the machine's and the process's `stat`.
    fn parse(machine: &str, process: &str) -> Self {
        let line = machine.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
        // user nice system idle iowait irq softirq steal; guests are in user already.
        let ticks: Vec<u64> = line.split_whitespace().take(8).map_while(|word| word.parse().ok()).collect();
        let at = |index: usize| ticks.get(index).copied().unwrap_or(0);
        let total: u64 = ticks.iter().sum();
        // The name may hold anything, so fields count from behind it.
        let fields = process.rsplit_once(')').map_or("", |(_, fields)| fields);
        let own = fields.split_whitespace().skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum();
        Self { total, busy: total - at(3) - at(4) - at(7), steal: at(7), own, switches: 0, throttled: 0 }
    }
}

fn folder(path: &str) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.path().to_str().map(str::to_owned)).collect()
}

fn switches(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Looks on while something is measured.
#[derive(Debug)]
pub struct Watch {
    before: Counters,
    since: Instant,
}

impl Watch {
    /// Starts to look.
    pub fn start() -> Self {
        Self { before: Counters::now(), since: Instant::now() }
    }

    /// What disturbed the measurement since the start, in words; nothing where all was quiet.
    pub fn disturbances(&self) -> Vec<String> {
        disturbances(&self.before, &Counters::now(), self.since.elapsed().as_secs_f64())
    }
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
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_those_that_the_system_shows() {
        let machine = "cpu  100 10 20 500 30 1 2 7 4 0\ncpu0 1 1 1 1\n";
        let process = "42 (a name) 9) R 1 2 3 4 5 6 7 8 9 10 70 8 0 0 20 0";
        let counters = Counters::parse(machine, process);
        let expected = Counters { total: 670, busy: 133, steal: 7, own: 78, switches: 0, throttled: 0 };
        assert_eq!(counters, expected);
        assert_eq!(Counters::parse("", ""), Counters::default());
        assert_eq!(switches("voluntary_ctxt_switches:\t9\nnonvoluntary_ctxt_switches:\t5\n"), 5);
    }

    #[test]
    fn what_others_took_is_told_and_what_is_ours_is_not() {
        let before = Counters::default();
        let quiet = Counters { total: 400, busy: 210, own: 200, steal: 3, switches: 50, throttled: 0 };
        assert_eq!(disturbances(&before, &quiet, 2.0), Vec::<String>::new());
        let loud = Counters { total: 400, busy: 300, own: 200, steal: 20, switches: 1_000, throttled: 1 };
        let found = disturbances(&before, &loud, 2.0);
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found[0].contains("25%") && found[1].contains("5%") && found[2].contains("500"), "{found:?}");
    }
}
