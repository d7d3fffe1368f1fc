"""Build the training text: CPython's standard library, cleaned and split by file.

    python models/train/corpus.py --lib /path/to/lib/python3.13 --out build/corpus

Writes ``corpus.tar`` (a reproducible archive of every file kept), ``split.json`` (which file is in
which part) and ``summary.json`` (counts, bytes, sha256 of the archive).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import tarfile
from collections import Counter
from pathlib import Path

# Not written by people as code: generated tables, third-party wheels, compiled-in build settings.
SKIP_DIRS = {"site-packages", "encodings", "pydoc_data", "__pycache__", "_bundled", "lib2to3"}
SKIP_FILES = re.compile(r"_sysconfigdata|test_source_encoding|bad_?syntax|bad_coding")

# The library is under the PSF licence, but some files carry other terms in their header. Those are left out,
# even where the terms would allow this use, so that one licence covers the whole training text.
OTHER_LICENCE = re.compile(
    r"permission to use, copy|permission\s+is\s+hereby granted|redistribution and use|provided ['`]*as[- ]is"
    r"|apache license|mit license|gnu (lesser |general )|no warranty|secret labs|python 2\.2 license"
    r"|spdx-license-identifier: (?!psf-2\.0\s*$)",
    re.IGNORECASE | re.MULTILINE,
)
HEADER_LINES = 100

MIN_BYTES = 200  # empty __init__.py files teach nothing
MAX_BYTES = 160_000  # longer files are cut at a line end, so that no file is more than 1 % of the text
MAX_TABLE_SHARE = 0.25  # digits and backslashes as a share of all characters; above it, a data table
DUPLICATE_JACCARD = 0.6  # share of common lines above which the later of two files is a near duplicate


def read_candidates(lib: Path) -> tuple[dict[str, str], Counter[str]]:
    """Return {relative path: text} of the files fit for training, and why the others were dropped."""
    kept: dict[str, str] = {}
    dropped: Counter[str] = Counter()
    for path in sorted(lib.rglob("*.py")):
        name = path.relative_to(lib).as_posix()
        if SKIP_DIRS & set(name.split("/")) or SKIP_FILES.search(name):
            dropped["generated, bundled or broken on purpose"] += 1
            continue
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            dropped["not UTF-8"] += 1
            continue
        text = text.replace("\r\n", "\n")
        if OTHER_LICENCE.search("\n".join(text.split("\n", HEADER_LINES)[:HEADER_LINES])):
            dropped["header names other licence terms"] += 1
        elif len(text) < MIN_BYTES:
            dropped["shorter than 200 characters"] += 1
        elif sum(c.isdigit() or c == "\\" for c in text) > MAX_TABLE_SHARE * len(text):
            dropped["data table"] += 1
        else:
            kept[name] = cut(text)
    return kept, dropped


def cut(text: str) -> str:
    """Shorten ``text`` to MAX_BYTES of UTF-8, ending with a whole line."""
    data = text.encode()
    if len(data) <= MAX_BYTES:
        return text
    return data[: data.rfind(b"\n", 0, MAX_BYTES) + 1].decode()


def drop_near_duplicates(files: dict[str, str]) -> dict[str, str]:
    """Keep the first of every group of files whose sets of distinct lines overlap by DUPLICATE_JACCARD."""
    lines = {name: {ln.strip() for ln in text.split("\n") if ln.strip()} for name, text in files.items()}
    kept: list[str] = []
    for name in files:
        mine = lines[name]
        for other in kept:
            theirs = lines[other]
            small, large = sorted((len(mine), len(theirs)))
            if small < DUPLICATE_JACCARD * large:  # the sizes alone already rule the overlap out
                continue
            common = len(mine & theirs)
            if common >= DUPLICATE_JACCARD * (small + large - common):
                break
        else:
            kept.append(name)
    return {name: files[name] for name in kept}


def part_of(name: str) -> str:
    """Assign a file to a part by a hash of its path: 2 % test, 2 % validation, the rest training."""
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100
    return "test" if bucket < 2 else "validation" if bucket < 4 else "train"


def write_archive(files: dict[str, str], path: Path) -> str:
    """Write a tar file that depends on nothing but names and contents; return its sha256."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(files):
            data = files[name].encode()
            info = tarfile.TarInfo(name)  # time, owner and mode stay at their fixed defaults
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_split(out: Path) -> dict[str, list[str]]:
    """Return {part: [text of each file]} from a folder this script wrote."""
    split: dict[str, list[str]] = json.loads((out / "split.json").read_text())
    with tarfile.open(out / "corpus.tar") as tar:
        texts = {m.name: tar.extractfile(m).read().decode() for m in tar.getmembers()}  # type: ignore[union-attr]
    return {part: [texts[name] for name in names] for part, names in split.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lib", type=Path, required=True, help="CPython's Lib folder")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    candidates, dropped = read_candidates(args.lib)
    files = drop_near_duplicates(candidates)
    dropped["near duplicate"] = len(candidates) - len(files)
    split: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for name in sorted(files):
        split[part_of(name)].append(name)
    summary = {
        "files": {part: len(names) for part, names in split.items()},
        "bytes": {part: sum(len(files[n].encode()) for n in names) for part, names in split.items()},
        "dropped": dict(dropped),
        "sha256": write_archive(files, args.out / "corpus.tar"),
    }
    (args.out / "split.json").write_text(json.dumps(split, indent=1))
    (args.out / "summary.json").write_text(json.dumps(summary, indent=2))
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
