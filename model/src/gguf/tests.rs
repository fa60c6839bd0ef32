//! The reader against files that lie.

use proptest::prelude::*;

use super::kind::Kind;
use super::reader::{Value, read};
use super::writer::Writer;

fn sound() -> Writer {
    let mut file = Writer::default();
    file.text("general.architecture", "llama").u32("llama.block_count", 2).f32("llama.eps", 1e-5).bool("flag", true);
    file.texts("tokens", &["a".into(), "bc".into()]).i32s("kinds", &[1, -3]).f32s("scores", &[-1.5]);
    file.tensor("one", &[2, 3], 0, vec![7; 24]).tensor("two", &[2, 32], 8, vec![1; 68]).tensor(
        "three",
        &[5],
        30,
        vec![0; 10],
    );
    file
}

/// Where these bytes stand for the first time.
fn find(file: &[u8], bytes: &[u8]) -> usize {
    file.windows(bytes.len()).position(|w| w == bytes).expect("it is there")
}

/// The sound file, with the bytes at `bytes_after` behind a marker replaced.
fn patched(marker: &[u8], skip: usize, with: &[u8]) -> Vec<u8> {
    let mut file = sound().bytes();
    let at = find(&file, marker) + marker.len() + skip;
    file[at..at + with.len()].copy_from_slice(with);
    file
}

fn refused(file: &[u8], why: &str) {
    let error = read(file).expect_err("a lie");
    assert!(error.contains(why), "{error:?} does not say {why:?}");
}

#[test]
fn a_sound_file_is_read() {
    let bytes = sound().bytes();
    let contents = read(&bytes).expect("sound");
    assert_eq!(contents.metadata["llama.block_count"], Value::Integer(2));
    assert_eq!(contents.metadata["llama.eps"], Value::Real(1e-5));
    assert_eq!(contents.metadata["flag"], Value::Bool(true));
    assert_eq!(contents.metadata["tokens"], Value::Texts(vec!["a", "bc"]));
    assert_eq!(contents.metadata["kinds"], Value::Integers(vec![1, -3]));
    assert_eq!(contents.metadata["scores"], Value::Reals(vec![-1.5]));
    let two = &contents.tensors["two"];
    assert_eq!((two.kind, two.shape.as_slice(), two.bytes.len()), (Kind::Q8_0, &[2, 32][..], 68));
    assert_eq!(bytes[two.bytes.clone()], [1; 68]);
}

#[test]
fn every_truncation_is_refused() {
    let bytes = sound().bytes();
    let end = read(&bytes).expect("sound").tensors.values().map(|t| t.bytes.end).max().expect("tensors");
    for length in 0..end {
        assert!(read(&bytes[..length]).is_err(), "the first {length} bytes");
    }
}

#[test]
fn counts_that_the_file_cannot_hold_are_refused() {
    let huge = u64::MAX.to_le_bytes();
    let mut file = sound().bytes();
    file[8..16].copy_from_slice(&huge);
    refused(&file, "tensors");
    let mut file = sound().bytes();
    file[16..24].copy_from_slice(&huge);
    refused(&file, "keys");
    refused(&patched(b"tokens", 8, &huge), "longer than the header");
    refused(&patched(b"kinds", 8, &(1u64 << 40).to_le_bytes()), "longer than the header");
    refused(&patched(b"tokens", 16, &huge), "middle of its header");
}

#[test]
fn versions_types_and_names() {
    let mut file = sound().bytes();
    file[4] = 1;
    refused(&file, "version 1");
    file[0] = b'g';
    refused(&file, "not a GGUF file");
    refused(&patched(b"flag", 4, &[2]), "truth value");
    refused(&patched(b"flag", 0, &[13]), "type 13");
    refused(&patched(b"kinds", 4, &[9]), "list of lists");
    for (number, name) in [(2u8, "Q4_0"), (14, "Q6_K"), (39, "MXFP4"), (99, "unknown type 99")] {
        refused(&patched(b"one", 20, &[number]), name);
    }
    refused(sound().u32("flag", 1).bytes().as_slice(), "key \"flag\" is there twice");
    refused(sound().tensor("one", &[1], 0, vec![0; 4]).bytes().as_slice(), "tensor \"one\" is there twice");
    refused(sound().u32("general.alignment", 24).bytes().as_slice(), "alignment");
    refused(sound().u32("", 24).bytes().as_slice(), "name of 0 bytes");
}

#[test]
fn tensors_stay_inside_and_apart() {
    // Behind a tensor's name: the number of dimensions, two of them, the type, the offset.
    let offset = 4 + 16 + 4;
    refused(&patched(b"one", offset, &(1u64 << 62).to_le_bytes()), "behind the file's end");
    refused(&patched(b"one", offset, &(u64::MAX - 31).to_le_bytes()), "behind the file's end");
    refused(&patched(b"one", offset, &7u64.to_le_bytes()), "no multiple of 32");
    refused(&patched(b"one", offset, &32u64.to_le_bytes()), "overlap");
    refused(&patched(b"two", 4, &33u64.to_le_bytes()), "blocks of 32");
    refused(&patched(b"one", 4, &(1u64 << 63).to_le_bytes()), "shape");
    refused(&patched(b"one", 4, &0u64.to_le_bytes()), "shape");
    refused(&patched(b"one", 0, &5u32.to_le_bytes()), "dimensions");
    refused(&patched(b"one", 4, &(1u64 << 40).to_le_bytes()), "behind the file's end");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever is read stays inside the file, whatever the bytes say.
    #[test]
    fn changed_bytes_never_lead_outside(changes in prop::collection::vec((0usize..600, any::<u8>()), 1..6)) {
        let mut file = sound().bytes();
        for (at, byte) in changes {
            let at = at % file.len();
            file[at] = byte;
        }
        if let Ok(contents) = read(&file) {
            for tensor in contents.tensors.values() {
                prop_assert!(tensor.bytes.end <= file.len());
                let elements: usize = tensor.shape.iter().product();
                let blocks = elements as u64 / tensor.kind.block();
                prop_assert_eq!(blocks * tensor.kind.block_bytes(), tensor.bytes.len() as u64);
            }
        }
    }

    /// Noise behind the magic is refused or read, and nothing else happens.
    #[test]
    fn noise(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut file = b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0".to_vec();
        file.extend(bytes);
        let _ = read(&file);
    }
}
