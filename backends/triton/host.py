"""`model.py`, the host side: one class per function, allocating results and launching kernels.

The generated module imports torch, triton and the generated kernels only. `Plan` is what it was
made from: the kernels, each once however often it is launched, and the constants that the model
reads.
"""

from __future__ import annotations

import keyword
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, count
from types import MappingProxyType

from ...compiler.ir.graph import STATE, Axis, Function, Node, Program, TensorType, callees
from ...compiler.ops import SCANS
from ...dsl.dims import Dim
from ...dsl.errors import NoLowering
from ..numpy.prepared import symbols
from .begun import Begun, begun
from .beside import beside
from .evaluate import refuse
from .grouped import in_tiles
from .header import header, places, scan_header
from .indexing import identifier
from .kernel import Kernel, build, build_begun, build_part
from .lifetimes import released
from .regions import FREE, HOST, Region, region_of, value_name, view_region, with_room
from .scan_kernel import build_scan
from .space import alike, only
from .split import LOG_TOTAL, PARTIAL, PARTS, Split, reduced_length, split
from .steps import scan_of
from .whole import check_values

ALIASES = frozenset({"rename", "stop_gradient"})  # the same array under other axes


@dataclass(slots=True)
class Plan:
    """Kernels by name and class sources, in order of definition; whether reductions are cut, and
    whether products begin them."""

    program: Program
    traced: bool = False
    kernels: dict[str, Kernel] = field(default_factory=dict)
    classes: dict[str, list[str]] = field(default_factory=dict)
    _scans: dict[tuple[str, int], tuple[Region, Kernel] | str] = field(default_factory=dict)
    cuts: bool = False
    begins: bool = False
    _known: dict[tuple[object, ...], str] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)

    def size(self, dim: Dim) -> str:
        """A size as a Python expression over the arguments `n_...`."""
        bound = dim.substitute(self.program.sizes)
        return str(bound.substitute({s: Dim.symbol(size_name(s)) for s in bound.symbols()}))

    @property
    def symbols(self) -> list[str]:
        """The run-time sizes, in the order in which every class takes them."""
        return sorted({s for n in self.program.main.nodes for s in symbols(self.program, n)})

    def scan(self, function: Function, node: Node) -> tuple[Region, Kernel] | str:
        """The region and kernel of a whole scan, or what keeps its steps out of one kernel."""
        key = function.name, node.id
        if key not in self._scans:
            scan = scan_of(self.program, function, node)
            try:
                made = build_scan(scan, kernel_name(function, node))
            except NoLowering as refused:
                self._scans[key] = str(refused.facts["op"])
            else:
                kernel = self.kernel(scan.region, made, scan_header(scan))
                self._scans[key] = scan.region, kernel
        return self._scans[key]

    def kernel(self, region: Region, made: Kernel, about: tuple[str, ...] | None = None) -> Kernel:
        """The kernel made of a region: an equal one that is there already, or this one; `about` are
        the lines above it where they are not those of the region."""
        if made.identity in self._known:
            known = self._known[made.identity]
            origins = places(region.origins)
            merged = tuple(dict.fromkeys((*self.kernels[known].header, *origins)))
            self.kernels[known] = replace(self.kernels[known], header=merged)
            return replace(made, name=known)
        numbered = (f"{made.name}_{i}" for i in count(2))
        named = (replace(made, name=name) for name in chain([made.name], numbered))
        kernel = next(k for k in named if self._names.isdisjoint(k.functions))
        self._names.update(kernel.functions)
        self.kernels[kernel.name] = replace(kernel, header=about or header(region))
        self._known[made.identity] = kernel.name
        return self.kernels[kernel.name]


def size_name(symbol: str) -> str:
    return f"n_{identifier(symbol)}"


def class_name(function: Function) -> str:
    parts = identifier(function.name).split("_")
    name = "".join(p[:1].upper() + p[1:] for p in parts)
    return f"{name}_" if keyword.iskeyword(name) or name in CLASSES else name


