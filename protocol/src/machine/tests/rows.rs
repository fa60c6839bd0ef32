//! Rows that are handed over: who is wrong about them, by proof or by nobody's, and what that costs whom.

use super::crews::{Member, crew_of, footprint, join, rejected, run_crew, send_all, shell};
use super::generations::{WORDS, spec_of, text};
use super::*;
use crate::canonical::{from_bytes, to_bytes};
use crate::hand_over::{HandOver, HandOverProof, ProofError, SignedHandOver};
use crate::ledger::Purpose;
use crate::log::Entry;
use crate::machine::credits::bond;
use crate::messages::FailureCode;
use crate::testing::roots_of_words;
use crate::trace::RowTree;

/// Columns of the rows that are handed over here.
const COLUMNS: usize = 300;

/// A pipeline of three that has begun: the one with the key 1 has two layers, the others one each.
pub(super) fn pipeline() -> (Shell, Vec<Member>, Vec<Root>) {
    let mut shell = shell(&[2, 1, 1]);
    shell.feed(Input::Submit(spec_of(1, NEVER)));
    let crew = crew_of(&shell);
    (shell, crew, roots_of_words(text(1).id(), &WORDS))
}

/// What the first member of the pipeline signs of rows of some length after rows of some length, and those.
fn piece(member: &Member, first: usize, count: usize) -> (HandOver, Vec<u8>, Vec<i32>) {
    let rows: Vec<i32> = (0..(first + count) * COLUMNS).map(|at| (at as i32).wrapping_mul(7_919)).collect();
    let (earlier, values) = rows.split_at(first * COLUMNS);
    let mut tree = RowTree::new(COLUMNS);
    tree.push_rows(earlier);
    let (before, state) = (tree.root(), tree.state());
    tree.push_rows(values);
    let (coordinator, job, epoch) = (config().coordinator, member.job.id(), member.epoch);
    let (layer, pass, worker) = (2, 0, keys(1).id());
    let (first, rows) = (first as u32, (first + count) as u32);
    let (values_root, root) = (HandOver::values_root(values), tree.root());
    let said =
        HandOver { coordinator, job, epoch, layer, pass, first, rows, before, values: values_root, root, worker };
    (said, state, values.to_vec())
}

pub(super) fn proof(said: HandOver, by: u8, state: Vec<u8>, values: Vec<i32>) -> HandOverProof {
    HandOverProof::Rows { signed: said.sign(&keys(by)), state, values }
}

fn accuse(shell: &mut Shell, by: &Member, proof: HandOverProof) -> Vec<Action> {
    let (node, job, epoch) = (by.node, by.job.id(), by.epoch);
    shell.feed(Input::Proof { node, job, epoch, proof: Box::new(proof) })
}

/// The sender lost its bond and everything else, and nobody else lost anything; the job goes on with somebody else.
pub(super) fn assert_convicted(shell: &mut Shell, roots: &[Root], proof: &HandOverProof) {
    let liar = proof.hand_over().worker;
    proof.check().unwrap();
    assert_eq!(from_bytes::<HandOverProof>(&to_bytes(proof)).unwrap(), *proof);
    assert_eq!(shell.machine.quarantined().collect::<Vec<_>>(), [&liar]);
    assert_eq!(rejected(shell), []);
    let spec = spec_of(1, NEVER);
    assert_eq!(shell.machine.ledger().free(&liar), GRANT - bond(&spec));
    assert_eq!(shell.machine.ledger().totals().held, 0, "the bonds of the others are free");
    assert_eq!(shell.machine.ledger().totals().burned, bond(&spec));
    // Anybody who is shown the log finds which proof it was.
    let kept = shell.records.iter().find(|record| matches!(record, Record::HandedOverWrong { .. })).unwrap();
    assert!(kept.outlives_job());
    assert_eq!(from_bytes::<Record>(&to_bytes(kept)).unwrap(), *kept);
    let (job, worker) = (text(1).id(), liar);
    assert_eq!(Entry::of_record(kept), Some(Entry::HandedOverWrong { job, worker, proof: proof.digest() }));
    join(shell, 4, 2);
    let again = run_crew(shell, roots, &WORDS, 3);
    assert!(again.iter().all(|member| member.node != liar));
    assert_eq!(shell.outcome(text(1).id()).unwrap().roots, roots);
    shell.crash();
    assert_eq!(shell.machine.quarantined().collect::<Vec<_>>(), [&liar], "it is not forgotten");
}

