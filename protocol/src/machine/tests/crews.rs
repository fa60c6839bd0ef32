//! Pipelines: placement, streams that are merged, disputes of one layer, and members that go.

use super::generations::{MAX, WORDS, number_of, spec_of, text};
use super::*;
use crate::canonical::{from_bytes, to_bytes};
use crate::dispute::Side;
use crate::hand_over::{HandOver, SignedHandOver};
use crate::limits::PAUSE_MIN_MS;
use crate::machine::credits::bond;
use crate::messages::Stage as Seat;
use crate::receipt::Segment;
use crate::testing::{generated, roots_of_words};

/// Bytes of each layer of the model.
const LAYER: u64 = 10;
/// What saturates in each member's layers.
const SATURATED: u64 = 0;

/// A member's side of a pipeline.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) node: NodeId,
    pub(super) at: usize,
    pub(super) epoch: LeaseEpoch,
    pub(super) job: Arc<crate::job::Job>,
    hint: Vec<u32>,
    pub(super) crew: Vec<Seat>,
    /// What it streamed and has not sent yet, the next one first.
    pub(super) inputs: std::collections::VecDeque<Input>,
}

/// A model of an embedding with layer 1, two more, and an output.
pub(super) fn footprint() -> Footprint {
    Footprint { layers: (0..=LAYERS + 1).map(|layer| vec![(layer, if layer == 0 { 0 } else { LAYER })]).collect() }
}

/// A shell with workers that can hold so many layers each.
pub(super) fn shell(holds: &[u64]) -> Shell {
    let mut shell = Shell::new();
    shell.machine.know(job(1).model, footprint());
    (1..).zip(holds).for_each(|(number, layers)| join(&mut shell, number, *layers));
    shell
}

pub(super) fn join(shell: &mut Shell, number: u8, layers: u64) {
    let Input::WorkerJoined { node, capabilities } = joined(number, 1) else { panic!("it joins") };
    let pipeline = Some((layers * LAYER, format!("127.0.0.1:{number}")));
    shell.feed(Input::WorkerJoined { node, capabilities: Capabilities { pipeline, ..capabilities } });
}

/// The members of the newest pipeline.
pub(super) fn crew_of(shell: &Shell) -> Vec<Member> {
    let newest = shell.actions.iter().rev().find_map(|action| match action {
        Action::AssignStage { epoch, .. } => Some(*epoch),
        _ => None,
    });
    let member = |action: &Action| match action {
        Action::AssignStage { node, epoch, job, hint, crew } if Some(*epoch) == newest => {
            let at = crew.iter().position(|seat| seat.node == *node).unwrap();
            let (job, hint, crew) = (job.clone(), hint.clone(), crew.clone());
            Some(Member { node: *node, at, epoch: *epoch, job, hint, crew, inputs: Default::default() })
        }
        _ => None,
    };
    shell.actions.iter().filter_map(member).collect()
}

fn ranges(crew: &[Member]) -> Vec<(u16, u16)> {
    crew[0].crew.iter().map(|seat| (seat.first, seat.last)).collect()
}

impl Member {
    fn keys(&self) -> crate::identity::Keypair {
        keys(number_of(self.node))
    }

    /// What the member at a seat signs of its rows, which have this root.
    pub(super) fn signs(&self, at: usize, place: Place, root: Root) -> SignedHandOver {
        let (job, epoch, worker) = (self.job.id(), self.epoch, self.crew[at].node);
        let (coordinator, first, rows) = (config().coordinator, place.point, place.point + 1);
        let (before, values, pass) = (Root::from_bytes([0xbe; 32]), Root::from_bytes([0xba; 32]), place.point);
        let layer = place.layer;
        let said = HandOver { coordinator, job, epoch, layer, pass, first, rows, before, values, root, worker };
        said.sign(&keys(number_of(worker)))
    }

