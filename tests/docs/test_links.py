"""Links between the Markdown pages of the repository."""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def pages(root: Path) -> list[Path]:
    """Every page except in what tools and builds leave in a checkout, whose folders are not walked."""
    found: list[Path] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in ("build", "dist")]
        folders[:] = [name for name in folders if not name.startswith(".") or name == ".github"]
        found += [Path(folder, name) for name in files if name.endswith(".md")]
    return sorted(found)


def anchors(page: Path) -> set[str]:
    """Headings as GitHub spells them in links."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = 0
        while (name := slug if number == 0 else f"{slug}-{number}") in found:
            number += 1
        found.add(name)
    return found


def broken_links(root: Path) -> list[str]:
    """`PAGE: LINK` for every link to a file or heading of the repository that is not there."""
    broken = []
    for page in pages(root):
        for link in LINK.findall(CODE.sub("", page.read_text("utf-8"))):
            if re.match(r"[a-z][a-z0-9+.-]*:", link):
                continue
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            exists = target.exists() and target.is_relative_to(root.resolve())
            if not exists or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
                broken.append(f"{page.relative_to(root)}: {link}")
    return broken


def test_links_of_the_repository_lead_somewhere() -> None:
    """Every relative link in every page names a file that exists and, where it has an anchor, a heading."""
    assert broken_links(ROOT) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    """Missing files, missing headings, files outside; not web addresses, not code."""
    root = tmp_path / "root"
    (root / "docs").mkdir(parents=True)
    (tmp_path / "outside.md").write_text("")
    (root / "docs" / "a.md").write_text("# One `two`: three\n\n# Again\n\n# Again\n")
    (root / "b.md").write_text(
        "[ok](docs/a.md) [ok](docs/a.md#one-two-three) [ok](docs/a.md#again-1) [ok](#here) [ok](https://x.y/z)\n"
        "[gone](docs/c.md) [gone](docs/a.md#again-2) [gone](#there) [out](../outside.md) `[code](x.md)`\n"
        "# Here\n"
    )
    assert broken_links(root) == [
        f"b.md: {link}" for link in ("docs/c.md", "docs/a.md#again-2", "#there", "../outside.md")
    ]


def test_pages_named_in_the_sources_exist() -> None:
    """A comment or message that sends its reader to a page of docs names one that is there."""
    named: dict[str, Path] = {}
    for folder in ("benchmarks", "cpp", "cuda", "model_repository", "python", "tests/serving"):
        for source in (ROOT / folder).rglob("*"):
            if source.suffix in {".cc", ".cu", ".cuh", ".h", ".pbtxt", ".py"}:
                named |= dict.fromkeys(re.findall(r"docs/[a-z_/]+\.md", source.read_text("utf-8")), source)
    assert "docs/clients.md" in named
    assert {name: source for name, source in named.items() if not (ROOT / name).exists()} == {}
