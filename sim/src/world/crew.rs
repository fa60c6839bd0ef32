//! Pipelines: worlds whose models fit no party, what the two that share one say, and what those among them who cheat do to
//! each other.
//!
//! The run of a crew is made once, as one, from the lies that its members tell in their own layers: that of who has the later
//! layers follows from the rows that it is handed. Rows that are not those of the run are made up.

use std::rc::Rc;

use lockstep_model::package::Package;
use lockstep_protocol::commitment::RunCommitment;
use lockstep_protocol::hand_over::{HandOver, HandOverProof, SignedHandOver};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{Digest, JobId, LeaseEpoch, NodeId, Place, Root, Salt};
use lockstep_protocol::machine::Footprint;
use lockstep_protocol::messages::{FailureCode, JobResult, Stage};
use lockstep_protocol::receipt::Segment;
use lockstep_protocol::trace::root_of_rows;

use super::cast::Role;
use super::party::{Said, Up, receipt_of};
use super::perform::{Performance, misquoted};
use super::{Broken, Held, World};
use crate::adversary::{Lie, StageTrick};
use crate::random::Random;
use crate::runs::{Basis, Case};

/// Bytes of parameters that a party can hold: half of the layers of any model, so that any two share it.
pub const ROOM: u64 = 1_000;
/// Of 1,000 worlds, in how many no party can hold a model.
pub const SHARED_PER_MILLE: u64 = 150;
/// Of 1,000 cheats in crews, how many do nothing there.
const IDLE_PER_MILLE: u64 = 150;
/// So many lies are tried until one shows.
const MOST_TRIES: usize = 8;
/// What is signed of rows that nobody looks at.
const BEFORE: Root = Root::from_bytes([1; 32]);
const VALUES: Root = Root::from_bytes([2; 32]);

/// What the parameters of a model take, where no party can hold it.
pub fn footprint(package: &Package) -> Footprint {
    let layers = package.program().layers.len();
    let each = ROOM / ((layers - 1) as u64).div_ceil(2);
    let bytes = |layer: usize| if layer == 0 { 0 } else { each };
    Footprint { layers: (0..layers).map(|layer| vec![(layer as u16, bytes(layer))]).collect() }
}

/// The run of a crew.
pub struct CrewRun {
    seats: Vec<Stage>,
    /// What each member does wrong, and at which point.
    tricks: Vec<Option<(StageTrick, usize)>>,
    /// What it comes to.
    pub claim: Performance,
}

impl CrewRun {
    fn at(&self, node: &NodeId) -> usize {
        self.seats.iter().position(|seat| seat.node == *node).expect("a crew is told to its members")
    }

    fn trick(&self, at: usize, point: usize) -> Option<StageTrick> {
        self.tricks[at].filter(|(_, of)| *of == point).map(|(trick, _)| trick)
    }

    /// Who hands over to the member at a seat: a pipeline is a ring.
    fn before(&self, at: usize) -> usize {
        at.checked_sub(1).unwrap_or(self.seats.len() - 1)
    }

    /// What a member does at the end.
    fn trick_of(&self, at: usize) -> Option<StageTrick> {
        self.tricks[at].map(|(trick, _)| trick)
    }
}

/// A lie in some layers, beside those that are told already, that shows.
fn lie_in(case: &Case, layers: (u16, u16), claim: &mut Performance, random: &mut Random) {
    if layers.1 > case.layers()
        && case.logprob_values() > 0
        && matches!(claim.basis, Basis::Honest)
        && random.per_mille(300)
    {
        *claim = misquoted(case, random);
        return;
    }
    let program = case.package().program();
    let first = if layers.0 <= 1 { 0 } else { layers.0 };
    let told = if let Basis::Lies(lies) = &claim.basis { lies.clone() } else { Vec::new() };
    for _ in 0..MOST_TRIES {
        let layer = random.within(first.into()..=layers.1.into()) as usize;
        let op = random.index(program.layers[layer].ops.len());
        let lies: Vec<Lie> = told.iter().copied().chain([case.lie_about(layer, op, random)]).collect();
        if let Some(run) = case.lied(&lies).filter(|run| run.roots != claim.run.roots) {
            *claim = Performance { run: run.into(), basis: Basis::Lies(lies) };
            return;
        }
    }
}

/// Rows that somebody made up, with a signature over them and another root than they have.
fn wrong_rows(said: HandOver, keys: &Keypair) -> HandOverProof {
    let values: Vec<i32> = (0..said.rows.cast_signed() * 3).collect();
    let said = HandOver { first: 0, before: root_of_rows(&[], 1), values: HandOver::values_root(&values), ..said };
    HandOverProof::Rows { signed: said.sign(keys), state: Vec::new(), values }
}

impl World {
    fn keys_of(&self, node: &NodeId) -> &Keypair {
        &self.parties.iter().find(|party| party.id() == *node).expect("a crew is made of parties").keys
    }

