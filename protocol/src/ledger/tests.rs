//! What the ledger keeps after every posting, whatever is posted.

use proptest::prelude::*;

use super::*;
use crate::canonical::{from_bytes, to_bytes};
use crate::ids::{Digest, DisputeId, JobId, LeaseEpoch, Millis};
use crate::limits::{MACS_PER_CREDIT, MAX_AWARDS};
use crate::log::{Blind, Entry, LeafProof, LogHead, Subtree, Tree, inclusion_path, leaf_hash};
use crate::testing::keys;

fn node(number: u8) -> NodeId {
    NodeId::from_bytes([number; 32])
}

fn lease(epoch: u64) -> Purpose {
    Purpose::Lease { job: JobId::from_bytes([1; 32]), epoch: LeaseEpoch(epoch) }
}

fn issue(to: u8, amount: u64) -> Posting {
    Posting::Issue { to: node(to), amount }
}

fn hold(from: u8, purpose: Purpose, amount: u64) -> Posting {
    Posting::Hold { from: node(from), purpose, amount }
}

fn forfeit(from: u8, purpose: Purpose, awards: &[(u8, u64)]) -> Posting {
    let awards = awards.iter().map(|(to, amount)| Award { to: node(*to), amount: *amount }).collect();
    Posting::Forfeit { node: node(from), purpose, awards }
}

/// The sums, from the accounts alone.
fn is_conserved(ledger: &Ledger) {
    let totals = ledger.totals();
    let free: u128 = ledger.accounts().map(|(_, account)| u128::from(account.free())).sum();
    let held: u128 =
        ledger.accounts().flat_map(|(_, account)| account.held()).map(|(_, amount)| u128::from(amount)).sum();
    assert_eq!((free, held), (totals.free.into(), totals.held.into()));
    assert_eq!(free + held, u128::from(totals.issued) - u128::from(totals.burned));
}

/// A run that is paid, a lie that is punished, and a dispute.
fn story() -> Vec<Posting> {
    let dispute = Purpose::Dispute { dispute: DisputeId::from_bytes([9; 32]) };
    vec![
        issue(1, 100),
        issue(2, 100),
        hold(1, Purpose::Admission {}, 30),
        hold(1, lease(3), 20),
        hold(2, dispute, 100),
        Posting::Pay { to: node(1), purpose: lease(3), amount: 7 },
        Posting::Release { node: node(1), purpose: lease(3) },
        // The loser keeps a part, the winner is paid, the rest is burned.
        forfeit(2, dispute, &[(1, 40), (2, 10)]),
    ]
}

#[test]
fn postings_move_what_they_say() {
    let ledger = Ledger::fold(&story()).unwrap();
    assert_eq!((ledger.free(&node(1)), ledger.free(&node(2)), ledger.free(&node(3))), (117, 10, 0));
    assert_eq!(ledger.held(&node(1), &Purpose::Admission {}), Some(30));
    assert_eq!(ledger.held(&node(1), &lease(3)), None);
    assert_eq!(ledger.totals(), Totals { issued: 207, burned: 50, free: 127, held: 30 });
    assert_eq!(ledger.postings(), 8);
    is_conserved(&ledger);
}

#[test]
fn a_refused_posting_changes_nothing() {
    let mut ledger = Ledger::fold(&story()).unwrap();
    let before = ledger.clone();
    let admission = Purpose::Admission {};
    let too_many: Vec<_> = (0..=MAX_AWARDS).map(|_| (3, 0)).collect();
    let overdrawn = LedgerError::Overdrawn { node: node(2), free: 10, needed: 11 };
    let refused = [
        (issue(1, u64::MAX), LedgerError::Overflow),
        (Posting::Pay { to: node(9), purpose: lease(1), amount: u64::MAX - 206 }, LedgerError::Overflow),
        (hold(2, lease(4), 11), overdrawn),
        (hold(3, lease(4), 1), LedgerError::Overdrawn { node: node(3), free: 0, needed: 1 }),
        (
            Posting::Release { node: node(1), purpose: lease(3) },
            LedgerError::NotHeld { node: node(1), purpose: lease(3) },
        ),
        (forfeit(3, admission, &[]), LedgerError::NotHeld { node: node(3), purpose: admission }),
        (forfeit(1, admission, &[(2, 31)]), LedgerError::AwardsExceed { node: node(1), held: 30 }),
        (forfeit(1, admission, &[(2, u64::MAX), (3, u64::MAX)]), LedgerError::AwardsExceed { node: node(1), held: 30 }),
        (forfeit(1, admission, &too_many), LedgerError::TooManyAwards { found: MAX_AWARDS + 1 }),
    ];
    for (posting, error) in refused {
        assert_eq!(ledger.post(&posting), Err(error), "{posting:?}");
        assert_eq!(ledger, before);
    }
    // All that 64 bits count is possible.
    ledger.post(&issue(1, u64::MAX - 207)).unwrap();
    is_conserved(&ledger);
}

