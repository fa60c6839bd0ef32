use std::sync::Arc;

use lockstep_kernels::program::{DType, Layer, Param, Rows, Tensor, TensorId, TensorKind};

use super::*;
use crate::lower::{MemoryParams, ParamValues};

const COLS: u32 = 64;

/// Embedding, LayerNorm, one product and pooling, with parameters of full size.
fn sample() -> (Program, Vec<ParamValues>) {
    let tensor = |name: &str, rows, kind| Tensor { name: name.into(), rows, cols: COLS, kind };
    let tensors = vec![
        tensor("sum", Rows::Position, TensorKind::I32),
        tensor("hidden", Rows::Position, TensorKind::I32),
        tensor("rows", Rows::Position, TensorKind::Bfp),
        tensor("product", Rows::Position, TensorKind::I32),
        tensor("pooled", Rows::Sequence, TensorKind::I32),
    ];
    let param = |name: &str, dtype, rows, cols| Param { name: name.into(), dtype, rows, cols };
    let params = vec![
        param("table", DType::I16, 3, COLS),
        param("table.mantissa", DType::U16, 1, 3),
        param("table.shift", DType::I16, 1, 3),
        param("scale", DType::I32, 1, COLS),
        param("bias", DType::I32, 1, COLS),
        param("weight", DType::I8, COLS, COLS),
        param("weight.mantissa", DType::U16, 1, COLS),
        param("weight.shift", DType::I16, 1, COLS),
    ];
    let n = (COLS * COLS) as usize;
    let values = vec![
        ParamValues::I16(vec![32_639; 3 * COLS as usize]),
        ParamValues::U16(vec![65_535; 3]),
        ParamValues::I16(vec![1; 3]),
        ParamValues::I32(vec![i32::MIN; COLS as usize]),
        ParamValues::I32(vec![i32::MIN; COLS as usize]),
        ParamValues::I8(vec![-127; n]),
        ParamValues::U16(vec![1 << 15; COLS as usize]),
        ParamValues::I16(vec![i16::MIN; COLS as usize]),
    ];
    let rows = |p| ScaledRows { codes: ParamId(p), mantissa: ParamId(p + 1), shift: ParamId(p + 2) };
    let t = TensorId;
    let norm = Norm { scale: ParamId(3), shift: 62, epsilon_mantissa: u32::MAX, epsilon_shift: i16::MIN };
    let layer = |ops, output| Layer { name: "layer".into(), ops, output: TensorId(output) };
    let layers = vec![
        layer(
            vec![
                Op::Embed { tables: vec![(rows(0), EmbedIndex::Token)], out: t(0) },
                Op::LayerNorm { input: t(0), norm, bias: ParamId(4), out: t(1) },
            ],
            1,
        ),
        layer(
            vec![
                Op::Quantize { input: t(1), out: t(2) },
                Op::MatMul { input: t(2), weight: rows(5), bias: Some(ParamId(4)), out: t(3) },
                Op::MeanPool { input: t(3), out: t(4) },
            ],
            4,
        ),
    ];
    let program = Program { vocab_size: 3, max_positions: 1 << 17, tensors, params, layers };
    program.validate().unwrap();
    (program, values)
}

fn proof(change: impl FnOnce(&mut Vec<ParamValues>)) -> Result<(), String> {
    let (program, mut values) = sample();
    change(&mut values);
    prove(&program, &MemoryParams(values.into_iter().map(Arc::new).collect())).map_err(|e| e.to_string())
}

fn set_i16(values: &mut [ParamValues], param: usize, at: usize, value: i16) {
    match &mut values[param] {
        ParamValues::I16(v) => v[at] = value,
        _ => unreachable!("a test names the right parameter"),
    }
}

#[test]
fn extremes_within_the_limits_are_proven() {
    assert_eq!(proof(|_| {}), Ok(()));
}

#[test]
fn codes_out_of_range_are_named() {
    let error = proof(|v| set_i16(v, 0, 70, -32_640)).unwrap_err();
    assert_eq!(error, "bounds: parameter \"table\": row 1 has the code -32640");
    let error = proof(|v| v[5] = ParamValues::I8(vec![-128; (COLS * COLS) as usize])).unwrap_err();
    assert_eq!(error, "bounds: parameter \"weight\": row 0 has the code -128");
}

#[test]
fn mantissas_that_are_not_normalised_are_named() {
    let error = proof(|v| v[1] = ParamValues::U16(vec![1 << 15, 32_767, 1 << 15])).unwrap_err();
    assert_eq!(error, "bounds: parameter \"table.mantissa\": element 1 is 32767, not normalised");
}

#[test]
fn embeddings_that_saturate_are_refused() {
    assert_eq!(proof(|v| set_i16(v, 2, 1, 0)), Ok(()));
    let error = proof(|v| set_i16(v, 2, 1, -1)).unwrap_err();
    assert!(error.contains("layer 0 (layer) op 0 (embed): the sum of embedding rows can reach"), "{error}");
    let error = proof(|v| set_i16(v, 2, 1, i16::MIN)).unwrap_err();
    assert!(error.contains("can reach 4611686018427387904"), "{error}");
}

/// The second attention needs the first for every key, and scores of all rows are more than a dispute can hold.
#[test]
fn a_layer_without_a_dispute_view_is_refused_by_name() {
    let (mut program, values) = sample();
    let rows = |p| ScaledRows { codes: ParamId(p), mantissa: ParamId(p + 1), shift: ParamId(p + 2) };
    let mut tensor = |kind| {
        program.tensors.push(Tensor { name: "more".into(), rows: Rows::Position, cols: COLS, kind });
        TensorId(program.tensors.len() as u16 - 1)
    };
    let mut ops = vec![];
    let mut x = TensorId(1);
    for _ in 0..2 {
        let [codes, q, out] = [TensorKind::Bfp, TensorKind::I16, TensorKind::I32].map(&mut tensor);
        let (score_shift, value_shift) = (vec![20], vec![12]);
        let heads = Heads { heads: 1, kv_heads: 1, head_dim: 64, causal: true, score_shift, value_shift };
        ops.push(Op::Quantize { input: x, out: codes });
        ops.push(Op::MatMul { input: codes, weight: rows(5), bias: None, out: q });
        ops.push(Op::Attention { q, k: q, v: q, heads, out });
        x = out;
    }
    program.layers[1] = Layer { name: "layer".into(), ops, output: x };
    program.validate().unwrap();
    let error = prove(&program, &MemoryParams(values.into_iter().map(Arc::new).collect())).unwrap_err().to_string();
    assert!(error.starts_with("bounds: dispute view: layer 1 op 2 (attention): "), "{error}");
}
