"""The protocol: documents in, answers out. Lines and columns are the protocol's here and nowhere else."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from lsprotocol import types as lsp
from pygls.lsp.server import LanguageServer
from pygls.workspace import PositionCodec, TextDocument

from .. import __version__
from ..compiler.elaborate.module import standard_library
from ..dsl import Source, format_file
from ..dsl.diagnostics import ArchError
from ..dsl.lexer import Lexeme
from ..dsl.span import Span
from ..dsl.syntax import CallableDef, ModelDef, PresetDef
from .analysis import Analysis, analyse
from .completion import Kind, complete
from .hover import hover
from .names import Names
from .rename import refused, renamed

PAUSE = 0.2  # seconds without a keystroke before a text is read
KINDS: dict[Kind, lsp.CompletionItemKind] = {
    "definition": lsp.CompletionItemKind.Class,
    "function": lsp.CompletionItemKind.Function,
    "variable": lsp.CompletionItemKind.Variable,
    "keyword": lsp.CompletionItemKind.Keyword,
    "argument": lsp.CompletionItemKind.Property,
    "type": lsp.CompletionItemKind.TypeParameter,
    "module": lsp.CompletionItemKind.Module,
}
SYMBOLS = {
    CallableDef: lsp.SymbolKind.Function,
    ModelDef: lsp.SymbolKind.Class,
    PresetDef: lsp.SymbolKind.Constant,
}


class Server(LanguageServer):
    """The open texts, each as it was read last, and its names when it last parsed."""

    def __init__(self) -> None:
        super().__init__("archc", __version__)
        self.read: dict[str, tuple[str, Analysis]] = {}
        self.parsed: dict[str, Names] = {}
        self.waiting: dict[str, asyncio.Task[None]] = {}

    def analysis(self, uri: str, presets: bool = False) -> Analysis:
        """What is known of a text as it is now."""
        text = self.workspace.get_text_document(uri).source
        known = self.read.get(uri)
        if presets or known is None or known[0] != text:
            found = analyse(Source(Path(_path(uri)).name, text), presets)
            self.read[uri] = known = (text, found)
            if found.names is not None:
                self.parsed[uri] = found.names
        return known[1]

    def publish(self, uri: str, presets: bool = False) -> None:
        """Reads a text and tells the editor what is wrong with it."""
        document = self.workspace.get_text_document(uri)
        places = Places(document)
        found = [_diagnostic(error, places, uri) for error in self.analysis(uri, presets).errors]
        self.text_document_publish_diagnostics(
            lsp.PublishDiagnosticsParams(uri, found, document.version)
        )

    async def publish_soon(self, uri: str) -> None:
        await asyncio.sleep(PAUSE)
        self.publish(uri)


class Places:
    """Offsets of a text as positions in the units of the editor, and back."""

    def __init__(self, document: TextDocument) -> None:
        self.lines: list[str] = document.source.splitlines(keepends=True) or [""]
        self.codec: PositionCodec = document.position_codec
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))

    def position(self, offset: int) -> lsp.Position:
        line = min(bisect_right(self.starts, offset) - 1, len(self.lines) - 1)
        here = lsp.Position(line, offset - self.starts[line])
        return self.codec.position_to_client_units(self.lines, here)

    def range(self, start: int, end: int) -> lsp.Range:
        return lsp.Range(self.position(start), self.position(end))

    def offset(self, position: lsp.Position) -> int:
        here = self.codec.position_from_client_units(self.lines, position)
        return self.starts[min(here.line, len(self.lines))] + here.character

    def everything(self) -> lsp.Range:
        return self.range(0, self.starts[-1])


def server() -> Server:
    """A server with all it can do."""
    made = Server()
    for method, answer in ANSWERS.items():
        made.feature(method)(answer)
    made.feature(lsp.TEXT_DOCUMENT_COMPLETION, lsp.CompletionOptions([">", "(", ",", ":"]))(
        _complete
    )
    made.feature(lsp.TEXT_DOCUMENT_RENAME, lsp.RenameOptions(prepare_provider=True))(_rename)
    return made


# ------------------------------------------------------------------------------ documents


def _opened(ls: Server, params: Any) -> None:
    ls.publish(params.text_document.uri, presets=True)


async def _changed(ls: Server, params: lsp.DidChangeTextDocumentParams) -> None:
    """Reads the text when the typing pauses; presets wait until it is saved."""
    uri = params.text_document.uri
    if uri in ls.waiting:
        ls.waiting[uri].cancel()
    ls.waiting[uri] = asyncio.ensure_future(ls.publish_soon(uri))


def _closed(ls: Server, params: lsp.DidCloseTextDocumentParams) -> None:
    uri = params.text_document.uri
    if uri in ls.waiting:
        ls.waiting.pop(uri).cancel()
    ls.read.pop(uri, None)
    ls.text_document_publish_diagnostics(lsp.PublishDiagnosticsParams(uri, []))


def _diagnostic(error: ArchError, places: Places, uri: str) -> lsp.Diagnostic:
    """An error where it points into this text; the other places beside it."""
    own: list[tuple[Span, str]] = []
    related = []
    for span, words in error.annotations():
        if _inside(span, uri):
            own.append((span, words))
        elif (file := _library_file(span)) is not None:
            where = lsp.Location(file, _library_range(span))
            related.append(lsp.DiagnosticRelatedInformation(where, words or "here"))
    place, said = own[0] if own else (None, "")
    related = [
        lsp.DiagnosticRelatedInformation(
            lsp.Location(uri, places.range(s.start, s.end)), words or "here"
        )
        for s, words in own[1:]
    ] + related
    advice = error.help_text()
    return lsp.Diagnostic(
        range=places.range(place.start, place.end) if place is not None else places.range(0, 0),
        message="\n".join(filter(None, (error.message, said, advice and f"help: {advice}"))),
        severity=lsp.DiagnosticSeverity.Error,
        code=error.id,
        source="archc",
        related_information=related or None,
    )


def _inside(span: Span, uri: str) -> bool:
    return span.source.name == Path(_path(uri)).name


def _path(uri: str) -> str:
    from pygls.uris import to_fs_path

    return to_fs_path(uri) or uri


def _library_file(span: Span) -> str | None:
    """The address of the library's file that a span is in."""
    folder, _, name = span.source.name.partition("/")
    entry = resources.files("archc.std") / name
    return Path(str(entry)).resolve().as_uri() if folder == "std" and entry.is_file() else None


