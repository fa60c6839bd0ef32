//! The conformance suite on the first adapter of this machine: byte for byte against the oracle.

mod common;

use std::collections::BTreeSet;

use common::open;
use lockstep_kernels::conformance::{self, Level, Progress};
use lockstep_kernels::program::OP_NAMES;
use lockstep_shaders::{Options, Variant, adapters};

/// Every op, boundary and pattern; whole encoders and decoders; caches, forks, ragged batches; 20,483 positions.
#[test]
fn every_boundary_and_pattern() {
    let Some(wgpu) = open(Options::default()) else { return };
    let mut seen = BTreeSet::new();
    let mut note = |p: Progress<'_>| {
        seen.insert(p.op);
    };
    let summary = conformance::run(&wgpu, Level::Full, &mut note).unwrap_or_else(|d| panic!("{d}"));
    assert!(summary.cases > 1_000, "{summary:?}");
    let expected: BTreeSet<_> = OP_NAMES.into_iter().chain(["model"]).collect();
    assert_eq!(seen, expected);
}

/// With bindings of 256 KiB, weights and activations of ordinary cases are split; the bytes stay the same.
#[test]
fn split_tensors() {
    let Some(wgpu) = open(Options { binding_bytes: Some(1 << 18), ..Options::default() }) else { return };
    conformance::run(&wgpu, Level::Quick, &mut |_| {}).unwrap_or_else(|d| panic!("{d}"));
    for case in common::wide_cases() {
        conformance::check(&wgpu, &case).unwrap_or_else(|d| panic!("{d}"));
    }
}

/// A form of the shaders, where the adapter has what it needs.
fn variant(variant: Variant, level: Level) {
    if !adapters().first().is_some_and(|adapter| adapter.variants.contains(&variant)) {
        eprintln!("SKIPPED: the first adapter can't run the variant {}", variant.name());
        return;
    }
    let Some(wgpu) = open(Options { variant, ..Options::default() }) else { return };
    conformance::run(&wgpu, level, &mut |_| {}).unwrap_or_else(|d| panic!("{d}"));
    for case in common::wide_cases() {
        conformance::check(&wgpu, &case).unwrap_or_else(|d| panic!("{d}"));
    }
}

#[test]
fn integers_of_64_bits() {
    variant(Variant::Int64, Level::Quick);
}

#[test]
fn reductions_in_subgroups() {
    variant(Variant::Subgroups, Level::Full);
}
