"""Mistakes in the text itself, before it means anything."""

from __future__ import annotations

import unicodedata

from ..diagnostics import ArchError
from ..span import Span


class SyntaxMistake(ArchError, id="syntax"):
    found: str
    expected: str
    title = "unexpected {found}"
    labels = {"span": "expected {expected}"}


class NestedTooDeep(ArchError, id="nested-too-deep"):
    limit: int
    title = "this is nested more than {limit} levels deep"
    labels = {"span": "level {limit} is passed here"}
    help = "give inner parts names of their own"


class NameTooLong(ArchError, id="name-too-long"):
    length: int
    limit: int
    title = "this name has {length:,} characters, more than {limit}"
    labels = {"span": "a name"}
    help = "files and kernels are called by it: choose a shorter one"


class StrayCharacter(ArchError, id="stray-character"):
    character: str
    title = "`{character}` has no meaning here"
    labels = {"span": "not part of the language"}

    def help_text(self) -> str:
        name = unicodedata.name(self.character, "")
        plain = self.character.isascii() and self.character.isprintable()
        return "" if plain else f"this is U+{ord(self.character):04X} {name}".rstrip()


class SingleQuotes(ArchError, id="single-quotes"):
    content: str
    title = "strings stand in double quotes"
    labels = {"span": 'write "{content}"'}


class ForeignOperator(ArchError, id="foreign-operator"):
    written: str
    instead: str
    title = "there is no operator `{written}`"
    labels = {"span": "write {instead}"}


class UnclosedString(ArchError, id="unclosed-string"):
    quotes: str
    title = "this string is never closed"
    labels = {"span": "no closing `{quotes}` follows"}


class UnclosedBracket(ArchError, id="unclosed-bracket"):
    bracket: str
    closing: str
    found: str = ""
    found_at: Span | None = None
    title = "`{bracket}` is never closed"
    labels = {"span": "no `{closing}` follows", "found_at": "`{found}` comes first"}


class UnopenedBracket(ArchError, id="unopened-bracket"):
    bracket: str
    title = "`{bracket}` closes nothing"
    labels = {"span": "no bracket is open that this could close"}


class NumberTooLarge(ArchError, id="number-too-large"):
    whole: bool
    title = "this number is too large"
    labels = {"span": "integers end at 2 ** 63 - 1, others near 1.8e308"}

    def help_text(self) -> str:
        return "" if self.whole else "an infinite mask value is written `-inf`"


class ChainedComparison(ArchError, id="chained-comparison"):
    left: str
    right: str
    first: Span | None = None
    title = "comparisons do not chain"
    labels = {"span": "a second comparison", "first": "the first one"}
    help = "write `{left} and {right}`"


class WrongParameter(ArchError, id="wrong-parameter"):
    what: str
    where: str
    advice: str
    title = "{what} cannot stand {where}"
    labels = {"span": "{what}"}
    help = "{advice}"


class SourceUnreadable(ArchError, id="source-unreadable"):
    path: str
    reason: str
    title = "cannot read {path}: {reason}"


class PipelineAsOperand(ArchError, id="pipeline-as-operand"):
    operator: str
    whole: str
    part: str
    operator_at: Span | None = None
    title = "a pipeline behind `{operator}` needs parentheses"
    labels = {"span": "what flows in here?", "operator_at": "all of this, or what follows it"}
    help = "write `{part}`\nor    `{whole}`"


class OperatorAfterPipeline(ArchError, id="operator-after-pipeline"):
    operator: str
    reading: str
    title = "a pipeline before `{operator}` needs parentheses"
    labels = {"span": "the pipeline ends here"}
    help = "write `{reading}`"


class BrokenLine(ArchError, id="broken-line"):
    where: str
    text: str
    title = "a line cannot {where} with `{text}`"
    labels = {"span": "the statement {where}s here"}
    help = (
        "inside `(` or `[` an expression may take several lines; "
        "a line that starts with `|>` continues"
    )


class AssignmentInCondition(ArchError, id="assignment-in-condition"):
    title = "`=` sets a value; a condition compares with `==`"
    labels = {"span": "write `==`"}


class ComparisonAsAssignment(ArchError, id="comparison-as-assignment"):
    title = "`==` compares; a statement sets a value with `=`"
    labels = {"span": "write `=`"}


class ForeignWord(ArchError, id="foreign-word"):
    word: str
    instead: str
    title = "`{word}` is not a word of this language"
    labels = {"span": "write {instead}"}


class MisplacedWord(ArchError, id="misplaced-word"):
    word: str
    place: str
    title = "`{word}` cannot stand here"
    labels = {"span": "`{word}` {place}"}


class ReservedWord(ArchError, id="reserved-word"):
    word: str
    title = "`{word}` is a word of the language, not a name"
    labels = {"span": "choose another name"}


class MisplacedDocstring(ArchError, id="misplaced-docstring"):
    title = "a docstring comes first in a file or in the body of a model, block or fn"
    labels = {"span": "something stands before this one"}
    help = "anywhere else, write a comment: `# ..`"


class ResultBrackets(ArchError, id="result-brackets"):
    axes: str
    title = "result axes stand in brackets"
    labels = {"span": "write `[..., {axes}]`"}
    help = "one list for each result: `-> [b, s, d]`, `-> ([b, s], [b])`"


class MisplacedArrow(ArchError, id="misplaced-arrow"):
    title = "`->` cannot stand here"
    labels = {"span": "not a lambda, a relabelling or a result"}
    help = (
        "a lambda has its inputs in parentheses: `(x) -> ..`; behind `|>` all of it stands in parentheses\n"
        "a relabelling has an axis, or axes in parentheses, on both sides: `x[(g, r) -> h]`"
    )


class MissingBody(ArchError, id="missing-body"):
    opener: str
    title = "the body of this `{opener}` is missing"
    labels = {"span": "expected `{{`"}
    help = "a body stands in braces: `{opener} .. {{ .. }}`"


class RepeatHead(ArchError, id="repeat-head"):
    name: str
    title = "a `repeat` has a name and an index"
    labels = {"span": "expected `{name}[i: count]`"}
    help = (
        "write `repeat {name}[i: count] {{ .. }}`;"
        " `repeat {name}[i] {{ .. }}` runs as often as `{name}` says"
    )


class ExpressionStatement(ArchError, id="expression-statement"):
    text: str
    title = "an expression alone does nothing"
    labels = {"span": "its value is lost"}
    help = "name it, `y = {text}`, or `return` it"
