"""Small random decoders of odd shapes as Hugging Face folders, each with the logits of the float model beside it.

    python scripts/decoder_reference.py OUT

The float model is written here from the papers, in float64 (needs numpy and safetensors), and held to what the
transformers library gave in float32 for the same weights and texts (model/tests/families.json, made by
scripts/families.py): so what the tests compare with is what everybody else runs.

Weights follow from a model's name alone, by integer arithmetic and correctly rounded operations, on every machine.
"""

import hashlib
import json
import math
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

FIXTURE = Path(__file__).parent / "../model/tests/families.json"
FAMILIES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
            "qwen3": "Qwen3ForCausalLM"}
# Standard deviation of the logits: the float model foresees its texts as well as if it were a trained one.
SPREAD = 2.0
# Standard deviation of all matrices of a model as transformers initialises it; its biases are 0, its norms 1.
INITIAL = 0.02


def case(family, head_dim, heads, kv, hidden, inner, layers, vocab, length, positions=None, **more):
    config = dict(
        architectures=[FAMILIES[family]], model_type=family, hidden_size=hidden, num_attention_heads=heads,
        num_key_value_heads=kv, head_dim=head_dim, intermediate_size=inner, num_hidden_layers=layers,
        vocab_size=vocab, max_position_embeddings=positions or length, rms_norm_eps=1e-5, hidden_act="silu",
        tie_word_embeddings=False, rope_theta=10000.0, bos_token_id=None, eos_token_id=3)
    test = {"length": length, "dtype": more.pop("dtype", "f32"), "shards": more.pop("shards", 1),
            "spike": more.pop("spike", 0.0), "key_bias": more.pop("key_bias", 0.3), "initial": False}
    config.update(more)
    return config, test


def linear(factor):
    return {"rope_type": "linear", "factor": factor}


def llama3(factor, original):
    return {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": original}


def yarn(factor, original, **more):
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **more}


# Every family with every head size, and with 1, 3 and 8 query heads for each key head; so has every head size.
CASES = {
    "llama-24-8": case("llama", 24, 8, 1, 72, 200, 3, 307, 389, attention_bias=True, mlp_bias=True),
    "llama-64-1": case("llama", 64, 3, 3, 128, 320, 2, 701, 1201, 2048, dtype="f16", rope_theta=500000.0,
                       rope_scaling=llama3(8.0, 256)),
    "llama-80-3": case("llama", 80, 6, 2, 176, 408, 2, 523, 401, tie_word_embeddings=True, shards=2,
                       rope_scaling={"type": "linear", "factor": 2.0}),
    "llama-128-8": case("llama", 128, 8, 1, 120, 296, 4, 263, 1153, 1500, dtype="bf16", rope_scaling=yarn(4.0, 375)),
    "mistral-24-1": case("mistral", 24, 5, 5, 88, 232, 3, 409, 1087, rope_theta=1000000.0, sliding_window=None),
    "mistral-64-3": case("mistral", 64, 6, 2, 160, 352, 2, 517, 331, sliding_window=331, shards=3, dtype="bf16"),
    "mistral-80-8": case("mistral", 80, 16, 2, 144, 376, 2, 811, 397, 512, tie_word_embeddings=True, sliding_window=None,
                         rope_scaling=yarn(8.0, 64, beta_fast=24.0, beta_slow=2.0)),
    "mistral-128-1": case("mistral", 128, 2, 2, 136, 280, 3, 1013, 1031, dtype="f16", sliding_window=4096),
    "qwen2-24-3": case("qwen2", 24, 9, 3, 104, 264, 3, 607, 1103, tie_word_embeddings=True, dtype="bf16",
                       rope_theta=1000000.0, use_sliding_window=False, sliding_window=4),
    "qwen2-64-8": case("qwen2", 64, 8, 1, 112, 304, 2, 431, 353, 512, rope_scaling=yarn(4.0, 128)),
    "qwen2-80-1": case("qwen2", 80, 3, 3, 208, 416, 2, 337, 1051, key_bias=40.0, dtype="f16"),
    "qwen2-128-3": case("qwen2", 128, 3, 1, 152, 336, 2, 907, 379, rope_scaling=linear(3.0), shards=2),
    "qwen3-24-1": case("qwen3", 24, 4, 4, 80, 216, 3, 293, 367, attention_bias=True),
    "qwen3-64-3": case("qwen3", 64, 6, 2, 96, 256, 2, 1999, 1129, tie_word_embeddings=True, rope_theta=1000000.0),
    "qwen3-80-8": case("qwen3", 80, 8, 1, 168, 392, 2, 773, 383, dtype="bf16", rope_scaling=llama3(4.0, 96)),
    "qwen3-128-3": case("qwen3", 128, 6, 2, 96, 256, 2, 997, 1409, 1500, tie_word_embeddings=True, dtype="bf16",
                        rope_theta=1000000.0, rope_scaling=yarn(4.0, 375)),
}
# The same shapes as transformers initialises them.
CASES |= {f"{name}-initial": (config, test | {"initial": True}) for name, (config, test) in CASES.items()}
CASES["spike"] = case("llama", 24, 4, 4, 96, 256, 3, 271, 311, spike=3000.0)


