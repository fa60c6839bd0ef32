"""What sentencepiece makes of some texts: makes model/tests/sentencepiece.json.

    python3 -m venv venv && venv/bin/pip install sentencepiece==0.2.3 gguf==0.19.0 llama-cpp-python==0.3.36
    venv/bin/python scripts/sentencepiece_fixture.py

Trains a small vocabulary of byte pairs with Llama 2's settings and keeps it as a GGUF file would hold it, with the tokens of
texts that are meant to be hard: runs of one character, spaces of all sorts, scripts that it has never seen. llama.cpp has to
give the same tokens for such a file.
"""

import io
import json
import random
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import sentencepiece

ROOT = Path(__file__).parent.parent
FIXTURE = ROOT / "model/tests/sentencepiece.json"
USER_DEFINED = "<|user|>"


def train():
    """A vocabulary of 700 pieces, trained on the first pages of the held-out text."""
    lines = (ROOT / "assets/heldout.txt").read_text().splitlines()[:1400]
    lines += ["          indented          ", "aaaa bbbb abab ----------------", "naïve Zürich façade"] * 20
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=700, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        split_digits=True, character_coverage=0.9995, user_defined_symbols=[USER_DEFINED], num_threads=1,
        minloglevel=2)
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def texts(lines):
    """The texts, none with a special token in it."""
    fixed = [" ", "a", " a", "  a", "a ", "a  b   c    d", "\n", "\n\n a\tb\r\n", "Ω 日本語 🙂🙃 naïve", "x = [0; 16];", "▁a▁ b",
             "12345.678e-9", "don't", "-" * 37, "a" * 29, " " * 41, "ab" * 19, "aab" * 17, "\u00a0\u200b|"]
    draws = random.Random(1)
    hard = ["".join(draws.choice(alphabet) for _ in range(draws.randint(1, 40)))
            for alphabet in ["ab", "ab ", "-= ", "the ", "aé日", "01. ", "\n a"] for _ in range(20)]
    return fixed + hard + lines[-80:]


def kind(processor, i):
    if processor.is_unknown(i):
        return 2
    if processor.is_control(i):
        return 3
    if processor.is_byte(i):
        return 6
    return 4 if processor.id_to_piece(i) == USER_DEFINED else 1


def hold_to_llama_cpp(fixture):
    """That llama.cpp makes the same tokens."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tokenizer_model("llama")
        writer.add_token_list(fixture["tokens"])
        writer.add_token_scores(fixture["scores"])
        writer.add_token_types(fixture["kinds"])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        llama = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        others = [case["text"] for case in fixture["texts"]
                  if llama.tokenize(case["text"].encode(), add_bos=False, special=False) != case["ids"]]
    print(f"{len(fixture['texts'])} texts, other tokens from llama.cpp for {others}")


def main():
    processor = train()
    size = processor.get_piece_size()
    lines = [line for line in (ROOT / "assets/heldout.txt").read_text().splitlines() if line]
    fixture = {
        "tokens": [processor.id_to_piece(i) for i in range(size)],
        "scores": [processor.get_score(i) for i in range(size)],
        "kinds": [kind(processor, i) for i in range(size)],
        "texts": [{"text": text, "ids": processor.encode(text)} for text in texts(lines)],
    }
    hold_to_llama_cpp(fixture)
    FIXTURE.write_text(json.dumps(fixture, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