def plan(program: Program, *, traced: bool = False) -> Plan:
    """All kernels and classes of a program. Raises NoLowering."""
    program = in_tiles(program, traced=traced)
    check_values(program)
    made = Plan(program, traced)
    seen: set[str] = set()
    for function in _callees_first(made, program.main, seen):
        made.classes[function.name] = _Class(made, function).source()
    return made


def continues(program: Program) -> bool:
    """Whether a run is given the states that another one left."""
    return any(function.states for function in program.functions)


def _is_step(program: Program, function: Function) -> bool:
    """Whether a function is the step or the chunk of a scan."""
    nodes = (node for other in program.functions for node in other.nodes)
    return any(n.op in SCANS and n.attrs["body"] == function.name for n in nodes)


def _callees_first(made: Plan, function: Function, seen: set[str]) -> Iterator[Function]:
    if function.name in seen:
        return
    seen.add(function.name)
    for node in function.nodes:
        calls = node.op in SCANS and isinstance(made.scan(function, node), str)
        if node.op == "repeat" or calls:
            for name in callees(node):
                yield from _callees_first(made, made.program.function(name), seen)
    yield function


@dataclass(slots=True)
class _Class:
    """Writes the class of one function."""

    plan: Plan
    function: Function
    made: list[str] = field(default_factory=list)  # __init__
    lines: list[str] = field(default_factory=list)  # forward
    names: Counter[str] = field(default_factory=Counter)
    values: dict[int, str] = field(default_factory=dict)
    results: dict[int, list[str]] = field(default_factory=dict)
    traced: bool = field(init=False)
    begun: dict[int, Begun] = field(default_factory=dict)  # by the product
    partial: dict[int, str] = field(default_factory=dict)  # arrays begun, by what goes on from them

    def __post_init__(self) -> None:
        """The values of a scan's steps have no call path of their own: they are not kept."""
        self.traced = self.plan.traced and not _is_step(self.plan.program, self.function)
        if not continues(self.plan.program):
            self.begun = begun(self.plan.program, self.function)

    def source(self) -> list[str]:
        function = self.function
        inputs = [self.bind(function[i], f"{value_name(function[i])}") for i in function.inputs]
        for node in function.nodes:
            self._node(node)
        outputs = [self.array(i) for i in returned(function)]
        for path, i in function.left:
            self.lines.append(f'run.leave(self.path, "{path}", {self.array(i)})')
        sizes = [size_name(s) for s in self.plan.symbols]
        signature = ", ".join(["self", *sizes, *inputs])
        last = f"return {', '.join(outputs) or '()'}{',' if len(outputs) == 1 else ''}"
        body = released([*self.lines, last])
        return [
            f"class {class_name(function)}:",
            f'    """{self._doc()}"""',
            "",
            "    def __init__(self, run, weights, prefix):",
            '        self.run, self.path = run, prefix.removesuffix(".")',
            *("        " + line for line in self.made),
            "",
            f"    def forward({signature}):",
            "        run = self.run",
            *("        " + line for line in body),
        ]

    def _doc(self) -> str:
        inputs = ", ".join(
            f"{i.type}" for i in map(self.function.__getitem__, self.function.inputs)
        )
        outputs = ", ".join(str(self.function[i].type) for i in returned(self.function))
        return f"`{self.function.name}`: {inputs} -> {outputs}."

    def bind(self, node: Node, wanted: str) -> str:
        """A fresh local name for the value of a node."""
        name = self.fresh(wanted)
        self.values[node.id] = name
        return name

    def fresh(self, wanted: str) -> str:
        reserved = keyword.iskeyword(wanted) or wanted in RESERVED or wanted.startswith("n_")
        base = f"{wanted}_" if reserved else wanted
        self.names[base] += 1
        return base if self.names[base] == 1 else f"{base}_{self.names[base]}"

    # ------------------------------------------------------------------------------------ nodes

    def _node(self, node: Node) -> None:
        if node.op in CALLS:
            CALLS[node.op](self, node)
        elif node.op in FREE:
            if self.traced:
                self.array(node.id)
        elif node.op not in HOST:
            goes_on = (b.join for b in self.begun.values() if b.follower == node.id)
            region = next(goes_on, None) or region_of(self.plan.program, self.function, node)
            self._region(node, region)
        if self.traced and node.id in self.values and node.op not in CONSTANTS:
            self.lines.append(f"run.keep(self.path, {node.id}, {self.values[node.id]})")

    def _result(self, node: Node) -> None:
        """One of several results; one that is loaded is bound where it is read."""
        if not self._is_loaded(node):
            self.values[node.id] = self.results[node.inputs[0]][node.attrs.integer("index")]

    def _is_loaded(self, node: Node) -> bool:
        """Whether the host has the value before a run: a constant, or one result of it."""
        source = self.function[node.inputs[0]] if node.op == "result" else node
        return source.op in CONSTANTS

    def _constant(self, node: Node) -> None:
        """An attribute for a constant that some kernel reads: some only make derived ones."""
        sizes = {s for axis in node.axes for s in axis.size.symbols()}
        if not sizes <= self.plan.program.sizes.keys():
            raise refuse(node, f"{node.op} of a run-time size")
        name = self.fresh(value_name(node))
        self.values[node.id] = f"self.{name}"
        key = constant_key(node)
        path = f'"{key}"' if node.op == "table" else f'f"{{prefix}}{key}"'
        self.made.append(f"self.{name} = weights[{path}]")

    def array(self, node_id: int) -> str:
        """The value as an array in memory: views that kernels only address are written out."""
        if node_id not in self.values:
            node = self.function[node_id]
            if self._is_loaded(node):
                self._constant(node)
            elif node.op == "state":
                self._state(node)
            elif node.op in ALIASES:
                self.values[node_id] = self.array(node.inputs[0])
            else:
                self._region(node, view_region(self.plan.program, self.function, node))
        return self.values[node_id]

    def _region(self, node: Node, region: Region) -> None:
        """Allocates the results of a region and launches its kernels."""
        names: dict[int, str] = {}
        for index, output in enumerate(region.outputs):
            hint = value_name(region.nodes[output] if index or not node.hint else node)
            names[output] = self._allocated(hint, region.nodes[output].type)
        self.results[node.id] = [names[o] for o in region.outputs]
        self.values[node.id] = names[region.outputs[0]]
        if node.id in self.begun:
            self._launch_begun(node, self.begun[node.id])
            return
        groups = alike(region)
        made = [build(only(region, g), kernel_name(self.function, node)) for g in groups]
        together = beside(made)
        if together is not None:
            groups, made = [[o for group in groups for o in group]], [together]
        for outputs, kernel in zip(groups, made, strict=True):
            self._launch(only(region, outputs), kernel, [names[o] for o in outputs])

    def _launch(self, region: Region, kernel: Kernel, results: list[str]) -> None:
        whole = self.plan.kernel(region, kernel)
        partial = self.partial.get(region.node.id)
        parts = {} if partial is None else {PARTIAL: partial}
        call = self._call(whole, region, dict(enumerate(results)), parts)
        cut = None
        if not kernel.parts:
            cut = split(region, whole.extents, few_rows=continues(self.plan.program))
        if cut is None:
            self.lines.append(call)
        else:
            self._launch_parts(cut, whole, results, call)

    def _launch_begun(self, node: Node, made: Begun) -> None:
        """A product that leaves a reduction of each block of columns."""
        self.plan.begins = True
        kernel = build_begun(made, kernel_name(self.function, node))
        whole = self.plan.kernel(made.region, kernel)
        extents = ", ".join(self.plan.size(e) for e in whole.extents)
        count, array = size_name(str(PARTS.size)), self.fresh("begun")
        kind = TensorType("f32", made.axes)
        self.lines += [
            f'{count} = run.column_blocks("{whole.name}", ({extents}))',
            f"{array} = {self._empty(kind)}",
            self._call(whole, made.region, {0: self.values[node.id], 1: array}),
        ]
        self.partial[made.follower] = array

    def _launch_parts(self, cut: Split, whole: Kernel, results: list[str], call: str) -> None:
        """As one kernel or, with few rows, as parts and the kernel that joins them."""
        self.plan.cuts = True
        over = ", ".join(a.name for a in cut.contraction.attrs.axes("axes"))
        what = f"one part of {over}, where rows are few: "
        part = self.plan.kernel(
            cut.part, build_part(cut, f"{whole.name}_part"), header(cut.part, what)
        )
        join = self.plan.kernel(cut.join, build(cut.join, f"{whole.name}_join"))
        arrays = {PARTIAL: self.fresh("part"), LOG_TOTAL: self.fresh("log_total")}
        shapes = {PARTIAL: cut.contraction.axes}
        if cut.totals is not None:
            shapes[LOG_TOTAL] = cut.totals
        length = self.plan.size(reduced_length(cut.part, cut.contraction))
        extents = ", ".join(self.plan.size(e) for e in whole.extents)
        count = size_name(str(PARTS.size))
        made = {0: arrays[PARTIAL], 1: arrays[LOG_TOTAL]}
        self.lines += [
            f'{count} = run.parts("{whole.name}", ({extents}), {length}, {cut.least})',
            f"if {count} > 1:",
            *(
                f"    {arrays[leaf]} = {self._empty(TensorType('f32', (PARTS, *axes)))}"
                for leaf, axes in shapes.items()
            ),
            f"    {self._call(part, cut.part, made)}",
            f"    {self._call(join, cut.join, dict(enumerate(results)), arrays)}",
            f"    del {', '.join(arrays[leaf] for leaf in shapes)}",
            "else:",
            f"    {call}",
        ]

    def _call(
        self,
        kernel: Kernel,
        region: Region,
        results: Mapping[int, str],
        parts: Mapping[int, str] = MappingProxyType({}),
    ) -> str:
        """The launch of a kernel; `parts` are arrays that are no values of the function."""
        arguments = [
            results[p.value] if p.is_result else parts.get(p.value) or self.array(p.value)
            for p in kernel.pointers
        ]
        rooms = {
            str(room): self._room(region.leaves[i], a) for (i, a), room in region.rooms.items()
        }
        if region.node.id in self.partial:
            rooms[str(PARTS.size)] = f"{parts[PARTIAL]}.shape[-1]"
        arguments += [rooms.get(symbol) or size_name(symbol) for symbol, _ in kernel.sizes]
        extents = ", ".join(self.plan.size(e) for e in kernel.extents)
        return f"run.launch(kernels.{kernel.name}, ({extents}), {', '.join(arguments)})"

    def _room(self, node_id: int, axis: Axis) -> str:
        dim = self.function[node_id].type.position(axis)
        return f"run.room({self.array(node_id)}, {dim})"

    def _state(self, node: Node) -> None:
        """Of an array with room for later slots, those that are written."""
        axis, kept = with_room(self.plan.program, node), self._kept(node)
        if axis is not None and axis.size == Dim.symbol(self.plan.program.past):
            kept += f".narrow({node.type.position(axis)}, 0, {self.plan.size(axis.size)})"
        self.lines.append(f"{self.bind(node, value_name(node))} = {kept}")

    def _kept(self, node: Node) -> str:
        return f'run.state(self.path, "{node.attrs.string("path")}")'

    def _append(self, node: Node) -> None:
        kept, rows = (self.function[i] for i in node.inputs)
        before, part = node.attrs.axes("parts")
        order = [rows.type.position(part if a == before else a) for a in kept.axes]
        new = self.array(rows.id)
        if order != sorted(order):
            new += f".permute({', '.join(map(str, order))})"
        array = self._kept(kept) if kept.op == "state" else self.array(kept.id)
        past, dim = self.plan.size(before.size), kept.type.position(before)
        name = self.bind(node, value_name(node))
        self.lines.append(f"{name} = run.append({array}, {past}, {new}, {dim})")

    def _repeat(self, node: Node) -> None:
        """A loop over the layers, each an object of its kind with its own weights and scalars."""
        layers = self.fresh(identifier(node.attrs.string("path")))
        self.made += [f"self.{layers} = [", *self._layers(node), "]"]
        count = len(node.types)
        operands = [self.array(i) for i in node.inputs]
        carried = [self.fresh(value_name(self.function[i])) for i in node.inputs[:count]]
        self.lines.append(f"{', '.join(carried)} = {', '.join(operands[:count])}")
        if node.attrs.get("exit"):
            self._by_row(node, layers, carried, operands[count:])
        else:
            sizes = [size_name(s) for s in self.plan.symbols]
            self.lines += [
                f"for layer, *scalars in self.{layers}:",
                f"    {self._layer(node, carried, [*sizes, *carried, *operands[count:]])}",
            ]
        if node.attrs.get("exit") == ():
            self.lines += ["    if done:", "        break"]
        self.results[node.id] = carried
        self.values[node.id] = carried[0]

    def _layer(self, node: Node, results: list[str], arguments: list[str]) -> str:
        """`x, y = layer.forward(..)`, and `done` where the loop has an exit."""
        names = [*results, "done"] if "exit" in node.attrs else results
        comma = "," if len(names) == 1 else ""
        return f"{', '.join(names)}{comma} = layer.forward({', '.join([*arguments, '*scalars'])})"

    def _by_row(self, node: Node, layers: str, carried: list[str], captured: list[str]) -> None:
        """The layers run on the rows that have not stopped; `rows` are their places."""
        (axis,) = node.attrs.axes("exit")
        rows, types = self.fresh("rows"), [self.function[i].type for i in node.inputs]
        dims = [t.position(axis) if axis in t.axes else None for t in types]
        own = size_name(str(axis.size))
        sizes = [f"len({rows})" if s == own else s for s in map(size_name, self.plan.symbols)]
        given = [
            x if dim is None else f"{x}.index_select({dim}, {rows})"
            for x, dim in zip([*carried, *captured], dims, strict=True)
        ]
        results = [self.fresh(f"{name}_rows") for name in carried]
        self.lines += [
            f"{rows} = run.rows({own})",
            f"for layer, *scalars in self.{layers}:",
            f"    if len({rows}) == 0:",
            "        break",
            f"    {self._layer(node, results, [*sizes, *given])}",
            *(
                f"    {x} = {x}.index_copy({dim}, {rows}, {result})"
                for x, dim, result in zip(carried, dims, results, strict=False)
            ),
            f"    {rows} = {rows}[~done]",
        ]

    def _scan(self, node: Node) -> None:
        """One kernel that runs all steps; else a loop here that calls the step."""
        found = self.plan.scan(self.function, node)
        if isinstance(found, str):
            self.lines.append(f"# a loop of kernels: no kernel has {found}")
            self._loop(node)
            return
        body, read = self.plan.program.body(node), self.function.read_results(node)
        named = enumerate(zip(body.outputs, node.types, strict=True))
        self.results[node.id] = [
            self._allocated(identifier(name), kind) if i in read else ""
            for i, ((name, _), kind) in named
        ]
        region, kernel = found
        self.lines.append(self._call(kernel, region, dict(enumerate(self.results[node.id]))))

    def _loop(self, node: Node) -> None:
        """A loop over steps or chunks: entries of arrays in, new states and entries out."""
        axis, body = node.attrs.axis("axis"), self.plan.program.body(node)
        first, count = node.attrs.integer("stepped"), node.attrs.integer("states")
        total, length = self.plan.size(axis.size), int(str(node.attrs.get("length", 1)))
        count_here = f"min({length}, {total} - step)"
        chunk = node.attrs.axis("chunk").size.symbols() if node.op == "chunked_scan" else ()

        def entry(x: str, position: int) -> str:
            if chunk:
                return f"{x}.narrow({position}, step, {count_here})"
            return f"{x}.select({position}, step)"

        step = self.fresh(identifier(body.name))
        self.made.append(f"self.{step} = {class_name(body)}(run, weights, prefix)")
        operands = [self.array(i) for i in node.inputs]
        entries = [
            f"{entry(x, self.function[i].type.position(axis))}.contiguous()"
            for x, i in zip(operands[:first], node.inputs[:first], strict=True)
        ]
        read, sequences = self.function.read_results(node), node.types[:-count]
        names = [identifier(name) for name, _ in body.outputs]
        arrays = {i: self._allocated(names[i], t) for i, t in enumerate(sequences) if i in read}
        states = [self.fresh(value_name(body[i])) for i in body.inputs[first : first + count]]
        for state, initial in zip(states, operands[first:], strict=False):
            self.lines.append(f"{state} = {initial}")
        steps = f"range(0, {total}, {length})" if chunk else f"range({total})"
        made = [f"{arrays[i]}_step" if i in read else "_" for i in range(len(sequences))]
        results = ", ".join([*made, *states]) + ("," if len(node.types) == 1 else "")
        sizes = ", ".join(count_here if s in chunk else size_name(s) for s in self.plan.symbols)
        self.lines += [
            f"for step in {f'reversed({steps})' if node.attrs['reverse'] else steps}:",
            f"    {results} = self.{step}.forward(",
            f"        {sizes},",
            *(f"        {x}," for x in (*entries, *states, *operands[first + count :])),
            "    )",
            *(
                f"    {entry(name, sequences[i].position(axis))}.copy_({made[i]})"
                for i, name in arrays.items()
            ),
        ]
        self.results[node.id] = [*(arrays.get(i, "") for i in range(len(sequences))), *states]

    def _topk(self, node: Node) -> None:
        (operand,) = (self.function[i] for i in node.inputs)
        dim, count = operand.type.position(node.attrs.axis("axis")), node.attrs.axis("k").size
        arguments = f"{self.array(operand.id)}, {dim}, {self.plan.size(count)}"
        self._several(node, ["values", "indices"], f"run.topk({arguments})")

    def _substitute(self, node: Node) -> None:
        """A system that no kernel of a scan holds, its rows and columns last."""
        (t, y), axis = (self.function[i] for i in node.inputs), node.attrs.axis("axis")
        column = node.attrs.axis("column")
        batch = tuple(a for a in t.axes if a not in (axis, column))
        rest = tuple(a for a in y.axes if a not in (*batch, axis))
        order, laid = (*batch, axis, *rest), (*batch, axis, column)
        arguments = [
            f"{self.array(x.id)}.permute({', '.join(str(x.axes.index(a)) for a in axes)})"
            for x, axes in ((t, laid), (y, order))
        ]
        back = ", ".join(str(order.index(a)) for a in node.axes)
        call = f"run.substitute({', '.join(arguments)}, {bool(node.attrs['reverse'])})"
        name = self.bind(node, node.hint or node.op)
        self.lines.append(f"{name} = {call}.permute({back}).contiguous()")

    def _group_rows(self, node: Node) -> None:
        rows = node.types[1]
        sizes = (node.attrs.axis("entries").size, *(axis.size for axis in rows.axes))
        arguments = ", ".join([self.array(node.inputs[0]), *map(self.plan.size, sizes)])
        self._several(node, ["picked", "rows", "slots"], f"run.group_rows({arguments})")

    def _several(self, node: Node, wanted: list[str], call: str) -> None:
        """The results of a call, under fresh names."""
        names = [self.fresh(name) for name in wanted]
        self.lines.append(f"{', '.join(names)} = {call}")
        self.results[node.id], self.values[node.id] = names, names[0]

    def _allocated(self, wanted: str, kind: TensorType) -> str:
        """The name of a new array."""
        name = self.fresh(wanted)
        self.lines.append(f"{name} = {self._empty(kind)}")
        return name

    def _empty(self, kind: TensorType) -> str:
        shape = "".join(f", {self.plan.size(a.size)}" for a in kind.axes)
        return f'run.empty("{kind.dtype}"{shape})'

    def _layers(self, node: Node) -> Iterator[str]:
        """Lines that make each iteration's object and scalars."""
        path, scalars = node.attrs.string("path"), node.attrs["scalars"]
        indices, kinds = node.attrs["indices"], node.attrs["kinds"]
        assert isinstance(scalars, tuple)
        assert isinstance(indices, tuple)
        assert isinstance(kinds, tuple)
        columns = [c for c in scalars if isinstance(c, tuple)]
        made = f'kind(run, weights, f"{{prefix}}{path}[{{i}}].")'
        body = self.plan.program.function(str(kinds[0]))
        dtypes = tuple(body[i].type.dtype for i in body.inputs[len(node.inputs) :])
        yield f"    ({made}, *map(run.scalar, scalars, {dtypes}))"
        if len(set(kinds)) == 1 and not columns and indices == tuple(range(len(indices))):
            kind = class_name(self.plan.program.function(str(kinds[0])))
            yield f"    for i, kind, *scalars in ((i, {kind}) for i in range({len(indices)}))"
            return
        yield "    for i, kind, *scalars in ("
        for index, kind_name, *numbers in zip(indices, kinds, *columns, strict=True):
            kind = class_name(self.plan.program.function(str(kind_name)))
            yield f"        ({', '.join(map(str, (index, kind, *numbers)))}),"
        yield "    )"


