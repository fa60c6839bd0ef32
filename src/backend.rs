//! Choosing a backend by name.

use std::num::NonZeroUsize;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use lockstep_cuda::{Cuda, Gpu, Products, gpus};
use lockstep_kernels::backend::{Backend, Member};
use lockstep_kernels::cpu::{Cpu, Path};
use lockstep_kernels::joined::Joined;
use lockstep_kernels::reference::Reference;
use lockstep_shaders::{Adapter, Options, Variant, Wgpu, adapters};
use lockstep_sim::adversary::{Lie, LyingBackend};

use crate::exit::{Exit, Failure, OrExit};

/// Names that [`open`] takes.
pub const NAMES: &str = "cpu, cpu/amx-int8, cpu/avx512-vnni, cpu/avx2, cpu/neon-dotprod, cpu/neon, cpu/portable, cuda, \
    cuda/N, cuda/wgmma, cuda/mma, cuda/dp4a, cuda/no-graphs, wgpu, wgpu/N, wgpu+int64, wgpu+int64/N, wgpu+subgroups, wgpu+subgroups/N, reference; \
    and A+B for several joined, which share the layers of a model that fits none of them";

/// The variant of `cuda` that launches every kernel by itself.
const NO_GRAPHS: &str = "no-graphs";

/// Threads of this machine.
pub fn all_threads() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Most threads that anybody may ask for: no machine has more, and each is started.
const MAX_THREADS: usize = 1_024;

/// A number of threads, as an argument has it.
pub fn threads(text: &str) -> Result<NonZeroUsize, String> {
    let number: Option<NonZeroUsize> = text.parse().ok();
    number.filter(|n| n.get() <= MAX_THREADS).ok_or_else(|| format!("not a number from 1 to {MAX_THREADS}"))
}

