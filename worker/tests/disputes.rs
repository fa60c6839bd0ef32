//! Disputes about the worker's runs, before a real referee and over a real connection.

mod common;
#[path = "common/stuck.rs"]
mod stuck;
#[path = "common/table.rs"]
mod table;

use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{Coordinator, LAYERS, Peer, event, job, keys, package, within};
use lockstep_kernels::backend::Backend;
use lockstep_kernels::reference::Reference;
use lockstep_link::keyfile::load_or_create;
use lockstep_model::package::Package;
use lockstep_protocol::dispute::{Move, MoveBody, Reason, Side, SignedMove, Verdict, VerdictKind};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{Digest, DisputeId};
use lockstep_protocol::job::Job;
use lockstep_protocol::messages::{Ask, ToWorker};
use lockstep_worker::{Event, Handle, Worker};
use stuck::Stuck;
use table::{Liar, Table, claim, next_move, other_keys, partial, terms};
use tokio::sync::broadcast::Receiver;

/// A worker's folder with a key and the model, and a coordinator.
struct Scene {
    _dir: tempfile::TempDir,
    data: PathBuf,
    package: Package,
    coordinator: Coordinator,
    keys: Keypair,
    job: Job,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let package = package(dir.path(), 48, 100);
        let data = dir.path().join("w");
        common::hold(&data, &package, &dir.path().join("small-48-100.lsp"));
        let keys = load_or_create(&data.join("worker.key")).unwrap();
        let job = job(package.model_id(), 1, 20);
        Self { _dir: dir, data, package, coordinator: Coordinator::new(), keys, job }
    }

    async fn start(&self, backend: impl Backend + 'static) -> (Handle, Receiver<Event>, Peer) {
        let worker = Worker::start(self.coordinator.config(&self.data), Arc::new(backend)).unwrap();
        let events = worker.subscribe();
        (worker, events, self.coordinator.welcome().await)
    }

    /// The worker signed what `mine` gives, and the other side what `theirs` gives.
    fn table(&self, side: Side, mine: &dyn Backend, theirs: &dyn Backend) -> Table {
        let mine = claim(&self.package, mine, &self.job, 1, &self.keys);
        let other = claim(&self.package, theirs, &self.job, 2, &other_keys());
        Table::new(&self.package, &self.job, terms(&self.job, side, mine, other), side, theirs)
    }

    /// What is kept of a dispute.
    fn kept(&self, dispute: DisputeId, name: &str) -> usize {
        let Ok(folder) = std::fs::read_dir(self.data.join("disputes").join(dispute.to_string())) else { return 0 };
        folder.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(name)).count()
    }
}

async fn stop(mut worker: Handle) {
    worker.abort();
    within(worker.wait()).await.unwrap_err();
}

async fn judged(events: &mut Receiver<Event>) -> Option<bool> {
    event(events, |event| if let Event::DisputeJudged { lost, .. } = event { Some(lost) } else { None }).await
}

