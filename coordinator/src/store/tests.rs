//! Durability: reopened, torn, newer, in use.

use std::path::Path;
use std::sync::mpsc::channel;

use lockstep_protocol::generation::{Generation, word_root};
use lockstep_protocol::ids::{NodeId, Place, Root, Salt, VerdictKind};
use lockstep_protocol::job::{Job, JobKind};
use lockstep_protocol::limits::CHALLENGE_WINDOW_MS;
use lockstep_protocol::machine::{JobFailure, JobSpec};
use lockstep_protocol::messages::JobResult;
use lockstep_protocol::receipt::{Run, WorkerReceipt};

use super::*;
use crate::testing::spec;

fn keys() -> Keypair {
    Keypair::from_seed([6; 32])
}

/// A file that something else made, with the mode that the store asks for.
fn keep_private(path: &Path) {
    #[cfg(unix)]
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}

fn open(dir: &Path) -> (Store, Restored) {
    Store::open(dir, &keys(), 1).unwrap()
}

fn commit(store: &Store, writes: Vec<Write>) {
    let (sender, done) = channel();
    store.submit(Commit { writes, then: Box::new(move || sender.send(()).unwrap()) }).unwrap();
    done.recv().unwrap();
}

fn submitted(number: u8) -> Record {
    Record::Submitted(spec(number))
}

#[test]
fn what_was_committed_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let (store, restored) = open(dir.path());
    assert!(restored.records.is_empty());
    let secret = restored.draw_secret;
    assert_ne!(secret, [0; 32]);
    let job = submitted(1).job();
    let quarantined = Record::Quarantined {
        node: NodeId::from_bytes([3; 32]),
        job,
        place: Place { point: 0, layer: 1 },
        kind: VerdictKind::Proven,
    };
    commit(&store, vec![Write::Record(submitted(1)), Write::Record(quarantined.clone()), Write::Clock(Millis(77))]);
    commit(&store, vec![Write::Record(submitted(2))]);
    drop(store);

    let (store, restored) = open(dir.path());
    assert_eq!(restored.records, [submitted(1), quarantined.clone(), submitted(2)]);
    assert_eq!((restored.clock, restored.draw_secret), (Millis(77), secret));
    let reason = JobFailure::Attempts.to_string();
    commit(&store, vec![Write::Failed { job, reason: reason.clone(), at: Millis(5) }]);
    assert_eq!(store.job(&job).unwrap(), Some(Stored::Failed(reason)));
    drop(store);

    // An ended job's records are gone, quarantines stay.
    let (store, restored) = open(dir.path());
    assert_eq!(restored.records, [quarantined, submitted(2)]);
    assert_eq!(store.job(&submitted(2).job()).unwrap(), None);
}

/// The highest epoch is written with its record and stays when the records of its job go.
#[test]
fn the_last_epoch_outlives_the_records_that_gave_it_out() {
    let dir = tempfile::tempdir().unwrap();
    let (store, restored) = open(dir.path());
    assert_eq!(restored.last_epoch, LeaseEpoch(0));
    let job = submitted(1).job();
    let assigned = |epoch| Record::Assigned { job, epoch: LeaseEpoch(epoch), node: NodeId::from_bytes([3; 32]) };
    let records = [submitted(1), assigned(6), assigned(7)];
    commit(&store, records.iter().cloned().map(Write::Record).collect());
    drop(store);
    let (store, restored) = open(dir.path());
    assert_eq!((&restored.records[..], restored.last_epoch), (&records[..], LeaseEpoch(7)));
    commit(&store, vec![Write::Record(submitted(2)), Write::Failed { job, reason: String::new(), at: Millis(5) }]);
    drop(store);
    let (_, restored) = open(dir.path());
    assert_eq!((restored.records, restored.last_epoch), (vec![submitted(2)], LeaseEpoch(7)));
}

#[test]
fn commits_that_wait_are_written_together_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let (sender, done) = channel();
    for number in 0..200_u8 {
        let sender = sender.clone();
        let writes = if number % 3 == 0 { Vec::new() } else { vec![Write::Record(submitted(number))] };
        store.submit(Commit { writes, then: Box::new(move || sender.send(number).unwrap()) }).unwrap();
    }
    drop(sender);
    assert!(done.iter().eq(0..200));
    drop(store);
    let (_, restored) = open(dir.path());
    let expected: Vec<_> = (0..200_u8).filter(|number| number % 3 != 0).map(submitted).collect();
    assert_eq!(restored.records, expected);
}

