"""Every environment variable, typed and documented in one place.

A knob is read when it is used, so a test (or a person in a session) can set it; `scope` sets
several for a while. A value that does not parse is the user's mistake and says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..dsl.errors import BadKnob

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Knob(Generic[T]):
    """An environment variable. `parse` turns its text into a value, or raises ValueError."""

    name: str
    doc: str
    parse: Callable[[str], T]
    default: T
    expected: str

    @property
    def value(self) -> T:
        text = os.environ.get(self.name, "")
        if not text:
            return self.default
        try:
            return self.parse(text)
        except ValueError:
            raise BadKnob(name=self.name, got=text, expected=self.expected) from None


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError(text)
    return text == "1"


def _count(text: str) -> int:
    if not text.isdigit():
        raise ValueError(text)
    return int(text)


DUMP = Knob("ARCHC_DUMP", "print the graph after a pass", str, "", "`all` or a pass name")
EXPLAIN = Knob("ARCHC_EXPLAIN", "print the sites of a pass", str, "", "`all` or a pass name")
RULE_LIMIT: Knob[int | None] = Knob(
    "ARCHC_RULE_LIMIT", "stop rewriting after n rules have fired", _count, None, "a number"
)
STOP_AFTER = Knob("ARCHC_STOP_AFTER", "leave out the passes after this one", str, "", "a pass name")
TIME = Knob("ARCHC_TIME", "print how long each pass takes", _flag, False, "0 or 1")
DEBUG = Knob("ARCHC_DEBUG", "show the traceback of a bug in archc", _flag, False, "0 or 1")
RACES = Knob(
    "ARCHC_RACES",
    "check in Triton's interpreter that programs race for no byte",
    _flag,
    False,
    "0 or 1",
)

KNOBS = (DUMP, EXPLAIN, RULE_LIMIT, STOP_AFTER, TIME, DEBUG, RACES)


@contextmanager
def scope(**values: str) -> Iterator[None]:
    """Sets knobs by variable name (`ARCHC_TIME="1"`) and puts them back."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, text in before.items():
            if text is None:
                del os.environ[name]
            else:
                os.environ[name] = text
