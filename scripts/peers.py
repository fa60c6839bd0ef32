"""Runs other engines beside this one, in the same minutes on the same machine, and prints how they compare.

    cargo build --release
    python -m venv peers && CMAKE_ARGS=-DGGML_NATIVE=ON peers/bin/pip install --no-binary llama-cpp-python \\
        -r scripts/peers_requirements.txt
    peers/bin/python scripts/peers.py --shapes smollm2-135m tinyllama-1.1b --weights w8 w16 --products \
        --minilm minilm-w8.lsp minilm-w16.lsp

Decoders: random weights at a model's shape, ours by `lockstep synth`, llama.cpp's as a GGUF file of the same dimensions
(Q8_0 beside w8, BF16 beside w16). A prefill reads 512 tokens, a decode makes 128 from an empty cache. Encoders: a BERT of
MiniLM's shape in onnxruntime, with its own fused operators, as float32 and with dynamic int8, and where PyTorch is
installed too (`-r scripts/requirements-torch.txt`) as transformers runs it there, beside packages that `lockstep import`
made. Ours commits to every layer at every point. Products: oneDNN's of bytes, through PyTorch, beside `lockstep bench ops` at
shapes of the decoders; ours has two products of bytes for each in w8 and four in w16, and rates are of products of bytes.

Rounds alternate between the engines, and medians are compared, so that a load which lasts hits both alike.
"""

import argparse
import ctypes
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PREFILL, DECODE = 512, 128


@dataclass(frozen=True)
class Shape:
    """Dimensions of a decoder of the Llama family."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    tied: bool


SHAPES = {
    "smollm2-135m": Shape(576, 30, 9, 3, 1536, 49152, True),
    "tinyllama-1.1b": Shape(2048, 22, 32, 4, 5632, 32000, False),
}
# Ours, and the format of llama.cpp that has as many bits.
FORMATS = {"w8": "Q8_0", "w16": "BF16"}
# What the ratio is held to, by what is measured; for encoders and products beside the best peer.
TARGETS = {"prefill": {"w8": 3.0, "w16": 2.0}, "decode": {"w8": 1.1, "w16": 1.0}, "encoder": {"w8": 2.0, "w16": 1.2},
           "product": {"w8": 1.0, "w16": 1.0}}


def write_gguf(path: Path, shape: Shape, form: str) -> None:
    """A model with random weights, as llama.cpp reads it; without a vocabulary, because nobody writes text with it."""
    import gguf

    kind = getattr(gguf.GGMLQuantizationType, form)
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    head = shape.hidden // shape.heads
    writer.add_context_length(2048)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("no_vocab")

    def matrix(name: str, rows: int, cols: int) -> None:
        weights = rng.standard_normal((rows, cols), dtype=np.float32) / np.float32(cols**0.5)
        writer.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(shape.hidden, dtype=np.float32))

    matrix("token_embd.weight", shape.vocab, shape.hidden)
    norm("output_norm.weight")
    if not shape.tied:
        matrix("output.weight", shape.vocab, shape.hidden)
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        norm(block + "attn_norm.weight")
        matrix(block + "attn_q.weight", shape.heads * head, shape.hidden)
        matrix(block + "attn_k.weight", shape.kv_heads * head, shape.hidden)
        matrix(block + "attn_v.weight", shape.kv_heads * head, shape.hidden)
        matrix(block + "attn_output.weight", shape.hidden, shape.heads * head)
        norm(block + "ffn_norm.weight")
        matrix(block + "ffn_gate.weight", shape.ffn, shape.hidden)
        matrix(block + "ffn_up.weight", shape.ffn, shape.hidden)
        matrix(block + "ffn_down.weight", shape.hidden, shape.ffn)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """llama.cpp through its C interface, driven as its own benchmark drives it."""

    def __init__(self, path: Path, vocab: int, threads: int):
        import llama_cpp

        self.api, self.vocab = llama_cpp, vocab
        quiet = llama_cpp.llama_log_callback(lambda *_: None)
        self.quiet = quiet
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise SystemExit(f"llama.cpp does not load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = PREFILL + DECODE, PREFILL, PREFILL
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit("llama.cpp makes no context")
        # The first pass maps the weights and allocates.
        self.prefill(), self.decode(4)

    def _decode(self, tokens: list[int]) -> None:
        array = (self.api.llama_token * len(tokens))(*tokens)
        if self.api.llama_decode(self.context, self.api.llama_batch_get_one(array, len(tokens))) != 0:
            raise SystemExit("llama.cpp fails to decode")
        self.api.llama_synchronize(self.context)

    def _clear(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def prefill(self) -> float:
        """Tokens a second."""
        self._clear()
        tokens = [(17 + 31 * t) % self.vocab for t in range(PREFILL)]
        start = time.perf_counter()
        self._decode(tokens)
        return PREFILL / (time.perf_counter() - start)

    def decode(self, words: int = DECODE) -> float:
        """Words a second, one after the other from an empty cache; drawing them is not counted."""
        self._clear()
        start = time.perf_counter()
        for word in range(words):
            self._decode([(17 + 31 * word) % self.vocab])
        return words / (time.perf_counter() - start)

    def close(self) -> None:
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)


def lockstep(program: Path, *arguments: str) -> list[dict]:
    """The rows that a command of this project prints as JSON lines."""
    done = subprocess.run([program, *arguments, "--json"], stdout=subprocess.PIPE, check=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def version(module: str) -> str:
    from importlib.metadata import version as of

    return f"{module} {of(module)}"


def compare_decoder(options, name: str, ours: str, folder: Path) -> list[dict]:
    """Rounds of both engines on one shape; a row for prefill and one for decode."""
    shape, theirs = SHAPES[name], FORMATS[ours]
    gguf, package = folder / f"{name}-{theirs}.gguf", folder / f"{name}-{ours}.lsp"
    print(f"making {name} as {theirs} and {ours}", file=sys.stderr)
    write_gguf(gguf, shape, theirs)
    lockstep(options.lockstep, "synth", "--shape", name, "--weights", ours, "--seed", "1", "--max-positions", "1024",
             "--out", str(package))
    peer = LlamaCpp(gguf, shape.vocab, options.threads)
    figures = {"prefill": ([], []), "decode": ([], [])}
    rows = []
    for number in range(options.rounds):
        print(f"{name} {ours}: round {number + 1} of {options.rounds}", file=sys.stderr)
        figures["prefill"][0].append(peer.prefill())
        figures["decode"][0].append(peer.decode())
        [row] = lockstep(options.lockstep, "bench", "model", "--package", str(package), "--prefill", str(PREFILL),
                         "--decode", str(DECODE), "--threads", str(options.threads), "--samples", "1")
        figures["prefill"][1].append(row["prefill_tokens_per_second"])
        figures["decode"][1].append(row["decode_tokens_per_second"])
        rows.append(row)
    peer.close()
    gguf.unlink(), package.unlink()
    return [
        result(f"{name}, {what} {count}", f"llama.cpp {theirs}", ours, "tokens/s", *figures[what], rows, TARGETS[what][ours])
        for what, count in [("prefill", PREFILL), ("decode", DECODE)]
    ]


def result(what: str, peer: str, ours: str, unit: str, theirs: list, own: list, rows: list[dict],
           target: float | None) -> dict:
    """One row of the comparison, from our program's own rows."""
    a, b = statistics.median(theirs), statistics.median(own)
    shares = [row["commit_share"] for row in rows if "commit_share" in row]
    return {
        "what": what, "peer": peer, "ours": ours, "unit": unit, "peer_median": a, "our_median": b, "ratio": b / a,
        "target": target, "peer_samples": theirs, "our_samples": own,
        "commit_share": statistics.median(shares) if shares else None,
        "disturbed": sum(bool(row["disturbed"]) for row in rows),
    }


