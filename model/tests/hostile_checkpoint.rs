//! Folders that lie: each ends in an error that says what and where.

mod common;

use common::{Folder, HIDDEN, config, random_tensors};
use lockstep_model::checkpoint::Checkpoint;
use lockstep_model::package::WeightMode;
use proptest::prelude::*;
use serde_json::{Value, json};

fn import_error(folder: &Folder) -> String {
    folder.import(WeightMode::W16).expect_err("the folder is bad").to_string()
}

fn expect(folder: &Folder, parts: &[&str]) {
    let error = import_error(folder);
    assert!(parts.iter().all(|p| error.contains(p)), "{error}\nshould contain {parts:?}");
}

/// A safetensors file from a raw header and data.
fn raw(header: &Value, data: usize) -> Vec<u8> {
    let header = serde_json::to_vec(header).unwrap();
    [&(header.len() as u64).to_le_bytes()[..], &header, &vec![0; data]].concat()
}

#[test]
fn headers_that_lie() {
    let folder = Folder::new(1);
    let put = |bytes: &[u8]| std::fs::write(folder.path("model.safetensors"), bytes).unwrap();
    let tensor = |shape: Value, offsets: [u64; 2]| json!({ "dtype": "F32", "shape": shape, "data_offsets": offsets });
    put(b"");
    expect(&folder, &["model.safetensors", "shorter than a header"]);
    put(&[255; 8]);
    expect(&folder, &["header claims 18446744073709551615 bytes"]);
    put(&(15_u64 << 20).to_le_bytes());
    expect(&folder, &["not a sound safetensors file"]);
    put(&[&20_u64.to_le_bytes()[..], b"this is no json {{{{"].concat());
    expect(&folder, &["not a sound safetensors file"]);
    for (header, data) in [
        // Overlap, gap, beyond the end, backwards, trailing bytes.
        (json!({ "a": tensor(json!([2]), [0, 8]), "b": tensor(json!([2]), [4, 12]) }), 12),
        (json!({ "a": tensor(json!([2]), [0, 8]), "b": tensor(json!([2]), [12, 20]) }), 20),
        (json!({ "a": tensor(json!([1000]), [0, 4000]) }), 8),
        (json!({ "a": tensor(json!([2]), [8, 0]) }), 8),
        (json!({ "a": tensor(json!([2]), [0, 8]) }), 9),
        // Shapes that overflow, or do not fit their bytes.
        (json!({ "a": tensor(json!([u64::MAX, 4]), [0, 8]) }), 8),
        (json!({ "a": tensor(json!([1_u64 << 33, 1_u64 << 31]), [0, 8]) }), 8),
        (json!({ "a": tensor(json!([3]), [0, 8]) }), 8),
        (json!({ "a": tensor(json!([-1]), [0, 8]) }), 8),
    ] {
        put(&raw(&header, data));
        expect(&folder, &["not a sound safetensors file"]);
    }
}

