"""Golden files: named sections of text, inputs and expected outputs in one reviewable file.

-- source
model M { .. }
-- error
error[..]: ..
"""

from __future__ import annotations

import re
from pathlib import Path

_HEADER = re.compile(r"^-- (.+)\n", re.MULTILINE)


def read(path: Path) -> dict[str, str]:
    """The sections of a file by name, in order. Each ends with a newline, or is empty."""
    before, *rest = _HEADER.split(path.read_text(encoding="utf-8"))
    names, texts = rest[::2], rest[1::2]
    if before or len(set(names)) < len(names):
        raise ValueError(f"{path.name}: text before the first section, or a name twice")
    return dict(zip(names, texts, strict=True))


def compare(path: Path, sections: dict[str, str], name: str, text: str, *, accept: bool) -> None:
    """Assert that section `name` is `text`, or make it so."""
    text = f"{text}\n" if text and not text.endswith("\n") else text
    if accept:
        updated = sections | {name: text}
        path.write_text("".join(f"-- {n}\n{t}" for n, t in updated.items()), encoding="utf-8")
    else:
        assert sections.get(name) == text, f"{path.name}: `pytest --accept` would change it"
