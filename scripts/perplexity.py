#!/usr/bin/env python3
"""Perplexity of a float model on the windows of `lockstep perplexity`.

    .venv/bin/python scripts/perplexity.py --model assets/tiny-llama --text assets/heldout.txt

The text is tokenized as a whole, with the special tokens that the tokenizer adds, and cut into windows of N tokens; a last
window of one token is left out. Each window is run from position 0 by the float64 model of decoder_reference.py, each of its
tokens but the first is scored, and the perplexity is exp of the mean. With `--transformers` the transformers library scores
the same windows in float32 too (needs requirements-torch.txt). With `--package NAME=PERPLEXITY`, any number of times, the
relative difference is printed beside it. The last line is one JSON object.
"""
import argparse
import json
import math
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from decoder_reference import logits

# Of safetensors, as numpy reads it; it has no bfloat16.
DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def windows(ids, window):
    """The parts that are scored."""
    parts = (ids[start : start + window] for start in range(0, len(ids), window))
    return [part for part in parts if len(part) > 1]


def score(parts, model):
    """The mean negative log-likelihood in nats of all tokens but each window's first."""
    total, count = 0.0, 0
    for part in parts:
        rows = np.asarray(model(part)[:-1], dtype=np.float64)
        most = rows.max(-1)
        total += (np.log(np.exp(rows - most[:, None]).sum(-1)) + most - rows[np.arange(len(rows)), part[1:]]).sum()
        count += len(part) - 1
    return total / count, count


def float64_model(folder):
    config, tensors = json.loads((folder / "config.json").read_text()), read_tensors(folder / "model.safetensors")
    return lambda tokens: logits(config, tensors, tokens)


def read_tensors(path):
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {name: tensor(data[start:], **entry) for name, entry in header.items()}


def tensor(data, dtype, shape, data_offsets):
    values = np.frombuffer(data[slice(*data_offsets)], dtype=DTYPES[dtype]).reshape(shape)
    if dtype == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64)


def transformers_model(folder):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    return lambda tokens: model(torch.tensor([tokens])).logits[0].numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--transformers", action="store_true")
    parser.add_argument("--package", action="append", default=[], metavar="NAME=PERPLEXITY")
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    parts = windows(tokenizer.encode(arguments.text.read_text(encoding="utf-8")).ids, arguments.window)
    mean, count = score(parts, float64_model(arguments.model))
    report = {"perplexity": math.exp(mean), "mean_nll": mean, "scored_tokens": count, "window": arguments.window}
    if arguments.transformers:
        report["transformers"] = math.exp(score(parts, transformers_model(arguments.model))[0])
    for given in arguments.package:
        name, value = given.split("=")
        report[name] = {"perplexity": float(value), "percent": 100 * math.expm1(math.log(float(value)) - mean)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
