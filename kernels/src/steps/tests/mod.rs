//! Steps against the oracle, their read sets against the proof, and what hostile bytes do to them.

mod fill;
mod programs;

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::conformance::{SplitMix, encoder, random_sampling};
use crate::program::{OP_NAMES, Op, Rows, TensorKind};
use crate::reference;
use crate::sampling::Sampling;
use fill::{Run, chunks};
use programs::{LARGEST, LONG, Maker, SMALL, Sizes, WIDE, params};

/// Rows of a layer's output; of log-probabilities, which come after the last one, there is one.
fn rows(program: &Program, layer: usize, positions: u32) -> u32 {
    let output = program.layers.get(layer).map(|layer| program.tensor(layer.output).rows);
    if output == Some(Rows::Position) { positions } else { 1 }
}

/// Checks a program at some rows of each layer, and returns the ops that took part.
fn check(program: Program, positions: u32, rng: &mut SplitMix) -> BTreeSet<&'static str> {
    check_reads(&program).expect("a program that can be disputed");
    let params = params(&program, rng);
    let run = Run::new(program, params, positions, rng);
    let mut ops = BTreeSet::new();
    for layer in 1..run.program.layers.len() {
        let rows = rows(&run.program, layer, positions);
        for row in BTreeSet::from([0, rng.range(0, i64::from(rows) - 1) as u32, rows - 1]) {
            run.check(layer, row);
            let plan = run.plan(layer, row);
            ops.extend(plan.steps().iter().map(|s| run.program.layers[s.layer].ops[s.op].name()));
        }
    }
    ops
}

fn check_many(name: &str, sizes: Sizes, count: usize, make: fn(Maker) -> Program) -> BTreeSet<&'static str> {
    let mut seen = BTreeSet::new();
    for n in 0..count {
        let maker = Maker::new(&format!("{name} {n}"), sizes);
        let mut rng = maker.rng.clone();
        let positions = rng.range(i64::from(sizes.max_positions) / 2 + 1, i64::from(sizes.max_positions)) as u32;
        seen.extend(check(make(maker), positions, &mut rng));
    }
    seen
}

#[test]
fn steps_of_small_programs_make_the_oracles_rows() {
    let seen = check_many("small", SMALL, 150, Maker::random);
    let seen = &seen | &check_many("small decoder", SMALL, 150, Maker::decoder);
    assert_eq!(seen, BTreeSet::from(OP_NAMES), "an op never took part");
}

#[test]
fn steps_over_several_key_and_row_blocks_make_the_oracles_rows() {
    let seen = check_many("long", LONG, 16, Maker::random);
    let seen = &seen | &check_many("long decoder", LONG, 16, Maker::decoder);
    assert!(seen.contains("attention") && seen.contains("mean_pool"), "{seen:?}");
}

#[test]
fn steps_over_several_column_blocks_make_the_oracles_rows() {
    let seen = check_many("wide", WIDE, 30, Maker::random);
    for op in ["layer_norm", "rms_norm", "l2_normalize"] {
        assert!(seen.contains(op), "{op} never took part");
    }
}

#[test]
fn steps_of_an_encoder_make_the_oracles_rows() {
    let case = encoder(48, 3, 80, 2, false, &[270]);
    let mut rng = SplitMix::named("encoder");
    let program = Program::clone(&case.program);
    check_reads(&program).expect("an encoder can be disputed");
    let run = Run::new(program, case.params, 270, &mut rng);
    for (layer, row) in [(1, 0), (1, 269), (2, 255), (2, 256), (3, 0)] {
        run.check(layer, row);
    }
}

/// Vocabularies of one block, of exactly one and of several; fewer tokens than are asked for; a token that there is not.
#[test]
fn steps_of_log_probabilities_make_the_oracles_row() {
    for (n, vocab) in [3_u32, 11, 8_192, 8_193, 20_000].into_iter().cycle().take(30).enumerate() {
        let mut maker = Maker::new(&format!("log-probabilities {n}"), SMALL);
        let mut rng = maker.rng.clone();
        maker.program.vocab_size = vocab;
        let program = maker.decoder();
        check_reads(&program).expect("a program that can be disputed");
        let (params, positions) = (params(&program, &mut rng), rng.range(1, 12) as u32);
        let mut run = Run::new(program, params, positions, &mut rng);
        let token = if n % 7 == 0 { vocab } else { rng.range(0, i64::from(vocab) - 1) as u32 };
        let likeliest = [0, 1, 5, 20][n % 4];
        run.check_logprobs(crate::sampling::word(token, rng.range(0, 3) as u8), likeliest);
    }
}

