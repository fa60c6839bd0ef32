//! Files that commands read and write.

use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::Context;

use crate::exit::{Exit, Failure, OrExit};

/// A file's bytes, `-` for standard input; of one above `limit` bytes, enough to see that.
///
/// # Errors
/// [`Exit::Configuration`] where it can't be read.
pub fn read(path: &Path, limit: usize) -> Result<Vec<u8>, Failure> {
    let limit = limit as u64 + 1;
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(limit).read_to_end(&mut bytes)
    } else {
        fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes))
    };
    read.with_context(|| format!("cannot read {}", path.display())).or_exit(Exit::Configuration)?;
    Ok(bytes)
}

/// A file's text, as [`read`] reads it.
///
/// # Errors
/// [`Exit::Configuration`] where it can't be read or is no UTF-8.
pub fn text(path: &Path, limit: usize) -> Result<String, Failure> {
    let text = String::from_utf8(read(path, limit)?);
    text.with_context(|| format!("{} is no text", path.display())).or_exit(Exit::Configuration)
}

/// Writes a file.
///
/// # Errors
/// [`Exit::Configuration`] where it can't be written.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display())).or_exit(Exit::Configuration)
}

/// A file that is there to be written to, as it was until then.
///
/// # Errors
/// [`Exit::Configuration`] where it can't be written.
pub fn open_to_write(path: &Path) -> Result<fs::File, Failure> {
    let opened = fs::File::options().write(true).create(true).truncate(false).open(path);
    opened.with_context(|| format!("cannot write {}", path.display())).or_exit(Exit::Configuration)
}
