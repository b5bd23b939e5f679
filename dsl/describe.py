"""A definition in a line: what one may call, and what it is for."""

from __future__ import annotations

import re

from .syntax import CallableDef


def signature(definition: CallableDef) -> str:
    """The text up to the body, on one line."""
    text, depth = definition.span.text, 0
    for at, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if depth == 0 and (character == "{" or text[at : at + 3] == " = "):
            return re.sub(r"\s+", " ", text[:at]).strip()
    return text


def summary(definition: CallableDef) -> str:
    """The first sentence of the docstring, else the expression of a one-line `fn`, else nothing."""
    if definition.doc:
        return definition.doc.split("\n")[0]
    return f"`{definition.span.text.rpartition(' = ')[2].strip()}`" if definition.short else ""
