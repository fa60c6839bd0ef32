"""Cosines and sines of rotary embeddings in 80 decimal digits, written to model/tests/rope.json.

A yardstick for the integer tables of SPEC 27: it shares no algorithm with them. Standard library only.
"""

import json
import sys
from decimal import Decimal as D, ROUND_CEILING, ROUND_FLOOR, getcontext

getcontext().prec = 80
PI = D("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798215")
UNIT = D(2) ** 60


def wave(x):
    """Cosine and sine, by their series after whole turns are taken off."""
    x = x % (2 * PI)
    cos = sin = D(0)
    term, k = D(1), 0
    while k < 4 or abs(term) > D(10) ** -75:
        sign = -1 if k % 4 > 1 else 1
        if k % 2:
            sin += sign * term
        else:
            cos += sign * term
        k += 1
        term = term * x / k
    return cos, sin


def frequencies(theta, dim, s):
    theta = D(theta)
    plain = [(-(D(2 * j) / dim) * theta.ln()).exp() for j in range(dim // 2)]
    if s["type"] == "linear":
        return [f / D(s["factor"]) for f in plain]
    if s["type"] == "llama3":
        low, high = D(s["low"]), D(s["high"])

        def blend(f):
            turns = f * s["original"] / (2 * PI)
            smooth = min(max((turns - low) / (high - low), D(0)), D(1))
            return (1 - smooth) * f / D(s["factor"]) + smooth * f

        return [blend(f) for f in plain]
    if s["type"] == "yarn":
        at = lambda beta: dim * (s["original"] / (D(beta) * 2 * PI)).ln() / (2 * theta.ln())
        low, high = at(s["beta_fast"]), at(s["beta_slow"])
        if s["truncate"]:
            low = low.to_integral_value(ROUND_FLOOR)
            high = high.to_integral_value(ROUND_CEILING)
        low, high = max(low, D(0)), min(high, D(dim - 1))
        if low == high:
            high += D("0.001")
        ramp = [min(max((j - low) / (high - low), D(0)), D(1)) for j in range(dim // 2)]
        return [f / D(s["factor"]) * r + f * (1 - r) for f, r in zip(plain, ramp)]
    return plain


def attention_factor(s):
    m = lambda scale: D("0.1") * D(scale) * D(s["factor"]).ln() + 1
    if s["type"] != "yarn":
        return D(1)
    return m(s["mscale"]) / m(s["mscale_all_dim"]) if "mscale" in s else m(1)


CASES = [
    (10000.0, 8, {"type": "none"}),
    (1000000.0, 80, {"type": "none"}),
    (500000.0, 128, {"type": "none"}),
    (2.0, 6, {"type": "none"}),
    (10000.0, 64, {"type": "linear", "factor": 2.5}),
    (500000.0, 128, {"type": "llama3", "factor": 8.0, "low": 1.0, "high": 4.0, "original": 8192}),
    (500000.0, 64, {"type": "llama3", "factor": 32.0, "low": 1.0, "high": 4.0, "original": 8192}),
    (1000000.0, 128, {"type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "original": 32768,
                      "truncate": True}),
    (10000.0, 24, {"type": "yarn", "factor": 40.0, "beta_fast": 32.0, "beta_slow": 1.0, "original": 4096,
                   "truncate": False, "mscale": 0.75, "mscale_all_dim": 0.5}),
    (10000.0, 8, {"type": "yarn", "factor": 16.0, "beta_fast": 32.0, "beta_slow": 31.0, "original": 201,
                  "truncate": True}),
]
POSITIONS = [0, 1, 2, 7, 100, 1023, 4096, 32767, 65537, 131071]


def main(path):
    out = []
    for theta, dim, scaling in CASES:
        f = frequencies(theta, dim, scaling)
        pairs = sorted({0, 1, dim // 8, dim // 4, dim // 3, dim // 2 - 1})
        entries = []
        for position in POSITIONS:
            for j in pairs:
                entries.append([position, j] + [int((w * UNIT).to_integral_value()) for w in wave(position * f[j])])
        out.append({"theta": theta, "head_dim": dim, "scaling": scaling, "entries": entries,
                    "attention_factor": float(attention_factor(scaling))})
    with open(path, "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(case) for case in out) + "\n]\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "model/tests/rope.json")
