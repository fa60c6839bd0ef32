//! Writes `model/vectors/*.json` anew: a part of `scripts/regenerate-vectors`.

mod case;

use std::path::Path;

use lockstep_kernels::reference::Reference;

fn main() -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors");
    std::fs::create_dir_all(&folder)?;
    let scratch = std::env::temp_dir().join(format!("lockstep-vectors-{}", std::process::id()));
    std::fs::create_dir_all(&scratch)?;
    let package = case::package(&scratch);
    for name in case::NAMES {
        let receipt = case::receipt(&package, name, &Reference);
        let (signed, path) = (&receipt.worker.receipt, folder.join(format!("{name}.json")));
        println!("{}: job {}, output root {}", path.display(), signed.job, signed.output_root);
        println!("  log-probabilities {}", signed.logprobs.map_or_else(|| "none".to_owned(), |root| root.to_string()));
        println!("  head {}, receipt digest {}", signed.head, signed.digest());
        std::fs::write(path, receipt.to_json() + "\n")?;
    }
    std::fs::remove_dir_all(scratch)
}
