//! The backend: a device, and how it multiplies.

use std::sync::Arc;

use lockstep_kernels::backend::{Backend, BackendError, Executor};
use lockstep_kernels::budget::{Budget, Holding};
use lockstep_kernels::program::{Param, Program};
use lockstep_kernels::value::Params;

use crate::device::Device;
use crate::driver::Driver;
use crate::executor::DeviceExecutor;
use crate::vendor::{Element, VendorProduct};

/// What a matrix product of many rows runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Products {
    /// `dp4a`: integer units, from compute capability 6.1 on.
    Dp4a,
    /// `mma.sync` on bytes: tensor cores, from 8.0 on.
    Mma,
    /// `wgmma` on bytes, fed by asynchronous copies: at 9.0 alone.
    Wgmma,
}

impl Products {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Dp4a, Self::Mma, Self::Wgmma];

    /// As in `cuda/mma`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dp4a => "dp4a",
            Self::Mma => "mma",
            Self::Wgmma => "wgmma",
        }
    }

    /// The one of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.name() == name)
    }

    /// The least compute capability that has it.
    pub(crate) const fn capability(self) -> (u32, u32) {
        match self {
            Self::Dp4a => (6, 1),
            Self::Mma => (8, 0),
            Self::Wgmma => (9, 0),
        }
    }

    /// Whether devices of that compute capability have it. Those after 9.0 lack `wgmma`.
    fn is_had_by(self, capability: (u32, u32)) -> bool {
        if self == Self::Wgmma { capability == self.capability() } else { capability >= self.capability() }
    }

    /// The fastest that a device has, or the one that is asked for.
    fn choose(wanted: Option<Self>, device: &dyn Device) -> Result<Self, BackendError> {
        let has = |p: &Self| p.is_had_by(device.capability());
        let found = wanted.or_else(|| Self::ALL.into_iter().rev().find(has)).unwrap_or(Self::Dp4a);
        if has(&found) {
            return Ok(found);
        }
        let ((need, need_minor), (major, minor)) = (found.capability(), device.capability());
        Err(BackendError::Unavailable(format!(
            "{} needs compute capability {need}.{need_minor}, and {} has {major}.{minor}",
            found.name(),
            device.name()
        )))
    }
}

/// The CUDA kernels on one device.
#[derive(Clone)]
pub struct Cuda {
    device: Arc<dyn Device>,
    products: Products,
    /// The device once more, where it is a real one.
    driver: Option<Arc<Driver>>,
    graphs: bool,
    budget: Budget,
}

impl Cuda {
    /// The GPU of that number, with the fastest products that it has or with those asked for.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] where there is no driver, no such GPU, or no such products on it;
    /// [`BackendError::Device`] where the driver fails.
    pub fn open(ordinal: u32, products: Option<Products>) -> Result<Self, BackendError> {
        let driver = Arc::new(Driver::open(ordinal)?);
        Ok(Self { driver: Some(Arc::clone(&driver)), ..Self::on(driver, products)? })
    }

    /// On any device.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] where it lacks the products.
    pub fn on(device: Arc<dyn Device>, products: Option<Products>) -> Result<Self, BackendError> {
        let products = Products::choose(products, &*device)?;
        let budget = Budget::new(&device.name(), device.memory_bytes());
        Ok(Self { device, products, driver: None, graphs: true, budget })
    }

    /// With no more memory for models than this, whatever the device has.
    #[must_use]
    pub fn within(self, bytes: u64) -> Self {
        let bytes = self.budget.bytes().map_or(bytes, |there| there.min(bytes));
        Self { budget: Budget::new(&self.device.name(), Some(bytes)), ..self }
    }

    /// With every kernel launched by itself: no pass of a decoder is launched whole, and none becomes a graph.
    #[must_use]
    pub fn without_graphs(self) -> Self {
        Self { graphs: false, ..self }
    }

    /// What it runs on.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// The vendor's own product of matrices of that size on the same device.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] where its library is not installed or the device is no real one, else as it fails.
    pub fn vendor_product(&self, element: Element, size: usize) -> Result<VendorProduct, BackendError> {
        let no_gpu = || BackendError::Unavailable(format!("{} is no GPU", self.device.name()));
        VendorProduct::new(self.driver.as_ref().ok_or_else(no_gpu)?, element, size)
    }
}

impl Backend for Cuda {
    fn name(&self) -> String {
        let graphs = if self.graphs { "" } else { " without graphs" };
        format!("cuda/{}{graphs} on {}", self.products.name(), self.device.name())
    }

    fn memory_bytes(&self) -> Option<u64> {
        self.budget.bytes()
    }

    fn free_bytes(&self) -> Option<u64> {
        self.budget.free()
    }

    fn load(&self, program: Arc<Program>, params: Arc<dyn Params>) -> Result<Box<dyn Executor>, BackendError> {
        program.validate()?;
        let bytes = program.params.iter().filter_map(Param::bytes).fold(0, u64::saturating_add);
        let taken = self.budget.take(bytes, "the weights of the model")?;
        let executor = DeviceExecutor::new(Arc::clone(&self.device), self.products, program, &*params)?;
        let executor = if self.graphs { executor } else { executor.without_graphs() };
        Ok(Box::new(Holding::new(executor, taken)))
    }
}
