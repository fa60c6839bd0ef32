//! What a worker may compute in, and whether a model has room in it.

use lockstep_kernels::backend::Backend;
use lockstep_kernels::program::Program;
use lockstep_model::generation::Limits;

use crate::config::Config;
use crate::error::WorkerError;

/// What a worker may compute in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Bytes of all devices together, which share a model that fits none of them; 0 where nobody knows.
    pub total: u64,
    /// Bytes that generations on one model may take of it.
    pub generations: u64,
}

impl Memory {
    /// Of devices with so many bytes each, 0 where nobody knows, and of what the operator said of generations.
    ///
    /// # Errors
    /// Generations would leave no memory for a model.
    pub fn of(devices: &[u64], generation_bytes: Option<u64>) -> Result<Self, WorkerError> {
        let is_known = !devices.contains(&0);
        let total = if is_known { devices.iter().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes)) } else { 0 };
        // A model may lie on any device, whole.
        let least = devices.iter().copied().min().unwrap_or(0);
        let generations = generation_bytes.unwrap_or_else(|| self::generation_bytes(least));
        if total > 0 && generations >= total {
            return Err(WorkerError::Config(format!(
                "--generation-bytes {generations} leaves no memory for a model: this worker has {total} bytes in all"
            )));
        }
        Ok(Self { total, generations })
    }

    /// Whether there is room for a model's parameters, and for its generations. An encoder takes none for these.
    pub fn check(self, program: &Program) -> Result<(), String> {
        let Self { total, generations } = self;
        let bytes = program.params.iter().map(|param| param.bytes().unwrap_or(u64::MAX));
        let params = bytes.fold(0, u64::saturating_add);
        let (least, generations) =
            if program.is_decoder() { (Limits::least_bytes(program), generations) } else { (0, 0) };
        if generations < least {
            return Err(format!(
                "--generation-bytes must be at least {least} to generate with it, and --memory-bytes {params} more for its \
                 parameters; this worker has {generations} for generations, which is a quarter of its memory unless it is said"
            ));
        }
        if total > 0 && params.saturating_add(generations) > total {
            return Err(format!(
                "its parameters take {params} bytes, and generations may take {generations} more: this worker has {total} \
                 (--memory-bytes, --generation-bytes)"
            ));
        }
        Ok(())
    }
}

/// What there is to compute in: the memory of each device that has its own, and the machine's for all that have none.
pub(crate) fn devices(config: &Config, backend: &dyn Backend) -> Vec<u64> {
    let members = backend.members();
    let devices: Vec<Option<u64>> = match members.is_empty() {
        true => vec![backend.memory_bytes()],
        false => members.iter().map(|member| member.backend.memory_bytes()).collect(),
    };
    let of_machine = devices.contains(&None).then(machine_memory);
    let within = |there: u64| match config.memory_bytes {
        Some(most) if there > 0 => most.min(there),
        Some(most) => most,
        None => there,
    };
    devices.into_iter().flatten().chain(of_machine).map(within).collect()
}

/// What one model may take to generate text by default: a quarter of this memory, or 4 GiB where nobody knows how much
/// there is.
pub fn generation_bytes(memory: u64) -> u64 {
    if memory == 0 { 4 << 30 } else { memory / 4 }
}

/// Memory of this machine in bytes; 0 where it does not say.
pub fn machine_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|rest| rest.trim().strip_suffix("kB")).and_then(|kib| kib.trim().parse::<u64>().ok());
    kib.map_or(0, |kib| kib.saturating_mul(1_024))
}

#[cfg(test)]
mod tests {
    use lockstep_kernels::conformance::encoder;

    use super::*;

    #[test]
    fn devices_have_room_for_a_model_together_and_generations_leave_some() {
        let of = |devices: &[u64], said| Memory::of(devices, said).ok().map(|it| (it.total, it.generations));
        assert_eq!(of(&[800], None), Some((800, 200)));
        // A quarter of the smallest, and room for what fits none of them.
        assert_eq!(of(&[800, 400], None), Some((1_200, 100)));
        assert_eq!(of(&[800, 400], Some(700)), Some((1_200, 700)));
        assert_eq!(of(&[800, 0], Some(5_000)), Some((0, 5_000)), "nobody knows");
        assert_eq!(of(&[800, 400], Some(1_200)), None);
        assert_eq!(of(&[u64::MAX, 9], None), Some((u64::MAX, 2)));
        let program = encoder(64, 2, 128, 1, false, &[4]).program;
        let params: u64 = program.params.iter().map(|param| param.bytes().unwrap()).sum();
        for (devices, fits) in [(vec![params - 1], false), (vec![params - 5, 5], true), (vec![0], true)] {
            assert_eq!(Memory::of(&devices, Some(1)).unwrap().check(&program).is_ok(), fits, "{devices:?}");
        }
    }
}