def beside_all(what: str, kind: str, ours: str, unit: str, theirs: dict, own: list, rows: list[dict]) -> list[dict]:
    """A row for each peer; the target is beside the best one."""
    best = max(theirs, key=lambda peer: statistics.median(theirs[peer]))
    return [result(what, peer, ours, unit, theirs[peer], own, rows, TARGETS[kind][ours] if peer == best else None)
            for peer in theirs]


HIDDEN, LAYERS, HEADS, FFN, TOKENS = 384, 6, 12, 1536, 128
WITH_TORCH = all(importlib.util.find_spec(module) for module in ["torch", "transformers"])


def write_onnx(path: Path) -> None:
    """A BERT of MiniLM's shape from the fused operators that onnxruntime has for one, after the embedding."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(1)
    nodes, weights = [], []

    def weight(name: str, *dims: int) -> str:
        values = rng.standard_normal(dims, dtype=np.float32) / np.float32(dims[0] ** 0.5)
        weights.append(numpy_helper.from_array(values, name))
        return name

    def node(op: str, inputs: list[str], out: str, domain: str = "com.microsoft", **attributes) -> str:
        nodes.append(helper.make_node(op, inputs, [out], domain=domain, **attributes))
        return out

    x = "x"
    for layer in range(LAYERS):
        def named(part: str, layer: int = layer) -> str:
            return f"layer{layer}.{part}"

        qkv = [weight(named("qkv"), HIDDEN, 3 * HIDDEN), weight(named("qkv.bias"), 3 * HIDDEN)]
        attended = node("Attention", [x, *qkv], named("attended"), num_heads=HEADS)
        projected = node("MatMul", [attended, weight(named("out"), HIDDEN, HIDDEN)], named("projected"), domain="")
        norm = [weight(named("gamma1"), HIDDEN), weight(named("beta1"), HIDDEN), weight(named("out.bias"), HIDDEN)]
        x = node("SkipLayerNormalization", [projected, x, *norm], named("x1"))
        up = node("MatMul", [x, weight(named("up"), HIDDEN, FFN)], named("up.product"), domain="")
        up = node("BiasGelu", [up, weight(named("up.bias"), FFN)], named("gelu"))
        down = node("MatMul", [up, weight(named("down"), FFN, HIDDEN)], named("down.product"), domain="")
        norm = [weight(named("gamma2"), HIDDEN), weight(named("beta2"), HIDDEN), weight(named("down.bias"), HIDDEN)]
        x = node("SkipLayerNormalization", [down, x, *norm], named("x2"))
    node("ReduceMean", [x], "pooled", domain="", axes=[1], keepdims=0)
    of = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "minilm", [of("x", TensorProto.FLOAT, ["batch", "tokens", HIDDEN])],
        [of("pooled", TensorProto.FLOAT, ["batch", HIDDEN])], weights,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)


def rate(run, batch: int) -> float:
    """Sequences a second of a function that reads a batch."""
    run()
    passes = max(1, 32 // batch)
    start = time.perf_counter()
    for _ in range(passes):
        run()
    return passes * batch / (time.perf_counter() - start)


class Onnx:
    """onnxruntime on a model file."""

    def __init__(self, path: Path, threads: int):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def rate(self, batch: int) -> float:
        """Sequences a second."""
        x = np.random.default_rng(2).standard_normal((batch, TOKENS, HIDDEN), dtype=np.float32)
        return rate(lambda: self.session.run(None, {"x": x}), batch)


class Torch:
    """transformers' BERT on PyTorch."""

    def __init__(self, threads: int, kind: str):
        import torch
        import transformers

        torch.set_num_threads(threads)
        config = transformers.BertConfig(hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
                                         intermediate_size=FFN)
        self.torch = torch
        self.model = transformers.BertModel(config, add_pooling_layer=False).eval().to(getattr(torch, kind))

    def rate(self, batch: int) -> float:
        """Sequences a second."""
        tokens = self.torch.arange(batch * TOKENS).reshape(batch, TOKENS)
        with self.torch.inference_mode():
            return rate(lambda: self.model(tokens).last_hidden_state.mean(1), batch)


