//! The kernels that take a model's time, on one thread: products at shapes of prefill and decode, and attention.
#![allow(missing_docs, reason = "criterion's macros make public functions without documentation")]

use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lockstep_benches::ops::cases::{Spec, Variant, build};
use lockstep_benches::ops::counts::counts;
use lockstep_benches::ops::once;
use lockstep_kernels::backend::Backend;
use lockstep_kernels::conformance::OwnedParams;
use lockstep_kernels::cpu::Cpu;
use lockstep_kernels::value::Params;

/// What is measured: op, shape, variants.
const CASES: [(&str, &[usize], [Variant; 2]); 5] = [
    // Decode at 135 million parameters, and prefill at the same.
    ("matmul", &[1, 576, 1_536], [Variant::W8, Variant::W16]),
    ("matmul", &[128, 576, 1_536], [Variant::W8, Variant::W16]),
    // The same at 1.1 billion.
    ("matmul", &[1, 2_048, 5_632], [Variant::W8, Variant::W16]),
    ("matmul", &[64, 2_048, 2_048], [Variant::W8, Variant::W16]),
    ("attention", &[128, 12, 12, 32], [Variant::Causal, Variant::Full]),
];

fn kernels(criterion: &mut Criterion) {
    let cpu = Cpu::new(None, 1).expect("one thread");
    for (op, shape, variants) in CASES {
        let mut group = criterion.benchmark_group(op);
        group.sample_size(10).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
        for variant in variants {
            let spec = Spec::new(op, shape, variant).expect("a shape of the op");
            let case = build(&spec, 1).expect("a program");
            let params: Arc<dyn Params> = Arc::<OwnedParams>::clone(&case.params);
            let mut executor = cpu.load(Arc::clone(&case.program), params).expect("it loads");
            group.throughput(Throughput::Elements(counts(&case.program, case.op(), &case.batch).operations));
            group.bench_function(BenchmarkId::new(variant.name(), &spec), |bencher| {
                bencher.iter_custom(|times| {
                    let seconds: f64 = (0..times).map(|_| once(&case, &mut *executor).expect("it runs")).sum();
                    Duration::from_secs_f64(seconds)
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
