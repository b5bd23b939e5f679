"""What goes from layer to layer and from step to step: the loop over layers, and rows of a state.

What a layer is given and what it gives are two buffers, which change places after each.
"""

from __future__ import annotations

from collections.abc import Sequence

from ....compiler.ir.graph import Node
from .frame import Refused
from .loops import Writer
from .places import Place


def repeat(writer: Writer, node: Node) -> None:
    if "exit" in node.attrs:
        raise Refused("an exit")
    kinds, scalars = node.attrs["kinds"], node.attrs["scalars"]
    assert isinstance(kinds, tuple)
    assert isinstance(scalars, tuple)
    carried, pairs = len(node.types), []
    for k, kind in enumerate(node.types):
        pair = [writer.buffer(writer.type(kind), kind.axes) for _ in range(2)]
        writer.copy_to(node.inputs[k], pair[0])
        pairs.append(pair)
    captured = [writer.plain(i) for i in node.inputs[carried:]]
    columns = [_table(writer, values) for values in scalars if isinstance(values, tuple)]
    layer = writer.fresh("layer")
    given = [*(p[0].pointer for p in pairs), *captured, *(f"{c}[{layer}]" for c in columns)]
    arguments = ", ".join(["run", *given, *(p[1].pointer for p in pairs)])
    writer.wait()
    names = list(dict.fromkeys(map(str, kinds)))
    lines = [f"  for (int64_t {layer} = 0; {layer} < {len(kinds)}; {layer}++) {{"]
    if len(names) == 1:
        lines.append(f"    {writer.text.names[names[0]]}({arguments});")
    else:
        table = _table(writer, [names.index(str(kind)) for kind in kinds])
        lines.append(f"    switch (int({table}[{layer}])) {{")
        lines += [
            f"      case {i}: {writer.text.names[n]}({arguments}); break;"
            for i, n in enumerate(names)
        ]
        lines.append("    }")
    lines += [f"    std::swap({a.pointer}, {b.pointer});" for a, b in pairs]
    writer.blocks += [*lines, "  }"]
    results = [n for n in writer.function.nodes if n.op == "result" and n.inputs == (node.id,)]
    for result in results:
        writer.places[result.id] = pairs[result.attrs.integer("index")][0]


def _table(writer: Writer, values: Sequence[object]) -> str:
    name = writer.fresh("table")
    numbers = ", ".join(repr(float(str(v))) for v in values)
    writer.head.append(f"static const double {name}[] = {{{numbers}}};")
    return name


def append(writer: Writer, node: Node) -> None:
    """Rows are written behind those that are kept."""
    state, rows = (writer.function[i] for i in node.inputs)
    held, (part, added) = writer.place(state.id), node.attrs.axes("parts")
    if state.op != "state" or held is None:
        raise Refused("an append to what is no state")
    stride = held.strides[part]
    others = {a: s for a, s in held.strides.items() if a != part}
    there = Place(held.pointer, held.ctype, {**others, added: stride}, stride * part.size)
    writer.each(
        rows.axes,
        lambda b, env: writer.put(b, there, env, writer.element(b, rows.id, env)),
        held.pointer,
    )
    whole = {**others, node.attrs.axis("axis"): stride}
    writer.places[node.id] = Place(held.pointer, held.ctype, whole)
