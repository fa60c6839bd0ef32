//! Draws, checked by who holds a receipt and the proof of its job.

use std::sync::LazyLock;

use super::*;
use crate::machine::{AuditDraw, DrawChain, audit_draw, lockstep_draw};

static CHAIN: LazyLock<DrawChain> = LazyLock::new(|| DrawChain::new(&[3; 32], 0));

fn anchored() -> Entry {
    Entry::Anchored { chain: CHAIN.chain(), anchor: CHAIN.anchor() }
}

/// The draw about the first run of the story's receipt.
fn draw(receipt: &Receipt, number: u64) -> AuditDraw {
    audit_draw(&CHAIN.secret(number).unwrap(), &receipt.worker.receipt.head, &receipt.job.nonce)
}

fn drawn(receipt: &Receipt, draw: &AuditDraw) -> Entry {
    Entry::Drawn { job: receipt.job.id(), lockstep: draw.lockstep, secret: draw.secret, auditors: 2 }
}

/// The story's log with other entries put in, each before the entry that is at its place.
fn with(entries: &[(usize, Entry)]) -> (Receipt, LogProof) {
    let (receipt, log, _) = story();
    let mut changed = Log::default();
    for (at, entry) in log.entries.iter().enumerate() {
        entries.iter().filter(|(place, _)| *place == at).for_each(|(_, entry)| changed.enter(*entry));
        changed.enter(*entry);
    }
    let proof = changed.proof(receipt.job.id(), None);
    proof.check().unwrap();
    proof.check_receipt(&receipt).unwrap();
    (receipt, proof)
}

// What the log of the story has at these places: the job, its first assignment, what follows its first result.
const SUBMITTED: usize = 1;
const ASSIGNED: usize = 2;
const AFTER_RESULT: usize = 6;

#[test]
fn a_draw_is_found_and_gives_the_ticket_that_was_drawn() {
    let (receipt, ..) = story();
    let made = draw(&receipt, 1_500);
    let (receipt, proof) = with(&[(0, anchored()), (AFTER_RESULT, drawn(&receipt, &made))]);
    let checked = CheckedDraw { number: 1_500, lockstep: false, ticket: Some(made.ticket()), auditors: 2 };
    assert_eq!(proof.check_draws(&receipt), Ok(vec![checked]));
    assert_eq!(LogProof::from_json(&proof.to_json()).as_ref(), Ok(&proof));
    // Before the job starts nothing is known of it but its id.
    let before = lockstep_draw(&CHAIN.secret(0).unwrap(), receipt.job.id(), &receipt.job.nonce);
    let (receipt, proof) = with(&[(0, anchored()), (ASSIGNED, drawn(&receipt, &before))]);
    let checked = CheckedDraw { number: 0, lockstep: true, ticket: Some(before.ticket()), auditors: 2 };
    assert_eq!(proof.check_draws(&receipt), Ok(vec![checked]));
    // No draws are no lie.
    assert_eq!(with(&[]).1.check_draws(&receipt), Ok(Vec::new()));
}

#[test]
fn a_draw_that_the_coordinator_chose_is_found_out() {
    let (receipt, ..) = story();
    let made = drawn(&receipt, &draw(&receipt, 7));
    let found = |entries: &[(usize, Entry)]| {
        let (receipt, proof) = with(entries);
        proof.check_draws(&receipt).unwrap_err()
    };
    let wrong = LogError::Draw { number: 7 };
    // A secret of no chain, of another number, used twice, or one of two.
    let chosen = |secret| Entry::Drawn { job: receipt.job.id(), lockstep: false, secret, auditors: 0 };
    let other = DrawSecret { number: 7, secret: Digest::from_bytes([1; 32]) };
    assert_eq!(found(&[(0, anchored()), (AFTER_RESULT, chosen(other))]), wrong);
    let renamed = DrawSecret { number: 7, ..CHAIN.secret(8).unwrap() };
    assert_eq!(found(&[(0, anchored()), (AFTER_RESULT, chosen(renamed))]), wrong);
    assert_eq!(found(&[(0, anchored()), (AFTER_RESULT, made), (AFTER_RESULT, made)]), wrong);
    let second = Entry::Anchored { chain: 0, anchor: Digest::from_bytes([2; 32]) };
    assert_eq!(found(&[(0, anchored()), (0, second), (AFTER_RESULT, made)]), wrong);
    // Nothing bound the coordinator before it drew.
    assert!(matches!(found(&[(AFTER_RESULT, made)]), LogError::Missing { .. }));
    let late = found(&[(AFTER_RESULT, made), (AFTER_RESULT, anchored())]);
    assert!(matches!(late, LogError::Causality { .. }));
    // It drew too early, or too late.
    let early = found(&[(0, anchored()), (ASSIGNED, made)]);
    assert!(matches!(early, LogError::Causality { .. }));
    let before = lockstep_draw(&CHAIN.secret(0).unwrap(), receipt.job.id(), &receipt.job.nonce);
    for at in [SUBMITTED, AFTER_RESULT] {
        let late = found(&[(0, anchored()), (at, drawn(&receipt, &before))]);
        assert!(matches!(late, LogError::Causality { .. }), "{at}");
    }
}
