"""5.17: sampling, in Python's own integers."""
import numpy as np

from inference import I64, exp2neg


def divide(a, b):
    return (2 * a + b) // (2 * b)


def adjusted(z, v, in_prompt, count, s, frac):
    """5.17.1."""
    y = z + divide(dict(s.logit_bias).get(v, 0) * 2**frac, 10**4)
    if in_prompt or count:
        r = max(s.repetition_penalty, 1)
        y = divide(y * 10**4, r) if y > 0 else divide(y * r, 10**4)
    if count:
        y -= divide((s.presence_penalty + count * s.frequency_penalty) * 2**frac, 10**4)
    return min(max(y, -2**31), 2**31 - 1)


def distance(difference, temperature, frac):
    """5.17.3."""
    r = 406082553034800 * 10**4 // temperature
    b = r.bit_length() - 31
    m = r >> b if b >= 0 else r << -b
    shift = 28 - b + frac
    x = difference * m
    return (x + (1 << shift >> 1)) >> shift if shift >= 0 else x << -shift


def sampling_weight(d):
    """5.17.4."""
    k = d >> 20
    return 0 if k > 30 else int(exp2neg(np.array(d & 0xfffff, I64))) >> k


def share(p, total):
    return max(1, -(-p * total // 10**4))


def least_weight(min_p):
    return -(-min(min_p, 10**4) * 2**30 // 10**4)


def threshold(weights, need, measure):
    """5.17.5: the largest that enough reach; it is one of the weights."""
    total = 0
    for w in sorted(weights, reverse=True):
        total += measure(w)
        if total >= need:
            return w
    return 0


def text_of(row):
    """5.17.7."""
    data = bytes(b & 0xff for b in row)
    return data[2:][:int.from_bytes(data[:2], "little")]


def finish(s, generated, before, new, token):
    """5.17.7, from the texts before and of the token."""
    if token in s.stop_tokens:
        return 1
    text = before + new
    if any(text[:end].endswith(bytes(stop)) for stop in s.stop_strings for end in range(len(before) + 1, len(text) + 1)):
        return 2
    return 3 if generated + 1 >= s.max_tokens else 0


def log2q(s):
    """5.17.9."""
    n = s.bit_length() - 1
    y, digits = s << (63 - n), n
    for _ in range(20):
        q = y * y
        digit = q >> 127
        y = q >> (63 + digit)
        digits = 2 * digits + digit
    return digits


def logprobs(logits, frac, token, likely):
    """5.17.9: that of a token, and of the likeliest ones."""
    d = [distance(max(logits) - z, 10**4, frac) for z in logits]
    total = log2q(sum(sampling_weight(x) for x in d)) - 30 * 2**20
    of = [max(-2**31, -(x + total)) for x in d]
    order = sorted(range(len(logits)), key=lambda v: (-logits[v], v))
    return of[token], [(v, of[v]) for v in order[:likely]]


def sample(logits, frac, rows, s, history, draw):
    """5.17: the word of one point."""
    prompt, generated = history[:s.prompt_tokens], history[s.prompt_tokens:]
    x = [adjusted(int(z), v, v in prompt, generated.count(v), s, frac) for v, z in enumerate(logits)]
    if s.temperature == 0:
        token = x.index(max(x))
    else:
        w = [sampling_weight(distance(max(x) - y, s.temperature, frac)) for y in x]
        least = threshold(w, s.top_k, lambda w: 1) if 1 <= s.top_k < len(w) else 0
        if s.top_p < 10**4:
            least = threshold(w, share(s.top_p, sum(v for v in w if v >= least)), lambda w: w)
        least = max(least, least_weight(s.min_p))
        kept = [v if v >= least else 0 for v in w]
        target, total = draw * sum(kept) >> 64, 0
        for token, v in enumerate(kept):
            total += v
            if total > target:
                break
    before = b"".join(text_of(rows[t]) for t in generated[-31:] if t < len(rows))
    return token + (finish(s, len(generated), before, text_of(rows[token]), token) << 24)
