"""Loops over the elements of a value, which the threads share, and when they wait for each other.

All threads run all of a function. Of a loop each takes its part; before one that reads what an
earlier one has written, they wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ....compiler.ir.graph import Axis, Node, elements
from .elements import Block, Elements, Env
from .frame import ONE, ZERO
from .places import Place

ONLY = Axis("", ONE)  # of a loop whose body has the last axis itself


@dataclass(slots=True)
class Writer(Elements):
    """Writes loops. `dirty` are the pointers written since the threads last waited."""

    blocks: list[str] = field(default_factory=list)
    dirty: set[str] = field(default_factory=set)

    def each(
        self, axes: tuple[Axis, ...], body: Callable[[Block, Env], None], written: str
    ) -> None:
        """All elements along `axes`, shared among the threads: the flat range, cut anywhere."""
        *outer, inner = axes or (ONLY,)
        total, length = self.length(elements(axes)), self.length(inner.size)
        block, env = Block(3), {}
        row, index = self.fresh("row"), self.fresh("i")
        lines = [
            f"  if (const Part part = run.part({total}); part.begin < part.end) {{",
            f"    for (int64_t {row} = part.begin / {length}; {row} * {length} < part.end; {row}++) {{",
        ]
        rest = row
        for axis in reversed(outer):
            name, size = self.fresh("i"), self.length(axis.size)
            whole = axis == outer[0]
            lines.append(f"      const int64_t {name} = {rest}{'' if whole else f' % {size}'};")
            rest, env[axis] = f"({rest} / {size})", name
        bounds = (
            f"std::max(part.begin - {row} * {length}, int64_t(0))",
            f"std::min(part.end - {row} * {length}, int64_t({length}))",
        )
        lines.append(f"      const int64_t first = {bounds[0]}, last = {bounds[1]};")
        lines.append("#pragma GCC ivdep")
        lines.append(f"      for (int64_t {index} = first; {index} < last; {index}++) {{")
        env[inner] = index
        block.indent = 4
        body(block, env)
        self.stage([*lines, *block.lines, "      }", "    }", "  }"], written)

    def nest(
        self,
        block: Block,
        axes: Sequence[Axis],
        env: Env,
        body: Callable[[Block, Env], None],
        *,
        summed: bool = False,
        last: str = "",
    ) -> None:
        """Loops of one thread, the last axis inside."""
        if not axes:
            inner = block.inner(0)
            body(inner, env)
            block.lines += inner.lines
            return
        axis, *others = axes
        index = last if last and not others else self.fresh("i")
        if not others:
            block.lines.append(
                "#pragma omp simd reduction(+:total)" if summed else "#pragma GCC ivdep"
            )
        block.line(f"for (int64_t {index} = 0; {index} < {self.length(axis.size)}; {index}++) {{")
        inner = block.inner()
        self.nest(inner, others, {**env, axis: index}, body, summed=summed, last=last)
        block.lines += inner.lines
        block.line("}")

    def stage(self, lines: Iterable[str], written: str) -> None:
        if self.reads & self.dirty:
            self.wait()
        self.reads = set()
        self.dirty.add(written)
        self.blocks += lines

    def wait(self) -> None:
        self.blocks.append("  run.wait();")
        self.dirty = set()

    def put(self, block: Block, place: Place, env: Env, value: str) -> None:
        block.line(f"store({value}, {place.pointer} + {self.address(place, env)});")

    def copy(self, node: Node, pointer: str, ctype: str) -> None:
        there = Place(pointer, ctype, self.dense(node.axes))
        self.each(
            node.axes,
            lambda b, env: self.put(b, there, env, self.element(b, node.id, env)),
            pointer,
        )

    def copy_to(self, node_id: int, there: Place) -> None:
        axes = tuple(there.strides)
        self.each(
            axes,
            lambda b, env: self.put(b, there, env, self.element(b, node_id, env)),
            there.pointer,
        )

    def plain(self, node_id: int) -> str:
        """A pointer to a value as its type has it."""
        node = self.function[node_id]
        place = self.place(node_id)
        dense = place is not None and place.offset == ZERO and place.ctype == self.type(node.type)
        if place is not None and dense and node.axes and self.is_dense(place, node.axes):
            return place.pointer
        made = self.buffer(self.type(node.type), node.axes)
        self.copy_to(node_id, made)
        return made.pointer if node.axes else f"*{made.pointer}"
