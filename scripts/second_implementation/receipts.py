"""Sections 8 to 15: receipts."""
import json
import re

import numpy as np
from blake3 import blake3

from inference import Refused, require, root


# ---- Sections 8 to 15: receipts -----------------------------------------------------------------------------------

# 11.1, 13.1, 14.1, 14.2, 12.1: a name, then its fields with their types; T* is `seq T`.
STRUCTS = {name: [field.split(":") for field in fields] for name, *fields in (text.split() for text in """
    job spec_version:u32 model:b32 kind:kind tokens:u32* request:b32 seed:b32 nonce:b32;
    worker_receipt spec_version:u32 job:b32 model:b32 request:b32 token_count:u32 token_root:b32 epoch:u64 finish:finish
        output_count:u32 output_root:b32 logprobs:b32? layers:u16 points:b32* roots:b32* head:b32 work_units:u64 saturations:u64 worker:b32;
    statement coordinator:b32 subject:b32 previous:b32 time:u64 kind:event;
    accepted; audited auditor:b32 receipt:b32 matched:bool; place point:u32 layer:u16;
    refuted receipt:b32 place:place dispute:b32 kind:verdict; withdrawn receipt:b32;
    generation max_tokens:u32 temperature:u32 top_k:u32 top_p:u32 min_p:u32 repetition_penalty:u32 presence_penalty:i32
        frequency_penalty:i32 logit_bias:bias* stop_tokens:u32* stop_strings:text* logprobs:u8""".split(";"))}
EVENTS = ["accepted", "audited", "refuted", "withdrawn"]
FINISHES = ["complete", "stop", "length"]
MAX_ROOTS = 2**18  # 12.2


