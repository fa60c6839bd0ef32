"""1.7, 16 and 25.3: the tree of BLAKE3 with its chaining values, which no package gives away."""
import struct

from inference import require

IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
ORDER = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
QUARTERS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
            (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8
MASK = 2**32 - 1
CHUNK = 1024


def compress(cv, block, counter, flags):
    """The compression function: the first 8 words of its output."""
    m = struct.unpack("<16I", block.ljust(64, b"\0"))
    v = [*cv, *IV[:4], counter & MASK, counter >> 32, len(block), flags]
    for _ in range(7):
        for i, (a, b, c, d) in enumerate(QUARTERS):
            va, vb, vc, vd = v[a], v[b], v[c], v[d]
            va = (va + vb + m[2 * i]) & MASK
            vd ^= va
            vd = (vd >> 16 | vd << 16) & MASK
            vc = (vc + vd) & MASK
            vb ^= vc
            vb = (vb >> 12 | vb << 20) & MASK
            va = (va + vb + m[2 * i + 1]) & MASK
            vd ^= va
            vd = (vd >> 8 | vd << 24) & MASK
            vc = (vc + vd) & MASK
            vb ^= vc
            v[a], v[b], v[c], v[d] = va, (vb >> 7 | vb << 25) & MASK, vc, vd
        m = [m[i] for i in ORDER]
    return tuple(v[i] ^ v[i + 8] for i in range(8))


def chunk_value(data, index, is_root):
    """The value of chunk `index`: a chaining value, or the root of a tensor that is this chunk."""
    cv = IV
    blocks = [data[at:at + 64] for at in range(0, len(data), 64)] or [b""]
    for i, block in enumerate(blocks):
        last = i == len(blocks) - 1
        flags = (CHUNK_START if i == 0 else 0) | (CHUNK_END | (ROOT if is_root else 0) if last else 0)
        cv = compress(cv, block, index, flags)
    return struct.pack("<8I", *cv)


def parent_value(left, right, is_root):
    return struct.pack("<8I", *compress(IV, left + right, 0, PARENT | (ROOT if is_root else 0)))


def merge(values, is_root):
    """25.3: the value of a block from those of all smaller blocks in it."""
    while len(values) > 1:
        last = len(values) == 2
        pairs = [parent_value(*values[i:i + 2], is_root and last) for i in range(0, len(values) - 1, 2)]
        values = pairs + values[2 * len(pairs):]
    return values[0]


def chunks_of(length):
    """16.1."""
    return max(1, -(-length // CHUNK))


def check_opening(opening, root, length, first, count):
    """Section 16: the bytes of chunks [first, first + count) of a tensor, or a refusal."""
    at, data = 0, []

    def take(n):
        nonlocal at
        require(at + n <= len(opening), "16.3", "an opening ends early")
        at += n
        return opening[at - n:at]

    def walk(low, high, value, is_root):
        if high <= first or low >= first + count:
            return
        if first <= low and high <= first + count and high - low <= 16:  # 16.2
            bytes_ = take(min(high * CHUNK, length) - low * CHUNK)
            parts = [bytes_[i * CHUNK:(i + 1) * CHUNK] for i in range(high - low)]
            alone = is_root and len(parts) == 1
            values = [chunk_value(part, low + i, alone) for i, part in enumerate(parts)]
            require(merge(values, is_root) == value, "16.3", "an opening's chunks are not those of the root")
            data.append(bytes_)
            return
        left, right = take(32), take(32)
        require(parent_value(left, right, is_root) == value, "16.3", "a parent of an opening")
        middle = low + (1 << (high - low - 1).bit_length() - 1)
        walk(low, middle, left, False)
        walk(middle, high, right, False)

    chunks = chunks_of(length)
    require(1 <= count <= 1024 and first + count <= chunks, "16.1", "an opening beyond its tensor")
    walk(0, chunks, root, True)
    require(at == len(opening), "16.3", "an opening has bytes left")
    return b"".join(data)
