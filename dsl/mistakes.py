"""What a person probably meant where the parser could not go on.

`explain` asks the detectors in order; each looks at the tokens around the place and either names
the mistake or declines with None. What none of them knows becomes "unexpected .., expected ..".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .build import BINDING
from .diagnostics import ArchError
from .errors import (
    AssignmentInCondition,
    BrokenLine,
    ComparisonAsAssignment,
    ExpressionStatement,
    ForeignWord,
    MisplacedArrow,
    MisplacedDocstring,
    MisplacedWord,
    MissingBody,
    OperatorAfterPipeline,
    PipelineAsOperand,
    RepeatHead,
    ReservedWord,
    ResultBrackets,
    SyntaxMistake,
)
from .grammar import DOC, END, LAMBDA, NAME, NUMBER, OPERATOR, RELATION, STOP, STRING, TABLE
from .lexer import DEFINING, RESERVED, Lexeme
from .span import Source, Span


@dataclass(frozen=True, slots=True)
class Scene:
    """Token `index` was found where only the kinds `accepted` can stand.

    `first` is the index of the first token of the statement, `index` itself between statements.
    """

    source: Source
    lexemes: list[Lexeme]
    index: int
    first: int
    accepted: frozenset[str]

    @property
    def found(self) -> Lexeme:
        return self.lexemes[self.index]

    @property
    def before(self) -> Lexeme:
        """The token before the one found; at the start of a file, an END."""
        return self.lexemes[self.index - 1] if self.index else Lexeme(END, "", 0, 0)

    @property
    def opener(self) -> Lexeme:
        """The first token of the statement."""
        return self.lexemes[self.first]

    def span(self, start: int, end: int) -> Span:
        """Characters from token `start` to token `end`, inclusive."""
        return Span(self.source, self.lexemes[start].start, self.lexemes[end].end)

    @property
    def place(self) -> Span:
        return self.span(self.index, self.index)


def explain(scene: Scene) -> ArchError:
    """The mistake at this place, as precisely as it can be told."""
    for detect in DETECTORS:
        if (error := detect(scene)) is not None:
            return error
    return SyntaxMistake(
        span=scene.place,
        found=_called(scene.found).removeprefix("the "),
        expected=_expected(scene.accepted),
    )


# ------------------------------------------------------------------ words for tokens

_OPERAND = frozenset(
    (NAME, NUMBER, STRING, TABLE, LAMBDA, "(", "[", "-", "not", "true", "false", "none", "new")
)
_INFIX = frozenset((OPERATOR, RELATION, *BINDING))
_POSTFIX = frozenset(("(", "[", ".", "|>", "if"))
_STATEMENTS = frozenset(
    "weight buffer const bank shared input time decode output return if repeat scan".split()
)
_LINES = frozenset(("alias", "ignore", "prefix", "require"))
# what to call a set of kinds, the kinds that show it is meant, and all it stands for
_GROUPS = (
    ("a statement", {"weight"}, _STATEMENTS | {NAME}),
    ("an expression", {NAME, NUMBER}, _OPERAND),
    ("a definition", {"model"}, DEFINING),
    ("an operator", {OPERATOR, "."}, _INFIX | _POSTFIX),
)


def _called(lexeme: Lexeme) -> str:
    if lexeme.kind in (END, STOP):
        return lexeme.kind
    return lexeme.kind if "\n" in lexeme.text else f"`{lexeme.text}`"


def _expected(accepted: frozenset[str]) -> str:
    """`,`, `)` or an operator"""
    words: list[str] = []
    for name, shown_by, members in _GROUPS:
        if shown_by <= accepted:
            words.append(name)
            accepted -= members
    fixed = sorted(kind if " " in kind else f"`{kind}`" for kind in accepted)
    *most, last = [*fixed, *words]
    return f"{', '.join(most)} or {last}" if most else last


# ------------------------------------------------------------------ pipelines and operators

_OPENING, _CLOSING = frozenset(("(", "[", "{", LAMBDA, TABLE)), frozenset((")", "]", "}"))
_AROUND_VALUE = frozenset(("=", "+=", ",", ":", "->", "|", "..", "return", END, *DEFINING))


def _value_start(scene: Scene) -> int:
    """The first token of the value that the token before the one found belongs to."""
    i, depth = scene.index, 0
    while i > scene.first:
        kind = scene.lexemes[i - 1].kind
        depth += (kind in _CLOSING) - (kind in _OPENING)
        if depth < 0 or (depth == 0 and kind in _AROUND_VALUE):
            break
        i -= 1
    return i


def _value_end(scene: Scene, start: int, stops: frozenset[str]) -> int:
    """The last token of the value that goes on at `start`, before any of `stops`."""
    i, depth = start, int(scene.lexemes[start].kind in _OPENING)
    while i + 1 < len(scene.lexemes):
        kind = scene.lexemes[i + 1].kind
        depth += (kind in _OPENING) - (kind in _CLOSING)
        if depth < 0 or (depth == 0 and kind in stops):
            break
        i += 1
    return i


def _last_top(scene: Scene, start: int, kinds: frozenset[str]) -> int | None:
    """The last token of `kinds` from `start` to the one found, outside brackets."""
    depth, last = 0, None
    for i in range(start, scene.index):
        kind = scene.lexemes[i].kind
        depth += (kind in _OPENING) - (kind in _CLOSING)
        if depth == 0 and kind in kinds:
            last = i
    return last


def _pipeline_as_operand(scene: Scene) -> ArchError | None:
    if scene.found.kind != "|>":
        return None
    start = _value_start(scene)
    operator = _last_top(scene, start, _INFIX | {"if", "else", "not"})
    if operator is None:
        return None
    end = _value_end(scene, scene.index, _AROUND_VALUE | _INFIX | {"if", "else", "{"})
    before = scene.span(start, scene.index - 1).text
    rest = scene.span(scene.index, end).text
    kept = scene.span(start, operator).text
    operand = scene.span(operator + 1, scene.index - 1).text
    return PipelineAsOperand(
        span=scene.place,
        operator_at=scene.span(operator, operator),
        operator=scene.lexemes[operator].text,
        whole=f"({before}) {rest}",
        part=f"{kept} ({operand} {rest})",
    )


def _operator_after_pipeline(scene: Scene) -> ArchError | None:
    if scene.found.kind not in _INFIX | {"if"}:
        return None
    start = _value_start(scene)
    if _last_top(scene, start, frozenset(("|>",))) is None:
        return None
    end = _value_end(scene, scene.index, _AROUND_VALUE | {"{"})
    pipeline = scene.span(start, scene.index - 1).text
    return OperatorAfterPipeline(
        span=scene.place,
        operator=scene.found.text,
        reading=f"({pipeline}) {scene.span(scene.index, end).text}",
    )


def _broken_line(scene: Scene) -> ArchError | None:
    joining = _INFIX | {",", ".", "=", "+="}
    if scene.before.kind == END and scene.found.kind in joining:
        return BrokenLine(span=scene.place, where="start", text=scene.found.text)
    if scene.found.kind == END and scene.before.kind in joining | {"|>", "->"}:
        place = scene.span(scene.index - 1, scene.index - 1)
        return BrokenLine(span=place, where="end", text=scene.before.text)
    return None


def _assignment_in_condition(scene: Scene) -> ArchError | None:
    if scene.found.kind != "=":
        return None
    condition = _last_top(scene, scene.first, frozenset(("if", "and", "or", "not")))
    return AssignmentInCondition(span=scene.place) if condition is not None else None


def _comparison_as_assignment(scene: Scene) -> ArchError | None:
    if scene.found.text == "==" and {"=", "+="} <= scene.accepted:
        return ComparisonAsAssignment(span=scene.place)
    return None


# ------------------------------------------------------------------ words

# words of other languages, and what to write here
_FOREIGN_WORDS = {
    "def": "`fn f(x) = ..`, or `block f(hyperparameters)(x[..., d]) -> [..., d] { .. }`",
    "class": "`block` for a layer, `model` for a model",
    "import": "`use std`",
    "from": "`use std`",
    "elif": "`else if`",
    "elsif": "`else if`",
    "for": "`repeat name[i: n] { .. }`",
    "while": "`repeat name[i: n] { .. } until condition`",
    "lambda": "`(x) -> ..`",
    "let": "`x = ..`",
    "var": "`x = ..`",
    "function": "`fn f(x) = ..`",
    "func": "`fn f(x) = ..`",
    "struct": "`model`",
    "pass": "nothing: a body may be empty",
    "param": "`weight w[..]`",
    "parameter": "`weight w[..]`",
}


def _second_for(scene: Scene) -> ArchError | None:
    words = [i for i in range(scene.first, scene.index + 1) if scene.lexemes[i].kind == "for"]
    if len(words) < 2 or scene.index - words[-1] > 1:
        return None
    place = "stands once in a list; for more, lists nest: `[[i * j for j in n] for i in m]`"
    return MisplacedWord(span=scene.span(words[-1], words[-1]), word="for", place=place)


def _foreign_word(scene: Scene) -> ArchError | None:
    for i in (scene.index, scene.index - 1, scene.first):
        word = scene.lexemes[max(i, 0)]
        if word.text in _FOREIGN_WORDS and scene.index - i <= 1 and word.kind in (NAME, "for"):
            return ForeignWord(
                span=scene.span(i, i), word=word.text, instead=_FOREIGN_WORDS[word.text]
            )
    return None


_PLACES = (
    (DEFINING, "stands at the top of a file, outside every body"),
    (_STATEMENTS, "stands in the body of a block, fn or model"),
    (_LINES, "stands in a checkpoint"),
)


def _misplaced_word(scene: Scene) -> ArchError | None:
    """A keyword at the start of a statement, in a place that does not know it."""
    opener = scene.opener
    if opener.kind not in (NAME, "if", "return") or scene.index - scene.first > 1:
        return None
    for words, place in _PLACES:
        unknown = scene.index == scene.first or scene.found.kind in (NAME, STRING)
        if opener.text in words and unknown and opener.text not in scene.accepted:
            return MisplacedWord(
                span=scene.span(scene.first, scene.first), word=opener.text, place=place
            )
    return None


def _reserved_word(scene: Scene) -> ArchError | None:
    if scene.found.kind in RESERVED and NAME in scene.accepted:
        return ReservedWord(span=scene.place, word=scene.found.text)
    starts = scene.index == scene.first + 1 and scene.opener.text in _STATEMENTS | _LINES
    if starts and scene.found.kind in ("=", "+=", "[", "(", ",", "|>", ".", RELATION, OPERATOR):
        return ReservedWord(span=scene.span(scene.first, scene.first), word=scene.opener.text)
    return None


def _misplaced_docstring(scene: Scene) -> ArchError | None:
    return MisplacedDocstring(span=scene.place) if scene.found.kind == DOC else None


# ------------------------------------------------------------------ missing parts


def _result_brackets(scene: Scene) -> ArchError | None:
    if scene.before.kind == "->" and scene.accepted == {"[", "("}:
        return ResultBrackets(span=scene.place, axes=scene.found.text)
    return None


def _misplaced_arrow(scene: Scene) -> ArchError | None:
    return MisplacedArrow(span=scene.place) if scene.found.kind in ("->", LAMBDA) else None


def _missing_body(scene: Scene) -> ArchError | None:
    if "{" not in scene.accepted or scene.found.kind not in (":", END, NAME, "return"):
        return None
    return MissingBody(span=scene.place, opener=scene.opener.text)


def _repeat_head(scene: Scene) -> ArchError | None:
    """`repeat layers {` or `repeat 4 {`."""
    after = scene.index - scene.first
    if scene.opener.text != "repeat" or after not in (1, 2):
        return None
    if after == 1 and scene.found.kind in (NUMBER, "("):
        return RepeatHead(span=scene.place, name="layers")
    if after == 2 and scene.before.kind == NAME and scene.found.kind in ("{", NAME, ":", END):
        return RepeatHead(span=scene.span(scene.index - 1, scene.index - 1), name=scene.before.text)
    return None


def _expression_statement(scene: Scene) -> ArchError | None:
    if scene.index == scene.first:
        alone = "weight" in scene.accepted and scene.found.kind in _OPERAND
    else:
        alone = {"=", "+="} <= scene.accepted and scene.found.kind in _INFIX | _POSTFIX | {END}
    if not alone:
        return None
    end = _value_end(scene, scene.index, frozenset((END,)))
    if any(lexeme.kind in ("=", "+=") for lexeme in scene.lexemes[scene.index : end + 1]):
        return None  # it is given a value, which only a name can be
    text = scene.span(scene.first, min(end, len(scene.lexemes) - 1)).text
    return ExpressionStatement(span=scene.span(scene.first, end), text=text)


Detector = Callable[[Scene], ArchError | None]

DETECTORS: tuple[Detector, ...] = (
    _misplaced_docstring,
    _second_for,
    _foreign_word,
    _pipeline_as_operand,
    _operator_after_pipeline,
    _broken_line,
    _assignment_in_condition,
    _comparison_as_assignment,
    _repeat_head,
    _misplaced_word,
    _reserved_word,
    _result_brackets,
    _misplaced_arrow,
    _missing_body,
    _expression_statement,
)