#[test]
fn who_hands_over_rows_of_another_root_than_it_committed_to_is_convicted_by_what_it_signed() {
    for seed in 0..8 {
        let (mut shell, mut crew, roots) = pipeline();
        // The rows that the first one hands over at the second point have another root than it streams.
        let mut other = roots.clone();
        other[4 + 1] = root(0xee);
        crew[0].stream(&roots, &WORDS);
        crew[1].stream(&other, &WORDS);
        crew[2].stream(&roots, &WORDS);
        send_all(&mut shell, &mut crew, seed);
        let place = Place { point: text(1).tokens.len() as u32, layer: 2 };
        let proof =
            HandOverProof::Contradiction(crew[0].signs(0, place, roots[4 + 1]), crew[0].signs(0, place, other[4 + 1]));
        assert_convicted(&mut shell, &roots, &proof);
    }
}

#[test]
fn signed_rows_that_do_not_have_the_signed_root_convict_their_sender() {
    // After no rows, one chunk, whole trees and parts of them.
    for first in [0, 1, 2, 3, 4, 7] {
        let (mut shell, crew, roots) = pipeline();
        let (said, state, values) = piece(&crew[0], first, 3);
        let proof = proof(HandOver { root: root(0xee), ..said }, 1, state, values);
        accuse(&mut shell, &crew[1], proof.clone());
        assert_convicted(&mut shell, &roots, &proof);
    }
}

#[test]
fn a_proof_that_proves_nothing_costs_its_author_the_session_and_the_accused_nothing() {
    type Change = fn(&mut HandOver, &mut Vec<u8>, &mut Vec<i32>);
    let wrong = |said: &mut HandOver| said.root = root(0xee);
    let changes: [(Change, Option<ProofError>); 14] = [
        (|_, _, _| {}, Some(ProofError::Right)),
        // Other rows, more of them, or fewer.
        (|_, _, values| values[5] ^= 1, Some(ProofError::OtherRows)),
        (|_, _, values| values.truncate(2 * COLUMNS), Some(ProofError::OtherRows)),
        (|_, _, values| values.extend([0; COLUMNS]), Some(ProofError::OtherRows)),
        (|_, _, values| values.clear(), Some(ProofError::OtherRows)),
        // Another state, or none.
        (|_, state, _| state[7] ^= 1, Some(ProofError::OtherState)),
        (|_, state, _| state.truncate(32), Some(ProofError::OtherState)),
        (|_, state, _| state.clear(), Some(ProofError::OtherState)),
        // Of another coordinator, lease, job, or none.
        (|said, _, _| said.coordinator = keys(9).id(), None),
        (|said, _, _| said.epoch = LeaseEpoch(said.epoch.0 + 1), None),
        (|said, _, _| said.job = job(2).id(), None),
        (|said, _, _| said.rows = said.first, Some(ProofError::OtherRows)),
        (|said, _, _| said.rows = u32::MAX, Some(ProofError::OtherRows)),
        (|said, _, _| said.rows = 0, Some(ProofError::OtherRows)),
    ];
    for (number, (change, error)) in changes.into_iter().enumerate() {
        let (mut shell, crew, _) = pipeline();
        let (mut said, mut state, mut values) = piece(&crew[0], 3, 3);
        if error != Some(ProofError::Right) {
            wrong(&mut said);
        }
        change(&mut said, &mut state, &mut values);
        let proof = proof(said, 1, state, values);
        let reason = match error {
            Some(error) => {
                assert_eq!(proof.check(), Err(error), "{number}");
                RejectReason::FalseProof(error)
            }
            // It proves what it says, but nothing here.
            None => RejectReason::FalseHandOver,
        };
        accuse(&mut shell, &crew[1], proof);
        assert_eq!(rejected(&shell), [(crew[1].node, reason)], "{number}");
        assert_nobody_lost(&shell);
    }
}

