"""Section 24: the dispute view of a layer, in Python's own integers. An element of a step is a generator: it yields what
it reads, is sent the bytes, and returns its value."""
from types import SimpleNamespace as Struct

import numpy as np

from inference import DTYPES, GAUSS, LOGISTIC, I64, gate, recip, require, rsqrt, softmax_weight
from sampling_steps import COLUMN_BLOCK, block, lower_logprobs, lower_sample

POSITION_BLOCK, POOL_BLOCK = 256, 56  # 24.12, 24.13
NORMS = ("layer_norm", "rms_norm", "l2_normalize")


# ---- 24.5: arithmetic that is total -------------------------------------------------------------------------------


def cut(x, width=8):
    """The low bits, as two's complement of this many bytes."""
    half = 1 << 8 * width - 1
    return (x + half) % (2 * half) - half


def clamp(x, low, high):
    return min(max(x, low), high)


def sat32(x):
    return clamp(x, -2**31, 2**31 - 1)


def rshift(a, count):
    """3.1, exact, with the count of 24.5."""
    s = clamp(count, 0, 63)
    return a if s == 0 else 0 if s == 63 else (a + (1 << s - 1)) >> s


def rescale(acc, mantissa, shift):
    """3.2, exact."""
    product = acc * mantissa
    return rshift(product, shift) if shift >= 0 else clamp(product << min(-shift, 62), -2**62, 2**62)


def rowexp(m):
    """3.3."""
    return next(e for e in range(32) if rshift(m, e) <= 32639)


def sum64(values):
    return cut(sum(values))


def weight(maximum, score):
    """3.7, and 0 for a score above the maximum (24.12)."""
    d = maximum * 2**20 - score
    return int(softmax_weight(np.array(d, I64))) if d >= 0 else 0


def magnify(maxima):
    """5.5.1 from a row's maxima: k, and z as a function of x."""
    k = 30 - clamp(max(maxima), 0, 2**31).bit_length()
    return k, lambda x: cut(x << k) if k >= 0 else rshift(x, -k)


def rounded_mean(total, n):
    """`floor((2 * S + n) / (2 * n))` with the sum cut to 64 bits."""
    return cut(2 * total + n) // (2 * n)


def epsilon(k, norm):
    """5.5.4."""
    j = 2 * (k - 8) - norm.epsilon_shift
    if norm.epsilon_mantissa == 0:
        return 0
    return 2**62 if j > 30 else norm.epsilon_mantissa << j if j >= 0 else rshift(norm.epsilon_mantissa, -j)


# ---- Reads --------------------------------------------------------------------------------------------------------


