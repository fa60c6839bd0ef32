//! What a side of a dispute is asked.

use crate::canonical::{Canonical, DecodeError, Reader, Writer};
use crate::dispute::{Side, SignedMove, Terms};
use crate::job::Job;
use crate::limits::MAX_ROUNDS;

/// The coordinator asks a side for its next move. It says everything from the start each time, so a side needs no memory
/// but of what it signed: its move follows from this and from its own run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The job, with its tokens.
    pub job: Job,
    /// The terms.
    pub terms: Terms,
    /// The side that is asked.
    pub side: Side,
    /// The moves of all complete rounds, in order, in each the claimant's and then the challenger's.
    pub moves: Vec<SignedMove>,
    /// Whether the challenger may open what the claimant has not opened yet. It need not.
    pub open_only: bool,
}

impl Canonical for Ask {
    const MIN_BYTES: usize = Job::MIN_BYTES + Terms::MIN_BYTES + 1 + 4 + 1;
    fn encode(&self, writer: &mut Writer) {
        self.job.encode(writer);
        self.terms.encode(writer);
        self.side.encode(writer);
        writer.seq(&self.moves);
        writer.bool(self.open_only);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            job: reader.value()?,
            terms: reader.value()?,
            side: reader.value()?,
            moves: reader.seq("moves of a dispute", 2 * MAX_ROUNDS)?,
            open_only: reader.bool()?,
        })
    }
}