pub(super) fn assert_nobody_lost(shell: &Shell) {
    assert_eq!(shell.machine.quarantined().count(), 0);
    assert_eq!(shell.machine.ledger().totals().burned, 0);
    assert!(shell.records.iter().all(|record| !matches!(record, Record::HandedOverWrong { .. })));
}

#[test]
fn nobody_is_convicted_by_what_it_did_not_sign() {
    let (mut shell, crew, _) = pipeline();
    let (said, state, values) = piece(&crew[0], 2, 2);
    let forged = proof(HandOver { root: root(0xee), ..said }, 2, state, values);
    assert_eq!(forged.check(), Err(ProofError::Unsigned));
    accuse(&mut shell, &crew[1], forged);
    assert_eq!(rejected(&shell), [(crew[1].node, RejectReason::FalseProof(ProofError::Unsigned))]);
    assert_nobody_lost(&shell);
}

/// A pipeline that has begun, what the first one of it signed, and a proof that it is wrong.
fn betrayed() -> (Shell, Vec<Member>, Vec<Root>, HandOverProof) {
    let (shell, crew, roots) = pipeline();
    let (said, state, values) = piece(&crew[0], 2, 2);
    let proof = proof(HandOver { root: root(0xee), ..said }, 1, state, values);
    (shell, crew, roots, proof)
}

#[test]
fn a_proof_counts_whoever_brings_it() {
    for by in [0, 2] {
        let (mut shell, crew, roots, proof) = betrayed();
        accuse(&mut shell, &crew[by], proof.clone());
        assert_convicted(&mut shell, &roots, &proof);
    }
}

#[test]
fn who_ends_the_lease_before_the_proof_is_there_does_not_get_away() {
    type End = fn(&mut Shell, &Member);
    let ends: [End; 3] = [
        |shell, sender| drop(shell.feed(Input::WorkerLeft { node: sender.node })),
        |shell, sender| {
            let (node, job, epoch) = (sender.node, sender.job.id(), sender.epoch);
            shell.feed(Input::Failed { node, job, epoch, code: FailureCode::Backend, reason: String::new() });
        },
        // The coordinator was killed in between, and knows nothing of the lease any more.
        |shell, _| {
            shell.crash();
            shell.machine.know(job(1).model, footprint());
            [(2, 1), (3, 1)].into_iter().for_each(|(number, layers)| join(shell, number, layers));
        },
    ];
    for end in ends {
        let (mut shell, crew, roots, proof) = betrayed();
        let liar = crew[0].node;
        end(&mut shell, &crew[0]);
        assert_eq!(shell.machine.ledger().free(&liar), GRANT, "its bond is free again");
        accuse(&mut shell, &crew[1], proof.clone());
        // Once is enough.
        accuse(&mut shell, &crew[1], proof.clone());
        assert_convicted(&mut shell, &roots, &proof);
    }
}

#[test]
fn who_has_less_than_the_bond_left_loses_that() {
    let (mut shell, crew, _, proof) = betrayed();
    let liar = crew[0].node;
    shell.feed(Input::WorkerLeft { node: liar });
    let (left, other) = (bond(&spec_of(1, NEVER)) / 2, Purpose::Lease { job: job(7).id(), epoch: LeaseEpoch(1) });
    let spent = shell.machine.ledger().free(&liar) - left;
    for posting in [
        Posting::Hold { from: liar, purpose: other, amount: spent },
        Posting::Forfeit { node: liar, purpose: other, awards: Vec::new() },
    ] {
        shell.machine.ledger.post(&posting).unwrap();
    }
    accuse(&mut shell, &crew[1], proof);
    assert_eq!(shell.machine.quarantined().collect::<Vec<_>>(), [&liar]);
    assert_eq!(shell.machine.ledger().free(&liar), 0);
    assert_eq!(shell.machine.ledger().totals().burned, spent + left);
}

