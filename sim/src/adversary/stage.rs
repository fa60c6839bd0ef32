//! What a cheat does to the others of its pipeline. Any cheat may, whatever it is up to elsewhere.

/// Something that a worker of a pipeline does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StageTrick {
    /// Alters an element in its own layers and hands over what follows from it.
    Lie,
    /// Hands over, and signs, rows of another root than it streams.
    OtherRoot,
    /// Has the last layers, and tells who has the first ones another word than it streams, signed.
    OtherWord,
    /// Signs a root that the rows that it hands over do not have.
    WrongRows,
    /// Does that, and hangs up, which ends the lease before anybody can show it.
    Vanish,
    /// Hands over what it has not signed.
    Unsigned,
    /// Says nothing from some point on.
    Silent,
    /// Accuses the worker before it, with rows that this one has not signed.
    FalseProof,
    /// Accuses the worker before it, with a statement in its name that it signed itself.
    ForgedProof,
    /// Says of a neighbour that nothing usable came, which is not so.
    FalseComplaint,
    /// Passes on another statement than it received.
    FalseHandOver,
    /// Signs for another run than the one that it was shown.
    OtherSegment,
    /// Does not sign for its layers.
    NoSegment,
}

impl StageTrick {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Lie,
        Self::OtherRoot,
        Self::OtherWord,
        Self::WrongRows,
        Self::Vanish,
        Self::Unsigned,
        Self::Silent,
        Self::FalseProof,
        Self::ForgedProof,
        Self::FalseComplaint,
        Self::FalseHandOver,
        Self::OtherSegment,
        Self::NoSegment,
    ];

    /// Short name, as in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lie => "lies in its layers",
            Self::OtherRoot => "hands over another root",
            Self::OtherWord => "tells other words up",
            Self::WrongRows => "hands over other rows",
            Self::Vanish => "hands over other rows and hangs up",
            Self::Unsigned => "hands over unsigned rows",
            Self::Silent => "falls silent",
            Self::FalseProof => "accuses with other rows",
            Self::ForgedProof => "accuses with a forgery",
            Self::FalseComplaint => "complains falsely",
            Self::FalseHandOver => "passes on a forgery",
            Self::OtherSegment => "signs for another run",
            Self::NoSegment => "does not sign",
        }
    }
}
