//! What a person reads while the demo runs.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lockstep_coordinator::Event;
use lockstep_protocol::ids::{JobId, NodeId, Place, Root};

use super::dispute::Checked;
use super::network::Member;
use super::round::{self, Moved, Rounds};
use super::verdict::Verdict;

/// Prints to standard output, or to standard error where that is kept for a program.
pub struct Story {
    aside: bool,
    told: Mutex<Told>,
}

/// What was seen so far and will be needed later.
#[derive(Default)]
struct Told {
    /// Who made the first run of each job.
    first: BTreeMap<JobId, NodeId>,
    /// The roots that each worker streamed for each job.
    streams: BTreeMap<(JobId, NodeId), BTreeMap<Place, Root>>,
    /// Whether a difference was shown in full.
    shown: bool,
    /// The disputes.
    rounds: Rounds,
    /// Whether the last thing printed is a part of a text.
    is_in_text: bool,
}

impl Story {
    /// A story that is told on standard output, or aside.
    pub fn new(aside: bool) -> Self {
        Self { aside, told: Mutex::default() }
    }

    /// Prints at once. Who does not read has no hurry.
    fn print(&self, text: &str) {
        if self.aside {
            eprint!("{text}");
        } else {
            print!("{text}");
            let _ = std::io::stdout().flush();
        }
    }

    /// One line.
    pub fn say(&self, line: &str) {
        self.print(&format!("  {line}\n"));
    }

    fn heading(&self, line: &str) {
        self.print(&format!("\n{line}\n"));
    }

    /// What this is.
    pub fn title(&self) {
        self.print("Lockstep: a neural network on machines that nobody has to trust\n\nThe model\n");
    }

    /// Who takes part.
    pub fn cast(&self, model: &str, members: &[Member], layer: usize) {
        self.say(&format!("model id {model}"));
        self.heading("The network");
        self.say("a coordinator that assigns jobs, and three workers that joined over QUIC, each with its own key:");
        for m in members {
            let what = if m.honest { "honest".into() } else { format!("alters one number in layer {layer}") };
            self.say(&format!("  {:<8} {}  {what}", m.name, short(&m.node)));
        }
    }

    /// A request goes out.
    pub fn asking(&self, round: usize, what: &str) {
        if round == 0 {
            self.heading("The jobs");
            self.say(what);
        } else {
            self.heading("The jobs, once more");
        }
    }

    /// A text begins.
    pub fn prompt(&self, prompt: &str) {
        self.print(&format!("\n  {prompt}"));
        self.lock().is_in_text = true;
    }

    /// More of the text that is being written.
    pub fn piece(&self, text: &str) {
        // After something else was told, the text goes on in a line of its own.
        let mark = if std::mem::replace(&mut self.lock().is_in_text, true) { "" } else { "  ... " };
        self.print(&format!("{mark}{}", text.replace('\n', "\n  ")));
    }

    /// The text has ended.
    pub fn piece_end(&self) {
        self.leave_text();
    }