#[test]
fn what_is_shown_of_a_job_that_has_ended_changes_nothing() {
    let (mut shell, crew, _, proof) = betrayed();
    let job = text(1).id();
    shell.feed(Input::Cancel { job });
    assert!(shell.machine.job(&job).is_none());
    let told = accuse(&mut shell, &crew[1], proof);
    assert_eq!(told, [Action::Cancel { node: crew[1].node, job, epoch: crew[1].epoch }]);
    assert_nobody_lost(&shell);
}

#[test]
fn two_statements_contradict_each_other_only_about_one_piece() {
    let (_, crew, _) = pipeline();
    let (said, ..) = piece(&crew[0], 2, 2);
    let other = HandOver { root: root(0xee), ..said };
    let check =
        |a: HandOver, b: HandOver, by: u8| HandOverProof::Contradiction(a.sign(&keys(1)), b.sign(&keys(by))).check();
    assert_eq!(check(said, other, 1), Ok(()));
    assert_eq!(check(said, HandOver { first: 1, ..said }, 1), Ok(()));
    assert_eq!(check(said, other, 2), Err(ProofError::Unsigned));
    let others: [fn(HandOver) -> HandOver; 7] = [
        |said| said,
        |said| HandOver { pass: 1, ..said },
        |said| HandOver { rows: 5, ..said },
        |said| HandOver { layer: 3, ..said },
        |said| HandOver { epoch: LeaseEpoch(9), ..said },
        |said| HandOver { job: job(2).id(), ..said },
        |said| HandOver { coordinator: keys(9).id(), ..said },
    ];
    for change in others {
        let other = HandOver { values: root(0xdd), ..change(said) };
        let other = if other.is_about_that_of(&said) { said } else { other };
        assert_eq!(check(said, other, 1), Err(ProofError::NoContradiction));
    }
}

#[test]
fn who_passes_on_what_its_predecessor_has_not_signed_is_rejected_itself() {
    type Change = fn(&mut SignedHandOver);
    let changes: [Change; 8] = [
        |signed| *signed = HandOver { root: root(0xee), ..signed.hand_over }.sign(&keys(2)),
        |signed| signed.hand_over.root = root(0xee),
        // Of another coordinator, job, lease, point, layer or member.
        |signed| *signed = HandOver { coordinator: keys(9).id(), ..signed.hand_over }.sign(&keys(1)),
        |signed| *signed = HandOver { job: job(2).id(), ..signed.hand_over }.sign(&keys(1)),
        |signed| *signed = HandOver { epoch: LeaseEpoch(99), ..signed.hand_over }.sign(&keys(1)),
        |signed| *signed = HandOver { rows: 9, ..signed.hand_over }.sign(&keys(1)),
        |signed| *signed = HandOver { layer: 1, ..signed.hand_over }.sign(&keys(1)),
        |signed| *signed = HandOver { worker: keys(3).id(), ..signed.hand_over }.sign(&keys(3)),
    ];
    for change in changes {
        let (mut shell, mut crew, roots) = pipeline();
        crew.iter_mut().take(2).for_each(|member| member.stream(&roots, &WORDS));
        let (sender, node) = (crew[0].node, crew[1].node);
        change(shown(&mut crew[1], sender).next().unwrap());
        send_in_turn(&mut shell, &mut crew[..2]);
        assert_eq!(rejected(&shell)[0], (node, RejectReason::FalseHandOver));
        assert!(rejected(&shell).iter().all(|(node, _)| *node != sender));
        assert_nobody_lost(&shell);
    }
}

pub(super) fn send_in_turn(shell: &mut Shell, crew: &mut [Member]) {
    for member in crew {
        while let Some(input) = member.inputs.pop_front() {
            shell.feed(input);
        }
    }
}

/// What a member shows that somebody signed, point by point.
pub(super) fn shown(member: &mut Member, by: NodeId) -> impl Iterator<Item = &mut SignedHandOver> {
    member.inputs.iter_mut().filter_map(move |input| match input {
        Input::HandedOver { signed, .. } if signed.hand_over.worker == by => Some(&mut **signed),
        _ => None,
    })
}

