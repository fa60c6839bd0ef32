//! The canonical encoding of a program (SPEC 20.6). Tags follow the order of the declarations.

use lockstep_kernels::program::{
    DType, EmbedIndex, Heads, Layer, Norm, Op, Param, ParamId, Program, Rows, ScaledRows, Tensor, TensorId, TensorKind,
};
use lockstep_protocol::canonical::{DecodeError, Reader, Writer};
use lockstep_protocol::limits::{
    MAX_EMBEDDING_TABLES, MAX_HEADS, MAX_LAYER_OPS, MAX_PROGRAM_IDS, MAX_PROGRAM_LAYERS, MAX_PROGRAM_NAME_BYTES,
};

type Decoded<T> = Result<T, DecodeError>;

/// Appends a program.
pub fn encode_program(program: &Program, w: &mut Writer) {
    w.u32(program.vocab_size);
    w.u32(program.max_positions);
    w.length(program.tensors.len());
    program.tensors.iter().for_each(|t| encode_tensor(t, w));
    w.length(program.params.len());
    program.params.iter().for_each(|p| encode_param(p, w));
    w.length(program.layers.len());
    for layer in &program.layers {
        w.string(&layer.name);
        w.length(layer.ops.len());
        layer.ops.iter().for_each(|op| encode_op(op, w));
        w.u16(layer.output.0);
    }
}

/// Reads a program. Its structure is not validated yet.
///
/// # Errors
/// Bytes that no program encodes to.
pub fn decode_program(r: &mut Reader<'_>) -> Decoded<Program> {
    Ok(Program {
        vocab_size: r.u32()?,
        max_positions: r.u32()?,
        tensors: list(r, "tensors", MAX_PROGRAM_IDS, 10, decode_tensor)?,
        params: list(r, "parameters", MAX_PROGRAM_IDS, 13, decode_param)?,
        layers: list(r, "layers", MAX_PROGRAM_LAYERS, 10, |r| {
            Ok(Layer {
                name: r.string("layer name", MAX_PROGRAM_NAME_BYTES)?.into(),
                ops: list(r, "ops", MAX_LAYER_OPS, 5, decode_op)?,
                output: tensor_id(r)?,
            })
        })?,
    })
}

fn list<'a, T>(
    r: &mut Reader<'a>,
    what: &'static str,
    cap: usize,
    min_bytes: usize,
    item: impl Fn(&mut Reader<'a>) -> Decoded<T>,
) -> Decoded<Vec<T>> {
    let length = r.length(what, cap, min_bytes)?;
    (0..length).map(|_| item(r)).collect()
}

/// Encodes an enum without fields by its place in a list of all variants.
fn encode_tag<T: PartialEq>(all: &[T], value: &T, w: &mut Writer) {
    let tag = all.iter().position(|v| v == value).expect("the list has every variant");
    w.u8(tag as u8);
}

fn decode_tag<T: Copy>(all: &[T], what: &'static str, r: &mut Reader<'_>) -> Decoded<T> {
    let tag = r.u8()?;
    all.get(usize::from(tag)).copied().ok_or(DecodeError::InvalidTag { what, tag: tag.into() })
}

const ROWS: [Rows; 3] = [Rows::Position, Rows::Sequence, Rows::Point];
const KINDS: [TensorKind; 3] = [TensorKind::I32, TensorKind::I16, TensorKind::Bfp];
const DTYPES: [DType; 4] = [DType::I8, DType::I16, DType::U16, DType::I32];

fn encode_tensor(t: &Tensor, w: &mut Writer) {
    w.string(&t.name);
    encode_tag(&ROWS, &t.rows, w);
    w.u32(t.cols);
    encode_tag(&KINDS, &t.kind, w);
}

fn decode_tensor(r: &mut Reader<'_>) -> Decoded<Tensor> {
    Ok(Tensor {
        name: r.string("tensor name", MAX_PROGRAM_NAME_BYTES)?.into(),
        rows: decode_tag(&ROWS, "row kind", r)?,
        cols: r.u32()?,
        kind: decode_tag(&KINDS, "tensor kind", r)?,
    })
}

fn encode_param(p: &Param, w: &mut Writer) {
    w.string(&p.name);
    encode_tag(&DTYPES, &p.dtype, w);
    w.u32(p.rows);
    w.u32(p.cols);
}

