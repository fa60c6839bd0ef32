//! Folders of decoders that lie, lack something, or ask for what is not lowered; and what an import keeps of the others.

mod common;

use std::num::NonZeroUsize;

use common::decoder::{Folder, POSITIONS, VOCAB};
use lockstep_kernels::program::{Op, ParamId};
use lockstep_model::check::check;
use lockstep_model::package::WeightMode;
use lockstep_model::tokenizer::TooLong;
use serde_json::{Value, json};

#[test]
fn variants_are_refused_by_name() {
    let rope = |kind: &str| json!({ "rope_type": kind, "factor": 2.0 });
    for (key, value, parts) in [
        ("model_type", json!("gemma2"), &["not supported", "\"gemma2\"", "llama, mistral, qwen2 and qwen3"][..]),
        ("architectures", json!(["LlamaForSequenceClassification"]), &["LlamaForSequenceClassification"]),
        (
            "architectures",
            json!(["GemmaForCausalLM"]),
            &[
                "[\"GemmaForCausalLM\"] of model_type \"llama\"",
                "only LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM and Qwen3ForCausalLM are lowered",
            ],
        ),
        ("hidden_act", json!("gelu"), &["not supported", "\"gelu\""]),
        ("pretraining_tp", json!(2), &["pretraining_tp 2", "set it to 1"]),
        ("partial_rotary_factor", json!(0.5), &["partial_rotary_factor 0.5"]),
        ("rope_scaling", rope("dynamic"), &["\"dynamic\"", "depends on the current length"]),
        ("rope_scaling", rope("longrope"), &["\"longrope\"", "depends on the current length"]),
        ("rope_scaling", rope("proportional"), &["\"proportional\"", "llama3 and yarn are lowered"]),
        ("rope_scaling", json!({ "factor": 2.0 }), &["no rope_type"]),
        ("rope_scaling", json!({ "type": "linear" }), &["no factor"]),
        ("rope_scaling", json!({ "type": "linear", "factor": 0.5 }), &["factor is 0.5"]),
        ("rope_scaling", json!({ "type": "linear", "factor": 1e300 }), &["factor is 1e+300"]),
        ("rope_scaling", json!([]), &["rope_scaling is no object"]),
        ("rope_theta", json!(1.5), &["rope_theta is 1.5"]),
        ("rope_theta", json!("x"), &["rope_theta is NaN"]),
        ("num_local_experts", json!(8), &["num_local_experts"]),
        ("final_logit_softcapping", json!(30.0), &["final_logit_softcapping"]),
        ("alibi", json!(true), &["alibi"]),
        ("auto_map", json!({ "AutoModel": "x.Y" }), &["auto_map", "code of its own"]),
        ("quantization_config", json!({ "bits": 4 }), &["import the unquantised checkpoint"]),
        ("num_key_value_heads", json!(0), &["num_key_value_heads is 0"]),
        ("num_attention_heads", json!(3), &["q_proj", "asks for [72, 32]"]),
        ("head_dim", json!(23), &["head_dim 23", "even"]),
        ("hidden_size", json!(4_000_000_000_u32), &["hidden_size is 4000000000"]),
        ("rms_norm_eps", json!(1.0), &["rms_norm_eps is 1"]),
        ("attention_bias", json!(true), &["q_proj.bias", "is missing"]),
        ("tie_word_embeddings", json!(false), &["lm_head.weight", "is missing"]),
        ("eos_token_id", json!(VOCAB), &["eos_token_id is 271", "271 tokens"]),
        ("eos_token_id", json!("x"), &["eos_token_id is \"x\""]),
        ("vocab_size", json!(259), &["token"]),
    ] {
        Folder::with(key, value).expect(parts);
    }
}

