"""Sections 1 to 7, 10, 20 and 22: packages, and running them."""
import math
import unicodedata
from types import SimpleNamespace as Struct

import numpy as np
from blake3 import blake3

I64 = np.int64


class Refused(Exception):
    """The input breaks a rule of SPEC.md."""


def require(condition, clause, what):
    if not condition:
        raise Refused(f"{clause}: {what}")


# ---- Section 3: scalar arithmetic, element by element -------------------------------------------------------------


def clamp(x, low, high):
    """1.3 and 1.5: the clamped values, and how many clamping changed."""
    y = np.clip(x, low, high)
    return y, int(np.count_nonzero(y != x))


def sat32(x):
    return clamp(x, -2**31, 2**31 - 1)


def rshift(a, s):
    """3.1. With a = q * 2^s + b * 2^(s-1) + rest and b one bit, floor((a + 2^(s-1)) / 2^s) = q + b: any int64 works."""
    a, s = np.asarray(a, I64), np.asarray(s, I64)
    inner = np.clip(s, 1, 62)
    return np.where(s == 0, a, np.where(s >= 63, 0, (a >> inner) + ((a >> (inner - 1)) & 1)))


def rescale(acc, mantissa, shift):
    """3.2. |acc * mantissa| < 2^62 by 22.4. For k = -shift > 0, clamping to 2^(62 - k) before the left shift gives the
    same as clamping to 2^62 after it; and k > 62 the same as k = 62."""
    product = np.asarray(acc, I64) * np.asarray(mantissa, I64)
    k = np.clip(-np.asarray(shift, I64), 0, 62)
    limit = I64(1) << (62 - k)
    return np.where(k > 0, np.clip(product, -limit, limit) << k, rshift(product, np.maximum(shift, 0)))


def bits(v):
    """1.2, for 0 <= v < 2^53: a float64 holds v exactly, and its exponent is the number of binary digits."""
    return np.frexp(np.asarray(v, I64).astype(np.float64))[1].astype(I64)


def rowexp(m):
    """3.3. m <= 2^31, and rshift(2^31, 17) = 16384."""
    e = np.zeros_like(m)
    for _ in range(17):
        e += rshift(m, e) > 32639
    return e


def recip(v):
    """3.4, over Python's integers (one call for each row)."""
    n = v.bit_length()
    return 2**62 // (v << 32 - n if n <= 32 else v >> n - 32) if v else 0


