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

/// A vocabulary of the 256 bytes and some merged pieces, after `special`.
fn byte_vocabulary(special: &[&str], merges: &[[&str; 2]]) -> Value {
    let printable = |b: u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut others = 0x100_u32..;
    let bytes = (0..=255_u8).map(|b| match printable(b) {
        true => char::from(b).to_string(),
        false => others.next().and_then(char::from_u32).unwrap().to_string(),
    });
    let pieces = merges.iter().map(|[a, b]| format!("{a}{b}"));
    let tokens = special.iter().map(|t| t.to_string()).chain(bytes).chain(pieces);
    json!(tokens.enumerate().map(|(id, token)| (token, json!(id))).collect::<serde_json::Map<_, _>>())
}

fn added(id: usize, content: &str) -> Value {
    json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true })
}

/// As Llama 3 has it: a pattern of its own, byte-level pieces, a token in front of the text.
#[test]
fn byte_level_tokens_are_the_bytes_of_the_text() {
    let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let byte = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let split = json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
    let begin = json!({ "id": "<begin>", "ids": [0], "tokens": ["<begin>"] });
    let template = json!({
        "type": "TemplateProcessing",
        "single": [{ "SpecialToken": { "id": "<begin>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
        "pair": [], "special_tokens": { "<begin>": begin },
    });
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [added(0, "<begin>"), added(1, "<end>")],
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [split, byte] }, "decoder": byte,
        "post_processor": { "type": "Sequence", "processors": [byte, template] },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": true, "merges": [["Ġ", "a"], ["1", "2"]],
            "vocab": byte_vocabulary(&["<begin>", "<end>"], &[["Ġ", "a"], ["1", "2"]]),
        },
    });
    let tokenizer = Tokenizer::from_json(&serde_json::to_vec(&file).unwrap(), 200, 262).unwrap();
    let bytes = tokenizer.token_bytes().unwrap();
    for text in ["a cat, a hat: 12 345", "naïve\r\n\tΩ 日本語 🙂🙃", " "] {
        let ids = tokenizer.encode(text, TooLong::Refuse).unwrap();
        assert_eq!(ids[0], 0);
        let read: Vec<u8> = ids.iter().flat_map(|id| bytes.get(*id)).copied().collect();
        assert_eq!(String::from_utf8(read).unwrap(), text);
    }
    assert_eq!(tokenizer.encode_rendered(" a<end>12").unwrap(), [258, 1, 259]);
    assert_eq!((bytes.get(258), bytes.get(259), bytes.get(1)), (&b" a"[..], &b"12"[..], &b""[..]));
}

/// As Llama 2 has it: sentencepiece pieces, `▁` for spaces, bytes where there is no piece.
#[test]
fn sentencepiece_tokens_are_the_bytes_of_the_text() {
    let mut vocab = serde_json::Map::new();
    for (id, token) in ["<unk>", "<s>", "</s>"].into_iter().enumerate() {
        vocab.insert(token.into(), json!(id));
    }
    for b in 0..=255 {
        vocab.insert(format!("<0x{b:02X}>"), json!(3 + b));
    }
    for (i, piece) in ["\u{2581}", "a", "b", "\u{2581}a", "ab"].into_iter().enumerate() {
        vocab.insert(piece.into(), json!(259 + i));
    }
    let replace = |from: &str, to: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": to });
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "pre_tokenizer": null, "post_processor": null,
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{ "type": "Prepend", "prepend": "\u{2581}" }, replace(" ", "\u{2581}")],
        },
        "decoder": { "type": "Sequence", "decoders": [
            replace("\u{2581}", " "), { "type": "ByteFallback" }, { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": vocab, "merges": ["\u{2581} a", "a b"],
        },
    });
    let tokenizer = Tokenizer::from_json(&serde_json::to_vec(&file).unwrap(), 200, 264).unwrap();
    let bytes = tokenizer.token_bytes().unwrap();
    for text in ["a b ab", "bé 日\n🙂"] {
        let ids = tokenizer.encode(text, TooLong::Refuse).unwrap();
        let read: Vec<u8> = ids.iter().flat_map(|id| bytes.get(*id)).copied().collect();
        assert_eq!(String::from_utf8(read).unwrap(), format!(" {text}"), "a word begins with its space");
    }
    assert_eq!(tokenizer.encode("ab", TooLong::Refuse).unwrap(), [262, 261]);
}

#[test]
fn tokens_without_a_decoder_of_bytes_have_none() {
    let error = load(&sample()).unwrap().token_bytes().unwrap_err().to_string();
    assert!(error.contains("no decoder of bytes"), "{error}");
}
