"""Pages of the site that other files of the project already hold, made while mkdocs builds it.

README, CONTRIBUTING and the like stand at the root; their links are turned to where the site has the
same page. The index of errors is made of the goldens that the tests hold true.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
GOLDENS = ROOT / "tests" / "errors"
ROOT_PAGES = {  # page of the site: file at the root
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
    "editors.md": "editors/README.md",
}
SECTION = re.compile(r"^-- (.+)\n", re.MULTILINE)
FENCE = re.compile(r"^(`{3,}\w+) ([^\n]+)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]+)(#[\w-]+)?\)")
ERRORS = """# The errors

Every mistake that archc knows, by the id between its brackets: a file or a command that makes it, what is
then printed, and, where there is one thing to change, the file after the change. The tests run all of it.

"""


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages; called by mkdocs when it has collected those of docs/."""
    from mkdocs.structure.files import File

    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fences without the words that are for the tests; one that is a file has its name as the title."""

    def titled(match: re.Match[str]) -> str:
        names = [word for word in match[2].split() if "." in word]
        return f'{match[1]} title="{names[-1]}"' if names else match[1]

    return outward(FENCE.sub(titled, markdown))


def outward(text: str) -> str:
    """Links to files of the project that are no pages become the names of the files."""
    return re.sub(r"\[([^\]]+)\]\(\.\./(?!docs)[^)]+\)", r"\1", text)


def pages() -> dict[str, str]:
    """Text by the name of the page."""
    found = {page: ROOT / name for page, name in ROOT_PAGES.items() if (ROOT / name).exists()}
    moved = {page: turned(path.read_text(encoding="utf-8")) for page, path in found.items()}
    return moved | {"errors.md": ERRORS + "\n".join(error_entries())}


def turned(text: str) -> str:
    """A page of the root with links as the site has them: to pages, and else no links."""
    places = {name: page for page, name in ROOT_PAGES.items()}

    def turn(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        if target.startswith("http"):
            return match[0]
        return f"]({places.get(target, target.removeprefix('docs/'))}{anchor})"

    unlinked = re.sub(r"\[([^\]]+)\]\((?!docs/|http)(\w+)\)", r"\1", text)
    return LINK.sub(turn, unlinked)


def error_entries() -> Iterator[str]:
    """One entry for each error, its goldens below one another."""
    last = ""
    for path in sorted(GOLDENS.glob("*.golden")):
        name = path.name.split(".")[0]
        if name != last:
            yield f"## {name}\n"
        last = name
        for kind, text in sections(path):
            yield f"{_CAPTIONS.get(kind.split(' ')[0], f'`{kind}`:')}\n"
            yield f"````{_LANGUAGES.get(kind, 'text')}\n{text.rstrip()}\n````\n"


_CAPTIONS = {
    "source": "The file",
    "fixed": "Put right:",
    "error": "prints",
    "command": "The command",
}
_LANGUAGES = {"python": "python"}


def sections(path: Path) -> Iterator[tuple[str, str]]:
    """Kind and text of each section of a golden that has a text."""
    _, *rest = SECTION.split(path.read_text(encoding="utf-8"))
    pairs = zip(rest[::2], rest[1::2], strict=True)
    return ((kind, text) for kind, text in pairs if text.strip())
