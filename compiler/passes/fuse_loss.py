"""max_j z, sum_j exp(z - max_j z), z[j = target] of z = f(dot(x, W)) -> a loop over columns of W.

    m' = max(m, max_j z),   l' = exp(m - m') l + sum_j exp(z - m'),   t' = t + sum_j [j = target] z

for a tile of columns at a time: the logits of a vocabulary are never stored whole, and a tied
matrix is read where it is. Legal when nothing else reads z and f is elementwise; whatever is made
of the three (a log-sum-exp, a cross-entropy, label smoothing by the maximum) stays as it is. A row
without a finite largest entry has nan for its sum, as before. What is picked from an elementwise
expression of z is computed from what is picked of z (`pick-first`), where nothing else reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ...dsl.dims import Dim
from ..ir.graph import AttrValue, Axis, Builder, Function, Node, TensorType
from ..rewrite import Edit, Guard, Pass, Rewrite, Rule, close
from .canonicalize import TIDY
from .chunk_loops import laid_out
from .properties import is_elementwise, is_static, line, parameter_expression, traffic

COLUMNS = 2048  # of a tile: enough for a matrix product, few enough to stay in cache


def picked_sources(edit: Edit, take: Node) -> Iterator[_Pick]:
    """An elementwise source of a take, one of whose operands alone has the columns."""
    source, axis = edit[take.inputs[0]], take.attrs.axis("axis")
    if is_elementwise(source) and take.attrs["fill"] is None:
        wide = [o for o in edit.operands(source) if axis in o.axes]
        if len(wide) == 1 and _from_product(edit, wide[0], axis):
            yield _Pick(take, source, wide[0])


@dataclass(frozen=True, slots=True)
class _Pick:
    """take(source, i), where `wide` is the operand of the source that has the axis."""

    take: Node
    source: Node
    wide: Node


def pick_first(edit: Edit, found: _Pick) -> int:
    index, attrs = found.take.inputs[1], found.take.attrs
    picked = tuple(
        edit.add("take", (i, index), attrs) if i == found.wide.id else i
        for i in found.source.inputs
    )
    return edit.add(found.source.op, picked, found.source.attrs, hint=found.source.hint)


def losses(edit: Edit, most: Node) -> Iterator[_Site]:
    """A maximum over the columns of a product with a weight, and a sum of exponentials."""
    (z,), axes = edit.operands(most), most.attrs.axes("axes")
    if len(axes) == 1 and is_static(edit, axes[0]) and z.type.dtype in ("f32", "f64"):
        site = _Site(edit, most, axes[0], z, _from_product(edit, z, axes[0]))
        if site.wide and site.sums:
            yield site


@dataclass(slots=True)
class _Site:
    """`wide` are the product and what is elementwise below it, down to `z`, in order; `shifted` and
    `raised` are z - max z and its exponential; `sums` and `takes` what is reduced."""

    edit: Edit
    most: Node
    axis: Axis
    z: Node
    wide: list[Node]
    shifted: list[Node] = field(init=False)
    raised: list[Node] = field(init=False)
    sums: list[Node] = field(init=False)
    takes: list[Node] = field(init=False)

    def __post_init__(self) -> None:
        users = self.edit.users
        self.shifted = [
            u for u in users(self.z.id) if u.op == "sub" and u.inputs == (self.z.id, self.most.id)
        ]
        self.raised = [u for n in self.shifted for u in users(n.id) if u.op == "exp"]
        exponentials = [u for n in self.raised for u in users(n.id) if u.op == "sum"]
        self.sums = [u for u in exponentials if u.attrs.axes("axes") == (self.axis,)]
        self.takes = [u for n in self.wide for u in users(n.id) if self._is_pick(n, u)]

    def _is_pick(self, wide: Node, take: Node) -> bool:
        if take.op != "take" or take.inputs[0] != wide.id or take.attrs["fill"] is not None:
            return False
        return take.attrs.axis("axis") == self.axis and self.axis not in take.axes

    @property
    def unstored(self) -> list[Node]:
        """The values that have the columns."""
        return [*self.wide, *self.shifted, *self.raised]

    @property
    def readers(self) -> list[Node]:
        return [*self.unstored, self.most, *self.sums, *self.takes]

    def rewritten(self) -> Rewrite:
        edit, tile = self.edit, _Tile(self)
        body = tile.function()
        kinds = tuple(body[i].type for i in body.output_ids)
        starts = [float("-inf"), *[0.0] * (len(kinds) - 1)]
        states = (self._filled(value, kind) for value, kind in zip(starts, kinds, strict=True))
        operands = (*tile.stepped, *states, *tile.captured)
        attrs: dict[str, AttrValue] = {
            "axis": self.axis, "body": body.name, "chunk": tile.axis, "length": COLUMNS,
            "reverse": False, "states": len(kinds), "stepped": len(tile.stepped),
        }  # fmt: skip
        made = edit.add("chunked_scan", operands, attrs, kinds)
        most, total, *picked = (
            edit.add("result", (made,), {"index": i}, (kind,)) for i, kind in enumerate(kinds)
        )
        one = edit.add("exp", (edit.add("sub", (most, most)),))  # or nan
        values = {self.most.id: most}
        values |= {n.id: edit.add("mul", (total, one)) for n in self.sums}
        values |= {n.id: i for n, i in zip(self.takes, picked, strict=True)}
        before = traffic(edit, [*tile.leaves, self.z.id, self.z.id], [self.z.id])
        note = f"{COLUMNS} columns of {line(self.wide[0])} at a time"
        after = traffic(edit, tile.leaves, [most, total, *picked])
        return Rewrite(values, note, before, after, (body,))

    def _filled(self, value: float, kind: TensorType) -> int:
        made = self.edit.add("const", (), {"dtype": kind.dtype, "value": value})
        return self.edit.add("broadcast", (made,), {"axes": kind.axes})


@dataclass(slots=True)
class _Tile:
    """What runs on a tile of columns. `stepped` and `captured` are the function's values that it
    reads, in the order of its inputs."""

    site: _Site
    axis: Axis = field(init=False)
    builder: Builder = field(init=False)
    leaves: tuple[int, ...] = ()
    stepped: dict[int, int] = field(default_factory=dict)  # value of the function: input
    captured: dict[int, int] = field(default_factory=dict)
    inside: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        edit = self.site.edit
        name = edit.axis(f"{self.site.axis.name}.tile", Dim()).name
        self.axis = Axis(name, Dim.symbol(name))
        self.builder = Builder(edit.name("loss"))

    def function(self) -> Function:
        site, add = self.site, self.builder.add
        region = close(site.edit, [n.id for n in site.wide], [site.z.id])
        self.leaves = region.leaves
        all_columns = site.edit.add("index", (), {"axis": site.axis})
        columns = self._input(all_columns)
        for node in (site.edit[i] for i in region.nodes):
            inputs = tuple(self._seen(i) for i in node.inputs)
            is_column = node.op == "index" and node.attrs.axis("axis") == site.axis
            self.inside[node.id] = (
                columns if is_column else add(node.op, inputs, node.attrs, None, node.origins)
            )
        states = self._states()
        outputs = self._online(states[0], states[1])
        outputs += [
            self._picked(take, self._wanted(take, all_columns), columns, state)
            for take, state in zip(site.takes, states[2:], strict=True)
        ]
        kinds = [self.builder[i].type for i in states]
        named = [
            (name, laid_out(self.builder, value, kind))
            for name, value, kind in zip(self._names(), outputs, kinds, strict=True)
        ]
        inputs = (*self.stepped.values(), *states, *self.captured.values())
        return replace(self.builder.finish(named), inputs=inputs)

    def _names(self) -> list[str]:
        return ["most", "total", *(f"picked{i}" for i in range(len(self.site.takes)))]

    def _states(self) -> list[int]:
        rows = self.site.most.type
        kinds = [rows, rows, *(take.type for take in self.site.takes)]
        return [
            self.builder.add("input", (), {"name": name}, (kind,), (), name)
            for name, kind in zip(self._names(), kinds, strict=True)
        ]

    def _seen(self, value: int) -> int:
        return self.inside[value] if value in self.inside else self._input(value)

    def _input(self, value: int) -> int:
        """A value of the function as the tile sees it."""
        node, axis = self.site.edit[value], self.site.axis
        inputs = self.stepped if axis in node.axes else self.captured
        if value not in inputs:
            axes = tuple(self.axis if a == axis else a for a in node.axes)
            kind = TensorType(node.type.dtype, axes)
            attrs = {"name": f"{node.hint or 'x'}{len(self.stepped) + len(self.captured)}"}
            inputs[value] = self.builder.add("input", (), attrs, (kind,), node.origins, node.hint)
        return inputs[value]

    def _online(self, most: int, total: int) -> list[int]:
        """The new maximum and sum; exponents are of finite numbers until a row has a finite entry."""
        add, z = self.builder.add, self.inside[self.site.z.id]
        new = add("max", (most, add("amax", (z,), {"axes": (self.axis,)})))
        none = add("const", (), {"dtype": self.builder[new].type.dtype, "value": float("-inf")})
        zero = add("const", (), {"dtype": self.builder[new].type.dtype, "value": 0.0})
        shift = add("where", (add("eq", (new, none)), zero, new))
        decay = add("exp", (add("sub", (most, shift)),))
        raised = add("exp", (add("sub", (z, shift)),))
        here = add("sum", (raised,), {"axes": (self.axis,)})
        return [new, add("add", (add("mul", (total, decay)), here))]

    def _wanted(self, take: Node, all_columns: int) -> int:
        """The columns that are picked: one that is not there stays an error."""
        return self._input(self.site.edit.add("take", (all_columns, take.inputs[1]), take.attrs))

    def _picked(self, take: Node, wanted: int, columns: int, state: int) -> int:
        """What was picked, once its column has come."""
        add, wide = self.builder.add, self.inside[take.inputs[0]]
        chosen = add("eq", (columns, wanted))
        zero = add("const", (), {"dtype": self.builder[wide].type.dtype, "value": 0.0})
        here = add("sum", (add("where", (chosen, wide, zero)),), {"axes": (self.axis,)})
        return add("add", (state, here))


def _from_product(edit: Edit, z: Node, axis: Axis) -> list[Node]:
    """z and what is elementwise above it, up to one product with a weight that has the columns."""
    found: dict[int, Node] = {}
    todo = [z]
    while todo:
        node = todo.pop()
        if node.id in found:
            continue
        found[node.id] = node
        if is_elementwise(node):
            todo += [o for o in edit.operands(node) if _is_computed(edit, o, axis)]
        elif node.op != "dot":
            return []
    wide = [found[i] for i in edit.order() if i in found]
    products = [n for n in wide if n.op == "dot"]
    return wide if len(products) == 1 and _is_head(edit, products[0], axis) else []


def _is_computed(edit: Edit, node: Node, axis: Axis) -> bool:
    return axis in node.axes and parameter_expression(edit, node.id) is None and node.op != "index"


def _is_head(edit: Edit, product: Node, axis: Axis) -> bool:
    a, b = edit.operands(product)
    weights = [o for o in (a, b) if parameter_expression(edit, o.id) is not None]
    return len(weights) == 1 and axis in weights[0].axes and not (axis in a.axes and axis in b.axes)


def rewritten(edit: Edit, site: _Site) -> Rewrite:
    return site.rewritten()


def _is_short(edit: Edit, site: _Site) -> bool:
    return site.axis.size.evaluate(edit.program.sizes) <= COLUMNS


def _is_output(edit: Edit, site: _Site) -> str:
    wanted = any(edit.is_output(n.id) for n in site.unstored)
    return "the logits are an output, so they are stored anyway" if wanted else ""


def _is_read(edit: Edit, site: _Site) -> str:
    known = {n.id for n in site.readers}
    others = (u for n in site.unstored for u in edit.users(n.id) if u.id not in known)
    other = next(others, None)
    return f"{line(other)} reads the logits too, so they are stored anyway" if other else ""


def _is_stored(edit: Edit, found: _Pick) -> bool:
    return not edit.used_once(found.source.id)


LOSS_GUARDS = (
    Guard("long", "there are more columns than a tile has", _is_short),
    Guard("no-output", "z is no output", _is_output),
    Guard("read-here", "nothing else reads z", _is_read),
)

FUSE_LOSS = Pass(
    "fuse-loss",
    "reductions of f(x W) over the columns of W, tile by tile",
    (
        Rule(
            "pick-first",
            pick_first,
            ("take",),
            picked_sources,
            (Guard("read-once", "nothing else reads f(z, a)", _is_stored),),
            "take(f(z, a), i) = f(take(z, i), a)",
        ),
        Rule(
            "loss",
            rewritten,
            ("amax",),
            losses,
            LOSS_GUARDS,
            "max_j z, sum_j exp(z - max_j z), z[i] = a loop over tiles of j, z = f(dot(x, W))",
        ),
        *TIDY,
    ),
)
