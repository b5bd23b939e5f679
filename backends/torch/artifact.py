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


@dataclass(frozen=True, slots=True)
class Artifact:
    """`reads` are the graph's inputs as expressions over `L`, the function's arguments by name."""

    program: inductor.CompiledArtifact
    names: tuple[str, ...]
    reads: tuple[str, ...]

    def bind(self) -> Callable[..., tuple[Any, ...]]:
        """The function from its arguments to the tuple of its results.

        Nothing is checked: all but the free integers must be as they were when it was compiled.
        """
        local = {f"L['{name}']": name for name in self.names}
        inputs = ", ".join(_renamed(read, local) for read in self.reads)
        text = f"lambda {', '.join(self.names)}: _program_({inputs})"
        return eval(text, {"_program_": self.program})  # type: ignore[no-any-return]

    def save(self, path: Path) -> None:
        """Writes the program to `path`, and beside it how it is called."""
        self.program.save(path=str(path), format="binary")
        calls = {"names": self.names, "reads": self.reads}
        path.with_suffix(".json").write_text(json.dumps(calls), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Artifact:
        """What `save` wrote, for the PyTorch that wrote it."""
        calls = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        program = inductor.CompiledArtifact.load(path=str(path), format="binary")
        return cls(program, tuple(calls["names"]), tuple(calls["reads"]))


def compiled(
    function: Callable[..., Any], arguments: Sequence[Any], free: Sequence[str] = ()
) -> Artifact:
    """`function` for arguments like these; the integers named in `free` may differ by call.

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
    with torch.no_grad(), torch.compiler.config.patch(dynamic_sources=sources):
        torch.compile(function, backend=keep, fullgraph=True)(*arguments)
        (graph,) = graphs
        examples = [node.meta["example_value"] for node in _inputs(graph)]
        program = inductor.standalone_compile(graph, examples, dynamic_shapes="from_graph")
    return Artifact(program, tuple(inspect.signature(function).parameters), tuple(reads))


def _inputs(graph: torch.fx.GraphModule) -> list[torch.fx.Node]:
    return [node for node in graph.graph.nodes if node.op == "placeholder"]


def _renamed(read: str, local: dict[str, str]) -> str:
    for found, name in local.items():
        read = read.replace(found, name)
    return read