/// No valid product is that long, so the oracle's functions are called by hand.
#[test]
fn quantize_joins_the_maxima_of_column_blocks() {
    let (mut maker, cols) = (Maker::new("quantize", WIDE), 20_000);
    let (embed, x) = maker.embed(cols);
    maker.layer(vec![embed], x);
    let mut ops = vec![];
    let y = maker.product(&mut ops, x, 1, TensorKind::I32);
    maker.layer(ops, y);
    let plan = Plan::new(&maker.program, 1, 1, 0, None).expect("a dispute view");
    let row: Vec<i32> = (0..cols as i32).map(|i| (i - 9_000) * 107_374).collect();
    let (mut codes, mut exponents) = (vec![0; row.len()], vec![0]);
    reference::quantize::quantize(&row, row.len(), &mut codes, &mut exponents);
    let part = |part| plan.steps().iter().position(|s| s.part == part).expect("a part of quantize");
    let block = |b: usize| -> Vec<u8> {
        row[b * 8_192..row.len().min((b + 1) * 8_192)].iter().flat_map(|x| x.to_le_bytes()).collect()
    };
    let maxima = (0..3).map(|b| plan.evaluate(part(Part::Maxima), b, &[&block(b as usize)]));
    let maxima: Vec<u8> = maxima.flat_map(i64::to_le_bytes).collect();
    assert_eq!(plan.reads(part(Part::Maxima), 2)[0].bytes, 65_536..80_000);
    assert_eq!(plan.reads(part(Part::Exponent), 0)[0].bytes, 0..24);
    let exponent = plan.evaluate(part(Part::Exponent), 0, &[&maxima]);
    assert_eq!(exponent, i64::from(exponents[0]));
    for (i, code) in codes.iter().enumerate() {
        let data = [&row[i].to_le_bytes()[..], &(exponent as i32).to_le_bytes()];
        assert_eq!(plan.evaluate(part(Part::Codes), i as u64, &data), i64::from(*code));
    }
}

#[test]
fn padding_reads_nothing_and_is_zero() {
    let program = Maker::new("padding", SMALL).random();
    let plan = Plan::new(&program, 1, 7, 0, None).expect("a dispute view");
    for (s, step) in plan.steps().iter().enumerate() {
        let stride = step.row_bytes() / step.width.bytes();
        for element in [step.cols, stride - 1, (step.rows - 1) * stride + step.cols, step.rows * stride, u64::MAX] {
            if element % stride >= step.cols || element / stride >= step.rows {
                assert_eq!(plan.reads(s, element), vec![]);
                assert_eq!(plan.follow(s, element, &[&[1_u8; 4]]), vec![]);
                assert_eq!(plan.evaluate(s, element, &[&[1_u8; 8][..]; 9]), 0);
            }
        }
    }
    assert_eq!(plan.reads(plan.steps().len(), 0), vec![]);
}

/// A dispute at a row near the start of a causal sequence holds no tensor of the whole sequence.
#[test]
fn causal_rows_need_only_what_they_see() {
    let mut maker = Maker::new("causal", LONG);
    let (embed, x) = maker.embed(5);
    maker.layer(vec![embed], x);
    let mut ops = vec![];
    let y = maker.attention(&mut ops, x);
    for op in &mut ops {
        if let Op::Attention { heads, .. } = op {
            heads.causal = true;
        }
    }
    maker.layer(ops, y);
    let extent = |row| {
        let plan = Plan::new(&maker.program, 1, 600, row, None).expect("a dispute view");
        plan.steps().iter().filter(|s| s.all_rows).map(|s| s.rows).max()
    };
    assert_eq!([extent(0), extent(299), extent(599)], [Some(1), Some(300), Some(600)]);
}

