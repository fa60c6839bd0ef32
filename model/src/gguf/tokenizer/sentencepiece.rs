//! Vocabularies of sentencepiece, as Llama 2, TinyLlama and Mistral have them: byte pairs whose order follows from the
//! pieces' scores, `▁` for spaces, bytes where there is no piece.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::super::config::{Keys, Refusal};
use super::super::reader::Value;
use super::{BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Vocabulary, flag, malformed, post_processor};

/// What is written for a space.
const META: &str = "\u{2581}";
/// Longest piece that may be made of others, in bytes; those of known models have 16 characters. The work is its square.
const MAX_PIECE_BYTES: usize = 256;

/// `tokenizer.json`. Settings as Hugging Face's converter writes them for these models.
pub(super) fn json(keys: &Keys<'_>) -> Result<Json, Refusal> {
    let vocabulary = Vocabulary::read(keys)?;
    if flag(keys, "remove_extra_whitespaces", false)? {
        return Err(Refusal::Unsupported("tokenizer.ggml.remove_extra_whitespaces in a GGUF file".into()));
    }
    if keys.get("tokenizer.ggml.precompiled_charsmap").is_some() {
        return Err(Refusal::Unsupported("tokenizer.ggml.precompiled_charsmap in a GGUF file".into()));
    }
    let unknown = unknown(&vocabulary)?;
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let (prepend, spaces) = (json!({"type": "Prepend", "prepend": META}), replace(" ", META));
    let mut decoders = vec![replace(META, " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    let normalizers = if flag(keys, "add_space_prefix", true)? {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        vec![prepend, spaces]
    } else {
        vec![spaces]
    };
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": vocabulary.added(),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": post_processor(keys, &vocabulary.tokens, true)?,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary.ids()?, "merges": merges(&pieces(keys, &vocabulary)?)?,
        },
    }))
}

/// The token for what has no other. All kinds are looked at, and that every byte has a token: then nothing is unknown.
fn unknown<'a>(vocabulary: &Vocabulary<'a>) -> Result<&'a str, Refusal> {
    let known = [NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE];
    if let Some((id, _, kind)) = vocabulary.used().find(|t| !known.contains(&t.2)) {
        return Err(malformed(&format!("token {id} is of kind {kind}")));
    }
    let of_kind = |kind| vocabulary.used().filter(move |t| t.2 == kind).map(|t| t.1);
    let mut bytes: Vec<&str> = of_kind(BYTE).collect();
    bytes.sort_unstable();
    if !bytes.into_iter().eq((0..=u8::MAX).map(|b| format!("<0x{b:02X}>"))) {
        return Err(Refusal::Unsupported("a SentencePiece vocabulary without a token for every byte".into()));
    }
    match of_kind(UNKNOWN).collect::<Vec<_>>()[..] {
        [unknown] => Ok(unknown),
        ref found => Err(malformed(&format!("{} tokens are of kind {UNKNOWN} (unknown)", found.len()))),
    }
}

/// Scores of the pieces that texts are put together from.
fn pieces<'a>(keys: &Keys<'_>, vocabulary: &Vocabulary<'a>) -> Result<BTreeMap<&'a str, f32>, Refusal> {
    let Some(Value::Reals(scores)) = keys.get("tokenizer.ggml.scores") else {
        return Err(malformed("tokenizer.ggml.scores is missing"));
    };
    if scores.len() != vocabulary.tokens.len() || scores.iter().any(|score| !score.is_finite()) {
        return Err(malformed("tokenizer.ggml.scores does not go with the tokens"));
    }
    let normal = vocabulary.used().filter(|(.., kind)| *kind == NORMAL);
    Ok(normal.map(|(id, token, _)| (token, scores[id])).collect())
}

/// All pairs of pieces that make a piece, first what is merged first. SentencePiece merges by the score of what comes out,
/// and the leftmost of several; where a piece can be made in two ways, they say the same text.
fn merges<'a>(pieces: &BTreeMap<&'a str, f32>) -> Result<Vec<[&'a str; 2]>, Refusal> {
    let mut merges = Vec::new();
    for (piece, score) in pieces.iter().filter(|(piece, _)| piece.chars().nth(1).is_some()) {
        if piece.len() > MAX_PIECE_BYTES {
            return Err(malformed(&format!("a piece of {} bytes; {MAX_PIECE_BYTES} are possible", piece.len())));
        }
        let cuts = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        let pairs = cuts.filter(|(left, right)| pieces.contains_key(left) && pieces.contains_key(right));
        merges.extend(pairs.map(|(left, right)| (*score, *piece, [left, right])));
    }
    // Scores are finite. Of one piece the longest left part first.
    merges
        .sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)).then(Reverse(a.2[0].len()).cmp(&Reverse(b.2[0].len()))));
    if let Some([a, b]) = merges.array_windows().find(|[a, b]| a.0 == b.0 && a.1 != b.1) {
        // Which comes first would hang on where they stand in a text, which `tokenizer.json` can't say.
        return Err(Refusal::Unsupported(format!("the pieces {:?} and {:?} have one score", a.1, b.1)));
    }
    Ok(merges.into_iter().map(|(.., pair)| pair).collect())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
