//! The worker: it connects to a coordinator, pulls the models that it lacks, runs what it is assigned, and commits to
//! every layer while it runs.
//!
//! - [`Worker::start`] takes a [`Config`] and a backend and gives a [`Handle`]; what happens comes out as [`Event`]s.
//! - `supervisor`: one connection after the other, with pauses that grow.
//! - `session`: one connection: hello, heartbeats, assignments, cancels.
//! - `assignment`: one assignment, from its model to its result, on a stream of its own: roots while it runs, then a
//!   commitment to all of them, and the result when the coordinator asks for it.
//! - `running`: the assignments of a connection, and the places that they take.
//! - `streams`: the roots that were sent of each run, to be signed where the coordinator halts it.
//! - `engine`: the thread that computes. It runs waiting assignments of one model as one batch, which changes no byte,
//!   and hashes each layer while the next one runs.
//! - `generation`: the generations of that thread, many at once, between its batches.
//! - `stage`: some layers of a job, in a pipeline with other workers.
//! - `store`, `pull`: packages on disk, verified before use, fetched range by range and resumed after a crash.
//!   A package in use is hashed again before its first use after [`Config::recheck`], an hour by default, and once more
//!   when the coordinator found the worker wrong. In between, a file that is changed under its mapping goes unnoticed,
//!   and its results are wrong: the check bounds for how long, no more.
//! - `dispute`: disputes about this worker's runs. Its moves come from its own run made once more, and are kept before
//!   they are sent.
//! - `heads`: the coordinator's log as this worker saw it, and the cosignatures of what continues it.
//! - `memory`: what it may compute in, and which models have room in that.
//! - `preflight`: the backend's conformance to the oracle, and its speed.
//! - `control`: the control stream.
//! - `selftest`: tests of backend and packages while the worker works, and the runs that it takes back where one fails.
//! - `data_dir`: the worker's folder, its lock and its key.
//!
//! Nothing is computed, hashed or verified on the threads that serve the network.
#![forbid(unsafe_code)]

mod assignment;
mod backoff;
mod batch;
mod config;
mod control;
mod data_dir;
mod dispute;
mod durable;
mod engine;
mod error;
mod event;
mod generation;
mod handle;
mod heads;
mod kept;
mod memory;
mod preflight;
mod pull;
mod running;
mod selftest;
mod session;
mod stage;
mod store;
mod streams;
mod supervisor;

pub use config::{Config, Pipeline};
pub use data_dir::KEY_FILE;
pub use error::{ErrorKind, WorkerError};
pub use event::Event;
pub use handle::{Handle, Worker};
pub use memory::{generation_bytes, machine_memory};
