"""`archc perplexity`: how well a checkpoint expects a text, at full precision or quantised."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import DTYPE, FILE, QUANT, WEIGHTS, backend_option, open_model
from .progress import bar, shown
from .reports import JSON, print_json

if TYPE_CHECKING:
    from ..api import Compiled
    from ..generate.face import Face
    from ..perplexity import Logits


@click.command("perplexity", short_help="Measure how well a checkpoint expects a text.")
@FILE
@WEIGHTS
@click.option(
    "--text",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="TEXT",
    help="What to read, in UTF-8 (default: three thousand words that come with archc).",
)
@click.option(
    "--window", type=click.IntRange(min=2), default=512, show_default=True, help="Tokens at a time."
)
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    help="How far apart windows begin (default: half a window).",
)
@backend_option(default="torch", show_default=True)
@DTYPE
@QUANT
@JSON
def command(
    file: Path,
    weights: Path | None,
    text: Path | None,
    window: int,
    stride: int | None,
    backend: str,
    dtype: Any,
    quant: Any,
    as_json: bool,
) -> None:
    """Print the tokens of a text, their mean negative log-likelihood in nats, and its exponential.

    Tokens are those of the checkpoint's tokenizer: figures of one checkpoint can be compared, those
    of different vocabularies cannot.
    """
    from ..generate.face import face_of
    from ..perplexity import own_text, perplexity
    from ..tokenizer import open_tokenizer

    if weights is None:
        raise click.MissingParameter(param_hint="--weights", param_type="option")
    step = stride or window // 2
    if step >= window:
        raise click.BadParameter("it must be less than the window", param_hint="--stride")
    model = open_model(file, weights=weights)
    assert model.checkpoint is not None
    ids = open_tokenizer(model.checkpoint).encode(read_text(text) if text else own_text())
    with shown(model) as watched:
        face = face_of(watched)
        names = face.names(padded=False, given=())
        loaded = watched.compile(backend, dtype=dtype, quant=quant, inputs=names)
    with bar("reading") as progress:
        found = perplexity(
            _logits(loaded, face), ids, window=window, stride=step, progress=progress
        )
    if as_json:
        values = {"tokens": found.tokens, "scored": found.scored, "nll": found.nll}
        print_json({**values, "perplexity": found.perplexity})
        return
    click.echo(f"tokens      {found.tokens:,} ({found.scored:,} scored)")
    click.echo(f"mean nll    {found.nll:.5f} nats")
    click.echo(f"perplexity  {found.perplexity:.4f}")


def _logits(loaded: Compiled, face: Face) -> Logits:
    """The model as a function of one row of ids."""
    import numpy as np

    return lambda ids: loaded(**{face.text.ids: np.array([ids])})[face.logits][0]


def read_text(path: Path) -> str:
    """The text of a file. Raises UnreadableText."""
    from ..dsl.errors import UnreadableText

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise UnreadableText(path=str(path), reason=str(problem)) from None
