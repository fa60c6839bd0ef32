//! A tiny BERT, imported and compared with the same network in doubles.

mod common;

use std::num::NonZeroUsize;
use std::ops::ControlFlow;

use common::{Folder, HIDDEN, LAYERS, POSITIONS, Tensors, VOCAB, distance, mean, random_tensors, run};
use lockstep_kernels::backend::Backend;
use lockstep_kernels::program::ParamId;
use lockstep_kernels::reference::Reference;
use lockstep_kernels::value::{Batch, ParamData};
use lockstep_model::ModelError;
use lockstep_model::check::check;
use lockstep_model::embed::{EmbedError, embed, to_real};
use lockstep_model::output::Wanted;
use lockstep_model::package::{BlobInfo, Package, WeightMode, write};
use lockstep_model::tokenizer::{TokenizeError, TooLong};
use safetensors::Dtype;

fn sequences() -> Vec<Vec<u32>> {
    let tokens = |n: usize, k: usize| (0..n).map(|i| ((i * i + k * 13 + i * k) % VOCAB) as u32).collect();
    [1, 2, 3, 7, 16, POSITIONS].into_iter().enumerate().map(|(k, n)| tokens(n, k)).collect()
}

fn worst(folder: &Folder, package: &Package) -> f64 {
    let error = |tokens: Vec<u32>| {
        let expected = mean(&folder.hidden(&tokens));
        let (found, saturations) = run(package, &Reference, tokens);
        assert_eq!(saturations, 0, "formats are proven");
        distance(&found, &expected)
    };
    sequences().into_iter().map(error).fold(0.0, f64::max)
}

#[test]
fn embeddings_are_those_of_the_float_model() {
    for seed in 1..4 {
        let folder = Folder::new(seed);
        let error = worst(&folder, &folder.import(WeightMode::W16).unwrap());
        assert!(error < 1e-6, "w16: {error:e}");
        let error = worst(&folder, &folder.import(WeightMode::W8).unwrap());
        assert!(error < 1e-3, "w8: {error:e}");
    }
}

#[test]
fn first_position_without_normalisation() {
    let folder = Folder::with(random_tensors(9), "cls_token", false);
    let package = folder.import(WeightMode::W16).unwrap();
    for tokens in sequences() {
        let expected = folder.hidden(&tokens).remove(0);
        let (found, _) = run(&package, &Reference, tokens);
        let error = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(error < 5e-3, "values, not only directions: {error:e}");
    }
}

#[test]
fn massive_weights_stay_in_bounds() {
    let mut tensors = random_tensors(4);
    let (_, gain) = tensors.get_mut("encoder.layer.0.output.LayerNorm.weight").unwrap();
    gain[3] = 3_000.0;
    let (_, up) = tensors.get_mut("encoder.layer.0.intermediate.dense.weight").unwrap();
    up.iter_mut().take(HIDDEN).for_each(|w| *w *= 500.0);
    let folder = Folder::with(tensors, "mean_tokens", true);
    let package = folder.import(WeightMode::W16);
    match package {
        Ok(package) => assert!(worst(&folder, &package) < 1e-2),
        Err(e) => assert!(matches!(e, ModelError::Bounds { .. }), "{e}"),
    }
}

#[test]
fn import_is_deterministic_at_every_thread_count() {
    let folder = Folder::new(5);
    for weights in [WeightMode::W16, WeightMode::W8] {
        let bytes = |threads| {
            let file = folder.path("again.lsp");
            let report = folder.import_to(&file, weights, threads).unwrap();
            (std::fs::read(file).unwrap(), report.model_id)
        };
        let first = bytes(1);
        assert!(first == bytes(1) && first == bytes(2) && first == bytes(7));
    }
}

#[test]
fn half_precision_gives_the_same_codes() {
    let mut tensors: Tensors = random_tensors(6);
    let cut = |x: &mut f32| *x = f32::from_bits(x.to_bits() & 0xffff_0000);
    tensors.values_mut().flat_map(|(_, e)| e).for_each(cut);
    let folder = Folder::with(tensors, "mean_tokens", true);
    let single = folder.import(WeightMode::W16).unwrap();
    let single: Vec<Vec<u8>> = (0..single.blob_count()).map(|i| single.blob(i).to_vec()).collect();
    folder.put_tensors(Dtype::BF16);
    let half = folder.import(WeightMode::W16).unwrap();
    assert!((0..half.blob_count()).all(|i| half.blob(i) == single[i]));
}

