//! Packages that lie, are cut, or arrive in pieces.

mod common;

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use common::Folder;
use lockstep_kernels::program::DType;
use lockstep_model::ModelError;
use lockstep_model::package::{BlobInfo, Manifest, PAGE, Package, PackageAssembler, WeightMode};
use proptest::prelude::*;

fn packaged() -> (Folder, Vec<u8>) {
    let folder = Folder::new(1);
    folder.import(WeightMode::W16).unwrap();
    let bytes = std::fs::read(folder.path("w16.lsp")).unwrap();
    (folder, bytes)
}

fn open(folder: &Folder, bytes: &[u8]) -> Result<Package, ModelError> {
    let path = folder.path("hostile.lsp");
    // A new file each time: the old one may still be mapped.
    let _ = std::fs::remove_file(&path);
    std::fs::write(&path, bytes).unwrap();
    Package::open_checked(&path, NonZeroUsize::MIN)
}

#[test]
fn blobs_lie_at_pages_and_hold_what_was_imported() {
    let (folder, bytes) = packaged();
    let package = open(&folder, &bytes).unwrap();
    assert_eq!(package.model_id(), Manifest::model_id(package.manifest_bytes()));
    let mut end = 16 + package.manifest_bytes().len();
    for i in 0..package.blob_count() {
        let start = end.next_multiple_of(PAGE as usize);
        end = start + package.blob(i).len();
        assert_eq!(&bytes[start..end], package.blob(i));
    }
    assert_eq!(end, bytes.len());
    assert_eq!(package.blob(package.blob_count() - 1), std::fs::read(folder.path("tokenizer.json")).unwrap());
    assert!(package.manifest().sources.iter().any(|s| s.name == "1_Pooling/config.json"));
}

#[test]
fn cuts_and_additions_are_refused() {
    let (folder, bytes) = packaged();
    for cut in [0, 1, 15, 16, 17, 500, 4_095, 4_096, 4_097, bytes.len() / 2, bytes.len() - 1] {
        assert!(open(&folder, &bytes[..cut]).is_err(), "cut at {cut}");
    }
    assert!(open(&folder, &[&bytes[..], &[0]].concat()).is_err());
}