fn decode_param(r: &mut Reader<'_>) -> Decoded<Param> {
    Ok(Param {
        name: r.string("parameter name", MAX_PROGRAM_NAME_BYTES)?.into(),
        dtype: decode_tag(&DTYPES, "element type", r)?,
        rows: r.u32()?,
        cols: r.u32()?,
    })
}

fn tensor_id(r: &mut Reader<'_>) -> Decoded<TensorId> {
    r.u16().map(TensorId)
}

fn param_id(r: &mut Reader<'_>) -> Decoded<ParamId> {
    r.u16().map(ParamId)
}

fn encode_rows(rows: &ScaledRows, w: &mut Writer) {
    [rows.codes, rows.mantissa, rows.shift].iter().for_each(|p| w.u16(p.0));
}

fn decode_rows(r: &mut Reader<'_>) -> Decoded<ScaledRows> {
    Ok(ScaledRows { codes: param_id(r)?, mantissa: param_id(r)?, shift: param_id(r)? })
}

fn encode_norm(norm: &Norm, w: &mut Writer) {
    w.u16(norm.scale.0);
    w.u8(norm.shift);
    w.u32(norm.epsilon_mantissa);
    w.i16(norm.epsilon_shift);
}

fn decode_norm(r: &mut Reader<'_>) -> Decoded<Norm> {
    Ok(Norm { scale: param_id(r)?, shift: r.u8()?, epsilon_mantissa: r.u32()?, epsilon_shift: r.i16()? })
}

fn encode_heads(heads: &Heads, w: &mut Writer) {
    w.u16(heads.heads);
    w.u16(heads.kv_heads);
    w.u16(heads.head_dim);
    w.bool(heads.causal);
    w.bytes(&heads.score_shift);
    w.bytes(&heads.value_shift);
}

fn decode_heads(r: &mut Reader<'_>) -> Decoded<Heads> {
    Ok(Heads {
        heads: r.u16()?,
        kv_heads: r.u16()?,
        head_dim: r.u16()?,
        causal: r.bool()?,
        score_shift: r.bytes("score shifts", MAX_HEADS)?.to_vec(),
        value_shift: r.bytes("value shifts", MAX_HEADS)?.to_vec(),
    })
}

fn encode_table((rows, index): &(ScaledRows, EmbedIndex), w: &mut Writer) {
    encode_rows(rows, w);
    match index {
        EmbedIndex::Token => w.u8(0),
        EmbedIndex::Position => w.u8(1),
        EmbedIndex::Constant(row) => {
            w.u8(2);
            w.u32(*row);
        }
    }
}

fn decode_table(r: &mut Reader<'_>) -> Decoded<(ScaledRows, EmbedIndex)> {
    let rows = decode_rows(r)?;
    let index = match r.u8()? {
        0 => EmbedIndex::Token,
        1 => EmbedIndex::Position,
        2 => EmbedIndex::Constant(r.u32()?),
        tag => return Err(DecodeError::InvalidTag { what: "embedding index", tag: tag.into() }),
    };
    Ok((rows, index))
}

