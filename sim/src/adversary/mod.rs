//! Those who cheat: each a named value, with what it does in one sentence.
//!
//! They live in this crate alone. The demo, the simulation, `lockstep bench dispute` and tests reach them; the worker
//! command has no way to cheat.

mod evidence;
mod lie;
mod moves;
mod play;
mod stage;

pub use evidence::Inconsistent;
pub use lie::{Change, Lie, LyingBackend, Target};
pub use moves::{bend, spoil};
pub use play::{Sent, Turn};
pub use stage::StageTrick;

/// A way to cheat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Adversary {
    /// Alters any element of any op's output and computes on from it.
    ConsistentLiar,
    /// As the consistent liar, but alters a second element in the dispute only.
    InconsistentLiar,
    /// Alters what the output layer puts out: of a generation the word that is drawn, or how.
    SamplerCheat,
    /// Claims what no op can give.
    OutOfRange,
    /// Puts numbers into padding.
    Padding,
    /// Signs, at a later point of a generation, another row than it signed before.
    Perjurer,
    /// Says other log-probabilities of the right words.
    Misquoter,
    /// Runs another model.
    OtherModel,
    /// Runs other tokens, as another tokenizer would.
    OtherTokens,
    /// Lies, and stops moving.
    Withholder,
    /// Lies, and moves when its clock has all but run out.
    Staller,
    /// Lies, and signs two moves for one round.
    Equivocator,
    /// Lies, and sends moves of other rounds and other disputes.
    Replayer,
    /// Lies, and opens what it must open with forged bytes.
    Forger,
    /// Lies, and sends moves that break the rules.
    Garbler,
    /// Lies, and concedes once it is disputed.
    Conceder,
    /// Lies, and takes its run back when it is about to be found out.
    Pretender,
    /// Contradicts an honest claim with roots that it made up.
    FalseChallenger,
    /// Many keys of one owner that contradict whatever is honest, each in its own way.
    Flood,
    /// Signs the roots of a liar that it knows, and has no trace.
    Copier,
    /// Audits without work: makes up all roots.
    LazyAuditor,
    /// Worker and auditor that tell the same lie.
    Colluder,
    /// Signs the same roots as the honest, then plays to lose.
    Twin,
    /// Contradicts a lie with another one, so that the first would look confirmed.
    Whitewasher,
    /// Many keys of one owner that challenge a lie of one of them, one after the other and as slowly as they can, so that
    /// nobody else gets a turn.
    ShamChain,
}

impl Adversary {
    /// All of them.
    pub const ALL: [Self; 25] = [
        Self::ConsistentLiar,
        Self::InconsistentLiar,
        Self::SamplerCheat,
        Self::OutOfRange,
        Self::Padding,
        Self::Perjurer,
        Self::Misquoter,
        Self::OtherModel,
        Self::OtherTokens,
        Self::Withholder,
        Self::Staller,
        Self::Equivocator,
        Self::Replayer,
        Self::Forger,
        Self::Garbler,
        Self::Conceder,
        Self::Pretender,
        Self::FalseChallenger,
        Self::Flood,
        Self::Copier,
        Self::LazyAuditor,
        Self::Colluder,
        Self::Twin,
        Self::Whitewasher,
        Self::ShamChain,
    ];

    /// Short name, as in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ConsistentLiar => "consistent liar",
            Self::InconsistentLiar => "inconsistent liar",
            Self::SamplerCheat => "sampler cheat",
            Self::OutOfRange => "out of range",
            Self::Padding => "padding",
            Self::Perjurer => "perjurer",
            Self::Misquoter => "misquoter",
            Self::OtherModel => "other model",
            Self::OtherTokens => "other tokens",
            Self::Withholder => "withholder",
            Self::Staller => "staller",
            Self::Equivocator => "equivocator",
            Self::Replayer => "replayer",
            Self::Forger => "forger",
            Self::Garbler => "garbler",
            Self::Conceder => "conceder",
            Self::Pretender => "pretender",
            Self::FalseChallenger => "false challenger",
            Self::Flood => "flood",
            Self::Copier => "copier",
            Self::LazyAuditor => "lazy auditor",
            Self::Colluder => "colluder",
            Self::Twin => "malicious twin",
            Self::Whitewasher => "whitewasher",
            Self::ShamChain => "sham chain",
        }
    }

    /// What it does.
    pub const fn description(self) -> &'static str {
        match self {
            Self::ConsistentLiar => {
                "alters any element of the output of any op, in any layer and row, and computes everything after it from \
                 the altered value"
            }
            Self::InconsistentLiar => {
                "lies, and alters another element in the steps that it commits to in the dispute, so that its steps do \
                 not follow from each other"
            }
            Self::SamplerCheat => {
                "alters what the output layer puts out: of a generation the word, what it is drawn from, or by which seed and \
                 settings; of an embedding the vector"
            }
            Self::OutOfRange => "claims a value that the op can't give, such as a code above 32,639",
            Self::Padding => "puts a number into the padding of the rows that it commits to",
            Self::Perjurer => {
                "signs, at a later point of a generation, a row of a layer that is not the one it signed before"
            }
            Self::Misquoter => {
                "draws the right words, and reports other log-probabilities: a value, which tokens are the likeliest, or their \
                 order"
            }
            Self::OtherModel => "runs the tokens through a model with other weights",
            Self::OtherTokens => "runs other tokens than the job's, as another tokenizer would have made them",
            Self::Withholder => "lies, and stops moving at some round of the dispute",
            Self::Staller => "lies, and sends every move at the last tick before its clock runs out",
            Self::Equivocator => "lies, and signs two different moves for one round",
            Self::Replayer => "lies, and sends old moves and moves of other disputes again and again",
            Self::Forger => "lies, and opens the read set with bytes that suit the lie",
            Self::Garbler => "lies, and sends moves of a wrong size or kind",
            Self::Conceder => "lies, and concedes as soon as it is disputed",
            Self::Pretender => {
                "lies, and takes its run back when it is about to be found out, as if its machine were faulty"
            }
            Self::FalseChallenger => "contradicts an honest claim with a run that it altered on purpose",
            Self::Flood => "owns many keys, each of which contradicts the honest claim in its own way",
            Self::Copier => "signs the roots of a liar that it knows and has no trace to play from",
            Self::LazyAuditor => "audits without running the model and makes all roots up",
            Self::Colluder => "worker and auditor tell the same lie, so that their runs agree",
            Self::Twin => "signs the very roots of an honest run, then plays to lose, to sink the honest with it",
            Self::Whitewasher => "contradicts a lie with another lie and loses, so that the first would look confirmed",
            Self::ShamChain => {
                "owns many keys that challenge the lie of one of them, again and again and as slowly as they can, so that \
                 nobody else gets a turn before the window closes"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_adversary_has_a_name_of_its_own() {
        let names: BTreeSet<_> = Adversary::ALL.map(Adversary::name).into();
        assert_eq!(names.len(), Adversary::ALL.len());
        let values: BTreeSet<_> = Adversary::ALL.into();
        assert_eq!(values.len(), Adversary::ALL.len());
    }
}
