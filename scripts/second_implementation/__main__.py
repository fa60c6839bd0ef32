#!/usr/bin/env python3
"""A second implementation of Lockstep inference, written from SPEC.md alone. Clause numbers are SPEC.md's.

    pip install numpy blake3 tokenizers cryptography
    second_implementation [--package FILE] [--check-receipt FILE] TEXT...
    second_implementation --vectors kernels/vectors

Reads and checks a package, runs each text through its program in exact integer arithmetic, and prints one JSON object
on the last line: model_id, layer_roots, integers, saturations, tokens. It is meant to be read, not to be fast.

Why int64 is enough: every function says what its values are below. Two facts do most of the work. A rounding shift
(3.1) is written here so that it never forms a + 2^(s-1). And the bounds of section 22, which `check_bounds` proves for
a package before it runs, keep every product of 3.2, 5.5 and 5.7 within 2^62.
"""
import argparse
import json
import os
import sys
from types import SimpleNamespace as Struct

import numpy as np

from inference import (GAUSS, LOGISTIC, Package, Refused, add, attention, embed, exp2neg, gate, is_decoder,
                       l2_normalize, matmul, mean_pool, multiply, norm, quantize, recip, rescale, root, rope, rowexp, rshift, rsqrt,
                       softmax_weight)
from receipts import check_receipt
from sampling import logprobs, sample


# ---- Known answers and the command line ---------------------------------------------------------------------------


def check_vectors(folder):
    """Every case of kernels/vectors against the functions of sections 3 to 5. By name: how many, how many failed."""
    scalars = {"round_shift": rshift, "rescale": rescale, "row_exponent": lambda m: rowexp(np.array(m)), "recip": recip,
               "rsqrt": rsqrt, "exp2_neg_fraction": lambda f: exp2neg(np.array(f)),
               "softmax_weight": lambda d: softmax_weight(np.array(d))}
    layer = lambda c: norm(c.input, c.scale, vars(c).get("bias"), int(c.shift), int(c.epsilon_mantissa),
                           int(c.epsilon_shift), int(vars(c).get("groups", 1)))
    fields = ("codes", "mantissa", "shift", "index")
    tables = lambda c: [[getattr(c, f"table_{n}_{field}") for field in fields] for n in (0, 1)]
    ops = {"add": lambda c: add(c.a, c.b), "attention": lambda c: attention(c.q, c.k, c.v, c),
           "embed": lambda c: embed([(rows, index) for *rows, index in tables(c)]),
           "gelu": lambda c: gate(GAUSS, c.input, int(c.frac)), "silu": lambda c: gate(LOGISTIC, c.input, int(c.frac)),
           "l2_normalize": lambda c: l2_normalize(c.input), "layer_norm": layer, "rms_norm": layer,
           "rope": lambda c: rope(c.input, c.angles, c.positions, int(c.heads), int(c.head_dim), c.shift),
           "multiply": lambda c: multiply(c.a, c.b, int(c.shift)), "shift": lambda c: (rshift(c.input, int(c.shift)), 0),
           "gather": lambda c: (c.input[c.rows.astype(int)], 0), "mean_pool": lambda c: mean_pool(c.input), "first_pool": lambda c: (c.input[:1], 0)}

    def results(name, case):
        """Pairs of what is computed and what is expected."""
        if "function" in case:
            outputs = 2 if case["function"] == "rsqrt" else 1
            for row in case["rows"]:
                row = [int(value) for value in row]
                yield np.ravel(scalars[case["function"]](*row[:-outputs])), row[-outputs:]
            return
        if "table" in case:
            yield (GAUSS if case["table"] == "gauss" else LOGISTIC)[0], sum(case["entries"], [])
            return
        if name == "sample":
            c = Struct(**case)
            yield [sample(c.logits, c.frac, c.token_bytes, c, c.history, int(draw)) for draw in c.draws], c.words
            own, top = logprobs(c.logits, c.frac, c.words[0] % 2**24, 3)
            yield [own, *sum(top, ())], c.logprobs
            return
        c = Struct(**{key: np.array(value) for key, value in case.items()})
        if name == "quantize":
            yield from zip(quantize(c.input)[0], (c.codes, c.exponents))
        elif name == "matmul":
            for kind in ("i32", "i16"):
                out, clamped = matmul((c.codes, c.exponents), (c.weight, c.mantissa, c.shift), c.bias, kind == "i16")
                yield out, getattr(c, f"out_{kind}")
                yield clamped, getattr(c, f"saturations_{kind}")
        else:
            lengths = vars(c).get("lengths", [None])  # one run for each sequence
            cut = lambda key, x, end, n: x[end - n:end] if key in ("q", "k", "v", "input") and n else x
            runs = [ops[name](Struct(**{key: cut(key, x, end, n) for key, x in vars(c).items()}))
                    for n, end in zip(lengths, np.cumsum(lengths) if lengths[0] else [None])]
            yield np.concatenate([out for out, _ in runs]), c.out
            yield sum(clamped for _, clamped in runs), vars(c).get("saturations", 0)

    report = {}
    for file in sorted(name for name in os.listdir(folder) if name.endswith(".json")):
        with open(os.path.join(folder, file), encoding="utf-8") as handle:
            name, cases = (data := json.load(handle))["name"], data["cases"]
        for case in cases:
            key = case.get("function") or case.get("table") or name
            equal = [np.array_equal(got, wanted) for got, wanted in results(name, case)]
            total, failed = report.get(key, (0, 0))
            equal = equal if "function" in case else [all(equal)]
            report[key] = total + len(equal), failed + equal.count(False)
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", metavar="FILE")
    parser.add_argument("--check-receipt", metavar="FILE")
    parser.add_argument("--vectors", metavar="DIR")
    parser.add_argument("texts", metavar="TEXT", nargs="*")
    args = parser.parse_args()
    if not (args.package or args.vectors or args.check_receipt):
        parser.error("one of --package, --vectors and --check-receipt is needed")
    result = {}
    try:
        if args.vectors:
            result["vectors"] = check_vectors(args.vectors)  # name: [cases, failed]
        package = Package(args.package) if args.package else None
        if package:
            # A decoder generates from jobs, which receipts have.
            texts = [] if is_decoder(package.program) else args.texts
            tokens = [package.tokenize(text) for text in texts]
            runs = [package.run(ids) for ids in tokens]
            result |= {"model_id": package.model_id.hex(), "tokens": tokens,
                       "layer_roots": [[root(rows).hex() for rows in outputs] for outputs, _ in runs],
                       "integers": [outputs[-1][0].tolist() for outputs, _ in runs],
                       "saturations": sum(clamped for _, clamped in runs)}
        if args.check_receipt:
            result["receipt"] = check_receipt(args.check_receipt, package, args.texts)
    except (Refused, ValueError) as error:
        sys.exit(f"refused: {error}")
    print(json.dumps(result))
    sys.exit(any(failed for _, failed in result.get("vectors", {}).values()))

if __name__ == "__main__":
    main()
