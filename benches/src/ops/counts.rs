//! What an op has to do by its definition: the one table of operations and bytes.

use lockstep_kernels::program::{DType, Op, Program, Rows, TensorId, TensorKind};
use lockstep_kernels::value::Batch;

/// What one op of one batch takes at the least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Multiplications, additions and comparisons of the definition. A multiply-accumulate is two.
    pub operations: u64,
    /// Operations on bytes that the op's products become: two limbs for 8-bit weights, four for 16-bit ones. 0 where there
    /// is no matrix product.
    pub byte_operations: u64,
    /// Bytes of what it reads and writes, each once.
    pub bytes: u64,
}

/// Rows of each kind in a batch.
#[derive(Clone, Copy)]
struct Extent<'a> {
    program: &'a Program,
    batch: &'a Batch,
}

impl Extent<'_> {
    fn rows(self, rows: Rows) -> u64 {
        let count = match rows {
            Rows::Position => self.batch.rows(),
            Rows::Sequence => self.batch.sequences.len(),
            Rows::Point => self.batch.points(),
        };
        count as u64
    }

    fn elements(self, id: TensorId) -> u64 {
        let tensor = self.program.tensor(id);
        self.rows(tensor.rows) * u64::from(tensor.cols)
    }

    fn bytes(self, id: TensorId) -> u64 {
        let tensor = self.program.tensor(id);
        let exponents = if tensor.kind == TensorKind::Bfp { 4 * self.rows(tensor.rows) } else { 0 };
        let element = if tensor.kind == TensorKind::I32 { 4 } else { 2 };
        element * self.elements(id) + exponents
    }

    /// Pairs of a query and a key that it sees, of one head.
    fn pairs(self, is_causal: bool) -> u64 {
        let of = |sequence: &lockstep_kernels::value::Sequence| {
            let (start, end) = (sequence.start as u64, sequence.tokens.len() as u64);
            if is_causal { (end * (end + 1) - start * (start + 1)) / 2 } else { (end - start) * end }
        };
        self.batch.sequences.iter().map(of).sum()
    }
}

/// Counts an op of a validated program.
pub fn counts(program: &Program, op: &Op, batch: &Batch) -> Counts {
    let extent = Extent { program, batch };
    let out = extent.elements(op.out());
    let input = op.inputs().first().map_or(0, |id| extent.elements(*id));
    let param = |id| program.param(id).bytes().unwrap_or(0);
    let activations: u64 = op.inputs().into_iter().chain([op.out()]).map(|id| extent.bytes(id)).sum();
    // Operations for each element, and bytes of parameters.
    let (operations, byte_operations, parameters) = match op {
        // A product and a sum for each table; of a table only the rows that are read, with mantissa and shift.
        Op::Embed { tables, .. } => {
            let rows = out / u64::from(program.tensor(op.out()).cols).max(1);
            (2 * out * tables.len() as u64, 0, tables.len() as u64 * (2 * out + 4 * rows))
        }
        // The largest magnitude; a rounding shift.
        Op::Quantize { .. } => (2 * out, 0, 0),
        Op::MatMul { weight, bias, .. } => {
            let codes = program.param(weight.codes);
            let limbs = if codes.dtype == DType::I8 { 2 } else { 4 };
            let operations = 2 * out * u64::from(codes.cols);
            let scales = param(weight.mantissa) + param(weight.shift);
            (operations, limbs * operations, param(weight.codes) + scales + bias.map_or(0, param))
        }
        Op::Add { .. } | Op::Multiply { .. } | Op::Shift { .. } => (out, 0, 0),
        // The mean, a difference, a square and its sum, two products, the bias.
        Op::LayerNorm { norm, bias, .. } => (7 * out, 0, param(norm.scale) + param(*bias)),
        // A square and its sum, two products.
        Op::RmsNorm { norm, .. } => (4 * out, 0, param(norm.scale)),
        // Both products, as multiply-accumulates; four limb products each. Exponentials are not counted.
        Op::Attention { heads, .. } => {
            let width = u64::from(heads.heads) * u64::from(heads.head_dim);
            let operations = 4 * extent.pairs(heads.causal) * width;
            // Keys and values of earlier positions come from the cache.
            let cached: u64 = batch.sequences.iter().map(|s| s.start as u64).sum();
            let keys = 2 * 2 * cached * u64::from(heads.kv_heads) * u64::from(heads.head_dim);
            (operations, 4 * operations, keys)
        }
        // Interpolation between two entries of a table, and the product with x. The table stays in the nearest cache.
        Op::Gelu { .. } | Op::Silu { .. } => (4 * out, 0, 0),
        Op::MeanPool { .. } => (input, 0, 0),
        Op::FirstPool { .. } | Op::Gather { .. } => (0, 0, 0),
        // A square, its sum, a product.
        Op::L2Normalize { .. } => (3 * out, 0, 0),
        // Four products and two sums for a pair.
        Op::Rope { table, .. } => {
            let rotary = u64::from(program.param(*table).cols);
            (3 * out, 0, 4 * extent.rows(Rows::Position) * rotary)
        }
        // The temperature, an exponential and its sum for each logit, where the choice is not greedy.
        Op::Sample { .. } => (3 * input, 0, 0),
    };
    let bytes = match op {
        // Of what is pooled or gathered only the rows that are taken are read.
        Op::FirstPool { .. } | Op::Gather { .. } => 2 * extent.bytes(op.out()),
        // Both operands may be one tensor, but each is read.
        _ => activations + parameters,
    };
    Counts { operations, byte_operations, bytes }
}

