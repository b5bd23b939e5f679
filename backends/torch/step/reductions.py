"""What is taken over axes: a sum, the greatest, and softmax, which lies along its axis."""

from __future__ import annotations

from ....compiler.ir.graph import Node
from .elements import Block, Env
from .loops import ONLY, Writer


def reduced(writer: Writer, node: Node) -> None:
    axes, ctype = node.attrs.axes("axes"), writer.type(node.type)
    place = writer.new(node, node.axes)
    first = {
        "sum": "0",
        "amax": {"float": "-INFINITY", "int64_t": "-(int64_t(1) << 31)"}.get(ctype, "false"),
    }[node.op]
    join = {"sum": "total += {0};", "amax": "total = greatest(total, {0});"}[node.op]
    source = writer.function[node.inputs[0]]
    ordered = [a for a in source.axes if a in axes]

    def body(block: Block, env: Env) -> None:
        block.line(f"{ctype} total = {first};")
        writer.nest(
            block,
            ordered,
            env,
            lambda b, e: b.line(join.format(f"{ctype}({writer.element(b, source.id, e)})")),
            summed=node.op == "sum" and ctype != "bool",
        )
        writer.put(block, place, env, "total")

    writer.each(node.axes, body, place.pointer)


def softmax(writer: Writer, node: Node) -> None:
    axis = node.attrs.axis("axis")
    rows = tuple(a for a in node.axes if a != axis)
    place = writer.new(node, (*rows, axis))
    length = writer.length(axis.size)

    def body(block: Block, env: Env) -> None:
        block.line(f"float* row = {place.pointer} + {writer.address(place, {**env, axis: '0'})};")
        block.line("float most = -3.402823466e38f, total = 0;")
        index = writer.fresh("i")
        block.line(f"for (int64_t {index} = 0; {index} < {length}; {index}++) {{")
        inner = block.inner()
        inner.line(f"row[{index}] = {writer.element(inner, node.inputs[0], {**env, axis: index})};")
        inner.line(f"most = greatest(most, row[{index}]);")
        block.lines += inner.lines
        block.line("}")
        block.line("#pragma omp simd reduction(+:total)")
        block.line(
            f"for (int64_t i = 0; i < {length}; i++) total += row[i] = exponential(row[i] - most);"
        )
        block.line("const float scale = 1 / std::max(total, 1.0f);")
        block.line(f"for (int64_t i = 0; i < {length}; i++) row[i] *= scale;")

    writer.each((*rows, ONLY), body, place.pointer)
