"""What weights in llama.cpp's Q8_0 cost the small random models of decoder_reference.py: 8 bits and a scale of 16 for every 32
weights of a row, everything else in float64. A yardstick for w8, which has a scale for every row.

    .venv/bin/python scripts/families_q8_0.py
"""

import json

import numpy as np

from decoder_reference import CASES, FIXTURE, logits, softmax, weights

GROUP = 32


def rounded(matrix):
    """A matrix [rows, columns] as Q8_0 holds it."""
    rows, columns = matrix.shape
    groups = np.pad(matrix.astype(np.float64), ((0, 0), (0, -columns % GROUP))).reshape(rows, -1, GROUP)
    scale = (np.abs(groups).max(-1, keepdims=True) / 127).astype(np.float16).astype(np.float64)
    codes = np.divide(groups, scale, out=np.zeros_like(groups), where=scale > 0).round().clip(-127, 127)
    return (codes * scale).reshape(rows, -1)[:, :columns]


def main():
    print("| model | logit error | expected |\n|---|---|---|")
    fixture = json.loads(FIXTURE.read_text())
    for name, (config, test) in CASES.items():
        tensors, tokens = weights(name, config, test), np.array(fixture[name]["text"])
        # As in w8, the embedding table keeps its bits.
        coarse = {n: rounded(w) if w.ndim == 2 and "embed" not in n else w for n, w in tensors.items()}
        exact, found = logits(config, tensors, tokens), logits(config, coarse, tokens)
        p = softmax(exact[:-1])
        more = (p * (np.log(p) - np.log(softmax(found[:-1])))).sum(-1).mean()
        error = np.sqrt(((found - exact) ** 2).mean()) / exact.std()
        print(f"| {name} | {100 * error:.3f}% | {100 * np.expm1(more):+.4f}% |", flush=True)


if __name__ == "__main__":
    main()
