//! Benchmarks of kernels, commitments and models.
