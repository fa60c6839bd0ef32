//! The rows that this worker received in pipelines, on disk: what it plays a dispute about its layers from.
//!
//! A run is written before its worker signs for it, and kept for as long as it may be challenged, within a bound. What is read is not
//! believed: it is used where it has the root that this worker signed.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use lockstep_protocol::ids::{JobId, LeaseEpoch};
use lockstep_protocol::limits::{WORKER_STAGE_INPUT_BYTES, WORKER_STAGE_INPUT_MS};

use crate::durable;

/// A folder of received rows.
#[derive(Clone, Debug)]
pub(crate) struct Inputs {
    dir: PathBuf,
}

impl Inputs {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn path(&self, job: &JobId, epoch: LeaseEpoch) -> PathBuf {
        self.dir.join(format!("{job}-{}.rows", epoch.0))
    }

    /// Keeps the rows of a run, durably.
    ///
    /// # Errors
    /// What the disk says.
    pub fn keep(&self, job: &JobId, epoch: LeaseEpoch, rows: &[i32]) -> std::io::Result<()> {
        self.make_room(size_of_val(rows) as u64);
        let bytes: Vec<u8> = rows.iter().flat_map(|value| value.to_le_bytes()).collect();
        durable::replace(&self.path(job, epoch), &bytes)
    }

    /// The rows of a run, where they are kept.
    pub fn read(&self, job: &JobId, epoch: LeaseEpoch) -> Option<Vec<i32>> {
        match std::fs::read(self.path(job, epoch)) {
            Ok(bytes) => Some(bytes.as_chunks::<4>().0.iter().map(|value| i32::from_le_bytes(*value)).collect()),
            Err(error) => {
                if error.kind() != ErrorKind::NotFound {
                    tracing::warn!(%job, %error, "received rows can't be read");
                }
                None
            }
        }
    }

    /// Removes runs that nobody may challenge any more, and the oldest where there is no room.
    fn make_room(&self, bytes: u64) {
        let held = |path: &Path| {
            let metadata = path.metadata().ok()?;
            Some((metadata.modified().ok()?, metadata.len(), path.to_path_buf()))
        };
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut runs: Vec<_> = entries.filter_map(|entry| held(&entry.path())).collect();
        runs.sort();
        let mut sum = runs.iter().fold(bytes, |sum, (_, len, _)| sum.saturating_add(*len));
        for (since, len, path) in runs {
            let age = SystemTime::now().duration_since(since).unwrap_or_default();
            if age > Duration::from_millis(WORKER_STAGE_INPUT_MS) || sum > WORKER_STAGE_INPUT_BYTES {
                // What can't be removed now is looked at again with the next run.
                if std::fs::remove_file(&path).is_ok() {
                    sum -= len;
                }
            }
        }
    }
}