def encode(kind, value):
    """Section 7 on the JSON of 15.2: the canonical bytes, or a refusal."""
    if kind in STRUCTS:
        names = [name for name, _ in STRUCTS[kind]]
        require(type(value) is dict and sorted(value) == sorted(names), "15.2", f"fields of {kind}")
        return b"".join(encode(type_, value[name]) for name, type_ in STRUCTS[kind])
    if kind.endswith("?"):
        return b"\0" if value is None else b"\1" + encode(kind[:-1], value)
    if kind.endswith("*"):
        require(type(value) is list, "15.2", "a list")
        return encode("u32", len(value)) + b"".join(encode(kind[:-1], item) for item in value)
    if kind == "event":
        require(type(value) is dict and len(value) == 1, "15.2", "a statement's kind")
        (tag, body), = value.items()
        require(tag in EVENTS, "14.2", "a statement's kind")
        return encode("u16", EVENTS.index(tag) + 1) + encode(tag, body)
    if kind == "verdict":
        require(value in ("proven", "timeout"), "14.2", "a verdict")
        return encode("u16", ("proven", "timeout").index(value) + 1)
    if kind == "kind":
        if value == "embedding":
            return encode("u16", 1)
        require(type(value) is dict and list(value) == ["generation"], "11.2", "a job's kind")
        return encode("u16", 2) + encode("generation", value["generation"])
    if kind == "finish":
        require(value in FINISHES, "13.1", "a finish reason")
        return encode("u16", FINISHES.index(value) + 1)
    if kind == "bias":
        require(type(value) is list and len(value) == 2, "11.7", "a token's bias")
        return encode("u32", value[0]) + encode("i32", value[1])
    if kind == "text":
        require(type(value) is str and re.fullmatch("([0-9a-f]{2})*", value), "7.8", "bytes in hexadecimal")
        return encode("u32", len(value) // 2) + bytes.fromhex(value)
    if kind == "bool":
        require(type(value) is bool, "15.2", "a bool")
        return bytes([value])
    size = int(kind[1:])
    if kind[0] == "i":
        require(type(value) is int and -2**(size - 1) <= value < 2**(size - 1), "15.2", "an integer")
        return value.to_bytes(size // 8, "little", signed=True)
    if kind[0] == "u":
        require(type(value) is int and 0 <= value < 2**size, "15.2", "an integer")
        return value.to_bytes(size // 8, "little")
    require(type(value) is str and re.fullmatch(f"[0-9a-f]{{{2 * size}}}", value), "7.8", "bytes in hexadecimal")
    return bytes.fromhex(value)


def derive(context, data):
    """1.7 and 8.1."""
    return blake3(data, derive_key_context=f"lockstep 2026-11 v1 {context}").digest()


def verify(key, digest, signature):
    """9.2 and 9.3. OpenSSL refuses an S that is not canonical and uses no cofactor; small orders are refused here: by
    the doubling formula, the y of a point whose order divides 8 is a root of y (y^2 - 1) (d y^4 + 2 y^2 - 1)."""
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError:
        return False
    p = 2**255 - 19
    key, signature = encode("b32", key), encode("b64", signature)
    for point in (key, signature[:32]):
        y = int.from_bytes(point, "little") % 2**255
        small = y * (y * y - 1) * (-121665 * pow(121666, -1, p) * y**4 + 2 * y * y - 1) % p == 0
        require(not small, "9.3", "a point of small order")
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, digest)
    except (InvalidSignature, ValueError):
        raise Refused("9.2: a signature does not verify")
    return True


def point_digest(roots):
    """12.3, of the roots' bytes."""
    return derive("point", len(roots).to_bytes(4, "little") + b"".join(roots))


def chain(job_id, epoch, first, points, roots):
    """12.2 and 12.3: over the digests of all points but the last, and the roots of that, all as bytes."""
    head = derive("chain start", job_id + epoch.to_bytes(8, "little"))
    for point, digest in enumerate([*points, point_digest(roots)], first):
        head = derive("chain step", head + point.to_bytes(4, "little") + digest)
    return head


def words_root(words):
    """13.4."""
    return blake3(b"".join(word.to_bytes(4, "little") for word in words)).digest()


def word_root(word):
    """10.3: of layer L + 1 of a generation, one row of one value."""
    return blake3(word.to_bytes(4, "little") + bytes(1020)).digest()


def words_fit(words, max_tokens):
    """12.9: whether these can be the first words of a run."""
    for index, word in enumerate(words):
        finish, last = word >> 24, index + 1 == max_tokens
        if index >= max_tokens or finish > 3 or (finish == 3) > last or (finish == 0) and last:
            return False
        if finish and index + 1 < len(words):
            return False
    return True


def values_per_point(g):
    """13.7: the word, and its row of log-probabilities."""
    return 1 + max(0, 2 * g["logprobs"] - 1)


def rows_are_possible(values, width):
    """13.7."""
    for row in (values[at:at + width] for at in range(0, len(values), max(width, 1))):
        likely = row[2::2]
        if row[0] > 0 or any(value > 0 for value in likely) or any(a < b for a, b in zip(likely, likely[1:])):
            return False
    return True


def check_generation(g):
    """11.7, of the JSON."""
    within = lambda value, low, high: low <= value <= high
    ascending = lambda tokens: all(a < b for a, b in zip(tokens, tokens[1:])) and all(t < 2**24 for t in tokens)
    numbers = [(g["max_tokens"], 1, 16384), (g["temperature"], 0, 10**6), (g["top_k"], 0, 2**24 - 1),
               (g["top_p"], 1, 10**4), (g["min_p"], 0, 10**4), (g["repetition_penalty"], 1000, 10**5),
               (g["presence_penalty"], -10**5, 10**5), (g["frequency_penalty"], -10**5, 10**5), (g["logprobs"], 0, 21),
               (len(g["logit_bias"]), 0, 1024), (len(g["stop_tokens"]), 0, 256), (len(g["stop_strings"]), 0, 4),
               *((bias, -10**6, 10**6) for _, bias in g["logit_bias"]),
               *((len(text) // 2, 1, 32) for text in g["stop_strings"])]
    require(all(within(*number) for number in numbers), "11.7", "a range")
    require(g["max_tokens"] * values_per_point(g) <= 65536, "11.7", "too long an output")
    require(ascending([token for token, _ in g["logit_bias"]]) and ascending(g["stop_tokens"]), "11.7", "an order")


def check_fits(run, job, job_id, output=None):
    """13.5, and 13.4. The digest of the worker's receipt."""
    shared = type(run) is dict and "segments" in run
    fields = ["receipt", "segments", "signature"] if shared else ["receipt", "signature"]
    require(type(run) is dict and sorted(run) == fields, "15.2", "fields of a run")
    r = run["receipt"]
    digest = derive("worker receipt", encode("worker_receipt", r))  # also checks the types of all fields
    require(r["epoch"] >= 1 and 1 <= r["output_count"] <= 65536 and 1 <= r["layers"] <= 512, "13.1", "limits")
    same = all(r[field] == job[field] for field in ("spec_version", "model", "request"))
    require(same and r["job"] == job_id.hex() and r["token_count"] == len(job["tokens"])
            and r["token_root"] == token_root(job).hex(), "13.5", "a run of another job")
    require(len(r["roots"]) == r["layers"] + 1, "12.2", "roots")
    points, roots = ([bytes.fromhex(item) for item in r[field]] for field in ("points", "roots"))
    require(r["head"] == chain(job_id, r["epoch"], len(job["tokens"]) - 1, points, roots).hex(), "12.3", "the chain head")
    if output is not None:
        per_point = 1 if job["kind"] == "embedding" else values_per_point(job["kind"]["generation"])
        require(type(output) is list and len(output) == r["output_count"] * per_point <= 65536
                and all(type(x) is int and -2**31 <= x < 2**31 for x in output), "13.4", "the output")
    if job["kind"] == "embedding":
        require(r["logprobs"] is None, "13.7", "log-probabilities of an embedding")
        require(not points and r["finish"] == "complete" and r["roots"][-1] == r["output_root"], "12.2, 13.4", "roots")
        require(output is None or root(np.array([output])).hex() == r["output_root"], "13.4", "the output's root")
    else:
        most = job["kind"]["generation"]["max_tokens"]
        require(most * len(roots) <= MAX_ROOTS and len(points) + 1 == r["output_count"] <= most, "12.2", "points")
        ends = r["finish"] == "stop" or r["finish"] == "length" and r["output_count"] == most
        require(ends, "13.4", "the end of a generation")
        require((r["logprobs"] is not None) == (job["kind"]["generation"]["logprobs"] > 0), "13.7", "log-probabilities")
        if output is not None:
            words, values = [x % 2**32 for x in output[:r["output_count"]]], output[r["output_count"]:]
            root_of = blake3(b"".join(x.to_bytes(4, "little", signed=True) for x in values)).hexdigest()
            require(r["logprobs"] == (root_of if values else None) and rows_are_possible(values, per_point - 1),
                    "13.7", "the log-probabilities")
            require(words_root(words).hex() == r["output_root"] and words_fit(words, most)
                    and word_root(words[-1]) == roots[-1], "13.4", "the words")
            require(words[-1] >> 24 and (words[-1] >> 24 == 3) == (r["finish"] == "length"), "13.4", "the last word")
    if shared:
        return digest.hex(), check_segments(run, digest)
    return digest.hex(), verify(r["worker"], digest, run["signature"])


def members(run):
    """13.8: everybody who computed layers of a run."""
    return [run["receipt"]["worker"], *(item["segment"]["worker"] for item in run.get("segments", []))]


def check_segments(run, digest):
    """13.8. Whether all signatures could be checked."""
    segments, after, checked = run["segments"], 1, True
    require(type(segments) is list and 1 <= len(segments) <= 15, "13.8, 15.2", "segments")
    data = lambda s: (encode("b32", s["receipt"]) + encode("u16", s["first"]) + encode("u16", s["last"])
                      + encode("b32", s["worker"]))
    for item in segments:
        require(type(item) is dict and sorted(item) == ["segment", "signature"], "15.2", "fields of a segment")
        s = item["segment"]
        require(type(s) is dict and sorted(s) == ["first", "last", "receipt", "worker"], "15.2", "fields of a segment")
        require(s["receipt"] == digest.hex() and s["first"] == after <= s["last"] <= run["receipt"]["layers"],
                "13.8", "a segment")
        checked &= verify(s["worker"], derive("segment", data(s)), item["signature"])
        after = s["last"] + 1
    r = run["receipt"]
    own = {"receipt": digest.hex(), "first": after, "last": r["layers"] + 1, "worker": r["worker"]}
    checked &= verify(r["worker"], derive("segment", data(own)), run["signature"])
    require(len(set(members(run))) == len(segments) + 1, "13.8", "a worker that is there twice")
    return checked


def token_root(job):
    """11.3."""
    return blake3(b"".join(encode("u32", token) for token in job["tokens"])).digest()


def check_job(job):
    """11.1, 11.2 and 11.4: the job id."""
    encode("job", job)
    require(job["spec_version"] == 1 and 1 <= len(job["tokens"]) <= 131072, "11", "limits of a job")
    if job["kind"] != "embedding":
        check_generation(job["kind"]["generation"])
        require(len(job["tokens"]) + job["kind"]["generation"]["max_tokens"] - 1 <= 131072, "11.7", "too long a text")
    ends = [encode("u32", 1) + encode("b32", job["model"]) + encode("kind", job["kind"])
            + encode("u32", len(job["tokens"])),
            token_root(job), *(encode("b32", job[field]) for field in ("request", "seed", "nonce"))]
    return derive("job id", b"".join(ends))


def check_statements(receipt, digests):
    """Section 14 and the second half of 15.3. Whether `worker` is refuted or withdrawn (15.4)."""
    runs = [receipt["worker"], *receipt["audits"]]
    fields = ("layers", "points", "roots", "output_root", "logprobs", "output_count", "finish", "work_units", "saturations")
    result = lambda r: [r[field] for field in fields]  # 13.6
    previous, time, audited, fallen, signed = bytes(32), 0, 0, set(), True
    for number, item in enumerate(receipt["statements"]):
        require(type(item) is dict and sorted(item) == ["signature", "statement"], "15.2", "fields of a statement")
        s = item["statement"]
        digest = derive("coordinator statement", encode("statement", s))
        (kind, body), = s["kind"].items()
        require(s["coordinator"] == receipt["coordinator"] and s["subject"] == digests[0]
                and s["previous"] == previous.hex() and s["time"] >= time, "15.3", "the chain of statements")
        require((kind == "accepted") == (number == 0), "14.5", "the first statement, and only it, accepts")
        signed &= verify(receipt["coordinator"], digest, item["signature"])
        if kind == "audited":
            audited += 1
            require(audited < len(runs), "15.3", "a statement about no audit")
            r = runs[audited]["receipt"]
            matched = result(r) == result(runs[0]["receipt"])
            require([body["auditor"], body["receipt"], body["matched"]] == [r["worker"], digests[audited], matched],
                    "15.3", "a statement about another audit")
        elif kind in ("refuted", "withdrawn"):
            require(body["receipt"] in digests and body["receipt"] not in fallen, "15.3", f"{kind}: no run, or twice")
            fallen.add(body["receipt"])
            if kind == "refuted":
                r, place = runs[digests.index(body["receipt"])]["receipt"], body["place"]
                point = place["point"] - r["token_count"] + 1
                # Where a run has log-probabilities, they stand after its last layer (12.4).
                last = len(r["roots"]) + (r["logprobs"] is not None)
                require(0 <= point <= len(r["points"]) and 1 <= place["layer"] <= last,
                        "15.3", "a refuted place")
        previous, time = digest, s["time"]
    require(receipt["statements"], "14.5", "no statement")
    require(audited == len(receipt["audits"]), "15.3", "an audit without its statement")
    return digests[0] in fallen, signed


def check_receipt(path, package, texts):
    """Section 15, then the run itself where the package is the receipt's."""
    def unique(pairs):
        require(len({name for name, _ in pairs}) == len(pairs), "15.2", "a field that is doubled")
        return dict(pairs)

    with open(path, encoding="utf-8") as file:  # "-0" is not what an integer is written as
        receipt = json.load(file, object_pairs_hook=unique, parse_int=lambda text: -0.0 if text == "-0" else int(text))
    fields = ["audits", "coordinator", "format", "job", "output", "statements", "worker"]
    require(type(receipt) is dict and sorted(receipt) == fields, "15.1", "fields of the receipt")
    require(receipt["format"] == "lockstep receipt 1", "15.1", "format")
    require(type(receipt["audits"]) is type(receipt["statements"]) is list, "15.1", "audits and statements")
    encode("b32", receipt["coordinator"])
    job, job_id = receipt["job"], check_job(receipt["job"])
    checked = [check_fits(receipt["worker"], job, job_id, receipt["output"]),
               *(check_fits(run, job, job_id) for run in receipt["audits"])]
    runs = [run["receipt"] for run in (receipt["worker"], *receipt["audits"])]
    require(len({r["epoch"] for r in runs}) == len(runs), "15.3", "two runs with the same epoch")
    keys = [key for run in (receipt["worker"], *receipt["audits"]) for key in members(run)]
    require(len(set(keys)) == len(keys), "15.3", "two runs with the same worker")
    fallen, signed = check_statements(receipt, [digest for digest, _ in checked])
    require(not fallen, "15.4", "the worker is refuted, or took its run back: no answer")
    report = {"job_id": job_id.hex(), "head": runs[0]["head"], "audits": len(runs) - 1,
              "statements": len(receipt["statements"]), "signatures_checked": signed and all(ok for _, ok in checked)}
    if texts:  # 11.5
        inputs = (b"\1" + encode("u32", len(text.encode())) + text.encode() for text in texts)
        requests = [derive("request", encode("b32", job["nonce"]) + input_).hex() for input_ in inputs]
        report["text_matches"] = job["request"] in requests
    if package and job["kind"] == "embedding" and job["model"] == package.model_id.hex():
        outputs, clamped = package.run(job["tokens"])
        rerun = {"roots": [root(rows).hex() for rows in outputs[1:]], "saturations": clamped,
                 "work_units": package.work(len(job["tokens"]))}
        require(all(runs[0][field] == value for field, value in rerun.items()), "13.4", "the run is not the model's")
        report["rerun_matches"] = True
    elif package and job["model"] == package.model_id.hex():
        from generation import rerun
        signed, output = rerun(package, job, [x % 2**32 for x in receipt["output"][:runs[0]["output_count"]]])
        require(all(runs[0][field] == value for field, value in signed.items()), "12, 13", "the run is not the model's")
        require(receipt["output"] == output, "13.4, 13.7", "the output is not the model's")
        report["rerun_matches"] = True
    return report
