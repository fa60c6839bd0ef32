"""The file of a dispute (sections 7, 11 to 13 and 25), read and not checked any further than that."""
from types import SimpleNamespace as Struct

from blake3_tree import CHUNK
from inference import Reader, require

MAX_VALUES, MAX_ENTRIES, MAX_MOVE_BYTES = 4096, 555, 262_144


def b32(r):
    return r.take(32)


def tagged(r, first, *readers):
    """7.6: an enum with a u16 tag, counted from `first`. The index of the variant, and its fields."""
    tag = r.u16() - first
    require(0 <= tag < len(readers), "7.6", f"unknown tag {tag + first}")
    return tag, readers[tag](r)


def raw(read):
    """Keeps the bytes that a struct was read from, for its hash."""
    def kept(r):
        start = r.at
        value = read(r)
        value.raw = r.data[start:r.at]
        return value
    return kept


def signed(read):
    return lambda r: Struct(body=read(r), signature=r.take(64))


def read_generation(r):
    """11.7."""
    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    g = {name: r.u32() for name in names}
    g |= {name: r.number(4, signed=True) for name in ("presence_penalty", "frequency_penalty")}
    return g | {"logit_bias": r.seq(1024, lambda r: (r.u32(), r.number(4, signed=True))), "stop_tokens": r.seq(256, Reader.u32),
                "stop_strings": [text.hex() for text in r.seq(4, lambda r: r.bytes(32))], "logprobs": r.u8()}


@raw
def read_header(r):
    """11.4. What is to be generated, or none."""
    spec_version, model = r.u32(), b32(r)
    _, generation = tagged(r, 1, lambda r: None, read_generation)
    return Struct(spec_version=spec_version, model=model, generation=generation, token_count=r.u32(),
                  token_root=b32(r), request=b32(r), seed=b32(r), nonce=b32(r))


@raw
def read_receipt(r):
    """13.1."""
    return Struct(spec_version=r.u32(), job=b32(r), model=b32(r), request=b32(r), token_count=r.u32(),
                  token_root=b32(r), epoch=r.u64(), finish=r.u16(), output_count=r.u32(), output_root=b32(r), logprobs=r.option(b32),
                  layers=r.u16(), points=r.seq(16383, b32), roots=r.seq(513, b32), head=b32(r), work_units=r.u64(), saturations=r.u64(),
                  worker=b32(r))


@raw
def read_segment(r):
    """13.8."""
    return Struct(receipt=b32(r), first=r.u16(), last=r.u16(), worker=b32(r))


def read_signed_receipt(r):
    """13.3."""
    item = signed(read_receipt)(r)
    item.segments = r.seq(15, signed(read_segment))
    return item


@raw
def read_partial(r):
    """25.1."""
    return Struct(job=b32(r), epoch=r.u64(), points=r.seq(16383, b32), roots=r.seq(513, b32),
                  words=r.seq(16384, Reader.u32), head=b32(r), worker=b32(r))


def read_claim(r):
    kind, claim = tagged(r, 1, read_signed_receipt, signed(read_partial), read_signed_receipt)
    claim.segments = getattr(claim, "segments", [])
    words, at = r.seq(16384, Reader.u32), r.seq(513, b32)
    shown = Struct(index=r.u32(), opening=r.bytes(4096)) if kind == 2 else None
    return Struct(is_receipt=kind != 1, words=words, at=at, shown=shown, **vars(claim))


@raw
def read_terms(r):
    """25.2."""
    return Struct(coordinator=b32(r), job=read_header(r), layers=r.u16(), claims=[read_claim(r), read_claim(r)],
                  budgets=[r.u64(), r.u64()], before=r.seq(513, b32))


@raw
def read_move(r):
    """25.4."""
    move = Struct(dispute=b32(r), round=r.u16(), previous=b32(r))
    values = lambda r: r.seq(MAX_VALUES, b32)
    kind, move.content = tagged(r, 1, values, values, lambda r: r.bytes(CHUNK),
                                lambda r: r.seq(64, lambda r: r.bytes(MAX_MOVE_BYTES)), lambda r: None)
    move.kind = ("descend", "ops", "reveal", "open", "concede")[kind]
    return move


def read_verdict(r):
    """25.7."""
    verdict = Struct(kind=("proven", "timeout")[tagged(r, 1, nothing, nothing)[0]], losers=[r.bool(), r.bool()],
                     place=(r.u32(), r.u16()), chunk=r.option(Reader.u64), step=r.option(Reader.u16),
                     element=r.option(Reader.u64))
    reason, verdict.value = tagged(r, 1, nothing, nothing, nothing, lambda r: r.number(8, signed=True), nothing, nothing)
    verdict.reason = ("contradiction", "equivocation", "conceded", "recomputed", "perjury", "silence")[reason]
    return verdict


def nothing(_):
    return None


def read_side(r):
    return r.choice(0, 1)


def read_moved(r):
    side, start = read_side(r), r.at
    move = signed(read_move)(r)
    require(r.at - start <= MAX_MOVE_BYTES, "25.4", "a move is too long")
    return Struct(side=side, move=move)


@raw
def read_entry(r):
    """25.9."""
    entry = Struct(dispute=b32(r), index=r.u16(), previous=b32(r), at=r.u64())
    kind, entry.content = tagged(r, 1, read_terms, read_moved, Reader.u64, read_side, read_verdict)
    entry.kind = ("opened", "moved", "credited", "notice", "verdict")[kind]
    return entry


def read_file(data):
    """25.10."""
    r = Reader(data)
    require(r.take(16) == b"LOCKSTEP DISPUTE", "25.10", "not a dispute file")
    require(r.u16() == 1, "25.10", "another version")
    manifest, entries = r.bytes(2**24), r.seq(MAX_ENTRIES, signed(read_entry))
    require(r.at == len(data), "7.1", "bytes are left")
    return manifest, entries