    /// The run of a crew, which is made when its first member hears of it.
    fn crew_run(&mut self, lease: (JobId, LeaseEpoch), hint: &[u32], seats: Vec<Stage>) -> Rc<CrewRun> {
        if let Some(run) = self.crews.get(&lease) {
            return Rc::clone(run);
        }
        let case = self.jobs.get(&lease.0).case;
        let mut random = Random::new(&format!("crew {}", lease.1.0), self.seed);
        let mut claim = Performance { run: case.of_hint(hint), basis: Basis::Honest };
        let points = case.honest().roots.len() / (usize::from(case.layers()) + 1);
        let mut tricks = Vec::new();
        for seat in &seats {
            let role = self.parties.iter().find(|party| party.id() == seat.node).map(|party| party.role);
            let cheats = matches!(role, Some(Role::Cheat(_))) && !random.per_mille(IDLE_PER_MILLE);
            let trick = cheats.then(|| (*random.pick(&StageTrick::ALL), random.index(points)));
            if let Some((trick, _)) = trick {
                *self.counts.stage_tricks.entry(trick.name().to_owned()).or_default() += 1;
                if trick == StageTrick::Lie {
                    lie_in(case, (seat.first, seat.last), &mut claim, &mut random);
                }
            }
            tricks.push(trick);
        }
        let run = Rc::new(CrewRun { seats, tricks, claim });
        self.crews.insert(lease, Rc::clone(&run));
        run
    }

    /// A party is told to run some layers.
    pub(super) fn staged(&mut self, party: usize, lease: (JobId, LeaseEpoch), hint: &[u32], seats: Vec<Stage>) -> Held {
        let run = self.crew_run(lease, hint, seats);
        let at = run.at(&self.parties[party].id());
        let said = self.member_says(&run, at, lease);
        self.stream(party, lease.0, lease.1, said)?;
        let vanishes = run.trick_of(at) == Some(StageTrick::Vanish) && at + 1 < run.seats.len();
        if vanishes { self.interrupt(party) } else { Ok(()) }
    }

    /// What a member streams of its layers, up to the end or to what keeps it from going on.
    fn member_says(&self, run: &CrewRun, at: usize, lease: (JobId, LeaseEpoch)) -> Vec<Said> {
        let case = self.jobs.get(&lease.0).case;
        let (geometry, words, seat) = (case.geometry(), run.claim.words(case), &run.seats[at]);
        let mut said = vec![Said::Began];
        for (index, root) in run.claim.run.roots.iter().enumerate() {
            // A run that goes on for longer than it may has no place for its last roots.
            let Some(place) = geometry.place(index) else { break };
            if !(seat.first..=seat.last).contains(&place.layer) {
                continue;
            }
            let point = index / usize::from(geometry.streamed_layers());
            if place.layer == seat.first {
                if !self.receives(run, at, lease, index, &mut said) {
                    return said;
                }
                if at == 0 && run.trick(at, point) == Some(StageTrick::FalseComplaint) {
                    said.push(Said::GivenBack(FailureCode::Downstream));
                    return said;
                }
                if run.trick(at, point) == Some(StageTrick::Silent) {
                    return said;
                }
            }
            if place.layer == geometry.streamed_layers() {
                said.extend(words.get(point).map(|word| Said::Word(*word, run.claim.logprobs_at(case, point))));
            }
            if place.layer == seat.last && (at + 1 < run.seats.len() || !words.is_empty()) {
                said.push(Said::HandedOver(Box::new(self.signed(run, at, lease, (place, *root)))));
            }
            said.push(Said::Root(place, *root));
        }
        let last = run.claim.run.roots.len().min(geometry.max_roots());
        if at == 0 && !words.is_empty() && !self.receives(run, at, lease, last, &mut said) {
            return said;
        }
        said.push(Said::Ended(if at == 0 { run.claim.run.saturations } else { 0 }));
        said
    }

    /// What the member at a seat signs of its rows.
    fn said(
        &self,
        run: &CrewRun,
        at: usize,
        (job, epoch): (JobId, LeaseEpoch),
        (place, root): (Place, Root),
    ) -> HandOver {
        let (worker, layer, pass) = (run.seats[at].node, place.layer, place.point);
        let (coordinator, first, rows) = (self.keys.id(), place.point, place.point + 1);
        let (before, values) = (BEFORE, VALUES);
        HandOver { coordinator, job, epoch, layer, pass, first, rows, before, values, root, worker }
    }

    fn signed(&self, run: &CrewRun, at: usize, lease: (JobId, LeaseEpoch), of: (Place, Root)) -> SignedHandOver {
        self.said(run, at, lease, of).sign(self.keys_of(&run.seats[at].node))
    }

