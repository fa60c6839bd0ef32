//! Launches as plain data: which kernel, how many blocks, which parameters. Nothing here needs a device.

use bytemuck::Pod;

use crate::params::{
    AppendParams, BinaryParams, ChunksParams, EmbedParams, NormParams, QuantizeParams, RopeParams, RowStepsParams,
    RowsParams, SampleParams, TensorMap, UnaryParams,
};

mod attention;
mod decode;
mod matmul;
mod sample;

pub use attention::{AttentionChunk, AttentionShape, AttentionUnits, SequenceRows, attention_chunks, block, combine};
pub use decode::{Chain, DecodeAnswers, DecodeInputs, DecodeLayout, DecodeLine, DecodeProgram, DecodeShape};
pub use matmul::{MOST_SHARED, Ring, TensorBoxes, Units, VECTOR_ROWS, matmul};
pub use sample::{MOST_POINTS, SamplePoints};

/// Threads of a block of every kernel but the tensor cores' products.
pub const BLOCK_THREADS: u32 = 256;
/// Threads of a block that takes several steps of a long row.
pub const MOST_THREADS: u32 = 1024;
/// Columns beyond which a row is long.
const LONG_ROW: u32 = 1024;
/// Most blocks of a launch over elements; beyond them each thread has several.
const MOST_BLOCKS: u64 = 1 << 14;
/// Columns that a block of the mean has.
const POOL_COLS: u32 = 32;

/// The kernels of each module. A module is a `.cu` file, and one PTX file.
pub const MODULES: [(&str, &[&str]); 23] = [
    ("add", &["add"]),
    ("append", &["append"]),
    ("attention", &["attention_block", "attention_combine"]),
    ("attention_mma", &["attention_block_mma"]),
    ("chunks", &["chunks"]),
    ("embed", &["embed"]),
    ("first_pool", &["first_pool"]),
    ("gather", &["gather"]),
    ("gelu", &["gelu"]),
    ("l2_normalize", &["l2_normalize"]),
    ("layer_norm", &["layer_norm"]),
    (
        "matmul",
        &[
            "matmul_vector_w8_1",
            "matmul_vector_w8_2",
            "matmul_vector_w8_4",
            "matmul_vector_w8_8",
            "matmul_vector_w16_1",
            "matmul_vector_w16_2",
            "matmul_vector_w16_4",
            "matmul_vector_w16_8",
            "matmul_dp4a_w8",
            "matmul_dp4a_w16",
        ],
    ),
    ("matmul_mma", &["matmul_mma_w8", "matmul_mma_w16"]),
    ("matmul_wgmma", &["matmul_wgmma_w8", "matmul_wgmma_w16"]),
    ("mean_pool", &["mean_pool"]),
    ("multiply", &["multiply"]),
    ("quantize", &["quantize"]),
    ("rms_norm", &["rms_norm"]),
    ("rope", &["rope"]),
    ("row_steps", &["row_steps", "row_steps_long"]),
    ("sample", &["sample"]),
    ("shift", &["shift"]),
    ("silu", &["silu"]),
];

/// One launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// One of those in [`MODULES`].
    pub kernel: &'static str,
    /// Blocks in x, y and z; none of them 0.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory beside what the kernel declares.
    pub shared: u32,
    /// The kernel's one argument, a struct of [`params`](crate::params).
    pub params: Vec<u64>,
    /// What the device puts at the beginning of the argument: a [`TensorMap`] for each, by which copies find their boxes.
    pub boxes: Vec<TensorBoxes>,
}

impl Launch {
    fn new<P: Pod>(kernel: &'static str, threads: u32, grid: [u32; 2], params: P) -> Self {
        let mut words = vec![0_u64; size_of::<P>().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut words)[..size_of::<P>()].copy_from_slice(bytemuck::bytes_of(&params));
        Self { kernel, grid: [grid[0], grid[1], 1], threads, shared: 0, params: words, boxes: vec![] }
    }

    /// The argument with the device's maps of tensors in their places.
    ///
    /// # Errors
    /// What `map` says.
    pub fn params_with_maps<E>(&self, map: impl Fn(&TensorBoxes) -> Result<TensorMap, E>) -> Result<Vec<u64>, E> {
        let mut params = self.params.clone();
        for (place, boxes) in params.chunks_exact_mut(size_of::<TensorMap>() / 8).zip(&self.boxes) {
            place.copy_from_slice(&map(boxes)?.words);
        }
        Ok(params)
    }

