//! Where things lie by default: the XDG folders.

use std::path::PathBuf;

use anyhow::{Context, Result};

fn xdg(variable: &str, below_home: &str) -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os(variable).map(PathBuf::from).filter(|p| p.is_absolute()) {
        return Ok(dir.join("lockstep"));
    }
    let home = std::env::var_os("HOME").context("HOME is not set; name the folder with --data-dir")?;
    Ok(PathBuf::from(home).join(below_home).join("lockstep"))
}

/// Configuration files: `$XDG_CONFIG_HOME/lockstep`.
pub fn config_dir() -> Result<PathBuf> {
    xdg("XDG_CONFIG_HOME", ".config")
}

/// Keys, packages and stores: `$XDG_DATA_HOME/lockstep`.
pub fn data_dir() -> Result<PathBuf> {
    xdg("XDG_DATA_HOME", ".local/share")
}

/// What can be fetched or made again: `$XDG_CACHE_HOME/lockstep`.
pub fn cache_dir() -> Result<PathBuf> {
    xdg("XDG_CACHE_HOME", ".cache")
}
