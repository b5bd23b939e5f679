"""Reports: text for people or, with `--json`, one JSON object on standard output.

A command that was asked for the object owes it until it has printed one. Where it fails before,
`archc.cli` prints what is wrong as the object, beside the words on standard error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from ..dsl.diagnostics import ArchError

Command = TypeVar("Command", bound=Callable[..., Any])
OWED = f"{__name__}.owed"  # in the meta of contexts, which a command and its group share


def json_option(
    words: str = "Print the report as one JSON object.",
) -> Callable[[Command], Command]:
    """The option `--json`, which a command gets as `as_json`."""

    def owe(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
        ctx.meta[OWED] = value
        return value

    return click.option("--json", "as_json", is_flag=True, callback=owe, help=words)


JSON = json_option()


def print_json(value: Any) -> None:
    """Prints the object. What is no number (NaN, infinity) is null: JSON knows no other word."""
    click.echo(json.dumps(_known(value), indent=2, ensure_ascii=False))
    click.get_current_context().meta[OWED] = False


def print_errors(ctx: click.Context, errors: Iterable[ArchError]) -> None:
    """Prints the errors as the object, in one line, if the command still owes it."""
    if ctx.meta.get(OWED):
        click.echo(json.dumps({"errors": [e.to_json() for e in errors]}, ensure_ascii=False))


def _known(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _known(part) for key, part in value.items()}
    return [_known(part) for part in value] if isinstance(value, list | tuple) else value
