//! The tree against its recursive definition, and proofs against every change.

mod cosign;
mod draws;

use std::collections::BTreeMap;
use std::convert::Infallible;

use proptest::prelude::*;

use super::tree::{empty_root, node_hash};
use super::*;
use crate::canonical::{from_bytes, to_bytes};
use crate::commitment::RunCommitment;
use crate::ids::{Digest, DisputeId, Millis, Place, VerdictKind};
use crate::ledger::Posting;
use crate::limits::MAX_LOG_PATH;
use crate::machine::DrawSecret;
use crate::receipt::{Receipt, Refutation};
use crate::testing::{job, keys, right_roots, root, run, run_with};

const SECRET: [u8; 32] = [9; 32];

/// RFC 9162, section 2.1.1, word by word.
fn naive_root(leaves: &[Digest]) -> Digest {
    match leaves {
        [] => empty_root(),
        [leaf] => *leaf,
        _ => {
            let mut left = 1;
            while left * 2 < leaves.len() {
                left *= 2;
            }
            node_hash(&naive_root(&leaves[..left]), &naive_root(&leaves[left..]))
        }
    }
}

/// A log in memory: what a coordinator stores.
#[derive(Default)]
struct Log {
    tree: Tree,
    nodes: BTreeMap<Subtree, Digest>,
    leaves: Vec<Digest>,
    entries: Vec<Entry>,
}

impl Log {
    fn push(&mut self, leaf: Digest) {
        let nodes = &mut self.nodes;
        let made = |at, hash| {
            assert_eq!(nodes.insert(at, hash), None, "a node is made once");
            Ok::<_, Infallible>(())
        };
        self.tree.append(leaf, made).unwrap();
        self.leaves.push(leaf);
    }

    fn enter(&mut self, entry: Entry) {
        self.push(leaf_hash(&Blind::derive(&SECRET, self.tree.size()), &entry));
        self.entries.push(entry);
    }

    fn of_size(size: u64) -> Self {
        let mut log = Self::default();
        (0..size).for_each(|number| log.push(Digest::from(blake3::hash(&number.to_le_bytes()))));
        log
    }

    fn node(&self) -> impl FnMut(Subtree) -> Result<Digest, Infallible> + '_ {
        |at| Ok(self.nodes[&at])
    }

    fn inclusion(&self, index: u64, size: u64) -> Vec<Digest> {
        inclusion_path(index, size, self.node()).unwrap()
    }

    fn consistency(&self, old: u64, new: u64) -> Vec<Digest> {
        consistency_path(old, new, self.node()).unwrap()
    }

    fn root(&self, size: u64) -> Digest {
        naive_root(&self.leaves[..size as usize])
    }

    fn head(&self, time: u64) -> SignedHead {
        LogHead::of(&self.tree, keys(1).id(), Millis(time)).sign(&keys(1))
    }

    /// The proof of a job against the whole log, with the entries that are about all jobs.
    fn proof(&self, job: JobId, from: Option<u64>) -> LogProof {
        let size = self.tree.size();
        let about = self.entries.iter().enumerate().filter(|(_, entry)| entry.job().is_none_or(|about| about == job));
        let leaf = |(index, entry): (usize, &Entry)| {
            let index = index as u64;
            let blind = Blind::derive(&SECRET, index);
            LeafProof { index, blind, entry: *entry, path: self.inclusion(index, size) }
        };
        LogProof {
            format: LOG_PROOF_FORMAT.to_owned(),
            job,
            head: self.head(7),
            cosignatures: vec![Cosignature::of(&self.head(7), &keys(11)), Cosignature::of(&self.head(7), &keys(12))],
            entries: about.map(leaf).collect(),
            consistency: from.map(|from| Consistency { from, path: self.consistency(from, size) }),
        }
    }
}

fn flipped(digest: &Digest, byte: usize) -> Digest {
    let mut bytes = *digest.as_bytes();
    bytes[byte] ^= 1;
    Digest::from_bytes(bytes)
}

#[test]
fn appending_gives_the_root_of_the_definition_at_every_size() {
    let mut log = Log::default();
    assert_eq!(log.tree.root(), naive_root(&[]));
    for size in 1..=130 {
        log.push(Digest::from_bytes([size as u8; 32]));
        assert_eq!((log.tree.size(), log.tree.root()), (size, log.root(size)));
    }
    assert!(log.nodes.len() < 2 * 130);
}

