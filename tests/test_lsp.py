"""The language server: what it knows, and that it says so over the real protocol."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from lsprotocol import types as lsp
from pygls.exceptions import JsonRpcException
from pygls.lsp.client import LanguageClient

from archc.dsl import Source, format_file, parse
from archc.lsp.analysis import Analysis, analyse
from archc.lsp.completion import complete
from archc.lsp.hover import hover
from archc.lsp.rename import changed, refused, renamed

EXAMPLES = Path(__file__).parent.parent / "examples"
TEXT = """use std

block twice(k, bias = 0)(x[..., d]) -> [..., d] {
  weight w[d] = ones
  return k * x * w + bias
}

model Small {
  d = 8; hidden = 12
  input x: float[b, s, d]
  y = x |> twice(2, bias = 3) as doubled
  y += y |> gated_ffn(hidden) as ffn
  h = [i * 2 for i in 3]
  f = (y[..., d]) -> y * h[1]
  output out[b, s, d] = f(y)
}

preset wide = Small(d = 16)
"""
T = TypeVar("T")


@pytest.fixture(scope="module")
def small() -> Analysis:
    found = analyse(Source("small.arch", TEXT))
    assert not found.errors
    return found


def place(text: str, word: str, number: int = 0) -> int:
    at = -1
    for _ in range(number + 1):
        at = text.index(word, at + 1)
    return at


# ------------------------------------------------------------------------------- hovering


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("twice(2", ["block twice(k, bias = 0)", "float[b, s, d = 8]", "8 weights"]),
        ("gated_ffn(", ["down(act(gate(x)) * up(x))", "288 weights", "576*b*s flops"]),
        ("hidden = 12", ["hidden = 12"]),
        ("y = x", ["float[b, s, d = 8]"]),
        ("x: float", ["float[b, s, d = 8]"]),
        ("out[b", ["float[b, s, d = 8]"]),
        ("w[d]", ["float[d = 8]"]),
        ("i * 2", ["0", "1", "2"]),
    ],
)
def test_hover(small: Analysis, word: str, said: list[str]) -> None:
    found = hover(small, place(TEXT, word))
    assert found is not None
    assert all(part in found[1] for part in said), found[1]


def test_nothing_is_said_of_a_keyword(small: Analysis) -> None:
    assert hover(small, place(TEXT, "model")) is None


def test_the_values_of_several_layer_kinds_are_all_shown() -> None:
    text = """model M {
  input x: float[b, d: 8]
  repeat layers[i: 2] {
    n = 2 if i == 0 else 4
    y = x[d -> (e, f: n)]
    x += sum(y, e, f)
  }
  output o[b, d] = x
}
"""
    found = analyse(Source("m.arch", text))
    assert not found.errors
    said = hover(found, place(text, "y = x"))
    assert said is not None
    assert "float[b, e = 4, f = 2]" in said[1]
    assert "float[b, e = 2, f = 4]" in said[1]


# -------------------------------------------------------------------------------- renaming


@pytest.mark.parametrize(
    ("word", "number", "lines"),
    [
        ("d = 8", 0, [9, 10, 15, 18]),  # also where a preset sets it
        ("twice", 1, [3, 11]),
        ("bias = 3", 0, [3, 5, 11]),
        ("k * x", 0, [3, 5]),
        ("y = x", 0, [11, 12, 12, 15]),
        ("y * h", 0, [14, 14]),  # the lambda's own
        ("i * 2", 0, [13, 13]),
    ],
)
def test_rename(small: Analysis, word: str, number: int, lines: list[int]) -> None:
    at = small.word(place(TEXT, word, number))
    assert at is not None
    found = renamed(small, at, "other_name")
    assert isinstance(found, list), found
    assert [TEXT.count("\n", 0, x.start) + 1 for x in found] == lines


def test_a_rename_that_changes_the_meaning_is_refused(small: Analysis) -> None:
    word = small.word(place(TEXT, "hidden = 12"))
    assert word is not None
    assert isinstance(renamed(small, word, "d"), str)
    assert "cannot be a name" in str(renamed(small, word, "if"))
    library = small.word(place(TEXT, "gated_ffn"))
    assert library is not None
    assert "standard library" in refused(small, library)


@pytest.mark.parametrize("name", ["llama", "deepseek_v2", "mamba", "t5"])
def test_every_name_of_an_example_can_be_renamed(name: str) -> None:
    """Each name of a model and its blocks at once: what comes out is as right as before."""
    path = EXAMPLES / f"{name}.arch"
    found = analyse(Source(path.name, path.read_text(encoding="utf-8")), presets=False)
    assert found.names is not None
    symbols = [s for s in dict.fromkeys(found.names.symbols.values()) if not s.library]
    text, words = found.source.text, []
    for number, symbol in enumerate(symbols):
        words += [(x, f"n{number}_") for x in found.names.occurrences(symbol)]
    for word, new in sorted(words, key=lambda pair: -pair[0].start):
        text = changed(text, [word], new)
    after = analyse(Source(path.name, text), presets=False)
    assert [e.message for e in after.errors] == [e.message for e in found.errors]
    for (_, a), (_, b) in zip(found.programs.items(), after.programs.items(), strict=True):
        assert a.parameter_count == b.parameter_count
        assert [len(f.nodes) for f in a.functions] == [len(f.nodes) for f in b.functions]


# ------------------------------------------------------------------------------ completing


@pytest.mark.parametrize(
    ("before", "offered", "not_offered"),
    [
        ("x |> ", {"rmsnorm", "twice", "softmax"}, {"hidden", "weight"}),
        ("x |> twice(2, ", {"bias = ", "hidden", "y"}, {"weight"}),
        ("x |> twice(k = 2, ", {"bias = "}, {"k = "}),
        ("", {"repeat", "output", "hidden"}, {"rmsnorm", "model"}),
        ("z = y + ", {"y", "hidden", "rmsnorm", "true"}, {"weight"}),
        ("input other: ", {"float", "ids"}, {"hidden"}),
        ("z = x |> twice(2) as ", set(), {"hidden", "weight", "rmsnorm"}),
    ],
)
def test_complete(small: Analysis, before: str, offered: set[str], not_offered: set[str]) -> None:
    """In a text that does not parse, because it is being written."""
    start = place(TEXT, "  output out")
    text = f"{TEXT[:start]}  {before}\n{TEXT[start:]}"
    written = analyse(Source("small.arch", text), presets=False)
    labels = {p.label for p in complete(written, small.names, start + 2 + len(before))}
    assert offered <= labels
    assert not labels & not_offered


def test_complete_between_definitions(small: Analysis) -> None:
    labels = {p.label for p in complete(small, small.names, 0)}
    assert labels == {"use", "block", "fn", "model", "preset", "checkpoint"}


# ------------------------------------------------------------------------------- protocol


def talk(text: str, scenario: Callable[[LanguageClient, str], Awaitable[T]]) -> T:
    """Starts `archc lsp`, opens a text, and runs a conversation."""

    async def run() -> T:
        client = LanguageClient("test", "1")
        client.published = asyncio.Queue()  # type: ignore[attr-defined]

        @client.feature(lsp.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS)
        def _(params: lsp.PublishDiagnosticsParams) -> None:
            client.published.put_nowait(params)  # type: ignore[attr-defined]

        await client.start_io(sys.executable, "-m", "archc.cli", "lsp")
        await client.initialize_async(lsp.InitializeParams(capabilities=lsp.ClientCapabilities()))
        client.initialized(lsp.InitializedParams())
        uri = "file:///models/small.arch"
        item = lsp.TextDocumentItem(uri, "arch", 1, text)
        client.text_document_did_open(lsp.DidOpenTextDocumentParams(item))
        try:
            return await asyncio.wait_for(scenario(client, uri), 60)
        finally:
            await client.shutdown_async(None)
            client.exit(None)
            await client.stop()

    return asyncio.run(run())


def at(uri: str, line: int, column: int) -> dict[str, Any]:
    return {
        "text_document": lsp.TextDocumentIdentifier(uri),
        "position": lsp.Position(line, column),
    }


def test_errors_as_one_types() -> None:
    """Published on opening, and again after an edit; columns are those of the editor (UTF-16)."""
    text = "model M {\n  input x: float[b, d: 2]\n  output y[b, d] = x  # 🙂 ü\n}\n"

    async def scenario(client: LanguageClient, uri: str) -> list[Any]:
        opened = await client.published.get()  # type: ignore[attr-defined]
        end = lsp.Position(2, 28)  # behind the comment, whose picture counts twice
        edit = lsp.TextDocumentContentChangePartial(lsp.Range(end, end), "\n  z = oops")
        document = lsp.VersionedTextDocumentIdentifier(2, uri)
        client.text_document_did_change(lsp.DidChangeTextDocumentParams(document, [edit]))
        return [opened, await client.published.get()]  # type: ignore[attr-defined]

    opened, edited = talk(text, scenario)
    assert not opened.diagnostics
    (error,) = edited.diagnostics
    assert error.code == "unknown-name"
    assert (error.range.start, error.range.end) == (lsp.Position(3, 6), lsp.Position(3, 10))
    assert edited.version == 2


def test_answers() -> None:
    lines = TEXT.split("\n")
    line = next(i for i, x in enumerate(lines) if "gated_ffn" in x)

    async def scenario(client: LanguageClient, uri: str) -> dict[str, Any]:
        word = at(uri, line, lines[line].index("gated_ffn") + 1)
        own = at(uri, line - 1, lines[line - 1].index("twice"))
        options = lsp.FormattingOptions(tab_size=2, insert_spaces=True)
        document = lsp.TextDocumentIdentifier(uri)
        found = {
            "hover": await client.text_document_hover_async(lsp.HoverParams(**word)),
            "library": await client.text_document_definition_async(lsp.DefinitionParams(**word)),
            "own": await client.text_document_definition_async(lsp.DefinitionParams(**own)),
            "rename": await client.text_document_rename_async(
                lsp.RenameParams(**own, new_name="double")
            ),
            "format": await client.text_document_formatting_async(
                lsp.DocumentFormattingParams(document, options)
            ),
            "complete": await client.text_document_completion_async(
                lsp.CompletionParams(**at(uri, line, lines[line].index("gated_ffn")))
            ),
            "symbols": await client.text_document_document_symbol_async(
                lsp.DocumentSymbolParams(document)
            ),
        }
        with pytest.raises(JsonRpcException, match="cannot be a name"):
            await client.text_document_rename_async(lsp.RenameParams(**own, new_name="not ok"))
        return found

    found = talk(TEXT, scenario)
    assert "gated_ffn(hidden" in found["hover"].contents.value
    assert found["library"].uri.endswith("std/activations.arch")
    assert found["own"].range.start.line == next(
        i for i, x in enumerate(lines) if x.startswith("block twice")
    )
    (edits,) = found["rename"].changes.values()
    assert [e.new_text for e in edits] == ["double", "double"]
    (edit,) = found["format"] or [None]
    expected = format_file(parse(Source("small.arch", TEXT)))
    assert (edit.new_text if edit else TEXT) == expected
    assert {"rmsnorm", "twice"} <= {item.label for item in found["complete"].items}
    assert [s.name for s in found["symbols"]] == ["twice", "Small", "wide"]
