"""Templates that come with weights: code of others, in a sandbox with an end.

They reach nothing but what they are given, with the functions that transformers gives them. A line
costs a step; numbers and what is repeated stay small, and while a template runs this process gets no
more than `MEMORY` on top of what it has. Whatever a template does otherwise, it raises.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

STEPS = 200_000  # lines; a conversation of 100 turns takes some thousand
LARGEST = 1_000_000  # a number, or the length of what is repeated
MEMORY = 256 << 20
_FILE = "<template>"


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [abs(x) if isinstance(x, int | float) else len(x) for x in (left, right)]
        if max(sizes) > LARGEST or (operator == "**" and sizes[1] > 64):
            raise TemplateError(f"`{operator}` of what is too large")
        if sizes[0] * sizes[1] > LARGEST and not all(
            isinstance(x, int | float) for x in (left, right)
        ):
            raise TemplateError(f"`{operator}` makes what is too large")
        return super().call_binop(context, operator, left, right)


def render(source: str, **values: Any) -> str:
    """The text of a template. Raises anything but `SystemExit` and its like."""
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    environment.filters["tojson"] = _json  # jinja's own escapes for HTML
    template = environment.from_string(source)
    with _limited():
        return template.render(**values)


@contextmanager
def _limited() -> Iterator[None]:
    """Steps are counted by a trace of the template's own lines; memory is the system's limit."""
    left = STEPS

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != _FILE:
            return None
        left -= event == "line"
        if left < 0:
            raise TemplateError(f"it takes more than {STEPS:,} steps")
        return trace

    before, (soft, hard) = sys.gettrace(), resource.getrlimit(resource.RLIMIT_AS)
    most = _size() + MEMORY
    bounded = min((x for x in (most, soft, hard) if x != resource.RLIM_INFINITY), default=most)
    resource.setrlimit(resource.RLIMIT_AS, (bounded, hard))
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _size() -> int:
    """Bytes of this process's address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _json(value: object, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)