def encoders(options, folder: Path) -> dict:
    """The peers by name, each with a `rate`."""
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path, int8 = folder / "minilm.onnx", folder / "minilm-int8.onnx"
    write_onnx(path)
    # Types do not follow through operators that ONNX itself does not know.
    quantize_dynamic(path, int8, weight_type=QuantType.QInt8, extra_options={"DefaultTensorType": TensorProto.FLOAT})
    peers = {"onnxruntime float32": Onnx(path, options.threads), "onnxruntime int8": Onnx(int8, options.threads)}
    if WITH_TORCH:
        peers |= {f"PyTorch {kind}": Torch(options.threads, kind) for kind in ["float32", "bfloat16"]}
    return peers


def compare_encoder(options, folder: Path) -> list[dict]:
    """Rounds of all peers and of our packages."""
    peers = encoders(options, folder)
    rows = []
    for batch in [1, 32]:
        theirs = {name: [] for name in peers}
        own = {package: [] for package in options.minilm}
        for number in range(options.rounds):
            print(f"MiniLM, batch {batch}: round {number + 1} of {options.rounds}", file=sys.stderr)
            for name, peer in peers.items():
                theirs[name].append(peer.rate(batch))
            for package in options.minilm:
                [row] = lockstep(options.lockstep, "bench", "embed", "--package", str(package), "--batch", str(batch),
                                 "--tokens", str(TOKENS), "--passes", "5", "--threads", str(options.threads))
                own[package].append(row)
        for package, ours in own.items():
            rates = [row["sequences_per_second"] for row in ours]
            rows += beside_all(f"MiniLM, {TOKENS} tokens, batch {batch}", "encoder", weights_of(package), "sequences/s",
                               theirs, rates, ours)
    return rows


def weights_of(package: Path) -> str:
    """w8 or w16, by the package's name."""
    return "w16" if "w16" in package.stem else "w8"


PRODUCTS = ["512x576x1536", "512x1536x576", "512x2048x2048", "512x2048x5632", "512x5632x2048"]


