//! The golden vectors, by the CUDA kernels: also codes that no quantising makes.

mod ops;

#[path = "../../../examples/regenerate_vectors/vectors.rs"]
mod vectors;

use std::sync::Arc;

use lockstep_cuda::Products;
use lockstep_cuda_emulation::{Emulation, Order};
use lockstep_kernels::program::OP_NAMES;

#[test]
fn kernels_give_the_stored_vectors() {
    for order in [Order::Ascending, Order::Descending] {
        for products in Products::ALL {
            let emulation = Arc::new(Emulation::new(order, (9, 0)));
            for op in OP_NAMES {
                let path = format!("{}/../../vectors/{op}.json", env!("CARGO_MANIFEST_DIR"));
                let stored = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
                let made = vectors::file(op, &ops::Ops { device: Arc::clone(&emulation) as _, products });
                for (n, (expected, got)) in stored.lines().zip(made.lines()).enumerate() {
                    assert_eq!(got, expected, "{op}.json line {}, {order:?}, {products:?}", n + 1);
                }
                assert_eq!(made.len(), stored.len(), "{op}.json");
            }
            assert_eq!(emulation.allocated(), 0, "memory was not given back");
        }
    }
}
