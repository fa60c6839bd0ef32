"""What transformers says in float32 of the small random models of decoder_reference.py: makes model/tests/families.json.

    python3 -m venv venv && venv/bin/pip install -r scripts/requirements-torch.txt -r scripts/requirements.txt
    venv/bin/python scripts/families.py

Each model writes a text itself, token by token from its whole distribution, so that perplexity on it means something: it
is what a text costs whose source the model knows. Then transformers reads the text in one pass, and that pass is kept.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from decoder_reference import CASES, FIXTURE, Draws, hold, logits, softmax, summary, write


@torch.no_grad()
def text(model, length, vocab, draws):
    """A text of the model's own."""
    tokens, cache = [int(draws.uniform() * vocab)], None
    while len(tokens) < length:
        answer = model(torch.tensor([tokens[-1:]]), past_key_values=cache, use_cache=True)
        cache = answer.past_key_values
        below = softmax(answer.logits[0, -1].double().numpy()).cumsum()
        tokens.append(min(int((below <= draws.uniform()).sum()), vocab - 1))
    return tokens


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    fixture = {}
    with tempfile.TemporaryDirectory() as out:
        for name, (config, test) in CASES.items():
            folder, tensors = write(Path(out), name)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
            assert type(model).__name__ == config["architectures"][0]
            tokens = np.array(text(model, test["length"], config["vocab_size"], Draws(name + " text")))
            fixture[name] = summary(tensors, tokens, model(torch.tensor(tokens[None])).logits[0].numpy())
            hold(name, summary(tensors, tokens, logits(config, tensors, tokens)), fixture[name])
    lines = [f"{json.dumps(name)}: {json.dumps(told, separators=(',', ':'))}" for name, told in fixture.items()]
    FIXTURE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