def _library_range(span: Span) -> lsp.Range:
    start, end = (span.source.position(at) for at in (span.start, span.end))
    return lsp.Range(*(lsp.Position(line - 1, column - 1) for line, column in (start, end)))


# -------------------------------------------------------------------------------- answers


def _hover(ls: Server, params: lsp.HoverParams) -> lsp.Hover | None:
    uri = params.text_document.uri
    places = Places(ls.workspace.get_text_document(uri))
    found = hover(ls.analysis(uri), places.offset(params.position))
    if found is None:
        return None
    word, text = found
    content = lsp.MarkupContent(lsp.MarkupKind.Markdown, text)
    return lsp.Hover(content, places.range(word.start, word.end))


def _complete(ls: Server, params: lsp.CompletionParams) -> lsp.CompletionList:
    uri = params.text_document.uri
    places = Places(ls.workspace.get_text_document(uri))
    analysis = ls.analysis(uri)
    found = complete(analysis, ls.parsed.get(uri), places.offset(params.position))
    items = [
        lsp.CompletionItem(p.label, kind=KINDS[p.kind], detail=p.detail, documentation=p.doc)
        for p in found
    ]
    return lsp.CompletionList(is_incomplete=False, items=items)


def _definition(ls: Server, params: lsp.DefinitionParams) -> lsp.Location | None:
    uri = params.text_document.uri
    places = Places(ls.workspace.get_text_document(uri))
    analysis = ls.analysis(uri)
    word = analysis.word(places.offset(params.position))
    symbol = analysis.names.symbols.get(word.start) if word and analysis.names else None
    if word is None or analysis.names is None or symbol is None:
        return None
    if symbol.library:
        span = standard_library()[symbol.name].span
        file = _library_file(span)
        return lsp.Location(file, _library_range(span)) if file is not None else None
    bound = analysis.names.binding(symbol, word.start)
    return lsp.Location(uri, places.range(bound.start, bound.end)) if bound is not None else None


