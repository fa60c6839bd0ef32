//! A package on disk, memory-mapped.

use std::fs::File;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use lockstep_kernels::program::{DType, ParamId, Program};
use lockstep_kernels::value::{ParamData, Params};
use lockstep_protocol::ids::{Digest, ModelId};
use memmap2::Mmap;

use super::Manifest;
use super::layout::{Layout, manifest_range};
use crate::bounds;
use crate::error::ModelError;
use crate::parallel;
use crate::tokenizer::Tokenizer;

/// An opened package. Clones share the mapping.
#[derive(Clone, Debug)]
pub struct Package {
    mapped: Arc<Mapped>,
}

#[derive(Debug)]
struct Mapped {
    map: Mmap,
    manifest: Manifest,
    layout: Layout,
    model_id: ModelId,
}

impl Package {
    /// Maps a package and checks its header, manifest and length. Blobs are not read: see [`Package::verify`] and
    /// [`Package::prove`].
    ///
    /// The file must stay as it is while it is mapped; a package is only ever replaced by a rename.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let regular = |metadata: std::fs::Metadata| {
            if metadata.is_file() && metadata.len() > 0 {
                return Ok(());
            }
            Err(ModelError::Package("is empty or not a regular file".into()))
        };
        // Before, since opening a pipe waits for its other end; and after, since the name may have changed meanwhile.
        regular(std::fs::metadata(path).map_err(ModelError::io("open", path))?)?;
        let file = File::open(path).map_err(ModelError::io("open", path))?;
        regular(file.metadata().map_err(ModelError::io("open", path))?)?;
        // SAFETY: the mapping is read-only. Packages are written beside their name and renamed, never changed in
        // place, so no well-behaved process shortens or alters the file under the mapping.
        let map = unsafe { Mmap::map(&file) }.map_err(ModelError::io("map", path))?;
        let bytes = &map[manifest_range(&map)?];
        let manifest = Manifest::parse(bytes)?;
        let model_id = Manifest::model_id(bytes);
        let layout = Layout::of(&manifest, bytes.len())?;
        if layout.file_bytes() != map.len() {
            let reason = format!("has {} bytes; its manifest describes {}", map.len(), layout.file_bytes());
            return Err(ModelError::Package(reason));
        }
        Ok(Self { mapped: Arc::new(Mapped { map, manifest, layout, model_id }) })
    }

    /// Opens, verifies every digest and proves every bound: what anyone does before running a model.
    ///
    /// # Errors
    /// As [`Package::open`], [`Package::verify`] and [`Package::prove`].
    pub fn open_checked(path: &Path, threads: NonZeroUsize) -> Result<Self, ModelError> {
        let package = Self::open(path)?;
        package.verify(threads)?;
        package.prove()?;
        Ok(package)
    }

    /// Hashes every blob and compares; the gaps between them must be zeros.
    ///
    /// # Errors
    /// The first part that is not what the manifest says.
    pub fn verify(&self, threads: NonZeroUsize) -> Result<(), ModelError> {
        self.verify_some(threads, |_| true)
    }

    /// The same for a package of which only some blobs are there, by their numbers.
    ///
    /// # Errors
    /// As [`verify`](Self::verify).
    pub fn verify_some(
        &self,
        threads: NonZeroUsize,
        is_there: impl Fn(usize) -> bool + Sync,
    ) -> Result<(), ModelError> {
        let hash = |i: usize| is_there(i).then(|| Digest::from(blake3::hash(self.blob(i))));
        let digests = parallel::map(self.blob_count(), threads, hash);
        for (i, (found, info)) in digests.into_iter().zip(self.manifest().blobs()).enumerate() {
            if found.is_some_and(|found| found != info.digest) {
                return Err(ModelError::Package(format!("{} is damaged: its digest differs", self.blob_name(i))));
            }
        }
        self.template()?;
        let mut end = self.mapped.layout.manifest.end;
        for range in &self.mapped.layout.blobs {
            if self.mapped.map[end..range.start].iter().any(|b| *b != 0) {
                return Err(ModelError::Package("padding between blobs is not zero".into()));
            }
            end = range.end;
        }
        Ok(())
    }

    /// Proves that no accumulator of any input can overflow.
    ///
    /// # Errors
    /// The first op or parameter for which the proof fails.
    pub fn prove(&self) -> Result<(), ModelError> {
        bounds::prove(self.program(), &*self.mapped)
    }

    /// The BLAKE3 of the manifest.
    pub fn model_id(&self) -> ModelId {
        self.mapped.model_id
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.mapped.manifest
    }

    /// The manifest's canonical bytes.
    pub fn manifest_bytes(&self) -> &[u8] {
        &self.mapped.map[self.mapped.layout.manifest.clone()]
    }

    /// The model as ops.
    pub fn program(&self) -> &Arc<Program> {
        &self.mapped.manifest.program
    }

    /// The parameters, without a copy.
    pub fn params(&self) -> Arc<dyn Params> {
        Arc::clone(&self.mapped) as Arc<dyn Params>
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// When `tokenizer.json` does not load, or makes tokens that the program does not have.
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        let program = self.program();
        Tokenizer::from_json(self.blob(self.program().params.len()), program.max_positions, program.vocab_size)
    }

    /// The chat template, where the model has one.
    ///
    /// # Errors
    /// When it is not UTF-8.
    pub fn template(&self) -> Result<Option<&str>, ModelError> {
        if self.manifest().template.is_none() {
            return Ok(None);
        }
        let text = std::str::from_utf8(self.blob(self.program().params.len() + 1));
        text.map(Some).map_err(|e| ModelError::Package(format!("the chat template is not UTF-8: {e}")))
    }

    /// Number of blobs: the parameters, the tokenizer, the chat template where there is one.
    pub fn blob_count(&self) -> usize {
        self.mapped.layout.blobs.len()
    }

    /// The bytes of one blob.
    ///
    /// # Panics
    /// When `index` is not below [`Package::blob_count`].
    pub fn blob(&self, index: usize) -> &[u8] {
        self.mapped.blob(index)
    }

    fn blob_name(&self, index: usize) -> String {
        let params = &self.program().params;
        match params.get(index) {
            Some(param) => format!("parameter {:?}", param.name),
            None if index == params.len() => "the tokenizer".into(),
            None => "the chat template".into(),
        }
    }
}

