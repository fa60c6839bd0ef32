//! What a party computed: an honest run, or what a cheat calls one.

mod cases;
mod claims;
mod lies;

#[cfg(test)]
mod tests;

#[cfg(test)]
use cases::cases;
pub use cases::{Case, draw};
pub use claims::{Basis, Listed, Rows};
