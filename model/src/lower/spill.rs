//! Parameters of a large model in unnamed files instead of memory.

use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_kernels::program::DType;
use lockstep_kernels::value::ParamData;
use memmap2::Mmap;

use super::ParamValues;
use crate::error::ModelError;
use crate::package::typed;

/// Smaller parameters stay in memory.
const LEAST_BYTES: usize = 1 << 20;

/// Where parameters go.
#[derive(Debug)]
pub struct Spill {
    dir: PathBuf,
}

/// A parameter in a mapped file that has no name any more.
#[derive(Clone, Debug)]
pub struct Spilled {
    map: Arc<Mmap>,
    dtype: DType,
}

impl Spill {
    /// Into the folder of this file.
    pub fn beside(file: &Path) -> Self {
        let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Self { dir: dir.to_path_buf() }
    }

    /// The same values, out of memory if they are large.
    ///
    /// # Errors
    /// What the file system says.
    pub fn keep(&self, values: ParamValues) -> Result<ParamValues, ModelError> {
        let (dtype, bytes) = (values.dtype(), values.bytes());
        if bytes.len() < LEAST_BYTES {
            return Ok(values);
        }
        drop(values);
        let path = self.dir.join(format!(".lockstep-{:016x}", RandomState::new().hash_one(std::process::id())));
        let open = || OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = open().map_err(ModelError::io("create", &path))?;
        let map = fill(file, &bytes).map_err(ModelError::io("write", &path));
        // The map keeps the bytes; whatever happens, no file stays behind.
        std::fs::remove_file(&path).map_err(ModelError::io("remove", &path))?;
        Ok(ParamValues::Spilled(Spilled { map: Arc::new(map?), dtype }))
    }
}

fn fill(mut file: File, bytes: &[u8]) -> std::io::Result<Mmap> {
    file.write_all(bytes)?;
    // SAFETY: the file was created here under a name that nobody knew, and has none by the time anybody reads it.
    unsafe { Mmap::map(&file) }
}

impl Spilled {
    /// Their type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The elements.
    pub fn data(&self) -> ParamData<'_> {
        match self.dtype {
            DType::I8 => ParamData::I8(typed(&self.map)),
            DType::I16 => ParamData::I16(typed(&self.map)),
            DType::U16 => ParamData::U16(typed(&self.map)),
            DType::I32 => ParamData::I32(typed(&self.map)),
        }
    }
}

impl PartialEq for Spilled {
    fn eq(&self, other: &Self) -> bool {
        self.dtype == other.dtype && self.map[..] == other.map[..]
    }
}

impl Eq for Spilled {}
