//! What a person reads while the demo runs.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use lockstep_coordinator::Event;
use lockstep_protocol::ids::{JobId, NodeId};

use super::network::Member;
use super::verdict::Verdict;

/// Prints to standard output, or stays silent.
pub struct Story {
    loud: bool,
    /// Who made the first run of each job.
    first: Mutex<BTreeMap<JobId, NodeId>>,
}

impl Story {
    /// A story that is told, or not.
    pub fn new(loud: bool) -> Self {
        Self { loud, first: Mutex::default() }
    }

    /// One line.
    pub fn say(&self, line: &str) {
        if self.loud {
            println!("  {line}");
        }
    }

    fn heading(&self, line: &str) {
        if self.loud {
            println!("\n{line}");
        }
    }

    /// What this is.
    pub fn title(&self) {
        if self.loud {
            println!("Lockstep: a neural network on machines that nobody has to trust\n");
            println!("The model");
        }
    }

    /// Who takes part.
    pub fn cast(&self, model: &str, members: &[Member], layer: usize) {
        self.say(&format!("model id {model}"));
        self.heading("The network");
        self.say("a coordinator that assigns jobs, and three workers that joined over QUIC, each with its own key:");
        for m in members {
            let what = if m.honest { "honest".into() } else { format!("adds 1 to one element of layer {layer}") };
            self.say(&format!("  {:<8} {}  {what}", m.name, short(&m.node)));
        }
    }

    /// A request goes out.
    pub fn asking(&self, round: usize, inputs: usize) {
        self.heading(if round == 0 { "The jobs" } else { "The jobs, once more: the cheat was not drawn yet" });
        self.say(&format!(
            "{inputs} texts go to POST /v1/embeddings; every job is run by one worker and audited by another"
        ));
    }

    /// What the coordinator saw.
    pub fn follow(&self, events: Vec<Event>, members: &[Member]) {
        let name = |node: &NodeId| members.iter().find(|m| m.node == *node).map_or("?", |m| m.name);
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        for event in events {
            match event {
                Event::Accepted { job, node, .. } => {
                    first.insert(job, node);
                }
                Event::Audited { job, node, matched: true, .. } => {
                    let by = first.get(&job).map_or("?", name);
                    self.job(&job, &format!("run by {by:<8} audited by {:<8} all roots equal", name(&node)));
                }
                Event::Mismatch { job, place, first, auditor, .. } => {
                    let (by, auditor, layer) = (name(&first), name(&auditor), place.layer);
                    self.job(&job, &format!("run by {by:<8} audited by {auditor:<8} DIFFERENT from layer {layer} on"));
                }
                Event::Settled { job, recomputed } => {
                    let how = if recomputed { "recomputed by the coordinator" } else { "could not be recomputed" };
                    self.job(&job, how);
                }
                Event::Quarantined { node, place, job } => {
                    self.job(&job, &format!("{} is wrong at layer {}, and is out", name(&node), place.layer));
                }
                Event::Failed { job, reason } => self.job(&job, &format!("failed: {reason}")),
                _ => {}
            }
        }
    }

    fn job(&self, job: &JobId, line: &str) {
        self.say(&format!("job {}  {line}", short(job)));
    }

    /// What the embeddings are good for.
    pub fn ranking(&self, question: &str, passages: &[&str], embeddings: &[Vec<f64>]) {
        self.heading("The answer");
        self.say(&format!("\"{question}\" is closest to"));
        let Some((asked, others)) = embeddings.split_first() else { return };
        let dot = |v: &Vec<f64>| v.iter().zip(asked).map(|(a, b)| a * b).sum::<f64>();
        let mut ranked: Vec<_> = others.iter().map(dot).zip(passages).collect();
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (cosine, passage) in ranked.iter().take(3) {
            self.say(&format!("  {cosine:.3}  {passage}"));
        }
    }

    /// Receipts are checked now.
    pub fn verifying(&self) {
        self.heading("The receipts");
        self.say("checking every signature and hash, and running every job again here, from its receipt alone ...");
    }

    /// How it ended.
    pub fn end(&self, v: &Verdict) {
        self.say(&format!(
            "{} of {} receipts hold: every root and every number is what the model gives",
            v.receipts_verified, v.jobs
        ));
        self.heading("What happened");
        self.say(&format!(
            "{} roots were committed while layers ran, {} audits, {} mismatches",
            v.roots_committed, v.audits, v.mismatches
        ));
        self.say(if v.honest_verified {
            "every answer was right, and no honest worker was blamed"
        } else {
            "AN HONEST ANSWER DID NOT VERIFY"
        });
        self.say(if v.cheater_found {
            "the cheat was found, and named with its first wrong layer"
        } else {
            "THE CHEAT WAS NOT FOUND"
        });
    }
}

/// The first digits of an id.
fn short(id: &impl ToString) -> String {
    id.to_string().chars().take(8).collect()
}
