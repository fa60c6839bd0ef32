//! QUIC with both sides pinned by key, and framed messages over it: what worker and coordinator share.
//!
//! - [`server`], [`Client`]: endpoints. TLS 1.3 only; each side proves its ed25519 key as a raw public key (RFC 7250),
//!   so there are no certificates and no names. No session is resumed and nothing is sent in 0-RTT.
//! - [`peer_id`]: whose key the other side proved. A client accepts one key and no other; a server requires a key, and
//!   its caller decides what to do with it.
//! - [`Frames`], [`send`]: the protocol's messages over a stream, within their caps.
//! - [`keyfile`]: where either side keeps its key.
#![forbid(unsafe_code)]

mod endpoint;
mod error;
mod frames;
pub mod keyfile;
mod tls;

#[cfg(test)]
mod tests;

pub use endpoint::{Client, Close, close, peer_id, server};
pub use error::LinkError;
pub use frames::{Frames, send};
