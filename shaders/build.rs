//! Links each op's shader with the modules that it imports, as the WESL standard defines imports, into one WGSL file for each
//! variant. What comes out is checked by naga, in the tests and wherever a device is opened.

use wesl::{CompileOptions, Wesl};

fn main() {
    println!("cargo::rerun-if-changed=wgsl");
    let mut compiler = Wesl::new("wgsl");
    // Its own check does not know every built-in function of WGSL.
    compiler.set_options(CompileOptions { validate: false, ..CompileOptions::default() });
    for entry in std::fs::read_dir("wgsl").expect("the folder of shaders") {
        let path = entry.expect("a readable entry").path();
        let Some(name) = path.file_stem().and_then(|s| s.to_str()).filter(|_| path.is_file()) else { continue };
        let module = format!("package::{name}").parse().expect("a name is a path");
        for variant in ["portable", "int64", "subgroups"] {
            for feature in ["int64", "subgroups"] {
                compiler.set_feature(feature, feature == variant);
            }
            compiler.build_artifact(&module, &format!("{name}_{variant}"));
        }
    }
}