/// A crash at any byte of the log leaves the commits before it, whole.
#[test]
fn a_torn_log_leaves_a_prefix_of_the_commits() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    for number in 0..8_u8 {
        commit(&store, vec![Write::Record(submitted(2 * number)), Write::Record(submitted(2 * number + 1))]);
    }
    let log = std::fs::read(dir.path().join("coordinator.db-wal")).unwrap();
    let file = std::fs::read(dir.path().join(STORE_FILE)).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for cut in (0..=log.len()).step_by(1_000).chain([log.len()]) {
        let copy = tempfile::tempdir().unwrap();
        std::fs::write(copy.path().join(STORE_FILE), &file).unwrap();
        keep_private(&copy.path().join(STORE_FILE));
        std::fs::write(copy.path().join("coordinator.db-wal"), &log[..cut]).unwrap();
        keep_private(&copy.path().join("coordinator.db-wal"));
        let (_, restored) = open(copy.path());
        let count = restored.records.len();
        assert_eq!(count % 2, 0, "half a commit at {cut} bytes");
        assert!(restored.records.into_iter().eq((0..count as u8).map(submitted)));
        seen.insert(count);
    }
    assert!(seen.contains(&16) && seen.len() > 4, "{seen:?}");
}

#[test]
fn newer_foreign_and_used_stores_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    assert!(matches!(Store::open(dir.path(), &keys(), 1), Err(StoreError::Locked(_))));
    drop(store);
    let connection = Connection::open(dir.path().join(STORE_FILE)).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let error = Store::open(dir.path(), &keys(), 1).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 99 }), "{error}");
    // From before there were disputes.
    let connection = Connection::open(dir.path().join(STORE_FILE)).unwrap();
    connection.pragma_update(None, "user_version", 3).unwrap();
    drop(connection);
    let error = Store::open(dir.path(), &keys(), 1).unwrap_err();
    assert!(matches!(error, StoreError::Older { found: 3 }), "{error}");
    assert!(error.to_string().contains("new data directory"), "{error}");

    let foreign = tempfile::tempdir().unwrap();
    let connection = Connection::open(foreign.path().join(STORE_FILE)).unwrap();
    connection.execute_batch("CREATE TABLE x (y)").unwrap();
    drop(connection);
    keep_private(&foreign.path().join(STORE_FILE));
    assert!(matches!(Store::open(foreign.path(), &keys(), 1), Err(StoreError::NotAStore)));
}

/// While the disk refuses, nothing is acknowledged; once it takes writes again, everything is.
#[test]
fn a_refused_write_is_tried_again_until_it_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let blocker = Connection::open(dir.path().join(STORE_FILE)).unwrap();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (sender, done) = channel();
    let then = Box::new(move || sender.send(()).unwrap());
    store.submit(Commit { writes: vec![Write::Record(submitted(1))], then }).unwrap();
    while store.is_writable() {
        std::thread::yield_now();
    }
    assert!(done.try_recv().is_err());
    blocker.execute_batch("ROLLBACK").unwrap();
    done.recv().unwrap();
    assert!(store.is_writable());
    drop(store);
    assert_eq!(open(dir.path()).1.records, [submitted(1)]);
}

/// What breaks the tables' rules would be tried for ever: the store stops, and what was kept before it is there.
#[test]
fn a_write_that_can_never_be_made_stops_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    commit(&store, vec![Write::Record(submitted(1))]);
    Connection::open(dir.path().join(STORE_FILE))
        .unwrap()
        .execute_batch(
            "CREATE TRIGGER no_more BEFORE INSERT ON records BEGIN SELECT RAISE(ABORT, 'a rule is broken'); END",
        )
        .unwrap();
    let (sender, done) = channel::<()>();
    let then = Box::new(move || sender.send(()).unwrap());
    store.submit(Commit { writes: vec![Write::Record(submitted(2))], then }).unwrap();
    assert!(done.recv().is_err(), "whoever waits hears that it is dropped");
    assert!(!store.is_writable());
    drop(store);
    assert_eq!(open(dir.path()).1.records, [submitted(1)]);
}

