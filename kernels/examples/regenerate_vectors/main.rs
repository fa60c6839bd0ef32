//! Writes `kernels/vectors/*.json` anew: a part of `scripts/regenerate-vectors`.

mod scalars;
mod vectors;

use std::path::Path;

use lockstep_kernels::program::OP_NAMES;
use lockstep_kernels::reference::Reference;

fn main() -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors");
    std::fs::create_dir_all(&folder)?;
    let write = |name: &str, text: String| {
        let path = folder.join(format!("{name}.json"));
        println!("{} ({} bytes)", path.display(), text.len());
        std::fs::write(path, text)
    };
    for op in OP_NAMES {
        write(op, vectors::file(op, &Reference))?;
    }
    write("fixed", scalars::file())
}
