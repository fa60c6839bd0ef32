//! Chaining values of chunks that the device hashes, against BLAKE3 itself.

mod common;

use std::sync::Arc;

use blake3::hazmat::HasherExt;
use common::open;
use lockstep_kernels::backend::{Backend, BackendError, Executor};
use lockstep_kernels::conformance::{Builder, OwnedParams, Pattern, SplitMix};
use lockstep_kernels::program::{Op, TensorId, TensorKind};
use lockstep_kernels::value::{Params, Value};
use lockstep_shaders::{Options, Wgpu};

const CHUNK_BYTES: usize = 1_024;

/// An executor that has made sums, their tensor, and the sums.
type Sums = (Box<dyn Executor>, TensorId, Vec<i32>);

fn sums(wgpu: &Wgpu, rows: usize, cols: usize) -> Result<Sums, BackendError> {
    let (mut b, x) = Builder::with_input(rows, cols);
    let y = b.rows("y", cols, TensorKind::I32);
    b.layer(vec![Op::Add { a: x, b: x, out: y }], y);
    let case = b.case("add", String::new(), &[rows], None);
    let params: Arc<dyn Params> = Arc::<OwnedParams>::clone(&case.params);
    let mut executor = wgpu.load(Arc::clone(&case.program), params)?;
    executor.begin(&case.batch)?;
    executor.run_layer(0)?;
    let input = Pattern::Full.i32s(&mut SplitMix::named(&format!("{rows}x{cols}")), rows, cols);
    executor.write(x, Value::I32(input))?;
    executor.run_layer(1)?;
    match executor.read(y)? {
        Value::I32(sums) => Ok((executor, y, sums)),
        _ => panic!("sums are i32"),
    }
}

/// As a host hashes them.
fn expected(rows: &[i32], cols: usize, counters: &[u64]) -> Vec<[u8; 32]> {
    let mut values = Vec::new();
    for (row, first) in rows.chunks_exact(cols).zip(counters) {
        let mut bytes: Vec<u8> = row.iter().flat_map(|v| v.to_le_bytes()).collect();
        bytes.resize(bytes.len().next_multiple_of(CHUNK_BYTES), 0);
        for (chunk, counter) in bytes.chunks(CHUNK_BYTES).zip(*first..) {
            let mut hasher = blake3::Hasher::new();
            hasher.set_input_offset(counter * CHUNK_BYTES as u64).update(chunk);
            values.push(hasher.finalize_non_root());
        }
    }
    values
}

#[test]
fn chunk_values_are_those_of_blake3() {
    let Some(wgpu) = open(Options::default()) else { return };
    for (rows, cols) in [(4, 1), (1, 256), (1, 257), (5, 300), (3, 1_024), (2, 2_049), (131, 511)] {
        let (mut executor, y, sums) = sums(&wgpu, rows, cols).expect("sums");
        // Beyond 32 bits, and where the low word overflows within a row.
        for base in [0, 7, (1 << 32) - 2, 1 << 40] {
            let counters: Vec<u64> = (0..rows as u64).map(|row| base + 11 * row).collect();
            let values = executor.chunk_values(y, &counters).expect("values");
            assert_eq!(values, Some(expected(&sums, cols, &counters)), "{rows}x{cols} from chunk {base} on");
        }
    }
}

#[test]
fn what_can_not_be_hashed_is_refused() {
    let Some(wgpu) = open(Options::default()) else { return };
    let (mut executor, y, _) = sums(&wgpu, 3, 300).expect("sums");
    assert!(executor.chunk_values(y, &[0, 2]).is_err(), "a counter for each row");
    assert!(executor.chunk_values(TensorId(99), &[0; 3]).is_err(), "no such tensor");
}
