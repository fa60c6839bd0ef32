//! What holds for every plan, and the shapes that choose between kernels.

use std::collections::BTreeSet;

use super::*;

fn product(rows: u32, cols: u32) -> MatMulParams {
    MatMulParams { rows, cols, stride: 64, ..MatMulParams::default() }
}

#[test]
fn every_kernel_is_in_one_module() {
    let all: Vec<_> = MODULES.iter().flat_map(|(_, kernels)| *kernels).collect();
    assert_eq!(all.len(), all.iter().collect::<BTreeSet<_>>().len());
    for products in [Products::Dp4a, Products::Mma] {
        for wide in [false, true] {
            for rows in [1, 2, 3, 4, 5, 8, 9, 64, 65, 1 << 20] {
                let launch = matmul(products, wide, product(rows, 100));
                assert!(all.contains(&&launch.kernel), "{}", launch.kernel);
                assert_eq!(launch.kernel.contains("w16"), wide);
            }
        }
    }
}

/// Few rows are vectors that a kernel has room for, and the blocks of a product cover all its outputs.
#[test]
fn products_are_covered() {
    for products in [Products::Dp4a, Products::Mma] {
        for rows in 1..=VECTOR_ROWS {
            let launch = matmul(products, false, product(rows, 33));
            let room: u32 = launch.kernel.rsplit('_').next().and_then(|n| n.parse().ok()).expect("ends with its rows");
            assert!((rows..2 * rows.next_power_of_two()).contains(&room), "{rows} rows on {}", launch.kernel);
            assert_eq!(launch.grid, [3, 1, 1]);
        }
        for (rows, cols, grid) in [(9, 1, [1, 1, 1]), (64, 64, [1, 1, 1]), (65, 129, [2, 3, 1])] {
            let launch = matmul(products, true, product(rows, cols));
            assert_eq!(launch.grid, grid);
            assert_eq!(launch.threads, if products == Products::Mma { MMA_THREADS } else { BLOCK_THREADS });
        }
    }
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
    let launch = matmul(Products::Mma, true, product(u32::MAX / 2, widest));
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
        for budget in [0, 50_000, 1 << 40] {
            let chunks = attention_chunks(shape, &sequences, budget);
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
