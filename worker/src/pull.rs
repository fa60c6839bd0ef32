//! Fetching a package from the coordinator, range by range, each verified before it is written.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lockstep_link::{Frames, LinkError, send};
use lockstep_model::ModelError;
use lockstep_model::package::{Manifest, Package, PackageAssembler};
use lockstep_protocol::ids::{ModelId, Root};
use lockstep_protocol::limits::{CHUNK_BYTES, PULL_PATIENCE_MS, PULL_REQUESTS_AHEAD};
use lockstep_protocol::messages::{FailureCode, PackageReply, PackageRequest};
use lockstep_protocol::openings::{ChunkRange, verify_range};
use quinn::{Connection, SendStream};

use crate::batch::Failure;
use crate::event::{Event, Events};
use crate::store::{blocking, slice_of, unavailable};

/// What an interrupted pull left open. The file stays locked as long as this lives, so a range that was still being
/// written when its pull was dropped is never in the way of the next pull.
#[derive(Clone, Debug, Default)]
pub(crate) struct Partial {
    open: Option<(Arc<Pull>, Assembler)>,
}

impl Partial {
    /// Whether nothing was begun.
    pub fn is_empty(&self) -> bool {
        self.open.is_none()
    }
}

/// What is being pulled.
#[derive(Debug)]
struct Pull {
    manifest: Manifest,
    /// By blob.
    wanted: Vec<bool>,
}

type Assembler = Arc<Mutex<Option<PackageAssembler>>>;

/// Pulls a package to `path`, from where an earlier pull stopped; or of it what some layers read.
pub(crate) async fn pull(
    connection: &Connection,
    (model, layers): (ModelId, Option<(u16, u16)>),
    path: &Path,
    partial: &mut Partial,
    max_bytes: u64,
    events: &Events,
) -> Result<Package, Failure> {
    let mut stream = PackageStream::open(connection).await?;
    let (manifest, assembler) = match partial.open.take() {
        Some(open) => open,
        None => begin(&mut stream, (model, layers), path, max_bytes).await?,
    };
    // Back in its place before anything is awaited: a pull that is dropped must leave it behind.
    partial.open = Some((Arc::clone(&manifest), Arc::clone(&assembler)));
    fetch(&mut stream, model, &manifest, &assembler, events).await?;
    // Finishing gives up the file; what fails there starts anew.
    partial.open = None;
    let finish = move || lock(&assembler).take().map(PackageAssembler::finish);
    let finished = blocking(finish).await?.ok_or_else(|| unavailable("the package was taken apart"))?;
    finished.map_err(from_model)
}

/// Asks for the manifest. Nothing is written before it was found to be the model's, and the package to fit.
async fn begin(
    stream: &mut PackageStream,
    (model, layers): (ModelId, Option<(u16, u16)>),
    path: &Path,
    max_bytes: u64,
) -> Result<(Arc<Pull>, Assembler), Failure> {
    stream.ask(PackageRequest::GetManifest { model }).await?;
    let PackageReply::Manifest { bytes } = stream.reply().await? else {
        return Err(unavailable(format!("the coordinator has no manifest of model {model}")));
    };
    let path = path.to_path_buf();
    blocking(move || {
        if Manifest::model_id(&bytes) != model {
            return Err(unavailable(format!("the coordinator's manifest is not that of model {model}")));
        }
        let manifest = Manifest::parse(&bytes).map_err(from_model)?;
        let wanted = wanted(&manifest, layers)?;
        check_room(&path, &manifest, &wanted, bytes.len(), max_bytes)?;
        let assembler = PackageAssembler::open_some(&path, model, &bytes, |blob| wanted[blob]).map_err(from_model)?;
        Ok((Arc::new(Pull { manifest, wanted }), Arc::new(Mutex::new(Some(assembler)))))
    })
    .await?
}

/// The blobs that some layers read, or all of them.
fn wanted(manifest: &Manifest, layers: Option<(u16, u16)>) -> Result<Vec<bool>, Failure> {
    let all = manifest.blobs().count();
    let Some(layers) = layers else { return Ok(vec![true; all]) };
    let slice = slice_of(&manifest.program, layers)?;
    let mut wanted = vec![false; all];
    slice.params().iter().for_each(|param| wanted[usize::from(param.0)] = true);
    Ok(wanted)
}

/// Refuses a package that does not fit beside the others. A pull under way counts with its full length from its start.
fn check_room(
    path: &Path,
    manifest: &Manifest,
    wanted: &[bool],
    manifest_bytes: usize,
    max_bytes: u64,
) -> Result<(), Failure> {
    let blobs = manifest.blobs().zip(wanted).filter(|(_, wanted)| **wanted);
    let blobs = blobs.fold(manifest_bytes as u64, |sum, (blob, _)| sum.saturating_add(blob.bytes));
    let own = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let entries = path.parent().and_then(|dir| std::fs::read_dir(dir).ok()).into_iter().flatten().flatten();
    // What an earlier pull of this package left is part of it.
    let others = entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with(&own));
    let held =
        others.filter_map(|entry| entry.metadata().ok()).fold(0_u64, |sum, file| sum.saturating_add(held_bytes(&file)));
    if held.saturating_add(blobs) <= max_bytes {
        return Ok(());
    }
    let reason =
        format!("the package has {blobs} bytes, the others here {held}; this worker holds at most {max_bytes}");
    Err(Failure::new(FailureCode::ModelRefused, reason))
}