/// A tag, then the fields in the order of their declaration.
fn encode_op(op: &Op, w: &mut Writer) {
    let ids = |tag: u8, ids: &[TensorId], w: &mut Writer| {
        w.u8(tag);
        ids.iter().for_each(|id| w.u16(id.0));
    };
    match op {
        Op::Embed { tables, out } => {
            w.u8(0);
            w.length(tables.len());
            tables.iter().for_each(|t| encode_table(t, w));
            w.u16(out.0);
        }
        Op::Quantize { input, out } => ids(1, &[*input, *out], w),
        Op::MatMul { input, weight, bias, out } => {
            ids(2, &[*input], w);
            encode_rows(weight, w);
            w.option(bias.map(|b| b.0).as_ref());
            w.u16(out.0);
        }
        Op::Add { a, b, out } => ids(3, &[*a, *b, *out], w),
        Op::LayerNorm { input, norm, bias, out } => {
            ids(4, &[*input], w);
            encode_norm(norm, w);
            w.u16(bias.0);
            w.u16(out.0);
        }
        Op::RmsNorm { input, norm, groups, out } => {
            ids(5, &[*input], w);
            encode_norm(norm, w);
            w.u16(*groups);
            w.u16(out.0);
        }
        Op::Attention { q, k, v, heads, out } => {
            ids(6, &[*q, *k, *v], w);
            encode_heads(heads, w);
            w.u16(out.0);
        }
        Op::Gelu { input, frac, out } => encode_activation(7, *input, *frac, *out, w),
        Op::Silu { input, frac, out } => encode_activation(8, *input, *frac, *out, w),
        Op::MeanPool { input, out } => ids(9, &[*input, *out], w),
        Op::FirstPool { input, out } => ids(10, &[*input, *out], w),
        Op::L2Normalize { input, out } => ids(11, &[*input, *out], w),
        Op::Rope { input, table, heads, head_dim, shift, out } => {
            ids(12, &[*input], w);
            [table.0, *heads, *head_dim].iter().for_each(|v| w.u16(*v));
            w.bytes(shift);
            w.u16(out.0);
        }
        Op::Multiply { a, b, shift, out } => {
            ids(13, &[*a, *b], w);
            w.u8(*shift);
            w.u16(out.0);
        }
        Op::Shift { input, shift, out } => encode_activation(14, *input, *shift, *out, w),
        Op::Gather { input, out } => ids(15, &[*input, *out], w),
        Op::Sample { logits, frac, token_bytes, out } => {
            ids(16, &[*logits], w);
            w.u8(*frac);
            w.u16(token_bytes.0);
            w.u16(out.0);
        }
    }
}

fn encode_activation(tag: u8, input: TensorId, frac: u8, out: TensorId, w: &mut Writer) {
    w.u8(tag);
    w.u16(input.0);
    w.u8(frac);
    w.u16(out.0);
}

fn decode_op(r: &mut Reader<'_>) -> Decoded<Op> {
    Ok(match r.u8()? {
        0 => Op::Embed { tables: list(r, "tables", MAX_EMBEDDING_TABLES, 7, decode_table)?, out: tensor_id(r)? },
        1 => Op::Quantize { input: tensor_id(r)?, out: tensor_id(r)? },
        2 => Op::MatMul {
            input: tensor_id(r)?,
            weight: decode_rows(r)?,
            bias: r.option::<u16>()?.map(ParamId),
            out: tensor_id(r)?,
        },
        3 => Op::Add { a: tensor_id(r)?, b: tensor_id(r)?, out: tensor_id(r)? },
        4 => Op::LayerNorm { input: tensor_id(r)?, norm: decode_norm(r)?, bias: param_id(r)?, out: tensor_id(r)? },
        5 => Op::RmsNorm { input: tensor_id(r)?, norm: decode_norm(r)?, groups: r.u16()?, out: tensor_id(r)? },
        6 => Op::Attention {
            q: tensor_id(r)?,
            k: tensor_id(r)?,
            v: tensor_id(r)?,
            heads: decode_heads(r)?,
            out: tensor_id(r)?,
        },
        7 => Op::Gelu { input: tensor_id(r)?, frac: r.u8()?, out: tensor_id(r)? },
        8 => Op::Silu { input: tensor_id(r)?, frac: r.u8()?, out: tensor_id(r)? },
        9 => Op::MeanPool { input: tensor_id(r)?, out: tensor_id(r)? },
        10 => Op::FirstPool { input: tensor_id(r)?, out: tensor_id(r)? },
        11 => Op::L2Normalize { input: tensor_id(r)?, out: tensor_id(r)? },
        12 => Op::Rope {
            input: tensor_id(r)?,
            table: param_id(r)?,
            heads: r.u16()?,
            head_dim: r.u16()?,
            shift: r.bytes("shifts of heads", MAX_HEADS)?.to_vec(),
            out: tensor_id(r)?,
        },
        13 => Op::Multiply { a: tensor_id(r)?, b: tensor_id(r)?, shift: r.u8()?, out: tensor_id(r)? },
        14 => Op::Shift { input: tensor_id(r)?, shift: r.u8()?, out: tensor_id(r)? },
        15 => Op::Gather { input: tensor_id(r)?, out: tensor_id(r)? },
        16 => Op::Sample { logits: tensor_id(r)?, frac: r.u8()?, token_bytes: param_id(r)?, out: tensor_id(r)? },
        tag => return Err(DecodeError::InvalidTag { what: "op", tag: tag.into() }),
    })
}

#[cfg(test)]
#[path = "program_codec_tests.rs"]
mod tests;
