"""`archc generate`: continue prompts with a checkpoint's weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from ..memory import keep_memory
from .options import COMPILED, DTYPE, DTYPES, FILE, QUANT, WEIGHTS, backend_option, open_model
from .progress import bar, shown
from .reports import json_option

if TYPE_CHECKING:
    from ..api import Model
    from ..decoder import Decoder

SETTINGS = (
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "seed",
    "draft_tokens",
)
OPEN = click.FloatRange(min=0, min_open=True)
SHARE = click.FloatRange(min=0, max=1)


@click.command("generate")
@FILE
@WEIGHTS
@click.option(
    "--prompt", "prompts", multiple=True, metavar="TEXT", help="What to continue. May be repeated."
)
@click.option(
    "--prompts",
    "lines",
    type=click.File(encoding="utf-8"),
    metavar="FILE",
    help="A prompt in each line that is not empty; - is standard input.",
)
@click.option(
    "--source",
    "sources",
    multiple=True,
    metavar="TEXT",
    help="What the encoder of an encoder-decoder reads, for each prompt.",
)
@click.option(
    "--chat", is_flag=True, help="Send prompts as messages, by the checkpoint's template."
)
@click.option(
    "--system", metavar="TEXT", help="An instruction before each message; implies --chat."
)
@click.option("--max-tokens", type=click.IntRange(min=0), default=64, show_default=True)
@click.option(
    "--stop", multiple=True, metavar="TEXT", help="End before this text. May be repeated."
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="0 always takes the likeliest token.",
)
@click.option(
    "--top-k", type=click.IntRange(min=1), metavar="N", help="Sample of the N likeliest tokens."
)
@click.option(
    "--top-p",
    type=click.FloatRange(min=0, max=1, min_open=True),
    metavar="P",
    help="Sample of the fewest likeliest tokens that have P together.",
)
@click.option(
    "--min-p",
    type=SHARE,
    metavar="P",
    help="Sample of tokens at least P times as likely as the likeliest.",
)
@click.option(
    "--repetition-penalty",
    type=OPEN,
    default=1.0,
    show_default=True,
    metavar="X",
    help="Divide the scores of tokens that were there by X.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the first prompt; the next has the next.",
)
@click.option(
    "--draft",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The .arch file of a smaller model that drafts tokens.",
)
@click.option(
    "--draft-weights", type=click.Path(path_type=Path), metavar="W", help="The draft's checkpoint."
)
@click.option(
    "--draft-tokens",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="How many it drafts at a time.",
)
@json_option("An object for each prompt, on a line of its own, in place of text.")
@backend_option(default="torch", show_default=True)
@DTYPE
@click.option(
    "--cache-dtype", type=DTYPES, help="Of what is kept of earlier tokens (default: --dtype)."
)
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    metavar="N",
    help="The greatest length of prompt and text.",
)
@COMPILED
@QUANT
def command(
    file: Path,
    weights: Path | None,
    prompts: tuple[str, ...],
    lines: TextIO | None,
    sources: tuple[str, ...],
    chat: bool,
    system: str | None,
    stop: tuple[str, ...],
    draft: Path | None,
    draft_weights: Path | None,
    as_json: bool,
    compiled: bool,
    **options: Any,
) -> None:
    """Print each prompt and continue it, token by token.

    Prompts run together. Their texts are printed one after the other, the first as it is written.
    """
    if weights is None:
        raise click.MissingParameter(param_hint="--weights", param_type="option")
    if compiled and options["backend"] != "torch":
        raise click.BadParameter("only the torch backend compiles", param_hint="--compile")
    if (draft is None) != (draft_weights is None):
        raise click.UsageError("--draft and --draft-weights go together")
    asked = [*prompts, *_lines(lines)]
    if not asked and not sources:
        raise click.MissingParameter(param_hint="--prompt", param_type="option")
    chat = chat or system is not None
    settings = {name: options.pop(name) for name in SETTINGS}
    if compiled:
        options["compile"] = True
    from .. import generate

    keep_memory()

    model, small = open_model(file, weights=weights), None
    if draft is not None:
        small = open_model(draft, weights=draft_weights)
    language = generate.language_of(model)
    ids, read = language.prompts(asked, chat=chat, system=system), language.sources(sources)
    ragged = len({*map(len, ids)}) > 1 or len({*map(len, read)}) > 1
    rows = "last" if small is None else "all"
    decoder = _loaded(model, padded=ragged and small is None, rows=rows, **options)
    printer = Printer(asked or [""] * len(sources), on_new_line=chat)
    drafting = None if small is None else _loaded(small, padded=False, rows="last", **options)
    with bar("generating") if as_json else nullcontext():
        results = generate.generate(
            model,
            ids or None,
            source=read or None,
            messages=chat,
            stop=stop,
            decoder=decoder,
            draft=drafting,
            stream=None if as_json else printer.show,
            **settings,
        )
    for result, prompt in zip(results, printer.prompts, strict=True) if as_json else ():
        click.echo(json.dumps({"prompt": prompt, **asdict(result)}, ensure_ascii=False))


def _lines(file: TextIO | None) -> list[str]:
    return [text for line in file or () if (text := line.rstrip("\r\n")).strip()]


def _loaded(model: Model, **options: Any) -> Decoder:
    """A decoder, loaded behind a bar."""
    from ..generate import decoder_of

    with shown(model) as watched:
        return decoder_of(watched, **options)


class Printer:
    """Prints texts one after the other: what is there of the first that has not ended, as it comes."""

    def __init__(self, prompts: Sequence[str], on_new_line: bool) -> None:
        self.prompts, self.on_new_line = prompts, on_new_line
        self.texts = [""] * len(prompts)
        self.ended = [False] * len(prompts)
        self.current = -1

    def show(self, row: int, piece: str) -> None:
        """More of the text of a row; an empty piece ends it."""
        if self.current < 0:
            self._next()
        self.texts[row] += piece
        self.ended[row] |= not piece
        if row == self.current:
            click.echo(piece, nl=False)
        while self.current < len(self.prompts) and self.ended[self.current]:
            click.echo()
            self._next()

    def _next(self) -> None:
        """Begin the next text with its prompt and what there is of it."""
        self.current += 1
        if self.current < len(self.prompts):
            before = "\n" if self.current else ""
            after = "\n" if self.on_new_line else ""
            prompt = self.prompts[self.current]
            click.echo(f"{before}{prompt}{after}{self.texts[self.current]}", nl=False)
