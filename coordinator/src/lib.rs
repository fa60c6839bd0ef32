//! The coordinator: registry, leases, audits, durable store, HTTP.
//!
//! The decisions are made by the pure machine in `lockstep_protocol::machine`; this crate gives it a clock, a disk and
//! the network. The folder reads like this:
//!
//! - [`start`]: puts everything together ([`Coordinator::start`]) and takes it down ([`Handle::shutdown`]).
//! - [`config`], [`error`]: what a coordinator is told, and why it does not start.
//! - [`store`]: the one file, written by one thread, many commits in one flush; the transparency log is in it.
//! - [`engine`]: the task that owns the machine, the disputes and the draws: inputs in, records to the store, then
//!   effects.
//! - [`models`]: packages that are served, and the program behind each.
//! - [`sessions`]: connections of workers.
//! - [`http`] serves clients.
//! - [`events`]: what happens, for whoever watches.
#![forbid(unsafe_code)]

pub mod clock;
pub mod config;
pub mod engine;
pub mod error;
pub mod events;
pub mod http;
pub mod models;
pub mod sessions;
pub mod start;
pub mod store;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use config::{Allow, ApiKey, ClientCaps, Config, WorkerCaps};
pub use error::{ShutdownError, StartError};
pub use events::Event;
pub use http::conversation_text;
pub use start::{Coordinator, Handle};
