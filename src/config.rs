//! Configuration: flags, then environment, then a TOML file, then defaults.
//!
//! Flags and environment are clap's; each options struct is also what its TOML file holds, under the same names.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

use crate::paths;

/// Reads the options in a TOML file: `explicit`, or `<config dir>/<name>.toml` if that exists.
///
/// # Errors
/// The explicit file is missing, or a file has a syntax error, an unknown key or a value of the wrong type.
pub fn from_file<T: DeserializeOwned + Default>(explicit: Option<&Path>, name: &str) -> Result<T> {
    let path = match explicit {
        Some(path) => path.to_path_buf(),
        None => match paths::config_dir() {
            Ok(dir) => dir.join(format!("{name}.toml")),
            Err(_) => return Ok(T::default()),
        },
    };
    match fs::read_to_string(&path) {
        Ok(text) => toml::from_str(&text).with_context(|| format!("{} is not a valid configuration", path.display())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && explicit.is_none() => Ok(T::default()),
        Err(e) => bail!("cannot read {}: {e}", path.display()),
    }
}
