//! Small synthetic packages: sound, proven, and the same however they are made.

use super::*;
use crate::package::Package;
use crate::tokenizer::TooLong;

fn make(dir: &Path, options: &Options) -> Package {
    let file = dir.join("made.lsp");
    let shape = Shape::named("tiny").expect("a shape");
    let report = synth(shape, &file, options, &mut |_| {}).expect("a package");
    let package = Package::open_checked(&file, options.threads).expect("sound and proven");
    assert_eq!(package.model_id(), report.model_id);
    assert_eq!(std::fs::read_dir(dir).expect("a folder").count(), 1, "nothing is left beside it");
    package
}

fn options(weights: WeightMode, seed: u64, threads: usize) -> Options {
    Options { weights, seed, max_positions: Some(512), threads: NonZeroUsize::new(threads).expect("not 0") }
}

#[test]
fn a_package_follows_from_shape_mode_and_seed() {
    let ids: Vec<_> = [
        options(WeightMode::W8, 1, 1),
        options(WeightMode::W8, 1, 3),
        options(WeightMode::W8, 2, 1),
        options(WeightMode::W16, 1, 2),
    ]
    .iter()
    .map(|options| make(tempfile::tempdir().expect("a folder").path(), options).model_id())
    .collect();
    assert_eq!(ids[0], ids[1]);
    assert_ne!(ids[0], ids[2]);
    assert_ne!(ids[0], ids[3]);
}

#[test]
fn its_tokenizer_and_context() {
    let dir = tempfile::tempdir().expect("a folder");
    let package = make(dir.path(), &options(WeightMode::W8, 1, 2));
    assert_eq!(package.program().max_positions, 512);
    assert_eq!(package.program().vocab_size, 512);
    let tokenizer = package.tokenizer().expect("it loads");
    let tokens = tokenizer.encode("Zürich, etaoin!", TooLong::Refuse).expect("it fits");
    assert!(tokens.len() < "Zürich, etaoin!".len());
    let more = Options { max_positions: Some(1_025), ..options(WeightMode::W8, 1, 1) };
    let error = synth(Shape::named("tiny").expect("a shape"), &dir.path().join("no.lsp"), &more, &mut |_| {});
    assert!(error.expect_err("beyond the shape").to_string().contains("1024"));
}
