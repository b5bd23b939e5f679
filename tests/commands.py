"""The command as a person types it, and a small file to give to it (the fixture `small`)."""

from __future__ import annotations

from click.testing import CliRunner, Result

from archc.cli import main

SMALL = """model Small {
  n = 4
  input x: float[b, n]
  weight w[n]
  output y[b, n] = x * w
}
preset tiny = Small(n = 2)
"""


def invoke(*args: object, **env: str) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args], env=env, prog_name="archc")


def ok(*args: object) -> str:
    """What is printed by a command that succeeds."""
    result = invoke(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(code: int, *args: object) -> str:
    """What is said on standard error, by an exit without a traceback."""
    result = invoke(*args)
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return result.stderr
