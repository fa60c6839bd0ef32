//! The models that are served: verified, proven, and ready to be handed to workers part by part.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use lockstep_kernels::slice;
use lockstep_model::dispute::Disputable;
use lockstep_model::generation::TokenText;
use lockstep_model::package::Package;
use lockstep_model::template::ChatTemplate;
use lockstep_model::tokenizer::Tokenizer;
use lockstep_protocol::generation::Generation;
use lockstep_protocol::ids::{ModelId, Nonce, Seed};
use lockstep_protocol::job::{Job, JobKind, RequestInput, SPEC_VERSION};
use lockstep_protocol::limits::{MAX_GENERATED_TOKENS, MAX_LAYERS, MAX_OUTPUT_VALUES, MAX_POSITIONS, MAX_RUN_ROOTS};
use lockstep_protocol::machine::{AuditPolicy, Footprint, JobSpec, Work};
use lockstep_protocol::openings::{ChunkRange, Outboard, open_range};

use crate::error::StartError;

/// One served model.
#[derive(Debug)]
pub struct Model {
    package: Package,
    disputable: Arc<Disputable>,
    path: PathBuf,
    tokenizer: Tokenizer,
    chat_template: Option<ChatTemplate>,
    layers: u16,
    dimensions: u32,
    /// The bytes of a decoder's tokens.
    text: Option<TokenText>,
    /// For each blob, made when it is first asked for; `None` where the file changed under us.
    outboards: Vec<OnceLock<Option<Outboard>>>,
}

impl Model {
    /// Opens a package, verifies every digest, proves every bound and loads the tokenizer.
    ///
    /// # Errors
    /// [`StartError::Package`], [`StartError::Program`].
    pub fn open(path: &Path) -> Result<Self, StartError> {
        let refuse = |error| StartError::Package { path: path.to_path_buf(), error };
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let package = Package::open_checked(path, threads).map_err(refuse)?;
        let tokenizer = package.tokenizer().map_err(refuse)?;
        let unfit = |reason| StartError::Program { path: path.to_path_buf(), reason };
        let chat_template = ChatTemplate::of(&package, &tokenizer).map_err(|error| unfit(error.to_string()))?;
        let (layers, dimensions) = shape(&package).map_err(|reason| unfit(reason.to_owned()))?;
        let disputable = Arc::new(Disputable::of(package.manifest()).map_err(|error| unfit(error.to_string()))?);
        let text = TokenText::of(package.program(), package.params());
        let outboards = (0..package.blob_count()).map(|_| OnceLock::new()).collect();
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        Ok(Self { package, disputable, path, tokenizer, chat_template, layers, dimensions, text, outboards })
    }

    /// The model's id.
    pub fn id(&self) -> ModelId {
        self.package.model_id()
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.package.manifest().name
    }

    /// Where its package lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The package.
    pub fn package(&self) -> &Package {
        &self.package
    }

    /// The model as a referee knows it.
    pub fn disputable(&self) -> &Arc<Disputable> {
        &self.disputable
    }

