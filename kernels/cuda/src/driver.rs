//! NVIDIA's driver, found when the program runs: it builds and starts without any CUDA.

use std::collections::BTreeMap;
use std::ffi::{CString, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use lockstep_kernels::backend::BackendError;

use crate::backend::Products;
use crate::device::{Device, DeviceError};
use crate::params::TensorMap;
use crate::plan::{Launch, MODULES, Node, TensorBoxes};
use crate::ptx::PTX;

mod graph;

/// Oldest driver that takes the embedded PTX: that of CUDA 12.4.
const OLDEST_DRIVER: i32 = 12_040;

/// One GPU.
pub struct Driver {
    ordinal: u32,
    name: String,
    capability: (u32, u32),
    processors: u32,
    memory_bytes: u64,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    staging: Mutex<Staging>,
    /// Kernels by name, once their module was loaded.
    kernels: Mutex<BTreeMap<&'static str, sys::CUfunction>>,
}

/// Memory of the host that a copy may read at any later time. Small uploads are put there one after the other, and nobody waits
/// for them before it is full.
struct Staging {
    base: *mut u8,
    used: usize,
}

/// Bytes of [`Staging`], and of an upload that goes through it.
const STAGING_BYTES: usize = 8 << 20;
const MOST_STAGED: usize = 1 << 20;

// SAFETY: the handles are the driver's, which any thread may use; every call makes the context current first.
unsafe impl Send for Driver {}
// SAFETY: as above, and the map of kernels is behind a lock.
unsafe impl Sync for Driver {}

/// What failed, in the driver's words.
fn failed(call: impl Into<String>) -> impl FnOnce(DriverError) -> DeviceError {
    move |error| {
        let name = error.error_name().map_or("CUDA_ERROR".into(), |s| s.to_string_lossy().into_owned());
        let text = error.error_string().map_or(String::new(), |s| format!(", {}", s.to_string_lossy()));
        DeviceError { call: call.into(), reason: format!("{name}{text}") }
    }
}

fn unavailable(reason: String) -> BackendError {
    BackendError::Unavailable(reason)
}

impl Driver {
    /// The GPU of that number, as the driver counts them.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] where there is no driver, an older one than this program's kernels need, or no such
    /// GPU; [`BackendError::Device`] where a call fails.
    pub fn open(ordinal: u32) -> Result<Self, BackendError> {
        let count = start()?;
        let number = i32::try_from(ordinal).ok().filter(|n| *n < count);
        let Some(number) = number else {
            return Err(unavailable(format!("there is no GPU {ordinal}; NVIDIA's driver has {count}, counted from 0")));
        };
        Ok(Self::on(ordinal, number)?)
    }

    fn on(ordinal: u32, number: i32) -> Result<Self, DeviceError> {
        use sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as PROCESSORS;
        let (device, gpu) = about(ordinal, number)?;
        // SAFETY: the device is one that the driver gave.
        let processors = unsafe { result::device::get_attribute(device, PROCESSORS) };
        let processors = processors.map_err(failed("cuDeviceGetAttribute"))?.unsigned_abs();
        // SAFETY: as above; it is released when this is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(failed("cuDevicePrimaryCtxRetain"))?;
        // SAFETY: the context was just retained.
        let current = unsafe { result::ctx::set_current(context) }.map_err(failed("cuCtxSetCurrent"));
        let stream = current.and_then(|()| {
            result::stream::create(result::stream::StreamKind::NonBlocking).map_err(failed("cuStreamCreate"))
        });
        let stream = match stream {
            Ok(stream) => stream,
            Err(why) => {
                // SAFETY: retained above, and nothing uses it.
                let _ = unsafe { result::primary_ctx::release(device) };
                return Err(why);
            }
        };
        let Gpu { name, capability, memory_bytes, .. } = gpu;
        let staging = Mutex::new(Staging { base: std::ptr::null_mut(), used: 0 });
        let kernels = Mutex::default();
        let driver =
            Self { ordinal, name, capability, processors, memory_bytes, device, context, stream, staging, kernels };
        driver.keep_memory()?;
        // SAFETY: the context is current; the memory is freed when this is dropped.
        let base = unsafe { result::malloc_host(STAGING_BYTES, 0) }
            .map_err(failed(format!("cuMemHostAlloc of {STAGING_BYTES} bytes")))?;
        driver.staging().base = base.cast();
        Ok(driver)
    }

    /// Has the driver keep memory that is given back, instead of returning it to the system at the next wait.
    fn keep_memory(&self) -> Result<(), DeviceError> {
        use sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD as KEPT;
        let mut all = u64::MAX;
        // SAFETY: the device is one that the driver gave.
        let pool = unsafe { result::device::get_default_mem_pool(self.device) };
        let pool = pool.map_err(failed("cuDeviceGetDefaultMemPool"))?;
        // SAFETY: the attribute is a number of 64 bits.
        unsafe { result::mem_pool::set_attribute(pool, KEPT, (&raw mut all).cast()) }
            .map_err(failed("cuMemPoolSetAttribute"))
    }

    fn staging(&self) -> MutexGuard<'_, Staging> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies at most [`MOST_STAGED`] bytes to the device, without waiting for it.
    fn upload_staged(&self, to: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        let mut staging = self.staging();
        if staging.used + bytes.len() > STAGING_BYTES {
            self.wait("uploads before this one")?;
            staging.used = 0;
        }
        // SAFETY: the place lies within the memory, and what was copied from it before has been waited for.
        let staged = unsafe {
            let place = staging.base.add(staging.used);
            place.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            std::slice::from_raw_parts(place, bytes.len())
        };
        staging.used += bytes.len();
        // SAFETY: the caller owns the memory at `to`; the staged bytes stay until the copy has been waited for.
        unsafe { result::memcpy_htod_async(to, staged, self.stream) }
            .map_err(failed(format!("cuMemcpyHtoDAsync of {} bytes", bytes.len())))
    }

    /// Where everything runs, in order.
    pub(crate) const fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// Makes the context current for this thread.
    pub(crate) fn enter(&self) -> Result<(), DeviceError> {
        // SAFETY: the context lives as long as this.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed("cuCtxSetCurrent"))
    }

    fn wait(&self, call: &str) -> Result<(), DeviceError> {
        // SAFETY: the stream lives as long as this.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed(format!("waiting for {call}")))
    }

    /// The kernel of that name; its module is loaded when the first of its kernels is asked for.
    fn kernel(&self, name: &'static str) -> Result<sys::CUfunction, DeviceError> {
        let mut loaded = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = loaded.get(name) {
            return Ok(*kernel);
        }
        let unknown = || DeviceError { call: format!("kernel {name}"), reason: "there is none of that name".into() };
        let (module, kernels) = MODULES.iter().find(|(_, kernels)| kernels.contains(&name)).ok_or_else(unknown)?;
        let (_, text) = PTX.iter().find(|(of, _)| of == module).ok_or_else(unknown)?;
        let text = CString::new(*text).map_err(|_| unknown())?;
        // SAFETY: the text ends with a zero, and the driver copies what it needs of it.
        let handle = unsafe { result::module::load_data(text.as_ptr().cast()) };
        let handle = handle.map_err(failed(format!("cuModuleLoadData of {module}")))?;
        for kernel in *kernels {
            let c_name = CString::new(*kernel).map_err(|_| unknown())?;
            // SAFETY: the module was just loaded, and stays so as long as its context.
            let function = unsafe { result::module::get_function(handle, c_name) };
            loaded.insert(kernel, function.map_err(failed(format!("cuModuleGetFunction of {kernel}")))?);
        }
        loaded.get(name).copied().ok_or_else(unknown)
    }
}

/// One of NVIDIA's GPUs, as the driver tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its number, as in `cuda/0`.
    pub number: u32,
    /// Name.
    pub name: String,
    /// Compute capability, as in (9, 0).
    pub capability: (u32, u32),
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Why it can't be used; none where it can.
    pub reason: Option<String>,
}

