//! Memory of a device, and what the programs that are loaded there take of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::backend::{BackendError, Executor, Wrapper};

/// Memory of one device. Clones share it.
#[derive(Clone, Debug)]
pub struct Budget {
    device: Arc<str>,
    /// None where nobody knows how much there is.
    bytes: Option<u64>,
    taken: Arc<AtomicU64>,
}

impl Budget {
    /// Of a device, by the name that refusals call it.
    pub fn new(device: &str, bytes: Option<u64>) -> Self {
        Self { device: device.into(), bytes, taken: Arc::default() }
    }

    /// How much there is in all; none where nobody knows.
    pub const fn bytes(&self) -> Option<u64> {
        self.bytes
    }

    /// How much of it nothing has taken; none where nobody knows.
    pub fn free(&self) -> Option<u64> {
        self.bytes.map(|bytes| bytes.saturating_sub(self.taken.load(Ordering::Relaxed)))
    }

    /// Sets memory aside as long as what it gives lives. `what` is that which needs it.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] where there is not as much, with the numbers and what helps.
    pub fn take(&self, bytes: u64, what: &str) -> Result<Taken, BackendError> {
        let most = self.bytes.unwrap_or(u64::MAX);
        let more = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= most);
        match self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(Taken { bytes, of: Arc::clone(&self.taken) }),
            Err(taken) => Err(BackendError::Unavailable(format!(
                "{what} would take {bytes} bytes of the memory of {}, which has {most}, of which {taken} are taken: use a \
                 device with more or several (--backend A+B), or share the model's layers among workers (--pipeline-listen)",
                self.device
            ))),
        }
    }
}

/// Memory that is set aside as long as this lives.
#[derive(Debug)]
pub struct Taken {
    bytes: u64,
    of: Arc<AtomicU64>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.of.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// An executor with the memory that its parameters take.
pub struct Holding<E> {
    executor: E,
    _taken: Taken,
}

impl<E: Executor> Holding<E> {
    /// Gives the memory back with the executor.
    pub const fn new(executor: E, taken: Taken) -> Self {
        Self { executor, _taken: taken }
    }
}

impl<E: Executor> Wrapper for Holding<E> {
    fn inner(&self) -> &dyn Executor {
        &self.executor
    }

    fn inner_mut(&mut self) -> &mut dyn Executor {
        &mut self.executor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_taken_than_there_is_and_what_is_dropped_is_free_again() {
        let budget = Budget::new("a device", Some(100));
        let first = budget.take(60, "one").expect("room");
        let refused = budget.clone().take(41, "another").expect_err("too much").to_string();
        assert!(refused.contains("another would take 41 bytes of the memory of a device, which has 100, of which 60"));
        let second = budget.take(40, "what is left").expect("room");
        assert_eq!(budget.free(), Some(0));
        drop(first);
        assert_eq!((budget.bytes(), budget.free()), (Some(100), Some(60)));
        assert!(budget.take(61, "too much again").is_err());
        assert!(budget.take(60, "as much as before").is_ok());
        drop(second);
        assert!(budget.take(u64::MAX, "more than can be counted").is_err());
    }

    #[test]
    fn what_nobody_knows_has_no_end() {
        let budget = Budget::new("a device", None);
        let taken = budget.take(1 << 60, "much");
        assert!(taken.is_ok() && budget.free().is_none());
    }
}