    /// Numbers in an embedding.
    pub fn dimensions(&self) -> u32 {
        self.dimensions
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Whether it generates text; otherwise it makes embeddings.
    pub fn is_decoder(&self) -> bool {
        self.package.manifest().program.is_decoder()
    }

    /// What turns conversations into text, where the model has it.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// Layers whose roots are streamed at each point.
    pub fn streamed_layers(&self) -> usize {
        usize::from(self.layers) + 1
    }

    /// Most tokens of a job.
    pub fn max_tokens(&self) -> usize {
        (self.package.program().max_positions as usize).min(MAX_POSITIONS)
    }

    /// Most tokens that a job may generate where clients may ask for so many, whatever its prompt leaves room for: a run
    /// streams only so many roots.
    pub fn max_generated(&self, cap: u32) -> usize {
        (cap as usize).min(MAX_GENERATED_TOKENS).min(MAX_RUN_ROOTS / self.streamed_layers())
    }

    /// The bytes that a token adds to a text; none of a token that the model does not have.
    pub fn token_bytes(&self, token: u32) -> Vec<u8> {
        self.text.as_ref().map(|text| text.bytes(token)).unwrap_or_default()
    }

    /// What its parameters take, layer by layer.
    pub fn footprint(&self) -> Footprint {
        Footprint { layers: slice::footprint(self.package.program()) }
    }

    /// A job that embeds, with what the machine has to know about it. `tokens` are within the model's limits.
    pub fn spec(
        &self,
        input: &RequestInput,
        tokens: Vec<u32>,
        nonce: Nonce,
        seed: Seed,
        policy: AuditPolicy,
    ) -> JobSpec {
        let work = Work::fixed(self.package.program().macs(tokens.len() as u64, 0));
        let job = self.job(JobKind::Embedding, input, tokens, nonce, seed);
        self.spec_of(job, self.dimensions, work, policy)
    }

    /// A job that generates, with what the machine has to know about it. All tokens together are within the model's limits.
    pub fn generation(
        &self,
        input: &RequestInput,
        tokens: Vec<u32>,
        generation: Generation,
        (nonce, seed): (Nonce, Seed),
        policy: AuditPolicy,
    ) -> JobSpec {
        let (program, prompt) = (self.package.program(), tokens.len() as u64);
        let work = Work::of_points([1, 2, 3].map(|points| program.macs(prompt + points - 1, points)));
        let words = generation.max_tokens;
        let job = self.job(JobKind::Generation(Box::new(generation)), input, tokens, nonce, seed);
        self.spec_of(job, words, work, policy)
    }

    fn job(&self, kind: JobKind, input: &RequestInput, tokens: Vec<u32>, nonce: Nonce, seed: Seed) -> Job {
        let request = input.hash(&nonce);
        Job { spec_version: SPEC_VERSION, model: self.id(), kind, tokens, request, seed, nonce }
    }

    fn spec_of(&self, job: Job, output_count: u32, work: Work, policy: AuditPolicy) -> JobSpec {
        JobSpec { job: Arc::new(job), layers: self.layers, output_count, work, policy, planted: None }
    }

    /// Opens chunks of a blob for a worker; `None` where there is no such blob or range. Hashes: blocks for
    /// milliseconds, and for the first range of a blob for as long as hashing the blob takes.
    pub fn open_blob(&self, blob: u32, range: ChunkRange) -> Option<Vec<u8>> {
        let index = blob as usize;
        let outboard = self.outboards.get(index)?.get_or_init(|| self.outboard(index)).as_ref()?;
        open_range(self.package.blob(index), outboard, range).ok()
    }

    fn outboard(&self, index: usize) -> Option<Outboard> {
        let info = self.package.manifest().blobs().nth(index)?;
        let outboard = Outboard::new(self.package.blob(index)).ok()?;
        if outboard.root().as_bytes() == info.digest.as_bytes() {
            return Some(outboard);
        }
        tracing::error!(path = %self.path.display(), blob = index, "the package changed while it was served");
        None
    }
}

/// Transformer layers and output numbers of a program; why it can't be served otherwise.
fn shape(package: &Package) -> Result<(u16, u32), &'static str> {
    let program = package.program();
    // The first layer embeds and the last one makes the output.
    let layers = program.layers.len().checked_sub(2).filter(|layers| (1..=MAX_LAYERS).contains(layers));
    let layers = layers.and_then(|layers| u16::try_from(layers).ok()).ok_or("it has no layers, or too many")?;
    let output = program.layers.last().ok_or("it has no layers")?.output;
    let dimensions = program.tensor(output).cols;
    if dimensions as usize > MAX_OUTPUT_VALUES {
        return Err("its output is too large");
    }
    Ok((layers, dimensions))
}

/// All served models. Does not change while a coordinator runs.
#[derive(Debug, Default)]
pub struct Models {
    /// In the order in which they were given.
    list: Vec<Arc<Model>>,
    by_id: BTreeMap<ModelId, Arc<Model>>,
    /// Kept for jobs that are not finished; clients can't ask for them.
    retired: BTreeMap<ModelId, Arc<Model>>,
}

impl Models {
    /// Opens the packages, each of another model.
    ///
    /// # Errors
    /// As [`Model::open`], for the first package that is refused; [`StartError::Twice`].
    pub fn open(paths: &[PathBuf]) -> Result<Self, StartError> {
        let mut models = Self::default();
        for path in paths {
            let model = Arc::new(Model::open(path)?);
            if let Some(first) = models.by_id.insert(model.id(), Arc::clone(&model)) {
                return Err(StartError::Twice { path: path.clone(), first: first.path.clone(), model: model.id() });
            }
            models.list.push(model);
        }
        Ok(models)
    }

    /// Keeps a model for the jobs that still need it.
    pub fn retire(&mut self, model: Model) {
        self.retired.insert(model.id(), Arc::new(model));
    }

    /// The models that clients may ask for.
    pub fn served(&self) -> &[Arc<Model>] {
        &self.list
    }

    /// All models, those too that clients can't ask for.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.by_id.values().chain(self.retired.values())
    }

    /// What a client calls a model: its id, or its name, of which the first given counts.
    pub fn resolve(&self, name: &str) -> Option<&Arc<Model>> {
        let by_id = name.parse().ok().and_then(|id: ModelId| self.by_id.get(&id));
        by_id.or_else(|| self.list.iter().find(|model| model.name() == name))
    }

    /// The model of a job, served or retired.
    pub fn of_job(&self, id: &ModelId) -> Option<&Arc<Model>> {
        self.by_id.get(id).or_else(|| self.retired.get(id))
    }
}