class OneDnn:
    """oneDNN's product of unsigned and signed bytes, as PyTorch runs it."""

    def __init__(self, shape: str, threads: int):
        import torch

        torch.set_num_threads(threads)
        rows, inner, columns = map(int, shape.split("x"))
        self.operations = 2 * rows * inner * columns
        x = torch.randint(0, 256, (rows, inner), dtype=torch.uint8)
        weights = torch.ops.onednn.qlinear_prepack(torch.randint(-128, 128, (columns, inner), dtype=torch.int8), [rows, inner])
        scales, zeros = torch.ones(columns), torch.zeros(columns, dtype=torch.int32)
        self.run = lambda: torch.ops.onednn.qlinear_pointwise(
            x, 1.0, 0, weights, scales, zeros, None, 1.0, 0, torch.float32, "none", [], "")

    def rate(self) -> float:
        """10^12 operations a second."""
        self.run()
        start, passes = time.perf_counter(), 0
        while (taken := time.perf_counter() - start) < 0.3:
            self.run()
            passes += 1
        return passes * self.operations / taken / 1e12


def compare_products(options) -> list[dict]:
    """Rounds of oneDNN and of our products."""
    rows = []
    for shape in PRODUCTS:
        peer, theirs, own = OneDnn(shape, options.threads), [], {"w8": [], "w16": []}
        for number in range(options.rounds):
            print(f"product {shape}: round {number + 1} of {options.rounds}", file=sys.stderr)
            theirs.append(peer.rate())
            for row in lockstep(options.lockstep, "bench", "ops", "--op", "matmul", "--shape", shape, "--budget-ms", "300",
                                "--memory-mib", "64", "--threads", str(options.threads)):
                own[row["variant"]].append(row)
        for weights, ours in own.items():
            rates = [row["byte_operations_counted"] / row["median_micros"] / 1e6 for row in ours]
            rows += beside_all(f"product {shape}", "product", weights, "TOP/s", {"oneDNN u8s8": theirs}, rates, ours)
    return rows


def markdown(rows: list[dict]) -> str:
    """The table of the docs."""
    lines = [
        "| what | peer | peer's median (lowest to highest) | ours | our median (lowest to highest) | ours / peer "
        "| target | commitments |",
        "|:--|:--|--:|:--|--:|--:|--:|--:|",
    ]

    def figure(median: float, samples: list, unit: str) -> str:
        digits = lambda value: f"{value:.0f}" if value >= 100 else f"{value:.3g}"
        return f"{digits(median)} {unit} ({digits(min(samples))} to {digits(max(samples))})"

    for row in rows:
        theirs = figure(row["peer_median"], row["peer_samples"], row["unit"])
        own = figure(row["our_median"], row["our_samples"], row["unit"])
        # Most of our runs say that something else took the machine.
        mark = " !" if 2 * row["disturbed"] > len(row["our_samples"]) else ""
        target = "" if row["target"] is None else f"{row['target']:g}"
        share = "" if row["commit_share"] is None else f"{100 * row['commit_share']:.1f}%"
        lines.append(
            f"| {row['what']} | {row['peer']} | {theirs} | {row['ours']} | {own}{mark} | {row['ratio']:.2f} | {target} | {share} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lockstep", type=Path, default=Path(__file__).parent.parent / "target/release/lockstep")
    parser.add_argument("--shapes", nargs="*", choices=sorted(SHAPES), default=["smollm2-135m"])
    parser.add_argument("--weights", nargs="*", choices=sorted(FORMATS), default=["w8"])
    parser.add_argument("--minilm", type=Path, nargs="*", default=[],
                        help="packages of all-MiniLM-L6-v2; without any encoders are left out")
    parser.add_argument("--products", action="store_true", help="also oneDNN's products of bytes, where PyTorch is installed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON lines instead of the table")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        for name in options.shapes:
            for ours in options.weights:
                rows += compare_decoder(options, name, ours, Path(folder))
        if options.minilm:
            rows += compare_encoder(options, Path(folder))
    if options.products:
        rows += compare_products(options)
    if options.json:
        for row in rows:
            print(json.dumps(row))
        return
    modules = ["llama-cpp-python"] * bool(options.shapes)
    if options.minilm:
        modules += ["onnxruntime"] + ["torch", "transformers"] * WITH_TORCH
    elif options.products:
        modules += ["torch"]
    engines = [version(module) for module in modules]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{time.strftime('%Y-%m-%d', time.gmtime())}, {options.threads} thread{'s' * (options.threads > 1)}, medians of {options.rounds} rounds; "
          f"{', '.join(engines)}; load averages at the end {load}\n")
    print(markdown(rows))


if __name__ == "__main__":
    main()
