"""Small random decoders of odd shapes as Hugging Face folders, each with the logits of the float model beside it.

    python scripts/decoder_reference.py OUT [--transformers]

The float model is written here from the papers, in float64 (needs numpy and safetensors). With --transformers it is
compared with the transformers library in float32 (needs scripts/requirements-torch.txt), so that what the tests compare
with is what everybody else runs.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

FAMILIES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
            "qwen3": "Qwen3ForCausalLM"}


def case(family, hidden, heads, kv, head_dim, inner, layers, vocab, positions, length, **more):
    config = dict(
        architectures=[FAMILIES[family]], model_type=family, hidden_size=hidden, num_attention_heads=heads,
        num_key_value_heads=kv, head_dim=head_dim, intermediate_size=inner, num_hidden_layers=layers,
        vocab_size=vocab, max_position_embeddings=positions, rms_norm_eps=1e-5, hidden_act="silu",
        tie_word_embeddings=False, rope_theta=10000.0, bos_token_id=None, eos_token_id=3)
    test = {"length": length, "dtype": more.pop("dtype", "f32"), "shards": more.pop("shards", 1),
            "spike": more.pop("spike", 0.0), "key_bias": more.pop("key_bias", 0.3)}
    config.update(more)
    return config, test


CASES = {
    "llama-biased": case("llama", 72, 3, 3, 24, 200, 3, 301, 96, 96, attention_bias=True, mlp_bias=True),
    "mistral-wide-heads": case("mistral", 160, 6, 2, 64, 352, 2, 517, 300, 300, sliding_window=300, shards=3,
                               dtype="bf16"),
    "qwen2-one-key-head": case("qwen2", 208, 8, 1, 80, 416, 2, 333, 257, 257, tie_word_embeddings=True,
                               use_sliding_window=False, sliding_window=4, key_bias=40.0),
    "qwen3-yarn": case("qwen3", 96, 4, 2, 128, 256, 2, 999, 1500, 1400, tie_word_embeddings=True, dtype="bf16",
                       rope_theta=1000000.0,
                       rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 375}),
    "llama3-scaling": case("llama", 128, 4, 4, 64, 320, 2, 700, 2048, 1300, dtype="f16", rope_theta=500000.0,
                           rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                         "high_freq_factor": 4.0, "original_max_position_embeddings": 256}),
    "llama-linear-spike": case("llama", 96, 4, 4, 24, 256, 3, 260, 128, 128, spike=3000.0,
                               rope_scaling={"type": "linear", "factor": 2.0}),
}


def weights(config, test, seed):
    rng = np.random.default_rng(seed)
    d, inner = config["hidden_size"], config["intermediate_size"]
    q, k = (config[n] * config["head_dim"] for n in ("num_attention_heads", "num_key_value_heads"))
    qkv_bias = config["model_type"] == "qwen2" or config.get("attention_bias", False)
    out = {"model.embed_tokens.weight": rng.normal(0, 0.6, (config["vocab_size"], d))}

    def linear(name, rows, cols, gain, bias, bias_gain=0.3):
        out[name + ".weight"] = rng.normal(0, gain / math.sqrt(cols), (rows, cols))
        if bias:
            out[name + ".bias"] = rng.normal(0, bias_gain, rows)

    def norm(name, width):
        out[name + ".weight"] = 1 + rng.normal(0, 0.25, width)

    for l in range(config["num_hidden_layers"]):
        p = f"model.layers.{l}."
        norm(p + "input_layernorm", d)
        norm(p + "post_attention_layernorm", d)
        linear(p + "self_attn.q_proj", q, d, 1.6, qkv_bias)
        linear(p + "self_attn.k_proj", k, d, 1.6, qkv_bias, test["key_bias"])
        linear(p + "self_attn.v_proj", k, d, 1.0, qkv_bias)
        linear(p + "self_attn.o_proj", d, q, 1.0, config.get("attention_bias", False))
        linear(p + "mlp.gate_proj", inner, d, 1.5, config.get("mlp_bias", False))
        linear(p + "mlp.up_proj", inner, d, 1.5, config.get("mlp_bias", False))
        linear(p + "mlp.down_proj", d, inner, 1.0, config.get("mlp_bias", False))
        if config["model_type"] == "qwen3":
            norm(p + "self_attn.q_norm", config["head_dim"])
            norm(p + "self_attn.k_norm", config["head_dim"])
    if test["spike"]:  # one channel of the residual stream grows to thousands, as in trained models
        out["model.layers.0.mlp.down_proj.weight"][7] *= test["spike"]
        for name in [n for n in out if "layernorm" in n and ".0." not in n]:
            out[name][7] *= 0.02
    norm("model.norm", d)
    if not config["tie_word_embeddings"]:
        linear("lm_head", config["vocab_size"], d, 2.5, False)
    return {name: narrow(w.astype(np.float32), test["dtype"]) for name, w in out.items()}


def narrow(w, dtype):
    """Rounds to what the file will hold, so that the float model sees the same weights."""
    if dtype == "bf16":
        return ((w.view(np.uint32) + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return w.astype(np.float16).astype(np.float32) if dtype == "f16" else w


def save(folder, tensors, test):
    """The tensors in one file, or in shards with an index."""
    names = sorted(tensors)
    shards = [names[i::test["shards"]] for i in range(test["shards"])]
    files = ["model.safetensors"] if len(shards) == 1 else [
        f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards):
        if test["dtype"] == "bf16":
            write_bf16(folder / file, {n: tensors[n] for n in shard})
        else:
            kind = np.float16 if test["dtype"] == "f16" else np.float32
            save_file({n: tensors[n].astype(kind) for n in shard}, folder / file)
    if len(shards) > 1:
        where = {n: file for file, shard in zip(files, shards) for n in shard}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def write_bf16(path, tensors):
    """numpy has no bf16, so the file is written by hand."""
    header, blobs, at = {}, [], 0
    for name, w in tensors.items():
        blob = (w.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        header[name] = {"dtype": "BF16", "shape": list(w.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


def byte_level():
    """The characters of the byte-level alphabet, by byte."""
    printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    rest = [b for b in range(256) if b not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(rest)}}


def tokenizer(vocab_size):
    """A byte-level BPE with four special tokens, as many merges as fit, and some ids left over."""
    alphabet = byte_level()
    special = ["<|pad|>", "<|begin|>", "<|user|>", "<|end|>"]
    vocab = {t: i for i, t in enumerate(special)}
    for b in range(min(256, vocab_size - 4)):
        vocab[alphabet[b]] = len(vocab)
    merges = []
    for pair in ["t h", "th e", "Ġ a", "Ġ the", "i n", "e r", "o n", "Ġ o", "r e", "Ġ w"]:
        left, right = pair.split(" ")
        if len(vocab) + 3 < vocab_size and left in vocab and right in vocab:
            vocab.setdefault(left + right, len(vocab))
            merges.append([left, right])
    added = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, t in enumerate(special)]
    byte = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": byte, "post_processor": None, "decoder": byte,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": vocab, "merges": merges}}


def frequencies(config):
    """Radians for each position, and the factor of cosines and sines."""
    dim, theta = config["head_dim"], config["rope_theta"]
    f = theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    s = config.get("rope_scaling") or {}
    kind = s.get("rope_type", s.get("type", "default"))
    if kind == "linear":
        return f / s["factor"], 1.0
    if kind == "llama3":
        turns = s["original_max_position_embeddings"] * f / (2 * math.pi)
        low, high = s["low_freq_factor"], s["high_freq_factor"]
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        return (1 - smooth) * f / s["factor"] + smooth * f, 1.0
    if kind == "yarn":
        at = lambda beta: dim * math.log(s["original_max_position_embeddings"] / (beta * 2 * math.pi)) / (
            2 * math.log(theta))
        low, high = max(math.floor(at(32)), 0), min(math.ceil(at(1)), dim - 1)
        ramp = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
        return f / s["factor"] * ramp + f * (1 - ramp), 0.1 * math.log(s["factor"]) + 1
    return f, 1.0


def logits(config, tensors, tokens):
    """Logits of every position, [positions, vocab], in float64."""
    w = {name: t.astype(np.float64) for name, t in tensors.items()}
    dim, kv = config["head_dim"], config["num_key_value_heads"]
    f, factor = frequencies(config)
    angle = np.arange(len(tokens))[:, None] * f[None]
    cos, sin = factor * np.cos(angle), factor * np.sin(angle)
    norm = lambda x, name: x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * w[name + ".weight"]
    linear = lambda x, name: x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)

    def heads(x, name, head_norm, rotate):
        x = linear(x, name).reshape(len(tokens), -1, dim)
        if head_norm + ".weight" in w:
            x = norm(x, head_norm)
        if rotate:
            a, b = x[..., :dim // 2], x[..., dim // 2:]
            x = np.concatenate([a * cos[:, None] - b * sin[:, None], a * sin[:, None] + b * cos[:, None]], -1)
        return x.transpose(1, 0, 2)

    x = w["model.embed_tokens.weight"][tokens]
    hidden = np.triu(np.full((len(tokens), len(tokens)), -np.inf), 1)
    for l in range(config["num_hidden_layers"]):
        p = f"model.layers.{l}."
        h = norm(x, p + "input_layernorm")
        q = heads(h, p + "self_attn.q_proj", p + "self_attn.q_norm", True)
        k = heads(h, p + "self_attn.k_proj", p + "self_attn.k_norm", True)
        v = heads(h, p + "self_attn.v_proj", "", False)
        k, v = (t.repeat(len(q) // kv, 0) for t in (k, v))
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(dim) + hidden
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        context = (scores / scores.sum(-1, keepdims=True)) @ v
        x = x + linear(context.transpose(1, 0, 2).reshape(len(tokens), -1), p + "self_attn.o_proj")
        h = norm(x, p + "post_attention_layernorm")
        gate = linear(h, p + "mlp.gate_proj")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(h, p + "mlp.up_proj"), p + "mlp.down_proj")
    head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    return linear(norm(x, "model.norm"), head)


def check_with_transformers(folder, tokens, ours):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = model(torch.tensor([tokens])).logits[0].double().numpy()
    error, spread = np.abs(theirs - ours).max(), ours.std()
    print(f"{folder.name}: at most {error:.2e} from transformers; logits have a deviation of {spread:.2f}")
    assert error < 2e-3 * spread, folder.name


def main():
    out = Path(sys.argv[1])
    for seed, (name, (config, test)) in enumerate(CASES.items()):
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        tensors = weights(config, test, seed)
        save(folder, tensors, test)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer(config["vocab_size"])))
        rng = np.random.default_rng(seed + 100)
        tokens = [int(t) for t in rng.integers(0, config["vocab_size"], test["length"])]
        found = logits(config, tensors, tokens)
        (folder / "tokens.json").write_text(json.dumps(tokens))
        (folder / "logits.f32").write_bytes(found.astype("<f4").tobytes())
        if "--transformers" in sys.argv:
            check_with_transformers(folder, tokens, found)


if __name__ == "__main__":
    main()