class Array:
    """What can be read of: elements of a NumPy type in rows of `row_bytes`, in a tensor of `length` bytes."""

    def __init__(self, source, dtype, rows, cols, padded=True):
        self.source, self.dtype, self.rows, self.cols = source, np.dtype(dtype), rows, cols
        self.width = self.dtype.itemsize
        self.row_bytes = -(-cols * self.width // 1024) * 1024 if padded else cols * self.width
        self.length = rows * self.row_bytes

    def read(self, row, first, end=None):
        """Elements first..end of a row, or the one element `first`."""
        count = 1 if end is None else end - first
        assert 0 <= row < self.rows and 0 <= first and first + count <= self.cols
        data = yield Struct(array=self, offset=row * self.row_bytes + first * self.width, bytes=count * self.width)
        values = np.frombuffer(data, self.dtype).tolist()
        return values[0] if end is None else values

    def all(self, row):
        return self.read(row, 0, self.cols)


class Step(Array):
    """24.1. `element(row, column)` is the generator of an element."""

    def __init__(self, index, name, op, dtype, rows, cols, element):
        super().__init__(("step", index), dtype, rows, cols)
        self.index, self.name, self.op, self.formula = index, name, op, element

    def element(self, index):
        """By the index of 24.1. Padding reads nothing."""
        row, col = divmod(index, self.row_bytes // self.width)
        value = (yield from self.formula(row, col)) if col < self.cols else 0
        return cut(value, self.width)


def nothing(value):
    return value
    yield  # this makes it a generator


# ---- 24.2: which ops, for which rows ------------------------------------------------------------------------------


class View:
    """The steps of layer l for row s, over so many positions. `steps` is the list. Of a generation, `sampling` has the
    settings and the point's draw. With a number of likely tokens, the steps of the log-probabilities (24.18)."""

    def __init__(self, manifest, layer, s, tokens, sampling=None, likeliest=None):
        self.program, self.s, self.positions, self.steps = manifest.program, s, tokens, []
        self.sampling, self.prompt = sampling, sampling[0].prompt_tokens if sampling else tokens
        if manifest.program.tensors[manifest.program.layers[layer].output].rows == "point":
            self.s = tokens - 1
        p = self.program
        listed = [(number, i, op) for number in ((0, 1) if layer == 1 else (layer,))
                  for i, op in enumerate(p.layers[number].ops)]
        final = p.layers[layer].output
        if likeliest is not None:
            sample = next(of for of in listed if of[2].op == "sample")
            final = sample[2].logits
        self.need = {final: 0}  # by tensor: the positions 0..n, or 0 for row s alone
        for _, _, op in reversed(listed):
            if op.out in self.need:
                self.add_needs(op)
        # What a step or the layer before makes, by tensor: its arrays.
        self.made = {}
        if layer > 1:
            before = p.layers[layer - 1].output
            self.made[before] = [Array(("previous",), "<i4", tokens, p.tensors[before].cols)]
        self.ids = [Array((kind,), "<u4", 1, n, padded=False)
                    for kind, n in (("tokens", self.prompt), ("words", tokens - self.prompt + (likeliest is not None)))]
        self.params = [Array(("param", i), DTYPES[d.dtype], d.rows, d.cols, padded=False)
                       for i, d in enumerate(p.params)]
        for number, i, op in listed:
            if op.out in self.need:
                self.op = Struct(layer=number, index=i, kind=op.op)
                LOWER[op.op](self, op)
        if likeliest is not None:
            number, i, op = sample
            self.op = Struct(layer=number, index=i, kind="logprobs")
            lower_logprobs(self, op, likeliest)
            return
        last = self.steps[-1]
        assert last.rows == 1 and last.cols == p.tensors[final].cols

    def add_needs(self, op):
        need = self.need[op.out]
        wanted = {index: need for index, _ in op.tensors[:-1]}
        if op.op == "attention":
            require(need == 0, "24.2", "an attention that is needed for a range of positions has no dispute view")
            n = self.s + 1 if op.heads.causal else self.positions
            wanted = {op.q: 0}
            for index in (op.k, op.v):
                wanted[index] = n
        elif op.op == "mean_pool":
            wanted[op.input] = self.positions
        for index, n in wanted.items():
            self.need[index] = max(self.need.get(index, 0), n)

    def read_ids(self, first, end):
        """24.4: the ids of positions, those of the prompt and then those that were generated."""
        ids = []
        for array, start, low, high in ((self.ids[0], 0, first, min(end, self.prompt)),
                                        (self.ids[1], self.prompt, max(first, self.prompt), end)):
            if low < high:
                ids += (yield from array.read(0, low - start, high - start))
        return [v & 0xffffff if t >= self.prompt else v for t, v in enumerate(ids, first)]

    def add(self, op, name, dtype, rows, cols, element):
        step = Step(len(self.steps), name, self.op, dtype, rows, cols, element)
        self.steps.append(step)
        self.made.setdefault(op.out, []).append(step)
        return step

    def rows(self, op):
        return self.need[op.out] or 1

    def position(self, op, row):
        """The position that a row of the op's steps belongs to."""
        return row if self.need[op.out] else self.s

    def at(self, tensor, position, part=0):
        """Where a position of a tensor lies: the array, and the row in it. The last step of an op is its
        output; of BFP, part 1 is the step before, the exponent."""
        arrays = self.made[tensor]
        if arrays[0].source == ("previous",):
            return arrays[0], position
        return arrays[-1 - part], position if self.need[tensor] else 0

    def read(self, tensor, position, first, end=None, part=0):
        array, row = self.at(tensor, position, part)
        return array.read(row, first, end)


# ---- 24.7 to 24.14 ------------------------------------------------------------------------------------------------


def lower_embed(view, op):
    """24.7."""
    def triple(t, r, col):
        codes, mantissa, shift = (view.params[i] for i in (t.weights.codes, t.weights.mantissa, t.weights.shift))
        if r >= codes.rows:
            return 0
        c = yield from codes.read(r, col)
        m = yield from mantissa.read(0, r)
        return rescale(c, m, (yield from shift.read(0, r)))

    def element(row, col):
        position, total, token = view.position(op, row), 0, None
        by_token = [t for t in op.tables if t.index == "token"]
        if by_token:
            token, = yield from view.read_ids(position, position + 1)
        for t in op.tables:
            if t.index != "token":
                total += yield from triple(t, position if t.index == "position" else t.row, col)
        for t in by_token:
            total += yield from triple(t, token, col)
        return sat32(total)

    view.add(op, "out", "<i4", view.rows(op), view.program.tensors[op.out].cols, element)


def add_maxima(view, op, d, groups=1):
    """24.8 and 24.11."""
    def element(row, b):
        xs = yield from view.read(op.input, view.position(op, row), *group_block(b, d))
        return max(map(abs, xs))

    return view.add(op, "maxima", "<i8", view.rows(op), groups * -(-d // COLUMN_BLOCK), element)


def group_block(b, d):
    """24.14: columns of block b of rows whose groups have d columns."""
    group, b = divmod(b, -(-d // COLUMN_BLOCK))
    return tuple(group * d + end for end in block(b, COLUMN_BLOCK, d))


def lower_quantize(view, op):
    """24.8."""
    d = view.program.tensors[op.input].cols
    maxima = add_maxima(view, op, d)

    def exponent_of(row, _):
        return rowexp(clamp(max((yield from maxima.all(row))), 0, 2**31))

    exponent = view.add(op, "exponent", "<i4", view.rows(op), 1, exponent_of)

    def code(row, col):
        x = yield from view.read(op.input, view.position(op, row), col)
        return rshift(x, (yield from exponent.read(row, 0)))

    view.add(op, "codes", "<i2", view.rows(op), d, code)


def lower_matmul(view, op):
    """24.9."""
    tensor, k = view.program.tensors[op.out], view.program.tensors[op.input].cols
    codes, mantissa, shift = (view.params[i] for i in (op.weights.codes, op.weights.mantissa, op.weights.shift))
    low, high = (-32639, 32639) if tensor.kind == "I16" else (-2**31, 2**31 - 1)

    def element(row, n):
        position = view.position(op, row)
        x = yield from view.read(op.input, position, 0, k)
        e = yield from view.read(op.input, position, 0, part=1)
        w = yield from codes.read(n, 0, k)
        m = yield from mantissa.read(0, n)
        s = yield from shift.read(0, n)
        bias = 0 if op.bias is None else (yield from view.params[op.bias].read(0, n))
        return clamp(rescale(sum(a * b for a, b in zip(x, w)), m, s - e) + bias, low, high)

    view.add(op, "out", "<i2" if tensor.kind == "I16" else "<i4", view.rows(op), tensor.cols, element)


def lower_pointwise(view, op):
    """24.10."""
    def element(row, col):
        position = view.position(op, row)
        values = []
        for index, _ in op.tensors[:-1]:
            values.append((yield from view.read(index, position, col)))
        if op.op == "add":
            return sat32(sum(values))
        if op.op == "multiply":
            return sat32(rshift(values[0] * values[1], op.shift))
        if op.op == "shift":
            return rshift(values[0], op.shift)
        if op.op == "gather":
            return values[0]
        return int(gate(GAUSS if op.op == "gelu" else LOGISTIC, np.array(values, I64), op.frac)[0][0])

    view.add(op, "out", "<i4", view.rows(op), view.program.tensors[op.out].cols, element)


def lower_norm(view, op):
    """24.11."""
    cols, groups, is_layer = view.program.tensors[op.input].cols, getattr(op, "groups", 1), op.op == "layer_norm"
    d = cols // groups
    blocks = -(-d // COLUMN_BLOCK)
    maxima, sums = add_maxima(view, op, d, groups), None

    def of_group(array, row, group):
        return array.read(row, group * blocks, (group + 1) * blocks)

    def centred(row, group):
        """k, and c as a function of x."""
        k, z = magnify((yield from of_group(maxima, row, group)))
        if not is_layer:
            return k, z
        mean = rounded_mean(sum64((yield from sums.all(row))), d)
        return k, lambda x: cut(z(x) - mean)

    def read_block(row, b):
        return view.read(op.input, view.position(op, row), *group_block(b, d))

    def sum_of(row, b):
        xs = yield from read_block(row, b)
        _, z = magnify((yield from maxima.all(row)))
        return sum64(map(z, xs))

    def squares_of(row, b):
        xs = yield from read_block(row, b)
        _, c = yield from centred(row, b // blocks)
        return sum64(rshift(c(x), 8) ** 2 for x in xs)

    def element(row, col):
        x = yield from view.read(op.input, view.position(op, row), col)
        k, c = yield from centred(row, col // d)
        v = sum64((yield from of_group(squares, row, col // d)))
        e = epsilon(k, op.norm) if op.op != "l2_normalize" else 0
        r, p = rsqrt((v + e) % 2**64)
        u = rshift(cut(c(x) * r), 24 + p)
        if op.op == "l2_normalize":
            return u
        scale = yield from view.params[op.norm.scale].read(0, col % d)
        bias = (yield from view.params[op.bias].read(0, col)) if is_layer else 0
        return sat32(cut(rshift(cut(u * scale), op.norm.shift) + bias))

    if is_layer:
        sums = view.add(op, "sums", "<i8", view.rows(op), blocks, sum_of)
    squares = view.add(op, "squares", "<i8", view.rows(op), groups * blocks, squares_of)
    view.add(op, "out", "<i4", view.rows(op), cols, element)


def lower_attention(view, op):
    """24.12."""
    heads, s = op.heads, view.s
    h_count, g_count, size = heads.heads, heads.kv_heads, heads.head_dim
    n = s + 1 if heads.causal else view.positions
    blocks = -(-n // POSITION_BLOCK)
    seen = lambda b: block(b, POSITION_BLOCK, n)
    group = lambda h: h // (h_count // g_count)

    def value(row, col):
        (b, g), (c, p) = divmod(row, g_count), divmod(col, POSITION_BLOCK)
        j = POSITION_BLOCK * b + p
        return view.read(op.v, j, g * size + c) if j < n else nothing(0)

    def score(h, j):
        q = yield from view.read(op.q, s, h * size, (h + 1) * size)
        k = yield from view.read(op.k, j, group(h) * size, (group(h) + 1) * size)
        return sat32(rshift(sum64(a * b for a, b in zip(q, k)), heads.score_shift[h]))

    def maximum(h, b):
        return -(-max((yield from scores.read(h, *seen(b)))) >> 20)

    def weights_of(h, b):
        score_ = yield from scores.read(h, *seen(b))
        m = yield from maxima.read(h, b)
        return [weight(m, x) for x in score_]

    def weight_sum(h, b):
        return sum64((yield from weights_of(h, b)))

    def partial(row, b):
        h, c = divmod(row, size)
        first, end = seen(b)
        v = yield from values.read(b * g_count + group(h), c * 256, c * 256 + end - first)
        return sum64(x * w for x, w in zip(v, (yield from weights_of(h, b))))

    def element(_, col):
        h = col // size
        o_b = yield from partials.all(col)
        l_b = yield from weights.all(h)
        m_b = yield from maxima.all(h)
        m = max(m_b)
        merged = lambda parts: sum64(rshift(cut(x * 2**8), m - own) for x, own in zip(parts, m_b))
        total = merged(l_b) % 2**64
        o = rshift(merged(o_b), max(total.bit_length() - 16, 0))
        return sat32(rshift(cut(o * recip(total)), 31 + heads.value_shift[h]))

    values = view.add(op, "values", "<i2", blocks * g_count, size * 256, value)
    scores = view.add(op, "scores", "<i4", h_count, n, score)
    maxima = view.add(op, "maxima", "<i4", h_count, blocks, maximum)
    weights = view.add(op, "weights", "<i8", h_count, blocks, weight_sum)
    partials = view.add(op, "partials", "<i8", h_count * size, blocks, partial)
    view.add(op, "out", "<i4", 1, h_count * size, element)


def lower_mean_pool(view, op):
    """24.13."""
    d, t = view.program.tensors[op.input].cols, view.positions

    def sum_of(i, b):
        values = []
        for position in range(*block(b, POOL_BLOCK, t)):
            values.append((yield from view.read(op.input, position, i)))
        return sum64(values)

    def element(_, i):
        return rounded_mean(sum64((yield from sums.all(i))), t)

    sums = view.add(op, "sums", "<i8", d, -(-t // POOL_BLOCK), sum_of)
    view.add(op, "out", "<i4", 1, d, element)


def lower_first_pool(view, op):
    """24.14."""
    view.add(op, "out", "<i4", 1, view.program.tensors[op.input].cols, lambda _, i: view.read(op.input, 0, i))


def lower_rope(view, op):
    """24.16."""
    table = view.params[op.table]
    half = table.cols // 2

    def element(row, col):
        position, (h, c) = view.position(op, row), divmod(col, op.size)
        if c >= 2 * half:
            return clamp(rshift((yield from view.read(op.input, position, col)), op.shifts[h]), -32639, 32639)
        a = yield from view.read(op.input, position, h * op.size + c % half)
        b = yield from view.read(op.input, position, h * op.size + c % half + half)
        cos, sin = yield from table.read(position, 2 * (c % half), 2 * (c % half) + 2)
        x = a * cos - b * sin if c < half else min(a * sin + b * cos, 2**63 - 1)
        return clamp(rshift(x, 30 + op.shifts[h]), -32639, 32639)

    view.add(op, "out", "<i2", view.rows(op), view.program.tensors[op.out].cols, element)


LOWER = {"embed": lower_embed, "quantize": lower_quantize, "matmul": lower_matmul, "attention": lower_attention,
         "mean_pool": lower_mean_pool, "rope": lower_rope, "sample": lower_sample, "first_pool": lower_first_pool,
         **dict.fromkeys(("add", "gelu", "silu", "multiply", "shift", "gather"), lower_pointwise), **dict.fromkeys(NORMS, lower_norm)}


# ---- 24.6: the bound ----------------------------------------------------------------------------------------------


def chunks_touched(read):
    """At most so many chunks hold this range, wherever it begins."""
    array = read.array
    touched = -(-(read.bytes - array.width) // 1024) + 1
    return touched if array.row_bytes % 1024 else min(touched, array.row_bytes // 1024)


def is_decoder(p):
    return p.tensors[p.layers[-1].output].rows == "point"


def check_reads(manifest):
    """24.6. No element of a step reads more than the first, which is sent zeros here: every block is full for it."""
    p = manifest.program
    for layer in range(1, len(p.layers)):
        rows = p.tensors[p.layers[layer].output].rows
        every = Struct(prompt_tokens=1, max_tokens=1, temperature=10**4, top_k=1, top_p=0, min_p=0, repetition_penalty=0,
                       presence_penalty=0, frequency_penalty=0, logit_bias=[], stop_tokens=[], stop_strings=[b"x"])
        greedy = Struct(**{**vars(every), "temperature": 0})
        views = [View(manifest, layer, 0 if rows == "sequence" else p.max_positions - 1, p.max_positions, sampling)
                 for sampling in ([(every, 0), (greedy, 0)] if is_decoder(p) else [None])]
        if is_decoder(p) and layer == len(p.layers) - 1:
            views.append(View(manifest, layer, p.max_positions - 1, p.max_positions, (greedy, 0), 20))
        for step in (step for view in views for step in view.steps):
            require(step.length <= 2**40, "24.6", f"a tensor of {step.op.kind} is too long")
            element, data, chunks = step.element(0), None, 0
            try:
                while True:
                    read = element.send(data)
                    data, chunks = bytes(read.bytes), chunks + chunks_touched(read)
            except StopIteration:
                require(chunks <= 64, "24.6", f"an element of {step.op.kind} reads too much")
