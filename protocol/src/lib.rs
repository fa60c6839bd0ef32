//! The pure protocol core: ids, canonical encoding, commitments, receipts, messages and the job machine.
