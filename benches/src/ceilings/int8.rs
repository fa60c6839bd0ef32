//! Products of bytes with sums in 32 bits, from registers only: the peak of each unit that the machine has.

use std::convert::Infallible;
use std::hint::black_box;

use super::together;
use crate::samples::{Effort, Samples};

/// Rounds of one sample, each a handful of instructions.
const ROUNDS: u64 = 1 << 20;

/// What multiplies bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Tiles of AMX.
    Amx,
    /// Byte dot products of AVX-512.
    Vnni,
    /// AVX2: products of pairs of bytes, of pairs of words, and a sum.
    Avx2,
    /// Byte dot products of NEON.
    Sdot,
    /// NEON as every 64-bit Arm processor has it: products of words, each of which stands for two of bytes, as of a 16-bit
    /// code with an 8-bit weight.
    Smlal,
    /// Plain Rust.
    Portable,
}

impl Unit {
    /// All units, the fastest first.
    const ALL: [Self; 6] = [Self::Amx, Self::Vnni, Self::Avx2, Self::Sdot, Self::Smlal, Self::Portable];

    /// Name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Amx => "amx",
            Self::Vnni => "avx512-vnni",
            Self::Avx2 => "avx2",
            Self::Sdot => "neon-dotprod",
            Self::Smlal => "neon",
            Self::Portable => "portable",
        }
    }

    /// Units of this machine, the fastest first.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|unit| unit.exists()).collect()
    }

    /// The fastest of this machine.
    pub fn best() -> Self {
        Self::available()[0]
    }

    fn exists(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return match self {
            Self::Amx => x86::has_amx(),
            Self::Vnni => {
                std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512vnni")
            }
            Self::Avx2 => std::arch::is_x86_feature_detected!("avx2"),
            Self::Sdot | Self::Smlal => false,
            Self::Portable => true,
        };
        #[cfg(target_arch = "aarch64")]
        return match self {
            Self::Sdot => std::arch::is_aarch64_feature_detected!("dotprod"),
            Self::Smlal => std::arch::is_aarch64_feature_detected!("neon"),
            Self::Amx | Self::Vnni | Self::Avx2 => false,
            Self::Portable => true,
        };
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        return self == Self::Portable;
    }
}

/// Seconds of a sample, and the operations of all threads in one.
pub(super) fn peak(unit: Unit, threads: usize, effort: Effort) -> (Samples, f64) {
    // Portable code is far from any peak, and need not take as long to show it.
    let rounds = if unit == Unit::Portable { ROUNDS / 16 } else { ROUNDS };
    let once = || {
        let run = |_| {
            black_box(run(unit, black_box(rounds)));
        };
        Ok::<_, Infallible>(together(threads, run))
    };
    let operations = operations_of_round(unit) * rounds as f64 * threads as f64;
    (effort.sample(once).unwrap_or_default(), operations)
}

fn operations_of_round(unit: Unit) -> f64 {
    match unit {
        Unit::Amx => 4.0 * 2.0 * (16 * 16 * 64) as f64,
        Unit::Vnni => 12.0 * 2.0 * 64.0,
        Unit::Avx2 => 8.0 * 2.0 * 32.0,
        Unit::Sdot => 16.0 * 2.0 * 16.0,
        Unit::Smlal => 16.0 * 2.0 * 8.0,
        Unit::Portable => 2.0 * PORTABLE_LANES as f64,
    }
}

fn run(unit: Unit, rounds: u64) -> i32 {
    #[cfg(target_arch = "x86_64")]
    match unit {
        // SAFETY: a unit is run only where it was found to exist.
        Unit::Amx => return unsafe { x86::amx(rounds) },
        // SAFETY: as above.
        Unit::Vnni => return unsafe { x86::vnni(rounds) },
        // SAFETY: as above.
        Unit::Avx2 => return unsafe { x86::avx2(rounds) },
        Unit::Sdot | Unit::Smlal | Unit::Portable => {}
    }
    #[cfg(target_arch = "aarch64")]
    match unit {
        // SAFETY: a unit is run only where it was found to exist.
        Unit::Sdot => return unsafe { arm::sdot(rounds) },
        // SAFETY: as above.
        Unit::Smlal => return unsafe { arm::smlal(rounds) },
        Unit::Amx | Unit::Vnni | Unit::Avx2 | Unit::Portable => {}
    }
    debug_assert!(unit == Unit::Portable, "no other unit exists here");
    portable(rounds)
}

const PORTABLE_LANES: usize = 64;