/// Changes what a member says of its own rows at the first point.
pub(super) fn change_own(member: &mut Member, change: impl Fn(&mut SignedHandOver)) {
    let node = member.node;
    change(shown(member, node).next().unwrap());
}

#[test]
fn who_shows_something_unsigned_of_its_own_rows_is_rejected_and_who_shows_another_root_than_it_streams() {
    // Not signed, and not what its successor got.
    let (mut shell, mut crew, roots) = pipeline();
    crew.iter_mut().take(2).for_each(|member| member.stream(&roots, &WORDS));
    change_own(&mut crew[0], |signed| signed.hand_over.values = root(0xdd));
    send_in_turn(&mut shell, &mut crew[..2]);
    assert_eq!(rejected(&shell)[0], (keys(1).id(), RejectReason::FalseHandOver));
    assert_nobody_lost(&shell);
    // Signed, and not what it streams.
    let (mut shell, mut crew, roots) = pipeline();
    crew[0].stream(&roots, &WORDS);
    change_own(&mut crew[0], |signed| *signed = HandOver { root: root(0xee), ..signed.hand_over }.sign(&keys(1)));
    send_in_turn(&mut shell, &mut crew[..1]);
    let found = Place { point: text(1).tokens.len() as u32 - 1, layer: 2 };
    assert_eq!(rejected(&shell)[0], (keys(1).id(), RejectReason::OutOfOrder { found }));
    assert_nobody_lost(&shell);
}

#[test]
fn statements_of_different_passes_are_held_against_nobody() {
    // An honest sender signs two roots of one row where the words after it were a wrong hint: whoever shows the old one
    // does not make a liar of it.
    let (mut shell, mut crew, roots) = pipeline();
    crew.iter_mut().take(2).for_each(|member| member.stream(&roots, &WORDS));
    change_own(&mut crew[0], |signed| *signed = HandOver { pass: 7, ..signed.hand_over }.sign(&keys(1)));
    // It does not get to what it would show next.
    crew[0].inputs.truncate(4);
    let epoch = crew[0].epoch;
    send_in_turn(&mut shell, &mut crew[..2]);
    assert_eq!(rejected(&shell), []);
    assert_nobody_lost(&shell);
    assert!(!shell.machine.jobs[&text(1).id()].leases.contains_key(&epoch));
    assert!(shell.machine.jobs[&text(1).id()].are_apart(&keys(1).id(), &crew[1].node));
}

