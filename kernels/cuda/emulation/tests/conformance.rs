//! The conformance suite on the CUDA kernels, without a GPU.

use std::sync::Arc;

use lockstep_cuda::plan::MODULES;
use lockstep_cuda::{Cuda, Products};
use lockstep_cuda_emulation::{Emulation, Order, kernels};
use lockstep_kernels::conformance::{self, Level};

fn backend(order: Order, products: Products) -> Cuda {
    Cuda::on(Arc::new(Emulation::new(order, (9, 0))), Some(products)).expect("a capable device")
}

fn run(order: Order, products: Products, level: Level) {
    let backend = backend(order, products);
    let summary = conformance::run(&backend, level, &mut |_| {}).unwrap_or_else(|d| panic!("{d}"));
    assert!(summary.cases > if level == Level::Full { 1_000 } else { 50 }, "{summary:?}");
}

#[test]
fn all_of_it() {
    run(Order::Ascending, Products::Wgmma, Level::Full);
}

/// The other products, and the other order: a kernel that lacks a barrier gives other bytes when threads run the other way
/// round.
#[test]
fn other_products_and_orders() {
    for (order, products) in [
        (Order::Ascending, Products::Mma),
        (Order::Descending, Products::Mma),
        (Order::Descending, Products::Dp4a),
        (Order::Descending, Products::Wgmma),
    ] {
        run(order, products, Level::Quick);
    }
}

/// What plans launch is what there is.
#[test]
fn every_kernel_is_compiled() {
    let mut compiled = kernels();
    let mut launched: Vec<_> = MODULES.iter().flat_map(|(_, kernels)| *kernels).map(ToString::to_string).collect();
    compiled.sort();
    launched.sort();
    assert_eq!(compiled, launched);
}