    /// What it shows of the root before the one with this index, which whoever is before it in the ring signed.
    fn received(&self, index: usize, roots: &[Root]) -> Option<Input> {
        let (node, job, epoch, index) = (self.node, self.job.id(), self.epoch, index.checked_sub(1)?);
        let before = self.at.checked_sub(1).unwrap_or(self.crew.len() - 1);
        let place = geometry(&self.job).place(index).unwrap();
        let signed = Box::new(self.signs(before, place, roots[index]));
        Some(Input::HandedOver { node, job, epoch, signed })
    }

    /// Everything that it streams of a run with these roots and words.
    pub(super) fn stream(&mut self, roots: &[Root], words: &[u32]) {
        let (node, job, epoch) = (self.node, self.job.id(), self.epoch);
        let geometry = geometry(&self.job);
        let seat = self.crew[self.at].clone();
        self.inputs.push_back(Input::Began { node, job, epoch });
        for (place, root) in geometry.places().zip(roots) {
            if !(seat.first..=seat.last).contains(&place.layer) {
                continue;
            }
            if place.layer == seat.first {
                self.inputs.extend(self.received(geometry.index_of(place).unwrap(), roots));
            }
            if place.layer == geometry.streamed_layers() && !words.is_empty() {
                let index = (place.point - geometry.first_point()) as usize;
                self.inputs.push_back(Input::word((node, job, epoch), words[index]));
            }
            if place.layer == seat.last && (self.at + 1 < self.crew.len() || !words.is_empty()) {
                let signed = Box::new(self.signs(self.at, place, *root));
                self.inputs.push_back(Input::HandedOver { node, job, epoch, signed });
            }
            self.inputs.push_back(Input::root((node, job, epoch), place, *root));
        }
        if self.at == 0 && !words.is_empty() {
            self.inputs.extend(self.received(roots.len(), roots));
        }
        self.inputs.push_back(Input::StageEnded { node, job, epoch, saturations: SATURATED });
    }

    fn segment(&self, receipt: Digest) -> Input {
        let (node, job, epoch) = (self.node, self.job.id(), self.epoch);
        let Seat { first, last, .. } = self.crew[self.at];
        let signed = Box::new(Segment { receipt, first, last, worker: node }.sign(&self.keys()));
        Input::Segment { node, job, epoch, signed }
    }
}

/// Sends all that the members stream, in an order that a seed decides.
pub(super) fn send_all(shell: &mut Shell, crew: &mut [Member], seed: u64) {
    let mut state = seed | 1;
    while crew.iter().any(|member| !member.inputs.is_empty()) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at = (state >> 33) as usize % crew.len();
        if let Some(input) = crew[at].inputs.pop_front() {
            shell.feed(input);
        }
    }
}

/// The lead's run, as it signs it.
fn result_of(lead: &Member, roots: &[Root], words: &[u32]) -> Box<crate::messages::JobResult> {
    let keys = lead.keys();
    let mut result = match words {
        [] => run_with(&keys, &lead.job, lead.epoch, roots.to_vec()),
        _ => generated(&keys, &lead.job, lead.epoch, words, roots.to_vec()),
    };
    result.receipt.receipt.saturations = SATURATED * lead.crew.len() as u64;
    result.receipt = result.receipt.receipt.clone().sign_share(lead.crew[lead.at].first, &keys);
    Box::new(result)
}

/// The lead commits, and the others sign, after or before it.
fn sign_all(shell: &mut Shell, crew: &[Member], roots: &[Root], words: &[u32], lead_first: bool) {
    let lead = crew.last().unwrap();
    let (id, epoch, node) = (lead.job.id(), lead.epoch, lead.node);
    let result = result_of(lead, roots, words);
    let digest = result.receipt.receipt.digest();
    let segments: Vec<_> = crew[..crew.len() - 1].iter().map(|member| member.segment(digest)).collect();
    let head = geometry(&lead.job).head(id, epoch, roots).unwrap();
    let salt = salt(number_of(node));
    let commitment = RunCommitment::of(id, epoch, node, &salt, &head);
    shell.committed.insert((id, epoch), Input::Completed { node, job: id, epoch, result, salt });
    let commit = Input::Committed { node, job: id, epoch, commitment };
    if lead_first {
        shell.feed(commit.clone());
    }
    segments.into_iter().for_each(|segment| drop(shell.feed(segment)));
    if !lead_first {
        shell.feed(commit);
    }
}

