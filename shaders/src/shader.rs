//! The linked shaders, and the parameters that each dispatch takes.

/// Embeds what the build linked.
macro_rules! linked {
    ($($op:literal),* $(,)?) => {
        /// Name and text of each op's shader, and of the one that hashes: for every adapter.
        pub(crate) const PORTABLE: &[(&str, &str)] =
            &[$(($op, include_str!(concat!(env!("OUT_DIR"), "/", $op, "_portable.wgsl")))),*];
        /// The same for adapters with integers of 64 bits.
        pub(crate) const INT64: &[(&str, &str)] =
            &[$(($op, include_str!(concat!(env!("OUT_DIR"), "/", $op, "_int64.wgsl")))),*];
        /// The same for adapters whose threads reduce in subgroups.
        pub(crate) const SUBGROUPS: &[(&str, &str)] =
            &[$(($op, include_str!(concat!(env!("OUT_DIR"), "/", $op, "_subgroups.wgsl")))),*];
    };
}

linked! {
    "embed", "quantize", "matmul", "add", "layer_norm", "rms_norm",
    "attention", "gelu", "silu", "mean_pool", "first_pool", "l2_normalize",
    "rope", "multiply", "shift", "gather", "sample", "chunks",
}

/// What a dispatch gets as its uniform.
pub(crate) trait Params {
    /// The fields in order, a word each.
    fn words(&self) -> Vec<u32>;
}

/// A field of parameters as a word.
trait Word {
    fn word(self) -> u32;
}

impl Word for u32 {
    fn word(self) -> u32 {
        self
    }
}

impl Word for i32 {
    fn word(self) -> u32 {
        self.cast_unsigned()
    }
}

macro_rules! params {
    ($($(#[$meta:meta])* $op:literal $name:ident { $($field:ident: $ty:ty),* $(,)? })*) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Copy, Debug)]
            pub(crate) struct $name { $(pub $field: $ty),* }

            impl Params for $name {
                fn words(&self) -> Vec<u32> {
                    vec![$(Word::word(self.$field)),*]
                }
            }
        )*

        /// Of each op, name and type of each parameter: what tests compare with the shaders.
        #[cfg(test)]
        pub(crate) const PARAMS: &[(&str, &[(&str, &str)])] =
            &[$(($op, &[$((stringify!($field), stringify!($ty))),*])),*];
    };
}

params! {
    /// As in `embed.wgsl`.
    "embed" Embed { elements: u32, cols: u32, rows: u32, tables: u32 }
    /// As in `quantize.wgsl`.
    "quantize" Quantize { rows: u32, cols: u32, stride: u32 }
    /// As in `matmul.wgsl`.
    "matmul" MatMul { rows: u32, cols: u32, terms: u32, steps: u32, first: u32, stride: u32 }
    /// As in `add.wgsl`.
    "add" Add { elements: u32 }
    /// As in `layer_norm.wgsl`.
    "layer_norm" LayerNorm { rows: u32, cols: u32, shift: u32, epsilon_mantissa: u32, epsilon_shift: i32 }
    /// As in `rms_norm.wgsl`.
    "rms_norm" RmsNorm { rows: u32, cols: u32, shift: u32, epsilon_mantissa: u32, epsilon_shift: i32 }
    /// As in `attention.wgsl`.
    "attention" Attention {
        heads: u32, sharing: u32, head_dim: u32, query_stride: u32, key_stride: u32, first: u32, base: u32, blocks: u32,
        source: u32,
    }
    /// As in `gelu.wgsl`.
    "gelu" Gelu { elements: u32, frac: u32 }
    /// As in `silu.wgsl`.
    "silu" Silu { elements: u32, frac: u32 }
    /// As in `mean_pool.wgsl`.
    "mean_pool" MeanPool { sequences: u32, cols: u32, pieces: u32, first: u32, base: u32, skip: u32 }
    /// As in `first_pool.wgsl`.
    "first_pool" FirstPool { elements: u32, cols: u32, first: u32, base: u32, skip: u32 }
    /// As in `l2_normalize.wgsl`.
    "l2_normalize" L2Normalize { rows: u32, cols: u32 }
    /// As in `rope.wgsl`.
    "rope" Rope { elements: u32, heads: u32, head_dim: u32, rotary_dim: u32, stride: u32 }
    /// As in `multiply.wgsl`.
    "multiply" Multiply { elements: u32, shift: u32 }
    /// As in `shift.wgsl`.
    "shift" Shift { elements: u32, shift: u32 }
    /// As in `gather.wgsl`.
    "gather" Gather { elements: u32, cols: u32, first: u32, base: u32, skip: u32 }
    /// As in `sample.wgsl`.
    "sample" Sample { points: u32, cols: u32 }
    /// As in `chunks.wgsl`.
    "chunks" Chunks { chunks: u32, cols: u32, row_chunks: u32 }
}