/// A window matters only where it ends inside the context; a cap of the context can take it away.
#[test]
fn sliding_windows_end_beyond_the_context_or_are_refused() {
    let mut config = common::decoder::config();
    config["model_type"] = json!("mistral");
    config["architectures"] = json!(["MistralForCausalLM"]);
    config["sliding_window"] = json!(20);
    let folder = Folder::new(1);
    folder.put("config.json", &config);
    folder.expect(&["sliding_window 20 under 48 positions", "--max-positions 20"]);
    let package = folder.import(WeightMode::W16, Some(20)).unwrap();
    assert_eq!(package.program().max_positions, 20);
    assert_eq!(package.manifest().family, "mistral");
    check(&package, folder.dir.path(), NonZeroUsize::MIN).unwrap();
    let error = folder.import(WeightMode::W16, Some(POSITIONS + 1)).unwrap_err().to_string();
    assert!(error.contains("49 positions: the model is made for at most 48"), "{error}");
    config["sliding_window"] = json!(48);
    folder.put("config.json", &config);
    assert_eq!(folder.import(WeightMode::W16, None).unwrap().program().max_positions, POSITIONS);
    // As in transformers: null is none, and what is not there is 4,096.
    config["max_position_embeddings"] = json!(5_000);
    config["sliding_window"] = json!(null);
    folder.put("config.json", &config);
    assert_eq!(folder.import(WeightMode::W16, None).unwrap().program().max_positions, 5_000);
    config.as_object_mut().unwrap().remove("sliding_window");
    folder.put("config.json", &config);
    folder.expect(&["sliding_window 4096 (by default) under 5000 positions"]);
    config["model_type"] = json!("qwen2");
    config["architectures"] = json!(["Qwen2ForCausalLM"]);
    config["use_sliding_window"] = json!(true);
    folder.put("config.json", &config);
    folder.expect(&["sliding_window 4096 (by default) under 5000 positions"]);
}

#[test]
fn tensors_that_do_not_match() {
    for name in ["model.layers.2.mlp.up_proj.weight", "model.layers.+0.mlp.up_proj.weight", "score.weight"] {
        let mut folder = Folder::new(1);
        folder.tensors.insert(name.into(), (vec![1], vec![0.0]));
        folder.put_tensors("model.safetensors", |_| true);
        folder.expect(&[name, "not part of the llama model"]);
    }
    let mut folder = Folder::new(1);
    folder.tensors.insert("lm_head.weight".into(), (vec![1], vec![0.0]));
    folder.put_tensors("model.safetensors", |_| true);
    let report = folder.import_to(&folder.path("w16.lsp"), WeightMode::W16, 1, None).unwrap();
    assert_eq!(report.unused, ["lm_head.weight"], "a tied head's copy is not read");
}

#[test]
fn shards_must_be_what_the_index_says() {
    let folder = Folder::new(1);
    let whole = folder.import(WeightMode::W16, None).unwrap();
    std::fs::remove_file(folder.path("model.safetensors")).unwrap();
    let first = |name: &str| name.contains("layers.0");
    folder.put_tensors("a.safetensors", first);
    folder.put_tensors("b.safetensors", |name| !first(name));
    let index = |edit: &dyn Fn(&mut Value)| {
        let map =
            folder.tensors.keys().map(|n| (n.clone(), json!(if first(n) { "a.safetensors" } else { "b.safetensors" })));
        let mut index =
            json!({ "metadata": { "total_size": 0 }, "weight_map": map.collect::<serde_json::Map<_, _>>() });
        edit(&mut index["weight_map"]);
        folder.put("model.safetensors.index.json", &index);
    };
    index(&|_| {});
    let sharded = folder.import(WeightMode::W16, None).unwrap();
    assert_eq!(sharded.manifest().params, whole.manifest().params);
    let names: Vec<&str> = sharded.manifest().sources.iter().map(|s| &s.name[..]).collect();
    assert_eq!(
        names,
        ["a.safetensors", "b.safetensors", "config.json", "model.safetensors.index.json", "tokenizer.json"]
    );
    let norm = "model.norm.weight";
    index(&|map| map[norm] = json!("a.safetensors"));
    folder.expect(&["does not say that tensor \"model.norm.weight\" is in b.safetensors"]);
    index(&|map| map["model.extra"] = json!("a.safetensors"));
    folder.expect(&["says that tensor \"model.extra\" is in a.safetensors, where it is not"]);
    for path in ["../a.safetensors", "/etc/passwd", "sub/a.safetensors", ".a.safetensors", "a.bin"] {
        index(&|map| map[norm] = json!(path));
        folder.expect(&["names the file", path]);
    }
    index(&|map| map[norm] = json!("c.safetensors"));
    folder.expect(&["c.safetensors"]);
    folder.put_tensors("c.safetensors", |name| name == norm);
    folder.expect(&["model.norm.weight", "two files"]);
    index(&|map| (0..257).for_each(|i| map[format!("t{i}")] = json!(format!("{i}.safetensors"))));
    folder.expect(&["259 files", "too many"]);
}