def _occurrences(ls: Server, uri: str, position: lsp.Position) -> list[lsp.Range]:
    places = Places(ls.workspace.get_text_document(uri))
    analysis = ls.analysis(uri)
    word = analysis.word(places.offset(position))
    symbol = analysis.names.symbols.get(word.start) if word and analysis.names else None
    found: list[Lexeme] = analysis.names.occurrences(symbol) if analysis.names and symbol else []
    return [places.range(x.start, x.end) for x in found]


def _references(ls: Server, params: lsp.ReferenceParams) -> list[lsp.Location]:
    uri = params.text_document.uri
    return [lsp.Location(uri, place) for place in _occurrences(ls, uri, params.position)]


def _highlight(ls: Server, params: lsp.DocumentHighlightParams) -> list[lsp.DocumentHighlight]:
    uri = params.text_document.uri
    return [lsp.DocumentHighlight(place) for place in _occurrences(ls, uri, params.position)]


def _symbols(ls: Server, params: lsp.DocumentSymbolParams) -> list[lsp.DocumentSymbol]:
    uri = params.text_document.uri
    places = Places(ls.workspace.get_text_document(uri))
    file = ls.analysis(uri).file
    return [
        lsp.DocumentSymbol(item.name, SYMBOLS[type(item)], whole, whole)
        for item in (file.items if file is not None else ())
        if isinstance(item, CallableDef | ModelDef | PresetDef)
        for whole in [places.range(item.span.start, item.span.end)]
    ]


def _format(ls: Server, params: lsp.DocumentFormattingParams) -> list[lsp.TextEdit]:
    """The canonical text; nothing while the text does not parse."""
    uri = params.text_document.uri
    places = Places(ls.workspace.get_text_document(uri))
    file = ls.analysis(uri).file
    if file is None or (text := format_file(file)) == file.span.source.text:
        return []
    return [lsp.TextEdit(places.everything(), text)]


def _prepare(ls: Server, params: lsp.PrepareRenameParams) -> lsp.Range | None:
    uri = params.text_document.uri
    places = Places(ls.workspace.get_text_document(uri))
    analysis = ls.analysis(uri)
    word = analysis.word(places.offset(params.position))
    if word is None or refused(analysis, word):
        return None
    return places.range(word.start, word.end)


def _rename(ls: Server, params: lsp.RenameParams) -> lsp.WorkspaceEdit | None:
    """Changes every word that means the same; refuses with a reason where the file would change."""
    from pygls.exceptions import JsonRpcInvalidParams

    uri = params.text_document.uri
    places = Places(ls.workspace.get_text_document(uri))
    analysis = ls.analysis(uri)
    word = analysis.word(places.offset(params.position))
    reason = "there is no name here" if word is None else refused(analysis, word)
    if word is None or reason:
        raise JsonRpcInvalidParams(message=reason)
    changed = renamed(analysis, word, params.new_name)
    if isinstance(changed, str):
        raise JsonRpcInvalidParams(message=changed)
    edits = [lsp.TextEdit(places.range(x.start, x.end), params.new_name) for x in changed]
    return lsp.WorkspaceEdit(changes={uri: edits})


ANSWERS: dict[str, Callable[..., Any]] = {
    lsp.TEXT_DOCUMENT_DID_OPEN: _opened,
    lsp.TEXT_DOCUMENT_DID_SAVE: _opened,
    lsp.TEXT_DOCUMENT_DID_CHANGE: _changed,
    lsp.TEXT_DOCUMENT_DID_CLOSE: _closed,
    lsp.TEXT_DOCUMENT_HOVER: _hover,
    lsp.TEXT_DOCUMENT_DEFINITION: _definition,
    lsp.TEXT_DOCUMENT_REFERENCES: _references,
    lsp.TEXT_DOCUMENT_DOCUMENT_HIGHLIGHT: _highlight,
    lsp.TEXT_DOCUMENT_DOCUMENT_SYMBOL: _symbols,
    lsp.TEXT_DOCUMENT_FORMATTING: _format,
    lsp.TEXT_DOCUMENT_PREPARE_RENAME: _prepare,
}