#[test]
fn ops_that_lead_nowhere_are_left_out() {
    let mut maker = Maker::new("dead", SMALL);
    let (embed, x) = maker.embed(4);
    maker.layer(vec![embed], x);
    let (dead, y) = (maker.row(4), maker.row(4));
    maker.layer(vec![Op::Add { a: x, b: x, out: dead }, Op::Gelu { input: x, frac: 3, out: y }], y);
    let plan = Plan::new(&maker.program, 1, 3, 2, None).expect("a dispute view");
    let names: Vec<_> = plan.steps().iter().map(|s| (s.name(&maker.program), s.rows, s.all_rows)).collect();
    assert_eq!(names, [("embed.out".into(), 1, false), ("gelu.out".into(), 1, false)]);
}

#[test]
fn rows_that_do_not_exist_are_refused() {
    let program = encoder(16, 2, 16, 1, false, &[9]).program;
    for (layer, positions, row) in [(0, 9, 0), (3, 9, 0), (1, 0, 0), (1, 10, 0), (1, 9, 9), (2, 9, 1)] {
        let refused = Plan::new(&program, layer, positions, row, None).expect_err("no such row");
        assert_eq!(refused, PlanError::Place { layers: 3, layer, positions, row });
    }
}

/// Two attentions in a row: the second one needs the first for every key.
#[test]
fn attention_for_all_rows_is_refused() {
    let mut maker = Maker::new("stacked", SMALL);
    let (embed, x) = maker.embed(4);
    maker.layer(vec![embed], x);
    let mut ops = vec![];
    let y = maker.attention(&mut ops, x);
    let first = ops.len() - 1;
    let z = maker.attention(&mut ops, y);
    maker.layer(ops, z);
    maker.program.validate().expect("a valid program");
    let refused = check_reads(&maker.program).expect_err("scores of all rows");
    assert_eq!(refused, PlanError::Attention { layer: 1, op: first });
    assert!(refused.to_string().contains("layer 1 op 6 (attention)"), "{refused}");
}

/// Stages of a shared model are proven one by one; those that do not end it sample nothing.
#[test]
fn every_stage_of_a_decoder_can_be_disputed() {
    let program = Maker::new("stages", SMALL).decoder();
    let last = program.layers.len() - 1;
    let cuts = (1..=last).flat_map(|first| (first..=last).map(move |end| first..=end));
    let mut stages = 0;
    for layers in cuts.chain((0..=last).map(|end| 0..=end)) {
        let Some(slice) = crate::slice::Slice::of(&program, layers.clone()) else { continue };
        check_reads(slice.program()).unwrap_or_else(|refused| panic!("layers {layers:?}: {refused}"));
        stages += 1;
    }
    assert!(stages > last, "{stages} of a decoder of {last} layers");
}

/// Validation has limits that keep valid programs within the bound; a limit that grows is caught here.
#[test]
fn an_element_that_reads_too_much_is_refused_by_name() {
    let program = |k| {
        let mut maker = Maker::new("reduction", SMALL);
        let (embed, x) = maker.embed(k);
        maker.layer(vec![embed], x);
        let mut ops = vec![];
        let y = maker.product(&mut ops, x, 3, TensorKind::I32);
        maker.layer(ops, y);
        maker.program
    };
    check_reads(&program(8_192)).expect("the longest reduction");
    let refused = check_reads(&program(40_000)).expect_err("a reduction without blocks");
    let PlanError::Reads { layer: 1, op: 1, step, bytes } = &refused else { panic!("{refused}") };
    assert!(step == "matmul.out" && *bytes > MAX_READ_BYTES, "{refused}");
    assert!(refused.to_string().contains(&bytes.to_string()), "{refused}");
}