    fn leave_text(&self) {
        if std::mem::take(&mut self.lock().is_in_text) {
            self.print("\n");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the coordinator saw.
    pub fn follow(&self, events: Vec<Event>, members: &[Member]) {
        let name = |node: &NodeId| members.iter().find(|m| m.node == *node).map_or("?", |m| m.name);
        if events.iter().any(is_news) {
            self.leave_text();
        }
        let mut told = self.lock();
        for event in events {
            match event {
                Event::Committed { job, node, place, root, .. } => {
                    told.streams.entry((job, node)).or_default().insert(place, root);
                }
                Event::Accepted { job, node, .. } => {
                    told.first.insert(job, node);
                }
                Event::Audited { job, node, matched: true, .. } => {
                    let by = told.first.get(&job).map_or("?", name);
                    self.job(&job, &format!("run by {by:<8} audited by {:<8} all roots equal", name(&node)));
                }
                Event::Mismatch { job, place, first, auditor: auditor_node, .. } => {
                    let (by, auditor, layer) = (name(&first), name(&auditor_node), place.layer);
                    self.job(&job, &format!("run by {by:<8} audited by {auditor:<8} DIFFERENT from layer {layer} on"));
                    self.difference(&mut told, job, place, [first, auditor_node], [by, auditor]);
                }
                Event::Diverged { job, place, nodes } => {
                    let names = [name(&nodes[0]), name(&nodes[1])];
                    self.job(
                        &job,
                        &format!(
                            "{} and {} DIFFER at position {}, from layer {} on: both stop in the middle of the text",
                            names[0], names[1], place.point, place.layer
                        ),
                    );
                    self.difference(&mut told, job, place, nodes, names);
                }
                Event::DisputeOpened { dispute, place, claimant, challenger, .. } => {
                    let sides = [name(&claimant), name(&challenger)];
                    told.rounds.open(dispute, sides);
                    self.say(&format!(
                        "dispute {}  {} against {} over layer {}; the roots of all layers before it are agreed",
                        short(&dispute),
                        sides[0],
                        sides[1],
                        place.layer
                    ));
                }
                Event::DisputeMoved { dispute, round, stage, narrowed, bytes, .. } => {
                    let line = told.rounds.line(&Moved { dispute, round, stage, narrowed: &narrowed, bytes });
                    line.iter().for_each(|line| self.say(&format!("      {line}")));
                }
                Event::DisputeJudged { dispute, kind, losers, element, referee_bytes, referee_micros, .. } => {
                    let losers: Vec<_> = losers.iter().map(name).collect();
                    let verdict = round::verdict(&losers, kind);
                    if told.rounds.is_first(&dispute) {
                        let lines = element.iter().flat_map(|e| round::number(told.rounds.sides(&dispute), e));
                        lines.for_each(|line| self.say(&format!("      {line}")));
                        self.say(&format!("      {verdict}"));
                        self.say(&format!(
                            "      the referee has no model; it took {referee_bytes} bytes and computed for {referee_micros} us"
                        ));
                    } else {
                        self.say(&format!("dispute {}  {verdict}", short(&dispute)));
                    }
                }
                Event::Quarantined { node, place, job, .. } => {
                    self.job(&job, &format!("{} was wrong at layer {}, and is out", name(&node), place.layer));
                }
                Event::Failed { job, reason } => self.job(&job, &format!("failed: {reason}")),
                _ => {}
            }
        }
    }

    /// Shows two streams of roots up to where they differ, the first time that any do.
    fn difference(&self, told: &mut Told, job: JobId, place: Place, nodes: [NodeId; 2], names: [&str; 2]) {
        if std::mem::replace(&mut told.shown, true) {
            return;
        }
        let [Some(a), Some(b)] = nodes.map(|node| told.streams.get(&(job, node))) else { return };
        self.say(&format!("      roots as streamed:  {:<18}{}", names[0], names[1]));
        for (at, root) in a.iter().filter(|(at, _)| at.point == place.point) {
            let other = b.get(at).map(short).unwrap_or_default();
            let mark = if *at == place { "  <- the first difference" } else { "" };
            self.say(&format!("      layer {:<2}            {:<18}{other}{mark}", at.layer, short(root)));
        }
    }

    fn job(&self, job: &JobId, line: &str) {
        self.say(&format!("job {}  {line}", short(job)));
    }

    /// What the embeddings are good for.
    pub fn ranking(&self, question: &str, passages: &[&str], embeddings: &[&Vec<f64>]) {
        self.heading("The answer");
        self.say(&format!("\"{question}\" is closest to"));
        let Some((asked, others)) = embeddings.split_first() else { return };
        let dot = |v: &&Vec<f64>| v.iter().zip(asked.iter()).map(|(a, b)| a * b).sum::<f64>();
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

    /// What became of the dispute's file.
    fn file(&self, checked: &Checked) {
        self.heading("The dispute, for everybody");
        self.say(&format!(
            "the coordinator gives it as one file of {} bytes: manifest and signed transcript",
            checked.bytes
        ));
        self.say(&format!("judged again here, without network and weights: {}", checked.told));
        self.say(&format!("the same file with one byte changed: {}", checked.refused));
    }

    /// How it ended.
    pub fn end(&self, v: &Verdict, checked: Option<&Checked>) {
        self.say(&format!(
            "{} of {} receipts hold: every root and every number is what the model gives",
            v.receipts_verified, v.jobs
        ));
        checked.iter().for_each(|checked| self.file(checked));
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
            "the cheat was found, and convicted by one number"
        } else {
            "THE CHEAT WAS NOT FOUND"
        });
    }
}

/// Whether an event is told of.
fn is_news(event: &Event) -> bool {
    matches!(
        event,
        Event::Audited { .. }
            | Event::Mismatch { .. }
            | Event::Diverged { .. }
            | Event::DisputeOpened { .. }
            | Event::DisputeMoved { .. }
            | Event::DisputeJudged { .. }
            | Event::Quarantined { .. }
            | Event::Failed { .. }
    )
}

/// The first digits of an id.
fn short(id: &impl ToString) -> String {
    id.to_string().chars().take(8).collect()
}
