//! Disputes, where the game meets the model.
//!
//! The game itself is the protocol crate's and knows no program; the steps of a layer are the kernels' and know no
//! game. This folder reads like this:
//!
//! - `case`: [`Disputable`] and [`LayerCase`], what the game asks of a program, from the manifest alone: the referee's
//!   side.
//! - `kept`, `fill`, `trace`: [`Trace`], what a player can say, from its own run once more or from what it kept of it.
//! - `judge`, `report`: [`judge()`], a dispute's file to what it came to.

mod case;
mod error;
mod fill;
mod judge;
mod kept;
mod report;
mod trace;

pub use case::{Disputable, LayerCase};
pub use error::{CaseError, TraceError};
pub use judge::{JudgeError, export, judge};
pub use kept::Below;
pub use report::{ElementReport, Report};
pub use trace::Trace;

#[cfg(test)]
mod fill_tests;
