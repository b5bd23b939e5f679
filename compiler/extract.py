"""Cuts nodes out of a program, so that they run with operands that are given, not computed.

What a node does to exact operands is the error it *introduces*; the rest it inherits. `islands`
makes a program in which every chosen node stands alone and reads its operands from inputs;
`section` one in which they read one another.
`opened` is a fused node as the primitive nodes of its body, `regrouped` the same node fusing only
what comes after a cut. Operands that depend on weights alone are copied, not given, so that a node
is lowered in its usual surroundings.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from ..dsl.dims import Dim
from .ir.graph import AttrValue, Builder, Function, Node, Program
from .ir.walk import calls, join

SOURCES = frozenset({"weight", "const", "index", "size", "table", "derived"})
KINDS = {"int": "int", "i8": "int", "bool": "bool"}  # of an input, by its dtype
ESSENCE = {"linear": "dot", "attend": "softmax"}  # without it nothing of the fused op is left


@dataclass(frozen=True, slots=True)
class Extract:
    """A program made of nodes of a function: their ids there by input and by output name."""

    program: Program
    feeds: dict[str, int]
    results: dict[str, int]


def islands(
    program: Program,
    function: Function,
    path: str,
    chosen: Collection[int],
    sizes: Mapping[str, int],
) -> Extract:
    """The nodes `chosen` of `function`, called at `path`, each with its operands as inputs.

    `sizes` has the run-time sizes, for those that no input shows. Of a node with several results
    choose the `result` nodes. `input` nodes cannot stand alone.
    """
    grown = _Growth(function, path)
    picked = {f"v{n.id}": n.id for n in function.nodes if n.id in chosen}
    outputs = {name: grown.alone(node_id) for name, node_id in picked.items()}
    return grown.extract(program, outputs, picked, sizes)


def section(
    program: Program,
    function: Function,
    path: str,
    inside: Collection[int],
    results: Collection[int],
    sizes: Mapping[str, int],
) -> Extract:
    """The nodes `inside` of `function`, reading one another; what they read of others are inputs."""
    grown = _Growth(function, path)
    for node in function.nodes:
        if node.id in inside:
            grown.made[node.id] = grown.alone(node.id)
    picked = {f"v{i}": i for i in results}
    outputs = {name: grown.operand(i) for name, i in picked.items()}
    return grown.extract(program, outputs, picked, sizes)


def opened(
    program: Program, function: Function, path: str, fused: Node, sizes: Mapping[str, int]
) -> Extract:
    """The body of `fused` as a main of primitive nodes, its operands as inputs."""
    grown, body = _Growth(function, path), program.body(fused)
    place = {i: grown.operand(o) for i, o in zip(body.inputs, fused.inputs, strict=True)}
    for node in body.nodes:
        if node.id not in place:
            place[node.id] = grown.copied(node, tuple(place[i] for i in node.inputs))
    outputs = {name: place[i] for name, i in body.outputs}
    return grown.extract(program, outputs, outputs, sizes)


def regrouped(
    program: Program, fused: Node, known: Collection[int], sizes: Mapping[str, int]
) -> Extract | None:
    """`fused` again, fusing the nodes of main but for what comes before the values `known`.

    `program` is what `opened` made of it. The values in `known` become inputs; None when they
    leave nothing that such a node is for.
    """
    main = program.main
    wanted = {name: i for name, i in main.outputs if i not in known}
    if not wanted:
        return None
    grown, body = _Growth(main, ""), Builder(f"{fused.attrs.string('body')}.rest")
    leaves: list[int] = []
    inside: dict[int, int] = {}
    for node in _needed(main, wanted.values(), known):
        if node.id in known or node.op in ("input", "weight", "derived"):
            leaves.append(grown.operand(node.id))
            inside[node.id] = body.add("input", (), {"name": f"x{node.id}"}, node.types)
        else:
            inputs = tuple(inside[i] for i in node.inputs)
            inside[node.id] = body.add(node.op, inputs, node.attrs, node.types, node.origins)
    rest = body.finish((name, inside[i]) for name, i in wanted.items())
    if _lacks_essence(fused, rest) and not _lacks_essence(fused, main):
        return None
    types = tuple(main[i].type for i in wanted.values())
    attrs = {**fused.attrs, "body": rest.name}
    op = "pointwise" if fused.op == "derived" else fused.op  # its inputs are no longer weights
    whole = grown.builder.add(op, tuple(leaves), attrs, types)
    outputs = {name: grown.read(whole, i, len(types)) for i, name in enumerate(wanted)}
    return grown.extract(program, outputs, wanted, sizes, (rest,))


def _lacks_essence(fused: Node, function: Function) -> bool:
    return all(node.op != ESSENCE.get(fused.op, node.op) for node in function.nodes)


def _needed(main: Function, roots: Collection[int], known: Collection[int]) -> Iterator[Node]:
    """What `roots` are computed from, back to the values `known`, in topological order."""
    wanted, todo = set(roots), list(roots)
    while todo:
        node = main[todo.pop()]
        stops = node.id in known or node.op == "derived"
        new = set() if stops else set(node.inputs) - wanted
        wanted |= new
        todo += new
    return (node for node in main.nodes if node.id in wanted)


@dataclass(slots=True)
class _Growth:
    """A main under construction from nodes of `function`, which runs at call path `path`."""

    function: Function
    path: str
    builder: Builder = field(default_factory=lambda: Builder("main"))
    made: dict[int, int] = field(default_factory=dict)
    feeds: dict[str, int] = field(default_factory=dict)

    def operand(self, node_id: int) -> int:
        """The value of a node outside: the node copied when it is a source, else an input."""
        if node_id not in self.made:
            node = self.function[node_id]
            self.made[node_id] = self.alone(node_id) if self.is_source(node) else self.fed(node)
        return self.made[node_id]

    def is_source(self, node: Node) -> bool:
        if node.op == "result":
            return self.function[node.inputs[0]].op == "derived"
        return node.op in SOURCES

    def alone(self, node_id: int) -> int:
        """A node over its operands; a `result` brings the node that it reads."""
        node = self.function[node_id]
        if node.op != "result":
            return self.copied(node, tuple(self.operand(i) for i in node.inputs))
        whole = node.inputs[0]
        if whole not in self.made:
            self.made[whole] = self.alone(whole)
        return self.copied(node, (self.made[whole],))

    def copied(self, node: Node, inputs: tuple[int, ...]) -> int:
        attrs: Mapping[str, AttrValue] = node.attrs
        if node.op in ("weight", "repeat"):
            attrs = {**attrs, "path": join(self.path, node.attrs.string("path"))}
        return self.builder.add(node.op, inputs, attrs, node.types, node.origins, node.hint)

    def fed(self, node: Node) -> int:
        name = f"v{node.id}"
        self.feeds[name] = node.id
        attrs = {"name": name, "kind": KINDS.get(node.type.dtype, "float")}
        return self.builder.add("input", (), attrs, node.types[:1], node.origins, node.hint)

    def read(self, whole: int, index: int, count: int) -> int:
        return whole if count == 1 else self.builder.add("result", (whole,), {"index": index})

    def extract(
        self,
        program: Program,
        outputs: Mapping[str, int],
        results: Mapping[str, int],
        sizes: Mapping[str, int],
        bodies: tuple[Function, ...] = (),
    ) -> Extract:
        main = replace(self.builder.finish(outputs.items()), name=program.main_name)
        made = program.with_functions([main, *bodies])
        read = {
            join(path, node.attrs.string("path"))
            for path, function in calls(made)
            for node in function.nodes
            if node.op == "weight"
        }
        made = replace(
            made,
            parameters=tuple(p for p in program.parameters if p.path in read),
            bindings=program.bindings + _unshown(program, main, sizes),
            decode="",
            after="",
        )
        return Extract(made, self.feeds, dict(results))


def _unshown(
    program: Program, main: Function, sizes: Mapping[str, int]
) -> tuple[tuple[str, int], ...]:
    """Bindings for the run-time sizes that are not the size of an input's axis."""
    shown = {axis.size for i in main.inputs for axis in main[i].axes}
    hidden = [n for n in sizes if n not in program.sizes and Dim.symbol(n) not in shown]
    return tuple((name, sizes[name]) for name in hidden)
