use serde_json::{Value, json};

use crate::tokenizer::{TokenizeError, Tokenizer, TooLong};

fn sample() -> Value {
    let vocab = json!({ "[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "b": 4, "##b": 5 });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": { "type": "Lowercase" }, "pre_tokenizer": { "type": "BertPreTokenizer" }, "decoder": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                { "SpecialToken": { "id": "[CLS]", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } },
            ],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 0 } }],
            "special_tokens": { "[CLS]": { "id": "[CLS]", "ids": [1], "tokens": ["[CLS]"] } },
        },
        "model": {
            "type": "WordPiece", "vocab": vocab, "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
    })
}

fn load(json: &Value) -> Result<Tokenizer, String> {
    Tokenizer::from_json(&serde_json::to_vec(json).unwrap(), 8, 6).map_err(|e| e.to_string())
}

fn refused(path: &str, value: Value, part: &str) {
    let mut json = sample();
    *json.pointer_mut(path).unwrap() = value;
    let error = load(&json).unwrap_err();
    assert!(error.contains(part), "{path}: {error} should contain {part}");
}

#[test]
fn words_become_pieces() {
    let tokenizer = load(&sample()).unwrap();
    assert_eq!(tokenizer.encode("ab A x", TooLong::Refuse), Ok(vec![1, 3, 5, 3, 0]));
    let long = "a ".repeat(20);
    assert_eq!(tokenizer.encode(&long, TooLong::Refuse), Err(TokenizeError::TooLong { tokens: 21, limit: 8 }));
    assert_eq!(tokenizer.encode(&long, TooLong::Truncate).unwrap(), [1, 3, 3, 3, 3, 3, 3, 3]);
}

/// A post-processor that repeats the text does so once, and truncation leaves room for it.
#[test]
fn the_post_processor_runs_once() {
    let mut json = sample();
    let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    json["post_processor"]["single"] = json!([text, text]);
    let tokenizer = load(&json).unwrap();
    assert_eq!(tokenizer.encode("a b", TooLong::Refuse), Ok(vec![3, 4, 3, 4]));
    assert_eq!(tokenizer.encode("a b a b a b", TooLong::Truncate), Ok(vec![3, 4, 3, 4, 3, 4, 3, 4]));
}

#[test]
fn random_and_dangerous_components_are_refused_by_name() {
    let bpe = json!({ "type": "BPE", "dropout": 0.5, "vocab": { "a": 0 }, "merges": [] });
    refused("/model", bpe, "dropout");
    refused("/model", json!({ "type": "Unigram", "dropout": null, "vocab": [["a", 0.0]] }), "Unigram");
    refused("/model", json!({ "vocab": { "a": 0 } }), "no type");
    let bomb = json!({ "type": "Replace", "pattern": { "String": "a" }, "content": "a".repeat(16) });
    let table = json!({ "type": "Precompiled", "precompiled_charsmap": "AAAA" });
    for (part, name) in [(bomb, "Replace"), (table, "Precompiled")] {
        refused("/normalizer", part.clone(), name);
        refused("/normalizer", json!({ "type": "Sequence", "normalizers": [part] }), name);
    }
    let lower = json!({ "type": "Lowercase" });
    refused("/normalizer", json!({ "type": "Sequence", "normalizers": vec![lower.clone(); 17] }), "17 parts");
    let nested = json!({ "type": "Sequence", "normalizers": [lower] });
    refused("/normalizer", json!({ "type": "Sequence", "normalizers": [nested] }), "Sequence");
    refused("/pre_tokenizer", json!({ "type": "UnicodeScripts" }), "UnicodeScripts");
    let slow = json!({ "type": "Split", "pattern": { "Regex": "(a+)+$" }, "behavior": "Isolated", "invert": false });
    refused("/pre_tokenizer", slow, "Split");
    refused("/decoder", json!({ "type": "CTC" }), "CTC");
    let grow = json!({ "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": "aaaaaaaa" });
    refused("/decoder", json!({ "type": "Sequence", "decoders": [grow] }), "Replace");
    refused("/normalizer", json!({ "type": "Prepend", "prepend": "aaaaaaaa" }), "Prepend");
    refused("/post_processor", json!({ "type": "Sequence", "processors": [] }), "Sequence");
}

#[test]
fn sizes_and_ids_out_of_range_are_refused() {
    refused("/model/max_input_chars_per_word", json!(1_001), "max_input_chars_per_word");
    refused("/model/max_input_chars_per_word", json!(-1), "max_input_chars_per_word");
    refused("/model/continuing_subword_prefix", json!("#".repeat(257)), "continuing_subword_prefix");
    refused("/model/vocab/b", json!(6), "model has 6 tokens");
    refused("/post_processor/special_tokens/[CLS]/ids/0", json!(6), "adds the token 6");
    refused("/post_processor/special_tokens/[CLS]/ids", json!([1, 1]), "malformed");
    refused("/post_processor/special_tokens", json!({}), "not declared");
    refused("/post_processor/single/1/Sequence/id", json!("B"), "not B");
    refused("/post_processor/pair", json!(vec![json!({ "Sequence": { "id": "A", "type_id": 0 } }); 33]), "33 pieces");
    refused("/post_processor", json!({ "type": "BertProcessing", "sep": ["s", 2], "cls": ["c", 6] }), "token 6");
    refused("/added_tokens", json!([{ "id": 0, "content": "" }]), "added token");
    let token = json!({ "id": 0, "content": "a", "special": false });
    refused("/added_tokens", json!(vec![token; 4_097]), "4097 added tokens");
}

/// What the library does not survive is an error, not a crash.
#[test]
fn panics_become_errors() {
    assert_eq!(
        super::super::caught(|| -> tokenizers::Result<()> { panic!("as a library might") }).unwrap_err(),
        "the tokenizers library panicked"
    );
}
