#!/usr/bin/env python3
"""A second judge of disputes, written from SPEC.md alone. Clause numbers are SPEC.md's.

    pip install numpy blake3 cryptography
    judge.py FILE

Reads a dispute file (25.10), checks everything in it again, computes the disputed element again, and prints one JSON
object. Exit code 1, with a message that names what is wrong, if the file does not hold.
"""
import argparse
import json
import struct
import sys
from types import SimpleNamespace as Struct

from blake3 import blake3

from blake3_tree import CHUNK, check_opening, chunk_value, chunks_of, merge
from dispute_file import MAX_VALUES, read_file
from inference import Refused, check_program, read_manifest, require
from receipts import (MAX_ROOTS, chain, check_generation, derive, point_digest, verify, word_root, words_fit,
                      words_root)
from steps import View, check_reads

SIDES = ("claimant", "challenger")
FLOOR_MS, GRACE_MS, MAX_MS = 10_000, 30_000, 2**64 - 1  # 25.8
MAX_CREDITS = 512


def check_signature(domain, key, item, what):
    """9.2. The digest that was signed."""
    digest = derive(domain, item.body.raw)
    require(verify(key.hex(), digest, item.signature.hex()), "9.2", f"no cryptography to check the signature of {what}")
    return digest


# ---- 25.1 and 25.2 ------------------------------------------------------------------------------------------------


def check_claim(claim, terms, job_id):
    """25.1, with 12.3, 13.5 and 13.8: the receipt's worker signs for the rest as for a segment."""
    c, job = claim.body, terms.job
    require(c.job == job_id and c.epoch >= 1, "25.1", "a claim about another job")
    most = job.generation["max_tokens"] if job.generation else 1
    whole = len(c.roots) == terms.layers + 1
    require(len(c.points) < most and 1 <= len(c.roots) <= terms.layers + 1, "25.1", "roots of a claim")
    if claim.is_receipt:
        same = all(getattr(c, f) == getattr(job, f)
                   for f in ("spec_version", "model", "request", "token_count", "token_root"))
        require(same and c.layers == terms.layers and whole, "13.5", "a receipt of another job")
        wanted = bool(job.generation and job.generation["logprobs"])
        require((c.logprobs is not None) == wanted, "13.7", "log-probabilities of a receipt")
        require(1 <= c.output_count <= 65536, "13.4", "the output's length")
    else:
        require(not claim.words, "25.1", "words beside those of a partial run")
        claim.words = c.words
    head = chain(job_id, c.epoch, job.token_count - 1, c.points, c.roots)
    require(head == c.head, "12.3", "the chain head of a claim")
    if not job.generation:
        require(not claim.words and (not claim.is_receipt or c.finish == 1 and c.roots[-1] == c.output_root),
                "13.4", "roots of a receipt")
    else:
        # A word for each point that is complete; the last of these as it was committed.
        require(len(claim.words) == len(c.points) + whole and words_fit(claim.words, most), "25.1", "words of a claim")
        require(not whole or word_root(claim.words[-1]) == c.roots[-1], "25.1", "the last word of a claim")
        require(whole or not claim.words or claim.words[-1] >> 24 == 0, "25.1", "a run that went on after its end")
        if claim.is_receipt:
            finish = {1: 2, 2: 2, 3: 3}.get(claim.words[-1] >> 24)
            require(c.finish == finish and c.output_count == len(claim.words)
                    and c.output_root == words_root(claim.words), "13.4", "the words of a receipt")
    if not claim.segments:
        check_signature("worker receipt" if claim.is_receipt else "partial run", c.worker, claim, "a claim")
        return
    digest, after, keys = derive("worker receipt", c.raw), 1, {c.worker}
    for item in claim.segments:
        s = item.body
        require(s.receipt == digest and s.first == after <= s.last <= terms.layers and s.worker not in keys,
                "13.8", "a segment")
        check_signature("segment", s.worker, item, "a segment")
        after, keys = s.last + 1, keys | {s.worker}
    own = Struct(raw=digest + struct.pack("<HH", after, terms.layers + 1) + c.worker)
    check_signature("segment", c.worker, Struct(body=own, signature=claim.signature), "a claim")


