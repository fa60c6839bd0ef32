//! What processes take: processor time and memory, as far as the system says.

use std::fs;
use std::ops::Sub;

use crate::processor::process_seconds;

/// What this process and another one have taken since they started, or between two such moments.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Seconds of processor time of this process.
    pub process: Option<f64>,
    /// Of it those of the coordinator's engine, which is one thread.
    pub engine: Option<f64>,
    /// Of it those of the thread that writes the store.
    pub store: Option<f64>,
    /// Seconds of processor time of the other process.
    pub other: Option<f64>,
    /// Bytes of memory of this process.
    pub memory: Option<f64>,
}

impl Usage {
    /// What was taken so far; `other` is the number of the other process.
    pub fn now(other: Option<u32>) -> Self {
        Self {
            process: Some(process_seconds()),
            engine: thread_time("lockstep-engine"),
            store: thread_time("lockstep-store"),
            other: other.and_then(time_of),
            memory: resident(),
        }
    }
}

fn both(a: Option<f64>, b: Option<f64>, with: impl Fn(f64, f64) -> f64) -> Option<f64> {
    a.zip(b).map(|(a, b)| with(a, b))
}

impl Sub for Usage {
    type Output = Self;

    fn sub(self, from: Self) -> Self {
        let less = |a, b| both(a, b, |a, b| a - b);
        Self {
            process: less(self.process, from.process),
            engine: less(self.engine, from.engine),
            store: less(self.store, from.store),
            other: less(self.other, from.other),
            memory: less(self.memory, from.memory),
        }
    }
}

/// Seconds of processor time of the first thread of this process that has this name.
fn thread_time(name: &str) -> Option<f64> {
    let threads = fs::read_dir("/proc/self/task").ok()?;
    let mut folders = threads.filter_map(|thread| Some(thread.ok()?.path()));
    let is_it = |comm: std::io::Result<String>| comm.is_ok_and(|comm| comm.trim() == name);
    let folder = folders.find(|folder| is_it(fs::read_to_string(folder.join("comm"))))?;
    let nanoseconds = fs::read_to_string(folder.join("schedstat")).ok()?;
    Some(1e-9 * nanoseconds.split_whitespace().next()?.parse::<f64>().ok()?)
}

/// Seconds of processor time of another process: of all its threads that are there.
fn time_of(process: u32) -> Option<f64> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).ok()?;
    let time = |thread: fs::DirEntry| {
        let nanoseconds = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        nanoseconds.split_whitespace().next()?.parse::<f64>().ok()
    };
    Some(1e-9 * threads.filter_map(|thread| time(thread.ok()?)).sum::<f64>())
}

/// Bytes of memory of this process.
fn resident() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<f64>().ok().map(|kilobytes| 1024.0 * kilobytes)
}
