//! Words that the last worker of a pipeline tells those before it: who is wrong about them.

use super::crews::{crew_of, rejected, send_all, shell};
use super::generations::{WORDS, number_of, text};
use super::rows::{assert_convicted, assert_nobody_lost, change_own, pipeline, proof, send_in_turn, shown};
use super::*;
use crate::generation::word_root;
use crate::hand_over::{HandOver, HandOverProof, ProofError, SignedHandOver};
use crate::testing::roots_of_words;
use crate::trace::RowTree;

#[test]
fn nobody_shows_words_of_an_embedding() {
    for at in [0, 2] {
        let mut shell = shell(&[2, 1, 1]);
        shell.feed(Input::Submit(spec(1, NEVER)));
        let mut crew = crew_of(&shell);
        let roots = right_roots(job(1).id());
        let member = &mut crew[at];
        member.stream(&roots, &[]);
        let (node, job, epoch) = (member.node, member.job.id(), member.epoch);
        let place = Place { point: member.job.tokens.len() as u32 - 1, layer: LAYERS + 1 };
        let signed = Box::new(member.signs(2, place, roots[roots.len() - 1]));
        // Where it would be next in a generation.
        let before = if at == 0 { member.inputs.len() - 1 } else { 2 };
        member.inputs.insert(before, Input::HandedOver { node, job, epoch, signed });
        send_in_turn(&mut shell, &mut crew[at..=at]);
        assert_eq!(rejected(&shell)[0], (node, RejectReason::FalseHandOver));
    }
}

#[test]
fn a_lead_that_tells_other_words_up_than_it_streams_is_convicted_by_what_it_signed() {
    let lead = keys(3).id();
    // The last word too, which nothing is computed from.
    for (point, seed) in (0..WORDS.len()).flat_map(|point| (0..8).map(move |seed| (point, seed))) {
        let (mut shell, mut crew, roots) = pipeline();
        crew.iter_mut().for_each(|member| member.stream(&roots, &WORDS));
        let heard = shown(&mut crew[0], lead).nth(point).unwrap();
        let own = *heard;
        *heard = HandOver { root: word_root(WORDS[point] ^ 1), ..heard.hand_over }.sign(&keys(3));
        let proof = HandOverProof::Contradiction(own, *heard);
        send_all(&mut shell, &mut crew, seed);
        assert_convicted(&mut shell, &roots, &proof);
        let told = shell.actions.iter().filter(|action| matches!(action, Action::Token { .. })).count();
        assert_eq!(told, WORDS.len());
    }
}

#[test]
fn a_lead_that_lets_the_first_worker_end_earlier_or_later_is_convicted() {
    let lead = keys(3).id();
    let ending = WORDS[WORDS.len() - 1];
    // To the first one it says that the first word is the last, or to the coordinator.
    for ends_first in [true, false] {
        let (mut shell, mut crew, roots) = pipeline();
        let short = roots_of_words(text(1).id(), &[ending]);
        let [first, others] = if ends_first {
            [(&short, &[ending][..]), (&roots, &WORDS[..])]
        } else {
            [(&roots, &WORDS[..]), (&short, &[ending][..])]
        };
        crew[0].stream(first.0, first.1);
        crew[1..].iter_mut().for_each(|member| member.stream(others.0, others.1));
        let [own, heard] = [2, 0].map(|at| *shown(&mut crew[at], lead).next().unwrap());
        send_all(&mut shell, &mut crew, 5);
        assert_convicted(&mut shell, &roots, &HandOverProof::Contradiction(own, heard));
    }
}

