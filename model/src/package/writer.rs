//! Writes a package: beside its final name, flushed, then renamed, so that a name never holds half a package.

use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use lockstep_protocol::ids::ModelId;

use super::layout::{Layout, header};
use super::{BlobInfo, Manifest};
use crate::error::ModelError;

/// Writes a package whose blobs come in package order; `blob(i)` makes the bytes of one at a time.
///
/// # Errors
/// A manifest that fails its check, a blob that is not what the manifest says, and what the file system says.
pub fn write(path: &Path, manifest: &Manifest, blob: impl Fn(usize) -> Vec<u8>) -> Result<ModelId, ModelError> {
    manifest.check()?;
    let bytes = manifest.bytes();
    let layout = Layout::of(manifest, bytes.len())?;
    let head = header(bytes.len())?;
    let (file, temporary) = create_beside(path)?;
    let io = || ModelError::io("write", &temporary.0);
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(&head).and_then(|()| out.write_all(&bytes)).map_err(io())?;
    let mut at = layout.manifest.end;
    for (i, (info, range)) in manifest.blobs().zip(&layout.blobs).enumerate() {
        let bytes = blob(i);
        if BlobInfo::of(&bytes) != *info {
            return Err(ModelError::Package(format!("blob {i} is not what the manifest describes")));
        }
        std::io::copy(&mut std::io::Read::take(std::io::repeat(0), (range.start - at) as u64), &mut out)
            .and_then(|_| out.write_all(&bytes))
            .map_err(io())?;
        at = range.end;
    }
    let file = out.into_inner().map_err(|e| io()(e.into_error()))?;
    publish(file, &temporary.0, path)?;
    Ok(Manifest::model_id(&bytes))
}

/// A new file beside `path`, under a name that nobody foresees. A name that exists, be it a link, is never opened.
fn create_beside(path: &Path) -> Result<(File, Temporary), ModelError> {
    // The standard library seeds each state with random keys.
    let suffix = RandomState::new().hash_one(std::process::id());
    let temporary = beside(path, &format!("tmp-{suffix:016x}"));
    let file = OpenOptions::new().write(true).create_new(true).open(&temporary);
    let file = file.map_err(ModelError::io("create", &temporary))?;
    Ok((file, Temporary(temporary)))
}

/// Makes a finished file durable under its final name.
pub(super) fn publish(file: File, temporary: &Path, path: &Path) -> Result<(), ModelError> {
    file.sync_all().map_err(ModelError::io("flush", temporary))?;
    std::fs::rename(temporary, path).map_err(ModelError::io("rename to", path))?;
    sync_directory(path)
}

/// A rename is durable once its directory is.
#[cfg(unix)]
fn sync_directory(path: &Path) -> Result<(), ModelError> {
    let parent = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    File::open(parent).and_then(|d| d.sync_all()).map_err(ModelError::io("flush", parent))
}

#[cfg(not(unix))]
fn sync_directory(_: &Path) -> Result<(), ModelError> {
    Ok(())
}

/// `name.suffix` in the same directory.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".");
    name.push(suffix);
    path.with_file_name(name)
}

/// Removes a file that was not renamed away.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename there is nothing to remove; after a failure the error in flight says more than this one.
        let _ = std::fs::remove_file(&self.0);
    }
}
