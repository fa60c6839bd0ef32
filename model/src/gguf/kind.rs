//! The element types of GGUF: four are read, the others are refused by name.

use std::fmt;

/// An element type that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    BF16,
    /// Blocks of 32: a half precision scale, then 32 signed bytes.
    Q8_0,
}

/// Numbers and names in the file format, of those that are not read too, so that a refusal can name them.
const NAMES: [(u32, &str); 33] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (8, "Q8_0"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (30, "BF16"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

impl Kind {
    const READ: [Self; 4] = [Self::F32, Self::F16, Self::BF16, Self::Q8_0];

    /// The type of that number, or the name of one that is not read.
    pub(super) fn of(number: u32) -> Result<Self, String> {
        let name = NAMES.iter().find(|(n, _)| *n == number).map(|(_, name)| *name);
        let name = name.ok_or_else(|| format!("the unknown type {number}"))?;
        Self::READ.into_iter().find(|kind| kind.to_string() == name).ok_or_else(|| name.to_owned())
    }

    /// Elements of one block; rows hold whole blocks.
    pub(super) fn block(self) -> u64 {
        match self {
            Self::Q8_0 => 32,
            _ => 1,
        }
    }

    /// Bytes of one block.
    pub(super) fn block_bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => 34,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
        })
    }
}
