//! The models of a world: tiny packages with made-up weights that have every op, shape and block boundary that a dispute
//! can run into. They are the same in every world, so they are made once.

use std::num::NonZeroUsize;
use std::sync::OnceLock;

use anyhow::Context;
use lockstep_kernels::conformance::{self, Builder, Case, DecoderShape, ParamValue, SplitMix, encoder};
use lockstep_kernels::program::{EmbedIndex, Heads, Norm, Op, Rows, ScaledRows, TensorId, TensorKind};
use lockstep_model::package::{BlobInfo, Manifest, Package, WeightMode, write};
use lockstep_protocol::ids::Digest;
use lockstep_protocol::job::SPEC_VERSION;

/// Longest sequence: past one attention block of 256 positions, and past 256 chunks of a committed tensor, so that a
/// descent needs a second round.
pub const MAX_POSITIONS: usize = 300;

/// The encoders.
pub fn all() -> &'static [Package] {
    static MODELS: OnceLock<Vec<Package>> = OnceLock::new();
    MODELS.get_or_init(|| encoders(|_| {}).expect("the encoders are constants, and every test makes them"))
}

/// The decoders.
pub fn decoders() -> &'static [Package] {
    static DECODERS: OnceLock<Vec<Package>> = OnceLock::new();
    DECODERS.get_or_init(|| generators(|_| {}).expect("the decoders are constants, and every test makes them"))
}

/// The first decoder.
pub fn decoder() -> &'static Package {
    &decoders()[0]
}

/// All models: encoders, then decoders.
pub fn every() -> impl ExactSizeIterator<Item = &'static Package> {
    let count = all().len() + decoders().len();
    (0..count).map(|index| all().get(index).unwrap_or_else(|| &decoders()[index - all().len()]))
}

/// For each model another one of the same shape: its matrices are turned by one element, so that nothing fits.
pub fn impostors() -> &'static [Package] {
    static IMPOSTORS: OnceLock<Vec<Package>> = OnceLock::new();
    IMPOSTORS.get_or_init(|| {
        let turned = |value: &mut ParamValue| match value {
            ParamValue::I8(codes) => codes.rotate_left(1),
            ParamValue::I16(codes) => codes.rotate_left(1),
            ParamValue::U16(_) | ParamValue::I32(_) => {}
        };
        let made = encoders(turned).and_then(|made| Ok([made, generators(turned)?]));
        made.expect("the impostors have the shape of the models").into_iter().flatten().collect()
    })
}

/// One with norms of its heads, and one with rows of two chunks and more tokens than the first, without them.
fn generators(change: impl Fn(&mut ParamValue)) -> anyhow::Result<Vec<Package>> {
    let small = DecoderShape { head_norms: true, ..DecoderShape::SMALL };
    let wide = DecoderShape { vocab: 300, max_positions: 16, width: 264, heads: 2, kv_heads: 1, layers: 1, ..small };
    let wide = DecoderShape { head_norms: false, ..wide };
    let cases = [("decoder", small), ("wide decoder", wide)]
        .map(|(name, shape)| (name, false, conformance::decoder(shape, &[1])));
    write_all(&cases, change)
}

fn encoders(change: impl Fn(&mut ParamValue)) -> anyhow::Result<Vec<Package>> {
    let lengths = [MAX_POSITIONS];
    // The wide one has rows of two chunks, so that a row is found among its chunks too; it runs short sequences only.
    let cases = [
        ("narrow", false, encoder(16, 2, 24, 1, false, &lengths)),
        ("faithful", true, encoder(24, 3, 16, 2, true, &lengths)),
        ("wide", false, encoder(264, 4, 40, 1, false, &[WIDE_POSITIONS])),
        ("causal", false, causal(2)),
    ];
    write_all(&cases, change)
}

