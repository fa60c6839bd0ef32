//! The tile unit of AMX, by inline assembly.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::LazyLock;

use super::tiles::{Model, ROWS, Unit};
use crate::conformance::SplitMix;
use crate::cpu::packed::TILE;

/// Layout of the registers: palette 1, all eight of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: Config = Config {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

thread_local! {
    /// Units of this thread. They share the registers, which hold nothing between two products.
    static UNITS: Cell<usize> = const { Cell::new(0) };
}

/// The registers of this thread, laid out. The last unit of a thread gives them back, so that the kernel need not save
/// them any more.
pub(super) struct Amx {
    /// Stays on its thread.
    thread: PhantomData<*const ()>,
}

impl Amx {
    /// Lays the registers out. `None` where the machine lacks them, or they gave wrong answers.
    pub(super) fn new() -> Option<Self> {
        missing().is_empty().then(Self::configured)
    }

    fn configured() -> Self {
        UNITS.set(UNITS.get() + 1);
        // SAFETY: the caller has asked processor and kernel for the unit; the operand is 64 readable bytes.
        unsafe {
            asm!(
                "ldtilecfg [{}]", in(reg) &raw const CONFIG,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags, readonly)
            );
        }
        Self { thread: PhantomData }
    }
}

impl Drop for Amx {
    fn drop(&mut self) {
        UNITS.set(UNITS.get() - 1);
        if UNITS.get() == 0 {
            // SAFETY: the unit exists, or there would be no `Amx`; nobody on this thread needs the registers any more.
            unsafe {
                asm!(
                    "tilerelease",
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack, preserves_flags, nomem)
                );
            }
        }
    }
}

// Compiled code never touches the tile registers by itself, so what one statement leaves in them the next one finds.
impl Unit for Amx {
    #[inline(always)]
    fn zero<const T: usize>(&mut self) {
        // SAFETY: the registers are laid out.
        unsafe { asm!("tilezero tmm{}", const T, options(nostack, preserves_flags, nomem)) };
    }

    #[inline(always)]
    fn load<const T: usize>(&mut self, bytes: &[u8], stride: usize) {
        assert!(stride < 1 << 32 && bytes.len() >= (ROWS - 1) * stride + 64);
        // SAFETY: the registers are laid out, and all 16 rows lie in the slice.
        unsafe {
            asm!(
                "tileloadd tmm{t}, [{base} + {stride}*1]",
                t = const T, base = in(reg) bytes.as_ptr(), stride = in(reg) stride,
                options(nostack, preserves_flags, readonly)
            );
        }
    }

    #[inline(always)]
    fn dot<const C: usize, const A: usize, const B: usize>(&mut self) {
        // SAFETY: the registers are laid out, and the three are different ones in every kernel.
        unsafe {
            asm!(
                "tdpbusd tmm{c}, tmm{a}, tmm{b}",
                c = const C, a = const A, b = const B,
                options(nostack, preserves_flags, nomem)
            );
        }
    }

    #[inline(always)]
    fn store<const T: usize>(&mut self, out: &mut [[i32; TILE]], stride: usize) {
        assert!(stride < 1 << 16 && out.len() > (ROWS - 1) * stride);
        // SAFETY: the registers are laid out, and all 16 rows lie in the slice.
        unsafe {
            asm!(
                "tilestored [{base} + {stride}*1], tmm{t}",
                t = const T, base = in(reg) out.as_mut_ptr(), stride = in(reg) stride * size_of::<[i32; TILE]>(),
                options(nostack, preserves_flags)
            );
        }
    }
}

/// What this machine lacks of the unit; empty where it can be used.
pub(crate) fn missing() -> Vec<&'static str> {
    static MISSING: LazyLock<Option<&'static str>> = LazyLock::new(|| {
        if !std::arch::is_x86_feature_detected!("xsave") || __cpuid(0).eax < 7 {
            return Some("amx-tile");
        }
        let features = __cpuid_count(7, 0).edx;
        if features & 1 << 24 == 0 {
            return Some("amx-tile");
        }
        if features & 1 << 25 == 0 {
            return Some("amx-int8");
        }
        if !is_permitted() {
            return Some("the kernel's permission for amx-tile");
        }
        (!answers_rightly()).then_some("right answers from amx-int8")
    });
    MISSING.iter().copied().collect()
}

/// Whether the kernel saves the registers for this process; it does so for whoever asks.
fn is_permitted() -> bool {
    /// `XTILECFG` and `XTILEDATA`.
    const STATE: u64 = 3 << 17;
    // SAFETY: `xsave` was detected, which includes that the kernel has enabled it.
    if unsafe { _xgetbv(0) } & STATE != STATE {
        return false;
    }
    request()
}

#[cfg(target_os = "linux")]
fn request() -> bool {
    const ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XTILEDATA: usize = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: the call takes two numbers and reads no memory; the kernel overwrites `rcx` and `r11`.
    unsafe {
        asm!(
            "syscall", inout("rax") result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XTILEDATA,
            out("rcx") _, out("r11") _, options(nostack)
        );
    }
    result == 0
}

/// Other systems have their own ways to ask.
#[cfg(not(target_os = "linux"))]
fn request() -> bool {
    false
}

/// Whether the unit says what its model says, before it is trusted with anything.
fn answers_rightly() -> bool {
    let mut random = SplitMix::named("amx");
    let mut bytes = vec![0_u8; 3 * 16 * 64];
    (0..8).all(|round| {
        match round {
            // The extremes: 255 times -128, and 255 times -1.
            0 => bytes.iter_mut().enumerate().for_each(|(i, b)| *b = if i < 32 * 64 { 255 } else { 128 }),
            1 => bytes.fill(255),
            _ => bytes.iter_mut().for_each(|b| *b = random.range(0, 255) as u8),
        }
        let [mut expected, mut got] = [[[0; TILE]; 3 * ROWS]; 2];
        known_answer(&mut Model::new(), &bytes, &mut expected);
        known_answer(&mut Amx::configured(), &bytes, &mut got);
        expected == got
    })
}

/// Every register and every instruction, with strides that differ.
fn known_answer(unit: &mut impl Unit, bytes: &[u8], out: &mut [[i32; TILE]]) {
    unit.zero::<0>();
    unit.zero::<1>();
    unit.zero::<2>();
    unit.load::<3>(bytes, 64);
    unit.load::<4>(bytes, 128);
    unit.load::<5>(&bytes[64..], 128);
    unit.load::<6>(&bytes[1024..], 128);
    unit.load::<7>(&bytes[2048..], 64);
    unit.dot::<0, 4, 7>();
    unit.dot::<1, 5, 6>();
    unit.dot::<2, 5, 7>();
    unit.dot::<3, 4, 6>();
    unit.dot::<0, 5, 6>();
    unit.dot::<0, 3, 7>();
    unit.store::<0>(out, 3);
    unit.store::<1>(&mut out[1..], 3);
    unit.store::<2>(&mut out[2..], 3);
    let mut last = [[0; TILE]; ROWS];
    unit.store::<3>(&mut last, 1);
    for (out, last) in out.iter_mut().zip(&last) {
        out.iter_mut().zip(last).for_each(|(out, last)| *out ^= last);
    }
}
