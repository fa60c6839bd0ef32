//! Small files that survive a crash at any instant: whole or not there, and on the disk before anybody is told.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::path::{Path, PathBuf};

/// Writes a file that must not be there yet. Returns `false`, and changes nothing, where one is there.
pub(crate) fn create(path: &Path, bytes: &[u8]) -> Result<bool> {
    let beside = write_beside(path, bytes)?;
    // A link never replaces what has the name already.
    let linked = std::fs::hard_link(&beside, path);
    std::fs::remove_file(&beside)?;
    match linked {
        Ok(()) => sync_directory(path).map(|()| true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes a file in place of what is there. A crash leaves the old or the new one.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = write_beside(path, bytes)?;
    std::fs::rename(&beside, path)?;
    sync_directory(path)
}

/// Reads a file of at most `cap` bytes; `None` where there is none.
pub(crate) fn read(path: &Path, cap: usize) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(cap as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > cap {
        return Err(Error::new(ErrorKind::InvalidData, format!("is longer than {cap} bytes")));
    }
    Ok(Some(bytes))
}

/// Makes a directory, and its name durable.
pub(crate) fn create_directory(path: &Path) -> Result<()> {
    match std::fs::create_dir(path) {
        Ok(()) => sync_directory(path),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// One process holds the folder, and each name has one writer at a time: a leftover of a crash is written over.
fn write_beside(path: &Path, bytes: &[u8]) -> Result<PathBuf> {
    let beside = path.with_extension("new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    let mut file = options.open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(beside)
}

#[cfg(unix)]
fn sync_directory(path: &Path) -> Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(not(unix))]
fn sync_directory(_: &Path) -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_created_once_and_replaced_as_often_as_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("move");
        assert_eq!(read(&path, 9).unwrap(), None);
        // What a crash left halfway is no file.
        std::fs::write(path.with_extension("new"), b"half").unwrap();
        assert!(create(&path, b"first").unwrap());
        assert!(!create(&path, b"second").unwrap());
        assert_eq!(read(&path, 9).unwrap().unwrap(), b"first");
        replace(&path, b"third").unwrap();
        assert_eq!(read(&path, 5).unwrap().unwrap(), b"third");
        assert_eq!(read(&path, 4).unwrap_err().kind(), ErrorKind::InvalidData);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
