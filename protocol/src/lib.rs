//! The pure protocol core of Lockstep: what is hashed, signed, sent, and decided.
//!
//! Nothing in this crate reads a clock, a file, a socket or a source of randomness, and nothing is
//! asynchronous: time and input are arguments, records and actions are results. So everything here
//! replays, and two implementations can be compared byte by byte. `clippy.toml` beside this crate bans
//! what would break that.
//!
//! # Map
//!
//! | module | what it owns |
//! |---|---|
//! | [`limits`] | every limit of the whole system, with its relations asserted at compile time |
//! | [`canonical`] | the one encoding of all that is hashed, signed, stored or sent |
//! | [`ids`], [`hex`] | names and numbers as types, with their one text form |
//! | [`domain`], [`identity`] | purposes of hashes and signatures; ed25519 keys, and their DER forms for TLS |
//! | [`trace`] | the plain BLAKE3 of a layer's rows, for every prefix |
//! | [`openings`] | any chunks of a tensor with their proof: how packages travel |
//! | [`job`] | jobs and their ids, and where a job commits |
//! | [`generation`] | what is asked of a decoder, and the words that it answers with |
//! | [`commitment`] | the order of the roots, the chain over them, the first difference of two runs |
//! | [`hand_over`] | rows between the workers of a pipeline: what is signed of them, and what proves it wrong |
//! | [`receipt`] | what worker and coordinator sign, and the check of it all, offline |
//! | [`messages`] | the wire messages and their frames |
//! | [`log`] | the transparency log: entries, Merkle tree, signed heads, proofs |
//! | [`ledger`] | integer credits: postings, accounts, prices, and their export |
//! | [`dispute`] | two runs of a job differ: the game to one element, its referee, players, transcript and file |
//! | [`machine`] | the coordinator's job machine: leases, placement, audits, draws, bonds |
//!
//! # A job's way through the crate
//!
//! 1. The coordinator turns a request into a [`job::Job`] and feeds it to [`machine::Machine`]. When the
//!    returned records are durable, it acknowledges the job, whose name is [`job::Job::id`].
//! 2. The machine assigns it under a fresh lease epoch; the shell sends [`messages::ToWorker::Assign`].
//! 3. The worker runs it. Each layer's root ([`trace::root_of_rows`] or [`trace::RowTree`]) goes out in
//!    a [`messages::JobMessage::Layer`] while the next layer runs, in the order of
//!    [`job::JobHeader::geometry`]. At the end the worker signs a [`receipt::WorkerReceipt`] over
//!    everything, with the [`commitment::ChainHead`] of the streamed roots, commits to it
//!    ([`commitment::RunCommitment`]) and shows it when it is told to.
//! 4. The machine checks it, and asks for a draw ([`machine::audit_draw`]) once it is durable. Drawn
//!    jobs go to other workers, who are told nothing of it.
//! 5. Equal roots end the job. Different ones are reported with their first place; a dispute narrows them
//!    down to one number, and the machine quarantines whoever was wrong about it.
//! 6. The shell writes the [`receipt::Receipt`] from [`machine::Outcome::receipt`]. Anybody checks it with
//!    [`receipt::Receipt::check`], and its roots by running the model.
#![deny(clippy::float_arithmetic, clippy::disallowed_types, clippy::disallowed_methods)]
#![forbid(unsafe_code)]

pub mod canonical;
pub mod commitment;
pub mod dispute;
pub mod domain;
pub mod generation;
pub mod hand_over;
pub mod hex;
pub mod identity;
pub mod ids;
pub mod job;
mod json;
pub mod ledger;
pub mod limits;
pub mod log;
pub mod logprobs;
pub mod machine;
pub mod messages;
pub mod openings;
pub mod receipt;
pub mod trace;

#[cfg(test)]
mod testing;