/// Packages of cases, each with its name and whether its weights are wide.
fn write_all(cases: &[(&str, bool, Case)], change: impl Fn(&mut ParamValue)) -> anyhow::Result<Vec<Package>> {
    let folder = tempfile::tempdir().context("a temporary folder for the simulation's packages")?;
    let package = |(name, wide, case): &(&str, bool, Case)| {
        let path = folder.path().join(name);
        let mut params = case.params.0.clone();
        params.iter_mut().for_each(&change);
        let blobs: Vec<_> = params.iter().map(bytes).chain([b"{}".to_vec()]).collect();
        write(&path, &manifest(name, *wide, case, &blobs), |index| blobs[index].clone())?;
        Ok(Package::open_checked(&path, NonZeroUsize::MIN)?)
    };
    cases.iter().map(package).collect()
}

/// Longest sequence of the wide model.
pub const WIDE_POSITIONS: usize = 6;

fn manifest(name: &str, wide: bool, case: &Case, blobs: &[Vec<u8>]) -> Manifest {
    let infos: Vec<_> = blobs.iter().map(|blob| BlobInfo::of(blob)).collect();
    let (tokenizer, params) = infos.split_last().expect("the tokenizer is always there");
    Manifest {
        spec_version: SPEC_VERSION,
        name: name.into(),
        family: "simulated".into(),
        weights: if wide { WeightMode::W16 } else { WeightMode::W8 },
        program: case.program.clone(),
        output_frac: 30,
        params: params.to_vec(),
        tokenizer: *tokenizer,
        template: None,
        stop_tokens: Vec::new(),
        sources: Vec::new(),
        calibration: (!wide).then(|| Digest::from(blake3::hash(name.as_bytes()))),
    }
}

