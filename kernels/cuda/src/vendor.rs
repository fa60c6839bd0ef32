//! NVIDIA's own matrix products (cuBLASLt), where its library is installed: what ours are measured against. Nothing is
//! computed with them.

use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use lockstep_kernels::backend::BackendError;

use crate::device::{Buffer, Device, DeviceError};
use crate::driver::Driver;

/// Memory that the library may work in.
const WORKSPACE_BYTES: usize = 32 << 20;

/// The library's `CUBLAS_OP_T`: the left operand's columns are what is multiplied, so both are read along their rows.
const TRANSPOSED: i32 = 1;

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// Bytes, into sums of 32 bits.
    Int8,
    /// `bfloat16`.
    Bf16,
}

impl Element {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Int8, Self::Bf16];

    /// As in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Bf16 => "bf16",
        }
    }

    /// Types of operands, of the result, of the factors, and of the sums.
    const fn types(self) -> (sys::cudaDataType, sys::cudaDataType, sys::cudaDataType, sys::cublasComputeType_t) {
        use sys::cublasComputeType_t::{CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32I};
        use sys::cudaDataType_t::{CUDA_R_8I, CUDA_R_16BF, CUDA_R_32F, CUDA_R_32I};
        match self {
            Self::Int8 => (CUDA_R_8I, CUDA_R_32I, CUDA_R_32I, CUBLAS_COMPUTE_32I),
            Self::Bf16 => (CUDA_R_16BF, CUDA_R_16BF, CUDA_R_32F, CUBLAS_COMPUTE_32F),
        }
    }

    /// Bytes of an operand's element, and of a result's.
    const fn sizes(self) -> [usize; 2] {
        match self {
            Self::Int8 => [1, 4],
            Self::Bf16 => [2, 2],
        }
    }

    /// One, as the type of the factors has it.
    const fn one(self) -> u32 {
        match self {
            Self::Int8 => 1,
            Self::Bf16 => 0x3f80_0000,
        }
    }
}

/// A product of two square matrices, of zeros.
pub struct VendorProduct {
    driver: Arc<Driver>,
    element: Element,
    handle: sys::cublasLtHandle_t,
    desc: sys::cublasLtMatmulDesc_t,
    operand: sys::cublasLtMatrixLayout_t,
    result: sys::cublasLtMatrixLayout_t,
    preference: sys::cublasLtMatmulPreference_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
    /// Both operands, the result, and what the library works in.
    memory: [Buffer; 4],
}

impl fmt::Debug for VendorProduct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cuBLASLt's {} product on {}", self.element.name(), self.driver.name())
    }
}

fn failed(call: &str) -> impl FnOnce(CublasError) -> DeviceError {
    move |error| DeviceError { call: call.into(), reason: error.to_string() }
}

impl VendorProduct {
    /// Of `size` rows and columns each, a multiple of 16.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] where the library is not installed; [`BackendError::Device`] where it or the driver fails.
    pub fn new(driver: &Arc<Driver>, element: Element, size: usize) -> Result<Self, BackendError> {
        // SAFETY: looks for the library and does nothing else.
        if !unsafe { sys::is_culib_present() } {
            let reason = "NVIDIA's cuBLASLt is not installed: its library (libcublasLt.so.12) was not found";
            return Err(BackendError::Unavailable(reason.into()));
        }
        Ok(Self::make(driver, element, size)?)
    }

    fn make(driver: &Arc<Driver>, element: Element, size: usize) -> Result<Self, DeviceError> {
        let device: Arc<dyn Device> = Arc::<Driver>::clone(driver);
        let [of_operand, of_result] = element.sizes().map(|bytes| bytes * size * size);
        let memory = [of_operand, of_operand, of_result, WORKSPACE_BYTES].map(|bytes| Buffer::new(&device, bytes));
        let [a, b, c, workspace] = memory;
        let memory = [a?, b?, c?, workspace?];
        memory.iter().try_for_each(|buffer| device.zero(buffer.address(), buffer.bytes()))?;
        let (operand_type, result_type, scale_type, compute) = element.types();
        let handle = result::create_handle().map_err(failed("cublasLtCreate"))?;
        let desc = result::create_matmul_desc(compute, scale_type).map_err(failed("cublasLtMatmulDescCreate"))?;
        let layout = |kind| {
            let size = size as u64;
            result::create_matrix_layout(kind, size, size, size.cast_signed())
                .map_err(failed("cublasLtMatrixLayoutCreate"))
        };
        let (operand, result) = (layout(operand_type)?, layout(result_type)?);
        let preference = result::create_matmul_pref().map_err(failed("cublasLtMatmulPreferenceCreate"))?;
        let (transposed, workspace_bytes) = (TRANSPOSED, WORKSPACE_BYTES);
        // SAFETY: what was just made, and values of the types that the attributes have.
        let algorithm = unsafe {
            use sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA as TRANSPOSE;
            use sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES as WORKSPACE;
            let value = (&raw const transposed).cast::<c_void>();
            result::set_matmul_desc_attribute(desc, TRANSPOSE, value, size_of_val(&transposed))
                .map_err(failed("cublasLtMatmulDescSetAttribute"))?;
            let value = (&raw const workspace_bytes).cast::<c_void>();
            result::set_matmul_pref_attribute(preference, WORKSPACE, value, size_of_val(&workspace_bytes))
                .map_err(failed("cublasLtMatmulPreferenceSetAttribute"))?;
            driver.enter()?;
            result::get_matmul_algo_heuristic(handle, desc, operand, operand, result, result, preference)
                .map_err(failed("cublasLtMatmulAlgoGetHeuristic"))?
                .algo
        };
        let driver = Arc::clone(driver);
        Ok(Self { driver, element, handle, desc, operand, result, preference, algorithm, memory })
    }

    /// Multiplies so many times, and waits for the last.
    ///
    /// # Errors
    /// The library or the driver failed.
    pub fn run(&self, times: usize) -> Result<(), BackendError> {
        self.driver.enter()?;
        let at = |i: usize| std::ptr::with_exposed_provenance_mut::<c_void>(self.memory[i].address() as usize);
        let (one, zero) = (self.element.one(), 0_u32);
        for _ in 0..times {
            // SAFETY: everything was made together and lives as long as this; the factors have 32 bits.
            let multiplied = unsafe {
                result::matmul(
                    self.handle,
                    self.desc,
                    (&raw const one).cast(),
                    (&raw const zero).cast(),
                    at(0),
                    self.operand,
                    at(1),
                    self.operand,
                    at(2),
                    self.result,
                    at(2),
                    self.result,
                    &raw const self.algorithm,
                    at(3),
                    WORKSPACE_BYTES,
                    self.driver.stream().cast(),
                )
            };
            multiplied.map_err(failed("cublasLtMatmul"))?;
        }
        self.memory[2].read::<u8>(1)?;
        Ok(())
    }
}

impl Drop for VendorProduct {
    fn drop(&mut self) {
        // SAFETY: made with this, and used by nothing that still runs: `run` waits. There is nobody to tell of an error.
        unsafe {
            let _ = result::destroy_matmul_pref(self.preference);
            let _ = result::destroy_matrix_layout(self.operand);
            let _ = result::destroy_matrix_layout(self.result);
            let _ = result::destroy_matmul_desc(self.desc);
            let _ = result::destroy_handle(self.handle);
        }
    }
}