#[test]
fn stop_tokens_and_templates_come_from_where_they_stand() {
    let folder = Folder::new(1);
    let plain = folder.import(WeightMode::W16, None).unwrap();
    assert_eq!((plain.manifest().stop_tokens.clone(), plain.template().unwrap()), (vec![2], None));
    folder.put("generation_config.json", &json!({ "eos_token_id": [2, 0, 2] }));
    let named = json!([{ "name": "tool_use", "template": "no" }, { "name": "default", "template": "{{ messages }}" }]);
    folder.put("tokenizer_config.json", &json!({ "chat_template": named }));
    let package = folder.import(WeightMode::W16, None).unwrap();
    assert_eq!(package.manifest().stop_tokens, [0, 2]);
    assert_eq!(package.template().unwrap(), Some("{{ messages }}"));
    assert_eq!(package.blob_count(), plain.blob_count() + 1);
    check(&package, folder.dir.path(), NonZeroUsize::MIN).unwrap();
    folder.put("tokenizer_config.json", &json!({ "chat_template": "another" }));
    let error = check(&package, folder.dir.path(), NonZeroUsize::MIN).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json"), "{error}");
    std::fs::write(folder.path("chat_template.jinja"), "{% for m in messages %}é{% endfor %}").unwrap();
    let package = folder.import(WeightMode::W16, None).unwrap();
    assert_eq!(package.template().unwrap(), Some("{% for m in messages %}é{% endfor %}"));
    std::fs::write(folder.path("chat_template.jinja"), [0xff]).unwrap();
    folder.expect(&["chat_template.jinja"]);
    std::fs::write(folder.path("chat_template.jinja"), vec![b'a'; (1 << 20) + 1]).unwrap();
    folder.expect(&["chat_template.jinja", "longer than"]);
}

#[test]
fn the_same_package_at_every_thread_count() {
    let folder = Folder::new(3);
    for weights in [WeightMode::W16, WeightMode::W8] {
        let id = |threads| folder.import_to(&folder.path("again.lsp"), weights, threads, None).unwrap().model_id;
        assert_eq!(id(1), id(3));
    }
}

/// The formats of the residual stream are measured; they only ever lose bits, and the parameters go with them.
#[test]
fn the_residual_stream_loses_bits_where_a_layer_is_loud() {
    let mut folder = Folder::new(2);
    let (_, down) = folder.tensors.get_mut("model.layers.1.mlp.down_proj.weight").unwrap();
    down.iter_mut().for_each(|w| *w *= 3_000.0);
    folder.put_tensors("model.safetensors", |_| true);
    let package = folder.import(WeightMode::W16, None).unwrap();
    let shift = |l: usize| match package.program().layers[l].ops[0] {
        Op::Shift { shift, .. } => shift,
        _ => 0,
    };
    assert!(shift(1) >= 4, "headroom over the embedding");
    assert!((8..16).contains(&shift(2)), "{}", shift(2));
    check(&package, folder.dir.path(), NonZeroUsize::MIN).unwrap();
}

#[test]
fn the_table_of_bytes_is_the_tokenizers() {
    let folder = Folder::new(1);
    let package = folder.import(WeightMode::W16, None).unwrap();
    let tokenizer = package.tokenizer().unwrap();
    let bytes = tokenizer.token_bytes().unwrap();
    let text = "The path: naïve — 日本 🙂\n";
    let ids = tokenizer.encode(text, TooLong::Refuse).unwrap();
    let read: Vec<u8> = ids.iter().flat_map(|id| bytes.get(*id)).copied().collect();
    assert_eq!(String::from_utf8(read).unwrap(), text);
    assert!(ids.contains(&259), "the merge is used");
    assert!((0..3).chain(260..271).all(|id| bytes.get(id).is_empty()), "special and missing tokens are no text");
    let at = package.program().params.iter().position(|p| p.name == "token_bytes").unwrap();
    assert_eq!(package.program().params[at].cols, 4);
    let held = package.params();
    assert!(matches!(held.param(ParamId(at as u16)), lockstep_kernels::value::ParamData::I8(t)
        if *t == bytes.table(VOCAB as u32).unwrap()));
    assert_eq!(tokenizer.encode_rendered("<begin>th").unwrap(), [1, 259]);
}
