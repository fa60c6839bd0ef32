//! How matrix products are launched: few rows by vectors, many in tiles on whatever the device has for them.

use super::{BLOCK_THREADS, Launch};
use crate::backend::Products;
use crate::params::{MAX_PARTS, MatMulParams, MatMulPart, TensorMap, WgmmaParams};

/// Threads of a block of `mma.sync`.
pub const MMA_THREADS: u32 = 128;
/// Threads of a block of `wgmma`: a warp group that copies, two that multiply.
pub const WGMMA_THREADS: u32 = 384;
/// Most rows that a product reads its weights once for, without tiles.
pub const VECTOR_ROWS: u32 = 8;
/// Outputs that a warp of such a product has.
pub const VECTOR_OUTPUTS: u32 = 2;
/// Rows and outputs of a tile of `dp4a` and `mma.sync`.
const TILE: u32 = 64;
/// Rows and outputs of a tile of `wgmma`.
pub const WGMMA_TILE: u32 = 128;
/// Codes that one copy brings of each row of a tile.
pub const BOX_CODES: u32 = 128;
/// Bytes of shared memory that a block may have at compute capability 9.0.
pub const MOST_SHARED: u32 = 227 << 10;

/// What products are planned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Units {
    /// What products of many rows run on.
    pub products: Products,
    /// Multiprocessors of the device.
    pub processors: u32,
}

/// A tensor of bytes `[rows][digits][codes]` in memory, of which copies bring boxes of [`BOX_CODES`] codes of one digit, of
/// `box_rows` rows, swizzled by 128 bytes. What a box has beyond the tensor is zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorBoxes {
    /// Of the first byte; a multiple of 16.
    pub address: u64,
    /// Codes of a row, with padding; a multiple of 16.
    pub codes: u32,
    /// Digits of a code.
    pub digits: u32,
    /// Rows.
    pub rows: u32,
    /// Rows of a box.
    pub box_rows: u32,
}

impl TensorBoxes {
    /// Elements along each dimension, the innermost first.
    pub fn extent(&self) -> [u64; 3] {
        [self.codes, self.digits, self.rows].map(u64::from)
    }

    /// Bytes from one digit, and from one row, to the next.
    pub fn strides(&self) -> [u64; 2] {
        [u64::from(self.codes), u64::from(self.codes) * u64::from(self.digits)]
    }

    /// Elements of a box along each dimension.
    pub const fn box_extent(&self) -> [u32; 3] {
        [BOX_CODES, 1, self.box_rows]
    }

    /// Bytes of the tensor.
    pub fn bytes(&self) -> u64 {
        self.strides()[1] * u64::from(self.rows)
    }
}

/// The ring of stages of a block of `wgmma`, as in `matmul_wgmma.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Boxes of a stage: the digits of activations and weights.
    pub boxes: u32,
    /// Stages.
    pub stages: u32,
}

impl Ring {
    /// That of weights of 16 bits or of 8.
    pub const fn of(wide: bool) -> Self {
        if wide { Self { boxes: 4, stages: 3 } } else { Self { boxes: 3, stages: 4 } }
    }

    /// Bytes of shared memory: the stages, and two barriers for each.
    pub const fn shared_bytes(self) -> u32 {
        self.stages * (self.boxes * WGMMA_TILE * BOX_CODES + 2 * size_of::<u64>() as u32)
    }
}

/// SPEC 5.3: the same rows by one matrix or several. `wide` weights have 16 bits. One launch, but for `wgmma`, which takes one
/// for each matrix.
pub fn matmul(units: Units, wide: bool, params: MatMulParams) -> Vec<Launch> {
    if params.rows <= VECTOR_ROWS {
        return vec![of_parts(vectors(wide, params), params.count)];
    }
    if units.products == Products::Wgmma {
        let alone = |part: &MatMulPart| {
            let mut parts = [MatMulPart::default(); MAX_PARTS];
            parts[0] = *part;
            wgmma(units.processors, wide, MatMulParams { parts, count: 1, ..params })
        };
        return params.parts[..params.count as usize].iter().map(alone).collect();
    }
    vec![of_parts(tiles(units.products, wide, params), params.count)]
}

/// Blocks along the outputs of the widest part; those that a narrower one does not have end at once.
fn blocks(params: &MatMulParams, outputs: u32) -> u32 {
    params.parts[..params.count as usize].iter().map(|part| part.cols.div_ceil(outputs)).max().unwrap_or(1)
}

fn of_parts(launch: Launch, count: u32) -> Launch {
    let [x, y, _] = launch.grid;
    Launch { grid: [x, y, count], ..launch }
}

fn tiles(products: Products, wide: bool, params: MatMulParams) -> Launch {
    let grid = [params.rows.div_ceil(TILE), blocks(&params, TILE)];
    match (products, wide) {
        (Products::Dp4a, false) => Launch::new("matmul_dp4a_w8", BLOCK_THREADS, grid, params),
        (Products::Dp4a, true) => Launch::new("matmul_dp4a_w16", BLOCK_THREADS, grid, params),
        (_, false) => Launch::new("matmul_mma_w8", MMA_THREADS, grid, params),
        (_, true) => Launch::new("matmul_mma_w16", MMA_THREADS, grid, params),
    }
}

fn vectors(wide: bool, params: MatMulParams) -> Launch {
    let kernel = match (params.rows, wide) {
        (..=1, false) => "matmul_vector_w8_1",
        (2, false) => "matmul_vector_w8_2",
        (3..=4, false) => "matmul_vector_w8_4",
        (_, false) => "matmul_vector_w8_8",
        (..=1, true) => "matmul_vector_w16_1",
        (2, true) => "matmul_vector_w16_2",
        (3..=4, true) => "matmul_vector_w16_4",
        (_, true) => "matmul_vector_w16_8",
    };
    let outputs = VECTOR_OUTPUTS * BLOCK_THREADS / 32;
    Launch::new(kernel, BLOCK_THREADS, [blocks(&params, outputs), 1], params)
}

/// As many blocks as there are multiprocessors, each of which takes one tile after the other.
fn wgmma(processors: u32, wide: bool, product: MatMulParams) -> Launch {
    let [part, ..] = product.parts;
    let tiles = product.rows.div_ceil(WGMMA_TILE) * part.cols.div_ceil(WGMMA_TILE);
    let (codes, box_rows) = (product.stride, WGMMA_TILE);
    let digits = if wide { 2 } else { 1 };
    let weights = TensorBoxes { address: part.weight, codes, digits, rows: part.cols, box_rows };
    let activations = TensorBoxes { address: product.codes, codes, digits: 2, rows: product.rows, box_rows };
    let [of_weights, of_activations] = [TensorMap::default(); 2];
    let params = WgmmaParams { weights: of_weights, activations: of_activations, product, tiles, unused: [0; 5] };
    let kernel = if wide { "matmul_wgmma_w16" } else { "matmul_wgmma_w8" };
    let launch = Launch::new(kernel, WGMMA_THREADS, [tiles.min(processors).max(1), 1], params);
    Launch { shared: Ring::of(wide).shared_bytes(), boxes: vec![weights, activations], ..launch }
}
