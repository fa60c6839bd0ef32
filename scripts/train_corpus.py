#!/usr/bin/env python3
"""Makes the training text of lockstep-tiny from the documentation that comes with the Rust toolchain.

    rustup component add rust-docs
    python3 -m venv venv && venv/bin/pip install -r scripts/train_requirements.txt
    venv/bin/python scripts/train_corpus.py --out corpus

writes `corpus/train.jsonl` and `corpus/heldout.jsonl`: one page a line, {"page", "title", "text"}. The documentation is
licensed MIT OR Apache-2.0. HTML becomes prose: headings, paragraphs and list items. Blocks of code are dropped, and so
are whole pages where code is most of it, and paragraphs that an earlier page has already had. Whole pages are
held out, chosen by a hash of their path, so that the same documentation always gives the same split.
"""
import argparse
import hashlib
import json
import re
import subprocess
from pathlib import Path

from bs4 import BeautifulSoup

# Everything here is MIT OR Apache-2.0 (the embedded book offers CC-BY-SA-4.0 as a third choice). `core` and `alloc` are
# left out because `std` re-exports their pages; translations of Rust by Example because they aren't English.
BOOKS = ["book", "cargo", "clippy", "edition-guide", "embedded-book", "error_codes", "nomicon", "reference",
         "rust-by-example", "rustc", "rustdoc", "style-guide", "unstable-book"]
LIBRARIES = ["std", "proc_macro", "test"]
TRANSLATIONS = {"es", "ja", "ko", "zh", "fr", "de", "pt", "ru"}
MIN_PAGE = 300  # characters of prose
HELD_OUT = 40  # one page in so many


def documentation() -> Path:
    sysroot = subprocess.run(["rustc", "--print", "sysroot"], check=True, capture_output=True, text=True).stdout.strip()
    return Path(sysroot) / "share/doc/rust/html"


def pages(root: Path):
    for part in BOOKS + LIBRARIES:
        for path in sorted((root / part).rglob("*.html")):
            relative = path.relative_to(root)
            if path.name in ("print.html", "toc.html", "all.html", "404.html") or TRANSLATIONS & set(relative.parts):
                continue
            yield relative, path


def text_of(element) -> str:
    """The element's words on one line, `code` in backticks."""
    return re.sub(r"\s+", " ", element.get_text()).strip()


def prose(path: Path):
    """Title, paragraphs and characters of code of one page."""
    soup = BeautifulSoup(path.read_text(encoding="utf-8"), "lxml")
    main = soup.find("main") or soup.find(id="main-content")
    if main is None:
        return None
    code = 0
    for block in main.find_all("pre"):
        code += len(block.get_text())
        block.decompose()
    for junk in main.select("script, style, table, button, nav, .src, .anchor, .doc-anchor, .tooltip, rustdoc-toolbar, sup"):
        junk.decompose()
    if main.select_one(".docblock") or main.find(id="main-content") or main.get("id") == "main-content":
        roots = main.select(".docblock")
        heading = main.find("h1")
        title = text_of(heading) if heading else path.stem
        title = re.sub(r"^(Struct|Enum|Trait|Module|Function|Macro|Keyword|Primitive Type|Constant|Type Alias|Union) ?", "", title)
    else:
        roots = [main]
        heading = main.find("h1") or main.find("h2")
        title = text_of(heading) if heading else path.stem
        if heading:
            heading.decompose()
    for inline in main.find_all("code"):
        inline.replace_with("`" + inline.get_text() + "`")
    paragraphs = []
    for root in roots:
        for element in root.find_all(["h1", "h2", "h3", "h4", "p", "li"]):
            if element.name == "li" and element.find("p") or element.name == "p" and element.find_parent("p"):
                continue
            text = text_of(element).removeprefix("§").strip()
            if element.name.startswith("h"):
                text = "## " + text
            elif element.name == "li" or element.find_parent("li"):
                text = "- " + text
            if len(text) > 3:
                paragraphs.append(text)
    return title, paragraphs, code


def wordy(text: str) -> bool:
    """Whether a paragraph is English: mostly letters and spaces, in ASCII or nearly."""
    plain = sum(c.isalpha() and c.isascii() or c in " ,.'`" for c in text)
    return plain >= 0.85 * len(text) and sum(not c.isascii() for c in text) <= 0.03 * len(text)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--docs", type=Path, help="share/doc/rust/html (default: of the rustc in PATH)")
    arguments.add_argument("--out", type=Path, required=True)
    arguments = arguments.parse_args()
    root = arguments.docs or documentation()
    seen, kept = set(), {"train": [], "heldout": []}
    for relative, path in pages(root):
        found = prose(path)
        if found is None:
            continue
        title, paragraphs, code = found
        fresh = []
        for paragraph in paragraphs:
            heading = paragraph.startswith("## ")
            if not heading and (paragraph in seen or not wordy(paragraph)):
                continue
            if not heading:
                seen.add(paragraph)
            elif fresh and fresh[-1].startswith("## "):
                fresh.pop()  # a heading whose text was all dropped
            fresh.append(paragraph)
        if fresh and fresh[-1].startswith("## "):
            fresh.pop()
        text = "\n\n".join(fresh)
        if len(text) < MIN_PAGE or code > 4 * len(text):
            continue
        digest = hashlib.sha256(str(relative).encode()).digest()
        split = "heldout" if int.from_bytes(digest[:4], "little") % HELD_OUT == 0 else "train"
        kept[split].append({"page": str(relative), "title": title, "text": text})
    arguments.out.mkdir(parents=True, exist_ok=True)
    for split, rows in kept.items():
        with open(arguments.out / f"{split}.jsonl", "w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(split, len(rows), "pages,", sum(len(row["text"]) for row in rows), "characters")


if __name__ == "__main__":
    main()
