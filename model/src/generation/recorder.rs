//! Who wants the rows of a generation as they are computed.

use std::fmt::Debug;

/// Is told what the layers of one run put out, of layers 1 to L. What it is told is the run's own, whoever shares its passes;
/// it is told before the run says that it is done.
pub trait Recorder: Debug + Send {
    /// The positions of these tokens, from the first one on, were computed by an earlier generation, and their rows are
    /// not told again. Comes first, if at all.
    fn reuse(&mut self, tokens: &[u32]);

    /// The next rows of a layer. Of the same pass, every layer has as many.
    fn push(&mut self, layer: usize, rows: &[i32]);

    /// All rows from this position on are forgotten: they were computed for words that a hint got wrong.
    fn truncate(&mut self, positions: usize);

    /// Nothing more comes: the run ended, or was cancelled. These are the tokens of the positions that are left,
    /// from the first one on; there may be none.
    fn finish(self: Box<Self>, tokens: &[u32]);
}
