//! What commitments take: rows to roots, roots to the signed chain, and the check of it.
#![allow(missing_docs, reason = "criterion's macros make public functions without documentation")]

use std::hint::black_box;
use std::sync::mpsc::{channel, sync_channel};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lockstep_benches::net::{Shape, signed_run};
use lockstep_protocol::commitment::PointDigest;
use lockstep_protocol::trace::{RowTree, root_of_rows};

/// Columns of a row: of a small encoder, and of 1.1 billion parameters.
const COLUMNS: [usize; 2] = [384, 2_048];
/// Layers and points of a run of 1.1 billion parameters.
const RUN: Shape = Shape { layers: 22, points: 256 };

fn rows(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rows");
    for columns in COLUMNS {
        let row: Vec<i32> = (0..columns as i32).collect();
        group.throughput(Throughput::Bytes(4 * columns as u64));
        group.bench_function(BenchmarkId::new("root of a row", columns), |bencher| {
            bencher.iter(|| root_of_rows(black_box(&row[..]), columns));
        });
        // Deep in a generation: the root of each prefix is wanted.
        let mut tree = RowTree::new(columns);
        (0..1_000).for_each(|_| tree.push_row(&row));
        group.bench_function(BenchmarkId::new("push a row and take the root", columns), |bencher| {
            bencher.iter_batched_ref(
                || tree.clone(),
                |tree| {
                    tree.push_row(black_box(&row[..]));
                    tree.root()
                },
                BatchSize::SmallInput,
            );
        });
        group.bench_function(BenchmarkId::new("have another thread do that", columns), |bencher| {
            let (to, rows) = sync_channel::<Vec<i32>>(2);
            let (told, roots) = channel();
            let mut tree = tree.clone();
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    for row in rows {
                        tree.push_row(&row);
                        told.send(tree.root()).expect("the root is waited for");
                    }
                });
                bencher.iter(|| {
                    to.send(row.clone()).expect("the thread waits for rows");
                    roots.recv().expect("the thread tells roots")
                });
                drop(to);
            });
        });
    }
    group.finish();
}

fn chain(criterion: &mut Criterion) {
    let run = signed_run(RUN).expect("a run");
    let header = run.job.header();
    let geometry = header.geometry(RUN.layers).expect("the job commits");
    let receipt = &run.result.receipt.receipt;
    let mut group = criterion.benchmark_group("chain");
    group.bench_function("digest of a point", |bencher| {
        bencher.iter(|| PointDigest::of(black_box(&run.roots[..usize::from(RUN.layers) + 1])));
    });
    group.throughput(Throughput::Elements(RUN.records() as u64));
    group.bench_function("head of all roots", |bencher| {
        bencher.iter(|| geometry.head(receipt.job, receipt.epoch, black_box(&run.roots[..])));
    });
    group.bench_function("check of a signed run", |bencher| {
        bencher
            .iter(|| run.result.receipt.check(&header, Some(black_box(&run.result.output[..]))).expect("it is right"));
    });
    group.finish();
}

criterion_group!(benches, rows, chain);
criterion_main!(benches);