/// The variants that this machine has of a backend, by name: instruction-set paths of `cpu`, what the first GPU of `cuda`
/// multiplies with and how it is without graphs, and the forms of the shaders that the first adapter of `wgpu` can run. Any other name is its own only one.
pub fn variants(name: &str) -> Vec<String> {
    match name {
        "cpu" => Path::available().into_iter().map(|path| format!("cpu/{}", path.name())).collect(),
        "cuda" => {
            let here = Products::ALL.into_iter().filter(|products| Cuda::open(0, Some(*products)).is_ok());
            let mut names: Vec<_> = here.map(|products| format!("cuda/{}", products.name())).collect();
            // Where there is none, opening the backend says why.
            names.push(if names.is_empty() { name.to_owned() } else { format!("cuda/{NO_GRAPHS}") });
            names
        }
        "wgpu" => {
            let first = adapters().into_iter().find(|adapter| adapter.reason.is_none());
            // Where there is none, opening it says why.
            let variants = first.map_or_else(|| vec![Variant::Portable], |adapter| adapter.variants);
            variants.into_iter().map(|variant| format!("wgpu{}", variant.name())).collect()
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
    /// Several of them.
    Joined(Joined),
}

impl Local {
    /// The backend of that name. `cpu` takes the fastest path of this machine, `cpu/PATH` forces one; `cuda` takes GPU 0,
    /// `cuda/N` the Nth, `cuda/PRODUCTS` forces what GPU 0 multiplies with, and `cuda/no-graphs` launches every kernel by
    /// itself; `wgpu` takes the first adapter that can be
    /// used, `wgpu/N` the Nth of `lockstep devices`, and with `+int64` or `+subgroups` they are another form of the shaders.
    /// `A+B` joins several. A device takes no more memory for models than `memory`, where that is given.
    ///
    /// # Errors
    /// [`Exit::Configuration`] for a name that does not exist, [`Exit::NoDevice`] where the machine lacks the path.
    pub fn open(name: &str, threads: NonZeroUsize, memory: Option<u64>) -> Result<Self, Failure> {
        let names = joined_names(name);
        if names.len() == 1 {
            return Self::open_one(&names[0], threads, memory);
        }
        let mut members: Vec<Member> = Vec::new();
        for name in names {
            let backend = Self::open_one(&name, threads, memory)?.honest();
            if backend.memory_bytes().is_some() && members.iter().any(|member| member.name == name) {
                return Err(anyhow!("backend {name} is joined with itself, and has its memory once"))
                    .or_exit(Exit::Configuration);
            }
            members.push(Member { name, backend });
        }
        Ok(Self::Joined(Joined::new(members)))
    }

    fn open_one(name: &str, threads: NonZeroUsize, memory: Option<u64>) -> Result<Self, Failure> {
        let unknown = || anyhow!("there is no backend {name:?}; there are {NAMES}");
        let (family, which) = name.split_once('/').map_or((name, None), |(family, which)| (family, Some(which)));
        let opened = match (family, which) {
            ("reference", None) => Ok(Self::Reference),
            ("cpu", which) => {
                let path = which.map(|path| Path::from_name(path).ok_or_else(unknown).or_exit(Exit::Configuration));
                Cpu::new(path.transpose()?, threads.get()).map(Self::Cpu)
            }
            ("cuda", which) => {
                let products = which.and_then(Products::from_name);
                let without = which == Some(NO_GRAPHS);
                let number = which.filter(|_| products.is_none() && !without).map_or(Ok(0), str::parse::<u32>);
                let number = number.map_err(|_| unknown()).or_exit(Exit::Configuration)?;
                let within = |cuda: Cuda| if let Some(bytes) = memory { cuda.within(bytes) } else { cuda };
                let graphs = |cuda: Cuda| if without { cuda.without_graphs() } else { cuda };
                Cuda::open(number, products).map(within).map(graphs).map(Self::Cuda)
            }
            (family, which) if variant_of(family).is_some() => {
                let adapter = which.map(|n| n.parse::<usize>().map_err(|_| unknown()).or_exit(Exit::Configuration));
                let (adapter, variant) = (adapter.transpose()?, variant_of(family).unwrap_or_default());
                Wgpu::open(Options { adapter, variant, memory_bytes: memory, ..Options::default() }).map(Self::Wgpu)
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
            Self::Joined(joined) => Arc::new(joined.clone()),
        }
    }

    /// The backend with lies: for the demo's cheat and for benchmarks. No worker gets it. In place of a GPU, or of several
    /// backends, the reference lies, which has the same bytes otherwise.
    pub fn lying(&self, lies: &[Lie]) -> Arc<dyn Backend> {
        match self {
            Self::Reference | Self::Cuda(_) | Self::Wgpu(_) | Self::Joined(_) => {
                Arc::new(LyingBackend::new(Reference.name(), Reference, lies))
            }
            Self::Cpu(cpu) => Arc::new(LyingBackend::new(cpu.name(), cpu.kernels().clone(), lies)),
        }
    }
}

/// The names in one that joins several: `cuda/0+wgpu+int64/1` has two, because `+int64` is a form of the shaders.
fn joined_names(name: &str) -> Vec<String> {
    let is_form = |part: &str| {
        let form = part.split_once('/').map_or(part, |(form, _)| form);
        Variant::ALL.into_iter().any(|variant| variant.name().strip_prefix('+') == Some(form))
    };
    let mut names: Vec<String> = Vec::new();
    for part in name.split('+').map(str::trim) {
        match names.last_mut() {
            Some(last) if is_form(part) => *last = format!("{last}+{part}"),
            _ => names.push(part.to_owned()),
        }
    }
    names
}

/// The form of the shaders that a name asks for; none of another backend's name.
fn variant_of(family: &str) -> Option<Variant> {
    Variant::ALL.into_iter().find(|variant| family.strip_prefix("wgpu") == Some(variant.name()))
}

/// The honest backend of that name.
///
/// # Errors
/// As of [`Local::open`].
pub fn open(name: &str, threads: NonZeroUsize) -> Result<Arc<dyn Backend>, Failure> {
    open_within(name, threads, None)
}

/// The honest backend of that name, with a limit to what it takes of its device's memory.
///
/// # Errors
/// As of [`Local::open`].
pub fn open_within(name: &str, threads: NonZeroUsize, memory: Option<u64>) -> Result<Arc<dyn Backend>, Failure> {
    Ok(Local::open(name, threads, memory)?.honest())
}

/// What `auto` stands for on a machine: all GPUs of the first kind that it has joined, where they are several; its devices in
/// the order in which they are worth trying; and the processor after all of them. Drivers that compute on the processor
/// themselves are not among them.
pub fn in_order(gpus: &[Gpu], adapters: &[Adapter]) -> Vec<String> {
    let usable = |reason: &Option<String>| reason.is_none();
    let gpus: Vec<_> =
        gpus.iter().filter(|gpu| usable(&gpu.reason)).map(|gpu| format!("cuda/{}", gpu.number)).collect();
    let adapters = adapters.iter().enumerate();
    let adapters: Vec<_> =
        adapters.filter(|(_, adapter)| usable(&adapter.reason) && adapter.kind != "software").collect();
    let named = |(number, _): &(usize, &Adapter)| format!("wgpu/{number}");
    // One GPU may be listed once for each interface that it is reached by, and others may share the processor's memory.
    let first = adapters.first().filter(|(_, first)| first.kind == "discrete gpu");
    let alike = |(_, adapter): &&(usize, &Adapter)| {
        first.is_some_and(|(_, first)| (first.kind, &first.api) == (adapter.kind, &adapter.api))
    };
    let alike = if gpus.is_empty() { adapters.iter().filter(alike).map(named).collect() } else { gpus.clone() };
    let joined = (alike.len() > 1).then(|| alike.join("+"));
    joined.into_iter().chain(gpus).chain(adapters.iter().map(named)).chain(["cpu".to_owned()]).collect()
}

/// The names in a list of them, where `auto` is what this machine has ([`in_order`]).
pub fn names(list: &str) -> Vec<String> {
    let named = |name: &str| match name.trim() {
        // A machine without NVIDIA's driver has none of its GPUs.
        "auto" => in_order(&gpus().unwrap_or_default(), &adapters()),
        name => vec![name.to_owned()],
    };
    list.split(',').flat_map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(number: u32, reason: Option<&str>) -> Gpu {
        let reason = reason.map(str::to_owned);
        Gpu { number, name: "a GPU".into(), capability: (8, 0), memory_bytes: 1 << 33, reason }
    }

    fn adapter(kind: &'static str, reason: Option<&str>) -> Adapter {
        Adapter {
            name: "an adapter".into(),
            api: "vulkan".into(),
            kind,
            driver: "a driver".into(),
            binding_bytes: 1 << 27,
            memory_bytes: None,
            variants: vec![Variant::Portable],
            reason: reason.map(str::to_owned),
        }
    }

    #[test]
    fn devices_come_before_the_processor_and_what_can_not_be_used_does_not_come() {
        let gpus = [gpu(0, Some("too old")), gpu(1, None), gpu(2, None)];
        let adapters =
            [adapter("discrete gpu", None), adapter("integrated gpu", Some("no")), adapter("software", None)];
        assert_eq!(in_order(&gpus, &adapters), ["cuda/1+cuda/2", "cuda/1", "cuda/2", "wgpu/0", "cpu"]);
        assert_eq!(in_order(&[], &adapters[2..]), ["cpu"]);
    }

    #[test]
    fn gpus_of_the_first_kind_are_joined_where_they_are_several() {
        let (gpu, of) = ([gpu(0, None)], |kind| adapter(kind, None));
        let two = [of("discrete gpu"), of("discrete gpu"), of("integrated gpu")];
        assert_eq!(in_order(&[], &two), ["wgpu/0+wgpu/1", "wgpu/0", "wgpu/1", "wgpu/2", "cpu"]);
        assert_eq!(in_order(&gpu, &two), ["cuda/0", "wgpu/0", "wgpu/1", "wgpu/2", "cpu"]);
        // One GPU by two interfaces, and two that share one memory.
        let twice = [of("discrete gpu"), Adapter { api: "dx12".into(), ..of("discrete gpu") }];
        assert_eq!(in_order(&[], &twice), ["wgpu/0", "wgpu/1", "cpu"]);
        assert_eq!(in_order(&[], &[of("integrated gpu"), of("integrated gpu")]), ["wgpu/0", "wgpu/1", "cpu"]);
    }

    #[test]
    fn a_plus_joins_and_forms_of_shaders_keep_theirs() {
        assert_eq!(joined_names("cpu"), ["cpu"]);
        assert_eq!(joined_names("cuda/0+cuda/1 + cpu/avx2"), ["cuda/0", "cuda/1", "cpu/avx2"]);
        assert_eq!(joined_names("wgpu+int64/1"), ["wgpu+int64/1"]);
        assert_eq!(joined_names("wgpu+subgroups+wgpu+int64/1+wgpu/0"), ["wgpu+subgroups", "wgpu+int64/1", "wgpu/0"]);
        assert_eq!(joined_names("wgpu+"), ["wgpu", ""]);
        let told = |name| Local::open(name, NonZeroUsize::MIN, None).err().map(|failure| failure.error.to_string());
        assert_eq!(told("cpu+reference"), None);
        assert!(told("cpu+nothing").is_some_and(|why| why.contains("\"nothing\"")));
        assert!(told("cpu+").is_some_and(|why| why.contains("\"\"")));
    }

    #[test]
    fn lists_of_names_keep_their_order() {
        assert_eq!(names("wgpu/1, reference,cpu/avx2"), ["wgpu/1", "reference", "cpu/avx2"]);
        assert_eq!(names("reference,auto").first().map(String::as_str), Some("reference"));
        assert_eq!(names("auto").last().map(String::as_str), Some("cpu"));
    }

    #[test]
    fn names_of_shaders_are_their_forms() {
        assert_eq!(variant_of("wgpu"), Some(Variant::Portable));
        assert_eq!(variant_of("wgpu+int64"), Some(Variant::Int64));
        assert_eq!(variant_of("wgpu+subgroups"), Some(Variant::Subgroups));
        assert_eq!(variant_of("wgpu+"), None);
        assert_eq!(variant_of("cpu"), None);
    }
}