#[test]
fn every_leaf_of_every_size_is_included_and_nowhere_else() {
    let log = Log::of_size(70);
    for size in 1..=70 {
        let root = log.root(size);
        for index in 0..size {
            let path = log.inclusion(index, size);
            let leaf = &log.leaves[index as usize];
            assert!(check_inclusion(index, size, leaf, &path, &root));
            assert!(!check_inclusion(index, size, &flipped(leaf, 0), &path, &root));
            for other in (0..=size).filter(|other| *other != index) {
                assert!(!check_inclusion(other, size, leaf, &path, &root), "{index} of {size} passes at {other}");
            }
            let longer = [&path[..], &[root]].concat();
            assert!(!check_inclusion(index, size, leaf, &longer, &root));
            if let Some((_, shorter)) = path.split_last() {
                assert!(!check_inclusion(index, size, leaf, shorter, &root));
            }
        }
    }
}

#[test]
fn every_size_continues_every_smaller_one_and_no_other() {
    let log = Log::of_size(70);
    for new in 0..=70 {
        let new_root = log.root(new);
        for old in 0..=new {
            let (path, old_root) = (log.consistency(old, new), log.root(old));
            assert!(path.len() <= MAX_LOG_PATH);
            assert!(check_consistency(old, &old_root, new, &new_root, &path), "{old} to {new}");
            if old != new && old != 0 {
                assert!(!check_consistency(old, &old_root, new, &flipped(&new_root, 1), &path));
            }
            assert!(!check_consistency(old, &flipped(&old_root, 31), new, &new_root, &path));
            let longer = [&path[..], &[old_root]].concat();
            assert!(!check_consistency(old, &old_root, new, &new_root, &longer));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn paths_hold_at_random_sizes_and_no_changed_byte_does(
        new in 1_u64..5_000, a in any::<u64>(), b in any::<u64>(), at in any::<u64>(), byte in 0_usize..32,
    ) {
        let log = Log::of_size(new);
        let (index, old) = (a % new, 1 + b % new);
        let (new_root, old_root) = (log.root(new), log.root(old));
        prop_assert_eq!(log.tree.root(), new_root);
        let leaf = log.leaves[index as usize];
        let mut path = log.inclusion(index, new);
        prop_assert!(check_inclusion(index, new, &leaf, &path, &new_root));
        if !path.is_empty() {
            let at = (at % path.len() as u64) as usize;
            path[at] = flipped(&path[at], byte);
            prop_assert!(!check_inclusion(index, new, &leaf, &path, &new_root));
        }
        let mut path = log.consistency(old, new);
        prop_assert!(check_consistency(old, &old_root, new, &new_root, &path));
        if !path.is_empty() {
            let at = (at % path.len() as u64) as usize;
            path[at] = flipped(&path[at], byte);
            prop_assert!(!check_consistency(old, &old_root, new, &new_root, &path));
        }
    }

    /// Whatever an old log had changed, dropped or put in, its head does not lead to the new one.
    #[test]
    fn a_rewritten_log_continues_no_old_one(
        new in 2_u64..300, b in any::<u64>(), c in any::<u64>(), drop in any::<bool>(),
    ) {
        let honest = Log::of_size(new);
        let old = 1 + b % (new - 1);
        let at = (c % old) as usize;
        let mut rewritten = Log::default();
        for (index, leaf) in honest.leaves.iter().enumerate() {
            match (index == at, drop) {
                (true, true) => {}
                (true, false) => rewritten.push(flipped(leaf, 5)),
                (false, _) => rewritten.push(*leaf),
            }
        }
        let size = rewritten.tree.size();
        if size >= old {
            let path = rewritten.consistency(old, size);
            prop_assert!(!check_consistency(old, &honest.root(old), size, &rewritten.tree.root(), &path));
        }
    }
}

#[test]
fn sizes_near_the_end_of_u64_do_not_overflow() {
    let size = u64::MAX;
    let mut asked = 0_usize;
    let mut node = |_| {
        asked += 1;
        Ok::<_, Infallible>(Digest::from_bytes([1; 32]))
    };
    let path = inclusion_path(size - 1, size, &mut node).unwrap();
    assert!(!check_inclusion(size - 1, size, &Digest::from_bytes([2; 32]), &path, &Digest::from_bytes([3; 32])));
    assert!(consistency_path((1 << 63) + 1, size, &mut node).unwrap().len() <= MAX_LOG_PATH);
    assert!(asked < 4_096);
}

fn place() -> Place {
    Place { point: 3, layer: 1 }
}

fn every_entry() -> [Entry; 13] {
    let (job, epoch, worker) = (job(1).id(), LeaseEpoch(4), keys(3).id());
    let (digest, dispute) = (Digest::from_bytes([6; 32]), DisputeId::from_bytes([5; 32]));
    [
        Entry::Submitted { job },
        Entry::Assigned { job, epoch, worker },
        Entry::Result { job, epoch, receipt: digest },
        Entry::Statement { job, statement: digest },
        Entry::Refuted { job, worker, place: place() },
        Entry::Withdrawn { job, epoch },
        Entry::Committed { job, epoch, commitment: RunCommitment::from_bytes([7; 32]) },
        Entry::Anchored { chain: 0, anchor: digest },
        Entry::Drawn { job, lockstep: false, secret: DrawSecret { number: 5, secret: digest }, auditors: 2 },
        Entry::Disputed { job, dispute },
        Entry::Transcript { job, dispute, index: 3, digest },
        Entry::Judged { job, dispute, verdict: digest },
        Entry::Ledger { first: 8, count: 2, digest },
    ]
}

#[test]
fn entries_have_one_encoding_and_their_leaves_depend_on_every_byte() {
    let blind = Blind::derive(&SECRET, 0);
    assert_ne!(blind, Blind::derive(&SECRET, 1));
    assert_ne!(blind, Blind::derive(&[8; 32], 0));
    let mut leaves = std::collections::BTreeSet::new();
    for entry in every_entry() {
        let bytes = to_bytes(&entry);
        assert_eq!(from_bytes(&bytes), Ok(entry));
        leaves.insert(leaf_hash(&blind, &entry));
        leaves.insert(leaf_hash(&Blind::derive(&SECRET, 1), &entry));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            if let Ok(other) = from_bytes::<Entry>(&changed) {
                assert_ne!(leaf_hash(&blind, &other), leaf_hash(&blind, &entry));
            }
        }
    }
    assert_eq!(leaves.len(), 26);
    assert!(from_bytes::<Entry>(&[14; 34]).is_err());
}

/// A receipt with an audit that matched and one that was wrong, its log among entries of other jobs, and the first head.
fn story() -> (Receipt, Log, SignedHead) {
    let job = job(1);
    let id = job.id();
    let runs = [run(&keys(10), &job, LeaseEpoch(3)), run(&keys(11), &job, LeaseEpoch(5))];
    let mut wrong_roots = right_roots(id);
    wrong_roots[0] = root(0xee);
    let wrong = run_with(&keys(12), &job, LeaseEpoch(8), wrong_roots);
    let mut log = Log::default();
    let other = |number: u8| Entry::Submitted { job: crate::testing::job(number).id() };
    let assigned = |epoch, worker: u8| Entry::Assigned { job: id, epoch: LeaseEpoch(epoch), worker: keys(worker).id() };
    let result = |epoch, receipt| Entry::Result { job: id, epoch: LeaseEpoch(epoch), receipt };
    let committed =
        |epoch| Entry::Committed { job: id, epoch: LeaseEpoch(epoch), commitment: RunCommitment::from_bytes([7; 32]) };
    let worker = runs[0].receipt.clone();
    let mut receipt = Receipt::accepted(job, worker.clone(), runs[0].output.clone(), &keys(1), Millis(5));
    receipt.add_audit(runs[1].receipt.clone(), &keys(1), Millis(6));
    receipt.add_audit(wrong.receipt.clone(), &keys(1), Millis(6));
    let refutation = Refutation {
        worker: keys(12).id(),
        receipt: wrong.receipt.receipt.digest(),
        place: place(),
        dispute: DisputeId::from_bytes([5; 32]),
        kind: VerdictKind::Proven,
    };
    receipt.add_refutation(&refutation, &keys(1), Millis(7));
    receipt.check().unwrap();
    for entry in [other(2), Entry::Submitted { job: id }, assigned(3, 10), committed(3), other(3)] {
        log.enter(entry);
    }
    let first = log.head(2);
    for entry in [result(3, worker.receipt.digest()), assigned(5, 11), assigned(8, 12), other(4)] {
        log.enter(entry);
    }
    log.enter(committed(8));
    log.enter(committed(5));
    log.enter(result(8, wrong.receipt.receipt.digest()));
    log.enter(result(5, runs[1].receipt.receipt.digest()));
    log.enter(Entry::Refuted { job: id, worker: keys(12).id(), place: place() });
    for signed in &receipt.statements {
        log.enter(Entry::Statement { job: id, statement: signed.statement.digest() });
    }
    log.enter(other(5));
    (receipt, log, first)
}

fn check_all(proof: &LogProof, receipt: &Receipt, old: &SignedHead) -> Result<Coverage, LogError> {
    proof.check()?;
    proof.check_follows(old)?;
    proof.check_receipt(receipt)
}

#[test]
fn a_proof_covers_its_receipt_and_no_changed_character_of_it_does() {
    let (receipt, log, old) = story();
    let proof = log.proof(receipt.job.id(), Some(old.head.size));
    assert_eq!(proof.entries.len(), 15);
    assert_eq!(check_all(&proof, &receipt, &old), Ok(Coverage::default()));
    let json = proof.to_json();
    assert_eq!(LogProof::from_json(&json).as_ref(), Ok(&proof));
    for at in 0..json.len() {
        let mut bytes = json.clone().into_bytes();
        bytes[at] = if bytes[at] == b'1' { b'2' } else { b'1' };
        let changed = String::from_utf8(bytes).unwrap();
        let read = LogProof::from_json(&changed).and_then(|proof| check_all(&proof, &receipt, &old));
        assert!(read.is_err(), "byte {at} of the proof does not matter");
    }
}

#[test]
fn a_proof_that_lacks_or_moves_an_entry_does_not_cover_the_receipt() {
    let (receipt, log, _) = story();
    let proof = log.proof(receipt.job.id(), None);
    for at in 0..proof.entries.len() {
        let mut lacking = proof.clone();
        let lost = lacking.entries.remove(at).entry;
        lacking.check().unwrap();
        let found = lacking.check_receipt(&receipt);
        match lost {
            // The refutation is there as a statement too.
            Entry::Refuted { .. } => assert!(found.is_ok()),
            _ => assert!(matches!(found, Err(LogError::Missing { .. })), "{lost:?}: {found:?}"),
        }
    }
    // The coordinator gave out the job, or let the worker commit, after it had the result.
    for moved in [log.entries[2], log.entries[3]] {
        let mut late = Log::default();
        log.entries.iter().filter(|entry| **entry != moved).for_each(|entry| late.enter(*entry));
        late.enter(moved);
        let found = late.proof(receipt.job.id(), None).check_receipt(&receipt);
        assert!(matches!(found, Err(LogError::Causality { .. })), "{found:?}");
    }
    // It took two results of one lease.
    let (job, epoch) = (receipt.job.id(), receipt.worker.receipt.epoch);
    let mut late = story().1;
    late.enter(Entry::Result { job, epoch, receipt: Digest::from_bytes([1; 32]) });
    assert_eq!(late.proof(job, None).check_receipt(&receipt), Err(LogError::Contradiction { epoch }));
    // It found the answer itself wrong, and stated something later.
    late = story().1;
    late.enter(Entry::Refuted { job, worker: receipt.worker.receipt.worker, place: place() });
    late.enter(Entry::Statement { job, statement: Digest::from_bytes([2; 32]) });
    let coverage = late.proof(job, None).check_receipt(&receipt);
    let found = Coverage { other_statements: 1, refuted: Some(place()), withdrawn: false };
    assert_eq!(coverage, Ok(found));
    // Its worker took it back.
    late.enter(Entry::Withdrawn { job, epoch });
    let coverage = late.proof(job, None).check_receipt(&receipt);
    assert_eq!(coverage, Ok(Coverage { withdrawn: true, ..found }));
    // It let a worker commit twice to one run.
    late = story().1;
    late.enter(Entry::Committed { job, epoch, commitment: RunCommitment::from_bytes([8; 32]) });
    assert_eq!(late.proof(job, None).check_receipt(&receipt), Err(LogError::Contradiction { epoch }));
}

#[test]
fn two_heads_show_what_became_of_the_log() {
    let (_, log, old) = story();
    let new = log.head(9);
    let path = log.consistency(old.head.size, new.head.size);
    assert_eq!(old.followed_by(&new, Some(&path)), Ok(()));
    assert_eq!(new.followed_by(&log.head(10), None), Ok(()));
    assert!(matches!(old.followed_by(&new, None), Err(LogError::NoConsistency { old: 5, .. })));
    assert!(matches!(old.followed_by(&new, Some(&path[1..])), Err(LogError::NotConsistent { .. })));
    assert!(matches!(new.followed_by(&old, Some(&path)), Err(LogError::Older { .. })));
    let signed = |head: LogHead| head.sign(&keys(1));
    let shrunk = signed(LogHead { time: Millis(10), ..old.head });
    assert!(matches!(new.followed_by(&shrunk, None), Err(LogError::Shrunk { old: 19, new: 5 })));
    let forked = signed(LogHead { root: Digest::from_bytes([1; 32]), ..new.head });
    assert!(matches!(new.followed_by(&forked, None), Err(LogError::Equivocation { size: 19, .. })));
    let other = LogHead { log: keys(2).id(), ..new.head }.sign(&keys(2));
    assert!(matches!(new.followed_by(&other, None), Err(LogError::AnotherLog { .. })));
    let unsigned = SignedHead { head: forked.head, signature: new.signature };
    assert!(matches!(new.followed_by(&unsigned, None), Err(LogError::HeadSignature { .. })));
    // Everything continues the log of no entries, which has one root.
    let empty = Log::default().head(1);
    assert_eq!(empty.followed_by(&new, None), Ok(()));
    let wrong = signed(LogHead { root: Digest::from_bytes([1; 32]), ..empty.head });
    assert_eq!(wrong.check(), Err(LogError::EmptyRoot));
    assert_eq!(from_bytes::<SignedHead>(&to_bytes(&new)), Ok(new));
    assert_eq!(SignedHead::from_json(&new.to_json()), Ok(new));
    assert!(SignedHead::from_json(&" ".repeat(5_000)).is_err());
}

#[test]
fn records_that_bind_the_coordinator_make_entries() {
    use crate::machine::Record;
    let (job, epoch, node) = (job(1).id(), LeaseEpoch(3), keys(10).id());
    assert_eq!(
        Entry::of_record(&Record::Assigned { job, epoch, node }),
        Some(Entry::Assigned { job, epoch, worker: node })
    );
    let result = run(&keys(10), &crate::testing::job(1), epoch);
    let receipt = result.receipt.receipt.digest();
    let ran = Record::Ran {
        job,
        result: Box::new(result),
        before: Vec::new(),
        salt: crate::testing::salt(1),
        operator: None,
    };
    assert_eq!(Entry::of_record(&ran), Some(Entry::Result { job, epoch, receipt }));
    let quarantined = Record::Quarantined { node, job, place: place(), kind: VerdictKind::Proven };
    assert_eq!(Entry::of_record(&quarantined), Some(Entry::Refuted { job, worker: node, place: place() }));
    let commitment = RunCommitment::from_bytes([7; 32]);
    assert_eq!(
        Entry::of_record(&Record::Committed { job, epoch, commitment }),
        Some(Entry::Committed { job, epoch, commitment })
    );
    assert_eq!(Entry::of_record(&Record::Retracted { job, epoch }), Some(Entry::Withdrawn { job, epoch }));
    let secret = DrawSecret { number: 5, secret: Digest::from_bytes([6; 32]) };
    let draw = crate::machine::lockstep_draw(&secret, job, &crate::testing::job(1).nonce);
    assert_eq!(
        Entry::of_record(&Record::Drawn { job, draw, auditors: 2 }),
        Some(Entry::Drawn { job, lockstep: true, secret, auditors: 2 })
    );
    assert_eq!(Entry::of_record(&Record::Finished { job }), None);
    let postings = [Posting::Issue { to: node, amount: 5 }];
    let digest = crate::ledger::batch_digest(7, &postings);
    assert_eq!(Entry::of_postings(7, &postings), Some(Entry::Ledger { first: 7, count: 1, digest }));
    assert_ne!(crate::ledger::batch_digest(8, &postings), digest);
    assert_eq!(Entry::of_postings(7, &[]), None);
}
