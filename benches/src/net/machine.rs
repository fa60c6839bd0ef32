//! The pure job machine by itself, on one core: commitment records a second, from the first root to the checked receipt,
//! beside workers that are idle and jobs that wait. Times are those of the processor.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{Digest, JobId, LeaseEpoch, Millis, ModelId, NodeId};
use lockstep_protocol::limits::{MAX_IN_FLIGHT, MAX_STREAMED_TOGETHER};
use lockstep_protocol::machine::{
    Action, Capabilities, Config, DrawSecret, Input, Machine, Output, Streamed, audit_draw,
};

use super::run::{GRANT, SALT, Shape, Signed, geometry, keys, model, roots, sign, spec, streamed};
use crate::processor::thread_seconds;

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
    /// Roots and words of a stream that come together: 1, or as many as a session passes on where they come fast.
    pub together: usize,
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

/// Seconds of processor time to take in the runs of all streams. What the workers sign is signed before.
///
/// # Errors
/// The machine refuses something, which no workload within its limits makes it do.
pub fn measure(workload: Workload) -> Result<f64> {
    let Workload { streams, shape, together, .. } = workload;
    ensure!((1..=MAX_STREAMED_TOGETHER).contains(&together), "1 to {MAX_STREAMED_TOGETHER} come together");
    let (mut bench, known) = prepare(workload)?;
    let roots = roots(shape);
    let mut ready = Vec::with_capacity(streams);
    let mut said = Vec::new();
    for (node, epoch, job) in std::mem::take(&mut bench.assigned) {
        let keys = known.get(&node).context("a worker that did not join")?;
        let signed = sign(keys, &job, epoch, shape, roots.clone())?;
        ready.push(Stream { node, job: job.id(), epoch, signed: Some(signed) });
        said = streamed(&geometry(&job, shape)?, shape, &roots);
    }
    ensure!(ready.len() == streams, "{} of {streams} jobs were given out", ready.len());
    let start = thread_seconds();
    stream_all(&mut bench, &mut ready, &said, together)?;
    let seconds = thread_seconds() - start;
    ensure!(bench.done == streams, "{} of {streams} jobs ended", bench.done);
    Ok(seconds)
}

/// Seconds of processor time to take in so many jobs and give them out, one after the other, beside idle workers. One worker has the model and
/// room for all; the idle ones have it too, or else would have to fetch it.
///
/// # Errors
/// As of [`measure`].
pub fn measure_assignments(idle: usize, have_model: bool, jobs: usize) -> Result<f64> {
    ensure!(jobs <= MAX_IN_FLIGHT as usize, "one worker takes {MAX_IN_FLIGHT} jobs at the most");
    let (mut bench, _) =
        prepare(Workload { streams: 0, idle: 0, waiting: 0, shape: Shape { layers: 1, points: 1 }, together: 1 })?;
    bench.feed(joined(0, MAX_IN_FLIGHT, vec![model()]))?;
    for number in 1..=idle {
        bench.feed(joined(number, 1, if have_model { vec![model()] } else { Vec::new() }))?;
    }
    let specs: Vec<_> = (0..jobs).map(|number| spec(number, Shape { layers: 1, points: 1 })).collect();
    let start = thread_seconds();
    for spec in specs {
        bench.feed(Input::Submit(spec))?;
    }
    let seconds = thread_seconds() - start;
    ensure!(bench.assigned.len() == jobs, "{} of {jobs} jobs were given out", bench.assigned.len());
    Ok(seconds)
}

type Keys = BTreeMap<NodeId, Keypair>;

fn joined(number: usize, max_in_flight: u32, models: Vec<ModelId>) -> Input {
    let capabilities =
        Capabilities { macs_per_second: 1_000_000_000, max_in_flight, models, operator: None, pipeline: None };
    Input::WorkerJoined { node: keys(number).id(), capabilities }
}

/// Workers join and jobs are submitted.
fn prepare(workload: Workload) -> Result<(Bench, Keys)> {
    let Workload { streams, idle, waiting, shape, .. } = workload;
    let config = Config { coordinator: keys(usize::MAX).id(), grant: GRANT, grants_per_hour: u32::MAX };
    let machine = Machine::new(config);
    let mut bench = Bench { machine, assigned: Vec::new(), draws: 0, done: 0, revealed: Vec::new() };
    let mut known = Keys::new();
    let mut join = |bench: &mut Bench, number: usize| {
        known.insert(keys(number).id(), keys(number));
        bench.feed(joined(number, 1, vec![model()]))
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

/// All runs, some roots of each in turn, and then their ends.
fn stream_all(bench: &mut Bench, streams: &mut [Stream], said: &[Streamed], together: usize) -> Result<()> {
    for Stream { node, job, epoch, .. } in &*streams {
        bench.feed(Input::Began { node: *node, job: *job, epoch: *epoch })?;
    }
    for some in said.chunks(together) {
        for Stream { node, job, epoch, .. } in &*streams {
            let (node, job, epoch) = (*node, *job, *epoch);
            bench.feed(Input::Streamed { node, job, epoch, said: some.to_vec() })?;
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
        for (idle, waiting, together) in [(0, 0, 1), (5, 0, 4), (0, 5, MAX_STREAMED_TOGETHER)] {
            let seconds = measure(Workload { streams: 2, idle, waiting, shape, together }).expect("it runs");
            assert!(seconds > 0.0);
        }
        assert_eq!(shape.records(), 9);
        assert_eq!(roots(shape).len(), 9);
    }

    #[test]
    fn every_job_is_given_out_beside_whoever_is_idle() {
        for (idle, have_model) in [(0, false), (3, false), (3, true)] {
            assert!(measure_assignments(idle, have_model, 5).expect("it runs") > 0.0);
        }
    }
}
