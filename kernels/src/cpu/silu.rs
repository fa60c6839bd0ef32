//! SiLU (SPEC 5.9).

use std::sync::LazyLock;

use super::CpuKernels;
use super::table::Steps;
use crate::tables::SIGMOID;

static STEPS: LazyLock<Steps> = LazyLock::new(|| Steps::new(&SIGMOID));

/// Twin of [`crate::reference::silu::silu`].
pub(super) fn silu(cpu: &CpuKernels, input: &[i32], frac: u32, out: &mut [i32]) {
    STEPS.times_all(cpu, input, frac, out);
}