def key_at(claim, layer):
    """13.8: who answers for a layer."""
    own = (item.body.worker for item in claim.segments if item.body.first <= layer <= item.body.last)
    return next(own, claim.body.worker)


def check_terms(terms, manifest_bytes):
    """25.2. The manifest, and the disputed place: which point, counted from 0, and which layer."""
    job = terms.job
    require(blake3(manifest_bytes).digest() == job.model, "25.10", "the manifest of another model")
    manifest = read_manifest(manifest_bytes)
    check_program(manifest.program)
    most = job.generation["max_tokens"] if job.generation else 1
    require(job.spec_version == 1 and 1 <= job.token_count, "11.2", "the job")
    require(job.token_count + most - 1 <= min(manifest.program.max_positions, 131072), "6.4, 11.7", "the job's length")
    if job.generation:
        check_generation(job.generation)
        require(most * (terms.layers + 1) <= MAX_ROOTS, "12.2", "too many roots")
    require(terms.layers == len(manifest.program.layers) - 2, "25.2", "the number of layers is not the model's")
    check_reads(manifest)
    job_id = derive("job id", job.raw)
    for claim in terms.claims:
        check_claim(claim, terms, job_id)
    a, b = (claim.body for claim in terms.claims)
    digests = [[*body.points, point_digest(body.roots)] for body in (a, b)]
    index = next((i for i, pair in enumerate(zip(*digests)) if pair[0] != pair[1]), None)
    if index is None and len(digests[0]) == len(digests[1]):
        return manifest, check_shown(terms, digests[0])
    require(index is not None, "25.2", "there is no point where both have roots and differ")
    require(not any(claim.shown for claim in terms.claims), "25.2", "log-probabilities beside roots that differ")
    for claim, of in zip(terms.claims, digests):
        last = index == len(of) - 1
        require(not claim.at if last else point_digest(claim.at) == of[index], "25.2", "roots at the disputed point")
        claim.roots = claim.body.roots if last else claim.at
        require(len(claim.roots) <= terms.layers + 1, "25.2", "roots at the disputed point")
    layer = next((i for i, pair in enumerate(zip(*(c.roots for c in terms.claims)), 1) if pair[0] != pair[1]), None)
    require(layer is not None, "25.2", "there is no place where both have a root and differ")
    terms.keys = [key_at(claim, layer) for claim in terms.claims]
    require(terms.keys[0] != terms.keys[1], "25.2", "both claims are of one key")
    words = [claim.words[:index] for claim in terms.claims]
    require(words[0] == words[1] and len(words[0]) in (0, index), "25.2", "the words before the disputed point")
    if index == 0:
        require(not terms.before, "25.2", "roots of a point before the first")
    else:
        require(len(words[0]) == index, "25.2", "the words before the disputed point")
        require(len(terms.before) == terms.layers + 1 and point_digest(terms.before) == digests[0][index - 1],
                "25.2", "the roots of the point before")
        require(word_root(words[0][-1]) == terms.before[-1], "25.2", "the word of the point before")
    terms.words = words[0]
    return manifest, (index, layer)


def shown_row(claim, index, width):
    """25.1: the row of log-probabilities of a point, as a tensor of its own."""
    require(claim.shown and claim.shown.index == index, "25.2.1", "a row of log-probabilities")
    start, end = index * 4 * width, (index + 1) * 4 * width
    first, count = start // CHUNK, -(-end // CHUNK) - start // CHUNK
    opened = check_opening(claim.shown.opening, claim.body.logprobs, (len(claim.body.points) + 1) * 4 * width, first, count)
    row = opened[start - first * CHUNK:end - first * CHUNK]
    return row + bytes(-len(row) % CHUNK)


