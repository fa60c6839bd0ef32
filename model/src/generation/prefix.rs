//! Prefixes that were computed before: their keys and values, and the state of every layer's hash.
//!
//! An entry stands for a whole number of pages of tokens. It shares its pages with the sequence that computed them and
//! with all that start from it, so it costs one page and one state, and only an entry that no longer one builds on is
//! ever dropped.

use std::collections::BTreeMap;

use lockstep_kernels::backend::{BackendError, Executor};
use lockstep_kernels::reference::attention::BLOCK;
use lockstep_kernels::value::CacheId;
use lockstep_protocol::trace::RowTree;

/// Positions of a page: prefixes are kept at multiples of it.
pub(super) const PAGE: usize = BLOCK;

/// Names all tokens of an entry, from the first one on.
pub(super) type Key = [u8; 32];

/// How far a sequence's own pages are those of entries, so that a further entry would cost one page only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lineage {
    /// To the entry with this name, or from the start on without one.
    At(Option<Key>),
    /// Not known any more; the sequence adds no entries.
    Lost,
}

#[derive(Debug)]
struct Entry {
    cache: CacheId,
    trees: Vec<RowTree>,
    parent: Option<Key>,
    children: usize,
    last_use: u64,
}

/// What [`Prefixes::find`] found.
pub(super) struct Hit<'a> {
    pub key: Key,
    pub cache: CacheId,
    pub positions: usize,
    pub trees: &'a [RowTree],
}

/// The entries, within a budget of bytes.
#[derive(Debug)]
pub(super) struct Prefixes {
    entries: BTreeMap<Key, Entry>,
    most: usize,
    uses: u64,
}

impl Prefixes {
    /// As many entries of `entry_bytes` each as `bytes` hold.
    pub fn new(bytes: u64, entry_bytes: u64) -> Self {
        let most = usize::try_from(bytes / entry_bytes.max(1)).unwrap_or(usize::MAX);
        Self { entries: BTreeMap::new(), most, uses: 0 }
    }

    /// Whether anything is ever kept.
    pub fn is_on(&self) -> bool {
        self.most > 0
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The longest entry that `tokens` start with.
    pub fn find(&mut self, tokens: &[u32]) -> Option<Hit<'_>> {
        let mut found = None;
        for (index, page) in tokens.chunks_exact(PAGE).enumerate() {
            let key = key_of(found.map(|(key, _)| key), page);
            if !self.entries.contains_key(&key) {
                break;
            }
            self.touch(&key);
            found = Some((key, (index + 1) * PAGE));
        }
        let (key, positions) = found?;
        let entry = &self.entries[&key];
        Some(Hit { key, cache: entry.cache, positions, trees: &entry.trees })
    }

    /// Adds the page that follows `parent`, shared with the cache `from`, which holds `positions` positions or more up to
    /// the page's end. Returns the lineage of a sequence that owns `from`.
    pub fn insert(
        &mut self,
        executor: &mut dyn Executor,
        parent: Option<Key>,
        page: &[u32],
        (from, cache, positions): (CacheId, CacheId, usize),
        trees: Vec<RowTree>,
    ) -> Result<Lineage, BackendError> {
        let key = key_of(parent, page);
        let is_orphan = parent.is_some_and(|parent| !self.entries.contains_key(&parent));
        if is_orphan || self.entries.contains_key(&key) || !self.make_room(executor, parent) {
            return Ok(Lineage::Lost);
        }
        executor.fork_cache(from, cache, positions)?;
        if let Some(parent) = parent {
            self.touch(&parent);
            if let Some(parent) = self.entries.get_mut(&parent) {
                parent.children += 1;
            }
        }
        self.entries.insert(key, Entry { cache, trees, parent, children: 0, last_use: self.uses });
        self.touch(&key);
        Ok(Lineage::At(Some(key)))
    }

    /// Makes room for one more entry, without `keep`. Says whether there is.
    fn make_room(&mut self, executor: &mut dyn Executor, keep: Option<Key>) -> bool {
        while self.entries.len() >= self.most {
            let unused = self.entries.iter().filter(|(key, entry)| entry.children == 0 && Some(**key) != keep);
            let Some(oldest) = unused.min_by_key(|(_, entry)| entry.last_use).map(|(key, _)| *key) else {
                return false;
            };
            self.remove(executor, &oldest);
        }
        true
    }

    fn remove(&mut self, executor: &mut dyn Executor, key: &Key) {
        let Some(entry) = self.entries.remove(key) else { return };
        executor.drop_cache(entry.cache);
        if let Some(parent) = entry.parent.and_then(|parent| self.entries.get_mut(&parent)) {
            parent.children -= 1;
        }
    }

    fn touch(&mut self, key: &Key) {
        self.uses += 1;
        if let Some(entry) = self.entries.get_mut(key) {
            entry.last_use = self.uses;
        }
    }
}

fn key_of(parent: Option<Key>, page: &[u32]) -> Key {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&parent.unwrap_or_default());
    page.iter().for_each(|token| {
        hasher.update(&token.to_le_bytes());
    });
    hasher.finalize().into()
}
