//! A node's key: 32 secret bytes in a file that only its owner reads.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use lockstep_protocol::hex;
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::limits::MAX_KEY_FILE_BYTES;

/// Why there is no key. The message says what to do.
#[derive(Debug, thiserror::Error)]
#[error("the key file {}: {reason}", path.display())]
pub struct KeyFileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// Reads the key in the file (64 hexadecimal digits and a line end), or draws one where there is no file. The directory
/// must be there.
///
/// # Errors
/// The file can't be read or written, is no key, or is open to others than its owner.
pub fn load_or_create(path: &Path) -> Result<Keypair, KeyFileError> {
    let fail = |reason: String| KeyFileError { path: path.to_path_buf(), reason };
    match File::open(path) {
        Ok(file) => read(file).map(Keypair::from_seed).map_err(fail),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let mut seed = [0; 32];
            getrandom::fill(&mut seed).map_err(|error| fail(error.to_string()))?;
            create(path, &seed).map_err(|error| fail(error.to_string()))?;
            Ok(Keypair::from_seed(seed))
        }
        Err(error) => Err(fail(error.to_string())),
    }
}

fn read(file: File) -> Result<[u8; 32], String> {
    check_mode(&file)?;
    let mut text = String::new();
    file.take(MAX_KEY_FILE_BYTES).read_to_string(&mut text).map_err(|error| error.to_string())?;
    hex::parse(text.trim_end()).map_err(|error| format!("is no key: {error}"))
}

/// Writes the key beside its name, flushes it, and gives it its name: a crash leaves no half of a key, and a key that
/// another process made meanwhile is not replaced.
fn create(path: &Path, seed: &[u8; 32]) -> std::io::Result<()> {
    let new = path.with_extension(format!("new-{}", std::process::id()));
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(&new).and_then(|mut file| {
        writeln!(file, "{}", Hex(seed))?;
        file.sync_all()?;
        std::fs::hard_link(&new, path)
    });
    let removed = std::fs::remove_file(&new);
    written.and(removed)?;
    sync_directory(path)
}

struct Hex<'a>(&'a [u8]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        hex::write(self.0, f)
    }
}

#[cfg(unix)]
fn sync_directory(path: &Path) -> std::io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(not(unix))]
fn sync_directory(_: &Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn check_mode(file: &File) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let mode = file.metadata().map_err(|error| error.to_string())?.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(format!("has mode {mode:o}, so others can read it: run chmod 600 on it"))
}

#[cfg(not(unix))]
fn check_mode(_: &File) -> Result<(), String> {
    Ok(())
}
