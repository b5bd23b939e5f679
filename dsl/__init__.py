"""The language: text to a syntax tree, and back. Imports nothing else of archc."""

from . import errors
from .format import format_file
from .parse import parse, parse_file
from .span import Source, Span

__all__ = ["Source", "Span", "errors", "format_file", "parse", "parse_file"]