/// The newest pipeline runs to its end.
pub(super) fn run_crew(shell: &mut Shell, roots: &[Root], words: &[u32], seed: u64) -> Vec<Member> {
    let mut crew = crew_of(shell);
    crew.iter_mut().for_each(|member| member.stream(roots, words));
    send_all(shell, &mut crew, seed);
    sign_all(shell, &crew, roots, words, seed.is_multiple_of(2));
    crew
}

pub(super) fn rejected(shell: &Shell) -> Vec<(NodeId, RejectReason)> {
    let of = |action: &Action| match action {
        Action::Rejected { node, reason, .. } => Some((*node, reason.clone())),
        _ => None,
    };
    shell.actions.iter().filter_map(of).collect()
}

fn told(shell: &Shell) -> Vec<(u32, u32)> {
    let word = |action: &Action| match action {
        Action::Token { index, word, .. } => Some((*index, *word)),
        _ => None,
    };
    shell.actions.iter().filter_map(word).collect()
}

#[test]
fn a_model_that_one_worker_can_hold_is_not_shared() {
    let mut shell = shell(&[4, 2, 2]);
    shell.feed(Input::Submit(spec(1, NEVER)));
    assert_eq!(shell.assigned.len(), 1);
    assert_eq!(shell.assigned[0].0, keys(1).id());
    // While that one is busy, the next job waits for it.
    shell.feed(Input::Submit(spec(2, NEVER)));
    assert!(crew_of(&shell).is_empty());
}

#[test]
fn a_model_too_large_for_one_worker_is_shared_and_its_run_is_one_like_any_other() {
    for (holds, expected) in [
        (&[2, 2][..], &[(1, 2), (3, 4)][..]),
        (&[3, 1], &[(1, 3), (4, 4)]),
        (&[1, 2, 1], &[(1, 2), (3, 3), (4, 4)]),
        (&[1, 1, 1, 1], &[(1, 1), (2, 2), (3, 3), (4, 4)]),
    ] {
        for seed in 0..8 {
            let mut shell = shell(holds);
            shell.feed(Input::Submit(spec_of(1, NEVER)));
            let crew = crew_of(&shell);
            assert_eq!(ranges(&crew), expected);
            assert_eq!(shell.machine.ledger().totals().held, bond(&spec_of(1, NEVER)) * crew.len() as u64);
            let roots = roots_of_words(text(1).id(), &WORDS);
            let crew = run_crew(&mut shell, &roots, &WORDS, seed);
            assert_eq!(rejected(&shell), []);
            assert_eq!(told(&shell), [(0, WORDS[0]), (1, WORDS[1]), (2, WORDS[2])]);
            let outcome = shell.outcome(text(1).id()).unwrap();
            assert_eq!(outcome.roots, roots, "in stream order, whoever was faster");
            let receipt = &outcome.result.receipt;
            receipt.check(&text(1).header(), Some(&outcome.result.output)).unwrap();
            let members: Vec<_> = crew.iter().map(|m| (m.node, m.crew[m.at].first, m.crew[m.at].last)).collect();
            assert_eq!(receipt.members().collect::<Vec<_>>(), members);
            let answer = outcome.receipt(&text(1), None, &keys(100), Millis(5));
            answer.check().unwrap();
            assert_eq!(crate::receipt::Receipt::from_json(&answer.to_json()).unwrap(), answer);
            let record = shell.records.iter().find(|record| matches!(record, Record::Ran { .. })).unwrap();
            assert_eq!(from_bytes::<Record>(&to_bytes(record)).unwrap(), *record);
            // Everybody is paid, and nothing is held any more.
            let totals = shell.machine.ledger().totals();
            assert_eq!(totals.held, 0);
            let free = |node: &NodeId| shell.machine.ledger().free(node);
            assert!(crew.iter().all(|member| free(&member.node) > GRANT));
            let accepted =
                |node| shell.actions.iter().any(|a| matches!(a, Action::Accepted { node: n, .. } if *n == node));
            assert!(crew.iter().all(|member| accepted(member.node)));
        }
    }
}