class Draws:
    """Numbers of a model by its name; the words of PCG64 are the same on every machine, which numpy's normals are not."""

    def __init__(self, name):
        self.words = np.random.PCG64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))

    def normal(self, deviation, shape):
        """Nearly normal: the sum of eight 16-bit uniforms, at most 4.9 deviations from 0."""
        count = math.prod(shape)
        parts = self.words.random_raw(2 * count).view(np.uint16).reshape(count, 8)
        sums = parts.astype(np.int64).sum(1) - 4 * 65535
        unit = math.sqrt(8 * (65536.0**2 - 1) / 12)
        return (sums * (deviation / unit)).reshape(shape)

    def uniform(self):
        """In [0, 1)."""
        return float(self.words.random_raw() >> 11) * 2.0**-53


def weights(name, config, test):
    draws, initial = Draws(name), test["initial"]
    d, inner = config["hidden_size"], config["intermediate_size"]
    q, k = (config[n] * config["head_dim"] for n in ("num_attention_heads", "num_key_value_heads"))
    qkv_bias = config["model_type"] == "qwen2" or config.get("attention_bias", False)
    tied = config["tie_word_embeddings"]
    embedding = INITIAL if initial else SPREAD / math.sqrt(d) if tied else 0.6
    out = {"model.embed_tokens.weight": draws.normal(embedding, (config["vocab_size"], d))}

    def linear(name, rows, cols, gain, bias, bias_gain=0.3):
        out[name + ".weight"] = draws.normal(INITIAL if initial else gain / math.sqrt(cols), (rows, cols))
        if bias:
            out[name + ".bias"] = np.zeros(rows) if initial else draws.normal(bias_gain, (rows,))

    def norm(name, width):
        out[name + ".weight"] = np.ones(width) if initial else 1 + draws.normal(0.25, (width,))

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
    if not tied:
        linear("lm_head", config["vocab_size"], d, SPREAD, False)
    return {name: narrow(w.astype(np.float32), test["dtype"]) for name, w in out.items()}


def digest(tensors):
    """SHA-256 of all tensors in float32, by name."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(name.encode() + b"\0" + tensors[name].astype("<f4").tobytes())
    return sha.hexdigest()


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
        low, high = max(math.floor(at(s.get("beta_fast", 32))), 0), min(math.ceil(at(s.get("beta_slow", 1))), dim - 1)
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


def softmax(row):
    e = np.exp(row - row.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def summary(tensors, tokens, found):
    """What the fixture holds of a float model: which, on which text, and what it says. Of the logits, some
    positions and columns; of the text, the mean -ln p of each token but the first, and the mean entropy at those positions."""
    found = np.asarray(found, dtype=np.float64)
    p = softmax(found[:-1])
    log = np.log(p)
    positions, columns = picked(*found.shape)
    return {
        "weights": digest(tensors),
        "text": [int(t) for t in tokens],
        "top": [int(t) for t in found.argmax(-1)],
        "mean_nll": float(-log[np.arange(len(log)), tokens[1:]].mean()),
        "mean_entropy": float(-(p * log).sum(-1).mean()),
        "deviation": float(found.std()),
        "positions": positions,
        "columns": columns,
        "logits": [[round(float(x), 5) for x in found[t, columns]] for t in positions],
    }


def picked(length, vocab):
    """Positions at both ends and at the boundaries of attention's blocks, and some columns."""
    positions = [t for t in (0, 1, 255, 256, 700, 1023, 1024, length - 1) if t < length]
    return positions, [0, 1, 2, vocab // 3, vocab // 2, vocab - 2, vocab - 1]


def hold(name, ours, theirs):
    """That the float64 model here and transformers in float32 are one, up to float32."""
    assert ours["weights"] == theirs["weights"], f"{name}: other weights than when the fixture was made"
    assert ours["text"] == theirs["text"], name
    error = np.abs(np.array(ours["logits"]) - np.array(theirs["logits"])).max() / ours["deviation"]
    tops = sum(a != b for a, b in zip(ours["top"], theirs["top"]))
    means = max(abs(ours[key] - theirs[key]) for key in ("mean_nll", "mean_entropy"))
    print(f"{name}: logits at most {error:.1e} deviations from transformers, means {means:.1e} nats, {tops} other top tokens")
    assert error < 2e-3 and means < 5e-5 and tops <= 1, name


def write(out, name):
    """Writes the folder of a model. Returns it and the tensors."""
    config, test = CASES[name]
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    tensors = weights(name, config, test)
    save(folder, tensors, test)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(config["vocab_size"])))
    return folder, tensors


def main():
    out, fixture = Path(sys.argv[1]), json.loads(FIXTURE.read_text())
    assert list(fixture) == list(CASES)
    for name, theirs in fixture.items():
        folder, tensors = write(out, name)
        tokens = np.array(theirs["text"])
        found = logits(CASES[name][0], tensors, tokens)
        hold(name, summary(tensors, tokens, found), theirs)
        (folder / "logits.f32").write_bytes(found.astype("<f4").tobytes())


if __name__ == "__main__":
    main()