# What the host does itself.
CALLS: dict[str, Callable[[_Class, Node], None]] = {
    "repeat": _Class._repeat,
    "append": _Class._append,
    "topk": _Class._topk,
    "substitute": _Class._substitute,
    "group_rows": _Class._group_rows,
    "result": _Class._result,
    **dict.fromkeys(SCANS, _Class._scan),
}
# Names that the written methods use for something else, builtins among them.
RESERVED = frozenset(
    "all dict done forward isinstance kernels layer len map max min next path prefix range reversed run"
    " scalars self step torch triton tuple weights zip".split()
)
CLASSES = frozenset({"Model", "Run"})  # the file's own
CONSTANTS = frozenset({"weight", "derived", "table"})


def returned(function: Function) -> list[int]:
    """What a function returns: its outputs but for the states that it leaves."""
    return [i for name, i in function.outputs if not name.startswith(STATE)]


def constant_key(node: Node) -> str:
    """Under which name a constant is handed over, relative to its function's call path."""
    if node.op == "result":
        return result_key(node.inputs[0], node.attrs.integer("index"))
    if node.op == "weight":
        return node.attrs.string("path")
    if node.op == "table":
        return f"table {node.attrs.string('body')}"
    return result_key(node.id, 0)


def result_key(node_id: int, index: int) -> str:
    """The key of a result of a derived parameter."""
    return f"derived {node_id} {index}" if index else f"derived {node_id}"


def kernel_name(function: Function, node: Node) -> str:
    """From the region of the text, the op and the axes: `attention_q_linear_bsd`."""
    place = next((o.region for o in node.origins if o.region), node.hint or function.name)
    axes = "".join(identifier(a.name)[0] for a in node.axes)
    return "_".join(filter(None, [identifier(place.replace(".", "_")), node.op, axes])).lower()