#[test]
fn truncated_weights() {
    let folder = Folder::new(1);
    let path = folder.path("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for cut in [1, 7, 9, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        expect(&folder, &["model.safetensors"]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// One changed byte in the header is an error or changes nothing that matters; never a panic.
    #[test]
    fn header_mutations_do_not_panic(at in 0..4_000_usize, to in any::<u8>()) {
        let folder = Folder::new(1);
        let path = folder.path("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[at] = to;
        std::fs::write(&path, bytes).unwrap();
        let _ = folder.import(WeightMode::W16);
    }
}

#[test]
fn values_that_are_not_finite() {
    for (bad, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let mut tensors = random_tensors(1);
        tensors.get_mut("encoder.layer.1.output.dense.weight").unwrap().1[2 * common::INNER + 5] = bad;
        let folder = Folder::with(tensors, "mean_tokens", true);
        expect(&folder, &["encoder.layer.1.output.dense.weight", "element [2, 5] is", shown]);
    }
    let mut tensors = random_tensors(1);
    tensors.get_mut("pooler.dense.weight").unwrap().1[0] = f32::NAN;
    let folder = Folder::with(tensors, "mean_tokens", true);
    folder.import(WeightMode::W16).expect("an unused tensor may hold anything");
}

#[test]
fn huge_weights_are_refused_and_tiny_ones_are_not() {
    for (value, fits) in [(3e38, false), (1e-45, true), (0.0, true)] {
        for name in ["encoder.layer.0.attention.self.query.weight", "encoder.layer.0.attention.output.LayerNorm.weight"]
        {
            let mut tensors = random_tensors(1);
            tensors.get_mut(name).unwrap().1.fill(value);
            let result = Folder::with(tensors, "mean_tokens", true).import(WeightMode::W16);
            assert_eq!(result.is_ok(), fits, "{name} = {value:e}: {:?}", result.err().map(|e| e.to_string()));
        }
    }
}

#[test]
fn tensors_that_do_not_match() {
    let change = |edit: &dyn Fn(&mut common::Tensors)| {
        let mut tensors = random_tensors(1);
        edit(&mut tensors);
        Folder::with(tensors, "mean_tokens", true)
    };
    let key = "encoder.layer.1.attention.self.key.bias";
    let missing = change(&|t| drop(t.remove(key)));
    expect(&missing, &[key, "is missing"]);
    for name in [
        "encoder.layer.2.output.dense.bias",
        "cls.predictions.bias",
        "bert.embeddings.LayerNorm.bias",
        "encoder.layer.0.output.dense",
    ] {
        let extra = change(&|t| drop(t.insert(name.into(), (vec![1], vec![0.0]))));
        expect(&extra, &[name, "not part of the BertModel"]);
    }
    let shaped = change(&|t| t.get_mut(key).unwrap().0 = vec![1, HIDDEN]);
    expect(&shaped, &[key, "has shape [1, 40]", "asks for [40]"]);
}

#[test]
fn configurations_are_refused_by_name() {
    for (key, value, parts) in [
        ("model_type", json!("gpt2"), &["not supported", "\"gpt2\""][..]),
        ("model_type", json!(3), &["not supported"]),
        ("architectures", json!(["BertForMaskedLM"]), &["BertForMaskedLM"]),
        ("hidden_act", json!("gelu_new"), &["not supported", "gelu_new"]),
        ("position_embedding_type", json!("relative_key"), &["not supported", "relative_key"]),
        ("is_decoder", json!(true), &["not supported", "is_decoder"]),
        ("add_cross_attention", json!(true), &["not supported", "add_cross_attention"]),
        ("quantization_config", json!({ "bits": 4 }), &["not supported", "quantization_config"]),
        ("num_attention_heads", json!(7), &["num_attention_heads does not divide hidden_size"]),
        ("num_attention_heads", json!(0), &["num_attention_heads is 0"]),
        ("hidden_size", json!(4_000_000_000_u32), &["hidden_size is 4000000000"]),
        ("hidden_size", json!(-1), &["config.json", "-1"]),
        ("num_hidden_layers", json!(100_000), &["num_hidden_layers is 100000"]),
        ("vocab_size", json!(62), &["word_embeddings", "asks for [62, 40]"]),
        ("max_position_embeddings", json!(16_000_000), &["position_embeddings", "asks for [16000000, 40]"]),
        ("layer_norm_eps", json!(-1e-12), &["layer_norm_eps is -"]),
        ("layer_norm_eps", json!(null), &["config.json"]),
    ] {
        let folder = Folder::new(1);
        let mut edited = config();
        edited[key] = value;
        folder.put("config.json", &edited);
        expect(&folder, parts);
    }
}

#[test]
fn other_files_are_checked() {
    let edit = |name: &str, bytes: &[u8], parts: &[&str]| {
        let folder = Folder::new(1);
        std::fs::write(folder.path(name), bytes).unwrap();
        expect(&folder, parts);
    };
    edit("config.json", b"{", &["config.json", "EOF"]);
    edit("config.json", &vec![b' '; 5 << 20], &["config.json", "longer than"]);
    edit("config.json", "[".repeat(100_000).as_bytes(), &["config.json"]);
    edit("tokenizer.json", b"{}", &["tokenizer"]);
    edit("modules.json", br#"[{"path": "", "type": "x.Transformer"}]"#, &["not supported", "Transformer"]);
    let dense = br#"[{"path":"","type":"m.Transformer"},{"path":"1_Pooling","type":"m.Pooling"},{"path":"2","type":"m.Dense"}]"#;
    edit("modules.json", dense, &["not supported", "Dense"]);
    let outside = br#"[{"path":"","type":"m.Transformer"},{"path":"../..","type":"m.Pooling"}]"#;
    edit("modules.json", outside, &["modules.json", "../.."]);
    edit("1_Pooling/config.json", br#"{"pooling_mode_max_tokens": true}"#, &["not supported", "max_tokens"]);
    edit("1_Pooling/config.json", br#"{}"#, &["not supported", "pooling []"]);
    let both = br#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}"#;
    edit("1_Pooling/config.json", both, &["not supported", "pooling_mode_cls_token"]);
    edit("1_Pooling/config.json", br#"{"word_embedding_dimension": 41}"#, &["word_embedding_dimension"]);
    edit("sentence_bert_config.json", br#"{"do_lower_case": true}"#, &["not supported", "do_lower_case"]);
}

#[test]
fn missing_files_are_named() {
    for name in ["config.json", "model.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json"] {
        let folder = Folder::new(1);
        std::fs::remove_file(folder.path(name)).unwrap();
        expect(&folder, &[name]);
    }
    let folder = Folder::new(1);
    std::fs::rename(folder.path("model.safetensors"), folder.path("model.safetensors.index.json")).unwrap();
    expect(&folder, &["model.safetensors.index.json"]);
    let folder = Folder::new(1);
    std::fs::remove_file(folder.path("tokenizer.json")).unwrap();
    std::fs::create_dir(folder.path("tokenizer.json")).unwrap();
    assert!(Checkpoint::open(folder.dir.path(), None).unwrap_err().to_string().contains("not a regular file"));
}

#[test]
fn a_vocabulary_beyond_the_model_is_refused() {
    let folder = Folder::new(1);
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(folder.path("tokenizer.json")).unwrap()).unwrap();
    tokenizer["model"]["vocab"]["extra"] = json!(61);
    folder.put("tokenizer.json", &tokenizer);
    expect(&folder, &["token \"extra\" is 61", "61 tokens"]);
}