#[test]
fn who_shows_a_word_that_the_lead_has_not_signed_is_rejected_and_so_is_a_lead_that_shows_one() {
    type Change = fn(&mut SignedHandOver);
    let forged: Change = |signed| *signed = HandOver { root: root(0xee), ..signed.hand_over }.sign(&keys(1));
    let unsigned: Change = |signed| signed.hand_over.root = root(0xee);
    // Of another lease, point, layer, member or pass: of the pass that its own rows were of it has another one.
    let other_lease: Change = |signed| *signed = HandOver { epoch: LeaseEpoch(99), ..signed.hand_over }.sign(&keys(3));
    let other_point: Change = |signed| *signed = HandOver { rows: 9, ..signed.hand_over }.sign(&keys(3));
    let other_layer: Change = |signed| *signed = HandOver { layer: 3, ..signed.hand_over }.sign(&keys(3));
    let other_member: Change = |signed| *signed = HandOver { worker: keys(2).id(), ..signed.hand_over }.sign(&keys(2));
    let other_pass: Change = |signed| *signed = HandOver { pass: 1, ..signed.hand_over }.sign(&keys(3));
    let unlike: Change = |signed| signed.hand_over.values = root(0xdd);
    let first =
        [forged, unsigned, other_lease, other_point, other_layer, other_member, other_pass].map(|change| (0, change));
    let lead = [unlike, other_lease, other_point, other_layer, other_pass].map(|change| (2, change));
    for (at, change) in first.into_iter().chain(lead) {
        let (mut shell, mut crew, roots) = pipeline();
        crew.iter_mut().for_each(|member| member.stream(&roots, &WORDS));
        change(shown(&mut crew[at], keys(3).id()).next().unwrap());
        crew[1..].rotate_left(1);
        send_all(&mut shell, &mut crew, 9);
        assert_eq!(rejected(&shell), [(keys(at as u8 + 1).id(), RejectReason::FalseHandOver)]);
        assert_nobody_lost(&shell);
    }
    // Signed, and not what it streams.
    let (mut shell, mut crew, roots) = pipeline();
    crew.iter_mut().for_each(|member| member.stream(&roots, &WORDS));
    change_own(&mut crew[2], |signed| *signed = HandOver { root: root(0xee), ..signed.hand_over }.sign(&keys(3)));
    send_all(&mut shell, &mut crew, 3);
    let found = Place { point: text(1).tokens.len() as u32 - 1, layer: 4 };
    assert_eq!(rejected(&shell), [(keys(3).id(), RejectReason::OutOfOrder { found })]);
    assert_nobody_lost(&shell);
}

#[test]
fn points_of_one_pass_are_one_run_like_any_other() {
    // With a hint that is right up to the second point, which the third one follows in a pass of its own.
    for seed in 0..8 {
        let (mut shell, mut crew, roots) = pipeline();
        crew.iter_mut().for_each(|member| member.stream(&roots, &WORDS));
        let start = text(1).tokens.len() as u32 - 1;
        for member in &mut crew {
            let statements = member.inputs.iter_mut().filter_map(|input| match input {
                Input::HandedOver { signed, .. } => Some(signed),
                _ => None,
            });
            for signed in statements {
                let (said, by) = (signed.hand_over, number_of(signed.hand_over.worker));
                **signed = HandOver { pass: (said.first - start) / 2, ..said }.sign(&keys(by));
            }
        }
        send_all(&mut shell, &mut crew, seed);
        assert_eq!(rejected(&shell), []);
        assert_nobody_lost(&shell);
        let is_shown = shell.actions.iter().any(|action| matches!(action, Action::Countersign { .. }));
        assert!(is_shown, "all roots are there, and all words are as they were signed");
    }
}

#[test]
fn nothing_proves_an_honestly_signed_word_wrong() {
    let (_, crew, _) = pipeline();
    for first in [0, 1, 2, 5] {
        let place = Place { point: first, layer: 4 };
        let said = crew[2].signs(2, place, word_root(WORDS[0])).hand_over;
        let values = vec![WORDS[0].cast_signed()];
        let said = HandOver { before: RowTree::new(1).root(), values: HandOver::values_root(&values), ..said };
        let mut tree = RowTree::new(1);
        tree.push_rows(&vec![0; first as usize]);
        for state in [Vec::new(), tree.state(), vec![0; 32]] {
            let expected = if first == 0 && state.is_empty() { ProofError::Right } else { ProofError::OtherState };
            assert_eq!(proof(said, 3, state, values.clone()).check(), Err(expected), "{first}");
        }
    }
}