/// What a file takes on the disk: one with holes less than its length.
#[cfg(unix)]
fn held_bytes(file: &std::fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    file.len().min(file.blocks().saturating_mul(512))
}

#[cfg(not(unix))]
fn held_bytes(file: &std::fs::Metadata) -> u64 {
    file.len()
}

/// One range to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    blob: u32,
    range: ChunkRange,
    /// Bytes at the front of the range that are there already.
    skip: usize,
    root: Root,
    /// Length of the whole blob.
    len: u64,
}

/// All ranges that a package lacks from `offset` of `blob` on.
fn parts(pull: &Pull, blob: u32, offset: u64) -> impl Iterator<Item = Part> + '_ {
    let chunk = CHUNK_BYTES as u64;
    let blobs = pull.manifest.blobs().enumerate().skip(blob as usize).filter(|(index, _)| pull.wanted[*index]);
    blobs.flat_map(move |(index, info)| {
        let (root, len) = (Root::from_bytes(*info.digest.as_bytes()), info.bytes);
        let from = if index == blob as usize { offset } else { 0 };
        let mut done = from / chunk;
        let mut skip = (from % chunk) as usize;
        std::iter::from_fn(move || {
            let range = ChunkRange::next(done, len)?;
            done += u64::from(range.count);
            Some(Part { blob: index as u32, range, skip: std::mem::take(&mut skip), root, len })
        })
    })
}

async fn fetch(
    stream: &mut PackageStream,
    model: ModelId,
    manifest: &Pull,
    assembler: &Assembler,
    events: &Events,
) -> Result<(), Failure> {
    let look = |a: &PackageAssembler| (a.needed(), a.progress());
    let (needed, (mut done, total)) = lock(assembler).as_ref().map(look).ok_or_else(|| unavailable("no pull"))?;
    events.emit(Event::Pulling { model, done, total });
    let Some(needed) = needed else { return Ok(()) };
    let mut parts = parts(manifest, needed.blob, needed.offset);
    let mut asked = VecDeque::new();
    loop {
        while asked.len() < PULL_REQUESTS_AHEAD
            && let Some(part) = parts.next()
        {
            stream.ask(PackageRequest::GetBlob { model, blob: part.blob, range: part.range }).await?;
            asked.push_back(part);
        }
        let Some(part) = asked.pop_front() else { return Ok(()) };
        let PackageReply::Opening { bytes } = stream.reply().await? else {
            return Err(unavailable(format!("the coordinator has no {:?} of blob {}", part.range, part.blob)));
        };
        let assembler = Arc::clone(assembler);
        let before = done;
        done = blocking(move || accept(&assembler, part, &bytes)).await??;
        if percent(before, total) != percent(done, total) {
            events.emit(Event::Pulling { model, done, total });
        }
    }
}

fn percent(done: u64, total: u64) -> u128 {
    u128::from(done) * 100 / u128::from(total.max(1))
}

/// Verifies an opening and writes what it opens. Returns the bytes that are there.
fn accept(assembler: &Assembler, part: Part, opening: &[u8]) -> Result<u64, Failure> {
    let bytes = verify_range(&part.root, part.len, part.range, opening)
        .map_err(|error| unavailable(format!("blob {} from the coordinator is wrong: {error}", part.blob)))?;
    let offset = part.range.first * CHUNK_BYTES as u64 + part.skip as u64;
    let mut guard = lock(assembler);
    let assembler = guard.as_mut().ok_or_else(|| unavailable("no pull"))?;
    assembler.accept(part.blob, offset, &bytes[part.skip..]).map_err(from_model)?;
    Ok(assembler.progress().0)
}

fn lock(assembler: &Assembler) -> std::sync::MutexGuard<'_, Option<PackageAssembler>> {
    assembler.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A full disk, a manifest that lies: all of it means that the model can't be had from here.
fn from_model(error: ModelError) -> Failure {
    unavailable(error.to_string())
}

struct PackageStream {
    requests: SendStream,
    replies: Frames<PackageReply>,
}

impl PackageStream {
    async fn open(connection: &Connection) -> Result<Self, Failure> {
        let (requests, replies) = connection.open_bi().await.map_err(|error| broken(error.into()))?;
        Ok(Self { requests, replies: Frames::new(replies) })
    }

    async fn ask(&mut self, request: PackageRequest) -> Result<(), Failure> {
        send(&mut self.requests, &request).await.map_err(broken)
    }

    async fn reply(&mut self) -> Result<PackageReply, Failure> {
        let patience = Duration::from_millis(PULL_PATIENCE_MS);
        match tokio::time::timeout(patience, self.replies.next()).await {
            Ok(Ok(Some(reply))) => Ok(reply),
            Ok(Ok(None)) => Err(unavailable("the coordinator ended the package stream")),
            Ok(Err(error)) => Err(broken(error)),
            Err(_) => Err(unavailable(format!("the coordinator sent nothing for {} s", patience.as_secs()))),
        }
    }
}

fn broken(error: LinkError) -> Failure {
    unavailable(format!("the package stream broke: {error}"))
}