def check_shown(terms, digests):
    """25.2.1. The disputed place of runs with the same roots."""
    job = terms.job
    require(job.generation and job.generation["logprobs"] and terms.claims[0].shown, "25.2", "nothing is disputed")
    index, width = terms.claims[0].shown.index, 2 * job.generation["logprobs"] - 1
    require(index < len(digests), "25.2.1", "a point that there is not")
    rows = [shown_row(claim, index, width) for claim in terms.claims]
    require(rows[0] != rows[1] and not terms.before, "25.2.1", "rows of log-probabilities that do not differ")
    for claim in terms.claims:
        last = index == len(digests) - 1
        require(not claim.at if last else point_digest(claim.at) == digests[index], "25.2.1", "roots at the disputed point")
        claim.roots = claim.body.roots if last else claim.at
        require(len(claim.roots) == terms.layers + 1, "25.2.1", "roots at the disputed point")
    words = [claim.words[:index + 1] for claim in terms.claims]
    require(words[0] == words[1] and word_root(words[0][-1]) == claim.roots[-1], "25.2.1", "the words up to the point")
    terms.words, terms.rows = words[0], [blake3(row).digest() for row in rows]
    terms.keys = [key_at(claim, terms.layers + 1) for claim in terms.claims]
    require(terms.keys[0] != terms.keys[1], "25.2", "both claims are of one key")
    return index, terms.layers + 2


# ---- 25.3 to 25.7: the game ---------------------------------------------------------------------------------------


def height(m):
    """25.5: the smallest h with 2^h >= m."""
    return (m - 1).bit_length()


