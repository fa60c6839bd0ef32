"""6.8, 6.9 and 13.7: a generation, by one pass over its prompt and its words."""
from types import SimpleNamespace as Struct

import numpy as np

from inference import require, root
from receipts import derive, point_digest, word_root
from sampling import logprobs, sample


def draw(seed, point):
    """6.9."""
    return int.from_bytes(derive("sample", seed + point.to_bytes(4, "little"))[:8], "little")


def row_of(logits, frac, token, wanted):
    """13.7."""
    if wanted == 0:
        return []
    own, top = logprobs(logits, frac, token, wanted - 1)
    missing = wanted - 1 - len(top)
    return [own, *sum(top, ()), *([-1, -2**31] * missing)]


def run(package, job, words):
    """The output of every layer for the prompt and these words, what was clamped, and the rows of log-probabilities."""
    g, prompt = job["kind"]["generation"], job["tokens"]
    settings = Struct(**g, prompt_tokens=len(prompt))
    settings.stop_strings = [bytes.fromhex(text) for text in g["stop_strings"]]
    tokens = prompt + [word % 2**24 for word in words[:-1]]
    p, first = package.program, len(prompt) - 1
    require(len(tokens) <= p.max_positions and max(tokens) < p.vocab_size, "6.4", "the sequence")
    outputs, clamped, rows, previous = [], 0, [], {}
    for layer in p.layers:
        env = dict(previous)
        for op in layer.ops:
            if op.op == "gather":
                env[op.out] = env[op.input][first:]
            elif op.op == "sample":
                table, seed, drawn = package.params[op.table].tolist(), bytes.fromhex(job["seed"]), []
                for point, logits in enumerate(env[op.logits].tolist(), first):
                    word = sample(logits, op.frac, table, settings, tokens[:point + 1], draw(seed, point))
                    drawn.append([word])
                    rows += row_of(logits, op.frac, word % 2**24, g["logprobs"])
                env[op.out] = np.array(drawn)
            else:
                env[op.out], changed = package.step(op, env, tokens)
                clamped += changed
        outputs.append(env[layer.output])
        previous = {layer.output: env[layer.output]}
    return outputs, clamped, rows


def work(package, positions, points):
    """6.5."""
    total = 0
    for op in (op for layer in package.program.layers for op in layer.ops):
        if op.op == "matmul":
            n, k = package.params[op.weights.codes].shape
            total += (points if package.program.tensors[op.out].rows == "point" else positions) * n * k
        elif op.op == "attention":
            total += 2 * op.heads.heads * op.heads.head_dim * (positions * (positions + 1) // 2)
    return total


def rerun(package, job, words):
    """What a receipt of this run must have. Words that are not the run's own are found by their roots and by the output."""
    outputs, clamped, rows = run(package, job, words)
    *layers, last = outputs[1:]
    drawn, first = [int(word) for word, in last], len(job["tokens"]) - 1
    points = [[*(root(layer[:point + 1]) for layer in layers), word_root(word)] for point, word in enumerate(drawn, first)]
    signed = {"points": [point_digest(roots).hex() for roots in points[:-1]], "roots": [r.hex() for r in points[-1]],
              "saturations": clamped, "work_units": work(package, first + len(words), len(words))}
    signed_32 = [word - 2**32 if word >= 2**31 else word for word in drawn]
    return signed, signed_32 + rows