/// All GPUs that NVIDIA's driver has.
///
/// # Errors
/// [`BackendError::Unavailable`] where there is no driver, or an older one than this program's kernels need;
/// [`BackendError::Device`] where a call fails.
pub fn gpus() -> Result<Vec<Gpu>, BackendError> {
    let count = start()?;
    Ok((0..count).map(|number| about(number.unsigned_abs(), number).map(|(_, gpu)| gpu)).collect::<Result<_, _>>()?)
}

/// Loads the driver, and counts its GPUs.
fn start() -> Result<i32, BackendError> {
    // SAFETY: looks for the library and does nothing else; the driver's library may be loaded.
    if !unsafe { sys::is_culib_present() } {
        return Err(unavailable(
            "NVIDIA's driver is not installed: its library (libcuda.so.1, on Windows nvcuda.dll) was not found".into(),
        ));
    }
    result::init()
        .map_err(failed("cuInit"))
        .map_err(|e| unavailable(format!("NVIDIA's driver does not start: {e}")))?;
    let version = driver_version()?;
    if version < OLDEST_DRIVER {
        let (major, minor) = (version / 1_000, version % 1_000 / 10);
        return Err(unavailable(format!("NVIDIA's driver is for CUDA {major}.{minor}; 12.4 or newer is needed")));
    }
    Ok(result::device::get_count().map_err(failed("cuDeviceGetCount"))?)
}

