//! Choosing a backend by name.

use std::num::NonZeroUsize;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use lockstep_kernels::backend::Backend;
use lockstep_kernels::cpu::{Cpu, Path};
use lockstep_kernels::reference::Reference;

use crate::exit::{Exit, Failure, OrExit};

/// Names that [`open`] takes.
pub const NAMES: &str = "cpu, cpu/avx512-vnni, cpu/avx2, cpu/portable, reference";

/// Threads of this machine.
pub fn all_threads() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// The backend of that name. `cpu` takes the fastest path of this machine; `cpu/PATH` forces one.
///
/// # Errors
/// [`Exit::Configuration`] for a name that does not exist, [`Exit::NoDevice`] where the machine lacks the path.
pub fn open(name: &str, threads: NonZeroUsize) -> Result<Arc<dyn Backend>, Failure> {
    let path = match name {
        "reference" => return Ok(Arc::new(Reference)),
        "cpu" => None,
        _ => {
            let path = name.strip_prefix("cpu/").and_then(Path::from_name);
            Some(
                path.ok_or_else(|| anyhow!("there is no backend {name:?}; there are {NAMES}"))
                    .or_exit(Exit::Configuration)?,
            )
        }
    };
    let cpu = Cpu::new(path, threads.get()).with_context(|| format!("backend {name}")).or_exit(Exit::NoDevice)?;
    Ok(Arc::new(cpu))
}
