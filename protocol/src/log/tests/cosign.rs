//! A worker follows one history.

use super::*;

#[test]
fn a_worker_cosigns_what_continues_the_last_head_that_it_cosigned() {
    let (receipt, log, old) = story();
    let new = log.head(9);
    let (size, worker, by) = (old.head.size, keys(11), keys(1).id());
    let path = log.consistency(size, new.head.size);
    let first = cosign(&worker, by, None, &old, 0, &[]).unwrap();
    assert_eq!((first.check(&old), first), (Ok(()), Cosignature::of(&old, &worker)));
    assert_eq!(from_bytes(&to_bytes(&first)), Ok(first));
    let next = cosign(&worker, by, Some(&old), &new, size, &path).unwrap();
    assert_eq!(next.check(&new), Ok(()));
    assert_eq!(next.check(&old), Err(LogError::AnotherHead { worker: worker.id() }));
    // The same head again is the same cosignature.
    assert_eq!(cosign(&worker, by, Some(&new), &new, 0, &[]), Ok(next));
    // The coordinator does not know which head the worker kept.
    let unknown = cosign(&worker, by, Some(&old), &new, 0, &[]);
    assert!(matches!(unknown, Err(LogError::NoConsistency { .. })));
    assert!(matches!(cosign(&worker, by, Some(&new), &old, size, &[]), Err(LogError::Older { .. })));
    // It shows another history.
    let forked = LogHead { root: Digest::from_bytes([1; 32]), ..new.head }.sign(&keys(1));
    assert!(matches!(cosign(&worker, by, Some(&old), &forked, size, &path), Err(LogError::NotConsistent { .. })));
    assert!(matches!(cosign(&worker, by, Some(&new), &forked, size, &path), Err(LogError::Equivocation { .. })));
    // It is somebody else, or not even that.
    assert!(matches!(cosign(&worker, worker.id(), None, &new, 0, &[]), Err(LogError::AnotherLog { .. })));
    let unsigned = SignedHead { signature: old.signature, ..new };
    assert!(matches!(cosign(&worker, by, None, &unsigned, 0, &[]), Err(LogError::HeadSignature { .. })));
    assert!(receipt.check().is_ok());
}

#[test]
fn a_proof_takes_cosignatures_of_its_head_each_worker_once() {
    let (receipt, log, old) = story();
    let good = log.proof(receipt.job.id(), None);
    assert_eq!(good.check(), Ok(()));
    let check = |cosignatures| LogProof { cosignatures, ..good.clone() }.check();
    assert_eq!(check(Vec::new()), Ok(()));
    let cosignature = good.cosignatures[0];
    let worker = cosignature.worker;
    assert_eq!(check(vec![cosignature; 2]), Err(LogError::CosignedTwice { worker }));
    assert_eq!(check(vec![Cosignature::of(&old, &keys(11))]), Err(LogError::AnotherHead { worker }));
    let foreign = Cosignature { worker: keys(12).id(), ..cosignature };
    assert!(matches!(check(vec![foreign]), Err(LogError::Cosignature { .. })));
    let many = (0..=crate::limits::MAX_COSIGNATURES).map(|_| cosignature).collect();
    assert!(matches!(check(many), Err(LogError::TooMany { .. })));
}
