//! GELU (SPEC 5.8).

use std::sync::LazyLock;

use super::CpuKernels;
use super::table::Steps;
use crate::tables::GAUSS;

static STEPS: LazyLock<Steps> = LazyLock::new(|| Steps::new(&GAUSS));

/// Twin of [`crate::reference::gelu::gelu`].
pub(super) fn gelu(cpu: &CpuKernels, input: &[i32], frac: u32, out: &mut [i32]) {
    STEPS.times_all(cpu, input, frac, out);
}
