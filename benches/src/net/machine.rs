//! The pure job machine by itself, on one core: commitment records a second, from the first root to the checked receipt,
//! beside workers that are idle and jobs that wait.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{Digest, JobId, LeaseEpoch, Millis, NodeId, Root};
use lockstep_protocol::machine::{Action, Capabilities, Config, DrawSecret, Input, Machine, Output, audit_draw};

use super::run::{GRANT, SALT, Shape, Signed, geometry, keys, model, roots, sign, spec, words};

/// What the machine holds while it is measured.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Workers that stream, each a job of its own, their roots interleaved.
    pub streams: usize,
    /// Workers that are connected and have nothing to do.
    pub idle: usize,
    /// Jobs that wait for a worker.
    pub waiting: usize,
    /// Of each job.
    pub shape: Shape,
}

const NOW: Millis = Millis(1_000);

/// A run that is ready to be streamed.
struct Stream {
    node: NodeId,
    job: JobId,
    epoch: LeaseEpoch,
    signed: Option<Signed>,
}

struct Bench {
    machine: Machine,
    assigned: Vec<(NodeId, LeaseEpoch, std::sync::Arc<lockstep_protocol::job::Job>)>,
    /// Draws are numbered.
    draws: u64,
    done: usize,
    revealed: Vec<JobId>,
}

impl Bench {
    fn feed(&mut self, input: Input) -> Result<()> {
        let output = self.machine.handle(NOW, input);
        self.take(output)
    }

    fn take(&mut self, output: Output) -> Result<()> {
        for action in output.actions {
            match action {
                Action::Assign { node, epoch, job, .. } => self.assigned.push((node, epoch, job)),
                Action::Reveal { job, .. } => self.revealed.push(job),
                Action::NeedDraw { job, head, nonce } => {
                    let secret = DrawSecret { number: self.draws, secret: Digest::from_bytes([7; 32]) };
                    self.draws += 1;
                    let draw = audit_draw(&secret, &head, &nonce);
                    self.feed(Input::Drawn { job, draw })?;
                }
                Action::JobDone { .. } => self.done += 1,
                Action::Rejected { reason, .. } => anyhow::bail!("a root or result was refused: {reason}"),
                Action::RefuseJob { reason, .. } => anyhow::bail!("a job was refused: {reason}"),
                Action::JobFailed { reason, .. } => anyhow::bail!("a job failed: {reason:?}"),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Seconds to take in the runs of all streams. What the workers sign is signed before.
///
/// # Errors
/// The machine refuses something, which no workload within its limits makes it do.
pub fn measure(workload: Workload) -> Result<f64> {
    let Workload { streams, shape, .. } = workload;
    let (mut bench, known) = prepare(workload)?;
    let roots = roots(shape);
    let mut ready = Vec::with_capacity(streams);
    for (node, epoch, job) in std::mem::take(&mut bench.assigned) {
        let keys = known.get(&node).context("a worker that did not join")?;
        let signed = sign(keys, &job, epoch, shape, roots.clone())?;
        ready.push((Stream { node, job: job.id(), epoch, signed: Some(signed) }, geometry(&job, shape)?));
    }
    ensure!(ready.len() == streams, "{} of {streams} jobs were given out", ready.len());
    let places: Vec<_> = ready[0].1.places().collect();
    let mut streams_ready: Vec<Stream> = ready.into_iter().map(|(stream, _)| stream).collect();
    let words = words(shape);
    let start = Instant::now();
    stream_all(&mut bench, &mut streams_ready, (&places, &roots, &words))?;
    let seconds = start.elapsed().as_secs_f64();
    ensure!(bench.done == streams, "{} of {streams} jobs ended", bench.done);
    Ok(seconds)
}

type Keys = BTreeMap<NodeId, Keypair>;

/// Workers join and jobs are submitted.
fn prepare(workload: Workload) -> Result<(Bench, Keys)> {
    let Workload { streams, idle, waiting, shape } = workload;
    let machine = Machine::new(Config { coordinator: keys(usize::MAX).id(), grant: GRANT });
    let mut bench = Bench { machine, assigned: Vec::new(), draws: 0, done: 0, revealed: Vec::new() };
    let mut known = Keys::new();
    let mut join = |bench: &mut Bench, number: usize| {
        let keys = keys(number);
        let capabilities = Capabilities {
            macs_per_second: 1_000_000_000,
            max_in_flight: 1,
            models: vec![model()],
            operator: None,
            pipeline: None,
        };
        let joined = Input::WorkerJoined { node: keys.id(), capabilities };
        known.insert(keys.id(), keys);
        bench.feed(joined)
    };
    // Those that stream take their jobs before the others are there; what is submitted later finds all of them busy.
    for number in 0..streams {
        join(&mut bench, number)?;
        bench.feed(Input::Submit(spec(number, shape)))?;
    }
    ensure!(idle == 0 || waiting == 0, "jobs don't wait where workers are idle");
    for number in 0..idle {
        join(&mut bench, streams + number)?;
    }
    // One point each: the machine bounds what all jobs may come to stream.
    let short = Shape { points: 1, ..shape };
    for number in 0..waiting {
        bench.feed(Input::Submit(spec(streams + number, short)))?;
    }
    Ok((bench, known))
}

/// All runs, a root of each in turn, and then their ends.
fn stream_all(
    bench: &mut Bench,
    streams: &mut [Stream],
    (places, roots, words): (&[lockstep_protocol::ids::Place], &[Root], &[u32]),
) -> Result<()> {
    for Stream { node, job, epoch, .. } in &*streams {
        bench.feed(Input::Began { node: *node, job: *job, epoch: *epoch })?;
    }
    let of_point = places.len() / words.len();
    for (index, (place, root)) in places.iter().zip(roots).enumerate() {
        for Stream { node, job, epoch, .. } in &*streams {
            let (node, job, epoch) = (*node, *job, *epoch);
            if (index + 1).is_multiple_of(of_point) {
                bench.feed(Input::Token { node, job, epoch, word: words[index / of_point], logprobs: Vec::new() })?;
            }
            bench.feed(Input::LayerRoot { node, job, epoch, place: *place, root: *root })?;
        }
    }
    for Stream { node, job, epoch, signed } in streams {
        let (node, job, epoch) = (*node, *job, *epoch);
        let Signed { commitment, result } = signed.take().context("a run ends once")?;
        bench.feed(Input::Committed { node, job, epoch, commitment })?;
        ensure!(bench.revealed.pop() == Some(job), "a worker was not told to reveal its run");
        bench.feed(Input::Completed { node, job, epoch, result: Box::new(result), salt: SALT })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_is_taken_in_whoever_waits() {
        let shape = Shape { layers: 2, points: 3 };
        for (idle, waiting) in [(0, 0), (5, 0), (0, 5)] {
            let seconds = measure(Workload { streams: 2, idle, waiting, shape }).expect("it runs");
            assert!(seconds > 0.0);
        }
        assert_eq!(shape.records(), 9);
        assert_eq!(roots(shape).len(), 9);
    }
}
