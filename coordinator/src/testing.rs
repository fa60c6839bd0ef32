//! What this crate's tests share: a small model, workers of every kind, and a client.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_kernels::program::{
    DType, EmbedIndex, Layer, Op, Param, ParamId, Program, Rows, ScaledRows, Tensor, TensorId, TensorKind,
};
use lockstep_model::package::{BlobInfo, Manifest, SPEC_VERSION, WeightMode, write};
use lockstep_protocol::ids::{Digest, ModelId, Nonce, Seed};
use lockstep_protocol::job::{Job, JobKind, RequestInput};
use lockstep_protocol::machine::{AuditPolicy, JobSpec, Work};

/// Transformer layers of the small model.
pub const LAYERS: u16 = 2;
/// Numbers of its output.
pub const COLS: u32 = 8;
/// Its tokens.
pub const VOCAB: u32 = 40;
/// Its longest input.
pub const POSITIONS: u32 = 16;

/// A job that no model has, for tests of the store.
pub fn spec(number: u8) -> JobSpec {
    let nonce = Nonce::from_bytes([number; 32]);
    let job = Job {
        spec_version: 1,
        model: ModelId::from_bytes([0x44; 32]),
        kind: JobKind::Embedding,
        tokens: vec![1, u32::from(number)],
        request: RequestInput::Tokens(vec![1]).hash(&nonce),
        seed: Seed::from_bytes([5; 32]),
        nonce,
    };
    let policy = AuditPolicy { per_mille: 0, auditors: 1, hold: false, distinct_operators: false, lockstep: false };
    JobSpec { job: Arc::new(job), layers: 3, output_count: 4, work: Work::fixed(100), policy, planted: None }
}

fn tensor(name: &str, rows: Rows, kind: TensorKind) -> Tensor {
    Tensor { name: name.to_owned(), rows, cols: COLS, kind }
}

fn param(name: &str, dtype: DType, rows: u32, cols: u32) -> Param {
    Param { name: name.to_owned(), dtype, rows, cols }
}

/// Embeds, mixes the columns twice with a residual, pools and normalises.
fn program() -> Program {
    let rows =
        |codes: u16| ScaledRows { codes: ParamId(codes), mantissa: ParamId(codes + 1), shift: ParamId(codes + 2) };
    let mix = |name: &str, from: u16| {
        let (input, quantised, product, out) =
            (TensorId(from), TensorId(from + 1), TensorId(from + 2), TensorId(from + 3));
        let ops = vec![
            Op::Quantize { input, out: quantised },
            Op::MatMul { input: quantised, weight: rows(3), bias: None, out: product },
            Op::Add { a: input, b: product, out },
        ];
        Layer { name: name.to_owned(), ops, output: out }
    };
    let per_position = |name: &str, kind| tensor(name, Rows::Position, kind);
    Program {
        vocab_size: VOCAB,
        max_positions: POSITIONS,
        tensors: vec![
            per_position("x0", TensorKind::I32),
            per_position("q1", TensorKind::Bfp),
            per_position("m1", TensorKind::I32),
            per_position("x1", TensorKind::I32),
            per_position("q2", TensorKind::Bfp),
            per_position("m2", TensorKind::I32),
            per_position("x2", TensorKind::I32),
            tensor("pooled", Rows::Sequence, TensorKind::I32),
            tensor("out", Rows::Sequence, TensorKind::I32),
        ],
        params: vec![
            param("table", DType::I16, VOCAB, COLS),
            param("table.mantissa", DType::U16, 1, VOCAB),
            param("table.shift", DType::I16, 1, VOCAB),
            param("mix", DType::I8, COLS, COLS),
            param("mix.mantissa", DType::U16, 1, COLS),
            param("mix.shift", DType::I16, 1, COLS),
        ],
        layers: vec![
            Layer {
                name: "embedding".to_owned(),
                ops: vec![Op::Embed { tables: vec![(rows(0), EmbedIndex::Token)], out: TensorId(0) }],
                output: TensorId(0),
            },
            mix("first", 0),
            mix("second", 3),
            Layer {
                name: "output".to_owned(),
                ops: vec![
                    Op::MeanPool { input: TensorId(6), out: TensorId(7) },
                    Op::L2Normalize { input: TensorId(7), out: TensorId(8) },
                ],
                output: TensorId(8),
            },
        ],
    }
}

fn blobs() -> Vec<Vec<u8>> {
    let (vocab, cols) = (VOCAB as usize, COLS as usize);
    let table = (0..vocab * cols).flat_map(|i| {
        ((i * 2_654_435_761 % 60_001) as i32 as i16 as i32 - 1).clamp(-32_000, 32_000).to_le_bytes()[..2].to_vec()
    });
    let mix = (0..cols * cols).map(|i| ((i * 37 % 201) as i32 - 100) as i8 as u8);
    let words: Vec<_> = (1..vocab).map(|i| format!(r#""w{i}":{i}"#)).collect();
    let tokenizer = format!(
        r#"{{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":{{"type":"Whitespace"}},"post_processor":null,"decoder":null,
        "model":{{"type":"WordLevel","vocab":{{"[UNK]":0,{}}},"unk_token":"[UNK]"}}}}"#,
        words.join(",")
    );
    let u16s = |value: u16, count| value.to_le_bytes().repeat(count);
    vec![
        table.collect(),
        u16s(1 << 15, vocab),
        u16s(15, vocab),
        mix.collect(),
        u16s(1 << 15, cols),
        u16s(22, cols),
        tokenizer.into_bytes(),
    ]
}

