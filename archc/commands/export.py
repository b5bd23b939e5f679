"""`archc export`: a model with weights to a Hugging Face directory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from .options import FILE, RANDOM, WEIGHTS, open_model, output_option, sizes
from .progress import shown
from .reports import JSON, print_json

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class Bytes(click.ParamType):  # type: ignore[type-arg]  # of click 8.1 it takes none
    """`5GB`, `200MB`, `1GiB`, or plain bytes."""

    name = "SIZE"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+)\s*(\w*)", value)
        if match is None or match[2].upper() not in UNITS or int(match[1]) == 0:
            self.fail(f"{value!r} is no size such as 5GB, 200MB or 1GiB", param, ctx)
        return int(match[1]) * UNITS[match[2].upper()]


@click.command("export", short_help="Write the model in FILE as a Hugging Face directory.")
@FILE
@sizes
@WEIGHTS
@RANDOM
@output_option("DIR", "Where to write: a new or an empty directory.", required=True)
@click.option(
    "--shard-size",
    type=Bytes(),
    default="5GB",
    show_default=True,
    help="Weights of more bytes are written as shards with an index.",
)
@JSON
def command(
    file: Path,
    preset: str | None,
    settings: tuple[str, ...],
    model: str | None,
    weights: Path | None,
    seed: int | None,
    output: Path,
    shard_size: int,
    as_json: bool,
) -> None:
    """Write the model in FILE as a Hugging Face directory: config.json and safetensors.

    What was read from such a directory is written back as it was. Random weights and other formats get a
    config.json made from the model's sizes, by its checkpoint block.
    """
    opened = open_model(file, preset, settings, model, weights, seed)
    with shown(opened) as watched:
        files = watched.export(output, shard_bytes=shard_size)
    if as_json:
        print_json({"wrote": str(output), "files": list(files)})
    else:
        click.echo(f"wrote {output}: {', '.join(files)}")
