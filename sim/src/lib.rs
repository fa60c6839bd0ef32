//! The whole system under adversaries and faults, in one thread and without a clock: a seed is a world.
//!
//! What runs is the real thing: job machine, docket, referee, players, ledger and log, over tiny models whose weights are
//! made up. Only the shells are stand-ins: a network that loses and repeats messages, a store that survives crashes, and
//! parties that retry as the real ones do. The folder reads like this:
//!
//! - [`adversary`]: everybody who cheats, each a named value. The demo, benchmarks and tests use them too.
//! - [`models`], `runs`: what is computed, honestly or not.
//! - `network`, `random`: what goes wrong, all of it drawn from the seed.
//! - `world`: one world from its first job to its last verdict, and the properties that are checked after every step.
//! - `runner`, `report`: many worlds, and what came of them.

pub mod adversary;
pub mod models;
mod network;
mod random;
mod report;
mod runner;
mod runs;
mod world;

pub use network::Faults;
pub use random::Random;
pub use report::{Counts, Report, Violation};
pub use runner::run;
