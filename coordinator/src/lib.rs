//! The coordinator: registry, leases, audits, durable store, HTTP.