#[test]
fn an_embedding_is_shared_too() {
    let mut shell = shell(&[2, 2]);
    shell.feed(Input::Submit(spec(1, NEVER)));
    let roots = right_roots(job(1).id());
    run_crew(&mut shell, &roots, &[], 3);
    assert_eq!(shell.outcome(job(1).id()).unwrap().roots, roots);
}

#[test]
fn only_the_lead_draws_words() {
    let mut shell = shell(&[2, 2]);
    shell.feed(Input::Submit(spec_of(1, NEVER)));
    let first = crew_of(&shell).remove(0);
    let (node, job, epoch) = (first.node, first.job.id(), first.epoch);
    shell.feed(Input::word((node, job, epoch), WORDS[0]));
    assert_eq!(rejected(&shell), [(node, RejectReason::WordOutOfOrder)]);
}

#[test]
fn who_signs_for_another_run_is_rejected_and_not_the_lead() {
    for lead_first in [true, false] {
        let mut shell = shell(&[2, 2]);
        shell.feed(Input::Submit(spec_of(1, NEVER)));
        let mut crew = crew_of(&shell);
        let roots = roots_of_words(text(1).id(), &WORDS);
        crew.iter_mut().for_each(|member| member.stream(&roots, &WORDS));
        send_all(&mut shell, &mut crew, 5);
        let lead = crew.last().unwrap();
        let (id, epoch, node) = (lead.job.id(), lead.epoch, lead.node);
        let head = geometry(&lead.job).head(id, epoch, &roots).unwrap();
        let salt = salt(number_of(node));
        let commitment = RunCommitment::of(id, epoch, node, &salt, &head);
        let result = result_of(lead, &roots, &WORDS);
        shell.committed.insert((id, epoch), Input::Completed { node, job: id, epoch, result, salt });
        let wrong = crew[0].segment(Digest::from_bytes([9; 32]));
        let commit = Input::Committed { node, job: id, epoch, commitment };
        let order = if lead_first { [commit, wrong] } else { [wrong, commit] };
        order.into_iter().for_each(|input| drop(shell.feed(input)));
        assert_eq!(rejected(&shell), [(crew[0].node, RejectReason::NotAsStreamed)]);
    }
}

#[test]
fn a_stage_that_lies_loses_the_dispute_about_its_layer_and_its_neighbours_do_not() {
    // Two crews of three: one runs, the other audits.
    for layer in 1..=LAYERS + 1 {
        let mut shell = shell(&[2, 1, 1, 2, 1, 1]);
        shell.judges = false;
        shell.feed(Input::Submit(spec_of(1, always(1, false))));
        let (id, right) = (text(1).id(), roots_of_words(text(1).id(), &WORDS));
        // Everything after the lie differs too, since it is computed from it; but not the word.
        let mut wrong = right.clone();
        (usize::from(layer)..=usize::from(LAYERS)).for_each(|l| wrong[4 + l - 1] = root(0xe0 | l as u8));
        if layer == LAYERS + 1 {
            continue;
        }
        let first = run_crew(&mut shell, &wrong, &WORDS, 3);
        let second = run_crew(&mut shell, &right, &WORDS, 4);
        assert_eq!(second[0].hint, WORDS, "the auditors check the words in one pass");
        assert!(second.iter().all(|member| first.iter().all(|other| other.node != member.node)));
        let of = |crew: &[Member]| {
            let found = crew.iter().find(|m| (m.crew[m.at].first..=m.crew[m.at].last).contains(&layer));
            found.unwrap().node
        };
        let (liar, honest) = (of(&first), of(&second));
        let (_, terms) = shell.disputes.last().cloned().unwrap();
        assert_eq!(Side::BOTH.map(|side| terms.key(side)), [liar, honest]);
        assert_eq!(terms.check().unwrap().place.layer, layer);
        assert_eq!(from_bytes::<Terms>(&to_bytes(&terms)).unwrap(), terms);
        let held = |shell: &Shell, node: &NodeId| shell.machine.ledger().account(node).unwrap().held().count();
        assert!(first.iter().chain(&second).all(|member| held(&shell, &member.node) == 1));
        let place = terms.check().unwrap().place;
        shell.end_with(Verdict { place, ..verdict([true, false], VerdictKind::Proven) });
        assert_eq!(shell.machine.quarantined().collect::<Vec<_>>(), [&liar]);
        for member in first.iter().filter(|member| member.node != liar) {
            let account = shell.machine.ledger().account(&member.node).unwrap();
            assert_eq!((account.free(), account.held().count()), (GRANT, 0), "it has its bond back, and no pay");
        }
        assert!(shell.machine.ledger().free(&liar) < GRANT);
        assert!(second.iter().all(|member| held(&shell, &member.node) == 1), "their run stands");
        let run = &shell.machine.jobs[&id].runs;
        assert_eq!(run.iter().filter(|run| run.stands()).count(), 1);
    }
}

