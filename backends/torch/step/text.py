"""A program that goes on from states, as one C++ function: what a step of few rows runs.

    step(sizes, tensors, scratch, threads)     all layers, all threads, without Python in between

Fused nodes are written out first, then each function is written once. A value is *stored*, in a loop
that the threads share, or computed where it is read: `frame` has names and addresses, `places` where
values lie, `elements` what is read of them, `loops`, `products`, `reductions` and `layers` what is
written, and `function` the order of it all. What has no text yet raises `Refused`: such a program
runs in PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ....compiler.ir.graph import Builder, Function, Program, TensorType
from .frame import Kept, Shared, Slot
from .function import FunctionWriter

WRITTEN_OUT = frozenset({"pointwise", "linear", "attend"})
HEAD = '#include "step.h"\n\nnamespace {{\n\n{functions}\n\n}}  // namespace\n'
STEP = """
extern "C" int64_t scratch(const int64_t* sizes) {{ return {needs}; }}

// Whether an index was outside of what it is for.
extern "C" bool step(const int64_t* sizes, const int64_t* tensors, char* memory, int threads) {{
  Team team{{threads}};
  std::atomic<bool> outside{{false}};
  helpers.run(threads, [&](int thread) {{
    Run run{{sizes, tensors, memory, thread, &team, &outside}};
    {main}(run);
  }});
  return outside;
}}
"""


@dataclass(frozen=True, slots=True)
class Text:
    """The text, the symbols whose sizes it is given, and what each function asks for, in order."""

    text: str
    symbols: tuple[str, ...]
    slots: Mapping[str, tuple[Slot, ...]]


def step_text(
    program: Program,
    kept: Callable[[str, int], tuple[Kept, ...]],
    ctype: Callable[[TensorType], str],
    of_state: Callable[[str, str], str],
) -> Text:
    """`kept` is what a module has of a node of a function: weights, tables, what is derived of them.

    `ctype` and `of_state` are the types of elements of inputs and results, and of the state at a path
    of a function. Raises Refused.
    """
    shared = Shared(program, kept, ctype, of_state)
    functions = [
        FunctionWriter(shared, *written_out(program, f)).render()
        for f in reversed(program.functions)
        if f.name in shared.names
    ]
    main = shared.names[program.main_name]
    declared = "\n".join(f"int64_t need_{name}(const int64_t*);" for name in shared.names.values())
    head = HEAD.format(functions="\n\n".join([declared, *functions]))
    needs = " + ".join(f"need_{name}(sizes)" for name in shared.names.values())
    return Text(head + STEP.format(needs=needs, main=main), tuple(shared.symbols), shared.slots)


def written_out(program: Program, function: Function) -> tuple[Function, dict[int, int]]:
    """The function with the bodies of fused nodes in place of them, and the old ids of its own nodes."""
    builder = Builder(function.name)
    own: dict[int, int] = {}  # new: old
    results: dict[int, list[int]] = {}

    def write(source: Function, values: dict[int, int], *, outer: bool) -> None:
        for node in source.nodes:
            if node.id in values:
                continue
            given = tuple(values[i] for i in node.inputs if i in values)
            if node.op in WRITTEN_OUT:
                body = program.body(node)
                inner = dict(zip(body.inputs, given, strict=True))
                write(body, inner, outer=False)
                results[node.id] = [inner[i] for i in body.output_ids]
                values[node.id] = results[node.id][0]
            elif node.op == "result" and outer and node.inputs[0] in results:
                values[node.id] = results[node.inputs[0]][node.attrs.integer("index")]
            else:
                made = builder.add(node.op, given, node.attrs, node.types, node.origins, node.hint)
                values[node.id] = made
                if outer:
                    own[made] = node.id

    values: dict[int, int] = {}
    write(function, values, outer=True)
    outputs = [(name, values[i]) for name, i in function.outputs]
    inputs = tuple(values[i] for i in function.inputs)
    return Function(function.name, builder.nodes, inputs, tuple(outputs)), own