#[test]
fn headers_that_lie() {
    let (folder, bytes) = packaged();
    for (at, value, part) in [
        (0, 0_u32, "does not start with LOCKSTEP"),
        (8, 2, "has format 2"),
        (12, u32::MAX, "claims a manifest"),
        (12, 16 << 20, "claims a manifest"),
        (12, 3, "manifest is empty"),
        (16, 2, "spec version 2"),
    ] {
        let mut lie = bytes.clone();
        lie[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let error = open(&folder, &lie).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Every byte of the file matters: a change is refused, or it makes another model id.
    #[test]
    fn no_byte_changes_unnoticed(at in any::<prop::sample::Index>(), in_front in any::<bool>(), flip in 1..=255_u8) {
        let (folder, mut bytes) = packaged();
        let id = open(&folder, &bytes).unwrap().model_id();
        let reach = if in_front { 12_000 } else { bytes.len() };
        let at = at.index(reach);
        bytes[at] ^= flip;
        if let Ok(package) = open(&folder, &bytes) {
            prop_assert_ne!(package.model_id(), id);
        }
    }
}

#[test]
fn manifests_that_contradict_themselves() {
    let (_folder, bytes) = packaged();
    let manifest =
        Manifest::parse(&bytes[16..16 + u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize]).unwrap();
    let refused = |edit: &dyn Fn(&mut Manifest), part: &str| {
        let mut lie = manifest.clone();
        edit(&mut lie);
        let error = Manifest::parse(&lie.bytes()).unwrap_err().to_string();
        assert!(error.contains(part), "{error} should contain {part}");
    };
    refused(&|m| m.name.clear(), "name");
    refused(&|m| m.name = "a\nb".into(), "control");
    refused(&|m| m.name = "x".repeat(129), "model name");
    refused(&|m| m.weights = WeightMode::W8, "calibration");
    refused(&|m| m.output_frac = 63, "fractional bits");
    refused(&|m| m.tokenizer.bytes = 0, "tokenizer");
    refused(&|m| m.tokenizer.bytes = u64::MAX, "tokenizer");
    refused(&|m| m.template = Some(BlobInfo { bytes: 0, ..m.tokenizer }), "template");
    refused(&|m| m.template = Some(BlobInfo { bytes: (1 << 20) + 1, ..m.tokenizer }), "template");
    refused(&|m| m.stop_tokens = vec![2, 2], "stop tokens");
    refused(&|m| m.stop_tokens = (0..257).collect(), "stop tokens");
    refused(&|m| m.stop_tokens = vec![m.program.vocab_size], "stop token");
    refused(&|m| m.sources.reverse(), "order");
    refused(&|m| m.params.truncate(3), "differ in number");
    refused(&|m| m.params[0].bytes += 1, "length");
    refused(&|m| m.params[0].bytes = u64::MAX, "length");
    refused(&|m| Arc::make_mut(&mut m.program).params[0].rows = u32::MAX, "program is invalid");
    for dtype in [DType::I8, DType::I16, DType::U16, DType::I32] {
        let huge = |m: &mut Manifest| {
            let param = &mut Arc::make_mut(&mut m.program).params[0];
            (param.rows, param.cols, param.dtype) = (u32::MAX, u32::MAX, dtype);
        };
        refused(&huge, "program is invalid");
    }
    refused(&|m| Arc::make_mut(&mut m.program).max_positions = 0, "program is invalid");
    refused(&|m| Arc::make_mut(&mut m.program).layers.truncate(2), "last layer");
    let mut lie = manifest.bytes();
    lie.push(0);
    assert!(Manifest::parse(&lie).is_err());
}

/// Pulls up to `limit` pieces of `step` bytes.
fn pull(assembler: &mut PackageAssembler, source: &Package, step: usize, limit: usize) {
    for _ in 0..limit {
        let Some(n) = assembler.needed() else { return };
        let blob = source.blob(n.blob as usize);
        assert_eq!(n.bytes, blob.len() as u64);
        let end = blob.len().min(n.offset as usize + step);
        assembler.accept(n.blob, n.offset, &blob[n.offset as usize..end]).unwrap();
    }
}

fn files(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|n| n.starts_with("pulled")).collect()
}

#[test]
fn pieces_become_the_same_package_across_interruptions() {
    let (folder, bytes) = packaged();
    let source = open(&folder, &bytes).unwrap();
    let path = folder.path("pulled.lsp");
    let start = || PackageAssembler::open(&path, source.model_id(), source.manifest_bytes()).unwrap();
    let mut seen = 0;
    loop {
        let mut assembler = start();
        let (done, all) = assembler.progress();
        assert!(done >= seen, "progress is kept");
        seen = done;
        pull(&mut assembler, &source, 1_000, 37);
        if assembler.progress().0 == all {
            assert_eq!(assembler.finish().unwrap().model_id(), source.model_id());
            break;
        }
    }
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert_eq!(files(folder.dir.path()), ["pulled.lsp"]);
}

#[test]
fn assemblers_refuse_what_is_not_next() {
    let (folder, bytes) = packaged();
    let source = open(&folder, &bytes).unwrap();
    let path = folder.path("pulled.lsp");
    let other = Manifest::model_id(b"another");
    assert!(PackageAssembler::open(&path, other, source.manifest_bytes()).is_err());
    let mut assembler = PackageAssembler::open(&path, source.model_id(), source.manifest_bytes()).unwrap();
    let second = PackageAssembler::open(&path, source.model_id(), source.manifest_bytes()).unwrap_err().to_string();
    assert!(second.contains("another process"), "{second}");
    let blob = source.blob(0);
    assert!(assembler.accept(1, 0, &source.blob(1)[..1]).is_err());
    assert!(assembler.accept(0, 1, &blob[1..2]).is_err());
    assert!(assembler.accept(0, 0, &[]).is_err());
    assert!(assembler.accept(0, 0, &vec![0; blob.len() + 1]).is_err());
    assert!(assembler.accept(u32::MAX, 0, &[0]).is_err());
    assert_eq!(assembler.progress().0, 0);
    assert!(assembler.finish().unwrap_err().to_string().contains("lacks bytes"));
}

#[test]
fn damage_on_disk_is_found_and_pulled_again() {
    let (folder, bytes) = packaged();
    let source = open(&folder, &bytes).unwrap();
    let path = folder.path("pulled.lsp");
    let start = || PackageAssembler::open(&path, source.model_id(), source.manifest_bytes()).unwrap();
    let mut assembler = start();
    pull(&mut assembler, &source, 1 << 20, usize::MAX);
    drop(assembler);
    let part = folder.path("pulled.lsp.part");
    let mut torn = std::fs::read(&part).unwrap();
    let at = torn.len() - 5;
    torn[at] ^= 1;
    std::fs::write(&part, torn).unwrap();
    assert!(start().finish().unwrap_err().to_string().contains("damaged"));
    assert!(!path.exists());
    let mut assembler = start();
    assert_eq!(assembler.needed().unwrap().blob as usize, source.blob_count() - 1);
    pull(&mut assembler, &source, 1 << 20, usize::MAX);
    assembler.finish().unwrap();
    // Sidecars that make no sense are a fresh start, not an error.
    for junk in [&b""[..], b"junk", &[255; 44], &[0; 44]] {
        std::fs::write(folder.path("pulled.lsp.progress"), junk).unwrap();
        std::fs::write(&part, &bytes).unwrap();
        assert_eq!(start().progress().0, 0);
    }
}

/// Opening a pipe would wait for a writer that never comes.
#[cfg(unix)]
#[test]
fn what_is_no_regular_file_is_refused() {
    let folder = Folder::new(1);
    let pipe = folder.path("pipe.lsp");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for path in [pipe.as_path(), folder.dir.path()] {
        let error = Package::open(path).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }
}
