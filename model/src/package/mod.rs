//! One file for one model: a canonical manifest and page-aligned blobs (SPEC section 20).
//!
//! The model id is the plain BLAKE3 of the manifest's bytes, and the manifest holds the digest of everything else. No
//! offset is ever read from a file: they follow from the lengths, in order.

mod assembler;
mod layout;
mod manifest;
mod program_codec;
mod view;
mod writer;

pub use assembler::{Needed, PackageAssembler};
pub use layout::{Layout, PAGE};
pub use manifest::{BlobInfo, MAX_OUTPUT_FRAC, Manifest, SPEC_VERSION, SourceFile, WeightMode};
pub use view::Package;
pub(crate) use view::typed;
pub use writer::write;
