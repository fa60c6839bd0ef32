//! Choosing a backend by name.

use std::num::NonZeroUsize;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use lockstep_cuda::{Cuda, Products};
use lockstep_kernels::backend::Backend;
use lockstep_kernels::cpu::{Cpu, Path};
use lockstep_kernels::reference::Reference;
use lockstep_shaders::{Options, Wgpu, adapters};
use lockstep_sim::adversary::{Lie, LyingBackend};

use crate::exit::{Exit, Failure, OrExit};

/// Names that [`open`] takes.
pub const NAMES: &str = "cpu, cpu/amx-int8, cpu/avx512-vnni, cpu/avx2, cpu/neon-dotprod, cpu/neon, cpu/portable, cuda, \
    cuda/N, cuda/wgmma, cuda/mma, cuda/dp4a, wgpu, wgpu/N, wgpu+int64, wgpu+int64/N, reference";

/// Threads of this machine.
pub fn all_threads() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// The variants that this machine has of a backend, by name: instruction-set paths of `cpu`, what the first GPU of `cuda`
/// multiplies with, and for `wgpu` also 64-bit products where the first adapter has them. Any other name is its own only one.
pub fn variants(name: &str) -> Vec<String> {
    match name {
        "cpu" => Path::available().into_iter().map(|path| format!("cpu/{}", path.name())).collect(),
        "cuda" => {
            let here = Products::ALL.into_iter().filter(|products| Cuda::open(0, Some(*products)).is_ok());
            let names: Vec<_> = here.map(|products| format!("cuda/{}", products.name())).collect();
            // Where there is none, opening the backend says why.
            if names.is_empty() { vec![name.to_owned()] } else { names }
        }
        "wgpu" => {
            let first = adapters().into_iter().find(|adapter| adapter.reason.is_none());
            let int64 = first.is_some_and(|adapter| adapter.int64).then(|| "wgpu+int64".to_owned());
            std::iter::once(name.to_owned()).chain(int64).collect()
        }
        _ => vec![name.to_owned()],
    }
}

/// A backend of this machine, by name.
pub enum Local {
    /// The scalar reference.
    Reference,
    /// The fast one.
    Cpu(Cpu),
    /// CUDA kernels on one of NVIDIA's GPUs.
    Cuda(Cuda),
    /// WGSL shaders on Vulkan, Metal or Direct3D 12.
    Wgpu(Wgpu),
}

impl Local {
    /// The backend of that name. `cpu` takes the fastest path of this machine, `cpu/PATH` forces one; `cuda` takes GPU 0,
    /// `cuda/N` the Nth, and `cuda/PRODUCTS` forces what GPU 0 multiplies with; `wgpu` takes the first adapter that can be
    /// used, `wgpu/N` the Nth of `lockstep devices`, and with `+int64` they multiply in 64 bits.
    ///
    /// # Errors
    /// [`Exit::Configuration`] for a name that does not exist, [`Exit::NoDevice`] where the machine lacks the path.
    pub fn open(name: &str, threads: NonZeroUsize) -> Result<Self, Failure> {
        let unknown = || anyhow!("there is no backend {name:?}; there are {NAMES}");
        let (family, which) = name.split_once('/').map_or((name, None), |(family, which)| (family, Some(which)));
        let opened = match (family, which) {
            ("reference", None) => Ok(Self::Reference),
            ("cpu", which) => {
                let path = which.map(|path| Path::from_name(path).ok_or_else(unknown).or_exit(Exit::Configuration));
                Cpu::new(path.transpose()?, threads.get()).map(Self::Cpu)
            }
            ("cuda", None) => Cuda::open(0, None).map(Self::Cuda),
            ("cuda", Some(which)) => match (which.parse::<u32>(), Products::from_name(which)) {
                (Ok(gpu), _) => Cuda::open(gpu, None).map(Self::Cuda),
                (_, Some(products)) => Cuda::open(0, Some(products)).map(Self::Cuda),
                _ => return Err(unknown()).or_exit(Exit::Configuration),
            },
            ("wgpu" | "wgpu+int64", which) => {
                let adapter = which.map(|n| n.parse::<usize>().map_err(|_| unknown()).or_exit(Exit::Configuration));
                let options =
                    Options { adapter: adapter.transpose()?, int64: family == "wgpu+int64", ..Options::default() };
                Wgpu::open(options).map(Self::Wgpu)
            }
            _ => return Err(unknown()).or_exit(Exit::Configuration),
        };
        opened.with_context(|| format!("backend {name}")).or_exit(Exit::NoDevice)
    }

    /// The backend itself.
    pub fn honest(&self) -> Arc<dyn Backend> {
        match self {
            Self::Reference => Arc::new(Reference),
            Self::Cpu(cpu) => Arc::new(cpu.clone()),
            Self::Cuda(cuda) => Arc::new(cuda.clone()),
            Self::Wgpu(wgpu) => Arc::new(wgpu.clone()),
        }
    }

    /// The backend with lies: for the demo's cheat and for benchmarks. No worker gets it. In place of a GPU the reference lies,
    /// which has the same bytes otherwise.
    pub fn lying(&self, lies: &[Lie]) -> Arc<dyn Backend> {
        match self {
            Self::Reference | Self::Cuda(_) | Self::Wgpu(_) => {
                Arc::new(LyingBackend::new(Reference.name(), Reference, lies))
            }
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
