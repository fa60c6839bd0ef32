//! Which passes are launched whole, what a pass is told, and for how long its launches stay the same.

use std::sync::Arc;

use lockstep_kernels::conformance::{DecoderShape, decoder, encoder};
use lockstep_kernels::sampling::Sampling;
use lockstep_kernels::value::{CacheId, Sampler, Sequence};

use super::*;

fn program() -> Program {
    Program::clone(&decoder(DecoderShape::SMALL, &[1]).program)
}

fn planned() -> DecodeProgram {
    DecodeProgram::of(&program()).expect("a decoder")
}

/// The last of so many positions, and the word after it.
fn last_of(cache: u64, positions: usize) -> Sequence {
    let sampling = Arc::new(Sampling::greedy(1, 9));
    Sequence {
        tokens: (0..positions as u32).map(|t| t % 61).collect(),
        start: positions - 1,
        cache: Some(CacheId(cache)),
        sampler: Some(Sampler { sampling, draws: vec![cache] }),
    }
}

fn batch(lengths: &[usize]) -> Batch {
    Batch { sequences: (0..).zip(lengths).map(|(cache, length)| last_of(cache, *length)).collect() }
}

#[test]
fn a_decoder_keeps_the_outputs_of_all_layers_but_the_last() {
    let planned = planned();
    assert_eq!((planned.layers, &planned.kept[..], planned.cols, planned.row_chunks()), (4, &[0, 1, 2][..], 24, 1));
    assert_eq!((planned.shapes.len(), &planned.lines[..], planned.frac), (1, &[0, 0][..], 16));
}

/// An encoder draws no words, the later part of a model starts from rows that somebody writes, and a word that is not the output
/// would be asked for in vain.
#[test]
fn other_programs_run_layer_by_layer() {
    assert_eq!(DecodeProgram::of(&encoder(16, 2, 16, 2, false, &[4]).program), None);
    let mut later = program();
    later.layers.remove(0);
    assert_eq!(DecodeProgram::of(&later), None);
    let mut earlier = program();
    earlier.layers.pop();
    assert_eq!(DecodeProgram::of(&earlier), None);
    let mut other = program();
    let last = other.layers.last_mut().expect("a decoder has layers");
    last.output = last.ops[0].out();
    assert_eq!(DecodeProgram::of(&other), None);
}

#[test]
fn passes_of_one_word_for_each_sequence_are_taken() {
    let planned = planned();
    let change = |change: &dyn Fn(&mut Sequence)| {
        let mut batch = batch(&[10, 20]);
        change(&mut batch.sequences[1]);
        planned.takes(&batch)
    };
    assert!(change(&|_| ()));
    assert!(!change(&|s| s.cache = None));
    assert!(!change(&|s| s.sampler = None));
    assert!(!change(&|s| s.start = 18), "two positions");
    let in_its_prompt = Sampler { sampling: Arc::new(Sampling::greedy(30, 9)), draws: vec![] };
    assert!(!change(&|s| s.sampler = Some(in_its_prompt.clone())), "no word yet");
    assert!(planned.takes(&batch(&[1])), "a prompt of one token");
    assert!(!planned.takes(&Batch::default()));
    assert!(planned.takes(&batch(&[3; MOST_POINTS])) && !planned.takes(&batch(&[3; MOST_POINTS + 1])));
}

/// A shape lasts while sequences grow within the room that it has.
#[test]
fn shapes_change_with_sequences_and_when_room_runs_out() {
    let planned = planned();
    let shape = |lengths: &[usize], words| planned.shape(&batch(lengths), words).expect("little memory");
    let first = shape(&[1], 10);
    assert_eq!(first, DecodeShape { sequences: 1, blocks: 8, words: 256 });
    assert_eq!((shape(&[256], 256), shape(&[8 * 256], 9)), (first, first));
    assert_eq!(shape(&[8 * 256 + 1], 10).blocks, 16);
    assert_eq!(shape(&[1], 257).words, 512);
    assert_eq!(shape(&[513, 256, 1000, 1], 10), DecodeShape { sequences: 4, blocks: 16, words: 256 });
    // Blocks of sequences are counted one by one: each has a last one of its own.
    assert_eq!((shape(&[1; 8], 10).blocks, shape(&[1; 9], 10).blocks), (8, 16));
}

#[test]
fn partials_that_do_not_fit_at_once_are_left_to_single_layers() {
    let wide = DecodeProgram { shapes: vec![AttentionShape { heads: 32, head_dim: 128, causal: true }], ..planned() };
    let shape = |blocks: usize| wide.shape(&batch(&[256 * blocks]), 10);
    assert!(shape(4_096).is_some());
    assert_eq!(shape(8_192), None);
}

/// Lists lie one after the other, aligned, each with room for what the shape allows.
#[test]
fn places_do_not_overlap() {
    let planned = DecodeProgram { cols: 300, ..planned() };
    for shape in [(1, 8, 256), (3, 16, 512), (64, 128, 4_096)] {
        let shape = DecodeShape { sequences: shape.0, blocks: shape.1, words: shape.2 };
        let (rows, blocks) = (shape.sequences as usize, shape.blocks as usize);
        let l = DecodeLayout::new(&planned, shape);
        let mut places = vec![(l.tokens, 4 * rows), (l.positions, 4 * rows), (l.first, 4 * rows)];
        places.extend([(l.count, 4 * rows), (l.points, 4 * rows), (l.counters, 3 * 8 * rows)]);
        places.extend(l.cuts.iter().flat_map(|(tiles, of_rows)| [(*tiles, 32 * blocks), (*of_rows, 16 * rows)]));
        places.extend(l.lines.iter().flat_map(|(keys, appended)| [(*keys, 24 * blocks), (*appended, 24 * rows)]));
        let points = rows * size_of::<SamplePoint>();
        places.extend([(l.sample_points, points), (l.sample_words, 4 * shape.words as usize), (l.saturations, 4 * 8)]);
        places.extend([(l.hashes, 3 * 2 * 32 * rows), (l.drawn, 4 * rows), (l.end, 0)]);
        assert_eq!((l.cuts.len(), l.lines.len()), (1, 2));
        for (at, next) in places.iter().zip(&places[1..]) {
            assert!(at.0 % ALIGNMENT == 0 && at.0 + at.1 <= next.0 && next.0 < at.0 + at.1 + ALIGNMENT, "{places:?}");
        }
    }
}

