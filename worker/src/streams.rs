//! What this worker streamed of runs that the coordinator may still halt. It outlives a connection: whoever is told to
//! halt signs what it streamed, wherever it was told.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lockstep_protocol::dispute::{Partial, SignedPartial};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{Place, Root};
use lockstep_protocol::job::{JobHeader, JobKind};
use lockstep_protocol::limits::WORKER_STREAMS;

use crate::batch::Key;

/// The roots and words of one run, in stream order.
#[derive(Debug)]
struct Streamed {
    header: JobHeader,
    layers: u16,
    roots: Vec<Root>,
    words: Vec<u32>,
    /// Nothing is added any more: what is signed once stays what it is.
    is_halted: bool,
}

/// The streams of all runs, from their start until the coordinator keeps the result or does not want it.
#[derive(Debug)]
pub(crate) struct Streams {
    keys: Keypair,
    runs: Mutex<BTreeMap<Key, Streamed>>,
}

impl Streams {
    pub fn new(keys: Keypair) -> Self {
        Self { keys, runs: Mutex::default() }
    }

    /// A run starts. Of too many, the one with the oldest lease is forgotten.
    pub fn begin(&self, key: Key, header: JobHeader, layers: u16) {
        let mut runs = self.runs();
        runs.insert(key, Streamed { header, layers, roots: Vec::new(), words: Vec::new(), is_halted: false });
        if runs.len() > WORKER_STREAMS
            && let Some(oldest) = runs.keys().min_by_key(|(_, epoch)| *epoch).copied()
        {
            runs.remove(&oldest);
        }
    }

    /// Remembers a root that is about to be sent. Says whether it may be: not where the run was halted.
    pub fn push(&self, key: &Key, root: Root) -> bool {
        self.add(key, |run| run.roots.push(root))
    }

    /// The same for a word.
    pub fn push_word(&self, key: &Key, word: u32) -> bool {
        self.add(key, |run| run.words.push(word))
    }

    fn add(&self, key: &Key, add: impl FnOnce(&mut Streamed)) -> bool {
        match self.runs().get_mut(key) {
            Some(run) if !run.is_halted => {
                add(run);
                true
            }
            Some(_) => false,
            // Forgotten among too many; it can't be halted any more.
            None => true,
        }
    }

    /// Ends a run, and signs what was streamed of it up to a place: the same bytes, however often it is asked. `None` where
    /// so much was not, or where it is not known.
    pub fn halt(&self, key: &Key, place: Place) -> Option<SignedPartial> {
        let mut runs = self.runs();
        let run = runs.get_mut(key)?;
        run.is_halted = true;
        let geometry = run.header.geometry(run.layers).ok()?;
        let roots = run.roots.get(..=geometry.index_of(place)?)?;
        let words = match run.header.kind {
            JobKind::Embedding => &[][..],
            JobKind::Generation(_) => run.words.get(..roots.len() / usize::from(geometry.streamed_layers()))?,
        };
        let partial = Partial::of_roots(key.0, &geometry, key.1, roots, words, self.keys.id())?;
        Some(partial.sign(&self.keys))
    }

    pub fn forget(&self, key: &Key) {
        self.runs().remove(key);
    }

    fn runs(&self) -> MutexGuard<'_, BTreeMap<Key, Streamed>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
