//! Random worlds of generations: honest workers beside those who alter a word, lie in the midst, stop early, go on too long,
//! or echo the words that they were told. Crashes, lost sessions and cancellations come in between.

use super::generations::{MAX, WORDS, commit, lockstep, number_of, spec_of, stream_some, text};
use super::*;
use crate::dispute::Side;
use crate::generation::word_root;
use crate::testing::{STOP, roots_of_words};

const WORLDS: u64 = 3_000;
/// These workers are honest; the others cheat, each in its own way.
const HONEST: [u8; 3] = [1, 2, 9];

/// A run as its worker makes it up or computes it.
struct Script {
    words: Vec<u32>,
    roots: Vec<Root>,
    streamed: usize,
}

struct World {
    shell: Shell,
    state: u64,
    scripts: BTreeMap<LeaseEpoch, Script>,
    /// How many of the shell's actions were looked at.
    seen: usize,
    /// Jobs of which somebody honest has an accepted run.
    honestly_run: BTreeSet<JobId>,
    halts: usize,
    disputes: usize,
    rejected: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut shell = Shell::new();
        shell.judges = false;
        let state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let (scripts, honestly_run) = (BTreeMap::new(), BTreeSet::new());
        Self { shell, state, scripts, seen: 0, honestly_run, halts: 0, disputes: 0, rejected: 0 }
    }

    fn below(&mut self, end: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) as usize % end
    }

    /// What a worker does with a job.
    fn script(&mut self, number: u8, job: JobId) -> Script {
        let mut words = WORDS.to_vec();
        let at = self.below(WORDS.len());
        let mut lie = None;
        match number {
            // Another token, and whatever the model says to that.
            3 => {
                words.truncate(at);
                words.push(40 + self.below(9) as u32);
                words.resize(MAX as usize - 1, 11);
                words.push(3 << 24 | 12);
            }
            4 => lie = Some(4 * at + self.below(LAYERS.into())),
            5 => {
                words.truncate(at);
                words.push(STOP | 0x40);
            }
            // It goes on where it has to stop: by another last word, or after its last word.
            6 if self.below(2) == 0 => *words.last_mut().unwrap() &= 0xff_ffff,
            6 => words.push(3 << 24 | 5),
            _ => {}
        }
        if number == 6 && words.len() < MAX as usize {
            words.push(3 << 24 | 5);
        }
        let mut roots = roots_of_words(job, &words);
        if let Some(at) = lie {
            roots[at] = root(0xa0 | at as u8);
        }
        if number == 7 {
            let made_up = self.below(200) as u8;
            roots.iter_mut().for_each(|value| *value = root(made_up));
            words.iter().enumerate().for_each(|(at, word)| roots[4 * at + 3] = word_root(*word));
        }
        Script { words, roots, streamed: 0 }
    }

    /// Some worker goes on with some assignment.
    fn progress(&mut self) {
        if self.shell.assigned.is_empty() {
            return self.pass(1);
        }
        let index = self.below(self.shell.assigned.len());
        let (node, epoch, job) = self.shell.assigned[index].clone();
        if !self.scripts.contains_key(&epoch) {
            let script = self.script(number_of(node), job.id());
            self.scripts.insert(epoch, script);
        }
        let more = 1 + self.below(6);
        let script = self.scripts.get_mut(&epoch).unwrap();
        let (from, end) = (script.streamed, (script.streamed + more).min(script.roots.len()));
        script.streamed = end;
        let (words, roots) = (script.words.clone(), script.roots.clone());
        stream_some(&mut self.shell, index, &words, &roots[..end], from);
        let is_there = |shell: &Shell| shell.assigned.get(index).is_some_and(|(_, of, _)| *of == epoch);
        let is_halted = self.shell.actions[self.seen..].iter().any(|a| matches!(a, Action::Halt { .. }));
        if end == roots.len() && is_there(&self.shell) && !is_halted && self.is_live(&job.id(), epoch) {
            commit(&mut self.shell, index, &words, roots);
        }
        self.look();
    }

    fn is_live(&self, job: &JobId, epoch: LeaseEpoch) -> bool {
        self.shell
            .machine
            .jobs
            .get(job)
            .is_some_and(|entry| entry.leases.contains_key(&epoch) && !entry.is_halted(epoch))
    }

    /// Time goes on, in which everybody is alive.
    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            let nodes: Vec<_> = self.shell.machine.workers().map(|worker| worker.node).collect();
            nodes.into_iter().for_each(|node| drop(self.shell.feed(Input::Heartbeat { node })));
            self.shell.wait(1_000);
        }
        self.look();
    }

    /// Answers what was asked for since, and checks what was done.
    fn look(&mut self) {
        while self.seen < self.shell.actions.len() {
            let action = self.shell.actions[self.seen].clone();
            self.seen += 1;
            match action {
                Action::Halt { node, job, epoch, place } => self.halt(node, job, epoch, place),
                Action::OpenDispute { terms, .. } => self.judge(&terms),
                Action::Rejected { node, reason, .. } => {
                    assert!(!HONEST.contains(&number_of(node)), "somebody honest is rejected: {reason}");
                    self.rejected += 1;
                }
                Action::Quarantine { node, .. } | Action::SetAside { node, .. } => {
                    assert!(!HONEST.contains(&number_of(node)), "somebody honest is punished");
                }
                Action::Accepted { node, job, .. } if HONEST.contains(&number_of(node)) => {
                    self.honestly_run.insert(job);
                }
                Action::JobDone { job, outcome } => {
                    let is_right = outcome.result.output == WORDS.map(u32::cast_signed);
                    let is_right = is_right && outcome.roots == roots_of_words(job, &WORDS);
                    assert!(is_right || !self.honestly_run.contains(&job), "a lie that somebody honest contradicted");
                }
                _ => {}
            }
        }
    }

    fn halt(&mut self, node: NodeId, job: JobId, epoch: LeaseEpoch, place: Place) {
        self.halts += 1;
        let text = text_of(job);
        let (script, geometry) = (&self.scripts[&epoch], geometry(&text));
        let end = geometry.index_of(place).unwrap() + 1;
        let words = &script.words[..end / usize::from(geometry.streamed_layers())];
        let partial = Partial::of_roots(job, &geometry, epoch, &script.roots[..end], words, node).unwrap();
        let partial = Box::new(partial.sign(&keys(number_of(node))));
        self.shell.forget(node, job, epoch);
        self.shell.feed(Input::Partial { node, partial });
    }

    /// Who has another root than the truth where the claims differ first has lost.
    fn judge(&mut self, terms: &Terms) {
        let Some(at) = self.shell.disputes.iter().position(|(_, of)| of == terms) else {
            return;
        };
        self.disputes += 1;
        let (job, terms) = self.shell.disputes.remove(at);
        let (ground, truth) = (terms.check().unwrap(), roots_of_words(job, &WORDS));
        let at = geometry(&text_of(job)).index_of(ground.place).unwrap();
        let losers = ground.roots.map(|root| truth.get(at) != Some(&root));
        for side in Side::BOTH.into_iter().filter(|side| HONEST.contains(&number_of(terms.key(*side)))) {
            assert!(!losers[side.index()], "an honest claim differs from the truth");
            assert_eq!(ground.words, WORDS[..ground.index]);
        }
        let verdict = Box::new(Verdict { place: ground.place, ..verdict(losers, VerdictKind::Proven) });
        self.shell.feed(Input::Judged { job, dispute: terms.id(), verdict });
    }

    fn join(&mut self, number: u8) {
        self.shell.feed(joined(number, 2));
    }

    fn play(&mut self) {
        let members: Vec<u8> = (1..=7).filter(|number| *number == 1 || self.below(3) > 0).collect();
        members.iter().for_each(|number| self.join(*number));
        for number in 1..=2 {
            let policy = match self.below(4) {
                0 => NEVER,
                1 => always(2, false),
                2 => lockstep(),
                _ => always(1, false),
            };
            self.shell.feed(Input::Submit(spec_of(number, policy)));
        }
        for _ in 0..60 + self.below(60) {
            match self.below(100) {
                0..90 => self.progress(),
                90..94 => self.pass(7),
                94..97 => {
                    let number = members[self.below(members.len())];
                    let node = keys(number).id();
                    self.shell.feed(Input::WorkerLeft { node });
                    self.shell.assigned.retain(|(of, ..)| *of != node);
                    self.join(number);
                }
                97..99 => {
                    self.shell.crash();
                    members.iter().for_each(|number| self.join(*number));
                }
                _ => {
                    let job = text(1 + self.below(2) as u8).id();
                    self.shell.feed(Input::Cancel { job });
                }
            }
            self.look();
        }
        self.wind_down();
    }

    /// One more who is honest comes, and everything ends.
    fn wind_down(&mut self) {
        HONEST.into_iter().for_each(|number| self.join(number));
        for _ in 0..2_000 {
            if self.shell.machine.unfinished_jobs() == 0 {
                break;
            }
            self.progress();
        }
        assert_eq!(self.shell.machine.unfinished_jobs(), 0, "every job ends");
        assert_eq!(self.shell.machine.ledger().totals().held, 0, "nothing stays held");
    }
}

fn text_of(job: JobId) -> crate::job::Job {
    (1..=2).map(text).find(|text| text.id() == job).unwrap()
}

#[test]
fn whoever_cheats_in_a_generation_is_found_out_and_nobody_else() {
    let (mut halts, mut disputes, mut rejected, mut caught) = (0, 0, 0, BTreeSet::new());
    for seed in 1..=WORLDS {
        let mut world = World::new(seed);
        world.play();
        halts += world.halts;
        disputes += world.disputes;
        rejected += world.rejected;
        caught.extend(world.shell.machine.quarantined().map(|node| number_of(*node)));
    }
    assert!(halts > 100 && disputes > 500 && rejected > 100, "{halts} halts, {disputes} disputes, {rejected} rejected");
    assert_eq!(caught, [3, 4, 5, 6, 7].into(), "every kind is caught");
}
