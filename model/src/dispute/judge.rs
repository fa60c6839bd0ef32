//! The judge: a dispute's file to what it came to, from nothing but the file.

use lockstep_protocol::dispute::{DisputeFile, FileError, SignedEntry};

use super::{CaseError, Disputable, Report};
use crate::error::ModelError;
use crate::package::Manifest;

/// Why a file proves nothing. The message names the part that is wrong.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// The bytes are not a dispute's file, or its transcript does not hold.
    #[error(transparent)]
    File(#[from] FileError),
    /// The manifest is not valid.
    #[error(transparent)]
    Manifest(#[from] ModelError),
    /// The terms are not about this program, or it can't be disputed.
    #[error(transparent)]
    Case(#[from] CaseError),
}

/// The portable file of a dispute: the manifest of its model and all entries of its transcript.
pub fn export(manifest: Vec<u8>, entries: Vec<SignedEntry>) -> Vec<u8> {
    DisputeFile { manifest, entries }.to_bytes()
}

/// Judges a dispute again, offline: the manifest by its hash, the program as far as that needs no weights, every
/// signature, every rule, and the element by the reference kernels. Whether the coordinator's key is one that the reader
/// trusts is the reader's to decide; a verdict of the kind `Proven` does not rest on that.
///
/// # Errors
/// [`JudgeError`]; also where the file's own verdict is another one than follows.
pub fn judge(bytes: &[u8]) -> Result<Report, JudgeError> {
    let file = DisputeFile::from_bytes(bytes)?;
    let manifest = Manifest::parse(&file.manifest)?;
    let model = Disputable::of(&manifest)?;
    let case = model.case_of(file.terms()?)?;
    let verdict = file.judge(&case, &mut |element| case.recompute(element))?;
    Ok(Report::of(&model, &case, file.terms()?, &file.entries, verdict))
}