async fn failed(events: &mut Receiver<Event>) -> String {
    event(events, |event| match event {
        Event::DisputeFailed { reason, retry_in: None, .. } => Some(reason),
        _ => None,
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_honest_worker_wins_on_either_side_at_every_layer() {
    let scene = Scene::new();
    let (_worker, mut events, mut peer) = scene.start(Reference).await;
    for side in Side::BOTH {
        for layer in 1..=usize::from(common::LAYERS) + 1 {
            let mut table = scene.table(side, &Reference, &Liar::at(layer));
            let (verdict, moves) = table.play(&mut peer).await;
            assert_eq!((verdict.kind, verdict.losers), (VerdictKind::Proven, side.other().alone()), "{side} {layer}");
            assert!(moves.len() >= 2, "{}", moves.len());
            assert_eq!(judged(&mut events).await, Some(false));
            // Its own moves, the coordinator's word for each, and the verdict.
            let dispute = table.referee.id();
            assert_eq!(scene.kept(dispute, "move-"), moves.len());
            assert_eq!(scene.kept(dispute, "entry-"), moves.len());
            assert_eq!(scene.kept(dispute, "verdict"), 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dispute_takes_one_run_up_to_its_layer() {
    let scene = Scene::new();
    let counting = Stuck::at(usize::MAX, scene.job.tokens.len());
    let (_worker, _events, mut peer) = scene.start(counting.clone()).await;
    let mut table = scene.table(Side::Claimant, &Reference, &Liar::at(2));
    let (_, moves) = table.play(&mut peer).await;
    assert!(moves.len() >= 4, "{}", moves.len());
    assert_eq!(counting.layers(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dispute_about_a_run_that_is_kept_takes_its_layer_alone() {
    // The last layer that a job of two layers can be disputed at starts from layer 2, the first one from the tokens.
    for (layer, kept_bytes, ran) in [(2, u64::MAX, 1), (3, u64::MAX, 1), (1, u64::MAX, 2), (3, 0, 4)] {
        let scene = Scene::new();
        let counting = Stuck::at(usize::MAX, scene.job.tokens.len());
        let mut config = scene.coordinator.config(&scene.data);
        config.kept_runs_bytes = kept_bytes;
        let _worker = Worker::start(config, Arc::new(counting.clone())).unwrap();
        let mut peer = scene.coordinator.welcome().await;
        peer.assign(&scene.job, 1).await;
        let run = peer.run().await;
        peer.reveal(&run).await;
        let before = counting.layers();
        assert_eq!(before, usize::from(LAYERS) + 2);
        let mut table = scene.table(Side::Claimant, &Reference, &Liar::at(layer));
        let (verdict, _) = table.play(&mut peer).await;
        assert_eq!(verdict.losers, [false, true]);
        assert_eq!(counting.layers() - before, ran, "layer {layer}");
    }
}

/// What is kept is of use only where it has the root that was signed: of another run under the same job it is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_run_that_is_not_the_one_that_was_signed_is_not_used() {
    let scene = Scene::new();
    let lying = Liar::at(1);
    let (_worker, _events, mut peer) = scene.start(lying.clone()).await;
    peer.assign(&scene.job, 3).await;
    let run = peer.run().await;
    peer.reveal(&run).await;
    lying.lies.store(false, Ordering::SeqCst);
    let mut table = scene.table(Side::Claimant, &Reference, &Liar::at(2));
    let (verdict, _) = table.play(&mut peer).await;
    assert_eq!(verdict.losers, [false, true]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_signed_is_sent_again_without_a_model() {
    let scene = Scene::new();
    let mut table = scene.table(Side::Claimant, &Reference, &Liar::at(2));
    let (worker, _, mut peer) = scene.start(Reference).await;
    let ask = table.next_ask(&mut peer).await.unwrap();
    peer.say(ToWorker::Asked(Box::new(ask.clone()))).await;
    let signed = next_move(&peer).await;
    stop(worker).await;
    std::fs::remove_dir_all(scene.data.join("packages")).unwrap();
    let (_worker, _, mut peer) = scene.start(Reference).await;
    peer.say(ToWorker::Asked(Box::new(ask))).await;
    assert_eq!(next_move(&peer).await, signed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_that_were_halted_are_disputed_by_what_was_streamed() {
    let scene = Scene::new();
    let (_worker, mut events, mut peer) = scene.start(Reference).await;
    let (side, liar) = (Side::Challenger, Liar::at(2));
    let mine = partial(&scene.package, &Reference, &scene.job, 1, 3, &scene.keys);
    let theirs = partial(&scene.package, &liar, &scene.job, 2, 2, &other_keys());
    let mut table = Table::new(&scene.package, &scene.job, terms(&scene.job, side, mine, theirs), side, &liar);
    let (verdict, _) = table.play(&mut peer).await;
    assert_eq!((verdict.kind, verdict.losers), (VerdictKind::Proven, [true, false]));
    assert_eq!(judged(&mut events).await, Some(false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_challenger_opens_where_the_claimant_is_silent() {
    let scene = Scene::new();
    let (_worker, mut events, mut peer) = scene.start(Reference).await;
    let mut table = scene.table(Side::Challenger, &Reference, &Liar::at(2));
    table.they_open = false;
    let (verdict, moves) = table.play(&mut peer).await;
    assert!(matches!(moves.last().unwrap().made.body, MoveBody::Open { .. }));
    assert_eq!((verdict.kind, verdict.losers), (VerdictKind::Proven, [true, false]));
    assert_eq!(judged(&mut events).await, Some(false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_killed_after_any_move_goes_on_with_the_same_bytes() {
    let scene = Scene::new();
    let mut table = scene.table(Side::Claimant, &Reference, &Liar::at(2));
    let (mut worker, _, mut peer) = scene.start(Reference).await;
    while let Some(ask) = table.next_ask(&mut peer).await {
        peer.say(ToWorker::Asked(Box::new(ask.clone()))).await;
        let first = next_move(&peer).await;
        stop(worker).await;
        (worker, _, peer) = scene.start(Reference).await;
        // The coordinator did not get it, and asks again: twice, as it happens.
        for _ in 0..2 {
            peer.say(ToWorker::Asked(Box::new(ask.clone()))).await;
            assert_eq!(next_move(&peer).await, first);
        }
        table.take(first);
    }
    let verdict = table.referee.verdict().unwrap();
    assert_eq!((verdict.kind, verdict.losers), (VerdictKind::Proven, [false, true]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_run_comes_out_otherwise_concedes() {
    let scene = Scene::new();
    let (_worker, mut events, mut peer) = scene.start(Reference).await;
    // The worker was wrong, the other side was not, or was elsewhere.
    let (late, right): (Liar, Reference) = (Liar::at(3), Reference);
    for (mine, theirs) in [(1, &late as &dyn Backend), (2, &late), (2, &right)] {
        let mut table = scene.table(Side::Claimant, &Liar::at(mine), theirs);
        let (verdict, moves) = table.play(&mut peer).await;
        assert_eq!(moves.len(), 1);
        assert_eq!((verdict.reason, verdict.losers), (Reason::Conceded, [true, false]));
        event(&mut events, |event| matches!(event, Event::Conceded { .. }).then_some(())).await;
        assert_eq!(judged(&mut events).await, Some(true));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_was_wrong_later_is_right_where_the_runs_differ_first() {
    let scene = Scene::new();
    let (_worker, mut events, mut peer) = scene.start(Reference).await;
    let mut table = scene.table(Side::Challenger, &Liar::at(3), &Liar::at(2));
    let (verdict, _) = table.play(&mut peer).await;
    assert_eq!((verdict.kind, verdict.losers), (VerdictKind::Proven, [true, false]));
    assert_eq!(judged(&mut events).await, Some(false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_changes_its_mind_never_makes_it_sign_two_moves() {
    let scene = Scene::new();
    let mut table = scene.table(Side::Claimant, &Reference, &Liar::at(1));
    let (worker, _, mut peer) = scene.start(Reference).await;
    let ask = table.next_ask(&mut peer).await.unwrap();
    peer.say(ToWorker::Asked(Box::new(ask.clone()))).await;
    let honest = next_move(&peer).await;
    assert!(!matches!(honest.made.body, MoveBody::Concede));
    // From here on its run comes out otherwise. What it signed stays signed.
    stop(worker).await;
    let (worker, mut events, mut peer) = scene.start(Liar::at(1)).await;
    peer.say(ToWorker::Asked(Box::new(ask))).await;
    assert_eq!(next_move(&peer).await, honest);
    table.take(honest);
    let ask = table.next_ask(&mut peer).await.unwrap();
    peer.say(ToWorker::Asked(Box::new(ask.clone()))).await;
    let conceded = next_move(&peer).await;
    assert_eq!((conceded.made.round, &conceded.made.body), (1, &MoveBody::Concede));
    event(&mut events, |event| matches!(event, Event::Conceded { .. }).then_some(())).await;
    // Nor does it take the concession back where its run comes out right again.
    stop(worker).await;
    let (_worker, _, mut peer) = scene.start(Reference).await;
    peer.say(ToWorker::Asked(Box::new(ask))).await;
    assert_eq!(next_move(&peer).await, conceded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_package_that_was_damaged_since_costs_no_claim() {
    let scene = Scene::new();
    let (worker, _events, mut peer) = scene.start(Reference).await;
    let served = peer.serve(&scene.package, |_, reply| Some(reply));
    let other = job(scene.package.model_id(), 2, 5);
    peer.assign(&other, 7).await;
    peer.run().await.is_honest(&scene.package, &other, 7, worker.id());
    assert_eq!(served.load(Ordering::SeqCst), 0, "it lies on disk");
    damage(&scene.data.join("packages").join(format!("{}.lsp", scene.package.model_id())), &scene.package);
    let mut table = scene.table(Side::Claimant, &Reference, &Liar::at(2));
    let (verdict, _) = table.play(&mut peer).await;
    assert_eq!((verdict.kind, verdict.losers), (VerdictKind::Proven, [false, true]));
    assert!(served.load(Ordering::SeqCst) > 0, "it was pulled again");
}

/// Changes the embedding of every token, in a file that is mapped.
fn damage(file: &Path, package: &Package) {
    let bytes = std::fs::read(file).unwrap();
    let blob = package.blob(0);
    let at = bytes.windows(blob.len()).position(|window| window == blob).unwrap() as u64;
    let damaged: Vec<u8> = blob.iter().map(|byte| byte ^ 1).collect();
    let mut file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&damaged).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_is_not_at_hand_any_more_is_pulled_for_the_dispute() {
    let scene = Scene::new();
    std::fs::remove_file(scene.data.join("packages").join(format!("{}.lsp", scene.package.model_id()))).unwrap();
    let (_worker, _events, mut peer) = scene.start(Reference).await;
    peer.serve(&scene.package, |_, reply| Some(reply));
    let mut table = scene.table(Side::Claimant, &Reference, &Liar::at(1));
    let (verdict, _) = table.play(&mut peer).await;
    assert_eq!(verdict.losers, [false, true]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dispute_does_not_wait_for_assignments() {
    let scene = Scene::new();
    let stuck = Stuck::at(1, 7);
    let (_worker, mut events, mut peer) = scene.start(stuck.clone()).await;
    peer.assign(&job(scene.package.model_id(), 9, 7), 3).await;
    event(&mut events, |event| matches!(event, Event::Running { .. }).then_some(())).await;
    let _run = peer.stream().await;
    let mut table = scene.table(Side::Challenger, &Reference, &Liar::at(2));
    let (verdict, _) = table.play(&mut peer).await;
    assert_eq!(verdict.losers, [true, false]);
    stuck.let_go();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asks_that_do_not_hold_are_not_answered() {
    let scene = Scene::new();
    let (_worker, mut events, mut peer) = scene.start(Reference).await;
    let mut table = scene.table(Side::Claimant, &Reference, &Liar::at(2));
    let good = table.next_ask(&mut peer).await.unwrap();
    let altered = |change: &dyn Fn(&mut Ask)| {
        let mut ask = good.clone();
        change(&mut ask);
        ask
    };
    let stranger = Keypair::from_seed([67; 32]);
    let asks = [
        // Another coordinator's, another job's, the other side's, nobody's.
        altered(&|ask| ask.terms.coordinator = stranger.id()),
        altered(&|ask| ask.job.tokens[3] ^= 1),
        altered(&|ask| ask.side = Side::Challenger),
        altered(&|ask| ask.terms.claimant = claim(&scene.package, &Reference, &scene.job, 1, &stranger)),
        // A claim in the worker's name that it never signed.
        altered(&|ask| {
            let lie = claim(&scene.package, &Liar::at(1), &scene.job, 1, &stranger);
            let mut lie = lie.receipt().unwrap().clone();
            lie.receipt.worker = scene.keys.id();
            ask.terms.claimant = lie.into();
        }),
        // Moves that nobody made: half a round, and one that the worker did not sign.
        altered(&|ask| ask.moves = vec![made(ask, 0, &other_keys())]),
        altered(&|ask| ask.moves = vec![made(ask, 0, &stranger), made(ask, 0, &other_keys())]),
    ];
    for ask in asks {
        peer.say(ToWorker::Asked(Box::new(ask))).await;
        assert!(!failed(&mut events).await.is_empty());
    }
    // The good one is still answered, and nothing else was.
    peer.say(ToWorker::Asked(Box::new(good.clone()))).await;
    let signed = next_move(&peer).await;
    assert_eq!((signed.made.dispute, signed.made.round), (table.referee.id(), 0));
    table.take(signed);
    assert_eq!(std::fs::read_dir(scene.data.join("disputes")).unwrap().count(), 1);
}

/// A move of the first round that says nothing true.
fn made(ask: &Ask, round: u16, keys: &Keypair) -> SignedMove {
    let dispute = ask.terms.id();
    let previous = Digest::from_bytes(*dispute.as_bytes());
    Move { dispute, round, previous, body: MoveBody::Descend { values: vec![[7; 32]; 3] } }.sign(keys)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_moves_of_the_other_side_for_one_round_are_shown_to_the_coordinator() {
    let scene = Scene::new();
    let (_worker, mut events, mut peer) = scene.start(Reference).await;
    let mut table = scene.table(Side::Claimant, &Reference, &Liar::at(2));
    let first = table.next_ask(&mut peer).await.unwrap();
    peer.say(ToWorker::Asked(Box::new(first.clone()))).await;
    table.take(next_move(&peer).await);
    let second = table.next_ask(&mut peer).await.unwrap();
    assert_eq!(second.moves.len(), 2);
    // The worker is shown a move, and later another one for the same round, both signed.
    let mut other = second.clone();
    other.moves[1] = made(&second, 0, &other_keys());
    peer.say(ToWorker::Asked(Box::new(other.clone()))).await;
    assert!(!failed(&mut events).await.is_empty());
    peer.say(ToWorker::Asked(Box::new(second))).await;
    let mut shown = next_move(&peer).await;
    let mut own = next_move(&peer).await;
    if shown.check(&other_keys().id()).is_err() {
        std::mem::swap(&mut shown, &mut own);
    }
    assert_eq!(shown, other.moves[1]);
    own.check(&scene.keys.id()).unwrap();
    event(&mut events, |event| matches!(event, Event::EquivocationSeen { round: 0, .. }).then_some(())).await;
    assert_eq!(scene.kept(table.referee.id(), "seen-"), 2);
    table.take(shown);
    assert_eq!(table.next_ask(&mut peer).await, None);
    let verdict = table.referee.verdict().unwrap();
    assert_eq!((verdict.reason, verdict.losers), (Reason::Equivocation, [false, true]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_coordinators_own_acknowledgements_are_kept() {
    let scene = Scene::new();
    let (_worker, mut events, mut peer) = scene.start(Reference).await;
    let mut table = scene.table(Side::Challenger, &Reference, &Liar::at(2));
    let ask = table.next_ask(&mut peer).await.unwrap();
    peer.say(ToWorker::Asked(Box::new(ask))).await;
    table.take(next_move(&peer).await);
    let dispute = table.referee.id();
    let entry = table.referee.entries()[0].entry.clone();
    for forger in [other_keys(), scene.keys.clone()] {
        peer.say(ToWorker::Acknowledged(Box::new(entry.clone().sign(&forger)))).await;
    }
    // One about a dispute that this worker knows nothing of.
    let mut foreign = entry.clone();
    foreign.dispute = DisputeId::from_bytes([9; 32]);
    peer.say(ToWorker::Acknowledged(Box::new(foreign.sign(&keys())))).await;
    peer.say(ToWorker::Acknowledged(Box::new(entry.sign(&keys())))).await;
    let verdict = scene_verdict(&table);
    peer.say(ToWorker::Judged { dispute, verdict }).await;
    assert_eq!(judged(&mut events).await, Some(true));
    assert_eq!(scene.kept(dispute, "entry-"), 1);
    assert_eq!(folders(&scene.data), [dispute.to_string()]);
}

/// A verdict against the challenger.
fn scene_verdict(table: &Table) -> Verdict {
    let place = table.referee.terms().check().unwrap().place;
    let (kind, losers, reason) = (VerdictKind::Timeout, [false, true], Reason::Silence);
    Verdict { kind, losers, place, chunk: None, step: None, element: None, reason }
}

fn folders(data: &Path) -> Vec<String> {
    let names = std::fs::read_dir(data.join("disputes")).unwrap();
    names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
