//! What a GPU can do at the most.

use std::time::Duration;

use lockstep_benches::ceilings::{Roof, best_of};
use lockstep_cuda::Cuda;
use lockstep_cuda::vendor::{Element, VendorProduct};
use lockstep_cuda::yardstick::Copying;
use serde_json::{Value, json};

use crate::exit::{Exit, Failure, OrExit};

/// Bytes that are copied at a time: far more than any cache holds.
const COPY_BYTES: usize = 1 << 30;
/// Copies of a sample, and products.
const TIMES: usize = 16;
/// Rows and columns of the vendor's matrices.
const SIZE: usize = 8_192;

/// A GPU's ceilings, in one run with what is held against them.
pub struct DeviceRoof {
    /// What ops are held against.
    pub roof: Roof,
    /// For people.
    pub summary: String,
    /// For programs.
    pub details: Vec<(&'static str, Value)>,
}

/// Measures how fast the device copies, and how fast the vendor's library multiplies where it is installed.
pub fn measure(cuda: &Cuda, budget: Duration) -> Result<DeviceRoof, Failure> {
    let copying = Copying::new(cuda.device(), COPY_BYTES).or_exit(Exit::NoDevice)?;
    let [int8, bf16] = Element::ALL.map(|element| cuda.vendor_product(element, SIZE));
    let missing = [&int8, &bf16].into_iter().find_map(|made| made.as_ref().err().map(ToString::to_string));
    let copied = best_of(|| copying.run(&**cuda.device(), TIMES), budget).or_exit(Exit::NoDevice)?;
    let int8 = rate_of(int8.ok(), budget)?;
    let bf16 = rate_of(bf16.ok(), budget)?;
    let roof = Roof { memory: 2.0 * (COPY_BYTES * TIMES) as f64 / copied, int8 };
    let rate = |rate: Option<f64>| rate.map_or("not measured".into(), |rate| format!("{:.0} TOP/s", rate / 1e12));
    let mut summary = format!(
        "ceilings: copy {:.0} GB/s both ways counted, cuBLASLt int8 {}, bf16 {}",
        roof.memory / 1e9,
        rate(roof.int8),
        rate(bf16)
    );
    if let Some(why) = &missing {
        summary += &format!(" ({why})");
    }
    let details = vec![
        ("ceiling_gigabytes_per_second", json!(roof.memory / 1e9)),
        ("ceiling_tera_ops_per_second", json!(roof.int8.map(|rate| rate / 1e12))),
        ("vendor_bf16_tera_ops_per_second", json!(bf16.map(|rate| rate / 1e12))),
        ("vendor_missing", json!(missing)),
    ];
    Ok(DeviceRoof { roof, summary, details })
}

/// Operations a second of a product that is there.
fn rate_of(product: Option<VendorProduct>, budget: Duration) -> Result<Option<f64>, Failure> {
    let Some(product) = product else { return Ok(None) };
    let seconds = best_of(|| product.run(TIMES), budget).or_exit(Exit::NoDevice)?;
    Ok(Some(2.0 * (SIZE as f64).powi(3) * TIMES as f64 / seconds))
}