fn portable(rounds: u64) -> i32 {
    let (a, b) = (black_box([3_i8; PORTABLE_LANES]), black_box([-5_i8; PORTABLE_LANES]));
    let mut sums = [0_i32; PORTABLE_LANES];
    for _ in 0..rounds {
        // Read again in each round, or one product would stand for all.
        let (a, b) = (black_box(&a), black_box(&b));
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum = sum.wrapping_add(i32::from(*a) * i32::from(*b));
        }
    }
    sums.iter().fold(0, |sum, lane| sum.wrapping_add(*lane))
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::{int32x4_t, vaddvq_s32, vdup_n_s16, vdupq_n_s8, vdupq_n_s32};
    use std::arch::asm;
    use std::hint::black_box;

    /// As many sums as hide the latency of an instruction.
    const SUMS: usize = 16;

    #[target_feature(enable = "neon,dotprod")]
    pub(super) fn sdot(rounds: u64) -> i32 {
        let (a, b) = (vdupq_n_s8(black_box(3)), vdupq_n_s8(black_box(-5)));
        let mut sums = [vdupq_n_s32(0); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                // Written out, because the standard library's function for it is not stable.
                // SAFETY: an instruction of a feature that is there; it reads and writes registers only.
                unsafe {
                    asm!(
                        "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
                        sum = inout(vreg) *sum, a = in(vreg) a, b = in(vreg) b,
                        options(pure, nomem, nostack, preserves_flags),
                    );
                }
            }
        }
        total(sums)
    }

    #[target_feature(enable = "neon")]
    pub(super) fn smlal(rounds: u64) -> i32 {
        let (a, b) = (vdup_n_s16(black_box(3)), vdup_n_s16(black_box(-5)));
        let mut sums = [vdupq_n_s32(0); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                // Written out, or the product would be made once and only added.
                // SAFETY: an instruction of a feature that is there; it reads and writes registers only.
                unsafe {
                    asm!(
                        "smlal {sum:v}.4s, {a:v}.4h, {b:v}.4h",
                        sum = inout(vreg) *sum, a = in(vreg) a, b = in(vreg) b,
                        options(pure, nomem, nostack, preserves_flags),
                    );
                }
            }
        }
        total(sums)
    }

    #[target_feature(enable = "neon")]
    fn total(sums: [int32x4_t; SUMS]) -> i32 {
        sums.into_iter().fold(0, |total, sum| total.wrapping_add(vaddvq_s32(sum)))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::{
        __cpuid_count, _mm256_add_epi32, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_set1_epi8, _mm256_set1_epi16,
        _mm256_setzero_si256, _mm512_dpbusd_epi32, _mm512_reduce_add_epi32, _mm512_set1_epi8, _mm512_setzero_si512,
    };
    use std::hint::black_box;

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn vnni(rounds: u64) -> i32 {
        let (a, b) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(-5)));
        // As many sums as hide the latency of an instruction.
        let mut sums = [_mm512_setzero_si512(); 12];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        sums.iter().fold(0, |total, sum| total.wrapping_add(_mm512_reduce_add_epi32(*sum)))
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn avx2(rounds: u64) -> i32 {
        let (a, ones) = (_mm256_set1_epi8(black_box(3)), _mm256_set1_epi16(black_box(1)));
        let mut sums = [_mm256_setzero_si256(); 8];
        for _ in 0..rounds {
            for sum in &mut sums {
                // The sum is an operand, so that no product can be taken out of the loop.
                let pairs = _mm256_maddubs_epi16(a, *sum);
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
            }
        }
        black_box(sums);
        0
    }

    /// The kernel's number for the state of tiles, and the request to use it.
    const TILE_DATA: u64 = 18;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const SYS_ARCH_PRCTL: u64 = 158;

    /// Whether the CPU has tiles of bytes, and the system lets this process use them.
    pub(super) fn has_amx() -> bool {
        if !cfg!(target_os = "linux") || __cpuid_count(0, 0).eax < 7 {
            return false;
        }
        // AMX-TILE and AMX-INT8.
        if __cpuid_count(7, 0).edx >> 24 & 3 != 3 {
            return false;
        }
        let answer: i64;
        // SAFETY: a system call that only changes what this process may do; it clobbers what is declared.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") SYS_ARCH_PRCTL => answer,
                in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") TILE_DATA,
                lateout("rcx") _, lateout("r11") _,
                options(nostack),
            );
        }
        answer == 0
    }

    /// Four products of tiles of 16 rows of 64 bytes in each round.
    ///
    /// # Safety
    /// The machine has AMX, and this process the permission to use it: [`has_amx`].
    pub(super) unsafe fn amx(rounds: u64) -> i32 {
        /// Palette 1; eight tiles of 16 rows of 64 bytes.
        #[repr(align(64))]
        struct Configuration([u8; 64]);
        let mut configuration = Configuration([0; 64]);
        configuration.0[0] = 1;
        for tile in 0..8 {
            configuration.0[16 + 2 * tile] = 64;
            configuration.0[48 + tile] = 16;
        }
        let configuration = black_box(configuration);
        // SAFETY: the caller promises that tiles exist. They are configured from 64 bytes that live until then, and
        // released at the end; no memory is written.
        unsafe {
            asm!(
                "ldtilecfg [{configuration}]",
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
                "2:",
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm1, tmm4, tmm7",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                "dec {rounds}",
                "jnz 2b",
                "tilerelease",
                configuration = in(reg) &raw const configuration,
                rounds = inout(reg) rounds => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly),
            );
        }
        0
    }
}