class Game:
    def __init__(self, terms, manifest, at):
        index, layer = at
        self.positions = terms.job.token_count + index
        self.place = (self.positions - 1, layer)
        # 24.18: log-probabilities come after the last layer, and are made of what that reads.
        self.likeliest = terms.job.generation["logprobs"] - 1 if layer > terms.layers + 1 else None
        layer = min(layer, terms.layers + 1)
        self.terms, self.manifest, self.layer = terms, manifest, layer
        p = manifest.program
        output = p.tensors[p.layers[layer].output]
        self.row_chunks = chunks_of(output.cols * 4)
        rows = self.positions if output.rows == "position" else 1
        self.chunk = self.step = self.element = self.view = None
        self.roots = []  # of the agreed steps
        # The disputed block: of a tensor of so many chunks the chunks [first, end), with each side's value.
        self.total, self.first, self.end = rows * self.row_chunks, 0, rows * self.row_chunks
        self.values = terms.rows if self.likeliest is not None else [claim.roots[layer - 1] for claim in terms.claims]
        # The chunks that have a root from the point before, and that root.
        self.prefix = (0, None)
        if terms.before and layer <= terms.layers:
            self.prefix = ((rows - 1) * self.row_chunks, terms.before[layer - 1])
        self.phase = "descend"
        self.narrowed()

    def sampling(self):
        """5.17: settings and draw of the point, in a generation."""
        job = self.terms.job
        if not job.generation:
            return None
        draw = derive("sample", job.seed + (self.positions - 1).to_bytes(4, "little"))[:8]
        stops = [bytes.fromhex(text) for text in job.generation["stop_strings"]]
        settings = {**job.generation, "stop_strings": stops, "prompt_tokens": job.token_count}
        return Struct(**settings), int.from_bytes(draw, "little")

    def narrowed(self):
        """25.5: what follows when the disputed block is what it is now."""
        if self.end - self.first > 1:
            self.phase = "descend"
        elif self.chunk is None:
            self.chunk, self.row = self.first, self.first // self.row_chunks
            if self.chunk < self.prefix[0]:
                self.phase = "reveal"
                return
            self.view = View(self.manifest, self.layer, self.row, self.positions, self.sampling(), self.likeliest)
            self.phase = "ops"
            if len(self.view.steps) == 1:
                self.dispute_last()
        else:
            self.phase = "reveal"

    def dispute_last(self):
        """The last step is row s of the layer's output, and chunk c of R_l is the disputed chunk."""
        self.step = len(self.view.steps) - 1
        self.phase = "reveal"

    def blocks(self):
        """What a side sends in this phase: groups of values, each with the log of its blocks and the number of chunks."""
        if self.phase == "descend":
            h = height(self.end - self.first)
            r = -(-h // 8)
            return [(h - -(-h // r), self.end - self.first)]
        chunks = [chunks_of(step.length) for step in self.view.steps[:-1]]
        highest = max(map(height, chunks))
        for less in range(6, -1, -1):
            groups = [(max(8, height(n) - less), n) for n in chunks]
            if sum(-(-n >> log) for log, n in groups) <= MAX_VALUES:
                return groups
        raise Refused(f"25.5: steps of up to 2^{highest} chunks have too many blocks")

    def check(self, side, body):
        """25.6: the kind and the shape of a move; openings are checked where they are used. Whether it contradicts what
        its side has said (25.7)."""
        require(body.kind in (self.phase, "concede"), "25.6", f"{body.kind} where {self.phase} is next")
        if body.kind in ("descend", "ops"):
            wanted = sum(-(-n >> log) for log, n in self.blocks())
            require(len(body.content) == wanted, "25.6", f"{len(body.content)} values instead of {wanted}")
        if body.kind == "descend":
            return merge(body.content, self.is_whole()) != self.values[side]
        if body.kind == "reveal":
            require(len(body.content) == CHUNK, "25.6", "the length of a chunk")
            return chunk_value(body.content, self.first, self.total == 1) != self.values[side]
        return False

    def play(self, moves):
        """A round in which both moved, by the claimant and by the challenger. A verdict, if one follows."""
        return {"descend": self.descend, "ops": self.ops, "reveal": self.reveal}[self.phase](moves)

    def verdict(self, losers, reason, value=None):
        return Struct(kind="timeout" if reason == "silence" else "proven", losers=list(losers), place=self.place,
                      chunk=self.chunk, step=self.step, element=self.element, reason=reason, value=value)

    def is_whole(self):
        return self.first == 0 and self.end == self.total

    def descend(self, moves):
        (log, _), = self.blocks()
        i = next(i for i, pair in enumerate(zip(*moves)) if pair[0] != pair[1])
        self.first += i << log
        self.end = min(self.first + (1 << log), self.end)
        self.values = [values[i] for values in moves]
        return self.narrowed()

    def ops(self, moves):
        at = 0
        for number, (log, n) in enumerate(self.blocks()):
            count = -(-n >> log)
            parts = [values[at:at + count] for values in moves]
            at += count
            if parts[0] == parts[1]:
                self.roots.append(merge(parts[0], True))
                continue
            i = next(i for i in range(count) if parts[0][i] != parts[1][i])
            self.step, self.total = number, n
            self.first, self.end = i << log, min(i + 1 << log, n)
            self.values = [part[i] for part in parts]
            return self.narrowed()
        return self.dispute_last()

    def reveal(self, chunks):
        if self.chunk < self.prefix[0]:
            self.claimed, self.phase = chunks, "open"
            return None
        index = self.first
        step = self.view.steps[self.step]
        # The last step is one row of R_l.
        inside = index - self.row * self.row_chunks if self.step == len(self.view.steps) - 1 else index
        each = [[int.from_bytes(chunk[at:at + step.width], "little", signed=True)
                 for at in range(0, CHUNK, step.width)] for chunk in chunks]
        i = next(i for i, pair in enumerate(zip(*each)) if pair[0] != pair[1])
        self.element = inside * (CHUNK // step.width) + i
        self.claimed = [values[i] for values in each]
        try:
            next(step.element(self.element))
        except StopIteration as result:  # it reads nothing
            return self.decide(result.value)
        self.phase = "open"
        return None

    def decide(self, value):
        return self.verdict([claimed != value for claimed in self.claimed], "recomputed", value)

    def source(self, array):
        """25.5: the agreed root of what is read, and its length."""
        job, (kind, *index) = self.terms.job, array.source
        root = {"step": lambda: self.roots[index[0]], "tokens": lambda: job.token_root,
                "previous": lambda: self.terms.claims[0].roots[self.layer - 2],
                "words": lambda: words_root(self.terms.words),
                "param": lambda: self.manifest.params[index[0]].digest}[kind]()
        return root, array.length

    def recompute(self, openings):
        """25.5, open and recompute: an opening for each read, in order."""
        if self.chunk < self.prefix[0]:
            require(len(openings) == 1, "25.6", "openings of a chunk that had a root before")
            opened = check_opening(openings[0], self.prefix[1], self.prefix[0] * CHUNK, self.chunk, 1)
            return self.verdict([claimed != opened for claimed in self.claimed], "perjury")
        element, data, openings = self.view.steps[self.step].element(self.element), None, list(openings)
        try:
            while True:
                read = element.send(data)
                require(openings, "25.6", "an opening is missing")
                first, end = read.offset // CHUNK, -(-(read.offset + read.bytes) // CHUNK)
                opened = check_opening(openings.pop(0), *self.source(read.array), first, end - first)
                at = read.offset - first * CHUNK
                data = opened[at:at + read.bytes]
        except StopIteration as result:
            require(not openings, "25.6", "an opening too many")
            return self.decide(result.value)


# ---- 25.8: clocks -------------------------------------------------------------------------------------------------


class Clocks:
    def __init__(self, budgets):
        self.left, self.start, self.credits = list(budgets), 0, 0
        self.runs, self.grace = [False, False], [None, None]

    def begin(self, at, runs):
        self.start, self.runs, self.grace = at, list(runs), [None, None]

    def stop(self, side, at):
        if self.runs[side]:
            self.left[side] = max(0, self.left[side] - (at - self.start))
        self.runs[side], self.grace[side] = False, None

    def notice(self, side, at):
        over = min(self.start + max(self.left[side], FLOOR_MS), MAX_MS)
        require(self.runs[side] and self.grace[side] is None and at >= over, "25.8", "notice that is not due")
        self.grace[side] = min(at + GRACE_MS, MAX_MS)

    def credit(self, at, ms):
        self.credits += 1
        require(self.credits <= MAX_CREDITS, "25.8", "too many credits")
        ms = min(ms, at - self.start)
        self.start += ms
        self.grace = [None if end is None else min(end + ms, MAX_MS) for end in self.grace]

    def silent(self, at):
        """Who loses by silence now."""
        running = [end for end in self.grace if end is not None]
        return [end is not None for end in self.grace] if running and at >= max(running) else None


# ---- 25.9: the transcript -----------------------------------------------------------------------------------------


class Judge:
    def __init__(self, terms, manifest, place, at):
        self.terms, self.dispute = terms, derive("dispute", terms.raw)
        self.game, self.clocks = Game(terms, manifest, place), Clocks(terms.budgets)
        self.rounds, self.history = [{}], [self.dispute]  # of each round: moves by side, and `previous`
        self.due = None  # the verdict that must follow
        self.begin(at)

    def begin(self, at):
        self.clocks.begin(at, [True, self.game.phase != "open"])

    def entry(self, entry):
        if entry.kind == "verdict":
            wanted = self.due
            if wanted is None:
                losers = self.clocks.silent(entry.at)
                require(losers, "25.7", "a verdict that nothing led to")
                wanted = self.game.verdict(losers, "silence")
            require(wanted == entry.content, "25.7", f"the verdict is {entry.content}, and should be {wanted}")
            return
        require(self.due is None, "25.9", "an entry between the end of the game and the verdict")
        if entry.kind == "moved":
            self.moved(entry.content.side, entry.content.move, entry.at)
        elif entry.kind == "credited":
            self.clocks.credit(entry.at, entry.content)
        elif entry.kind == "notice":
            self.clocks.notice(entry.content, entry.at)
        else:
            raise Refused("25.9: a dispute is opened once")

    def moved(self, side, item, at):
        move, number = item.body, len(self.rounds) - 1
        require(move.dispute == self.dispute, "25.6", "a move of another dispute")
        require(move.round <= number, "25.6", "a round that has not begun")
        digest = check_signature("dispute move", self.terms.keys[side], item, "a move")
        entered = self.rounds[move.round].get(side)
        if entered is not None:
            require(entered.digest != digest, "25.6", "a move that is entered already")
            require(move.previous == self.history[move.round], "25.6", "the history of a move")
            self.due = self.game.verdict([side == 0, side == 1], "equivocation")
            return
        require(move.round == number, "25.6", "a move of an earlier round")
        require(move.previous == self.history[-1], "25.6", "the history of a move")
        contradicts = self.game.check(side, move)
        self.rounds[-1][side] = Struct(digest=digest, content=move.content)
        self.clocks.stop(side, at)
        if contradicts or move.kind == "concede":
            reason = "contradiction" if contradicts else "conceded"
            self.due = self.game.verdict([side == 0, side == 1], reason)
        elif move.kind == "open":
            self.due = self.game.recompute(move.content)
        elif len(self.rounds[-1]) == 2:
            both = [self.rounds[-1][0], self.rounds[-1][1]]
            self.due = self.game.play([made.content for made in both])
            if self.due is None:
                self.history.append(derive("dispute round", self.history[-1] + both[0].digest + both[1].digest))
                self.rounds.append({})
                self.begin(at)


def judge(data):
    """25.10. The report, or a refusal."""
    manifest_bytes, entries = read_file(data)
    require(len(entries) >= 2 and entries[0].body.kind == "opened", "25.9", "the first entry opens the dispute")
    require(entries[-1].body.kind == "verdict", "25.9", "the last entry is the verdict")
    terms, state, previous, at = entries[0].body.content, None, bytes(32), 0
    for index, item in enumerate(entries):
        entry = item.body
        require(entry.index == index and entry.previous == previous, "25.9", f"the link of entry {index}")
        require(entry.dispute == derive("dispute", terms.raw), "25.9", f"entry {index} is of another dispute")
        require(entry.at >= at, "25.9", f"the time of entry {index} falls")
        previous, at = check_signature("dispute entry", terms.coordinator, item, f"entry {index}"), entry.at
        if state is None:
            state = Judge(terms, *check_terms(terms, manifest_bytes), at)
        else:
            require(entry.kind != "verdict" or index == len(entries) - 1, "25.9", "entries after the verdict")
            state.entry(entry)
    return report(state, entries[-1].body.content)


def report(state, verdict):
    game = state.game
    out = {"dispute": state.dispute.hex(), "coordinator": state.terms.coordinator.hex(),
           "players": [key.hex() for key in state.terms.keys], "kind": verdict.kind,
           "losers": verdict.losers, "place": {"point": verdict.place[0], "layer": verdict.place[1]},
           "reason": verdict.reason, "value": verdict.value, "chunk": verdict.chunk, "step": verdict.step,
           "element": verdict.element}
    if verdict.step is not None:
        step = game.view.steps[verdict.step]
        out |= {"step_name": f"{step.op.kind}.{step.name}", "op_layer": step.op.layer, "op_index": step.op.index}
    if verdict.element is not None:
        row, column = divmod(verdict.element, step.row_bytes // step.width)
        out |= {"row": row, "column": column, "claimed": game.claimed}
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", metavar="FILE", nargs="+")
    args = parser.parse_args()
    failed = False
    for path in args.file:
        try:
            with open(path, "rb") as file:
                print(json.dumps(judge(file.read())))
        except (Refused, ValueError) as error:
            failed = True
            print(f"{path}: refused: {error}", file=sys.stderr)
    sys.exit(failed)


if __name__ == "__main__":
    main()
