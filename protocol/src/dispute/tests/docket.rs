//! All disputes of a coordinator.

use std::sync::Arc;

use super::*;
use crate::limits::{GRACE_MS, MAX_DISPUTES};

fn lowering() -> Arc<dyn Lowering> {
    Arc::new(small())
}

/// A dispute of other keys about the same job, numbered.
fn numbered(number: u16) -> Terms {
    let seed = |side: u8| {
        let mut seed = [side; 32];
        seed[..2].copy_from_slice(&number.to_le_bytes());
        Keypair::from_seed(seed)
    };
    let honest = Run::honest(&Toy::new(1, 3, &the_job().tokens));
    let liar = honest.clone().lie(0, 1);
    let claim = |keys: &Keypair, run: &Run| {
        let roots = vec![blake3::hash(&run.input).into(), run.root(), root(1), root(2)];
        Claim::from(run_with(keys, &the_job(), LeaseEpoch(1 + u64::from(number)), roots).receipt)
    };
    let (a, b) = (claim(&seed(1), &liar), claim(&seed(2), &honest));
    Terms::between(coordinator().id(), the_job().header(), crate::testing::LAYERS, [a, b], Vec::new(), [BUDGET; 2])
        .unwrap()
}

#[test]
fn the_same_terms_name_one_dispute_and_two_runs_are_disputed_once() {
    let honest = Run::honest(&small());
    let terms = terms(&honest.clone().lie(4, 1), &honest);
    let mut docket = Docket::new(coordinator());
    let (id, out) = docket.open(Millis(1), terms.clone(), lowering(), None).unwrap();
    assert_eq!((out.entries.len(), out.actions.len()), (1, 2));
    let (again, more) = docket.open(Millis(2), terms.clone(), lowering(), None).unwrap();
    assert_eq!((again, more.entries.len(), more.actions), (id, 0, out.actions));
    let other = Terms { budgets_ms: [7, 7], ..terms.clone() };
    assert_eq!(docket.open(Millis(3), other, lowering(), None).unwrap_err(), DocketError::Again);
    // The same keys may differ about the job again, under new leases.
    let run = terms.claimant.receipt().unwrap();
    let newer =
        run_with(&key_of(Side::Claimant), &the_job(), LeaseEpoch(run.receipt.epoch.0 + 7), run.receipt.roots.clone())
            .receipt;
    let newer = Terms { claimant: newer.into(), ..terms.clone() };
    assert!(docket.open(Millis(3), newer, lowering(), None).is_ok());
    let foreign = Terms { coordinator: keys(1).id(), ..terms };
    let refused = docket.open(Millis(3), foreign, lowering(), None).unwrap_err();
    assert_eq!(refused, DocketError::AnotherCoordinator(keys(1).id()));
}

#[test]
fn nobody_joins_after_the_cutoff() {
    let mut docket = Docket::new(coordinator());
    let toy: Arc<dyn Lowering> = Arc::new(Toy::new(1, 3, &the_job().tokens));
    assert!(docket.open(Millis(100), numbered(0), Arc::clone(&toy), Some(Millis(100))).is_ok());
    let late = docket.open(Millis(101), numbered(1), toy, Some(Millis(100)));
    assert_eq!(late.unwrap_err(), DocketError::TooLate(Millis(100)));
}

#[test]
fn disputes_run_side_by_side_up_to_a_limit_and_ended_ones_make_room() {
    let mut docket = Docket::new(coordinator());
    let toy: Arc<dyn Lowering> = Arc::new(Toy::new(1, 3, &the_job().tokens));
    for number in 0..MAX_DISPUTES as u16 {
        let now = Millis(1_000 + u64::from(number));
        docket.open(now, numbered(number), Arc::clone(&toy), None).unwrap();
    }
    let full = docket.open(Millis(5_000), numbered(999), Arc::clone(&toy), None);
    assert_eq!(full.unwrap_err(), DocketError::Full);
    // The first ones fall silent first.
    assert_eq!(docket.next_wake(), Some(Millis(1_000 + BUDGET)));
    assert_eq!(docket.tick(Millis(1_001 + BUDGET)).len(), 2);
    let ended = docket.tick(Millis(1_001 + BUDGET + GRACE_MS));
    let verdicts = ended.iter().filter(|(id, _)| docket.get(id).unwrap().verdict().is_some());
    assert_eq!(verdicts.count(), 2);
    assert!(docket.open(Millis(900_000), numbered(999), toy, None).is_ok());
    let key = numbered(5).challenger.worker();
    assert_eq!(docket.of_key(&key).map(Referee::id).collect::<Vec<_>>(), [numbered(5).id()]);
}

#[test]
fn a_docket_goes_on_after_a_restart_and_charges_the_downtime_to_nobody() {
    let honest = Run::honest(&small());
    let terms = terms(&honest.clone().lie(4, 1), &honest);
    let mut docket = Docket::new(coordinator());
    let (_, out) = docket.open(Millis(1_000), terms, lowering(), None).unwrap();
    let mut restored = Docket::new(coordinator());
    let (id, out) = restored.restore(Millis(9_000_000), 8_990_000, out.entries, lowering()).unwrap();
    assert!(matches!(
        out.entries[..],
        [SignedEntry { entry: Entry { what: What::Credited { ms: 8_990_000 }, .. }, .. }]
    ));
    assert_eq!(out.actions.len(), 2);
    assert_eq!(restored.next_wake(), Some(Millis(8_991_000 + BUDGET)));
    assert!(restored.handle(Millis(9_000_001), id, Input::Tick).is_some());
    assert!(restored.handle(Millis(9_000_001), DisputeId::from_bytes([0; 32]), Input::Tick).is_none());
}
