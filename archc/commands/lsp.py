"""`archc lsp`: a language server on standard input and output."""

from __future__ import annotations

import click

from ..dsl.errors import MissingPackage


@click.command("lsp", short_help="Serve an editor over the Language Server Protocol.")
def command() -> None:
    """Serve an editor over the Language Server Protocol, on standard input and output.

    Errors as you type, what a name is and what its expression costs, completion, definitions (also in
    the standard library), references, rename, formatting. Editors start it themselves.
    """
    try:
        from ..lsp.server import server
    except ImportError:
        raise MissingPackage(package="pygls", purpose="the server", extra="lsp") from None
    server().start_io()