#[test]
fn credits_held_twice_for_one_purpose_add_up() {
    let mut ledger = Ledger::fold(&[issue(1, 10), hold(1, lease(1), 4), hold(1, lease(1), 5)]).unwrap();
    assert_eq!(ledger.held(&node(1), &lease(1)), Some(9));
    ledger.post(&Posting::Release { node: node(1), purpose: lease(1) }).unwrap();
    assert_eq!(ledger.free(&node(1)), 10);
}

#[test]
fn work_is_paid_by_the_started_million() {
    assert_eq!(price_of_work(0), 0);
    assert_eq!((price_of_work(1), price_of_work(MACS_PER_CREDIT)), (1, 1));
    assert_eq!((price_of_work(MACS_PER_CREDIT + 1), price_of_work(u64::MAX)), (2, u64::MAX / MACS_PER_CREDIT + 1));
}

#[test]
fn a_lie_costs_what_it_brings_on_average() {
    assert_eq!((deterrent(7, 1_000), deterrent(7, 2_000), deterrent(0, 1)), (0, 0, 0));
    assert_eq!((deterrent(1, 500), deterrent(10, 100), deterrent(1, 999)), (1, 90, 1));
    assert_eq!((deterrent(1, 0), deterrent(u64::MAX, 1)), (u64::MAX, u64::MAX));
    for (gain, per_mille) in [(17, 3), (1_000_000, 50), (999, 333), (u64::MAX >> 12, 1)] {
        let price = u128::from(deterrent(gain, per_mille));
        let (gain, caught) = (u128::from(gain), u128::from(per_mille));
        assert!(price * caught >= gain * (1_000 - caught));
        assert!((price - 1) * caught < gain * (1_000 - caught));
    }
}

fn amount() -> impl Strategy<Value = u64> {
    prop_oneof![0_u64..50, Just(u64::MAX), Just(u64::MAX - 1), Just(u64::MAX / 2), any::<u64>()]
}

fn purpose() -> impl Strategy<Value = Purpose> {
    prop_oneof![
        Just(Purpose::Admission {}),
        (1_u64..3).prop_map(lease),
        (0_u8..2).prop_map(|byte| Purpose::Dispute { dispute: DisputeId::from_bytes([byte; 32]) }),
    ]
}

fn posting() -> impl Strategy<Value = Posting> {
    let award = (0_u8..4, amount()).prop_map(|(to, amount)| Award { to: node(to), amount });
    prop_oneof![
        (0_u8..4, amount()).prop_map(|(to, amount)| issue(to, amount)),
        (0_u8..4, purpose(), amount()).prop_map(|(from, purpose, amount)| hold(from, purpose, amount)),
        (0_u8..4, purpose()).prop_map(|(of, purpose)| Posting::Release { node: node(of), purpose }),
        (0_u8..4, purpose(), proptest::collection::vec(award, 0..4))
            .prop_map(|(of, purpose, awards)| Posting::Forfeit { node: node(of), purpose, awards }),
        (0_u8..4, purpose(), amount()).prop_map(|(to, purpose, amount)| Posting::Pay { to: node(to), purpose, amount }),
    ]
}

proptest! {
    #[test]
    fn nothing_comes_from_nowhere(postings in proptest::collection::vec(posting(), 0..120)) {
        let mut ledger = Ledger::default();
        let mut made = Vec::new();
        for posting in postings {
            prop_assert_eq!(&from_bytes::<Posting>(&to_bytes(&posting)).unwrap(), &posting);
            let before = ledger.clone();
            match ledger.post(&posting) {
                Ok(()) => made.push(posting),
                Err(_) => prop_assert_eq!(&ledger, &before),
            }
            is_conserved(&ledger);
        }
        prop_assert_eq!(&Ledger::fold(&made).unwrap(), &ledger);
        let export = Export::of(&ledger, node(9), made);
        prop_assert_eq!(Export::from_json(&export.to_json()).unwrap().check(None).unwrap(), ledger);
    }

    #[test]
    fn arbitrary_bytes_are_no_posting_or_exactly_one(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(posting) = from_bytes::<Posting>(&bytes) {
            prop_assert_eq!(to_bytes(&posting), bytes);
        }
    }
}

