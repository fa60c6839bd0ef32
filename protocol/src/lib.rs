//! The pure protocol core: ids, canonical encoding, commitments, receipts, messages and the job machine.
#![deny(clippy::float_arithmetic, clippy::disallowed_types, clippy::disallowed_methods)]
#![forbid(unsafe_code)]

pub mod canonical;
pub mod commitment;
pub mod domain;
pub mod hex;
pub mod identity;
pub mod ids;
pub mod job;
pub mod limits;
pub mod machine;
pub mod messages;
pub mod openings;
pub mod receipt;
pub mod trace;

#[cfg(test)]
mod testing;
