//! The kernels as PTX, compiled by `scripts/cuda_report.py`: text that the driver turns into code for its GPU.

macro_rules! modules {
    ($($name:literal),* $(,)?) => {
        /// Name and text of every module, in the order of [`MODULES`](crate::plan::MODULES).
        pub(crate) const PTX: [(&str, &str); 23] = [$(($name, include_str!(concat!("../ptx/", $name, ".ptx")))),*];
    };
}

modules!(
    "add",
    "append",
    "attention",
    "attention_mma",
    "chunks",
    "embed",
    "first_pool",
    "gather",
    "gelu",
    "l2_normalize",
    "layer_norm",
    "matmul",
    "matmul_mma",
    "matmul_wgmma",
    "mean_pool",
    "multiply",
    "quantize",
    "rms_norm",
    "rope",
    "row_steps",
    "sample",
    "shift",
    "silu",
);

#[cfg(test)]
mod tests {
    use super::PTX;
    use crate::plan::MODULES;

    /// Each module has the kernels that plans launch, in the text that drivers of CUDA 12 take.
    #[test]
    fn modules_have_their_kernels() {
        assert_eq!(PTX.map(|(name, _)| name), MODULES.map(|(name, _)| name));
        for ((name, text), (_, kernels)) in PTX.iter().zip(MODULES) {
            let entries: Vec<_> = text.lines().filter_map(|l| l.split(".entry ").nth(1)).collect();
            let mut entries: Vec<_> = entries.iter().filter_map(|l| l.split('(').next()).collect();
            let mut kernels = kernels.to_vec();
            entries.sort_unstable();
            kernels.sort_unstable();
            assert_eq!(entries, kernels, "{name}");
            let version = text.lines().find_map(|l| l.strip_prefix(".version ")).expect("PTX has a version");
            let (major, minor) = version.split_once('.').expect("major and minor");
            let version: (u32, u32) = (major.parse().expect("a number"), minor.parse().expect("a number"));
            assert!(version <= (8, 4), "{name} is PTX {version:?}");
            let target = match *name {
                "attention_mma" | "matmul_mma" => "sm_80",
                "matmul_wgmma" => "sm_90a",
                _ => "sm_61",
            };
            assert!(text.lines().any(|l| l == format!(".target {target}")), "{name} is not for {target}");
        }
    }
}