#[test]
fn an_export_is_checked_from_nothing_and_from_where_the_last_one_ended() {
    let postings = story();
    let middle = Ledger::fold(&postings[..5]).unwrap();
    let first = Export::of(&middle, node(9), postings[..5].to_vec());
    assert_eq!(first.check(None), Ok(middle.clone()));
    let end = Ledger::fold(&postings).unwrap();
    let second = Export::of(&end, node(9), postings[5..].to_vec());
    assert_eq!(second.check(Some(&middle)), Ok(end));
    assert_eq!(second.check(None), Err(ExportError::Order { line: 0, expected: 0, found: 5 }));
}

#[test]
fn no_changed_character_of_an_export_passes() {
    let postings = story();
    let json = Export::of(&Ledger::fold(&postings).unwrap(), node(9), postings).to_json();
    let coordinator = json.find("coordinator").unwrap() + "coordinator\":\"".len();
    for at in (0..json.len()).filter(|at| !(coordinator..coordinator + 64).contains(at)) {
        let mut bytes = json.clone().into_bytes();
        bytes[at] = if bytes[at] == b'1' { b'2' } else { b'1' };
        let changed = String::from_utf8(bytes).unwrap();
        let result = Export::from_json(&changed).and_then(|export| export.check(None));
        // Which job credits were held for, or what a purpose is called that is over, changes no account.
        if result.is_ok() {
            assert!(json[..at].contains("\"history\":"), "byte {at} of {json}");
        }
    }
}

/// An export with the entries of a log of a job, the postings in two batches, and an entry after them.
fn logged() -> Export {
    let postings = story();
    let mut export = Export::of(&Ledger::fold(&postings).unwrap(), keys(1).id(), postings.clone());
    let entries = [
        Entry::Submitted { job: JobId::from_bytes([1; 32]) },
        Entry::of_postings(0, &postings[..5]).unwrap(),
        Entry::of_postings(5, &postings[5..]).unwrap(),
        Entry::Submitted { job: JobId::from_bytes([2; 32]) },
    ];
    let mut tree = Tree::default();
    let mut nodes = std::collections::BTreeMap::<Subtree, Digest>::new();
    for (index, entry) in (0_u64..).zip(&entries) {
        let made = |at, hash| {
            nodes.insert(at, hash);
            Ok::<_, std::convert::Infallible>(())
        };
        tree.append(leaf_hash(&Blind::derive(&[9; 32], index), entry), made).unwrap();
    }
    let path = |index| inclusion_path(index, 4, |at| Ok::<_, std::convert::Infallible>(nodes[&at])).unwrap();
    export.head = Some(LogHead::of(&tree, keys(1).id(), Millis(5)).sign(&keys(1)));
    let leaf = |index: u64| {
        let (blind, entry) = (Blind::derive(&[9; 32], index), entries[index as usize]);
        LeafProof { index, blind, entry, path: path(index) }
    };
    export.batches = vec![leaf(1), leaf(2)];
    export
}

#[test]
fn batches_of_postings_are_in_the_log_or_the_export_is_refused() {
    let good = logged();
    assert!(good.check(None).is_ok());
    assert_eq!(Export::from_json(&good.to_json()).as_ref(), Ok(&good));
    let refused = |change: &dyn Fn(&mut Export)| {
        let mut export = good.clone();
        change(&mut export);
        export.check(None).unwrap_err()
    };
    let is_log = |error: ExportError| matches!(error, ExportError::Log(_));
    assert!(is_log(refused(&|export| export.head = None)));
    assert!(is_log(refused(&|export| export.coordinator = keys(2).id())));
    assert!(is_log(refused(&|export| export.batches[0].blind = Blind::derive(&[8; 32], 1))));
    assert!(is_log(refused(&|export| export.batches[1].path[0] = Digest::from_bytes([0; 32]))));
    let batch = |error: ExportError| matches!(error, ExportError::Batch { .. });
    assert!(batch(refused(&|export| export.batches.swap(0, 1))));
    assert!(batch(refused(&|export| export.batches[1] = export.batches[0].clone())));
    // A history that other accounts follow from, but not the one in the log.
    let other = refused(&|export| {
        let mut postings = story();
        postings.swap(0, 1);
        let changed = Export::of(&Ledger::fold(&postings).unwrap(), export.coordinator, postings);
        *export = Export { batches: export.batches.clone(), head: export.head, ..changed };
    });
    assert_eq!(other, ExportError::Batch { index: 1 });
}
