#!/usr/bin/env python3
"""Perplexity of a float model on the windows of `lockstep perplexity`.

    python3 -m venv venv && venv/bin/pip install -r scripts/requirements-torch.txt
    venv/bin/python scripts/perplexity.py --model assets/tiny-llama --text assets/heldout.txt

The text is tokenized as a whole, with the special tokens that the tokenizer adds, and cut into windows of N tokens; a last
window of one token is left out. Each window is run from position 0 by transformers in float32, each of its tokens but the
first is scored, and the perplexity is exp of the mean. With `--package NAME=PERPLEXITY`, any number of times, the relative
difference is printed beside it. The last line is one JSON object.
"""
import argparse
import json
import math
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM


@torch.no_grad()
def score(model, ids, window):
    """Sum of negative log-likelihoods in nats, and how many tokens were scored."""
    total, count = 0.0, 0
    for start in range(0, len(ids), window):
        part = ids[start : start + window]
        if len(part) < 2:
            break
        logits = model(torch.tensor([part])).logits[0, :-1].double()
        total += torch.nn.functional.cross_entropy(logits, torch.tensor(part[1:]), reduction="sum").item()
        count += len(part) - 1
    return total, count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--package", action="append", default=[], metavar="NAME=PERPLEXITY")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    ids = tokenizer.encode(arguments.text.read_text(encoding="utf-8")).ids
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32, attn_implementation="eager").eval()
    total, count = score(model, ids, arguments.window)
    float_model = math.exp(total / count)
    report = {"perplexity": float_model, "mean_nll": total / count, "scored_tokens": count, "window": arguments.window}
    for given in arguments.package:
        name, value = given.split("=")
        report[name] = {"perplexity": float(value), "percent": 100 * (float(value) / float_model - 1)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