#[test]
fn a_tensor_that_can_not_be_opened_is_refused_by_name() {
    let mut maker = Maker::new("tensor", SMALL);
    let (embed, x) = maker.embed(8_192);
    maker.layer(vec![embed], x);
    let mut ops = vec![];
    let y = maker.attention(&mut ops, x);
    maker.layer(ops, y);
    maker.program.max_positions = u32::MAX;
    let refused = check_reads(&maker.program).expect_err("embeddings of 128 TiB");
    let PlanError::Tensor { layer: 0, op: 0, step, bytes } = &refused else { panic!("{refused}") };
    assert_eq!((step.as_str(), *bytes), ("embed.out", u128::from(u32::MAX) * 32_768));
}

/// What a step of a plan reads at an element, whatever the tokens are.
fn read_chunks(plan: &Plan, step: usize, element: u64, token: u32) -> u64 {
    let reads = plan.reads(step, element);
    let data: Vec<Vec<u8>> =
        reads.iter().map(|r| token.to_le_bytes().repeat((r.bytes.end - r.bytes.start) as usize / 2)).collect();
    let data: Vec<&[u8]> = data.iter().zip(&reads).map(|(d, r)| &d[..(r.bytes.end - r.bytes.start) as usize]).collect();
    let more = plan.follow(step, element, &data);
    reads.iter().chain(&more).map(chunks).sum()
}

/// Settings of a generation for decoders, from the second position on; nothing for other programs.
fn settings(program: &Program, rng: &mut SplitMix) -> Option<Sampling> {
    let random =
        |rng: &mut SplitMix| Sampling { prompt_tokens: 1, ..random_sampling(rng, program.vocab_size as usize) };
    program.is_decoder().then(|| random(rng))
}

/// The plan for a row of a layer; that of the log-probabilities where there is no such layer any more.
fn plan_of(
    program: &Program,
    layer: usize,
    positions: u32,
    row: u32,
    sampling: Option<(&Sampling, u64)>,
) -> Result<Plan, PlanError> {
    match sampling {
        Some(sampling) if layer == program.layers.len() => {
            Plan::logprobs(program, positions, sampling, (sampling.1 % 21) as u8)
        }
        _ => Plan::new(program, layer, positions, row, sampling),
    }
}

/// The largest vocabulary over the longest context, with texts of any length.
#[test]
fn the_largest_decoders_can_be_disputed() {
    for width in [2, 12, 999, 1_000, 1_023, 1_024] {
        let mut maker = Maker::new("largest decoder", LARGEST);
        maker.program.vocab_size = 1 << 18;
        let mut program = maker.decoder();
        for param in &mut program.params {
            if param.name == "token bytes" {
                param.cols = width;
            }
        }
        program.validate().expect("a valid program");
        check_reads(&program).unwrap_or_else(|e| panic!("rows of {width} bytes: {e}"));
    }
}

#[test]
fn log_probabilities_need_a_point_of_a_program_that_samples() {
    let program = Maker::new("settings", SMALL).decoder();
    let settings = Sampling::greedy(3, 5);
    let plan = |positions| Plan::logprobs(&program, positions, (&settings, 0), 1);
    assert!(matches!(plan(2), Err(PlanError::Place { .. })));
    assert!(matches!(plan(program.max_positions + 1), Err(PlanError::Place { .. })));
    plan(3).expect("the first point");
    let encoder = Maker::new("settings", SMALL).random();
    let refused = Plan::logprobs(&encoder, 3, (&settings, 0), 1);
    assert!(matches!(refused, Err(PlanError::Sampling { .. })));
}

