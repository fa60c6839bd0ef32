//! The coordinator's transparency log in the simulated store, and somebody who keeps every head of it.

use std::collections::BTreeMap;

use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{Digest, Millis};
use lockstep_protocol::log::{Blind, Entry, LogHead, SignedHead, Subtree, Tree, consistency_path, leaf_hash};

/// The durable log.
#[derive(Clone, Default)]
pub struct Log {
    tree: Tree,
    nodes: BTreeMap<Subtree, Digest>,
    blinds: [u8; 32],
}

impl Log {
    /// Appends an entry, in the transaction of what it follows from.
    pub fn append(&mut self, entry: &Entry) {
        let leaf = leaf_hash(&Blind::derive(&self.blinds, self.tree.size()), entry);
        let Self { tree, nodes, .. } = self;
        let kept: Result<(), std::convert::Infallible> = tree.append(leaf, |at, hash| {
            nodes.insert(at, hash);
            Ok(())
        });
        let Ok(()) = kept;
    }

    /// How many entries there are.
    pub fn size(&self) -> u64 {
        self.tree.size()
    }

    /// A head over all entries.
    pub fn head(&self, keys: &Keypair, now: Millis) -> SignedHead {
        LogHead::of(&self.tree, keys.id(), now).sign(keys)
    }

    fn path(&self, old: u64, new: u64) -> Result<Vec<Digest>, String> {
        consistency_path(old, new, |at| self.nodes.get(&at).copied().ok_or_else(|| format!("node {at:?} is missing")))
    }
}

/// Somebody who asks for a head now and then and compares it with the one before.
#[derive(Default)]
pub struct Watcher {
    last: Option<SignedHead>,
}

impl Watcher {
    /// Looks at the log.
    ///
    /// # Errors
    /// The log does not continue what it was.
    pub fn look(&mut self, log: &Log, keys: &Keypair, now: Millis) -> Result<(), String> {
        let head = log.head(keys, now);
        if let Some(last) = &self.last {
            if log.size() < last.head.size {
                return Err(format!("the log shrank from {} to {} entries", last.head.size, log.size()));
            }
            let path = log.path(last.head.size, head.head.size)?;
            last.followed_by(&head, Some(&path)).map_err(|error| error.to_string())?;
        }
        self.last = Some(head);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lockstep_protocol::ids::JobId;

    use super::*;

    #[test]
    fn a_log_that_was_changed_behind_its_watcher_is_noticed() {
        let keys = Keypair::from_seed([1; 32]);
        let entry = |job: u8| Entry::Submitted { job: JobId::from_bytes([job; 32]) };
        let log = |jobs: &[u8]| {
            let mut log = Log::default();
            jobs.iter().for_each(|job| log.append(&entry(*job)));
            log
        };
        let after = |jobs: &[u8]| {
            let mut watcher = Watcher::default();
            watcher.look(&log(&[1, 2, 3]), &keys, Millis(1)).unwrap();
            watcher.look(&log(jobs), &keys, Millis(2))
        };
        assert_eq!(after(&[1, 2, 3]), Ok(()));
        assert_eq!(after(&[1, 2, 3, 4, 5]), Ok(()));
        for jobs in [&[1, 2][..], &[1, 2, 4], &[1, 3, 2, 4], &[9, 2, 3, 4, 5]] {
            assert!(after(jobs).is_err(), "{jobs:?}");
        }
    }
}