#[cfg(unix)]
#[test]
fn nobody_else_reads_the_store() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (store, _) = open(&data);
    commit(&store, vec![Write::Record(submitted(1))]);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    let path = data.join(STORE_FILE);
    for file in [path.clone(), data.join(format!("{STORE_FILE}-wal"))] {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
    drop(store);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let refused = Store::open(&data, &keys(), 1).unwrap_err();
    assert!(refused.to_string().contains("chmod 600"), "{refused}");
}

#[test]
fn what_a_message_says_is_not_said_again_by_its_source() {
    let error = io("open", Path::new("x"), std::io::Error::other("because"));
    assert!(error.to_string().contains("because") && std::error::Error::source(&error).is_none());
}

/// A generation that was run: two points of one layer and the word.
fn ran() -> (JobSpec, Record, Digest) {
    let mut spec = spec(7);
    let job = Job { kind: JobKind::Generation(Box::new(Generation::greedy(2))), ..(*spec.job).clone() };
    (spec.job, spec.layers, spec.output_count) = (Arc::new(job), 1, 2);
    let words = vec![5, 3 << 24 | 6];
    let layer = Root::from_bytes([9; 32]);
    let roots: Vec<Root> = words.iter().flat_map(|word| [layer, word_root(*word)]).collect();
    let (output, before) = (words.iter().map(|word| word.cast_signed()).collect(), roots[..2].to_vec());
    let run = Run { epoch: LeaseEpoch(1), layers: 1, roots, words, output_count: 2, work_units: 100, saturations: 0 };
    let receipt = WorkerReceipt::of_run(&spec.job.header(), run, keys().id()).unwrap().sign(&keys());
    let digest = receipt.receipt.digest();
    let result = Box::new(JobResult { receipt, output });
    let (job, salt) = (spec.job.id(), Salt::from_bytes([1; 32]));
    (spec, Record::Ran { job, result, before, salt, operator: None }, digest)
}

#[test]
fn runs_are_there_with_all_their_roots_until_nobody_can_challenge_them() {
    let dir = tempfile::tempdir().unwrap();
    let (spec, record, digest) = ran();
    let Record::Ran { job, result, before, .. } = record.clone() else { unreachable!("made above") };
    let (store, _) = open(dir.path());
    commit(&store, vec![Write::Record(Record::Submitted(spec.clone())), Write::Record(record.clone())]);
    drop(store);
    let (store, restored) = open(dir.path());
    assert_eq!(restored.records, [Record::Submitted(spec), record]);
    let done = |job, at| vec![Write::Done { job, receipt: String::new(), at: Millis(at) }];
    commit(&store, done(job, 10));
    let kept = Some(KeptRun { output: result.output, before });
    assert_eq!(store.run(&job, &digest).unwrap(), kept);
    drop(store);

    // As the version before had them.
    let connection = Connection::open(dir.path().join(STORE_FILE)).unwrap();
    let back = "ALTER TABLE runs RENAME TO later;
        CREATE TABLE runs (job BLOB NOT NULL, receipt BLOB NOT NULL, ended_ms INTEGER, bytes BLOB NOT NULL,
            PRIMARY KEY (job, receipt)) WITHOUT ROWID;
        CREATE INDEX runs_by_end ON runs (ended_ms);
        INSERT INTO runs SELECT job, receipt, (SELECT ended_ms FROM run_ends WHERE run_ends.job = later.job), bytes
            FROM later;
        DROP TABLE later;
        DROP TABLE run_ends;
        DELETE FROM migrations WHERE version = 6;
        PRAGMA user_version = 5;";
    connection.execute_batch(back).unwrap();
    drop(connection);
    let (store, _) = open(dir.path());
    assert_eq!(store.run(&job, &digest).unwrap(), kept);
    commit(&store, done(submitted(1).job(), 10 + 2 * CHALLENGE_WINDOW_MS));
    assert_eq!(store.run(&job, &digest).unwrap(), kept, "not over yet");
    commit(&store, done(submitted(2).job(), 11 + 2 * CHALLENGE_WINDOW_MS));
    assert_eq!(store.run(&job, &digest).unwrap(), None);
}