/// Longest prompt and answer together of the small decoder.
pub const CONTEXT: u32 = 64;
/// The token with which the small decoder's answers end.
pub const STOP: u32 = 2;
/// What the small decoder makes of conversations.
const TEMPLATE: &str = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}{{ strftime_now('w%d') }}";

/// The bytes of the small decoder's tokens: those of its words, and a character in two tokens.
pub fn token_bytes(token: u32) -> Vec<u8> {
    match token {
        STOP => b"</s>".to_vec(),
        30 => b"\xf0\x9f".to_vec(),
        31 => b"\xa6\x80".to_vec(),
        _ => format!(" w{token}").into_bytes(),
    }
}

/// As the small model, but that it ends with a product with the head, and a draw.
fn decoder() -> (Program, Vec<Vec<u8>>) {
    const TEXT_COLS: usize = 8;
    let mut program = program();
    let head = program.params.len() as u16;
    let vocab = VOCAB as usize;
    program.max_positions = CONTEXT;
    program.tensors.truncate(7);
    let point = |name: &str, kind, cols| Tensor { cols, ..tensor(name, Rows::Point, kind) };
    program.tensors.extend([
        point("last", TensorKind::I32, COLS),
        point("q3", TensorKind::Bfp, COLS),
        point("logits", TensorKind::I32, VOCAB),
        point("word", TensorKind::I32, 1),
    ]);
    program.params.extend([
        param("head", DType::I8, VOCAB, COLS),
        param("head.mantissa", DType::U16, 1, VOCAB),
        param("head.shift", DType::I16, 1, VOCAB),
        param("token_bytes", DType::I8, VOCAB, TEXT_COLS as u32),
    ]);
    let weight = ScaledRows { codes: ParamId(head), mantissa: ParamId(head + 1), shift: ParamId(head + 2) };
    let ops = vec![
        Op::Gather { input: TensorId(6), out: TensorId(7) },
        Op::Quantize { input: TensorId(7), out: TensorId(8) },
        Op::MatMul { input: TensorId(8), weight, bias: None, out: TensorId(9) },
        Op::Sample { logits: TensorId(9), frac: 10, token_bytes: ParamId(head + 3), out: TensorId(10) },
    ];
    *program.layers.last_mut().unwrap() = Layer { name: "output".to_owned(), ops, output: TensorId(10) };
    let text = |token: u32| {
        let bytes = token_bytes(token);
        let mut row = (bytes.len() as u16).to_le_bytes().to_vec();
        row.extend(bytes);
        row.resize(TEXT_COLS, 0);
        row
    };
    let mut blobs = blobs();
    let tokenizer = blobs.pop().unwrap();
    blobs.extend([
        (0..vocab * COLS as usize).map(|i| ((i * 53 % 199) as i32 - 99) as i8 as u8).collect(),
        (1_u16 << 15).to_le_bytes().repeat(vocab),
        22_u16.to_le_bytes().repeat(vocab),
        (0..VOCAB).flat_map(text).collect(),
    ]);
    blobs.extend([tokenizer, TEMPLATE.as_bytes().to_vec()]);
    (program, blobs)
}

/// Writes the small decoder's package under a name, and gives its path.
pub fn decoder_package(dir: &Path, name: &str) -> PathBuf {
    let (program, blobs) = decoder();
    let params = program.params.len();
    let manifest = Manifest {
        output_frac: 0,
        template: Some(BlobInfo::of(&blobs[params + 1])),
        stop_tokens: vec![STOP],
        calibration: Some(Digest::from_bytes([1; 32])),
        ..manifest(name, program, &blobs)
    };
    save(dir, &manifest, &blobs)
}

/// Writes the small model's package under a name, and gives its path.
pub fn package(dir: &Path, name: &str) -> PathBuf {
    let blobs = blobs();
    save(dir, &manifest(name, program(), &blobs), &blobs)
}

fn manifest(name: &str, program: Program, blobs: &[Vec<u8>]) -> Manifest {
    let params = program.params.len();
    Manifest {
        spec_version: SPEC_VERSION,
        name: name.to_owned(),
        family: "test".to_owned(),
        weights: WeightMode::W16,
        program: Arc::new(program),
        output_frac: 30,
        params: blobs[..params].iter().map(|blob| BlobInfo::of(blob)).collect(),
        tokenizer: BlobInfo::of(&blobs[params]),
        template: None,
        stop_tokens: Vec::new(),
        sources: Vec::new(),
        calibration: None,
    }
}

fn save(dir: &Path, manifest: &Manifest, blobs: &[Vec<u8>]) -> PathBuf {
    let path = dir.join(format!("{}.lsp", manifest.name));
    write(&path, manifest, |index| blobs[index].clone()).unwrap();
    path
}
