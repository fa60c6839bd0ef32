#!/usr/bin/env python3
"""Trains lockstep-tiny, the Llama-architecture model in assets/tiny-llama, on one CPU core.

    venv/bin/python scripts/train_tiny.py --corpus corpus --work work --out assets/tiny-llama --heldout assets/heldout.txt

`corpus` comes from train_corpus.py. Everything follows from the corpus, the seed and the two numbers of steps: windows are
drawn by a generator of their own for each step, so that a run that was stopped goes on from its last checkpoint in `work`
as if it had not been. (Floating point sums may differ between machines and versions of torch.)

The learning rate warms up, stays, and falls to zero over the last `--decay` steps; the first part doesn't depend on how many
steps follow, so a run can be ended early by choosing `--steps` again. `--lengths` is the schedule of window lengths.
"""
import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

END, USER, ASSISTANT = "<|endoftext|>", "<|user|>", "<|assistant|>"
SPECIAL = [END, USER, ASSISTANT]
VOCABULARY = 4096
TOKENS_PER_STEP = 2048
WARM_UP = 100
PEAK = 2e-3


@dataclass
class Shape:
    """Names as in a Hugging Face config.json."""
    vocab_size: int = VOCABULARY
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 1024
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5


def rows(path: Path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def page_text(row) -> str:
    return f"# {row['title']}\n\n{row['text']}\n"


def train_tokenizer(texts) -> Tokenizer:
    """Byte-level BPE, as GPT-2's: any bytes can be written, and nothing is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class Norm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.s = s
        self.q_proj = nn.Linear(s.hidden_size, s.num_attention_heads * s.head_dim, bias=False)
        self.k_proj = nn.Linear(s.hidden_size, s.num_key_value_heads * s.head_dim, bias=False)
        self.v_proj = nn.Linear(s.hidden_size, s.num_key_value_heads * s.head_dim, bias=False)
        self.o_proj = nn.Linear(s.num_attention_heads * s.head_dim, s.hidden_size, bias=False)

    def forward(self, x, cos, sin):
        batch, length, _ = x.shape
        split = lambda y: y.view(batch, length, -1, self.s.head_dim).transpose(1, 2)
        q, k, v = split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        q, k = (rotate(y, cos, sin).to(v.dtype) for y in (q, k))
        repeats = self.s.num_attention_heads // self.s.num_key_value_heads
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        # Written out, because the fused kernel's backward pass is slow on a CPU.
        scores = (q @ k.transpose(-1, -2)).float() * self.s.head_dim**-0.5
        scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf)
        y = scores.softmax(-1).to(v.dtype) @ v
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


class Feed(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.gate_proj = nn.Linear(s.hidden_size, s.intermediate_size, bias=False)
        self.up_proj = nn.Linear(s.hidden_size, s.intermediate_size, bias=False)
        self.down_proj = nn.Linear(s.intermediate_size, s.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.input_layernorm = Norm(s.hidden_size, s.rms_norm_eps)
        self.self_attn = Attention(s)
        self.post_attention_layernorm = Norm(s.hidden_size, s.rms_norm_eps)
        self.mlp = Feed(s)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.s = s
        self.embed_tokens = nn.Embedding(s.vocab_size, s.hidden_size)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.num_hidden_layers))
        self.norm = Norm(s.hidden_size, s.rms_norm_eps)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                narrow = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * s.num_hidden_layers) if narrow else 0.02)
        angles = torch.outer(torch.arange(s.max_position_embeddings).float(),
                             s.rope_theta ** -(torch.arange(0, s.head_dim, 2).float() / s.head_dim))
        angles = torch.cat((angles, angles), -1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens):
        """Logits [batch, length, vocabulary] of token ids [batch, length]."""
        x = self.embed_tokens(tokens)
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(self.norm(x), self.embed_tokens.weight)


def rate(step: int, steps: int, decay: int) -> float:
    warm = min(1.0, (step + 1) / WARM_UP)
    return PEAK * warm * min(1.0, (steps - step) / decay)


def length_at(step: int, lengths) -> int:
    """`lengths` holds (first step, window length), ascending."""
    return [length for first, length in lengths if step >= first][-1]


def windows(data, seed: int, step: int, length: int):
    """Inputs and targets [TOKENS_PER_STEP / length, length] of one step."""
    starts = np.random.default_rng([seed, step]).integers(0, len(data) - length - 1, TOKENS_PER_STEP // length)
    batch = torch.from_numpy(np.stack([data[s : s + length + 1] for s in starts]).astype(np.int64))
    return batch[:, :-1], batch[:, 1:]


@torch.no_grad()
def loss_on(model, data, window: int = 512) -> float:
    """Mean negative log-likelihood in nats over consecutive windows, each token but a window's first."""
    model.eval()
    total = count = 0
    for start in range(0, len(data) - 1, window):
        part = torch.from_numpy(data[start : start + window].astype(np.int64))[None]
        if part.shape[1] < 2:
            break
        logits = model(part)[0, :-1].float()
        total += F.cross_entropy(logits, part[0, 1:], reduction="sum").item()
        count += part.shape[1] - 1
    model.train()
    return total / count


def groups(model):
    """Weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]


def train(arguments, data, heldout):
    torch.manual_seed(arguments.seed)
    model = Llama(Shape())
    optimizer = torch.optim.AdamW(groups(model), lr=PEAK, betas=(0.9, 0.95))
    state, first = arguments.work / "state.pt", 0
    decay_from = arguments.steps - arguments.decay
    if state.exists():
        kept = torch.load(state, weights_only=True)
        assert kept["step"] <= decay_from or kept["steps"] == [arguments.steps, arguments.decay], \
            "the checkpoint is of a decay towards another end"
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        first = kept["step"]
    print("parameters", sum(p.numel() for p in model.parameters()), "tokens", len(data), "from step", first, flush=True)
    began, losses = time.time(), []

    def loss_of(inputs, targets):
        return F.cross_entropy(model(inputs).float().flatten(0, 1), targets.flatten())

    step_loss = loss_of if arguments.eager else torch.compile(loss_of, dynamic=False)
    for step in range(first, arguments.steps):
        inputs, targets = windows(data, arguments.seed, step, length_at(step, arguments.lengths))
        for group in optimizer.param_groups:
            group["lr"] = rate(step, arguments.steps, arguments.decay)
        with torch.autocast("cpu", torch.bfloat16, enabled=not arguments.full_precision):
            loss = step_loss(inputs, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        done = step + 1
        if done % 50 == 0:
            print(f"step {done} loss {np.mean(losses[-50:]):.3f} seconds {time.time() - began:.0f}", flush=True)
        if done % 100 == 0 or done == arguments.steps:
            keep(state, model, optimizer, done, arguments)
        if done % 500 == 0 or done == arguments.steps:
            print(f"step {done} held-out loss {loss_on(model, heldout[:8192]):.4f}", flush=True)
    return model


def keep(path, model, optimizer, step, arguments):
    partial = path.with_suffix(".partial")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step,
                "steps": [arguments.steps, arguments.decay]}, partial)
    partial.rename(path)


# A heading asks and the text below it answers, which is what the model has seen in training.
TEMPLATE = ("{% for message in messages %}{% if message['role'] == 'assistant' %}{{ message['content'] }}{{ '\\n\\n' }}"
            "{% elif message['role'] == 'system' %}{{ message['content'] }}{{ '\\n\\n' }}"
            "{% else %}{{ '# ' }}{{ message['content'] }}{{ '\\n\\n' }}{% endif %}{% endfor %}")


def export(model, tokenizer, out: Path):
    out.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": p.detach().to(torch.bfloat16).contiguous() for name, p in model.state_dict().items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    end = tokenizer.token_to_id(END)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **asdict(model.s), "hidden_act": "silu",
              "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
              "bos_token_id": end, "eos_token_id": end, "rope_scaling": None}
    write(out / "config.json", config)
    write(out / "generation_config.json", {"bos_token_id": end, "eos_token_id": end})
    write(out / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END,
                                          "model_max_length": model.s.max_position_embeddings,
                                          "clean_up_tokenization_spaces": False, "chat_template": TEMPLATE})
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", pair=f"{END} $A {END} $B",
                                                             special_tokens=[(END, end)])
    tokenizer.save(str(out / "tokenizer.json"))


def write(path: Path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="folder of the finished model")
    parser.add_argument("--heldout", type=Path, help="writes the held-out pages as one text file")
    parser.add_argument("--steps", type=int, default=2050)
    parser.add_argument("--decay", type=int, default=350)
    parser.add_argument("--lengths", default="0:256,1700:512,1950:1024", help="FIRST_STEP:LENGTH,...")
    parser.add_argument("--seed", type=int, default=20261121)
    parser.add_argument("--eager", action="store_true", help="without torch.compile, which needs a C++ compiler")
    parser.add_argument("--full-precision", action="store_true", help="float32 instead of bfloat16 products")
    arguments = parser.parse_args()
    arguments.lengths = [tuple(map(int, part.split(":"))) for part in arguments.lengths.split(",")]
    return arguments


def main():
    arguments = parse()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    arguments.work.mkdir(parents=True, exist_ok=True)
    pages, held = rows(arguments.corpus / "train.jsonl"), rows(arguments.corpus / "heldout.jsonl")
    path = arguments.work / "tokenizer.json"
    if not path.exists():
        train_tokenizer([page_text(row) for row in pages]).save(str(path))
    tokenizer = Tokenizer.from_file(str(path))
    end = tokenizer.token_to_id(END)
    flat = lambda some: np.array([i for row in some for i in [end] + tokenizer.encode(page_text(row), add_special_tokens=False).ids], dtype=np.uint16)
    order = np.random.default_rng(arguments.seed).permutation(len(pages))
    model = train(arguments, flat([pages[i] for i in order]), flat(held))
    if arguments.heldout:
        arguments.heldout.write_text("\n".join(page_text(row) for row in held), encoding="utf-8")
    if arguments.out:
        export(model, tokenizer, arguments.out)
        rounded = Llama(Shape())
        rounded.load_state_dict({n: p.to(torch.bfloat16).float() for n, p in model.state_dict().items()})
        loss = loss_on(rounded, flat(held))
        print(f"held-out loss of the exported weights {loss:.4f}, perplexity {math.exp(loss):.3f}")


if __name__ == "__main__":
    main()
