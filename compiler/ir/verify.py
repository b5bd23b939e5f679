"""Checks a program against the rules of the graph; a violation is an `InternalError`.

The types of primitive nodes are inferred again and compared, so inference and verification cannot
disagree. The types of nodes that run functions are compared with those functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from ...dsl.diagnostics import InternalError
from ...dsl.dims import Dim
from ..ops import FUSED, OPS, SCANS, infer
from .graph import Axis, Function, Node, Program, TensorType, elements, operand_types
from .text import all_axes, show_node
from .walk import calls, join

Types = tuple[TensorType, ...]
Require = Callable[[bool, str], None]  # (condition, reason): raises at the node at hand


def verify(program: Program) -> Program:
    """Returns `program` if all invariants hold. Raises InternalError naming function and node."""
    _check_names(program)
    _check_calls_end(program)
    _check_after(program)
    for function in program.functions:
        _check_interface(program, function)
    for function in program.functions:
        seen: set[int] = set()
        for node in function.nodes:
            require = _requirement(function, node)
            require(node.id not in seen, "its id is taken")
            require(seen.issuperset(node.inputs), "it reads a value that is not above it")
            seen.add(node.id)
            _check_node(program, function, node, require)
    _check_weights(program)
    return program


def _requirement(function: Function, node: Node) -> Require:
    def require(holds: bool, reason: str) -> None:
        if not holds:
            raise InternalError(f"{function.name}: {show_node(node)}: {reason}")

    return require


def _check_names(program: Program) -> None:
    by_name: dict[str, Axis] = {}
    for axis in all_axes(program):
        if by_name.setdefault(axis.name, axis) != axis:
            raise InternalError(f"two axes: {by_name[axis.name]!r} and {axis!r}")
    _check_unique("function", [f.name for f in program.functions])
    _check_unique("parameter", [p.path for p in program.parameters])
    for parameter in program.parameters:
        if tuple(a for group in parameter.grouping for a in group) != parameter.axes:
            raise InternalError(f"parameter {parameter.path}: its grouping has other axes")


def _check_unique(what: str, names: list[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise InternalError(f"there are {count} {what}s {name}")


def _check_calls_end(program: Program) -> None:
    """Every function that is called exists, and none calls itself."""
    finished: set[str] = set()

    def visit(name: str, callers: tuple[str, ...]) -> None:
        if name in callers:
            raise InternalError(f"function {name} calls itself")
        if name not in {f.name for f in program.functions}:
            raise InternalError(f"{callers[-1:] or 'the program'} calls {name}, which is not there")
        if name not in finished:
            for callee in program.function(name).called:
                visit(callee, (*callers, name))
            finished.add(name)

    visit(program.main_name, ())


def _check_after(program: Program) -> None:
    if not program.after:
        return
    main = program.main
    found = [main[i] for i in main.inputs if main[i].attrs.get("name") == program.after]
    if not found or found[0].type.dtype != "int":
        raise InternalError(f"decode after {program.after}: no whole number among the inputs")
    if any(axis.time == program.decode for axis in found[0].axes):
        raise InternalError(f"decode after {program.after}: it changes along {program.decode}")


def _check_interface(program: Program, function: Function) -> None:
    inputs = [node.id for node in function.nodes if node.op == "input"]
    if sorted(inputs) != sorted(function.inputs):
        raise InternalError(f"{function.name}: its inputs are not its input nodes")
    if not set(function.output_ids) <= {node.id for node in function.nodes}:
        raise InternalError(f"{function.name}: an output is not there")
    _check_unique(f"output of {function.name}", [name for name, _ in function.outputs])
    if function.name == program.main_name:
        for node in (function[i] for i in function.inputs):
            _requirement(function, node)({"name", "kind"} <= set(node.attrs), "no name or kind")


def _check_node(program: Program, function: Function, node: Node, require: Require) -> None:
    require(node.op in OPS, "there is no such op")
    operands = operand_types(node.op, [function[i] for i in node.inputs])
    if OPS[node.op].infer is not None:
        _check_inferred(node, operands, require)
    elif node.op == "repeat":
        _check_repeat(program, node, operands, require)
    elif node.op in SCANS:
        _check_scan(program, node, operands, require)
    elif node.op == "table":
        require(program.body(node).inputs == (), "its function has inputs")
        require(_results(program.body(node))[0].axes == node.axes, "its function has other axes")
    elif node.op in FUSED:
        body = program.body(node)
        _check_arguments(body, operands, require)
        require(_results(body) == node.types, f"{body.name} has other results")
        if node.op == "derived":
            made = {function[i].op for i in node.inputs} <= {"weight", "derived"}
            require(made, "it reads what is no weight")
    _check_sizes(program, node, operands, require)


def _check_inferred(node: Node, operands: Types, require: Require) -> None:
    try:
        inferred = infer(node.op, node.attrs, operands)
    except InternalError as error:
        require(False, str(error))
    require(inferred == node.types, f"the shape rule gives {', '.join(map(str, inferred))}")


def _check_arguments(body: Function, operands: Sequence[TensorType], require: Require) -> None:
    expected = [body[i].type for i in body.inputs]
    require(len(expected) == len(operands), f"{body.name} has {len(expected)} inputs")
    for wanted, got in zip(expected, operands, strict=True):
        require(wanted == got, f"{body.name} takes {wanted} where it gets {got}")


def _results(function: Function) -> Types:
    return tuple(function[i].type for i in function.output_ids)


def _check_repeat(program: Program, node: Node, operands: Types, require: Require) -> None:
    """Carried values keep their types; each kind takes (carried, captured, scalars)."""
    kinds, indices, scalars = (node.attrs[name] for name in ("kinds", "indices", "scalars"))
    assert isinstance(kinds, tuple)
    assert isinstance(indices, tuple)
    assert isinstance(scalars, tuple)
    require(len(kinds) == len(indices), "kinds and indices differ in number")
    for values in scalars:
        require(isinstance(values, tuple) and len(values) == len(kinds), "a scalar per iteration")
    require(operands[: len(node.types)] == node.types, "a carried value changes type")
    results = node.types
    if "exit" in node.attrs:
        leaving = node.attrs.axes("exit")
        require(all({*leaving} <= {*t.axes} for t in node.types), "a carried value has no rows")
        results = (*node.types, TensorType("bool", leaving))
    for kind in dict.fromkeys(map(str, kinds)):
        function = program.function(kind)
        given = [function[i].type for i in function.inputs[len(operands) :]]
        require(all(t.axes == () for t in given), f"{kind} takes a scalar that has axes")
        require(len(given) == len(scalars), f"{kind} takes {len(given)} scalars")
        _check_arguments(function, (*operands, *given), require)
        kept = [name for name, _ in function.outputs[len(results) :]]
        require(all("." in name for name in kept), f"{kind} returns more than it carries")
        require(_results(function)[: len(results)] == results, f"{kind} returns other types")


def _check_scan(program: Program, node: Node, operands: Types, require: Require) -> None:
    """A step takes (stepped, states, captured) and returns (a value for each sequence, states)."""
    body, axis = program.body(node), node.attrs.axis("axis")
    inside = (node.attrs.axis("chunk"),) if node.op == "chunked_scan" else ()
    stepped, states = node.attrs.integer("stepped"), node.attrs.integer("states")
    require(all(axis in t.axes for t in operands[:stepped]), f"a stepped operand has no {axis}")
    _check_arguments(
        body,
        (*(_at_step(t, axis, inside) for t in operands[:stepped]), *operands[stepped:]),
        require,
    )
    require(operands[stepped : stepped + states] == node.types[-states:], "a state changes type")
    sequences = node.types[:-states]
    require(all(axis in t.axes for t in sequences), f"a sequence has no {axis}")
    made = (*(_at_step(t, axis, inside) for t in sequences), *node.types[-states:])
    require(_results(body) == made, f"{body.name} has other results")


def _at_step(kind: TensorType, axis: Axis, inside: tuple[Axis, ...]) -> TensorType:
    """What a step sees of a value along `axis`: `inside` in its place."""
    axes = (inside if a == axis else (a,) for a in kind.axes)
    return TensorType(kind.dtype, tuple(a for group in axes for a in group))


def _check_sizes(program: Program, node: Node, operands: Types, require: Require) -> None:
    """Sizes that a shape rule could not compare symbolically agree under the bindings."""
    for left, right in _equal_sizes(node):
        difference = (left - right).substitute(program.sizes).constant
        require(difference in (None, 0), f"sizes {left} and {right} differ")


def _equal_sizes(node: Node) -> list[tuple[Dim, Dim]]:
    attrs = node.attrs
    if node.op == "rename":
        return [(old.size, new.size) for old, new in attrs.pairs("pairs")]
    if node.op == "split":
        return [(elements(attrs.axes("into")), attrs.axis("axis").size)]
    if node.op == "merge":
        return [(elements(attrs.axes("axes")), attrs.axis("into").size)]
    if node.op == "concat":
        total = sum((part.size for part in attrs.axes("parts")), Dim())
        return [(total, attrs.axis("axis").size)]
    return []


def _check_weights(program: Program) -> None:
    """Every weight node names a parameter at every call path, with the parameter's axes."""
    parameters = {p.path: p for p in program.parameters}
    for path, function in calls(program):
        for node in function.nodes:
            if node.op == "weight":
                require = _requirement(function, node)
                complete = join(path, node.attrs.string("path"))
                require(complete in parameters, f"there is no parameter {complete}")
                axes = parameters[complete].axes
                require(axes == node.axes, f"parameter {complete} has other axes")
