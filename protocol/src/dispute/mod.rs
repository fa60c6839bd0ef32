//! Disputes: two runs of one job differ, and a referee with none of the data finds out who is wrong (SPEC.md 25).
//!
//! Both sides have signed all roots of their runs. At the first place where these differ, everything before agrees. From
//! there the sides commit, round by round, to smaller and smaller parts of what they computed, until one element is left
//! that they disagree on and everything that it is computed from is agreed. The referee computes that element.
//!
//! | file | what it holds |
//! |---|---|
//! | `claim`, `terms` | what the sides have signed, and where their dispute begins |
//! | `moves`, `entry`, `verdict` | what is signed during it, and how it ends |
//! | `lowering`, `evidence` | what the game asks of the program, and of a side's own run |
//! | `table` | the phases, and every step between them |
//! | `rules` | one function for each rule that a move has to keep |
//! | `tree` | blocks of a BLAKE3 tree and their values |
//! | `game` | the board, without clocks: both sides' moves of a round to the next phase |
//! | `clock` | the chess clocks, notice and grace |
//! | `position` | board, clocks and chain of entries: follows a transcript |
//! | `referee`, `docket` | writes a transcript; all disputes of a coordinator |
//! | `player` | an honest side's next move |
//! | `transcript`, `file` | judging a transcript offline; the portable file |

mod claim;
mod clock;
mod docket;
mod entry;
mod evidence;
mod file;
mod game;
mod lowering;
mod moves;
mod player;
mod position;
mod referee;
mod rules;
mod side;
mod table;
mod terms;
pub mod transcript;
mod tree;
mod verdict;

pub use self::claim::{Claim, ClaimError, Partial, Signed, SignedPartial};
pub use self::docket::{Docket, DocketError};
pub use self::entry::{Entry, SignedEntry, What};
pub use self::evidence::{Evidence, EvidenceError, Tensor};
pub use self::file::{DISPUTE_MAGIC, DISPUTE_VERSION, DisputeFile, FileError};
pub use self::game::{Recompute, Scope};
pub use self::lowering::{Lowering, Read, Shape, Source};
pub use self::moves::{Move, MoveBody, SignedMove, history};
pub use self::player::{Player, PlayerError};
pub use self::position::EntryError;
pub use self::referee::{Action, Input, Output, Referee};
pub use self::rules::Refusal;
pub use self::side::Side;
pub use self::table::{Event, Phase, TABLE};
pub use self::terms::{Ground, Held, Terms, TermsError};
pub use self::transcript::{TranscriptError, judge};
pub use self::verdict::{Reason, Verdict};
pub use crate::ids::{DisputeId, VerdictKind};

#[cfg(test)]
mod tests;
