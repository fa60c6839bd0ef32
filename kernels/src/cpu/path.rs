//! Instruction-set paths: which exist on this machine, and how one source becomes all of them.

use crate::backend::BackendError;

/// A family of instructions that the hot loops are compiled for. All give the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// AVX-512 with byte dot products, and AMX tiles for products of many rows.
    AmxInt8,
    /// AVX-512 with byte dot products.
    Avx512Vnni,
    /// AVX2.
    Avx2,
    /// NEON with byte dot products.
    NeonDotprod,
    /// NEON as every 64-bit Arm processor has it.
    Neon,
    /// Whatever the target has at the least; plain Rust.
    Portable,
    /// The kernels of [`Path::AmxInt8`] with a plain model of the tiles: slow, for tests on any machine, and never chosen.
    AmxModel,
}

impl Path {
    /// All paths that are for use, the fastest first.
    pub const ALL: [Self; 6] =
        [Self::AmxInt8, Self::Avx512Vnni, Self::Avx2, Self::NeonDotprod, Self::Neon, Self::Portable];

    /// Name, as flags and reports spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AmxInt8 => "amx-int8",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Avx2 => "avx2",
            Self::NeonDotprod => "neon-dotprod",
            Self::Neon => "neon",
            Self::Portable => "portable",
            Self::AmxModel => "amx-model",
        }
    }

    /// The path of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().chain([Self::AmxModel]).find(|p| p.name() == name)
    }

    /// Features that the path needs and this machine lacks; empty if the path can run here.
    pub fn missing(self) -> Vec<&'static str> {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        macro_rules! lacking {
            ($is_detected:ident: $($feature:tt),*) => {{
                let features = [$(($feature, std::arch::$is_detected!($feature))),*];
                features.into_iter().filter(|(_, found)| !found).map(|(name, _)| name).collect()
            }};
        }
        match self {
            Self::Portable | Self::AmxModel => vec![],
            #[cfg(target_arch = "x86_64")]
            Self::AmxInt8 => {
                let missing = Self::Avx512Vnni.missing();
                if missing.is_empty() { super::isa::amx::missing() } else { missing }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => {
                lacking!(is_x86_feature_detected: "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => lacking!(is_x86_feature_detected: "avx2"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::AmxInt8 | Self::Avx512Vnni | Self::Avx2 => vec!["x86-64"],
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod => lacking!(is_aarch64_feature_detected: "neon", "dotprod"),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => lacking!(is_aarch64_feature_detected: "neon"),
            #[cfg(not(target_arch = "aarch64"))]
            Self::NeonDotprod | Self::Neon => vec!["aarch64"],
        }
    }

    /// Paths that can run on this machine, the fastest first.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|p| p.missing().is_empty()).collect()
    }

    /// The fastest path that can run on this machine.
    pub fn detect() -> Self {
        Self::available()[0]
    }
}

/// A path that was found on this machine. Only [`Isa::new`] makes one, so holding it proves that its instructions
/// exist; every call into code compiled for a path rests on that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Isa(Path);

impl Isa {
    /// Checks that the machine has the path.
    pub(crate) fn new(path: Path) -> Result<Self, BackendError> {
        let missing = path.missing();
        if missing.is_empty() {
            return Ok(Self(path));
        }
        let (name, missing) = (path.name(), missing.join(", "));
        Err(BackendError::Unavailable(format!("cpu path {name} needs {missing}, which this machine lacks")))
    }

    /// The path.
    pub(crate) const fn path(self) -> Path {
        self.0
    }

    /// The digits that codes of a left operand are split into; none where they stay whole.
    pub(crate) const fn digits(self) -> Option<Digits> {
        match self.0 {
            Path::AmxInt8 | Path::AmxModel | Path::Avx512Vnni => Some(Digits::Unsigned),
            Path::NeonDotprod => Some(Digits::Signed),
            Path::Avx2 | Path::Neon | Path::Portable => None,
        }
    }

    /// Whether products of many rows run on tiles.
    pub(crate) const fn has_tiles(self) -> bool {
        matches!(self.0, Path::AmxInt8 | Path::AmxModel)
    }
}

/// Two byte digits of a 16-bit code, `256 * high + low` and a constant. Both kinds have digits for all codes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Digits {
    /// From 0 to 255: those of `code + 32768`.
    Unsigned,
    /// From -128 to 127: those of `code - 128`.
    Signed,
}

impl Digits {
    /// The constant: `code - (256 * high + low)`.
    pub(crate) const fn constant(self) -> i64 {
        match self {
            Self::Unsigned => -32_768,
            Self::Signed => 128,
        }
    }

    /// What turns the bits of a code into those of its digits, by exclusive or.
    pub(crate) const fn flip(self) -> u16 {
        match self {
            Self::Unsigned => 0x8000,
            Self::Signed => 0x0080,
        }
    }
}

/// Compiles one plain body once for each path, for the vectoriser to use what the path has. The function that comes
/// out takes an [`Isa`] first. NEON is in what every 64-bit Arm target is compiled for, and the dot products beyond it are
/// nothing for a vectoriser, so those paths share the plain copy.
macro_rules! for_each_path {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident $(<$generic:ident: $bound:path>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block
    ) => {
        $(#[$meta])*
        $vis fn $name $(<$generic: $bound>)? (isa: $crate::cpu::path::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body $(<$generic: $bound>)? ($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
            fn avx512 $(<$generic: $bound>)? ($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2 $(<$generic: $bound>)? ($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }

            match isa.path() {
                // SAFETY: an `Isa` of this path exists only where its features were detected.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::Path::AmxInt8 | $crate::cpu::Path::Avx512Vnni => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::Path::Avx2 => unsafe { avx2($($arg),*) },
                _ => body($($arg),*),
            }
        }
    };
}
pub(crate) use for_each_path;
