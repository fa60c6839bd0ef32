//! The worker: link to a coordinator, package store, execution.