#[test]
fn a_layer_that_samples_needs_settings_and_a_point() {
    let program = Maker::new("settings", SMALL).decoder();
    let last = program.layers.len() - 1;
    let plan =
        |positions, settings: Option<&Sampling>| Plan::new(&program, last, positions, 0, settings.map(|s| (s, 0)));
    assert!(matches!(plan(3, None), Err(PlanError::Sampling { .. })));
    let mut settings = Sampling::greedy(3, 5);
    assert!(matches!(plan(2, Some(&settings)), Err(PlanError::Place { .. })));
    plan(3, Some(&settings)).expect("the first point");
    settings.stop_strings = vec![vec![]];
    assert!(matches!(plan(3, Some(&settings)), Err(PlanError::Sampling { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// The proof looks at the longest sequence alone; no element of any row of any sequence reads more.
    #[test]
    fn the_bound_holds_for_every_element(seed: u64, draws: [u64; 4], token in 0_u32..11) {
        let mut maker = Maker::new(&format!("bound {seed}"), LARGEST);
        let mut rng = maker.rng.clone();
        maker.program.vocab_size = 1 << 18;
        let program = if seed.is_multiple_of(2) { maker.random() } else { maker.decoder() };
        let settings = settings(&program, &mut rng);
        let sampling = settings.as_ref().map(|settings| (settings, draws[3]));
        check_reads(&program).unwrap();
        let max = program.max_positions;
        let disputed = program.layers.len() as u64 - if sampling.is_some() { 0 } else { 1 };
        let layer = 1 + (draws[0] % disputed) as usize;
        let positions = 1 + ((draws[1] % u64::from(max)) >> (draws[0] % 17)) as u32;
        // A first point has no tail; then steps could not be compared with those of a later one.
        let positions = if sampling.is_some() { positions.max(2) } else { positions };
        let row = (draws[2] % u64::from(rows(&program, layer, positions))) as u32;
        let plan = plan_of(&program, layer, positions, row, sampling).unwrap();
        let longest = plan_of(&program, layer, max, rows(&program, layer, max) - 1, sampling).unwrap();
        for (s, step) in plan.steps().iter().enumerate() {
            let bound = longest.ops[s].0.chunks(step.part);
            prop_assert!(bound * CHUNK_BYTES <= MAX_READ_BYTES);
            let stride = step.row_bytes() / step.width.bytes();
            for draw in draws {
                let element = (draw % step.rows) * stride + draw / step.rows % step.cols;
                let touched = read_chunks(&plan, s, element, token);
                prop_assert!(touched <= bound, "{}: {touched} > {bound}", step.name(&program));
            }
            for read in plan.reads(s, (step.rows - 1) * stride + step.cols - 1) {
                if let Source::Step(of) = read.source {
                    prop_assert!(usize::from(of) < s);
                    prop_assert!(read.bytes.end <= plan.steps()[usize::from(of)].bytes());
                }
            }
        }
    }

    /// Parties may agree on anything.
    #[test]
    fn no_bytes_make_an_evaluation_fail(seed: u64, fill in 0_u8..6, draw: u64, cut in 0_usize..9) {
        let sizes = [SMALL, LONG, WIDE][(seed % 3) as usize];
        let maker = Maker::new(&format!("hostile {}", seed % 64), sizes);
        let program = if cut.is_multiple_of(2) { maker.random() } else { maker.decoder() };
        let mut rng = SplitMix::named(&seed.to_string());
        let settings = settings(&program, &mut rng);
        for layer in 1..program.layers.len() + usize::from(settings.is_some()) {
            let positions = program.max_positions;
            let row = (draw % u64::from(rows(&program, layer, positions))) as u32;
            let sampling = settings.as_ref().map(|settings| (settings, draw));
            let plan = plan_of(&program, layer, positions, row, sampling).unwrap();
            for (s, step) in plan.steps().iter().enumerate() {
                let stride = step.row_bytes() / step.width.bytes();
                let element = (draw % step.rows) * stride + draw / step.rows % step.cols;
                let mut byte = || match fill {
                    0 => 0,
                    1 => 0xff,
                    2 => 0x80,
                    3 => 0x7f,
                    _ => rng.next_u64() as u8,
                };
                let mut bytes = |r: &Read| (r.bytes.start..r.bytes.end).map(|_| byte()).collect::<Vec<u8>>();
                let mut data: Vec<Vec<u8>> = plan.reads(s, element).iter().map(&mut bytes).collect();
                let first: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
                data.extend(plan.follow(s, element, &first).iter().map(&mut bytes));
                // Also fewer bytes than were asked for, which nobody should hand over.
                if let Some(last) = data.get_mut(cut) {
                    last.truncate(cut);
                }
                let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
                for data in [&data[..], &data[..data.len().min(cut)]] {
                    let value = plan.evaluate(s, element, data);
                    prop_assert_eq!(value, step.width.cut(value));
                    prop_assert_eq!(value, plan.evaluate(s, element, data));
                }
            }
        }
    }
}
