"""A function compiled once and called without Dynamo, from memory or from a file.

    call = compiled(Layer.forward, (layer, x, past, cache), free=("past",)).bind()
    for layer in layers:
        (x,) = call(layer, x, past, cache)

`torch.compile` asks at each call whether the compiled graph still fits its arguments, and again for
each layer: about as long as the small kernels of a layer run. Where the caller knows that it fits
(the layers of a kind have weights of one shape, a step has one row), the graph may be called at once.
Dynamo captures the function as a graph, Inductor compiles that by itself, and a saved program needs
neither the next time.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._inductor as inductor
import torch.fx.experimental._config as symbols
from torch._inductor.standalone_compile import CompiledArtifact
from torch.utils._sympy.printers import PythonPrinter

from ...compiler.files import beside, write_file


@dataclass(frozen=True, slots=True)
class Artifact:
    """`reads` are the graph's inputs as expressions over `L`, the function's arguments by name.

    `holds` is what must be true of the free integers and sizes.
    """

    program: CompiledArtifact
    names: tuple[str, ...]
    reads: tuple[str, ...]
    holds: str

    def bind(self) -> Callable[..., tuple[Any, ...]]:
        """The function from its arguments to the tuple of its results.

        Nothing is checked: all but what is free must be as it was when it was compiled.
        """
        return self._function(f"_program_({', '.join(self.reads)})")  # type: ignore[no-any-return]

    def condition(self) -> Callable[..., bool]:
        """Whether arguments that differ in what is free may be given to the program."""
        return self._function(self.holds)  # type: ignore[no-any-return]

    def _function(self, text: str) -> Any:
        local = {f"L['{name}']": name for name in self.names}
        known = {"_program_": self.program, "Max": max, "Min": min}
        return eval(f"lambda {', '.join(self.names)}: {_renamed(text, local)}", known)

    def save(self, path: Path) -> None:
        """Writes the program to `path`, and then beside it how it is called; each all at once."""
        calls = {"names": self.names, "reads": self.reads, "holds": self.holds}
        with beside(path) as part:
            self.program.save(path=str(part), format="binary")
        write_file(path.with_suffix(".json"), json.dumps(calls).encode())

    @classmethod
    def load(cls, path: Path) -> Artifact:
        """What `save` wrote, for the PyTorch that wrote it."""
        calls = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        program = CompiledArtifact.load(path=str(path), format="binary")
        return cls(program, tuple(calls["names"]), tuple(calls["reads"]), calls["holds"])


def compiled(
    function: Callable[..., Any], arguments: Sequence[Any], free: Sequence[str] = ()
) -> Artifact:
    """`function` for arguments like these. Integers named in `free` may differ by call, and so may
    sizes that are marked dynamic.

    An argument may be a module, whose tensors are read at each call, and may be written to. The
    function is run once. It must read no tensor but those of its arguments.
    """
    graphs: list[torch.fx.GraphModule] = []
    reads: list[str] = []

    def keep(graph: torch.fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        graphs.append(graph)
        reads.extend(node.meta["grapharg"].source.name for node in _inputs(graph))
        return graph.forward

    sources = ",".join(f"L['{name}']" for name in free)
    # sizes that are equal now need not stay so; torch gives these modules their `patch` at run time
    free_sizes = symbols.patch(use_duck_shape=False)  # type: ignore[attr-defined]
    as_named = torch.compiler.config.patch(dynamic_sources=sources)  # type: ignore[attr-defined]
    with torch.no_grad(), as_named, free_sizes:
        torch.compile(function, backend=keep, fullgraph=True)(*arguments)
        (graph,) = graphs
        examples = [node.meta["example_value"] for node in _inputs(graph)]
        with inductor.config.patch(
            cpp_wrapper=True
        ):  # Python between kernels costs as much as they
            program = inductor.standalone_compile(graph, examples, dynamic_shapes="from_graph")
    names = tuple(inspect.signature(function).parameters)
    return Artifact(program, names, tuple(reads), _condition(examples))


def _condition(examples: Sequence[Any]) -> str:
    """What tracing and compiling took for granted of the sizes, over the sources of these."""
    modes = [e.fake_mode for e in examples if isinstance(e, torch._subclasses.FakeTensor)]
    shapes = modes[0].shape_env if modes else None
    if shapes is None:
        return "True"
    sources = {s: shapes.var_to_sources[s][0].name for s in shapes.var_to_sources}
    found: dict[str, None] = {}
    for guard in shapes.guards:
        names = {
            s: type(s)(f"_{i}_") for i, s in enumerate(sorted(guard.expr.free_symbols, key=str))
        }
        text = PythonPrinter().doprint(guard.expr.xreplace(names))
        for symbol, name in names.items():
            text = text.replace(str(name), sources[symbol])
        found[f"({text})"] = None
    return " and ".join(found) or "True"


def _inputs(graph: torch.fx.GraphModule) -> list[torch.fx.Node]:
    return [node for node in graph.graph.nodes if node.op == "placeholder"]


def _renamed(read: str, local: dict[str, str]) -> str:
    for found, name in local.items():
        read = read.replace(found, name)
    return read