#[test]
fn a_member_that_goes_is_replaced_and_the_text_goes_on() {
    let mut shell = shell(&[2, 1, 1, 1]);
    shell.feed(Input::Submit(spec_of(1, NEVER)));
    let mut crew = crew_of(&shell);
    let before = crew[0].crew.clone();
    let roots = roots_of_words(text(1).id(), &WORDS);
    crew.iter_mut().for_each(|member| member.stream(&roots, &WORDS));
    // Two points are there, and a third at the first worker.
    for (member, count) in crew.iter_mut().zip([1 + 3 + 2 * 4, 1 + 2 * 3, 1 + 2 * 4]) {
        (0..count).for_each(|_| drop(shell.feed(member.inputs.pop_front().unwrap())));
    }
    assert_eq!(told(&shell), [(0, WORDS[0]), (1, WORDS[1])]);
    let gone = crew[1].node;
    let seen = shell.actions.len();
    shell.feed(Input::WorkerLeft { node: gone });
    let cancelled: Vec<_> = shell.actions[seen..]
        .iter()
        .filter_map(|action| match action {
            Action::Cancel { node, epoch, .. } => Some((*node, *epoch)),
            _ => None,
        })
        .collect();
    assert!(cancelled.contains(&(crew[0].node, crew[0].epoch)) && cancelled.contains(&(crew[2].node, crew[0].epoch)));
    // The spare has the layers of the one that went; the others keep theirs.
    let again = crew_of(&shell);
    assert!(again[0].epoch > crew[0].epoch);
    let seats: Vec<_> = again[0].crew.iter().map(|seat| (seat.node, seat.first, seat.last)).collect();
    let spare = (1..=4).map(|number| keys(number).id()).find(|node| before.iter().all(|seat| seat.node != *node));
    let expected = [(before[0].node, 1, 2), (spare.unwrap(), 3, 3), (before[2].node, 4, 4)];
    assert_eq!(seats, expected);
    assert_eq!(again[0].hint, WORDS[..2], "what the client was told is the hint");
    // What the old lease still says counts nothing.
    let late = crew[0].inputs.pop_front().unwrap();
    assert!(matches!(shell.feed(late)[..], [Action::Cancel { .. }]));
    run_crew(&mut shell, &roots, &WORDS, 7);
    assert_eq!(told(&shell), [(0, WORDS[0]), (1, WORDS[1]), (2, WORDS[2])], "nothing is told twice");
    assert_eq!(shell.outcome(text(1).id()).unwrap().roots, roots);
    assert_eq!(shell.machine.ledger().totals().held, 0);
}

#[test]
fn without_a_spare_the_job_waits_for_one() {
    let mut shell = shell(&[2, 2]);
    shell.feed(Input::Submit(spec_of(1, NEVER)));
    let epoch = crew_of(&shell)[0].epoch;
    shell.feed(Input::WorkerLeft { node: keys(2).id() });
    assert_eq!(crew_of(&shell)[0].epoch, epoch);
    join(&mut shell, 3, 2);
    let crew = crew_of(&shell);
    assert!(crew[0].epoch > epoch);
    let roots = roots_of_words(text(1).id(), &WORDS);
    run_crew(&mut shell, &roots, &WORDS, 2);
    assert!(shell.outcome(text(1).id()).is_some());
}