fn about(ordinal: u32, number: i32) -> Result<(sys::CUdevice, Gpu), DeviceError> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let device = result::device::get(number).map_err(failed("cuDeviceGet"))?;
    let name = result::device::get_name(device).map_err(failed("cuDeviceGetName"))?;
    // SAFETY: the device is one that the driver gave.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) };
    let major = attribute(MAJOR).map_err(failed("cuDeviceGetAttribute"))?;
    let minor = attribute(MINOR).map_err(failed("cuDeviceGetAttribute"))?;
    // SAFETY: as above.
    let memory = unsafe { result::device::total_mem(device) }.map_err(failed("cuDeviceTotalMem"))?;
    let capability = (major.unsigned_abs(), minor.unsigned_abs());
    let least = Products::Dp4a.capability();
    let reason = (capability < least)
        .then(|| format!("it has compute capability {major}.{minor}, and {}.{} is needed", least.0, least.1));
    Ok((device, Gpu { number: ordinal, name, capability, memory_bytes: memory as u64, reason }))
}

fn driver_version() -> Result<i32, DeviceError> {
    let mut version = 0;
    // SAFETY: writes one number to where it is told.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(failed("cuDriverGetVersion"))?;
    Ok(version)
}

/// Shared memory that a kernel may use without being allowed more.
const PLAIN_SHARED: u32 = 48 << 10;

fn allow_shared(kernel: sys::CUfunction, launch: &Launch) -> Result<(), DeviceError> {
    use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MOST_SHARED;
    if launch.shared <= PLAIN_SHARED {
        return Ok(());
    }
    let bytes = launch.shared.cast_signed();
    // SAFETY: the kernel is of a module that stays loaded.
    let allowed = unsafe { result::function::set_function_attribute(kernel, MOST_SHARED, bytes) };
    allowed.map_err(failed(format!("cuFuncSetAttribute of {}: {bytes} bytes of shared memory", launch.kernel)))
}

/// The driver's description of a tensor of bytes in boxes.
fn tensor_map(boxes: &TensorBoxes) -> Result<TensorMap, DeviceError> {
    use sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8 as BYTES;
    use sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE as ZEROS_BEYOND;
    use sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE as PLAIN;
    use sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B as PROMOTION;
    use sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B as SWIZZLE;
    let (extent, strides, of_box, every) = (boxes.extent(), boxes.strides(), boxes.box_extent(), [1; 3]);
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    let address = std::ptr::with_exposed_provenance_mut::<c_void>(boxes.address as usize);
    // SAFETY: writes the map and reads three numbers of each list, two of the strides; the address is not followed.
    let made = unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map,
            BYTES,
            extent.len() as u32,
            address,
            extent.as_ptr(),
            strides.as_ptr(),
            of_box.as_ptr(),
            every.as_ptr(),
            PLAIN,
            SWIZZLE,
            PROMOTION,
            ZEROS_BEYOND,
        )
    };
    made.result().map_err(failed(format!("cuTensorMapEncodeTiled of {boxes:?}")))?;
    Ok(TensorMap { words: map.opaque })
}