#[cfg(test)]
mod tests {
    use lockstep_kernels::program::OP_NAMES;

    use super::*;
    use crate::ops::cases::{Spec, Variant, build};

    fn of(op: &str, shape: &[usize], variant: Variant) -> Counts {
        let case = build(&Spec::new(op, shape, variant).expect("a shape"), 1).expect("a case");
        counts(&case.program, case.op(), &case.batch)
    }

    #[test]
    fn the_table_says_what_the_definitions_say() {
        let counted = |op: &str, shape: &[usize]| of(op, shape, Variant::Plain);
        let counts = |operations, byte_operations, bytes| Counts { operations, byte_operations, bytes };
        assert_eq!(counted("add", &[3, 5]), counts(15, 0, 3 * 4 * 15));
        assert_eq!(counted("shift", &[3, 5]), counts(15, 0, 2 * 4 * 15));
        assert_eq!(counted("quantize", &[3, 5]), counts(30, 0, 6 * 15 + 4 * 3));
        assert_eq!(counted("embed", &[3, 5]), counts(30, 0, (2 + 4) * 15 + 4 * 3));
        assert_eq!(counted("layer_norm", &[3, 5]), counts(105, 0, 8 * 15 + 8 * 5));
        assert_eq!(counted("rms_norm", &[3, 5]), counts(60, 0, 8 * 15 + 4 * 5));
        assert_eq!(counted("mean_pool", &[3, 5]), counts(15, 0, 4 * 15 + 4 * 5));
        assert_eq!(counted("first_pool", &[3, 5]), counts(0, 0, 8 * 5));
        assert_eq!(counted("gather", &[3, 5]), counts(0, 0, 8 * 15));
        // 3 rows, 7 to 5.
        let [w8, w16] = [Variant::W8, Variant::W16].map(|variant| of("matmul", &[3, 7, 5], variant));
        assert_eq!(w8, counts(210, 420, (2 * 21 + 4 * 3) + (35 + 4 * 5) + 4 * 15));
        assert_eq!(w16, counts(210, 840, (2 * 21 + 4 * 3) + (70 + 4 * 5) + 4 * 15));
        // 3 positions, 4 heads of 8 over 2 pairs of keys and values: 6 pairs that are seen where it is causal, else 9.
        let bytes = 2 * 3 * (32 + 16 + 16) + 4 * 3 * 32;
        assert_eq!(of("attention", &[3, 4, 2, 8], Variant::Causal), counts(4 * 6 * 32, 16 * 6 * 32, bytes));
        assert_eq!(of("attention", &[3, 4, 2, 8], Variant::Full), counts(4 * 9 * 32, 16 * 9 * 32, bytes));
        // The last of 3 positions, after 2 that are in a cache.
        let bytes = 2 * (32 + 16 + 16) + 4 * 32 + 2 * 2 * (16 + 16);
        assert_eq!(of("attention", &[3, 4, 2, 8], Variant::Decode), counts(4 * 3 * 32, 16 * 3 * 32, bytes));
        assert_eq!(counted("sample", &[2, 300]), counts(1_800, 0, 4 * 600 + 4 * 2));
        assert_eq!(counted("rope", &[3, 2, 8]), counts(144, 0, (4 + 2) * 48 + 4 * 3 * 8));
    }

    #[test]
    fn every_op_has_a_case_and_a_count() {
        for op in OP_NAMES {
            let spec = &crate::ops::shapes::defaults(op)[0];
            let case = build(spec, 1).expect("a case");
            assert_eq!(case.op().name(), op);
            assert!(counts(&case.program, case.op(), &case.batch).bytes > 0, "{op}");
        }
    }
}