def rsqrt(v):
    """3.5, over Python's integers (one call for each row)."""
    if v == 0:
        return 0, 0
    p = (v.bit_length() - 31) // 2
    x = v >> 2 * p if p >= 0 else v << -2 * p
    return math.isqrt(2**92 // x), p  # r * r * x <= 2^92 exactly if r * r <= floor(2^92 / x)


def exp2neg(f):
    """3.6. |y| <= 2^30 and f < 2^20: products below 2^50."""
    y = np.full_like(f, 7335765)
    for c in (-57148512, 257114789, -744171352, 1073741824):
        y = c + rshift(y * f, 20)
    return y


def softmax_weight(d):
    """3.7."""
    n = d >> 20
    weight = np.minimum(32767, rshift(exp2neg(d & (2**20 - 1)), 15 + np.minimum(n, 30)))
    return np.where(n > 30, 0, weight)


# ---- Section 4: tables --------------------------------------------------------------------------------------------


def table(function, digest):
    """4.1 and 4.2. Doubles are near enough: the digest proves it."""
    values = np.array([math.floor(2**31 * function(i) + 0.5) for i in range(1025)], I64)
    require(blake3(values.astype("<u4").tobytes()).hexdigest() == digest, "4", "a table is not what it must be")
    return values

GAUSS = (table(lambda i: (1 + math.erf(i / 128 / math.sqrt(2))) / 2,
               "2ee8b5620a984222fe9011987d34bf9b2b5feab06887db9cb837b3ec6a365d4a"), 7)
LOGISTIC = (table(lambda i: 1 / (1 + math.exp(-i / 64)),
                  "f3326dc31843ec22c48e3b9aea5600b1ddd08db584cf3543486ca321c8d7c6f7"), 6)


def lookup(table_, x, frac):
    """4.3. |x| <= 2^31 and b + 16 - f <= 23: t <= 2^54; a step of the table times u is below 2^47."""
    values, b = table_
    s = b + 16 - frac
    t = np.abs(x) << s if s >= 0 else np.abs(x) >> -s
    i, u = np.minimum(t >> 16, 1024), t & 0xFFFF
    low, high = values[i], values[np.minimum(i + 1, 1024)]
    return np.where(i >= 1024, 2**31, low + (((high - low) * u + 2**15) >> 16))


# ---- Section 5: ops. Each returns its output and the number of clamped elements -----------------------------------
# I32 and I16 tensors are int64 arrays [rows, cols]; a BFP tensor is (codes [rows, cols], exponents [rows]); scaled rows
# are (codes [N, K], mantissa [N], shift [N]).


def integer_matmul(a, b):
    """a @ b over the integers (5.3, 5.7). Elements have at most 16 bits and sums at most 16,384 terms, so that every
    partial sum, in any order, is an integer of at most 2^44 < 2^53: float64 holds it exactly, and BLAS may be used."""
    assert a.shape[-1] <= 16384
    return (a.astype(np.float64) @ b.astype(np.float64)).astype(I64)


def embed(tables):
    """5.1. tables: pairs of scaled rows and the row that each position reads. Sums stay below 2^31 by 22.3; Python's
    integers take over where nobody has proved that (at most 8 terms of at most 2^62)."""
    parts = []
    for (codes, mantissa, shift), rows in tables:
        inside, r = rows < len(codes), np.minimum(rows, len(codes) - 1)
        row = rescale(codes[r], mantissa[r][:, None], shift[r][:, None].astype(I64))
        parts.append(np.where(inside[:, None], row, 0))
    if max(int(np.abs(part).max()) for part in parts) >= 2**59:
        parts = [part.astype(object) for part in parts]
    out, clamped = sat32(sum(parts))
    return out.astype(I64), clamped


def quantize(x):
    """5.2. |x| <= 2^31."""
    e = rowexp(np.abs(x).max(axis=1))
    return (rshift(x, e[:, None]), e), 0


def matmul(x, weights, bias=None, i16=False):
    """5.3. |A| < 2^46 and mantissa < 2^16 (22.4), so the product is below 2^62; a bias adds at most 2^31."""
    (codes, e), (w, mantissa, shift) = x, weights
    y = rescale(integer_matmul(codes, w.T), mantissa, shift.astype(I64) - e[:, None])
    y = y + (0 if bias is None else bias.astype(I64))
    return clamp(y, -32639, 32639) if i16 else sat32(y)


def add(a, b):
    """5.4."""
    return sat32(a + b)


def magnify(x):
    """5.5.1: z, |z| <= 2^30, and k, one for each row. |x| <= 2^31, so k >= -2."""
    k = (30 - bits(np.abs(x).max(axis=1)))[:, None]
    return np.where(k >= 0, x << np.maximum(k, 0), rshift(x, np.maximum(-k, 0))), k


def unit_rows(c, epsilon=0):
    """5.5.3 and 5.5.5. |c| <= 2^31, so V <= 2^15 * 2^46 (22.5); r <= 2^31, so |c * r| <= 2^62; and p >= -15."""
    v = (rshift(c, 8) ** 2).sum(axis=1)
    r, p = np.array([rsqrt(int(row) + int(e)) for row, e in zip(v, np.broadcast_to(epsilon, v.shape))], I64).T
    return rshift(c * r[:, None], 24 + p[:, None])


def norm(x, scale, bias, shift, em, es, groups=1):
    """5.5 with a bias (layer_norm), 5.6 without (rms_norm). Sums of z are below 2^46; |u * scale| < 2^62 by 22.5."""
    if groups > 1:
        y, clamped = norm(x.reshape(len(x) * groups, -1), scale, bias, shift, em, es)
        return y.reshape(x.shape), clamped
    z, k = magnify(x)
    d = x.shape[1]
    c = z if bias is None else z - (2 * z.sum(axis=1, keepdims=True) + d) // (2 * d)
    epsilon = []
    for j in (2 * (k[:, 0] - 8) - es).tolist():  # 5.5.4, up to 2^62
        epsilon.append(0 if em == 0 else 2**62 if j > 30 else em << j if j >= 0 else int(rshift(em, -j)))
    y = rshift(unit_rows(c, np.array(epsilon, I64)) * scale.astype(I64), shift)
    return sat32(y + (0 if bias is None else bias.astype(I64)))


def rope(x, table, positions, heads, size, shifts):
    """5.13. Of all sums only 2^62 + 2^62 leaves int64."""
    half, s = table.shape[1] // 2, np.asarray(shifts, I64)[:, None]
    x = x.astype(I64).reshape(len(x), heads, size)
    cos, sin = (table[np.asarray(positions)][:, None, n::2].astype(I64) for n in (0, 1))
    a, b, rest = x[..., :half], x[..., half:2 * half], x[..., 2 * half:]
    over = (a * sin == 2**62) & (b * cos == 2**62)
    second = np.where(over, 2**63 - 1, a * sin + np.where(over, 0, b * cos))
    y = np.concatenate([rshift(a * cos - b * sin, 30 + s), rshift(second, 30 + s), rshift(rest, s)], axis=2)
    return clamp(y.reshape(len(x), -1), -32639, 32639)


def multiply(a, b, shift):
    """5.14."""
    return sat32(rshift(a.astype(I64) * b.astype(I64), shift))


def attention(q, k, v, heads):
    """5.7. Sums of 5.7.1 are at most 2^39, O_b at most 2^38, and O at most 2^56 over at most 513 blocks (22.6). |O| is
    at most about L * 2^15, so that it has n + 15 bits, its shifted value 31, and the last product 62."""
    positions, size, clamped = len(q), heads.head_dim, 0
    out = np.zeros((positions, heads.heads * size), I64)
    for h in range(heads.heads):
        g = h // (heads.heads // heads.kv_heads)
        mine, theirs = slice(h * size, (h + 1) * size), slice(g * size, (g + 1) * size)
        score = rshift(integer_matmul(q[:, mine], k[:, theirs].T), heads.score_shift[h])
        t, j = np.arange(positions)[:, None], np.arange(positions)
        sees = np.broadcast_to(j <= t if heads.causal else True, score.shape)
        score, changed = clamp(np.where(sees, score, 0), -2**31, 2**31 - 1)
        clamped += changed
        m_b, l_b, o_b = [], [], []
        for first in range(0, positions, 256):
            block = slice(first, first + 256)
            seen = sees[:, block]
            # A block of which t sees nothing gets a maximum below all others, and sums of 0: it adds nothing.
            m = -(-np.where(seen, score[:, block], -2**62).max(axis=1) >> 20)
            w = np.where(seen, softmax_weight(np.where(seen, m[:, None] * 2**20 - score[:, block], 0)), 0)
            m_b.append(m), l_b.append(w.sum(axis=1)), o_b.append(integer_matmul(w, v[block, theirs]))
        m = np.max(m_b, axis=0)
        total = sum(rshift(l * 2**8, m - own) for l, own in zip(l_b, m_b))
        o = sum(rshift(o_ * 2**8, (m - own)[:, None]) for o_, own in zip(o_b, m_b))
        n = bits(total)
        inverse = np.array([recip(int(sum_)) for sum_ in total], I64)[:, None]
        y = rshift(rshift(o, (n - 16)[:, None]) * inverse, 31 + heads.value_shift[h])
        out[:, mine], changed = sat32(y)
        clamped += changed
    return out, clamped


def gate(table_, x, frac):
    """4.4, 5.8, 5.9. |x * F| <= 2^62."""
    f = lookup(table_, x, frac)
    return rshift(x * np.where(x >= 0, f, 2**31 - f), 31), 0


def mean_pool(x):
    """5.10. At most 131,072 positions: sums of at most 2^48."""
    return ((2 * x.sum(axis=0) + len(x)) // (2 * len(x)))[None, :], 0


def l2_normalize(x):
    """5.12."""
    return unit_rows(magnify(x)[0]), 0


# ---- Section 7 and 20: packages -----------------------------------------------------------------------------------


class Reader:
    """7.1 to 7.7. Each reading function accepts exactly one encoding of each value (fixed widths, bools 0 or 1, UTF-8
    that Python's strict decoder accepts), so that encoding again, as 7.1 asks, could not give other bytes."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        require(n <= len(self.data) - self.at, "7.7", "the bytes end early")
        self.at += n
        return self.data[self.at - n:self.at]

    def number(self, width, signed=False):
        return int.from_bytes(self.take(width), "little", signed=signed)

    u8 = lambda self: self.number(1)
    u16 = lambda self: self.number(2)
    u32 = lambda self: self.number(4)
    u64 = lambda self: self.number(8)
    i16 = lambda self: self.number(2, signed=True)

    def choice(self, *values):
        tag = self.u8()
        require(tag < len(values), "7.6", f"unknown tag {tag}")
        return values[tag]

    def length(self, cap):
        n = self.u32()
        require(n <= cap, "7.7", f"a length of {n} is above {cap}")
        return n

    def bytes(self, cap):
        return self.take(self.length(cap))

    def string(self, cap):
        return self.bytes(cap).decode("utf-8")  # UnicodeDecodeError is a ValueError

    def seq(self, cap, item):
        return [item(self) for _ in range(self.length(cap))]

    def bool(self):
        return self.choice(False, True)

    def option(self, item):
        return item(self) if self.bool() else None


def label(r, cap):
    """20.5: a name that is not empty and has no control characters (Unicode category Cc)."""
    text = r.string(cap)
    require(text and not any(unicodedata.category(c) == "Cc" for c in text), "20.5", "a name is empty or not printable")
    return text

# 20.6: the ops by tag, each with its fields in order. A tensor's field says what section 5 asks of it, as
# kind:rows:columns, where equal letters mean equal numbers.
OPS = [(name, [field.split("=") for field in fields]) for name, *fields in (line.split() for line in """
    embed tables out=I32:position:d
    quantize input=I32:r:d out=BFP:r:d
    matmul input=BFP:r:k weights bias? out=I32|I16:r:n
    add a=I32:r:d b=I32:r:d out=I32:r:d
    layer_norm input=I32:r:d norm bias out=I32:r:d
    rms_norm input=I32:r:d norm groups out=I32:r:d
    attention q=I16:position:d k=I16:position:n v=I16:position:n heads out=I32:position:d
    gelu input=I32:r:d frac out=I32:r:d
    silu input=I32:r:d frac out=I32:r:d
    mean_pool input=I32:position:d out=I32:sequence:d
    first_pool input=I32:position:d out=I32:sequence:d
    l2_normalize input=I32:r:d out=I32:r:d
    rope input=I32:position:d table heads_ size shifts out=I16:position:d
    multiply a=I32:r:d b=I32:r:d shift out=I32:r:d
    shift input=I32:r:d shift out=I32:r:d
    gather input=I32:position:d out=I32:point:d
    sample logits=I32:point:v frac table out=I32:point:one""".strip().splitlines())]
DTYPES = {"I8": "<i1", "I16": "<i2", "U16": "<u2", "I32": "<i4"}


def scaled_rows(r):
    """20.6."""
    return Struct(codes=r.u16(), mantissa=r.u16(), shift=r.u16())

FIELDS = {
    "tables": lambda r: r.seq(8, lambda r: Struct(
        weights=scaled_rows(r), index=(rule := r.choice("token", "position", "constant")),
        row=r.u32() if rule == "constant" else None)),
    "weights": scaled_rows, "frac": Reader.u8, "shift": Reader.u8, "shifts": lambda r: r.bytes(65535), "bias?": lambda r: r.option(Reader.u16),
    "norm": lambda r: Struct(scale=r.u16(), shift=r.u8(), epsilon_mantissa=r.u32(), epsilon_shift=r.i16()),
    "heads": lambda r: Struct(heads=r.u16(), kv_heads=r.u16(), head_dim=r.u16(), causal=r.bool(),
                              score_shift=r.bytes(65535), value_shift=r.bytes(65535)),
}


def read_op(r):
    """20.6."""
    name, fields = r.choice(*OPS)
    op = Struct(op=name, **{f.rstrip("?"): FIELDS.get(f, Reader.u16)(r) for f, *_ in fields})
    op.tensors = [(getattr(op, f), rule[0].split(":")) for f, *rule in fields if rule]  # the last one is written
    return op


def read_program(r):
    """20.6."""
    return Struct(
        vocab_size=r.u32(), max_positions=r.u32(),
        tensors=r.seq(65535, lambda r: Struct(name=r.string(256), rows=r.choice("position", "sequence", "point"), cols=r.u32(),
                                              kind=r.choice("I32", "I16", "BFP"))),
        params=r.seq(65535, lambda r: Struct(name=r.string(256), dtype=r.choice(*DTYPES), rows=r.u32(), cols=r.u32())),
        layers=r.seq(512, lambda r: Struct(name=r.string(256), ops=r.seq(256, read_op), output=r.u16())))


def is_decoder(program):
    """6.7: the last output has a row for each point."""
    outputs = [layer.output for layer in program.layers[-1:]]
    return any(output < len(program.tensors) and program.tensors[output].rows == "point" for output in outputs)


def read_manifest(data):
    """20.5, without the rules about the program."""
    r = Reader(data)
    blob = lambda r: Struct(bytes=r.u64(), digest=r.take(32))
    require(r.u32() == 1, "20.5", "another version of the specification")
    m = Struct(name=label(r, 128), family=label(r, 64), weights=r.choice("w16", "w8"), program=read_program(r),
               output_frac=r.u8(), params=r.seq(65535, blob), tokenizer=blob(r),
               template=r.option(blob), stop_tokens=r.seq(256, Reader.u32),
               sources=r.seq(1024, lambda r: Struct(name=label(r, 256), **vars(blob(r)))),
               calibration=r.option(lambda r: r.take(32)))
    require(r.at == len(data), "7.1", "bytes are left")
    names = [source.name.encode() for source in m.sources]
    require(m.output_frac <= 62, "20.5", "output_frac")
    require(all(a < b for a, b in zip(names, names[1:])), "20.5", "sources are not ascending")
    require(m.template is None or 1 <= m.template.bytes <= 2**20, "20.4", "size of the chat template")
    stops = m.stop_tokens
    require(all(a < b for a, b in zip(stops, stops[1:])), "20.5", "stop tokens are not ascending")
    require(all(stop < m.program.vocab_size for stop in stops[-1:]), "20.5", "a stop token is not in the vocabulary")
    needs_calibration = m.weights == "w8" or is_decoder(m.program)
    require((m.calibration is not None) == needs_calibration, "20.5", "calibration")
    return m


def check_program(p):
    """6.1 to 6.4: limits, what ops may read and write, kinds and shapes."""
    require(1 <= p.max_positions <= 131072 and 2 <= len(p.layers) <= 512, "6.1", "limits")
    previous, decoder = set(), is_decoder(p)
    for number, layer in enumerate(p.layers):
        last = number == len(p.layers) - 1
        require(layer.ops, "6.1", "a layer without ops")
        known = set(previous)
        for op in layer.ops:
            *reads, out = [index for index, _ in op.tensors]
            require(known.issuperset(reads) and out not in known, "6.2", "what an op reads or writes")
            require(out < len(p.tensors), "6.1", "a tensor that is not declared")
            rows = p.tensors[out].rows
            require(rows in ({"position", "point"} if last else {"position"}) if decoder else rows != "point", "6.7",
                    "rows of a tensor")
            require(not decoder or op.op != "attention" or op.heads.causal, "6.7", "attention of a decoder")
            require(op.op != "embed" or number == 0, "6.2", "embed outside of layer 0")
            check_op(p, op)
            known.add(out)
        require(layer.output in known - previous and p.tensors[layer.output].kind == "I32", "6.1", "a layer's output")
        output_rows = {"point", "sequence"} if last else {"position"}
        require(p.tensors[layer.output].rows in output_rows, "6.3, 20.8", "rows of an output")
        previous = {layer.output}


def check_op(p, op):
    """6.4: what section 5 says about the kinds, shapes and limits of an op's tensors and parameters."""
    bound = {rows: rows for rows in ("position", "sequence", "point")}
    for index, (kinds, rows, cols) in op.tensors:
        t = p.tensors[index]
        require(t.kind in kinds.split("|") and bound.setdefault(rows, t.rows) == t.rows and t.cols >= 1
                and bound.setdefault(cols, t.cols) == t.cols, "6.4", f"a tensor of {op.op}")
    d, n, k = (bound.get(letter) for letter in "dnk")
    rows = lambda w: p.params[w.codes].rows if w.codes < len(p.params) else 0
    scaled = lambda w, dtypes, rows, cols: [
        (w.codes, dtypes, rows, cols), (w.mantissa, ["U16"], 1, rows), (w.shift, ["I16"], 1, rows)]
    params, limits = [], getattr(op, "frac", 0) <= 31  # params: index, types, rows, columns
    if op.op == "embed":
        params = [row for t in op.tables for row in scaled(t.weights, ["I16"], rows(t.weights), d)]
        limits = len(op.tables) >= 1
    elif op.op == "matmul":
        params, limits = scaled(op.weights, ["I8", "I16"], n, k), k <= 16384
    elif "norm" in vars(op):
        groups = getattr(op, "groups", 1)
        require(groups >= 1 and d % groups == 0, "5.6", "parts of a row")
        params, limits = [(op.norm.scale, ["I32"], 1, d // groups)], d // groups <= 2**15 and 1 <= op.norm.shift <= 62
    elif op.op == "rope":
        require(op.table < len(p.params), "6.4", "a table of rope")
        table = p.params[op.table]
        params = [(op.table, ["I32"], max(table.rows, p.max_positions), table.cols)]
        limits = (op.heads_ >= 1 and 1 <= op.size <= 512 and d == op.heads_ * op.size == len(op.shifts) * op.size
                  and 2 <= table.cols <= op.size and table.cols % 2 == 0 and all(s <= 32 for s in op.shifts))
    elif op.op == "sample":
        require(op.table < len(p.params), "6.4", "a table of token bytes")
        params = [(op.table, ["I8"], bound["v"], p.params[op.table].cols)]
        limits = bound["one"] == 1 and bound["v"] <= p.vocab_size and 2 <= p.params[op.table].cols <= 1024
    elif op.op in ("multiply", "shift"):
        limits = op.shift <= (62 if op.op == "multiply" else 31)
    elif op.op == "attention":
        h = op.heads
        limits = (1 <= h.head_dim <= 512 and h.kv_heads and h.heads % h.kv_heads == 0 and d == h.heads * h.head_dim
                  and n == h.kv_heads * h.head_dim and len(h.score_shift) == len(h.value_shift) == h.heads)
    if getattr(op, "bias", None) is not None:
        params.append((op.bias, ["I32"], 1, n or d))
    require(limits, "6.4", f"a limit of {op.op}")
    for index, dtypes, rows_, cols in params:
        require(index < len(p.params) and rows_ >= 1 and p.params[index].dtype in dtypes
                and (p.params[index].rows, p.params[index].cols) == (rows_, cols), "6.4", f"a parameter of {op.op}")


def check_bounds(p, params):
    """Section 22."""
    def peak(index):
        return int(np.abs(params[index].astype(I64)).max())

    for op in (op for layer in p.layers for op in layer.ops):
        scaled = [t.weights for t in op.tables] if op.op == "embed" else [op.weights] if op.op == "matmul" else []
        for w in scaled:
            require(peak(w.codes) <= (127 if p.params[w.codes].dtype == "I8" else 32639), "22.2", "a code")
            require(params[w.mantissa].min() >= 2**15, "22.2", "a mantissa")
        cols, n = p.tensors[op.out].cols, p.max_positions
        if op.op == "embed":
            total = 0
            for t in op.tables:
                codes, mantissa, shift = (params[i] for i in (t.weights.codes, t.weights.mantissa, t.weights.shift))
                rows = np.abs(rescale(np.abs(codes.astype(I64)).max(axis=1), mantissa[0], shift[0]))
                total += int(rows.max() if t.index != "constant" else rows[t.row] if t.row < len(rows) else 0)
            require(total < 2**31, "22.3", "the embedding may saturate")
        elif op.op == "matmul":
            sums = np.abs(params[op.weights.codes].astype(I64)).sum(axis=1)
            require(int(sums.max()) < 2**46 // 32639, "22.4", "a matmul's row is too heavy")
        elif op.op in ("layer_norm", "rms_norm"):
            require(cols * 2**46 < 2**62 and (op.op == "rms_norm" or cols * (2**31 + 1) < 2**62)
                    and 3 * 2**29 * peak(op.norm.scale) < 2**62, "22.5", "a norm")
        elif op.op == "attention":
            require(op.heads.head_dim * 32639**2 < 2**62
                    and (n // 256 + 1) * (256 * 32767 * 32639 * 2**8 + 1) < 2**62, "22.6", "attention")
        elif op.op in ("mean_pool", "l2_normalize"):
            require((n * (2**32 + 1) if op.op == "mean_pool" else cols * 2**46) < 2**62, "22.7", op.op)


class Package:
    def __init__(self, path):
        """20.2 to 20.8, in the order of 20.8."""
        data = np.memmap(path, np.uint8, mode="r")
        r = Reader(data[:16].tobytes())
        require(r.take(8) == b"LOCKSTEP" and r.u32() == 1, "20.2", "not a package of this version")
        end = 16 + r.length(2**24)
        require(end <= len(data), "20.3", "length of the file")
        text = data[16:end].tobytes()
        self.manifest, self.model_id = read_manifest(text), blake3(text).digest()  # 20.7
        self.program = p = self.manifest.program
        blobs = self.manifest.params + [self.manifest.tokenizer]
        blobs += [self.manifest.template] if self.manifest.template else []
        sizes = [param.rows * param.cols * np.dtype(DTYPES[param.dtype]).itemsize for param in p.params]
        require([b.bytes for b in self.manifest.params] == sizes, "20.5", "blobs are not the program's parameters")
        require(1 <= self.manifest.tokenizer.bytes <= 2**26, "20.4", "size of the tokenizer")
        check_program(p)
        gaps, spans = [], []
        for blob in blobs:
            start = -(-end // 4096) * 4096
            gaps.append((end, start))
            spans.append((start, end := start + blob.bytes))
        require(end == len(data), "20.3", "length of the file")
        for blob, (start, stop) in zip(blobs, spans):
            require(blake3(data[start:stop]).digest() == blob.digest, "20.5", "digest of a blob")
        require(not any(data[start:stop].any() for start, stop in gaps), "20.3", "padding that is not zero")
        self.params = [data[a:b].view(DTYPES[param.dtype]).reshape(param.rows, param.cols)
                       for param, (a, b) in zip(p.params, spans)]
        check_bounds(p, self.params)
        if self.manifest.template:
            data[slice(*spans[-1])].tobytes().decode()  # 20.4: UTF-8
        from tokenizers import Tokenizer
        self.tokenizer = Tokenizer.from_str(data[slice(*spans[len(p.params)])].tobytes().decode())
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        ids = self.tokenizer.get_vocab(with_added_tokens=True).values()
        require(max(ids) < p.vocab_size, "20.9", "an id of the tokenizer is not in the vocabulary")

    def tokenize(self, text):
        """20.9."""
        return self.tokenizer.encode(text).ids

    def scaled(self, w):
        return self.params[w.codes], self.params[w.mantissa][0], self.params[w.shift][0]

    def step(self, op, env, tokens):
        """One op on the tensors in env."""
        param = lambda index: None if index is None else self.params[index][0]
        x = env[op.input] if hasattr(op, "input") else None
        if op.op == "embed":
            rows = {"token": np.array(tokens), "position": np.arange(len(tokens))}
            return embed([(self.scaled(t.weights), rows.get(t.index, np.full(len(tokens), t.row))) for t in op.tables])
        if op.op == "matmul":
            return matmul(x, self.scaled(op.weights), param(op.bias), self.program.tensors[op.out].kind == "I16")
        if op.op in ("layer_norm", "rms_norm"):
            return norm(x, param(op.norm.scale), param(op.bias) if op.op == "layer_norm" else None, op.norm.shift,
                        op.norm.epsilon_mantissa, op.norm.epsilon_shift, getattr(op, "groups", 1))
        if op.op == "rope":
            return rope(x, self.params[op.table], np.arange(len(tokens)), op.heads_, op.size, list(op.shifts))
        if op.op == "attention":
            return attention(env[op.q], env[op.k], env[op.v], op.heads)
        return {"quantize": lambda: quantize(x), "add": lambda: add(env[op.a], env[op.b]),
                "gelu": lambda: gate(GAUSS, x, op.frac), "silu": lambda: gate(LOGISTIC, x, op.frac),
                "mean_pool": lambda: mean_pool(x), "first_pool": lambda: (x[:1], 0),
                "multiply": lambda: multiply(env[op.a], env[op.b], op.shift), "shift": lambda: (rshift(x, op.shift), 0),
                "l2_normalize": lambda: l2_normalize(x)}[op.op]()

    def run(self, tokens):
        """Section 6: the output of every layer, and the number of clamped elements."""
        p = self.program
        require(1 <= len(tokens) <= p.max_positions and max(tokens) < p.vocab_size, "6.4", "the sequence")
        outputs, clamped, previous = [], 0, {}
        for layer in p.layers:
            env = dict(previous)
            for op in layer.ops:
                env[op.out], changed = self.step(op, env, tokens)
                clamped += changed
            outputs.append(env[layer.output])
            previous = {layer.output: env[layer.output]}
        return outputs, clamped

    def work(self, t):
        """6.5. A matmul of a tensor with one row per sequence has T = 1."""
        total = 0
        for op in (op for layer in self.program.layers for op in layer.ops):
            if op.op == "matmul":
                n, k = self.params[op.weights.codes].shape
                total += (t if self.program.tensors[op.out].rows == "position" else 1) * n * k
            elif op.op == "attention":
                total += 2 * op.heads.heads * op.heads.head_dim * ((t * t + t) // 2 if op.heads.causal else t * t)
        return total


def root(rows):
    """10.1 and 10.2."""
    n, width = rows.shape
    padded = np.zeros((n, -(-width * 4 // 1024) * 256), "<i4")
    padded[:, :width] = rows
    return blake3(padded.tobytes()).digest()
