//! What a coordinator does most: messages of job streams, steps of the job machine, verdicts.
#![allow(missing_docs, reason = "criterion's macros make public functions without documentation")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lockstep_benches::dispute::{Workload, measure};
use lockstep_benches::net::{Shape, machine};
use lockstep_kernels::reference::Reference;
use lockstep_protocol::canonical::{from_bytes, to_bytes};
use lockstep_protocol::ids::{Place, Root};
use lockstep_protocol::limits::MAX_STREAMED_TOGETHER;
use lockstep_protocol::messages::{FrameDecoder, JobMessage, to_frame};
use lockstep_sim::adversary::LyingBackend;
use lockstep_sim::models;

fn codec(criterion: &mut Criterion) {
    let place = Place { point: 1_000, layer: 7 };
    let message = JobMessage::Layer { place, root: Root::from_bytes([0x3c; 32]) };
    let (bytes, frame) = (to_bytes(&message), to_frame(&message).expect("it fits"));
    let mut group = criterion.benchmark_group("codec");
    group.throughput(Throughput::Elements(1));
    group.bench_function("encode a root", |bencher| bencher.iter(|| to_frame(black_box(&message))));
    group.bench_function("decode a root", |bencher| bencher.iter(|| from_bytes::<JobMessage>(black_box(&bytes))));
    let many = frame.repeat(MAX_STREAMED_TOGETHER);
    group.throughput(Throughput::Elements(MAX_STREAMED_TOGETHER as u64));
    group.bench_function("decode a stream", |bencher| {
        bencher.iter(|| {
            let mut decoder = FrameDecoder::<JobMessage>::new();
            decoder.feed(black_box(&many));
            let mut count = 0;
            while let Some(message) = decoder.next().expect("all are right") {
                black_box(message);
                count += 1;
            }
            count
        });
    });
    group.finish();
}

fn job_machine(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("job machine");
    for together in [1, MAX_STREAMED_TOGETHER] {
        let shape = Shape { layers: 22, points: 128 };
        let workload = machine::Workload { streams: 4, idle: 100, waiting: 0, shape, together };
        group.sample_size(10).measurement_time(Duration::from_secs(2));
        group.throughput(Throughput::Elements((workload.streams * shape.records()) as u64));
        group.bench_function(format!("runs of which {together} come together"), |bencher| {
            bencher.iter_custom(|times| {
                let seconds: f64 = (0..times).map(|_| machine::measure(workload).expect("it runs")).sum();
                Duration::from_secs_f64(seconds)
            });
        });
    }
    group.finish();
}

fn verdict(criterion: &mut Criterion) {
    let package = models::decoder();
    let workload = Workload::new(package, 20).expect("the model has as many positions");
    let liar = |lie| Arc::new(LyingBackend::new("liar".into(), Reference, &[lie])) as Arc<_>;
    let disputes = measure(&workload, &Reference, &liar, &mut |_| Ok(())).expect("the disputes are played");
    let mut group = criterion.benchmark_group("dispute");
    group.sample_size(20).measurement_time(Duration::from_secs(2));
    group.throughput(Throughput::Elements(disputes.len() as u64));
    group.bench_function("one about each op, from the opening to the verdict", |bencher| {
        bencher
            .iter(|| disputes.iter().map(|dispute| dispute.referee(package).expect("a verdict")).collect::<Vec<_>>());
    });
    group.finish();
}

criterion_group!(benches, codec, job_machine, verdict);
criterion_main!(benches);
