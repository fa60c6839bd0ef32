//! What holds for every plan, and the shapes that choose between kernels.

use std::collections::BTreeSet;

use super::matmul::{MMA_THREADS, WGMMA_THREADS, WGMMA_TILE};
use super::*;
use crate::backend::Products;
use crate::params::{AttentionParams, MAX_PARTS, MatMulParams, MatMulPart, WgmmaParams};

const fn units(products: Products) -> Units {
    Units { products, processors: 132 }
}

fn product(rows: u32, cols: u32) -> MatMulParams {
    products(rows, &[cols])
}

fn products(rows: u32, cols: &[u32]) -> MatMulParams {
    let mut parts = [MatMulPart::default(); MAX_PARTS];
    parts.iter_mut().zip(cols).for_each(|(part, cols)| part.cols = *cols);
    MatMulParams { rows, stride: 64, count: cols.len() as u32, parts, ..MatMulParams::default() }
}

/// The only launch of a product.
fn only(units: Units, wide: bool, params: MatMulParams) -> Launch {
    let launches = matmul(units, wide, params);
    let [launch] = &launches[..] else { panic!("one launch: {launches:?}") };
    launch.clone()
}

#[test]
fn every_kernel_is_in_one_module() {
    let all: Vec<_> = MODULES.iter().flat_map(|(_, kernels)| *kernels).collect();
    assert_eq!(all.len(), all.iter().collect::<BTreeSet<_>>().len());
    for products in Products::ALL {
        for wide in [false, true] {
            for rows in [1, 2, 3, 4, 5, 8, 9, 64, 65, 1 << 20] {
                let launch = only(units(products), wide, product(rows, 100));
                assert!(all.contains(&&launch.kernel), "{}", launch.kernel);
                assert_eq!(launch.kernel.contains("w16"), wide);
            }
        }
    }
}

/// Few rows are vectors that a kernel has room for, and the blocks of a product cover all its outputs.
#[test]
fn products_are_covered() {
    for products in Products::ALL {
        for rows in 1..=VECTOR_ROWS {
            let launch = only(units(products), false, product(rows, 33));
            let room: u32 = launch.kernel.rsplit('_').next().and_then(|n| n.parse().ok()).expect("ends with its rows");
            assert!((rows..2 * rows.next_power_of_two()).contains(&room), "{rows} rows on {}", launch.kernel);
            assert_eq!(launch.grid, [3, 1, 1]);
        }
    }
    for (products, threads) in [(Products::Dp4a, BLOCK_THREADS), (Products::Mma, MMA_THREADS)] {
        for (rows, cols, grid) in [(9, 1, [1, 1, 1]), (64, 64, [1, 1, 1]), (65, 129, [2, 3, 1])] {
            let launch = only(units(products), true, product(rows, cols));
            assert_eq!((launch.grid, launch.threads, launch.shared), (grid, threads, 0));
        }
    }
}

/// Matrices that share their rows share a launch, with as many blocks as the widest has; `wgmma` has one for each.
#[test]
fn products_of_the_same_rows_are_one_launch() {
    // 3, 1 and 5 blocks of 16 outputs; 1, 1 and 2 tiles of 64.
    for (rows, grid) in [(1, [5, 1, 3]), (9, [1, 2, 3])] {
        for of in [Products::Dp4a, Products::Mma] {
            assert_eq!(only(units(of), false, products(rows, &[33, 1, 65])).grid, grid);
        }
    }
    let launches = matmul(units(Products::Wgmma), false, products(300, &[33, 129]));
    let rows: Vec<u32> = launches.iter().map(|launch| launch.boxes[0].rows).collect();
    assert_eq!(rows, [33, 129]);
}

#[test]
fn long_rows_have_more_threads() {
    for (cols, threads) in [(1, BLOCK_THREADS), (1_024, BLOCK_THREADS), (1_025, MOST_THREADS)] {
        let launch = row_steps(7, RowStepsParams { cols, ..RowStepsParams::default() });
        assert_eq!((launch.grid, launch.threads), ([7, 1, 1], threads));
    }
}

/// Tiles of `wgmma` cover all outputs, with no more blocks than run at a time; a block's stages fit into what it may have, and
/// tensors are described as they lie.
#[test]
fn products_of_warp_groups_are_planned_whole() {
    for (rows, cols, tiles, blocks) in [(9, 1, 1, 1), (128, 128, 1, 1), (129, 257, 6, 6), (4_096, 4_096, 1_024, 132)] {
        for wide in [false, true] {
            let mut product = MatMulParams { codes: 1 << 20, ..product(rows, cols) };
            product.parts[0].weight = 1 << 30;
            let launch = only(units(Products::Wgmma), wide, product);
            assert_eq!((launch.grid, launch.threads), ([blocks, 1, 1], WGMMA_THREADS));
            let params: &WgmmaParams = bytemuck::from_bytes(launch.param_bytes());
            assert_eq!(params.tiles, tiles);
            assert!(launch.shared <= MOST_SHARED && launch.shared == Ring::of(wide).shared_bytes());
            let [weights, activations] = launch.boxes[..] else { panic!("two tensors: {:?}", launch.boxes) };
            assert_eq!((weights.address, weights.rows, weights.digits), (1 << 30, cols, if wide { 2 } else { 1 }));
            assert_eq!((activations.address, activations.rows, activations.digits), (1 << 20, rows, 2));
            for boxes in [weights, activations] {
                assert_eq!(boxes.box_extent(), [128, 1, WGMMA_TILE]);
                assert_eq!(boxes.strides(), [64, 64 * u64::from(boxes.digits)]);
            }
        }
    }
}

