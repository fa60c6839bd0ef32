//! What survives a crash of the coordinator: stored bytes, one transaction at a time.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_protocol::canonical::{Canonical, from_bytes, to_bytes};
use lockstep_protocol::dispute::{DisputeId, SignedEntry, What};
use lockstep_protocol::ids::{JobId, LeaseEpoch, Millis};
use lockstep_protocol::ledger::{Ledger, Posting};
use lockstep_protocol::log::Entry as LogEntry;
use lockstep_protocol::machine::Record;

use super::log::Log;
use super::{Broken, Held};

/// What is written together.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Records of the job machine.
    pub records: Vec<Record>,
    /// Postings of the ledger.
    pub postings: Vec<Posting>,
    /// Entries of disputes.
    pub entries: Vec<SignedEntry>,
    /// That the coordinator runs at this time.
    pub alive: Option<Millis>,
}

impl Batch {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.postings.is_empty() && self.entries.is_empty()
    }
}

/// The durable state.
#[derive(Default)]
pub struct Store {
    /// Records of unfinished jobs and all that outlives jobs, each with its job.
    records: Vec<(JobId, Vec<u8>)>,
    last_epoch: LeaseEpoch,
    postings: Vec<Vec<u8>>,
    /// The transcript of each dispute.
    transcripts: BTreeMap<DisputeId, Vec<Vec<u8>>>,
    /// Which job each is about.
    disputed: BTreeMap<DisputeId, JobId>,
    /// Disputes of which the job machine does not know the verdict yet.
    open: BTreeSet<DisputeId>,
    /// The log.
    pub log: Log,
    /// The last time at which the coordinator is known to have run.
    pub alive: Millis,
    /// Jobs that have ended.
    pub ended: Vec<JobId>,
}

impl Store {
    /// Writes a batch: all of it.
    ///
    /// # Errors
    /// A posting that the ledger can't take, or a record about a job that has ended.
    pub fn write(&mut self, batch: &Batch) -> Held {
        for record in &batch.records {
            self.write_record(record)?;
        }
        for entry in &batch.entries {
            self.write_entry(entry)?;
        }
        self.alive = batch.alive.unwrap_or(self.alive);
        let first = self.postings.len() as u64;
        self.postings.extend(batch.postings.iter().map(to_bytes));
        if let Some(entry) = LogEntry::of_postings(first, &batch.postings) {
            self.log.append(&entry);
        }
        Ok(())
    }

    fn write_record(&mut self, record: &Record) -> Held {
        let job = record.job();
        if let Some(entry) = LogEntry::of_record(record) {
            self.log.append(&entry);
        }
        self.last_epoch = self.last_epoch.max(record.epoch().unwrap_or_default());
        match record {
            Record::Disputed { terms, .. } | Record::Challenged { terms, .. } => {
                self.open.insert(terms.id());
            }
            Record::Judged { dispute, .. } | Record::ChallengeEnded { dispute, .. } => {
                self.open.remove(dispute);
            }
            _ => {}
        }
        self.records.push((job, to_bytes(record)));
        if record.ends_job() {
            if self.ended.contains(&job) {
                return Err(Broken::new(format!("job {job} ends twice")));
            }
            self.ended.push(job);
            self.records.retain(|(of, bytes)| *of != job || outlives_its_job(bytes));
        }
        Ok(())
    }

    /// An entry must follow the last one of its dispute.
    fn write_entry(&mut self, signed: &SignedEntry) -> Held {
        let (id, index) = (signed.entry.dispute, usize::from(signed.entry.index));
        let transcript = self.transcripts.entry(id).or_default();
        if transcript.len() != index {
            return Err(Broken::new(format!("entry {index} of dispute {id} comes after {} entries", transcript.len())));
        }
        transcript.push(to_bytes(signed));
        if let What::Opened(terms) = &signed.entry.what {
            self.disputed.insert(id, terms.job_id());
        }
        let (job, dispute, digest) = (self.disputed[&id], id, signed.entry.digest());
        match signed.entry.what {
            // That a dispute was opened, the job machine's record says in the log.
            What::Opened(_) => {}
            What::Verdict(_) => self.log.append(&LogEntry::Judged { job, dispute, verdict: digest }),
            _ => {
                let index = signed.entry.index.into();
                self.log.append(&LogEntry::Transcript { job, dispute, index, digest });
            }
        }
        Ok(())
    }

    /// The transcripts of the disputes whose verdict the job machine does not know.
    ///
    /// # Errors
    /// Bytes that do not decode.
    pub fn open_transcripts(&self) -> Result<Vec<Vec<SignedEntry>>, Broken> {
        self.open.iter().filter(|id| self.transcripts.contains_key(id)).map(|id| self.transcript(id)).collect()
    }

    /// A transcript.
    ///
    /// # Errors
    /// Bytes that do not decode.
    pub fn transcript(&self, dispute: &DisputeId) -> Result<Vec<SignedEntry>, Broken> {
        self.transcripts[dispute].iter().map(|bytes| decoded("entry of a dispute", bytes)).collect()
    }

    /// Whether every dispute is over, as far as the job machine knows.
    pub fn is_settled(&self) -> bool {
        self.open.is_empty()
    }

    /// The records that are kept.
    ///
    /// # Errors
    /// Bytes that do not decode.
    pub fn records(&self) -> Result<Vec<Record>, Broken> {
        self.records.iter().map(|(_, bytes)| decoded("record", bytes)).collect()
    }

    /// The highest epoch that was ever given.
    pub fn last_epoch(&self) -> LeaseEpoch {
        self.last_epoch
    }

    /// The fold of all postings.
    ///
    /// # Errors
    /// They are no ledger.
    pub fn ledger(&self) -> Result<Ledger, Broken> {
        let postings: Vec<_> = self.postings.iter().map(|bytes| decoded("posting", bytes)).collect::<Result<_, _>>()?;
        Ledger::fold(&postings).map_err(|error| Broken::new(format!("the stored postings are no ledger: {error}")))
    }

    /// How many postings there are.
    pub fn postings(&self) -> usize {
        self.postings.len()
    }
}

fn outlives_its_job(bytes: &[u8]) -> bool {
    from_bytes::<Record>(bytes).is_ok_and(|record| record.outlives_job())
}

fn decoded<T: Canonical>(what: &str, bytes: &[u8]) -> Result<T, Broken> {
    from_bytes(bytes).map_err(|error| Broken::new(format!("a stored {what} does not decode: {error}")))
}