fn at<T: Pod>(words: &[u64], place: usize, len: usize) -> Vec<T> {
    let bytes: &[u8] = bytemuck::cast_slice(words);
    bytemuck::pod_collect_to_vec(&bytes[place..place + len * size_of::<T>()])
}

#[test]
fn a_pass_is_told_what_changes_from_word_to_word() {
    let planned = planned();
    let pass = Pass::new(batch(&[300, 5]));
    let mut points = SamplePoints::default();
    points.add(&Sampling::greedy(1, 9), &[7, 8, 9], 16, [(3, 77)]);
    let shape = planned.shape(&pass.batch, points.words.len()).expect("little memory");
    let key = |n| KeyBlock { keys: n, values: n + 1, position_stride: 6, head_stride: 1_536 };
    let appended = |row| AppendRow { keys: 5, values: 6, row, unused: 0 };
    let line =
        |n| DecodeLine { blocks: vec![key(n), key(n + 2), key(n + 4)], appended: vec![appended(0), appended(1)] };
    let lines = vec![line(100), line(200)];
    let layout = DecodeLayout::new(&planned, shape);
    let told = layout.tell(&planned, &DecodeInputs { pass: &pass, lines: lines.clone(), points: &points });
    assert_eq!(8 * told.len(), layout.hashes);
    assert_eq!(at::<u32>(&told, layout.tokens, 2), [299 % 61, 4]);
    assert_eq!(at::<u32>(&told, layout.positions, 2), [299, 4]);
    assert_eq!(at::<u32>(&told, layout.first, 2), [0, 1]);
    assert_eq!(at::<u32>(&told, layout.count, 2), [1, 1]);
    assert_eq!(at::<u32>(&told, layout.points, 2), [0, 1]);
    // The same rows in each of the three outputs that are kept.
    assert_eq!(at::<u64>(&told, layout.counters, 6), [299, 4].repeat(3));
    let (tiles, rows) = layout.cuts[0];
    let tiles: Vec<AttentionTile> = at(&told, tiles, 8);
    let of = |row, position: u32, block, table, slot, row_slots| AttentionTile {
        row,
        rows: 1,
        position,
        length: position + 1,
        block,
        table,
        slot,
        row_slots,
    };
    assert_eq!(tiles[..3], [of(0, 299, 0, 0, 0, 8), of(0, 299, 1, 1, 0, 8), of(1, 4, 0, 2, 8, 4)]);
    assert!(tiles[3..].iter().all(|tile| *tile == AttentionTile::default()), "the others have no rows");
    let of = |row, slot, blocks| RowPartials { row, slot, blocks, unused: 0 };
    assert_eq!(at::<RowPartials>(&told, rows, 2), [of(0, 0, 2), of(1, 8, 1)]);
    for (line, (blocks, appended)) in lines.iter().zip(&layout.lines) {
        assert_eq!(at::<KeyBlock>(&told, *blocks, 3), line.blocks);
        assert_eq!(at::<AppendRow>(&told, *appended, 2), line.appended);
    }
    assert_eq!(at::<SamplePoint>(&told, layout.sample_points, 1)[0].draw, 77);
    assert_eq!(at::<u32>(&told, layout.sample_words, points.words.len()), points.words);
    assert_eq!(at::<u64>(&told, layout.saturations, 4), [0; 4]);
}

#[test]
fn a_pass_tells_counts_hashes_and_words() {
    let planned = planned();
    let shape = DecodeShape { sequences: 3, blocks: 8, words: 256 };
    let layout = DecodeLayout::new(&planned, shape);
    let mut heard = vec![0_u64; layout.heard_bytes() / 8];
    put(&mut heard, 0, &[1_u64, 2, 3, 4]);
    put(&mut heard, layout.hashes - layout.saturations, &(0..9).map(|n| [n; 32]).collect::<Vec<[u8; 32]>>());
    put(&mut heard, layout.drawn - layout.saturations, &[-1, 5, 6]);
    let answers = layout.hear(&planned, shape, &heard);
    let hashes = (0..9).map(|n| [n; 32]).collect();
    assert_eq!(answers, DecodeAnswers { saturations: vec![1, 2, 3, 4], hashes, words: vec![-1, 5, 6] });
}

#[test]
fn nothing_waits_for_what_is_beside() {
    let launch = |cols| crate::plan::quantize(1, crate::params::QuantizeParams { cols, ..Default::default() });
    let mut chain = Chain::default();
    chain.extend([launch(1), launch(2)]);
    chain.beside(launch(3));
    chain.extend([launch(4), launch(5)]);
    let after: Vec<_> = chain.nodes().iter().map(|node| node.after).collect();
    assert_eq!(after, [None, Some(0), Some(1), Some(1), Some(3)]);
    assert!(chain.nodes().iter().map(|node| &node.launch).eq(&[1, 2, 3, 4, 5].map(launch)));
}
