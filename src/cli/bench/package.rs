//! Packages of the kind that a benchmark can run.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use anyhow::anyhow;
use lockstep_benches::commit::Encoder;
use lockstep_model::package::Package;

use super::output::Named;
use crate::cli::generate;
use crate::exit::{Exit, Failure, OrExit};

/// An encoder: of a package, or where none is named one that is made up.
pub fn encoder(path: Option<&Path>, threads: NonZeroUsize) -> Result<(Encoder, Named), Failure> {
    let Some(path) = path else {
        let named = Named { name: "random weights in the shape of all-MiniLM-L6-v2, w8".into(), id: None };
        return Ok((Encoder::made_up(), named));
    };
    let package = generate::open(Some(path), threads)?;
    if package.program().is_decoder() {
        let name = &package.manifest().name;
        return Err(anyhow!("{name} generates text and does not embed: measure it with lockstep bench model"))
            .or_exit(Exit::Configuration);
    }
    let encoder = Encoder { program: Arc::clone(package.program()), params: package.params() };
    Ok((encoder, Named::of(&package)))
}

/// A package that generates text; the shipped one where none is named.
pub fn decoder(path: Option<&Path>, threads: NonZeroUsize) -> Result<Package, Failure> {
    let package = generate::open(path, threads)?;
    if !package.program().is_decoder() {
        let name = &package.manifest().name;
        return Err(anyhow!("{name} embeds and does not generate text: measure it with lockstep bench embed"))
            .or_exit(Exit::Configuration);
    }
    Ok(package)
}