impl Drop for Driver {
    fn drop(&mut self) {
        // SAFETY: stream and context were made with this, and nothing uses them any more. What still runs is waited for;
        // there is nobody left to tell of an error.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::stream::synchronize(self.stream);
            let staging = self.staging().base;
            if !staging.is_null() {
                let _ = result::free_host(staging.cast());
            }
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

impl Device for Driver {
    fn name(&self) -> String {
        format!("{} ({})", self.name, self.ordinal)
    }

    fn capability(&self) -> (u32, u32) {
        self.capability
    }

    fn processors(&self) -> u32 {
        self.processors
    }

    fn allocate(&self, bytes: usize) -> Result<u64, DeviceError> {
        self.enter()?;
        // SAFETY: the context is current; who asks for memory gives it back to `free`.
        unsafe { result::malloc_async(self.stream, bytes) }.map_err(failed(format!("cuMemAllocAsync of {bytes} bytes")))
    }

    fn free(&self, address: u64) {
        // An error of an earlier launch shows at the next call that can report it.
        if self.enter().is_ok() {
            // SAFETY: the address came from `allocate`; what was launched before still finds the memory there.
            let _ = unsafe { result::free_async(address, self.stream) };
        }
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.enter()?;
        if bytes.len() <= MOST_STAGED {
            return self.upload_staged(to, bytes);
        }
        let call = format!("cuMemcpyHtoDAsync of {} bytes", bytes.len());
        // SAFETY: the caller owns the memory at `to`. The bytes are pageable, so the driver has read them when this returns.
        unsafe { result::memcpy_htod_async(to, bytes, self.stream) }.map_err(failed(call.as_str()))?;
        self.wait(&call)
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.enter()?;
        let call = format!("cuMemcpyDtoHAsync of {} bytes", bytes.len());
        // SAFETY: the caller owns the memory at `from`, and the copy has ended when this returns.
        unsafe { result::memcpy_dtoh_async(bytes, from, self.stream) }.map_err(failed(call.as_str()))?;
        self.wait(&call)
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: the caller owns both places.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) }
            .map_err(failed(format!("cuMemcpyDtoDAsync of {bytes} bytes")))
    }

    fn zero(&self, at: u64, bytes: usize) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: the caller owns the memory.
        unsafe { result::memset_d8_async(at, 0, bytes, self.stream) }
            .map_err(failed(format!("cuMemsetD8Async of {bytes} bytes")))
    }

    fn launch(&self, launch: &Launch) -> Result<(), DeviceError> {
        self.enter()?;
        let kernel = self.kernel(launch.kernel)?;
        allow_shared(kernel, launch)?;
        let [x, y, z] = launch.grid;
        let params = launch.params_with_maps(tensor_map)?;
        let mut argument = params.as_ptr().cast_mut().cast::<c_void>();
        let arguments = std::slice::from_mut(&mut argument);
        // SAFETY: the kernel has one parameter, the struct whose bytes `params` holds; the driver copies it before this
        // returns. The struct's addresses are of memory that the caller owns.
        unsafe {
            result::launch_kernel(kernel, (x, y, z), (launch.threads, 1, 1), launch.shared, self.stream, arguments)
        }
        .map_err(failed(format!("cuLaunchKernel of {} with grid {x} x {y} x {z}", launch.kernel)))
    }

    fn record(&self, nodes: &[Node]) -> Result<u64, DeviceError> {
        Ok(self.graph_of(nodes)?.expose_provenance() as u64)
    }

    fn replay(&self, graph: u64) -> Result<(), DeviceError> {
        self.start_graph(std::ptr::with_exposed_provenance_mut(graph as usize))
    }

    fn forget(&self, graph: u64) {
        self.destroy_graph(std::ptr::with_exposed_provenance_mut(graph as usize));
    }

    fn memory_bytes(&self) -> Option<u64> {
        Some(self.memory_bytes)
    }
}
