//! A package that arrives piece by piece: laid out sparse, filled in order, resumed after a crash.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use lockstep_protocol::ids::{Digest, ModelId};

use super::layout::{Layout, header};
use super::writer::{beside, publish};
use super::{Manifest, Package};
use crate::error::ModelError;

/// The next bytes that a package lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needed {
    /// Which blob.
    pub blob: u32,
    /// From this byte of the blob on.
    pub offset: u64,
    /// Length of the whole blob.
    pub bytes: u64,
    /// Plain BLAKE3 of the whole blob.
    pub digest: Digest,
}

/// Fills `FILE.part` and renames it to `FILE` when everything is there. The caller verifies each range before it hands
/// it over (Bao); [`finish`](PackageAssembler::finish) verifies every blob once more.
///
/// `FILE.progress` names the first missing byte. It is written after the bytes it speaks of, so a killed process goes
/// on where it was; whatever a crash of the machine may have torn is found by `finish` and pulled again.
#[derive(Debug)]
pub struct PackageAssembler {
    path: PathBuf,
    part: PathBuf,
    progress_path: PathBuf,
    file: File,
    progress_file: File,
    manifest: Manifest,
    layout: Layout,
    model_id: ModelId,
    /// The blobs that are to be there; the others stay empty.
    wanted: Vec<bool>,
    /// Blob and offset of the first missing byte; the blob count at the end.
    next: (u32, u64),
}

/// Model id, blob, offset.
const PROGRESS_BYTES: usize = 32 + 4 + 8;

impl PackageAssembler {
    /// Starts or resumes the package of this id.
    ///
    /// # Errors
    /// A manifest that is not this model's or fails its check, another process at the same file, and what the file
    /// system says.
    pub fn open(path: &Path, model_id: ModelId, manifest_bytes: &[u8]) -> Result<Self, ModelError> {
        Self::open_some(path, model_id, manifest_bytes, |_| true)
    }

