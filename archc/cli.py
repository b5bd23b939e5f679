"""The command `archc`: subcommands by name, and the one place where errors become exit codes.

0 done, 1 the user's mistake (or what a check was asked to find), 2 wrong usage, 70 a bug of archc,
130 interrupted. A subcommand is imported when it is named, so that `check` does not wait for torch.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from . import __version__
from .commands.reports import print_errors
from .compiler.knobs import DEBUG
from .dsl.diagnostics import ArchError, Diagnostics, did_you_mean, render
from .dsl.errors import OutOfMemory, Unwritable
from .dsl.lexer import MOST_ERRORS

# In the order of `archc --help`; module of archc.commands where the name cannot be one.
COMMANDS = {
    "check": "check",
    "fmt": "fmt",
    "cost": "cost",
    "show": "show",
    "explain": "explain",
    "compile": "compile",
    "run": "run",
    "diff": "diff",
    "fuzz": "fuzz",
    "reduce": "reduce",
    "generate": "generate",
    "perplexity": "perplexity",
    "bench": "bench",
    "import": "import_",
    "export": "export",
    "lsp": "lsp",
}
MISTAKE, BUG, INTERRUPTED = 1, 70, 130
# A disk that is full or fails, and a quota, are no bugs.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})


class Commands(click.Group):
    """The subcommands. `invoke` is the boundary that no exception crosses."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            if not ctx.resilient_parsing and (help := did_you_mean(cmd_name, COMMANDS)):
                ctx.fail(f"No such command {cmd_name!r}: {help}")
            return None
        module = import_module(f".commands.{COMMANDS[cmd_name]}", __package__)
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> None:
        debug = False
        try:
            debug = DEBUG.value
            super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click's own: usage errors, --help, `archc .. | head`
        except KeyboardInterrupt:
            click.echo(err=True)
            ctx.exit(INTERRUPTED)
        except Diagnostics as found:
            ctx.exit(mistakes(ctx, found.errors))
        except ArchError as error:
            ctx.exit(mistakes(ctx, [error]))
        except MemoryError as error:
            reason = str(error) or "an allocation failed"
            ctx.exit(mistakes(ctx, [OutOfMemory(reason=reason)]))
        except OSError as error:
            if error.errno not in FULL:
                ctx.exit(bug(error, debug))
            full = Unwritable(path=error.filename or "what it prints", reason=str(error.strerror))
            ctx.exit(mistakes(ctx, [full]))
        except Exception as error:
            ctx.exit(bug(error, debug))


def mistakes(ctx: click.Context, errors: Sequence[ArchError]) -> int:
    """Show what is wrong in the user's input, a blank line between errors."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    color = sys.stderr.isatty() and not plain
    shown = [render(error, color=color) for error in errors[:MOST_ERRORS]]
    if len(errors) > len(shown):
        shown.append(f"and {len(errors) - len(shown):,} more")
    click.echo("\n\n".join(shown), err=True, color=color)
    print_errors(ctx, errors)
    return MISTAKE


def bug(error: Exception, debug: bool) -> int:
    """Say that archc failed; `debug` adds where."""
    if debug:
        import traceback

        traceback.print_exception(error)
    python = ".".join(map(str, sys.version_info[:3]))
    click.echo(
        f"internal error: {type(error).__name__}: {error}\n"
        f"This is a bug in archc {__version__} (Python {python}), not in your file.\n"
        "Please report it with the command, the .arch file, and what ARCHC_DEBUG=1 adds.",
        err=True,
    )
    return BUG


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="archc")
def main() -> None:
    """Check, compile, run and compare language-model architectures written in .arch files.

    \b
    Shell completion, also of presets, models and sizes, in the shell's start-up file:
      bash   eval "$(_ARCHC_COMPLETE=bash_source archc)"
      zsh    eval "$(_ARCHC_COMPLETE=zsh_source archc)"
      fish   _ARCHC_COMPLETE=fish_source archc | source
    """


if __name__ == "__main__":
    main()
