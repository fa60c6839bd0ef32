"""24.17: the steps of sampling, as steps.py lowers them. The arithmetic is that of 5.17."""
from sampling import adjusted, distance, finish, least_weight, log2q, sampling_weight, share, text_of

COLUMN_BLOCK = 8192  # 24.8


def block(b, size, total):
    """24.8: where block b of so many columns begins and ends."""
    return size * b, min(size * (b + 1), total)


def unsigned(values, bits):
    return [x % 2**bits for x in values]


class Weights:
    """24.17: weights, thresholds of them by digits, and sums of those that reach one."""

    def __init__(self, view, op, count, weight_of):
        self.view, self.op, self.count, self.blocks = view, op, count, -(-count // COLUMN_BLOCK)
        self.array = view.add(op, "weights", "<i4", 1, count, weight_of)

    def block(self, b):
        return unsigned((yield from self.array.read(0, *block(b, COLUMN_BLOCK, self.count))), 32)

    def add_sums(self, name, threshold, floor):
        def element(_, b):
            w = yield from self.block(b)
            least = max((yield from threshold.read(0, 0)) if threshold else 0, floor)
            return sum(x for x in w if x >= least)

        return self.view.add(self.op, name, "<i8", 1, self.blocks, element)

    def add_threshold(self, name, measure, need, kept=None):
        digit = None
        for z in range(28, -4, -4):
            digit = self.add_digit(name, measure, need, kept, digit, z)
        return digit

    def add_digit(self, name, measure, goal, kept, before, z):
        def count_of(c, b):
            w = yield from self.block(b)
            prefix = (yield from before.read(0, 0)) % 2**64 if before else 0
            return sum(measure(x) for x in w if x >> z == (prefix >> z + 4) * 16 + c)

        histogram = self.view.add(self.op, name + "_histogram", "<i8", 16, self.blocks, count_of)

        def digit(_, col):
            t = []
            for c in range(16):
                t.append(sum((yield from histogram.all(c))) % 2**64)
            prefix, need = 0, goal
            if before:
                prefix, need = unsigned((yield from before.read(0, 0, 2)), 64)
            elif kept:
                need = share(goal, sum((yield from kept.all(0))) % 2**64)
            c = 15
            while c > 0 and t[c] < need:
                need, c = need - t[c], c - 1
            return need if col else prefix + (c << z)

        return self.view.add(self.op, name + "_digit", "<i8", 1, 2, digit)


def add_counts(view, op, parts, v_count):
    """24.17: how often blocks of the sequence have each token."""
    def count(e, v):
        first, last = block(e, COLUMN_BLOCK, view.s + 1)
        found = [t for t, x in enumerate((yield from view.read_ids(first, last)), first) if x == v]
        return sum(t >= view.prompt for t in found) + 2**20 * any(t < view.prompt for t in found)

    return view.add(op, "counts", "<i4", parts, v_count, count)


def add_token(view, op, x, maxima, weights, sums, limit):
    """24.17: the token, at temperature 0 without weights."""
    s, draw = view.sampling

    def likeliest(_, __):
        m = yield from maxima.all(0)
        b = m.index(max(m))
        own = yield from x.read(0, *block(b, COLUMN_BLOCK, x.cols))
        return COLUMN_BLOCK * b + own.index(max(own))

    def drawn(_, __):
        totals = unsigned((yield from sums.all(0)), 64)
        least = max((yield from limit.read(0, 0)) if limit else 0, least_weight(s.min_p))
        target, total = draw * (sum(totals) % 2**64) >> 64, 0
        for b, own in enumerate(totals):
            if own > target:
                break
            target -= own
        for i, w in enumerate((yield from weights.block(b))):
            total += w if w >= least else 0
            if total > target:
                return COLUMN_BLOCK * b + i
        return COLUMN_BLOCK * b

    return view.add(op, "token", "<i4", 1, 1, drawn if s.temperature else likeliest)


def lower_sample(view, op):
    """24.17."""
    (s, _), end = view.sampling, view.s + 1
    v_count, table, generated = view.program.tensors[op.logits].cols, view.params[op.table], end - view.prompt
    parts, penalises = -(-end // COLUMN_BLOCK), s.presence_penalty or s.frequency_penalty
    counts = add_counts(view, op, parts, v_count) if penalises or s.repetition_penalty != 10**4 else None

    def adjusted_of(_, v):
        z, seen = (yield from view.read(op.logits, view.s, v)), []
        for e in range(parts if counts else 0):
            seen.append((yield from counts.read(e, v)) % 2**32)
        return adjusted(z, v, any(c >= 2**20 for c in seen), sum(c % 2**20 for c in seen), s, op.frac)

    def maximum(_, b):
        return max((yield from x.read(0, *block(b, COLUMN_BLOCK, v_count))))

    def weight_of(_, v):
        own = yield from x.read(0, v)
        return sampling_weight(distance(max(max((yield from maxima.all(0))) - own, 0), s.temperature, op.frac))

    x = view.add(op, "adjusted", "<i4", 1, v_count, adjusted_of)
    maxima = view.add(op, "maxima", "<i4", 1, -(-v_count // COLUMN_BLOCK), maximum)
    weights = sums = limit = tail = None
    if s.temperature:
        weights = Weights(view, op, v_count, weight_of)
        if 1 <= s.top_k < v_count:
            limit = weights.add_threshold("top_k", lambda w: 1, s.top_k)
        if s.top_p < 10**4:
            kept = weights.add_sums("top_p_kept", limit, 0)
            limit = weights.add_threshold("top_p", lambda w: w, s.top_p, kept)
        sums = weights.add_sums("sums", limit, least_weight(s.min_p))
    token = add_token(view, op, x, maxima, weights, sums, limit)

    def tail_of(_, i):
        text = b""
        for t in (yield from view.read_ids(max(view.prompt, end - 31), end)):
            if t < table.rows:
                text += text_of((yield from table.all(t)))
        place = len(text) + i - 31
        return text[place] if place >= 0 else -1

    if s.stop_strings and generated:
        tail = view.add(op, "tail", "<i2", 1, 31, tail_of)

    def word(_, __):
        t, text = (yield from token.read(0, 0)) % 2**32, b""
        before = bytes(b for b in ((yield from tail.all(0)) if tail else []) if 0 <= b < 256)
        if s.stop_strings and t < table.rows:
            text = text_of((yield from table.all(t)))
        return t % 2**24 + (finish(s, generated, before, text, t) << 24)

    view.add(op, "out", "<i4", 1, 1, word)


NO_KEY = -2**63


def lower_logprobs(view, op, likeliest):
    """24.18, for the logits of a sample."""
    v_count, words = view.program.tensors[op.logits].cols, view.ids[1]
    blocks = -(-v_count // COLUMN_BLOCK)

    def read_block(b):
        return view.read(op.logits, view.s, *block(b, COLUMN_BLOCK, v_count))

    def maximum(_, b):
        return max((yield from read_block(b)))

    def distance_of(z, m):
        return distance(max(m - z, 0), 10**4, op.frac)

    def sum_of(_, b):
        z = yield from read_block(b)
        m = max((yield from maxima.all(0)))
        return sum(sampling_weight(distance_of(x, m)) for x in z)

    def largest(keys, j):
        return sorted(keys, reverse=True)[j] if j < len(keys) else NO_KEY

    def of_block(_, col):
        b, j = divmod(col, likeliest)
        z = yield from read_block(b)
        return largest([x * 2**32 + 2**32 - 1 - v for v, x in enumerate(z, COLUMN_BLOCK * b)], j)

    def of_all(_, j):
        return largest((yield from of_blocks.all(0)), j)

    def read_sums():
        m = max((yield from maxima.all(0)))
        total = sum((yield from sums.all(0))) % 2**64
        return m, max((log2q(total) if total else 0) - 30 * 2**20, 0)

    def logprob(z, m, total):
        return max(-2**31, -(distance_of(z, m) + total))

    def element(_, col):
        if col == 0:
            token = (yield from words.read(0, view.s + 1 - view.prompt)) % 2**24
            of = yield from read_sums()
            return logprob((yield from view.read(op.logits, view.s, token)), *of) if token < v_count else -2**31
        key = yield from best.read(0, (col - 1) // 2)
        if col % 2:
            return -1 if key == NO_KEY else 2**32 - 1 - key % 2**32
        of = yield from read_sums()
        return -2**31 if key == NO_KEY else logprob(key >> 32, *of)

    maxima = view.add(op, "maxima", "<i4", 1, blocks, maximum)
    sums = view.add(op, "sums", "<i8", 1, blocks, sum_of)
    if likeliest:
        of_blocks = view.add(op, "block_likeliest", "<i8", 1, blocks * likeliest, of_block)
        best = view.add(op, "likeliest", "<i8", 1, likeliest, of_all)
    view.add(op, "out", "<i4", 1, 1 + 2 * likeliest, element)
