//! Choosing a backend by name.

use std::num::NonZeroUsize;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use lockstep_kernels::backend::Backend;
use lockstep_kernels::cpu::{Cpu, Path};
use lockstep_kernels::reference::Reference;
use lockstep_sim::adversary::{Lie, LyingBackend};

use crate::exit::{Exit, Failure, OrExit};

/// Names that [`open`] takes.
pub const NAMES: &str = "cpu, cpu/amx-int8, cpu/avx512-vnni, cpu/avx2, cpu/portable, reference";

/// Threads of this machine.
pub fn all_threads() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// A backend of this machine, by name.
pub enum Local {
    /// The scalar reference.
    Reference,
    /// The fast one.
    Cpu(Cpu),
}

impl Local {
    /// The backend of that name. `cpu` takes the fastest path of this machine; `cpu/PATH` forces one.
    ///
    /// # Errors
    /// [`Exit::Configuration`] for a name that does not exist, [`Exit::NoDevice`] where the machine lacks the path.
    pub fn open(name: &str, threads: NonZeroUsize) -> Result<Self, Failure> {
        let path = match name {
            "reference" => return Ok(Self::Reference),
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
        Ok(Self::Cpu(cpu))
    }

    /// The backend itself.
    pub fn honest(&self) -> Arc<dyn Backend> {
        match self {
            Self::Reference => Arc::new(Reference),
            Self::Cpu(cpu) => Arc::new(cpu.clone()),
        }
    }

    /// The backend with lies: for the demo's cheat and for benchmarks. No worker gets it.
    pub fn lying(&self, lies: &[Lie]) -> Arc<dyn Backend> {
        match self {
            Self::Reference => Arc::new(LyingBackend::new(Reference.name(), Reference, lies)),
            Self::Cpu(cpu) => Arc::new(LyingBackend::new(cpu.name(), cpu.kernels().clone(), lies)),
        }
    }
}

/// The honest backend of that name.
///
/// # Errors
/// As of [`Local::open`].
pub fn open(name: &str, threads: NonZeroUsize) -> Result<Arc<dyn Backend>, Failure> {
    Ok(Local::open(name, threads)?.honest())
}
