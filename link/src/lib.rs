//! QUIC with both sides pinned by key, and framed messages over it.
