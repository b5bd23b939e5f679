"""Numbers and forms as people read them: `6.74 G`, `2.62 M·b·s²`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from ..compiler.ir.graph import TensorType
from ..dsl.dims import Atom, Dim

UNITS = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
POWERS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def short(number: float) -> str:
    """Three digits and a unit: `1.31 M`."""
    for unit, scale in UNITS:
        if abs(number) >= scale * 0.9995:
            return f"{_digits(number / scale)} {unit}"
    return str(round(number)) if number == round(number) else _digits(number)


def _digits(number: float) -> str:
    return f"{number:.{2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0}f}"


def form(size: Dim, at: Mapping[str, int] | None = None) -> str:
    """A form in few letters; the number that it comes to where all its sizes are known."""
    bound = size.substitute(at) if at else size
    if bound.constant is not None:
        return short(bound.constant)
    terms = sorted(bound.terms, key=lambda term: (-len(term[0]), term))
    text = ""
    for monomial, coefficient in terms:
        sign = "-" if coefficient < 0 else "+"
        body = _term(Counter(monomial), abs(coefficient))
        text = f"{text} {sign} {body}" if text else body if sign == "+" else f"-{body}"
    return text


def _term(factors: Mapping[Atom, int], coefficient: int) -> str:
    words = [
        f"{f'({atom})' if atom.name == 'floordiv' else atom}{str(n).translate(POWERS) if n > 1 else ''}"
        for atom, n in factors.items()
    ]
    if coefficient == 1 and words:
        return "·".join(words)
    return "·".join([short(coefficient), *words])


def shape(kind: TensorType, dtype: bool = False) -> str:
    """`[b, s, d]`, with its dtype where that is asked for."""
    axes = f"[{', '.join(axis.name for axis in kind.axes)}]"
    return f"{kind.dtype}{axes}" if dtype else axes


def percent(part: float, whole: float) -> str:
    """A share of a whole; nothing where there is none."""
    if not whole or not part:
        return ""
    share = 100 * part / whole
    return f"{share:.0f} %" if share >= 9.95 else f"{share:.1f} %" if share >= 0.05 else "< 0.1 %"
