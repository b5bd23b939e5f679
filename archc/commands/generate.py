"""`archc generate`: continue a prompt with a checkpoint's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import BACKENDS, DTYPE, FILE, QUANT, WEIGHTS, open_model
from .progress import shown


@click.command("generate")
@FILE
@WEIGHTS
@click.option("--prompt", required=True, metavar="TEXT", help="What to continue.")
@click.option("--max-tokens", type=click.IntRange(min=0), default=64, show_default=True)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="0 always takes the likeliest token.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--chat", is_flag=True, help="Send TEXT as a message, by the checkpoint's template.")
@click.option("--backend", type=BACKENDS, default="torch", show_default=True)
@DTYPE
@QUANT
def command(
    file: Path,
    weights: Path | None,
    prompt: str,
    max_tokens: int,
    temperature: float,
    seed: int,
    chat: bool,
    backend: str,
    dtype: Any,
    quant: Any,
) -> None:
    """Print TEXT and continue it, token by token."""
    from .. import generate
    from ..tokenizer import open_tokenizer

    if weights is None:
        raise click.MissingParameter(param_hint="--weights", param_type="option")
    model = open_model(file, weights=weights)
    assert model.checkpoint is not None
    tokenizer = open_tokenizer(model.checkpoint)
    sent = generate.chat(tokenizer, prompt, str(weights)) if chat else prompt
    with shown(model) as watched:
        decoder = generate.decoder(watched, backend, dtype, quant)
    click.echo(prompt, nl=chat)
    for piece in generate.generate(
        decoder, tokenizer, sent, max_tokens=max_tokens, temperature=temperature, seed=seed
    ):
        click.echo(piece, nl=False)
    click.echo()
