//! A byte-level vocabulary of any size: the end of a text, all bytes, then pairs of letters and pairs of those.

use serde_json::{Map, Value, json};

/// What ends a text; token 0.
pub const END: &str = "<|endoftext|>";
/// Letters of the made-up tokens, frequent ones first.
const LETTERS: &str = "etaoinshrdlcumwfgypbvkjxqz";

/// `tokenizer.json` with exactly so many tokens.
pub fn tokenizer_json(tokens: u32) -> Result<Vec<u8>, String> {
    if tokens <= 1 + u32::from(u8::MAX) {
        return Err(format!("{tokens} tokens do not hold all bytes"));
    }
    let mut vocabulary = Map::new();
    let mut add = |token: String| {
        let id = vocabulary.len();
        vocabulary.insert(token, json!(id));
        vocabulary.len() < tokens as usize
    };
    add(END.into());
    let mut bytes = (0..=u8::MAX).map(|byte| character(byte).to_string());
    let mut room = bytes.all(&mut add);
    let letters: Vec<String> = LETTERS.chars().map(String::from).collect();
    let mut merges = Vec::new();
    let mut parts = letters;
    // Pairs of letters, then pairs of pairs: half a million, more than any vocabulary here.
    for _ in 0..2 {
        let mut pairs = Vec::new();
        for (a, b) in parts.iter().flat_map(|a| parts.iter().map(move |b| (a, b))) {
            if !room {
                break;
            }
            merges.push(json!([a, b]));
            pairs.push(format!("{a}{b}"));
            room = add(format!("{a}{b}"));
        }
        parts = pairs;
    }
    if vocabulary.len() != tokens as usize {
        return Err(format!("no vocabulary of {tokens} tokens can be made up"));
    }
    let special = json!({"id": 0, "content": END, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special], "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": Value::Object(vocabulary), "merges": merges,
        },
    });
    serde_json::to_vec(&file).map_err(|e| e.to_string())
}

/// The character of a byte in byte-level vocabularies: printable Latin-1 stands for itself, the other bytes, in order,
/// are the characters from U+0100 on.
fn character(byte: u8) -> char {
    let printable = |b: &u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(&byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !printable(b)).count() as u32;
    char::from_u32(0x100 + before).expect("below U+0200")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters() {
        assert_eq!([b' ', b'\n', b'!', 0, 0xad, 0xff].map(character), ['Ġ', 'Ċ', '!', 'Ā', 'Ń', 'ÿ']);
    }

    #[test]
    fn sizes() {
        for tokens in [257, 258, 512, 32_000, 151_936] {
            let file: Value = serde_json::from_slice(&tokenizer_json(tokens).unwrap()).unwrap();
            let vocabulary = file["model"]["vocab"].as_object().unwrap();
            let mut ids: Vec<u64> = vocabulary.values().map(|id| id.as_u64().unwrap()).collect();
            ids.sort_unstable();
            assert!(ids.into_iter().eq(0..u64::from(tokens)));
            assert_eq!(file["model"]["merges"].as_array().unwrap().len(), tokens as usize - 257);
        }
        assert!(tokenizer_json(256).is_err());
        assert!(tokenizer_json(1 << 20).is_err());
    }
}
