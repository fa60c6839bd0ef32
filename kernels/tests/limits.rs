//! What a program may declare, what a batch takes, and what an executor forgets.

use std::sync::Arc;

use lockstep_kernels::backend::{Backend, BackendError};
use lockstep_kernels::conformance::{Builder, Case, ParamValue, encoder};
use lockstep_kernels::cpu::Cpu;
use lockstep_kernels::program::{
    DType, MAX_OUTPUT_COLS, MAX_POSITIONS, MAX_REDUCTION, Op, Param, Program, Rows, TensorId, TensorKind,
};
use lockstep_kernels::reference::Reference;
use lockstep_kernels::steps::check_reads;
use lockstep_kernels::value::{Batch, Params, Value};

const DTYPES: [DType; 4] = [DType::I8, DType::I16, DType::U16, DType::I32];

#[test]
fn no_declared_size_overflows() {
    let tiny = encoder(16, 2, 16, 1, false, &[2]).program;
    for dtype in DTYPES {
        let size = dtype.size() as u64;
        for (rows, cols) in [(u32::MAX, u32::MAX), (u32::MAX, 1 << 31), (1 << 31, u32::MAX), (1 << 20, 1 << 20), (3, 5)]
        {
            let param = Param { name: "hostile".into(), dtype, rows, cols };
            let exact = u128::from(rows) * u128::from(cols) * u128::from(size);
            assert_eq!(param.bytes(), u64::try_from(exact).ok(), "{param:?}");
            let mut program = Program::clone(&tiny);
            program.params.push(param);
            assert_eq!(program.validate().is_ok(), exact <= 1 << 40, "{rows} x {cols} {dtype:?}");
        }
    }
}

#[test]
fn a_committed_row_has_a_widest() {
    let validate = |cols: usize| {
        let (mut b, x) = Builder::with_input(1, cols);
        let y = b.rows("y", cols, TensorKind::I32);
        b.layer(vec![Op::Add { a: x, b: x, out: y }], y);
        b.case("add", String::new(), &[1], None).program.validate()
    };
    assert_eq!(validate(MAX_OUTPUT_COLS as usize), Ok(()));
    let refused = validate(MAX_OUTPUT_COLS as usize + 1).expect_err("too wide to commit");
    assert!(refused.to_string().contains("65536"), "{refused}");
}

/// The longest reduction can be disputed with 8-bit weights. With 16-bit ones a referee would read too much.
#[test]
fn the_longest_reduction() {
    let program = |k: usize, wide: bool| {
        let (mut b, x) = Builder::with_input(1, k);
        let (q, y) = (b.rows("q", k, TensorKind::Bfp), b.rows("y", 1, TensorKind::I32));
        let codes = if wide { ParamValue::I16(vec![1; k]) } else { ParamValue::I8(vec![1; k]) };
        let weight = b.scaled("weight", codes, 1, k, vec![1 << 15], vec![15]);
        b.layer(vec![Op::Quantize { input: x, out: q }, Op::MatMul { input: q, weight, bias: None, out: y }], y);
        b.case("matmul", String::new(), &[1], None).program
    };
    let longest = MAX_REDUCTION as usize;
    for (k, wide, valid, checked) in
        [(longest, false, true, true), (longest / 2, true, true, true), (longest, true, true, false)]
    {
        let program = program(k, wide);
        assert_eq!(program.validate().is_ok(), valid, "{k}");
        assert_eq!(check_reads(&program).is_ok(), checked, "{k}");
    }
    let refused = program(longest + 1, false).validate().expect_err("too long");
    assert!(refused.to_string().contains("16384"), "{refused}");
}

/// Every tensor at once is the least that the bound may say.
fn tensors(program: &Program, positions: u128, sequences: u128) -> u128 {
    let bytes = |t: &lockstep_kernels::program::Tensor| {
        let rows = if t.rows == Rows::Position { positions } else { sequences };
        let (size, exponent) = match t.kind {
            TensorKind::I32 => (4, 0),
            TensorKind::I16 => (2, 0),
            TensorKind::Bfp => (2, 4),
        };
        rows * (size * u128::from(t.cols) + exponent)
    };
    program.tensors.iter().map(bytes).sum()
}

#[test]
fn memory_is_bounded_before_it_is_taken() {
    let program = encoder(64, 4, 128, 3, false, &[8]).program;
    for (positions, sequences) in [(1, 1), (8, 1), (512, 7), (u64::from(MAX_POSITIONS), 1)] {
        let bound = program.activation_bytes(positions, sequences);
        let least = tensors(&program, positions.into(), sequences.into());
        // The output of a layer is copied as it is and as padded rows.
        assert!(bound >= least + u128::from(positions) * (256 + 1_024), "{bound} for {positions}");
        assert!(bound > program.activation_bytes(positions - 1, sequences));
        assert!(bound > program.activation_bytes(positions, sequences - 1));
    }
    // A short text is no reason to ask for gigabytes, and absurd numbers saturate.
    assert!(program.activation_bytes(512, 1) < 128 << 20);
    assert!(program.activation_bytes(u64::MAX, u64::MAX) > u128::from(u64::MAX));
}

fn load(case: &Case, backend: &dyn Backend) -> Box<dyn lockstep_kernels::backend::Executor> {
    let params: Arc<dyn Params> = Arc::<lockstep_kernels::conformance::OwnedParams>::clone(&case.params);
    backend.load(Arc::clone(&case.program), params).expect("a valid program")
}

/// Nothing of one request is to be had in the next.
#[test]
fn a_batch_forgets_the_one_before() {
    let case = encoder(16, 2, 16, 2, false, &[4, 3]);
    let cpu = Cpu::new(None, 2).expect("the detected path");
    for backend in [&Reference as &dyn Backend, &cpu] {
        let mut executor = load(&case, backend);
        let every = || (0..case.program.tensors.len()).map(|i| TensorId(i as u16));
        executor.begin(&case.batch).expect("a valid batch");
        for layer in 0..case.program.layers.len() {
            let output = case.program.layers[layer].output;
            assert!(executor.read(output).is_err(), "{output:?} before layer {layer}");
            executor.run_layer(layer).expect("in order");
        }
        assert!(every().all(|id| executor.read(id).is_ok()));
        let stale = executor.read(case.program.layers[0].output).expect("written");
        // The same batch again, another one, and one that is refused.
        let refused = Batch::single(vec![u32::MAX]);
        for (batch, valid) in [(&case.batch, true), (&Batch::single(vec![1]), true), (&refused, false)] {
            assert_eq!(executor.begin(batch).is_ok(), valid);
            assert!(every().all(|id| matches!(executor.read(id), Err(BackendError::Value { .. }))));
            assert!(executor.run_layer(1).is_err(), "layer 1 without layer 0");
        }
        // A refused batch has no rows to write either.
        assert!(executor.write(case.program.layers[0].output, stale).is_err());
        assert!(executor.read(TensorId(u16::MAX)).is_err());
        assert!(executor.write(TensorId(u16::MAX), Value::I32(vec![])).is_err());
    }
}