    /// The same for a package of which only some blobs are wanted, by their numbers. The file has holes where the others
    /// are.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_some(
        path: &Path,
        model_id: ModelId,
        manifest_bytes: &[u8],
        wanted: impl Fn(usize) -> bool,
    ) -> Result<Self, ModelError> {
        if Manifest::model_id(manifest_bytes) != model_id {
            return Err(ModelError::Package(format!("the manifest is not that of model {model_id}")));
        }
        let manifest = Manifest::parse(manifest_bytes)?;
        let layout = Layout::of(&manifest, manifest_bytes.len())?;
        let head = header(manifest_bytes.len())?;
        let wanted: Vec<bool> = (0..layout.blobs.len()).map(wanted).collect();
        let (part, progress_path) = (beside(path, "part"), beside(path, "progress"));
        let file = lock(&part)?;
        let progress_file = open(&progress_path)?;
        let mut assembler = Self {
            path: path.into(),
            part,
            progress_path,
            file,
            progress_file,
            manifest,
            layout,
            model_id,
            wanted,
            next: (0, 0),
        };
        let start = [&head[..], manifest_bytes].concat();
        let (blob, offset) = assembler.resume(&start)?;
        assembler.next = if assembler.is_wanted(blob) { (blob, offset) } else { (assembler.wanted_from(blob), 0) };
        Ok(assembler)
    }

    fn is_wanted(&self, blob: u32) -> bool {
        self.wanted.get(blob as usize).copied().unwrap_or(false)
    }

    /// The first wanted blob from this one on; the blob count at the end.
    fn wanted_from(&self, blob: u32) -> u32 {
        let from = (blob as usize).min(self.wanted.len());
        let next = self.wanted[from..].iter().position(|wanted| *wanted);
        next.map_or(self.wanted.len(), |more| from + more) as u32
    }

    /// What is there already, or a fresh start where the files are not from the same pull.
    fn resume(&mut self, start: &[u8]) -> Result<(u32, u64), ModelError> {
        let mut found = vec![0; start.len()];
        let length = self.file.metadata().map_err(ModelError::io("read", &self.part))?.len();
        let same = length == self.layout.file_bytes() as u64
            && self.file.seek(SeekFrom::Start(0)).and_then(|_| self.file.read_exact(&mut found)).is_ok()
            && found == start;
        if same && let Some(next) = self.read_progress() {
            return Ok(next);
        }
        // Progress first: it must never speak of bytes that are gone.
        self.write_progress((0, 0))?;
        self.file
            .set_len(0)
            .and_then(|()| self.file.set_len(self.layout.file_bytes() as u64))
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .and_then(|_| self.file.write_all(start))
            .map_err(ModelError::io("write", &self.part))?;
        Ok((0, 0))
    }

    /// The next bytes to pull; `None` when only [`finish`](PackageAssembler::finish) is left.
    pub fn needed(&self) -> Option<Needed> {
        let (blob, offset) = self.next;
        let info = self.manifest.blobs().nth(blob as usize)?;
        Some(Needed { blob, offset, bytes: info.bytes, digest: info.digest })
    }

    /// Bytes that are there and bytes in all, of blobs.
    pub fn progress(&self) -> (u64, u64) {
        let wanted = || self.manifest.blobs().zip(&self.wanted).map(|(b, wanted)| b.bytes * u64::from(*wanted));
        let before = wanted().take(self.next.0 as usize).sum::<u64>();
        (before + self.next.1, wanted().sum())
    }

    /// Takes verified bytes of the needed blob, from the needed offset on.
    ///
    /// # Errors
    /// Bytes that are not the next ones, and what the file system says.
    pub fn accept(&mut self, blob: u32, offset: u64, bytes: &[u8]) -> Result<(), ModelError> {
        let left = self.needed().filter(|n| (n.blob, n.offset) == (blob, offset)).map_or(0, |n| n.bytes - n.offset);
        if bytes.is_empty() || bytes.len() as u64 > left {
            let reason = format!("{} bytes at {offset} of blob {blob} are not the next ones", bytes.len());
            return Err(ModelError::Package(reason));
        }
        let at = self.layout.blobs[blob as usize].start as u64 + offset;
        self.file
            .seek(SeekFrom::Start(at))
            .and_then(|_| self.file.write_all(bytes))
            .map_err(ModelError::io("write", &self.part))?;
        let next = if bytes.len() as u64 == left {
            (self.wanted_from(blob + 1), 0)
        } else {
            (blob, offset + bytes.len() as u64)
        };
        self.write_progress(next)
    }

    /// Verifies every blob and gives the package its name.
    ///
    /// # Errors
    /// When bytes are missing or a blob is damaged: it is forgotten, so that a later pull brings it again. What the
    /// file system says.
    pub fn finish(mut self) -> Result<Package, ModelError> {
        if let Some(n) = self.needed() {
            return Err(ModelError::Package(format!("blob {} lacks bytes from {} on", n.blob, n.offset)));
        }
        if let Some(blob) = self.first_damaged()? {
            self.write_progress((blob, 0))?;
            return Err(ModelError::Package(format!("blob {blob} was damaged on disk: pull again")));
        }
        publish(self.file, &self.part, &self.path)?;
        std::fs::remove_file(&self.progress_path).map_err(ModelError::io("remove", &self.progress_path))?;
        Package::open(&self.path)
    }

    fn first_damaged(&mut self) -> Result<Option<u32>, ModelError> {
        let io = || ModelError::io("read", &self.part);
        for (i, (info, range)) in self.manifest.blobs().zip(&self.layout.blobs).enumerate() {
            if !self.wanted[i] {
                continue;
            }
            self.file.seek(SeekFrom::Start(range.start as u64)).map_err(io())?;
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(Read::by_ref(&mut self.file).take(info.bytes)).map_err(io())?;
            if Digest::from(hasher.finalize()) != info.digest {
                return Ok(Some(i as u32));
            }
        }
        Ok(None)
    }

    fn read_progress(&mut self) -> Option<(u32, u64)> {
        let mut bytes = Vec::new();
        self.progress_file.seek(SeekFrom::Start(0)).ok()?;
        Read::by_ref(&mut self.progress_file).take(PROGRESS_BYTES as u64 + 1).read_to_end(&mut bytes).ok()?;
        let bytes: [u8; PROGRESS_BYTES] = bytes.try_into().ok()?;
        let (id, rest) = bytes.split_first_chunk::<32>()?;
        let (blob, offset) = rest.split_first_chunk::<4>()?;
        let (blob, offset) = (u32::from_le_bytes(*blob), u64::from_le_bytes(offset.try_into().ok()?));
        let possible = match self.manifest.blobs().nth(blob as usize) {
            Some(info) => offset < info.bytes,
            None => blob as usize == self.layout.blobs.len() && offset == 0,
        };
        (id == self.model_id.as_bytes() && possible).then_some((blob, offset))
    }

    fn write_progress(&mut self, next: (u32, u64)) -> Result<(), ModelError> {
        let mut bytes = self.model_id.as_bytes().to_vec();
        bytes.extend_from_slice(&next.0.to_le_bytes());
        bytes.extend_from_slice(&next.1.to_le_bytes());
        self.progress_file
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.progress_file.write_all(&bytes))
            .and_then(|()| self.progress_file.set_len(PROGRESS_BYTES as u64))
            .map_err(ModelError::io("write", &self.progress_path))?;
        self.next = next;
        Ok(())
    }
}

fn open(path: &Path) -> Result<File, ModelError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path).map_err(ModelError::io("open", path))
}

/// Opens and locks the partial file. Whoever held the lock before may have renamed it to the finished package in
/// between: then this lock is on the package, which must not be touched, and the next attempt makes a new file.
fn lock(path: &Path) -> Result<File, ModelError> {
    loop {
        let file = open(path)?;
        match file.try_lock() {
            Ok(()) if is_still_at(&file, path) => return Ok(file),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(ModelError::Package(format!("another process is pulling {}", path.display())));
            }
            Err(TryLockError::Error(e)) => return Err(ModelError::io("lock", path)(e)),
        }
    }
}

#[cfg(unix)]
fn is_still_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |m: std::fs::Metadata| (m.dev(), m.ino());
    matches!((file.metadata().map(identity), std::fs::metadata(path).map(identity)), (Ok(a), Ok(b)) if a == b)
}

/// Elsewhere an open file is not renamed away.
#[cfg(not(unix))]
fn is_still_at(_: &File, _: &Path) -> bool {
    true
}
