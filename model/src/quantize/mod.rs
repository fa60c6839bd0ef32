//! Real rows to integer codes.

pub mod calibrate;
mod cholesky;
mod feedback;
mod gram;
mod rows;

pub use feedback::Feedback;
pub use gram::Gram;
pub use rows::RowScale;

use lockstep_kernels::fixed::CODE_MAX;

/// Width of a matrix's codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 16-bit codes of at most ±32,639.
    W16,
    /// 8-bit codes of at most ±127.
    W8,
}

impl Width {
    /// Largest code.
    pub const fn code_max(self) -> i32 {
        match self {
            Self::W16 => CODE_MAX,
            Self::W8 => 127,
        }
    }
}
