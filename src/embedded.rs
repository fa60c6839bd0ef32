//! The language model that ships inside this program: `assets/tiny-llama`, imported into the user's cache when it is
//! first asked for.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lockstep_model::import::{Options, import};
use lockstep_model::package::{Package, WeightMode};

use crate::cli::Stages;
use crate::{backend, paths};

/// Name of the shipped model; part of its ids.
pub const NAME: &str = "lockstep-tiny";

/// The checkpoint's files, as in `assets/tiny-llama`.
const FILES: [(&str, &[u8]); 5] = [
    ("config.json", include_bytes!("../assets/tiny-llama/config.json")),
    ("generation_config.json", include_bytes!("../assets/tiny-llama/generation_config.json")),
    ("model.safetensors", include_bytes!("../assets/tiny-llama/model.safetensors")),
    ("tokenizer.json", include_bytes!("../assets/tiny-llama/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../assets/tiny-llama/tokenizer_config.json")),
];

/// What an import of these files gives: the id under which the cache is searched. A test holds them.
const MODEL_IDS: [(WeightMode, &str); 2] = [
    (WeightMode::W16, "f45b54d30e023f9903dd787a0e9b9a8bcbf98d21dffdb22bc838db43c3fc397a"),
    (WeightMode::W8, "fca68fbb41c41cadd0074a5ffc2dc4df22604872cd2c12e306ee556dab072dfd"),
];

/// The shipped model as a package file in the cache, verified and proven; imported if it isn't there or is damaged.
///
/// # Errors
/// When the cache can't be written.
pub fn package(weights: WeightMode) -> Result<PathBuf> {
    package_in(&paths::cache_dir()?.join("packages"), weights)
}

/// [`package`] in a folder that the caller names.
///
/// # Errors
/// As [`package`].
pub fn package_in(folder: &Path, weights: WeightMode) -> Result<PathBuf> {
    let kept = file_of(folder, &expected_id(weights)?);
    // A file that is damaged, or that somebody else's version left, is replaced: all of it can be made again.
    if kept.is_file() && is_sound(&kept, weights) {
        return Ok(kept);
    }
    make(folder, weights).context("the shipped model could not be imported")
}

fn expected_id(weights: WeightMode) -> Result<String> {
    let found = MODEL_IDS.iter().find(|(mode, _)| *mode == weights);
    found.map(|(_, id)| (*id).to_owned()).with_context(|| format!("the shipped model has no {weights} form"))
}

fn file_of(folder: &Path, id: &str) -> PathBuf {
    folder.join(format!("{NAME}-{id}.lsp"))
}

fn is_sound(file: &Path, weights: WeightMode) -> bool {
    let opened = Package::open_checked(file, backend::all_threads());
    opened.is_ok_and(|package| expected_id(weights).is_ok_and(|id| package.model_id().to_string() == id))
}

/// Imports beside the final place and renames, so that a name never holds half a package.
fn make(folder: &Path, weights: WeightMode) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let work = tempfile::tempdir_in(folder).with_context(|| format!("cannot write to {}", folder.display()))?;
    let checkpoint = work.path().join(NAME);
    write_checkpoint(&checkpoint)?;
    let threads = backend::all_threads();
    let options = Options { weights, threads, name: NAME.into(), max_positions: None };
    let cpu = backend::open("cpu", threads).map_err(|failure| failure.error)?;
    let made = work.path().join("package.lsp");
    let mut stages = Stages::default();
    let report = import(&checkpoint, &made, &options, &*cpu, &mut |at| stages.show(at))?;
    stages.finish();
    let file = file_of(folder, &report.model_id.to_string());
    fs::rename(&made, &file).with_context(|| format!("cannot rename to {}", file.display()))?;
    Ok(file)
}

/// Writes the files into a new folder.
fn write_checkpoint(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for (name, bytes) in FILES {
        let path = folder.join(name);
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ids_are_what_an_import_gives_and_damage_is_repaired() {
        let folder = tempfile::tempdir().expect("a folder");
        for (weights, id) in MODEL_IDS {
            let file = package_in(folder.path(), weights).expect("imported");
            assert_eq!(Package::open(&file).expect("a package").model_id().to_string(), id, "{weights}");
            let mut bytes = fs::read(&file).expect("read");
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            fs::write(&file, &bytes).expect("written");
            assert!(!is_sound(&file, weights));
            assert_eq!(package_in(folder.path(), weights).expect("again"), file);
            assert!(is_sound(&file, weights));
        }
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), MODEL_IDS.len(), "nothing else is left");
    }
}
