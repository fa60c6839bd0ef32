//! Packages: import from checkpoints, lowering to programs, bounds proofs, tokenizer.