fn bytes(value: &ParamValue) -> Vec<u8> {
    match value {
        ParamValue::I8(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ParamValue::I16(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ParamValue::U16(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ParamValue::I32(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

const WIDTH: usize = 16;
const INNER: usize = 24;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 4;
/// Fractional bits of everything that is `i32`.
const FRAC: u8 = 16;

/// What the encoders lack: RMSNorm before each half, causal attention with shared keys, SiLU, no pooling but the first
/// position, and an add as the last op of a layer.
fn causal(layers: usize) -> Case {
    let mut m = Causal { b: Builder::new(29, MAX_POSITIONS), rng: SplitMix::named("causal") };
    let tables = vec![(m.table(29), EmbedIndex::Token), (m.table(MAX_POSITIONS), EmbedIndex::Position)];
    let mut x = m.b.rows("embedded", WIDTH, TensorKind::I32);
    m.b.layer(vec![Op::Embed { tables, out: x }], x);
    for layer in 0..layers {
        x = m.layer(x, layer);
    }
    let first = m.b.tensor("first", Rows::Sequence, WIDTH, TensorKind::I32);
    let unit = m.b.tensor("unit", Rows::Sequence, WIDTH, TensorKind::I32);
    m.b.layer(vec![Op::FirstPool { input: x, out: first }, Op::L2Normalize { input: first, out: unit }], unit);
    m.b.case("model", "causal".into(), &[MAX_POSITIONS], None)
}

struct Causal {
    b: Builder,
    rng: SplitMix,
}

impl Causal {
    fn mantissas(&mut self, rows: usize) -> Vec<u16> {
        (0..rows).map(|_| self.rng.range(1 << 15, (1 << 16) - 1) as u16).collect()
    }

    fn table(&mut self, rows: usize) -> ScaledRows {
        let codes = (0..rows * WIDTH).map(|_| self.rng.range(-32_639, 32_639) as i16).collect();
        let mantissa = self.mantissas(rows);
        self.b.scaled("table", ParamValue::I16(codes), rows, WIDTH, mantissa, vec![15; rows])
    }

    /// A product of `input` with a fresh 8-bit matrix `[n, k]`, whose scales bring it to the magnitude of its input.
    fn project(&mut self, input: TensorId, name: &str, [n, k]: [usize; 2], kind: TensorKind) -> (Op, TensorId) {
        let codes = (0..n * k).map(|_| self.rng.range(-127, 127) as i8).collect();
        let shift = 22 + (k.ilog2() / 2) as i16 + if kind == TensorKind::I16 { 4 } else { 0 };
        let mantissa = self.mantissas(n);
        let weight = self.b.scaled(name, ParamValue::I8(codes), n, k, mantissa, vec![shift; n]);
        let out = self.b.rows(name, n, kind);
        (Op::MatMul { input, weight, bias: None, out }, out)
    }

    fn quantized(&mut self, input: TensorId, name: &str, cols: usize) -> (Op, TensorId) {
        let out = self.b.rows(name, cols, TensorKind::Bfp);
        (Op::Quantize { input, out }, out)
    }

    fn rms_norm(&mut self, input: TensorId, name: &str) -> (Op, TensorId) {
        let scale = (0..WIDTH).map(|_| self.rng.range(1 << 13, 1 << 15) as i32).collect();
        let scale = self.b.vector("scale", scale);
        let norm = Norm { scale, shift: 30 + 12 - FRAC, epsilon_mantissa: 0x8000_0001, epsilon_shift: 31 };
        let out = self.b.rows(name, WIDTH, TensorKind::I32);
        (Op::RmsNorm { input, norm, groups: 1, out }, out)
    }

    fn layer(&mut self, x: TensorId, layer: usize) -> TensorId {
        let n = |name: &str| format!("{name} {layer}");
        let (norm_x, normed) = self.rms_norm(x, &n("norm"));
        let (quantize_x, xq) = self.quantized(normed, &n("codes"), WIDTH);
        let (q_op, q) = self.project(xq, &n("query"), [HEADS * HEAD_DIM, WIDTH], TensorKind::I16);
        let (k_op, k) = self.project(xq, &n("key"), [KV_HEADS * HEAD_DIM, WIDTH], TensorKind::I16);
        let (v_op, v) = self.project(xq, &n("value"), [KV_HEADS * HEAD_DIM, WIDTH], TensorKind::I16);
        let heads = Heads {
            heads: HEADS as u16,
            kv_heads: KV_HEADS as u16,
            head_dim: HEAD_DIM as u16,
            causal: true,
            score_shift: vec![7; HEADS],
            value_shift: vec![11; HEADS],
        };
        let mixed = self.b.rows(&n("mixed"), HEADS * HEAD_DIM, TensorKind::I32);
        let attention = Op::Attention { q, k, v, heads, out: mixed };
        let (quantize_mixed, mq) = self.quantized(mixed, &n("mixed codes"), HEADS * HEAD_DIM);
        let (o_op, o) = self.project(mq, &n("output"), [WIDTH, HEADS * HEAD_DIM], TensorKind::I32);
        let middle = self.b.rows(&n("middle"), WIDTH, TensorKind::I32);
        let (norm_h, h) = self.rms_norm(middle, &n("second norm"));
        let (quantize_h, hq) = self.quantized(h, &n("second codes"), WIDTH);
        let (up_op, up) = self.project(hq, &n("up"), [INNER, WIDTH], TensorKind::I32);
        let act = self.b.rows(&n("activated"), INNER, TensorKind::I32);
        let (quantize_act, aq) = self.quantized(act, &n("activated codes"), INNER);
        let (down_op, down) = self.project(aq, &n("down"), [WIDTH, INNER], TensorKind::I32);
        let out = self.b.rows(&n("residual"), WIDTH, TensorKind::I32);
        let first = vec![norm_x, quantize_x, q_op, k_op, v_op, attention, quantize_mixed, o_op];
        let second = vec![Op::Add { a: o, b: x, out: middle }, norm_h, quantize_h, up_op];
        let third = vec![Op::Silu { input: up, frac: FRAC, out: act }, quantize_act, down_op];
        let last = vec![Op::Add { a: down, b: middle, out }];
        self.b.layer([first, second, third, last].concat(), out);
        out
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use lockstep_kernels::program::OP_NAMES;

    use super::*;

    #[test]
    fn the_models_have_every_op_and_can_be_disputed() {
        let mut ops = BTreeSet::new();
        for model in every() {
            ops.extend(model.program().layers.iter().flat_map(|layer| &layer.ops).map(Op::name));
            lockstep_kernels::steps::check_reads(model.program()).unwrap();
        }
        assert_eq!(ops, BTreeSet::from(OP_NAMES));
    }
}
