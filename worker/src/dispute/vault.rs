//! What a worker must not forget about its disputes: each move that it signed, kept before it is sent, so that it never
//! signs two for one round; and the coordinator's signed entries about them, its proof that it moved in time.
//!
//! One folder for each dispute: `move-ROUND` (its own), `seen-ROUND` (the other side's; a second one beside
//! it proves that the other side signed two), `entry-INDEX`, `verdict`.

use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use lockstep_protocol::canonical::{Canonical, from_bytes, to_bytes};
use lockstep_protocol::dispute::{DisputeId, SignedEntry, SignedMove, Verdict};
use lockstep_protocol::limits::{MAX_DISPUTE_ENTRIES, MAX_MOVE_BYTES, WORKER_DISPUTE_KEEP_MS, WORKER_DISPUTES_KEPT};

use crate::durable;

const VERDICT: &str = "verdict";

/// The folder of all disputes.
#[derive(Debug)]
pub(crate) struct Vault {
    dir: PathBuf,
    /// Most disputes that are kept.
    most: usize,
    /// One writer at a time.
    writing: Mutex<()>,
}

impl Vault {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, most: WORKER_DISPUTES_KEPT, writing: Mutex::default() }
    }

    /// The move that was signed for this round, if there was one.
    pub fn signed(&self, dispute: DisputeId, round: u16) -> Result<Option<SignedMove>, Error> {
        load(&self.move_path(dispute, round), MAX_MOVE_BYTES)
    }

    /// Keeps a move, and returns the one that may be sent: this one, or the one that was kept for its round before.
    pub fn keep(&self, signed: SignedMove) -> Result<SignedMove, Error> {
        let (dispute, round) = (signed.made.dispute, signed.made.round);
        let _writing = self.writing();
        self.make_room(dispute)?;
        if durable::create(&self.move_path(dispute, round), &to_bytes(&signed))? {
            return Ok(signed);
        }
        self.signed(dispute, round)?.ok_or_else(|| Error::other("a kept move is gone"))
    }

    /// Keeps a move of the other side as it was shown. Returns the one that was shown for its round before, where that
    /// is another one after the same history: the two prove that the other side signed both.
    pub fn witness(&self, shown: &SignedMove) -> Result<Option<SignedMove>, Error> {
        let (dispute, round) = (shown.made.dispute, shown.made.round);
        let path = self.folder(dispute).join(format!("seen-{round:05}"));
        let _writing = self.writing();
        self.make_room(dispute)?;
        if durable::create(&path, &to_bytes(shown))? {
            return Ok(None);
        }
        let before: Option<SignedMove> = load(&path, MAX_MOVE_BYTES)?;
        let contradicts =
            |before: &SignedMove| before.made != shown.made && before.made.previous == shown.made.previous;
        let before = before.filter(contradicts);
        if before.is_some() {
            durable::create(&path.with_extension("second"), &to_bytes(shown))?;
        }
        Ok(before)
    }

    /// Whether anything of the dispute is kept.
    pub fn knows(&self, dispute: DisputeId) -> bool {
        self.folder(dispute).is_dir()
    }

    /// Keeps an entry about a dispute in which this worker moved. Of too many, none is kept.
    pub fn acknowledge(&self, signed: &SignedEntry) -> Result<(), Error> {
        let entry = &signed.entry;
        let _writing = self.writing();
        if self.knows(entry.dispute) && usize::from(entry.index) < MAX_DISPUTE_ENTRIES {
            // An entry that comes twice is the same; of two that differ the first is kept.
            durable::create(&self.folder(entry.dispute).join(format!("entry-{:05}", entry.index)), &to_bytes(signed))?;
        }
        Ok(())
    }

    /// Keeps the verdict of a dispute in which this worker moved.
    pub fn judged(&self, dispute: DisputeId, verdict: &Verdict) -> Result<(), Error> {
        let _writing = self.writing();
        if self.knows(dispute) {
            durable::create(&self.folder(dispute).join(VERDICT), &to_bytes(verdict))?;
        }
        Ok(())
    }

    /// Makes the folder of a dispute. Where there are too many, one that was judged goes, or one that is very old: what
    /// is still played is never forgotten, or this worker could be made to sign twice.
    fn make_room(&self, dispute: DisputeId) -> Result<(), Error> {
        if self.knows(dispute) {
            return Ok(());
        }
        durable::create_directory(&self.dir)?;
        let mut kept: Vec<(bool, SystemTime, PathBuf)> = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let since = path.metadata()?.modified()?;
            kept.push((!path.join(VERDICT).is_file(), since, path));
        }
        if kept.len() >= self.most {
            kept.sort();
            let (is_open, since, oldest) = &kept[0];
            let age = since.elapsed().unwrap_or_default();
            if *is_open && age.as_millis() < u128::from(WORKER_DISPUTE_KEEP_MS) {
                return Err(Error::other(format!("{} disputes without a verdict are kept already", kept.len())));
            }
            std::fs::remove_dir_all(oldest)?;
        }
        durable::create_directory(&self.folder(dispute))
    }

    fn folder(&self, dispute: DisputeId) -> PathBuf {
        self.dir.join(dispute.to_string())
    }

    fn move_path(&self, dispute: DisputeId, round: u16) -> PathBuf {
        self.folder(dispute).join(format!("move-{round:05}"))
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file that is there but can't be read is an error: it may hold a signed move.
fn load<T: Canonical>(path: &Path, cap: usize) -> Result<Option<T>, Error> {
    let damaged = |error: &dyn std::fmt::Display| {
        Error::new(ErrorKind::InvalidData, format!("{} is damaged: {error}", path.display()))
    };
    let bytes = durable::read(path, cap).map_err(|error| damaged(&error))?;
    bytes.map(|bytes| from_bytes(&bytes)).transpose().map_err(|error| damaged(&error))
}

#[cfg(test)]
mod tests {
    use lockstep_protocol::dispute::{Move, MoveBody, Reason, VerdictKind};
    use lockstep_protocol::identity::Keypair;
    use lockstep_protocol::ids::{Digest, Place};

    use super::*;

    fn keys() -> Keypair {
        Keypair::from_seed([3; 32])
    }

    fn signed(dispute: u8, round: u16, says: u8) -> SignedMove {
        let (dispute, previous) = (DisputeId::from_bytes([dispute; 32]), Digest::from_bytes([9; 32]));
        Move { dispute, round, previous, body: MoveBody::Reveal { chunk: vec![says] } }.sign(&keys())
    }

    fn verdict() -> Verdict {
        let (kind, place, reason) = (VerdictKind::Proven, Place { point: 3, layer: 1 }, Reason::Conceded);
        Verdict { kind, losers: [true, false], place, chunk: None, step: None, element: None, reason }
    }

    #[test]
    fn the_first_move_of_a_round_is_the_only_one() {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::new(dir.path().join("disputes"));
        let first = signed(1, 2, 10);
        assert_eq!(vault.signed(first.made.dispute, 2).unwrap(), None);
        assert_eq!(vault.keep(first.clone()).unwrap(), first);
        assert_eq!(vault.keep(signed(1, 2, 11)).unwrap(), first);
        assert_eq!(vault.keep(signed(1, 3, 11)).unwrap(), signed(1, 3, 11));
        // As another process finds it.
        let vault = Vault::new(dir.path().join("disputes"));
        assert_eq!(vault.signed(first.made.dispute, 2).unwrap(), Some(first));
    }

    #[test]
    fn a_kept_move_that_is_damaged_stops_the_round_instead_of_being_signed_anew() {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::new(dir.path().to_path_buf());
        let first = vault.keep(signed(1, 0, 10)).unwrap();
        let path = vault.move_path(first.made.dispute, 0);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.truncate(20);
        std::fs::write(&path, bytes).unwrap();
        vault.signed(first.made.dispute, 0).unwrap_err();
        vault.keep(signed(1, 0, 10)).unwrap_err();
    }

    #[test]
    fn room_is_made_by_what_was_judged_and_never_by_what_is_played() {
        let dir = tempfile::tempdir().unwrap();
        let mut vault = Vault::new(dir.path().to_path_buf());
        vault.most = 2;
        let disputes = [1, 2].map(|dispute| vault.keep(signed(dispute, 0, 10)).unwrap().made.dispute);
        vault.keep(signed(3, 0, 10)).unwrap_err();
        // What is known goes on, full or not.
        vault.keep(signed(1, 1, 10)).unwrap();
        vault.judged(disputes[1], &verdict()).unwrap();
        vault.keep(signed(3, 0, 10)).unwrap();
        assert!(vault.knows(disputes[0]) && !vault.knows(disputes[1]));
        vault.keep(signed(4, 0, 10)).unwrap_err();
    }

    #[test]
    fn a_second_move_of_the_other_side_is_kept_beside_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::new(dir.path().to_path_buf());
        let (first, second) = (signed(1, 0, 10), signed(1, 0, 11));
        assert_eq!(vault.witness(&first).unwrap(), None);
        assert_eq!(vault.witness(&first).unwrap(), None);
        assert_eq!(vault.witness(&second).unwrap(), Some(first.clone()));
        assert_eq!(vault.witness(&second).unwrap(), Some(first));
        assert_eq!(std::fs::read_dir(vault.folder(second.made.dispute)).unwrap().count(), 2);
    }
}