/// The device's descriptions of tensors are put where the kernel reads them, and nowhere else.
#[test]
fn maps_are_put_in_their_places() {
    let launch = only(units(Products::Wgmma), true, product(9, 5));
    let params = launch.params_with_maps(|boxes| Ok::<_, ()>(TensorMap { words: [boxes.rows.into(); 16] }));
    let params = params.expect("maps");
    assert_eq!(params.len(), launch.params.len());
    let params: &WgmmaParams = bytemuck::from_bytes(bytemuck::cast_slice(&params));
    assert_eq!((params.weights.words, params.activations.words), ([5; 16], [9; 16]));
    assert_eq!((params.product.rows, params.product.parts[0].cols, params.tiles), (9, 5, 1));
    assert_eq!(launch.params_with_maps(|_| Err("no")), Err("no"));
    assert_eq!(std::mem::offset_of!(WgmmaParams, activations), size_of::<TensorMap>());
}

#[test]
fn grids_are_never_empty_nor_too_large() {
    for len in [1, 255, 256, 257, 1 << 22, 1 << 40] {
        let launch = add(BinaryParams { len, ..BinaryParams::default() });
        let blocks = u64::from(launch.grid[0]);
        assert!((1..=MOST_BLOCKS).contains(&blocks));
        assert!(blocks == MOST_BLOCKS || blocks * u64::from(BLOCK_THREADS) >= len);
    }
    let widest = 1 << 18;
    let launch = embed(1 << 20, EmbedParams { cols: widest, ..EmbedParams::default() });
    assert_eq!(launch.grid, [1 << 20, widest / BLOCK_THREADS, 1]);
    // The y of a grid ends at 65,535; x does not.
    let launch = only(units(Products::Mma), true, product(u32::MAX / 2, widest));
    assert!(launch.grid[1] <= 65_535, "{:?}", launch.grid);
}

#[test]
fn parameters_are_the_struct_as_it_is() {
    let params = BinaryParams { a: 1, b: 2, out: 3, saturations: 4, len: 5, shift: 6, unused: 0 };
    assert_eq!(add(params).params, [1, 2, 3, 4, 5, 6]);
    assert_eq!(add(params).param_bytes().len(), size_of::<BinaryParams>());
}

/// Every row has its blocks, in slots of its own, whatever the budget.
#[test]
fn attention_covers_every_row_and_block_once() {
    let sequences = [
        SequenceRows { rows: 0..700, start: 0, table: 0 },
        SequenceRows { rows: 700..701, start: 1_000, table: 3 },
        SequenceRows { rows: 701..720, start: 250, table: 7 },
    ];
    for causal in [false, true] {
        let shape = AttentionShape { heads: 3, head_dim: 16, causal };
        let all = [AttentionUnits::Dp4a, AttentionUnits::Mma].map(|units| [0, 80_000, 1 << 40].map(|b| (units, b)));
        for (units, budget) in all.into_iter().flatten() {
            let chunks = attention_chunks(units, shape, &sequences, budget);
            assert_eq!(chunks.len() == 1, budget == 1 << 40);
            let rows: Vec<u32> = chunks.iter().flat_map(|c| &c.rows).map(|r| r.row).collect();
            assert_eq!(rows, (0..720).collect::<Vec<_>>());
            for chunk in &chunks {
                check_chunk(shape, &sequences, chunk);
                // Only a single tile may be beyond the budget.
                let tiles: BTreeSet<u32> = chunk.tiles.iter().map(|t| t.row).collect();
                assert!(u64::from(chunk.slots) * shape.slot_bytes() <= budget || tiles.len() == 1);
            }
        }
    }
}

#[test]
fn tensor_cores_take_more_rows_than_one_tile_of_integer_units() {
    let rows =
        |n: u32| [SequenceRows { rows: 0..1, start: 9, table: 0 }, SequenceRows { rows: 1..1 + n, start: 0, table: 1 }];
    for products in Products::ALL {
        assert_eq!(AttentionUnits::choose(products, &rows(8)), AttentionUnits::Dp4a);
        let long = if products == Products::Dp4a { AttentionUnits::Dp4a } else { AttentionUnits::Mma };
        assert_eq!(AttentionUnits::choose(products, &rows(9)), long);
    }
    let launch = block(AttentionUnits::Mma, 3, AttentionParams { heads: 5, ..AttentionParams::default() });
    assert_eq!((launch.kernel, launch.grid), ("attention_block_mma", [3, 5, 1]));
}

fn check_chunk(shape: AttentionShape, sequences: &[SequenceRows], chunk: &AttentionChunk) {
    let mut written = BTreeSet::new();
    for tile in &chunk.tiles {
        for r in 0..tile.rows {
            for h in 0..shape.heads {
                let slot = tile.slot + r * tile.row_slots + tile.block * shape.heads + h;
                assert!(slot < chunk.slots && written.insert(slot), "slot {slot} of {}", chunk.slots);
            }
        }
    }
    for row in &chunk.rows {
        let sequence = sequences.iter().find(|s| s.rows.contains(&row.row)).expect("some sequence's");
        let seen = if shape.causal { sequence.start + row.row - sequence.rows.start + 1 } else { sequence.length() };
        assert_eq!(row.blocks, seen.div_ceil(256));
        for b in 0..row.blocks {
            let tile = chunk.tiles.iter().find(|t| (t.row..t.row + t.rows).contains(&row.row) && t.block == b);
            let tile = tile.expect("a tile for each block that a row sees");
            assert_eq!(row.slot, tile.slot + (row.row - tile.row) * tile.row_slots);
            assert_eq!(tile.table, sequence.table + b);
            assert_eq!(tile.position, sequence.start + tile.row - sequence.rows.start);
        }
    }
}
