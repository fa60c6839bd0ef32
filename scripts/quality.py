#!/usr/bin/env python3
"""Compares a package's embeddings with a float32 run of the checkpoint it was made from.

    pip install numpy safetensors tokenizers
    python3 scripts/quality.py --model DIR --package w16.lsp --package w8.lsp [--binary target/release/lockstep] [--torch]

The float32 model is a plain numpy BERT; --torch also compares that with the transformers library. Prints a markdown
table of 1 - cosine. Exits with 1 when a package misses its target.
"""
import argparse
import json
import math
import os
import subprocess
import sys
import tempfile

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
# Weight mode to (largest mean, largest worst) of 1 - cosine; None where only the other counts.
TARGETS = {"w16": (None, 1e-5), "w8": (2e-4, 1e-3)}
ERF = np.vectorize(math.erf, otypes=[np.float64])


class Bert:
    """A BERT sentence encoder in float32."""

    def __init__(self, folder):
        read = lambda name: json.load(open(os.path.join(folder, name), encoding="utf-8"))
        self.config = read("config.json")
        self.cls = read("1_Pooling/config.json")["pooling_mode_cls_token"]
        self.normalize = any(m["type"].endswith("Normalize") for m in read("modules.json"))
        tensors = load_file(os.path.join(folder, "model.safetensors"))
        self.t = {k: v.astype(np.float32) for k, v in tensors.items() if v.dtype.kind == "f"}
        self.tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.config["max_position_embeddings"])

    def linear(self, x, name):
        return x @ self.t[name + ".weight"].T + self.t[name + ".bias"]

    def norm(self, x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(self.config["layer_norm_eps"]))
        return x * self.t[name + ".weight"] + self.t[name + ".bias"]

    def attention(self, x, p):
        n, heads = len(x), self.config["num_attention_heads"]
        q, k, v = (self.linear(x, f"{p}.self.{s}").reshape(n, heads, -1).swapaxes(0, 1) for s in ("query", "key", "value"))
        s = q @ k.swapaxes(1, 2) / np.float32(math.sqrt(q.shape[-1]))
        w = np.exp(s - s.max(-1, keepdims=True))
        return (w / w.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(n, -1)

    def hidden(self, ids):
        e = "embeddings."
        x = self.t[e + "word_embeddings.weight"][ids] + self.t[e + "position_embeddings.weight"][: len(ids)]
        x = self.norm(x + self.t[e + "token_type_embeddings.weight"][0], e + "LayerNorm")
        for l in range(self.config["num_hidden_layers"]):
            p = f"encoder.layer.{l}"
            a = self.linear(self.attention(x, p + ".attention"), p + ".attention.output.dense")
            x = self.norm(x + a, p + ".attention.output.LayerNorm")
            h = self.linear(x, p + ".intermediate.dense")
            h = (h * 0.5 * (1 + ERF(h / math.sqrt(2)))).astype(np.float32)
            x = self.norm(x + self.linear(h, p + ".output.dense"), p + ".output.LayerNorm")
        return x

    def embed(self, text):
        x = self.hidden(self.tokenizer.encode(text).ids)
        x = x[0] if self.cls else x.mean(0)
        return x / np.linalg.norm(x) if self.normalize else x


def distance(a, b):
    """1 - cosine in double precision, without cancellation."""
    a, b = (np.asarray(v, np.float64) / np.linalg.norm(np.asarray(v, np.float64)) for v in (a, b))
    return float(((a - b) ** 2).sum() / 2)


def from_package(binary, package, texts):
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as f:
        json.dump(texts, f)
        f.flush()
        command = [binary, "embed", "--package", package, "--truncate", "--json", "--input-file", f.name]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.strip().splitlines()[-1])["embeddings"]


def with_transformers(folder, texts, reference):
    import torch
    from transformers import BertModel

    model = BertModel.from_pretrained(folder).eval()
    bert = Bert(folder)
    worst = 0.0
    for text, expected in zip(texts, reference):
        with torch.no_grad():
            x = model(torch.tensor([bert.tokenizer.encode(text).ids])).last_hidden_state[0].numpy()
        worst = max(worst, distance(x[0] if bert.cls else x.mean(0), expected))
    print(f"numpy against transformers: worst 1 - cosine {worst:.1e}", file=sys.stderr)


def row(label, errors, mode):
    mean, worst = TARGETS.get(mode, (None, None))
    met = (mean is None or errors.mean() <= mean) and (worst is None or errors.max() <= worst)
    figures = " | ".join(f"{v:.1e}" for v in (errors.mean(), np.median(errors), errors.max()))
    print(f"| {label} | {figures} | {int(errors.argmax())} | {'yes' if met else 'NO'} |")
    return met


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="the Hugging Face folder")
    parser.add_argument("--package", action="append", default=[], help="a package made from it; may be repeated")
    parser.add_argument("--binary", default=os.path.join(HERE, "..", "target", "release", "lockstep"))
    parser.add_argument("--texts", default=os.path.join(HERE, "quality_sentences.json"))
    parser.add_argument("--torch", action="store_true", help="compare the numpy model with transformers, too")
    args = parser.parse_args()

    texts = json.load(open(args.texts, encoding="utf-8"))
    bert = Bert(args.model)
    reference = [bert.embed(text) for text in texts]
    lengths = [len(bert.tokenizer.encode(text).ids) for text in texts]
    if args.torch:
        with_transformers(args.model, texts, reference)
    print(f"{len(texts)} texts, {min(lengths)} to {max(lengths)} tokens; 1 - cosine against float32\n")
    print("| package | mean | median | worst | worst text | target met |\n|---|---|---|---|---|---|")
    met = True
    for package in args.package:
        errors = np.array([distance(a, b) for a, b in zip(from_package(args.binary, package, texts), reference)])
        label = os.path.basename(package)
        met &= row(label, errors, next((m for m in TARGETS if m in label), ""))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