#[test]
fn a_lease_ends_when_a_member_is_late_and_that_one_is_asked_last() {
    let mut shell = shell(&[2, 1, 1, 1]);
    shell.feed(Input::Submit(spec_of(1, NEVER)));
    let mut crew = crew_of(&shell);
    let roots = roots_of_words(text(1).id(), &WORDS);
    crew[0].stream(&roots, &WORDS);
    // The first worker is done with a point; the second one never is.
    (0..4).for_each(|_| drop(shell.feed(crew[0].inputs.pop_front().unwrap())));
    let (late, epoch) = (crew[1].node, crew[0].epoch);
    while crew_of(&shell)[0].epoch == epoch {
        for number in 1..=4 {
            shell.feed(Input::Heartbeat { node: keys(number).id() });
        }
        shell.wait(PAUSE_MIN_MS);
    }
    assert!(crew_of(&shell)[0].crew.iter().all(|seat| seat.node != late));
}

#[test]
fn a_restart_in_the_midst_of_a_pipeline_gives_the_job_out_again() {
    let mut shell = shell(&[2, 1, 1]);
    shell.feed(Input::Submit(spec_of(1, NEVER)));
    let mut crew = crew_of(&shell);
    let roots = roots_of_words(text(1).id(), &WORDS);
    crew.iter_mut().for_each(|member| member.stream(&roots, &WORDS));
    for member in &mut crew {
        (0..3).for_each(|_| drop(shell.feed(member.inputs.pop_front().unwrap())));
    }
    let epoch = crew[0].epoch;
    shell.crash();
    assert_eq!(shell.machine.ledger().totals().held, 0, "the bonds of all members are free");
    shell.machine.know(job(1).model, footprint());
    for (number, layers) in [(1, 2), (2, 1), (3, 1)] {
        join(&mut shell, number, layers);
    }
    assert!(crew_of(&shell)[0].epoch > epoch);
    run_crew(&mut shell, &roots, &WORDS, 6);
    assert_eq!(shell.outcome(text(1).id()).unwrap().roots, roots);
    assert_eq!(u32::try_from(WORDS.len()).unwrap().min(MAX), 3);
}

#[test]
fn a_receipt_with_altered_segments_does_not_check() {
    let mut shell = shell(&[2, 1, 1]);
    shell.feed(Input::Submit(spec_of(1, NEVER)));
    let roots = roots_of_words(text(1).id(), &WORDS);
    run_crew(&mut shell, &roots, &WORDS, 1);
    let good = shell.outcome(text(1).id()).unwrap().result.receipt.clone();
    good.check(&text(1).header(), None).unwrap();
    let signed = |change: fn(&mut Segment), of: u8| {
        let mut altered = good.clone();
        let segment = &mut altered.segments[0];
        change(&mut segment.segment);
        altered.segments[0] = segment.segment.sign(&keys(of));
        altered
    };
    let mut swapped = good.clone();
    swapped.segments.swap(0, 1);
    let mut missing = good.clone();
    missing.segments.remove(0);
    let wrong = [
        swapped,
        missing,
        signed(|s| s.last = 1, 1),
        signed(|s| s.last = 3, 1),
        signed(|s| s.first = 0, 1),
        signed(|s| s.receipt = Digest::from_bytes([1; 32]), 1),
        // Signed by somebody else, or by the lead once more.
        signed(|_| {}, 9),
        signed(|s| s.worker = keys(3).id(), 3),
    ];
    assert!(wrong.iter().all(|receipt| receipt.check(&text(1).header(), None).is_err()));
    // Nobody makes the lead answer for the layers of the others by leaving their signatures out.
    let alone = crate::receipt::SignedReceipt { segments: Vec::new(), ..good.clone() };
    alone.check(&text(1).header(), None).unwrap_err();
    assert_eq!((good.key_at(1), good.key_at(3), good.key_at(4)), (keys(1).id(), keys(2).id(), keys(3).id()));
}
