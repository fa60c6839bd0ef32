//! What a dispute came to, in words that a person can check.

use lockstep_kernels::program::Op;
use lockstep_kernels::steps::{Part, Step};
use lockstep_protocol::canonical::to_bytes;
use lockstep_protocol::dispute::{DisputeId, MoveBody, Side, SignedEntry, Terms, Verdict, What};
use lockstep_protocol::ids::{JobId, Millis, ModelId, NodeId};
use lockstep_protocol::limits::CHUNK_BYTES;

use super::{Disputable, LayerCase};

/// One element of one op, as far as a dispute got to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElementReport {
    /// Layer of the op: the disputed one, or 0 where that is layer 1.
    pub layer: usize,
    /// Name of that layer.
    pub layer_name: String,
    /// Index of the op in its layer.
    pub op_index: usize,
    /// Op and part, as in `layer_norm.squares`; of log-probabilities as in `logprobs.likeliest`.
    pub step: String,
    /// The tensor that the op writes.
    pub tensor: String,
    /// Row: a position where the step has rows for positions, else the row of the step's own layout (SPEC section 24).
    pub row: u64,
    /// Column in that row.
    pub column: u64,
    /// What claimant and challenger revealed there; none for a side that revealed nothing.
    pub claimed: [Option<i64>; 2],
}

/// What a dispute came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The dispute.
    pub dispute: DisputeId,
    /// The job.
    pub job: JobId,
    /// The model.
    pub model: ModelId,
    /// What people call the model.
    pub model_name: String,
    /// Who refereed.
    pub coordinator: NodeId,
    /// The keys of claimant and challenger.
    pub players: [NodeId; 2],
    /// The verdict. What it refutes is refuted; it confirms nothing.
    pub verdict: Verdict,
    /// The name of the disputed layer; where log-probabilities are disputed, what these are called.
    pub layer_name: String,
    /// Whether all roots are agreed, and log-probabilities are disputed.
    pub is_of_logprobs: bool,
    /// The row of that layer's output, once it was found.
    pub row: Option<u64>,
    /// The element in dispute, once it was found.
    pub element: Option<ElementReport>,
    /// Rounds in which anybody moved.
    pub rounds: u16,
    /// Bytes of all signed moves: what the referee was sent.
    pub referee_bytes: u64,
    /// When the dispute was opened, on the coordinator's clock.
    pub opened: Millis,
    /// When it ended.
    pub ended: Millis,
}

impl Report {
    /// Of a dispute that has ended, from the entries of its transcript, which are taken as they are: see
    /// [`judge`](super::judge()).
    pub fn of(model: &Disputable, case: &LayerCase, terms: &Terms, entries: &[SignedEntry], verdict: Verdict) -> Self {
        let moves = entries.iter().filter_map(|signed| match &signed.entry.what {
            What::Moved { side, signed } => Some((*side, signed)),
            _ => None,
        });
        let at = |entry: Option<&SignedEntry>| entry.map_or(Millis(0), |signed| signed.entry.at);
        let mut report = Self {
            dispute: terms.id(),
            job: terms.job_id(),
            model: terms.job.model,
            model_name: model.name.clone(),
            coordinator: terms.coordinator,
            players: Side::BOTH.map(|side| terms.key(side)),
            verdict,
            layer_name: case.name().to_owned(),
            is_of_logprobs: case.is_of_logprobs(),
            row: verdict.chunk.map(|chunk| case.row(chunk)),
            element: element(case, &verdict),
            rounds: 0,
            referee_bytes: 0,
            opened: at(entries.first()),
            ended: at(entries.last()),
        };
        for (side, signed) in moves {
            report.rounds = report.rounds.max(signed.made.round.saturating_add(1));
            report.referee_bytes += to_bytes(signed).len() as u64;
            if let (MoveBody::Reveal { chunk }, Some(found)) = (&signed.made.body, &mut report.element) {
                found.claimed[side.index()] = value(case, &verdict, chunk);
            }
        }
        report
    }
}

/// The step that a verdict names, if it got so far.
fn step_of(case: &LayerCase, verdict: &Verdict) -> Option<(u64, Step)> {
    let (chunk, step) = (verdict.chunk?, verdict.step?);
    Some((chunk, *case.plan(chunk).steps().get(usize::from(step))?))
}

fn element(case: &LayerCase, verdict: &Verdict) -> Option<ElementReport> {
    let ((chunk, step), element) = (step_of(case, verdict)?, verdict.element?);
    let (program, stride) = (case.program(), step.row_bytes() / step.width.bytes());
    let op = &program.layers[step.layer].ops[step.op];
    let own = step.of_logprobs
        || matches!(op, Op::Attention { .. } | Op::MeanPool { .. } | Op::Sample { .. }) && step.part != Part::Out;
    let row = if own || step.all_rows { element / stride } else { case.row(chunk) };
    Some(ElementReport {
        layer: step.layer,
        layer_name: program.layers[step.layer].name.clone(),
        op_index: step.op,
        step: step.name(program),
        tensor: program.tensor(op.out()).name.clone(),
        row,
        column: element % stride,
        claimed: [None; 2],
    })
}

/// The disputed element in a revealed chunk.
fn value(case: &LayerCase, verdict: &Verdict, chunk: &[u8]) -> Option<i64> {
    let (_, step) = step_of(case, verdict)?;
    let width = step.width.bytes();
    let at = (verdict.element? % (CHUNK_BYTES as u64 / width) * width) as usize;
    let bytes = chunk.get(at..at + width as usize)?;
    Some(match bytes {
        [a, b] => i16::from_le_bytes([*a, *b]).into(),
        [a, b, c, d] => i32::from_le_bytes([*a, *b, *c, *d]).into(),
        _ => i64::from_le_bytes(bytes.try_into().ok()?),
    })
}
