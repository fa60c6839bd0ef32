//! Packages: import from checkpoints, lowering to programs, bounds proofs, tokenizer.
//!
//! A Hugging Face folder becomes one file, the package: a canonical manifest, whose BLAKE3 is the model id, and the
//! program's parameters, memory-mapped at run time. The folder reads like this:
//!
//! - [`checkpoint`]: reads the folder; every length and shape is hostile until checked.
//! - [`lower`]: configuration and weights to a [`Program`](lockstep_kernels::program::Program) and its parameters.
//! - [`rope`]: cosines and sines of rotary embeddings, without a mathematical library.
//! - [`quantize`]: row codes, and the error feedback that rounds 8-bit ones.
//! - [`bounds`]: proves every accumulator from the actual codes; whoever opens a package proves again.
//! - [`package`]: the file format, its manifest, and the assembler for packages pulled over a network.
//! - [`import`], [`check`]: folder to package, and whether a package is that folder.
//! - [`dispute`]: the dispute game's view of a program, a player's evidence, and the judge of a dispute's file.
//! - [`generation`]: text from decoders, many sequences at once, with their commitments.
//! - [`template`]: conversations to the text that a model was trained on.
//! - [`tokenizer`], [`embed`], [`rerun`]: text to tokens to vectors, and a job again from its tokens to its roots.
//!
//! Whatever ends up in a package is computed in integers and in IEEE basic double operations of pinned order: no fused
//! multiply-add, no mathematical library. So an import gives the same bytes on every machine.
#![deny(clippy::disallowed_methods)]

#[cfg(target_endian = "big")]
compile_error!("tensors are little-endian in memory; big-endian hosts are not supported");

pub mod bounds;
pub mod check;
pub mod checkpoint;
pub mod dispute;
pub mod embed;
mod error;
mod exact;
pub mod generation;
mod gguf;
pub mod import;
pub mod lower;
pub mod output;
pub mod package;
mod parallel;
pub mod quantize;
pub mod rerun;
mod residual;
pub mod rope;
pub mod synth;
pub mod template;
pub mod tokenizer;

pub use error::ModelError;
