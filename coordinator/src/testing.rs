//! What this crate's tests share: a small model, workers of every kind, and a client.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_kernels::program::{
    DType, EmbedIndex, Layer, Op, Param, ParamId, Program, Rows, ScaledRows, Tensor, TensorId, TensorKind,
};
use lockstep_model::package::{BlobInfo, Manifest, SPEC_VERSION, WeightMode, write};
use lockstep_protocol::ids::{ModelId, Nonce, Seed};
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

/// Writes the small model's package under a name, and gives its path.
pub fn package(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(format!("{name}.lsp"));
    let blobs = blobs();
    let (tokenizer, params) = blobs.split_last().unwrap();
    let manifest = Manifest {
        spec_version: SPEC_VERSION,
        name: name.to_owned(),
        family: "test".to_owned(),
        weights: WeightMode::W16,
        program: Arc::new(program()),
        output_frac: 30,
        params: params.iter().map(|blob| BlobInfo::of(blob)).collect(),
        tokenizer: BlobInfo::of(tokenizer),
        template: None,
        stop_tokens: Vec::new(),
        sources: Vec::new(),
        calibration: None,
    };
    write(&path, &manifest, |index| blobs[index].clone()).unwrap();
    path
}
