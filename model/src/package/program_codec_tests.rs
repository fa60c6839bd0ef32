use lockstep_protocol::canonical::{Reader, Writer};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn tensor_ids<const N: usize>() -> impl Strategy<Value = [TensorId; N]> {
    any::<[u16; N]>().prop_map(|ids| ids.map(TensorId))
}

fn scaled() -> impl Strategy<Value = ScaledRows> {
    any::<[u16; 3]>().prop_map(|[c, m, s]| ScaledRows { codes: ParamId(c), mantissa: ParamId(m), shift: ParamId(s) })
}

fn norm() -> impl Strategy<Value = Norm> {
    any::<(u16, u8, u32, i16)>().prop_map(|(scale, shift, epsilon_mantissa, epsilon_shift)| Norm {
        scale: ParamId(scale),
        shift,
        epsilon_mantissa,
        epsilon_shift,
    })
}

fn heads() -> impl Strategy<Value = Heads> {
    (any::<(u16, u16, u16, bool)>(), vec(any::<u8>(), 0..9), vec(any::<u8>(), 0..9)).prop_map(
        |((heads, kv_heads, head_dim, causal), score_shift, value_shift)| Heads {
            heads,
            kv_heads,
            head_dim,
            causal,
            score_shift,
            value_shift,
        },
    )
}

fn index() -> impl Strategy<Value = EmbedIndex> {
    prop_oneof![Just(EmbedIndex::Token), Just(EmbedIndex::Position), any::<u32>().prop_map(EmbedIndex::Constant)]
}

fn op() -> impl Strategy<Value = Op> {
    let two = || tensor_ids::<2>();
    prop_oneof![
        (vec((scaled(), index()), 0..4), tensor_ids::<1>()).prop_map(|(tables, [out])| Op::Embed { tables, out }),
        two().prop_map(|[input, out]| Op::Quantize { input, out }),
        (two(), scaled(), any::<Option<u16>>()).prop_map(|([input, out], weight, bias)| Op::MatMul {
            input,
            weight,
            bias: bias.map(ParamId),
            out
        }),
        tensor_ids::<3>().prop_map(|[a, b, out]| Op::Add { a, b, out }),
        (two(), norm(), any::<u16>()).prop_map(|([input, out], norm, bias)| Op::LayerNorm {
            input,
            norm,
            bias: ParamId(bias),
            out
        }),
        (two(), norm(), any::<u16>()).prop_map(|([input, out], norm, groups)| Op::RmsNorm { input, norm, groups, out }),
        (tensor_ids::<4>(), heads()).prop_map(|([q, k, v, out], heads)| Op::Attention { q, k, v, heads, out }),
        (two(), any::<u8>()).prop_map(|([input, out], frac)| Op::Gelu { input, frac, out }),
        (two(), any::<u8>()).prop_map(|([input, out], frac)| Op::Silu { input, frac, out }),
        two().prop_map(|[input, out]| Op::MeanPool { input, out }),
        two().prop_map(|[input, out]| Op::FirstPool { input, out }),
        two().prop_map(|[input, out]| Op::L2Normalize { input, out }),
        (two(), any::<[u16; 3]>(), vec(any::<u8>(), 0..9)).prop_map(
            |([input, out], [table, heads, head_dim], shift)| Op::Rope {
                input,
                table: ParamId(table),
                heads,
                head_dim,
                shift,
                out
            }
        ),
        (tensor_ids::<3>(), any::<u8>()).prop_map(|([a, b, out], shift)| Op::Multiply { a, b, shift, out }),
        (two(), any::<u8>()).prop_map(|([input, out], shift)| Op::Shift { input, shift, out }),
        two().prop_map(|[input, out]| Op::Gather { input, out }),
        (two(), any::<u8>(), any::<u16>()).prop_map(|([logits, out], frac, token_bytes)| Op::Sample {
            logits,
            frac,
            token_bytes: ParamId(token_bytes),
            out
        }),
    ]
}

fn program() -> impl Strategy<Value = Program> {
    let tensor = ("[a-z.0-9é]{0,9}", 0..3_usize, any::<u32>(), 0..3_usize)
        .prop_map(|(name, rows, cols, kind)| Tensor { name, rows: ROWS[rows], cols, kind: KINDS[kind] });
    let param = ("[a-z.0-9]{0,9}", 0..4_usize, any::<u32>(), any::<u32>())
        .prop_map(|(name, dtype, rows, cols)| Param { name, dtype: DTYPES[dtype], rows, cols });
    let layer = ("[a-z.0-9]{0,9}", vec(op(), 0..6), any::<u16>()).prop_map(|(name, ops, output)| Layer {
        name,
        ops,
        output: TensorId(output),
    });
    (any::<u32>(), any::<u32>(), vec(tensor, 0..5), vec(param, 0..5), vec(layer, 0..4)).prop_map(
        |(vocab_size, max_positions, tensors, params, layers)| Program {
            vocab_size,
            max_positions,
            tensors,
            params,
            layers,
        },
    )
}

fn encode(program: &Program) -> Vec<u8> {
    let mut w = Writer::new();
    encode_program(program, &mut w);
    w.into_bytes()
}

proptest! {
    #[test]
    fn programs_survive_the_round_trip(program in program()) {
        let bytes = encode(&program);
        let mut r = Reader::new(&bytes);
        prop_assert_eq!(decode_program(&mut r).unwrap(), program);
        prop_assert_eq!(r.left(), 0);
    }

    /// Whatever decodes encodes to the same bytes again, and validation of it does not panic.
    #[test]
    fn mutations_are_refused_or_canonical(program in program(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut bytes = encode(&program);
        let at = at.index(bytes.len());
        bytes[at] = to;
        let mut r = Reader::new(&bytes);
        if let Ok(decoded) = decode_program(&mut r) {
            let used = bytes.len() - r.left();
            prop_assert_eq!(encode(&decoded), &bytes[..used]);
            let _ = decoded.validate();
        }
    }

    #[test]
    fn noise_does_not_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = decode_program(&mut Reader::new(&bytes));
    }

    #[test]
    fn truncation_is_refused(program in program(), at in any::<prop::sample::Index>()) {
        let bytes = encode(&program);
        let cut = at.index(bytes.len());
        prop_assert!(decode_program(&mut Reader::new(&bytes[..cut])).is_err());
    }
}