impl Mapped {
    fn blob(&self, index: usize) -> &[u8] {
        &self.map[self.layout.blobs[index].clone()]
    }
}

impl Params for Mapped {
    fn param(&self, id: ParamId) -> ParamData<'_> {
        let bytes = self.blob(usize::from(id.0));
        match self.manifest.program.param(id).dtype {
            DType::I8 => ParamData::I8(typed(bytes)),
            DType::I16 => ParamData::I16(typed(bytes)),
            DType::U16 => ParamData::U16(typed(bytes)),
            DType::I32 => ParamData::I32(typed(bytes)),
        }
    }

    /// Gives the pages back to the system, which reads them from the file again where somebody wants them.
    fn release(&self, id: ParamId) {
        #[cfg(target_os = "linux")]
        {
            let blob = &self.layout.blobs[usize::from(id.0)];
            // SAFETY: the mapping is read-only and of a file, so the pages come back as they were.
            let advised =
                unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, blob.start, blob.len()) };
            // A wish: where it is not granted, nothing changes but how much memory is in use.
            drop(advised);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = id;
    }
}

/// Integers for which every bit pattern is a value.
pub(crate) trait Plain: Copy {}
impl Plain for i8 {}
impl Plain for i16 {}
impl Plain for u16 {}
impl Plain for i32 {}

/// Bytes as little-endian integers; the crate does not build on big-endian hosts.
pub(crate) fn typed<T: Plain>(bytes: &[u8]) -> &[T] {
    // SAFETY: every bit pattern is a value of `T`, and the result borrows the same bytes for the same time.
    let (head, body, tail) = unsafe { bytes.align_to::<T>() };
    assert!(head.is_empty() && tail.is_empty(), "blobs start at pages and hold whole elements");
    body
}