#[test]
fn check_accepts_and_catches_one_changed_code() {
    let folder = Folder::new(7);
    for weights in [WeightMode::W16, WeightMode::W8] {
        let package = folder.import(weights).unwrap();
        let report = check(&package, folder.dir.path(), NonZeroUsize::MIN).unwrap();
        assert_eq!(report.enclosed, if weights == WeightMode::W8 { 5 * LAYERS } else { 0 });
        assert_eq!(report.equal + report.enclosed, package.program().params.len());
        for (i, param) in package.program().params.iter().enumerate() {
            let forged = forge(&folder, &package, i);
            let error = check(&forged, folder.dir.path(), NonZeroUsize::MIN).unwrap_err().to_string();
            let named = format!("{} row 0 column 0 ", param.name);
            assert!(error.contains(&named), "{error}");
        }
    }
}

/// The same package with the first element of one parameter altered, under a manifest that is right about it.
fn forge(folder: &Folder, package: &Package, param: usize) -> Package {
    let mut blobs: Vec<Vec<u8>> = (0..package.blob_count()).map(|i| package.blob(i).to_vec()).collect();
    let first = &mut blobs[param][0];
    *first = match package.params().param(ParamId(param as u16)) {
        // Two steps towards zero leave both the range of the codes and floor and ceiling.
        ParamData::I8(c) => (if c[0] > 0 { c[0] - 2 } else { c[0] + 2 }) as u8,
        _ => *first ^ 1,
    };
    let mut manifest = package.manifest().clone();
    manifest.params[param] = BlobInfo::of(&blobs[param]);
    let file = folder.path("forged.lsp");
    write(&file, &manifest, |i| blobs[i].clone()).unwrap();
    Package::open(&file).unwrap()
}

#[test]
fn check_tells_another_checkpoint() {
    let (folder, other) = (Folder::new(7), Folder::new(8));
    let package = folder.import(WeightMode::W16).unwrap();
    let error = check(&package, other.dir.path(), NonZeroUsize::MIN).unwrap_err().to_string();
    assert!(error.contains("another model.safetensors"), "{error}");
}

#[test]
fn layers_arrive_in_order_and_batches_leave_no_mark() {
    let folder = Folder::new(2);
    let package = folder.import(WeightMode::W16).unwrap();
    let program = package.program();
    let mut executor = Reference.load(program.clone(), package.params()).unwrap();
    let batch = Batch::of(sequences());
    let mut layers = Vec::new();
    let together = embed(&mut *executor, program, &batch, Wanted::Rows, |l| {
        layers.push(l.layer);
        let rows = if l.layer == LAYERS + 1 { 1 } else { batch.sequences[3].rows() };
        assert_eq!(l.rows(3).map(<[i32]>::len), Some(rows * HIDDEN));
        ControlFlow::Continue(())
    });
    assert_eq!(layers, (0..LAYERS + 2).collect::<Vec<_>>());
    let together = together.unwrap().rows;
    for (tokens, row) in sequences().into_iter().zip(together) {
        assert_eq!(run(&package, &Reference, tokens).0, to_real(&row, package.manifest().output_frac));
    }
    let stopped = embed(&mut *executor, program, &batch, Wanted::Rows, |l| {
        if l.layer == 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(EmbedError::Stopped { layer: 1 })));
}

#[test]
fn tokens_have_the_models_limit() {
    let folder = Folder::new(3);
    let tokenizer = folder.import(WeightMode::W16).unwrap().tokenizer().unwrap();
    assert_eq!(tokenizer.encode("w0 w50 what", TooLong::Refuse).unwrap(), [2, 4, 54, 1, 3]);
    assert_eq!(tokenizer.encode("", TooLong::Refuse).unwrap(), [2, 3]);
    let fits = vec!["w1"; POSITIONS - 2].join(" ");
    assert_eq!(tokenizer.encode(&fits, TooLong::Refuse).unwrap().len(), POSITIONS);
    let long = format!("{fits} w2");
    let refused = tokenizer.encode(&long, TooLong::Refuse).unwrap_err();
    assert_eq!(refused, TokenizeError::TooLong { tokens: POSITIONS + 1, limit: POSITIONS });
    assert_eq!(tokenizer.encode(&long, TooLong::Truncate), tokenizer.encode(&fits, TooLong::Refuse));
}
