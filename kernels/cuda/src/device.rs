//! What a launch runs on.

use std::fmt;
use std::sync::Arc;

use bytemuck::Pod;
use lockstep_kernels::backend::BackendError;

use crate::plan::{Launch, Node};

/// What went wrong on a device: the call that failed, and what it said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {reason}")]
pub struct DeviceError {
    /// The call, with what it was about.
    pub call: String,
    /// The device's own words.
    pub reason: String,
}

impl From<DeviceError> for BackendError {
    fn from(error: DeviceError) -> Self {
        Self::Device(error.to_string())
    }
}

/// Memory of a device, and kernels that run on it. Calls take effect in the order in which they are made; launches may
/// still run when they return, and everything that reads memory back waits for them.
pub trait Device: Send + Sync {
    /// What it is, for people.
    fn name(&self) -> String;

    /// Compute capability, as in (9, 0).
    fn capability(&self) -> (u32, u32);

    /// Multiprocessors: how many blocks that fill one can run at a time.
    fn processors(&self) -> u32;

    /// Takes memory, aligned to 256 bytes, with any contents. `bytes` is not 0.
    ///
    /// # Errors
    /// There is none left.
    fn allocate(&self, bytes: usize) -> Result<u64, DeviceError>;

    /// Gives memory back.
    fn free(&self, address: u64);

    /// Copies to the device.
    ///
    /// # Errors
    /// The device failed.
    fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Copies from the device.
    ///
    /// # Errors
    /// The device failed, now or in an earlier launch.
    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// Copies on the device, between places that do not overlap.
    ///
    /// # Errors
    /// The device failed.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), DeviceError>;

    /// Sets bytes to 0.
    ///
    /// # Errors
    /// The device failed.
    fn zero(&self, at: u64, bytes: usize) -> Result<(), DeviceError>;

    /// Starts a kernel.
    ///
    /// # Errors
    /// The device refused it.
    fn launch(&self, launch: &Launch) -> Result<(), DeviceError>;

    /// Records launches as a graph that can be started again and again, with whatever is in memory then. All memory that they name
    /// stays allocated for as long as it is started.
    ///
    /// # Errors
    /// The device has no graphs, or refused one of the launches.
    fn record(&self, nodes: &[Node]) -> Result<u64, DeviceError>;

    /// Starts the launches of a graph, each as soon as that which it waits for has ended; what is asked for later waits for all.
    ///
    /// # Errors
    /// The device refused it.
    fn replay(&self, graph: u64) -> Result<(), DeviceError>;

    /// Gives a graph back.
    fn forget(&self, graph: u64);

    /// Bytes of its memory; none where it does not say, or has none of its own.
    fn memory_bytes(&self) -> Option<u64> {
        None
    }
}

/// Memory that is given back when it is dropped.
pub struct Buffer {
    device: Arc<dyn Device>,
    address: u64,
    bytes: usize,
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:#x}", self.bytes, self.address)
    }
}

impl Buffer {
    /// Memory with any contents. Of nothing at all there is one byte, so that every buffer has an address.
    ///
    /// # Errors
    /// As of [`Device::allocate`].
    pub fn new(device: &Arc<dyn Device>, bytes: usize) -> Result<Self, DeviceError> {
        let bytes = bytes.max(1);
        Ok(Self { device: Arc::clone(device), address: device.allocate(bytes)?, bytes })
    }

    /// Memory with these contents.
    ///
    /// # Errors
    /// As of [`Device::allocate`] and [`Device::upload`].
    pub fn of<T: Pod>(device: &Arc<dyn Device>, items: &[T]) -> Result<Self, DeviceError> {
        let buffer = Self::new(device, size_of_val(items))?;
        buffer.write(items)?;
        Ok(buffer)
    }

    /// Replaces the first items.
    ///
    /// # Errors
    /// As of [`Device::upload`].
    pub fn write<T: Pod>(&self, items: &[T]) -> Result<(), DeviceError> {
        let bytes: &[u8] = bytemuck::cast_slice(items);
        assert!(bytes.len() <= self.bytes, "{} bytes into a buffer of {}", bytes.len(), self.bytes);
        if bytes.is_empty() { Ok(()) } else { self.device.upload(self.address, bytes) }
    }

    /// The first `len` items.
    ///
    /// # Errors
    /// As of [`Device::download`].
    pub fn read<T: Pod>(&self, len: usize) -> Result<Vec<T>, DeviceError> {
        let mut items = vec![T::zeroed(); len];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut items);
        assert!(bytes.len() <= self.bytes, "{} bytes out of a buffer of {}", bytes.len(), self.bytes);
        if !bytes.is_empty() {
            self.device.download(self.address, bytes)?;
        }
        Ok(items)
    }

    /// Where it is on the device.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// How much it is.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.device.free(self.address);
    }
}

/// Launches that are recorded, and given back when this is dropped.
pub struct Graph {
    device: Arc<dyn Device>,
    id: u64,
}

impl Graph {
    /// Of launches.
    ///
    /// # Errors
    /// As of [`Device::record`].
    pub fn of(device: &Arc<dyn Device>, nodes: &[Node]) -> Result<Self, DeviceError> {
        Ok(Self { device: Arc::clone(device), id: device.record(nodes)? })
    }

    /// Starts them.
    ///
    /// # Errors
    /// As of [`Device::replay`].
    pub fn replay(&self) -> Result<(), DeviceError> {
        self.device.replay(self.id)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.device.forget(self.id);
    }
}