    /// The argument's bytes.
    pub fn param_bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.params)
    }
}

/// One launch of a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What is launched.
    pub launch: Launch,
    /// Which of the launches before it has to end first; none waits for nothing but the graph's start.
    pub after: Option<usize>,
}

/// A launch over `len` elements.
fn elements<P: Pod>(kernel: &'static str, len: u64, params: P) -> Launch {
    let blocks = len.div_ceil(BLOCK_THREADS.into()).min(MOST_BLOCKS) as u32;
    Launch::new(kernel, BLOCK_THREADS, [blocks, 1], params)
}

/// A launch of a block for each row.
fn rows<P: Pod>(kernel: &'static str, rows: u32, params: P) -> Launch {
    Launch::new(kernel, BLOCK_THREADS, [rows, 1], params)
}

/// A launch of a block for each row and stretch of columns.
fn stretches<P: Pod>(kernel: &'static str, rows: u32, cols: u32, params: P) -> Launch {
    Launch::new(kernel, BLOCK_THREADS, [rows, cols.div_ceil(BLOCK_THREADS)], params)
}

/// SPEC 5.1.
pub fn embed(count: u32, params: EmbedParams) -> Launch {
    stretches("embed", count, params.cols, params)
}

/// SPEC 5.2.
pub fn quantize(count: u32, params: QuantizeParams) -> Launch {
    rows("quantize", count, params)
}

/// SPEC 5.4.
pub fn add(params: BinaryParams) -> Launch {
    elements("add", params.len, params)
}

/// SPEC 5.14.
pub fn multiply(params: BinaryParams) -> Launch {
    elements("multiply", params.len, params)
}

/// SPEC 5.5.
pub fn layer_norm(count: u32, params: NormParams) -> Launch {
    rows("layer_norm", count, params)
}

/// SPEC 5.6, of `parts` parts of rows.
pub fn rms_norm(parts: u32, params: NormParams) -> Launch {
    rows("rms_norm", parts, params)
}

/// SPEC 5.12.
pub fn l2_normalize(count: u32, params: NormParams) -> Launch {
    rows("l2_normalize", count, params)
}

/// SPEC 5.8.
pub fn gelu(params: UnaryParams) -> Launch {
    elements("gelu", params.len, params)
}

/// SPEC 5.9.
pub fn silu(params: UnaryParams) -> Launch {
    elements("silu", params.len, params)
}

/// SPEC 5.15.
pub fn shift(params: UnaryParams) -> Launch {
    elements("shift", params.len, params)
}

/// SPEC 5.10.
pub fn mean_pool(sequences: u32, params: RowsParams) -> Launch {
    Launch::new("mean_pool", BLOCK_THREADS, [sequences, params.cols.div_ceil(POOL_COLS)], params)
}

/// SPEC 5.11.
pub fn first_pool(sequences: u32, params: RowsParams) -> Launch {
    stretches("first_pool", sequences, params.cols, params)
}

/// SPEC 5.16.
pub fn gather(points: u32, params: RowsParams) -> Launch {
    stretches("gather", points, params.cols, params)
}

/// SPEC 5.13.
pub fn rope(count: u32, params: RopeParams) -> Launch {
    stretches("rope", count, params.cols, params)
}

/// Several ops on rows at once; long rows take more threads.
pub fn row_steps(count: u32, params: RowStepsParams) -> Launch {
    let (kernel, threads) =
        if params.cols > LONG_ROW { ("row_steps_long", MOST_THREADS) } else { ("row_steps", BLOCK_THREADS) };
    Launch::new(kernel, threads, [count, 1], params)
}

/// SPEC 5.17.
pub fn sample(points: u32, params: SampleParams) -> Launch {
    rows("sample", points, params)
}

/// Keys and values into pages.
pub fn append(count: u32, params: AppendParams) -> Launch {
    rows("append", count, params)
}

/// Chaining values of the chunks of rows.
pub fn chunks(params: ChunksParams) -> Launch {
    let count = u64::from(params.rows) * u64::from(params.row_chunks);
    Launch::new("chunks", BLOCK_THREADS, [count.div_ceil(BLOCK_THREADS.into()) as u32, 1], params)
}

#[cfg(test)]
mod tests;
