//! What a device can do at the most, to be timed by whoever asks: copying memory, and the vendor's own products.

use std::sync::Arc;

use lockstep_kernels::backend::BackendError;

use crate::device::{Buffer, Device};

/// A copy from one half of some memory to the other.
#[derive(Debug)]
pub struct Copying {
    from: Buffer,
    to: Buffer,
}

impl Copying {
    /// Of so many bytes, at least one.
    ///
    /// # Errors
    /// The device has no room for twice as many.
    pub fn new(device: &Arc<dyn Device>, bytes: usize) -> Result<Self, BackendError> {
        let copying = Self { from: Buffer::new(device, bytes)?, to: Buffer::new(device, bytes)? };
        device.zero(copying.from.address(), bytes)?;
        Ok(copying)
    }

    /// Copies so many times, and waits for the last. Each time twice the bytes are moved: read, and written.
    ///
    /// # Errors
    /// The device failed.
    pub fn run(&self, device: &dyn Device, times: usize) -> Result<(), BackendError> {
        for _ in 0..times {
            device.copy(self.from.address(), self.to.address(), self.from.bytes())?;
        }
        self.to.read::<u8>(1)?;
        Ok(())
    }
}
