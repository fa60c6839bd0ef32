//! The worker's folder: one worker at a time, its key, its packages, and what it must not forget.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use lockstep_link::keyfile;
use lockstep_protocol::identity::Keypair;

use crate::error::WorkerError;

/// The key, in a worker's folder.
pub const KEY_FILE: &str = "worker.key";
const LOCK_FILE: &str = "worker.lock";
const PACKAGES: &str = "packages";
const HEADS: &str = "heads";
const DISPUTES: &str = "disputes";
const STAGES: &str = "stages";

/// The folder, locked for as long as this lives.
#[derive(Debug)]
pub(crate) struct DataDir {
    /// The worker's key.
    pub keys: Keypair,
    /// Where packages lie.
    pub packages: PathBuf,
    /// Where the heads of logs lie that this worker cosigned.
    pub heads: PathBuf,
    /// Where the moves lie that this worker signed.
    pub disputes: PathBuf,
    /// Where the rows lie that it received from other workers.
    pub stages: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes what is not there, locks the folder, and reads or draws the key.
    pub fn open(path: &Path) -> Result<Self, WorkerError> {
        let [packages, heads, disputes, stages] = [PACKAGES, HEADS, DISPUTES, STAGES].map(|name| path.join(name));
        for folder in [&packages, &heads, &disputes, &stages] {
            std::fs::create_dir_all(folder).map_err(|error| unusable(folder, &error))?;
        }
        let lock = lock(&path.join(LOCK_FILE))?;
        let keys = keyfile::load_or_create(&path.join(KEY_FILE))?;
        Ok(Self { keys, packages, heads, disputes, stages, _lock: lock })
    }
}

fn lock(path: &Path) -> Result<File, WorkerError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    let file = options.open(path).map_err(|error| unusable(path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let reason = "another worker uses it: give each worker a data directory of its own".into();
            Err(WorkerError::DataDir { path: path.to_path_buf(), reason })
        }
        Err(TryLockError::Error(error)) => Err(unusable(path, &error)),
    }
}

fn unusable(path: &Path, error: &std::io::Error) -> WorkerError {
    WorkerError::DataDir { path: path.to_path_buf(), reason: error.to_string() }
}