#[test]
fn roots_without_what_was_handed_over_or_out_of_order_are_refused() {
    let is_of = |input: &Input, node: NodeId| matches!(input, Input::HandedOver { signed, .. } if signed.hand_over.worker == node);
    let forget = |member: &mut Member, of: usize| {
        let node = member.crew[of].node;
        member.inputs.retain(|input| !is_of(input, node));
    };
    let twice = |member: &mut Member, of: usize| {
        let node = member.crew[of].node;
        let at = member.inputs.iter().position(|input| is_of(input, node)).unwrap();
        let input = member.inputs[at].clone();
        member.inputs.insert(at, input);
    };
    let skip = |member: &mut Member, _: usize| drop(member.inputs.remove(5));
    let last = |member: &mut Member, of: usize| {
        let node = member.crew[of].node;
        drop(member.inputs.remove(member.inputs.iter().rposition(|input| is_of(input, node)).unwrap()));
    };
    let early = |member: &mut Member, _: usize| member.inputs.swap(1, 3);
    type Change<'a> = &'a dyn Fn(&mut Member, usize);
    let changes: [(usize, Change<'_>, usize); 14] = [
        // Words: before each point but the first one, after the last one, and as the lead streams them.
        (0, &forget, 2),
        (0, &twice, 2),
        (0, &last, 2),
        (2, &forget, 2),
        (2, &twice, 2),
        (2, &last, 2),
        (2, &early, 2),
        (1, &forget, 0),
        (1, &twice, 0),
        (0, &forget, 0),
        (0, &twice, 0),
        (1, &forget, 1),
        (1, &twice, 1),
        (0, &skip, 0),
    ];
    for (at, change, of) in changes {
        let (mut shell, mut crew, roots) = pipeline();
        crew[at].stream(&roots, &WORDS);
        change(&mut crew[at], of);
        send_in_turn(&mut shell, &mut crew[at..=at]);
        assert_eq!(rejected(&shell)[0].0, crew[at].node);
    }
    // Nobody is before the first one.
    for worker in [9, 3] {
        let (mut shell, crew, _) = pipeline();
        let (node, job, epoch) = (crew[0].node, crew[0].job.id(), crew[0].epoch);
        let place = Place { point: text(1).tokens.len() as u32 - 1, layer: 0 };
        let said = HandOver { worker: keys(worker).id(), ..crew[0].signs(0, place, root(1)).hand_over };
        shell.feed(Input::HandedOver { node, job, epoch, signed: Box::new(said.sign(&keys(worker))) });
        assert_eq!(rejected(&shell), [(node, RejectReason::FalseHandOver)]);
    }
}

#[test]
fn a_pass_is_cut_at_its_points_and_where_a_message_is_full() {
    use crate::hand_over::cuts;
    use crate::limits::MAX_STAGE_VALUES;
    assert_eq!(cuts(1, 0, 300), [1]);
    assert_eq!(cuts(1, 1, 300), [1]);
    assert_eq!(cuts(9, 1, 300), [9]);
    assert_eq!(cuts(9, 3, 300), [7, 8, 9]);
    let most = MAX_STAGE_VALUES / 300;
    assert_eq!(cuts(most + 1, 0, 300), [most, most + 1]);
    assert_eq!(cuts(2 * most, 1, 300), [most, 2 * most]);
    assert_eq!(cuts(2 * most + 1, 2, 300), [most, 2 * most, 2 * most + 1]);
    assert_eq!(cuts(3, 1, MAX_STAGE_VALUES), [1, 2, 3]);
    for (count, points, columns) in [(5_000, 0, 4_096), (256, 17, 8_192), (257, 257, 1), (700, 4, 65_536)] {
        let cuts = cuts(count, points, columns);
        let starts = [0].into_iter().chain(cuts.iter().copied());
        assert!(starts.zip(&cuts).all(|(from, to)| from < *to && (to - from) * columns <= MAX_STAGE_VALUES));
        assert!((0..points).all(|point| cuts.contains(&(count - point))));
        assert_eq!(cuts.last(), Some(&count));
    }
}

#[test]
fn a_proof_is_capped_before_it_is_read() {
    let (_, crew, _) = pipeline();
    let (said, ..) = piece(&crew[0], 0, 1);
    let rows = |state: usize, values: usize| to_bytes(&proof(said, 1, vec![0; state], vec![0; values]));
    let (state, values) = (crate::limits::MAX_TREE_STATE_BYTES, crate::limits::MAX_STAGE_VALUES);
    from_bytes::<HandOverProof>(&rows(state, values)).unwrap();
    from_bytes::<HandOverProof>(&rows(state + 1, 1)).unwrap_err();
    from_bytes::<HandOverProof>(&rows(1, values + 1)).unwrap_err();
    let short = rows(32, 10);
    assert!((0..short.len()).all(|end| from_bytes::<HandOverProof>(&short[..end]).is_err()));
}

#[test]
fn neighbours_that_fell_out_are_not_put_side_by_side_again() {
    let mut shell = shell(&[2, 1, 1, 1]);
    shell.feed(Input::Submit(spec_of(1, NEVER)));
    let crew = crew_of(&shell);
    let (node, job, epoch) = (crew[1].node, crew[1].job.id(), crew[1].epoch);
    shell.feed(Input::Failed { node, job, epoch, code: FailureCode::Upstream, reason: String::new() });
    let again = crew_of(&shell);
    assert!(again[0].epoch > epoch);
    let seats: Vec<_> = again[0].crew.iter().map(|seat| seat.node).collect();
    let side_by_side = seats.windows(2).any(|pair| pair == [crew[0].node, node]);
    assert!(!side_by_side, "{seats:?}");
    assert_eq!(rejected(&shell), [], "nobody else knows which of them it was");
}
