//! Vocabularies of sentencepiece in GGUF files.

use serde::Deserialize;

use crate::gguf::config::Keys;
use crate::gguf::reader::read;
use crate::gguf::writer::Writer;
use crate::tokenizer::{Tokenizer, TooLong};

/// What sentencepiece and llama.cpp make of these texts (`scripts/sentencepiece_fixture.py`).
const FIXTURE: &str = include_str!("../../../tests/sentencepiece.json");

#[derive(Deserialize)]
struct Fixture {
    tokens: Vec<String>,
    scores: Vec<f32>,
    kinds: Vec<i32>,
    texts: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
}

impl Fixture {
    fn new() -> Self {
        serde_json::from_str(FIXTURE).expect("the fixture")
    }

    fn file(&self) -> Writer {
        let mut file = Writer::default();
        file.text("general.architecture", "llama").text("tokenizer.ggml.model", "llama");
        file.texts("tokenizer.ggml.tokens", &self.tokens).f32s("tokenizer.ggml.scores", &self.scores);
        file.i32s("tokenizer.ggml.token_type", &self.kinds).u32("tokenizer.ggml.bos_token_id", 1);
        file
    }
}

fn tokenizer(file: &Writer) -> Result<Tokenizer, String> {
    let bytes = file.bytes();
    let contents = read(&bytes)?;
    let keys = Keys::of(&contents).map_err(|e| format!("{e:?}"))?;
    let json = super::super::json(&keys).map_err(|e| format!("{e:?}"))?;
    Tokenizer::from_json(&json, 1_000, 700).map_err(|e| e.to_string())
}

#[test]
fn texts_become_the_tokens_of_sentencepiece() {
    let fixture = Fixture::new();
    let tokenizer = tokenizer(fixture.file().bool("tokenizer.ggml.add_bos_token", false)).expect("it is built");
    let bytes = tokenizer.token_bytes().expect("it has bytes");
    assert!(fixture.texts.len() > 200);
    for Case { text, ids } in fixture.texts {
        assert_eq!(tokenizer.encode(&text, TooLong::Refuse).expect("it fits"), ids, "{text:?}");
        let read: Vec<u8> = ids.iter().flat_map(|id| bytes.get(*id)).copied().collect();
        assert_eq!(String::from_utf8(read).expect("UTF-8"), format!(" {}", text.replace('\u{2581}', " ")));
    }
}

#[test]
fn special_tokens_are_found_and_one_stands_before_every_text() {
    let fixture = Fixture::new();
    let with_start = tokenizer(&fixture.file()).expect("it is built");
    let [a, of_text] = ["a", "a"].map(|text| with_start.encode(text, TooLong::Refuse).expect("it fits"));
    assert_eq!((a[0], &a), (1, &of_text));
    let unprefixed = tokenizer(fixture.file().bool("tokenizer.ggml.add_space_prefix", false)).expect("it is built");
    let ids = unprefixed.encode_rendered("a</s><|user|>").expect("it fits");
    let a = fixture.tokens.iter().position(|token| token == "a").expect("a piece") as u32;
    assert_eq!(ids, [a, 2, 3]);
}

#[test]
fn what_can_not_be_said_exactly_is_refused() {
    let refused = |change: fn(&mut Fixture)| {
        let mut fixture = Fixture::new();
        change(&mut fixture);
        tokenizer(&fixture.file()).expect_err("refused")
    };
    assert!(refused(|f| f.scores[261] = f.scores[260]).contains("have one score"));
    assert!(refused(|f| f.scores[300] = f32::NAN).contains("does not go with the tokens"));
    assert!(refused(|f| f.scores.truncate(699)).contains("does not go with the tokens"));
    assert!(refused(|f| f.kinds[9] = 1).contains("a token for every byte"));
    assert!(refused(|f| f.kinds[0] = 1).contains("0 tokens are of kind 2"));
    assert!(refused(|f| f.kinds[300] = 9).contains("token 300 is of kind 9"));
    assert!(refused(|f| f.tokens[300] = f.tokens[301].clone()).contains("is there twice"));
    assert!(refused(|f| f.tokens[300] = "a".repeat(257)).contains("a piece of 257 bytes"));
    let error =
        tokenizer(Fixture::new().file().bool("tokenizer.ggml.remove_extra_whitespaces", true)).expect_err("refused");
    assert!(error.contains("remove_extra_whitespaces"), "{error}");
}