    /// What comes of what a member is handed of the root before the one with an index, if there is one, and whether it goes on: to
    /// the first member that is the word of the point before.
    fn receives(
        &self,
        run: &CrewRun,
        at: usize,
        lease: (JobId, LeaseEpoch),
        index: usize,
        tells: &mut Vec<Said>,
    ) -> bool {
        let geometry = self.jobs.get(&lease.0).case.geometry();
        let Some(place) = index.checked_sub(1).and_then(|index| geometry.place(index)) else { return true };
        let (before, point) = (run.before(at), (index - 1) / usize::from(geometry.streamed_layers()));
        let (told, goes_on) = self.received(run, [before, at], lease, point, (place, run.claim.run.roots[index - 1]));
        tells.push(told);
        goes_on
    }

    fn received(
        &self,
        run: &CrewRun,
        [before, at]: [usize; 2],
        lease: (JobId, LeaseEpoch),
        point: usize,
        below: (Place, Root),
    ) -> (Said, bool) {
        let said = self.said(run, before, lease, below);
        let [sender, own] = [before, at].map(|at| self.keys_of(&run.seats[at].node));
        let (is_word, code) = if at == 0 { (true, FailureCode::Downstream) } else { (false, FailureCode::Upstream) };
        let other = HandOver { root: Root::from_bytes([3; 32]), ..said };
        let shows = |signed: SignedHandOver| (Said::HandedOver(Box::new(signed)), true);
        let proves = |proof: HandOverProof| (Said::Proof(Box::new(proof)), false);
        match (run.trick(before, point), run.trick(at, point)) {
            (Some(StageTrick::Silent), _) => (Said::Waits, false),
            (Some(StageTrick::Unsigned), _) | (_, Some(StageTrick::FalseComplaint)) => (Said::GivenBack(code), false),
            (Some(StageTrick::WrongRows | StageTrick::Vanish), _) if !is_word => proves(wrong_rows(other, sender)),
            (Some(StageTrick::OtherRoot), _) if !is_word => shows(other.sign(sender)),
            (Some(StageTrick::OtherWord), _) if is_word => shows(other.sign(sender)),
            (_, Some(StageTrick::FalseProof)) => {
                let (signed, values) = (said.sign(sender), vec![7; 9]);
                proves(HandOverProof::Rows { signed, state: Vec::new(), values })
            }
            (_, Some(StageTrick::ForgedProof)) => proves(wrong_rows(other, own)),
            (_, Some(StageTrick::FalseHandOver)) => shows(other.sign(own)),
            _ => shows(said.sign(sender)),
        }
    }

    /// A party of a pipeline was shown the whole run: it signs for its layers, and who leads commits to the run.
    pub(super) fn countersigns(&mut self, party: usize, (job, epoch): (JobId, LeaseEpoch)) -> Held {
        let Some(run) = self.crews.get(&(job, epoch)).map(Rc::clone) else { return Ok(()) };
        let (node, lead) = (self.parties[party].id(), run.seats[run.seats.len() - 1].node);
        let at = run.at(&node);
        let Some(receipt) = receipt_of(self.jobs.get(&job), epoch, &run.claim, lead) else { return Ok(()) };
        let Stage { first, last, .. } = run.seats[at];
        let trick = run.trick_of(at);
        self.heard_the_truth(&run, job)?;
        let said = match trick {
            Some(StageTrick::NoSegment) => return Ok(()),
            _ if node == lead => {
                let salt = Salt::from_bytes(self.random.bytes32());
                let commitment = RunCommitment::of(job, epoch, node, &salt, &receipt.head);
                let receipt = receipt.sign_share(first, &self.parties[party].keys);
                let result = JobResult { receipt, output: run.claim.run.output.clone() };
                self.parties[party].waits_to_reveal((job, epoch), result, salt);
                Said::Committed(commitment)
            }
            _ => {
                let other = trick == Some(StageTrick::OtherSegment);
                let receipt = if other { Digest::from_bytes([4; 32]) } else { receipt.digest() };
                let segment = Segment { receipt, first, last, worker: node };
                Said::Segment(Box::new(segment.sign(&self.parties[party].keys)))
            }
        };
        self.send_up(party, 0, Up::Stream(job, epoch, vec![said]))
    }

    /// Where all that was signed was found to be alike, nobody honest was told another word than was streamed.
    fn heard_the_truth(&self, run: &CrewRun, job: JobId) -> Held {
        let case = self.jobs.get(&job).case;
        let words = run.claim.words(case).len();
        let is_told_otherwise = (0..words).any(|point| run.trick(run.before(0), point) == Some(StageTrick::OtherWord));
        let first = run.seats[0].node;
        let is_honest = self.parties.iter().any(|party| party.id() == first && party.role.is_honest());
        if is_told_otherwise && is_honest {
            return Err(Broken::verdict(format!("{first} was told another word than was streamed, and nobody minds")));
        }
        Ok(())
    }

    /// Whom a party that is honest proves wrong by what it shows, and of which job.
    pub(super) fn accused_by(&self, party: usize, said: &[Said]) -> Option<(NodeId, JobId)> {
        let accused = said.iter().find_map(|said| match said {
            Said::Proof(proof) => Some((proof.hand_over().worker, proof.hand_over().job)),
            _ => None,
        });
        accused.filter(|_| self.parties[party].role.is_honest())
    }
}
