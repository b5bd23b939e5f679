"""What may finish a product in registers, where its sums are: f(dot(x, W)).

f is elementwise ops on the product or on pieces of it: slices (the two halves of a gate, or of
what turns by pairs), taken apart and joined again. Legal when nothing else reads what lies
between, nothing that f reads waits for the product, and no element of the product is computed
twice: the pieces that f reads have no more elements than the product.

A packed product is stored whole, to be read by slices, or each of its results where it is wanted
(turned queries and keys, plain values), a grid of columns for each. The second moves fewer bytes
where what is computed would have had a kernel of its own: one that stores what no elementwise op
reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ...dsl.dims import Dim
from ..ir.graph import Node, elements
from ..rewrite import Edit, Guard, is_free, refusal
from .fuse_pointwise import may_join
from .properties import VIEWS, is_elementwise, is_static, parameter_expression

# Views of a product: which of its elements a lane of f reads.
FINISHING = frozenset({"split", "merge", "transpose", "broadcast"})  # none is left out
PIECES = FINISHING | {"slice", "pick"}

MOST_PIECES = 4  # of a join: each is an accumulator of the kernel

Pieces = dict[tuple[object, ...], Dim]  # views from the product down -> elements


def epilogue(edit: Edit, product: Node, joins: tuple[Guard, ...]) -> set[int]:
    """The largest region below the product that ends in one value, stored narrow, or in one for
    each piece of it."""
    grown = Growth(edit, product)
    best = {product.id}
    while grown.step(joins):
        ends = results(edit, grown.region)
        if len(ends) == 1 and grown.may_end(edit[ends[0]]) and grown.computes_once(ends):
            best = set(grown.region)
    ends = results(edit, grown.region)
    if len(ends) > 1 and grown.computes_once(ends) and grown.saves(ends):
        return grown.region
    return best


def results(edit: Edit, region: set[int]) -> list[int]:
    """The values of the region that someone outside reads."""

    def escapes(node_id: int) -> bool:
        readers = edit.users(node_id)
        return edit.is_output(node_id) or any(u.id not in region for u in readers)

    return [i for i in sorted(region) if escapes(i)]


@dataclass(slots=True)
class Growth:
    """A region under way, with the pieces of the product that each of its values computes with."""

    edit: Edit
    product: Node
    region: set[int] = field(default_factory=set)
    pieces: dict[int, Pieces] = field(default_factory=dict)
    joined: dict[int, int] = field(default_factory=dict)  # equal pieces that a value consists of

    def __post_init__(self) -> None:
        self.region = {self.product.id}
        self.pieces = {self.product.id: {(): elements(self.product.axes)}}

    def step(self, joins: tuple[Guard, ...]) -> bool:
        """One reader more; False where none may join."""
        for node_id in sorted(self.region):
            for user in self.edit.users(node_id):
                if user.id not in self.region and self._admits(user, joins):
                    self.pieces[user.id] = self._pieces(user)
                    self.joined[user.id] = self.count(user)
                    self.region.add(user.id)
                    return True
        return False

    def _admits(self, user: Node, joins: tuple[Guard, ...]) -> bool:
        known = user.op == "concat" or user.op in PIECES or is_elementwise(user)
        return known and not refusal(joins, self.edit, Reader(self, user))

    def count(self, user: Node) -> int:
        """Of how many equal pieces a value consists: one lane of a kernel computes all of them."""
        most = max(self.joined.get(i, 1) for i in user.inputs)
        if user.op != "concat":
            return most
        axes, sizes = user.attrs.axes("parts"), self.edit.program.sizes
        if not all(is_static(self.edit, axis) for axis in axes):
            return MOST_PIECES + 1
        parts = [axis.size.evaluate(sizes) for axis in axes]
        return most * sum(parts) // math.gcd(*parts)

    def _pieces(self, user: Node) -> Pieces:
        inside = [self.pieces[i] for i in user.inputs if i in self.region]
        if user.op not in PIECES:
            return {piece: count for pieces in inside for piece, count in pieces.items()}
        view, cuts = (user.op, user.attrs), user.op not in FINISHING
        return {
            (*piece, view): elements(user.axes) if cuts else count
            for piece, count in inside[0].items()
        }

    def may_end(self, node: Node) -> bool:
        """Whether a value is one to store: computed, or joined and laid out, but not raised."""
        if node.op not in PIECES:
            return not is_free(self.edit, node)
        while node.op in FINISHING:
            (node,) = self.edit.operands(node)
        return node.op == "concat"

    def computes_once(self, ends: list[int]) -> bool:
        """Whether the pieces that the results are computed from, each apart, make up one product."""
        used = (count for end in ends for count in self.pieces[end].values())
        return self._at_least(elements(self.product.axes), sum(used, Dim()))

    def saves(self, ends: list[int]) -> bool:
        """Whether reading what is multiplied for each end costs less than a kernel for what is
        computed after the product."""
        own = [self.pieces[i] for i in ends if self._has_own_kernel(i)]
        moved = sum((count for pieces in own for count in pieces.values()), Dim())
        again = (elements(o.axes) * (len(ends) - 1) for o in self._computed_operands())
        return bool(own) and self._at_least(moved * 2, sum(again, Dim()))

    def _computed_operands(self) -> list[Node]:
        operands = self.edit.operands(self.product)
        return [o for o in operands if parameter_expression(self.edit, o.id) is None]

    def _has_own_kernel(self, end: int) -> bool:
        """Whether a value is computed from a piece, and read by what no region takes in."""
        node = self.edit[end]
        while node.op in PIECES:
            (node,) = self.edit.operands(node)
        return () not in self.pieces[node.id] and self._is_read_whole(end)

    def _is_read_whole(self, node_id: int) -> bool:
        if self.edit.is_output(node_id):
            return True
        readers = [u for u in self.edit.users(node_id) if u.id not in self.region]
        return any(self._is_read_whole(u.id) if u.op in VIEWS else not may_join(u) for u in readers)

    def _at_least(self, a: Dim, b: Dim) -> bool:
        """Whether a >= b at any run-time size."""
        left = (a - b).substitute(self.edit.program.sizes)
        return all(coefficient >= 0 for _, coefficient in left.terms)


@dataclass(frozen=True, slots=True)
class Reader:
    """What may join a region: a join, a view or an elementwise op."""

    region: Growth
    node: Node

    @property
    def outside(self) -> list[int]:
        return [i for i in self.node.inputs if i not in self.region.region]


def _joins_others(edit: Edit, found: Reader) -> bool:
    return found.node.op == "concat" and bool(found.outside)


def _joins_many(edit: Edit, found: Reader) -> bool:
    return found.node.op == "concat" and found.region.count(found.node) > MOST_PIECES


def _repeats(edit: Edit, found: Reader) -> bool:
    new = found.node.attrs.axes("axes") if found.node.op == "broadcast" else ()
    return any(axis.size != Dim.of(1) for axis in new)


def _widens(edit: Edit, found: Reader) -> bool:
    node = found.node
    inside = (edit[i] for i in node.inputs if i in found.region.region)
    return is_elementwise(node) and any(set(o.axes) != set(node.axes) for o in inside)


def _waits(edit: Edit, found: Reader) -> bool:
    product = found.region.product.id
    return is_elementwise(found.node) and edit.reaches([product], found.outside)


JOINS = (
    Guard("own-parts", "a join has parts of the product alone", _joins_others),
    Guard("few-parts", f"a lane computes at most {MOST_PIECES} equal parts", _joins_many),
    Guard("no-repeat", "no view repeats an element", _repeats),
    Guard("one-shape", "an elementwise op is as large as what it reads of the product", _widens),
    Guard("no-detour", "nothing it reads waits for the product", _waits),
)
