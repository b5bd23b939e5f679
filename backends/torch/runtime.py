"""Loading and running an emitted model: written and imported, so that tracebacks show its lines."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import ml_dtypes
import torch

from ...compiler.files import write_file
from ...compiler.ir.graph import Node, Program
from ...compiler.ir.walk import calls, join
from ...compiler.ops import SCANS, ModelDType, Precision
from ...dsl.errors import IndexOutOfRange
from ..base import (
    Array,
    BoundInputs,
    Executable,
    Stepped,
    ValueKey,
    bind_inputs,
    check_prefix,
    node_name,
    span_of,
)
from . import few_rows
from .emit import Emitted, beside, continues, emit_model, inside, left
from .module import ChunkMethod
from .step import Step, is_few, loaded
from .weights import Moved, assign, share, taken_over, to_torch

if TYPE_CHECKING:
    from .kinds import Kind

DTYPES: dict[ModelDType, torch.dtype] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
}
WORTH_A_TEXT = 1 << 24  # weights
_serial = itertools.count()


@dataclass(frozen=True, slots=True)
class Options:
    """`train` keeps gradients, `compile` compiles layer kinds, `out` is a folder for the text.

    `source` and `preset` are for the text's first line. `pack_weights=False` leaves matrices as they
    are stored: a packed one cannot be copied, saved or exported by PyTorch. `huge_pages` moves the
    weights of a model on the CPU to memory of its own, which a token reads faster; they are then a copy
    of what was given. By default those of a decoding are moved, but for arrays of the caller's: weights
    of a file and those made of others. `step_in_cpp` runs steps of few rows as one C++ function, which
    is built once for a machine; by default those of models that read much more than that costs.
    """

    train: bool = False
    compile: bool = False
    out: str | Path | None = None
    device: str = "cpu"
    source: str = ""
    preset: str = ""
    pack_weights: bool = True
    huge_pages: bool | None = None
    step_in_cpp: bool | None = None


@dataclass(frozen=True, slots=True)
class Twin:
    """The traced text with the parameters of the model it is a twin of."""

    file: ModuleType
    model: torch.nn.Module
    takes: tuple[Node, ...]


class TorchExecutable(Executable):
    """`module` is the emitted `nn.Module`: call it with tensors in the order of `input` lines.

    Weights, and what is derived from them alike, are those of `like`, another program of the model.
    """

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, Array],
        dtype: ModelDType,
        options: Options,
        like: TorchExecutable | None = None,
    ) -> None:
        self.program, self.precision, self.options = program, Precision(dtype), options
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._twin: Twin | None = None
        self.kinds: dict[str, Kind] = {}  # where layers are compiled for a decoding
        self._kept, self._left = _states(program)
        self.emitted = emitted = self._emit(taps=False)
        self._steps: dict[tuple[torch.dtype, ...], Step | None] = {}  # by the dtypes of the states
        if "torch.ops.few_rows" in emitted.text and options.device == "cpu":
            few_rows.built()
        file = self._import(emitted, "model.py")
        self.module: torch.nn.Module = file.Model(dtype=DTYPES[dtype], device="meta")
        shared = taken_over(self.module, like.module) if like else set()
        assign(self.module, program, weights, train=options.train, moved=self._moved(), done=shared)
        self.module.to(options.device)
        if options.compile and _decodes(program):
            self.kinds = _compile_kinds(file, emitted, program)
        elif options.compile:
            _compile(file, emitted, program, self.module)

    def _moved(self) -> Moved:
        if self.options.huge_pages is None:
            here = self.options.device == "cpu" and _decodes(self.program)
            return "made" if here else "none"
        return "all" if self.options.huge_pages else "none"

    @property
    def _in_cpp(self) -> bool:
        """By default where a step reads so much that building its text soon pays."""
        options = self.options
        if options.device != "cpu" or options.train or options.compile:
            return False
        if options.step_in_cpp is None:
            return self.program.parameter_count >= WORTH_A_TEXT
        return options.step_in_cpp

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        tensors = self._tensors(inputs)
        try:
            with torch.no_grad():
                outputs = self.module(*tensors)
        except (IndexError, RuntimeError, AssertionError):
            self._traced(tensors)  # raises what names the line, if an index was the reason
            raise
        return _arrays(outputs)

    def step(
        self,
        inputs: Mapping[str, Array],
        states: Mapping[str, torch.Tensor],
        sizes: Mapping[str, int],
    ) -> Stepped:
        """The states of a layer go to it and come from it in the order of its text."""
        bound = bind_inputs(self.program, inputs, self.precision, sizes)
        if not states:
            check_prefix(self.program, bound)
        done = self._in_one_call(bound, states) if states else None
        if done is not None:
            return Stepped(_arrays(done[0]), done[1], bound.sizes)
        arguments: list[Any] = self._given(bound)
        if continues(self.program):
            arguments.append(bound.sizes[self.program.past])
        if any(self._kept.values()):
            given = {prefix: [states[p] for p in paths] for prefix, paths in self._kept.items()}
            arguments += [*given.pop("", []), given]
        with torch.no_grad():
            results = self.module(*arguments)
        leaves = any(function.left for function in self.program.functions)
        outputs, found = results if leaves else (results, {})
        made: dict[str, torch.Tensor] = {}
        for prefix, places in self._left.items():
            made.update(zip(places, found.get(prefix, ()), strict=True))
        return Stepped(_arrays(outputs), made, bound.sizes)

    def _in_one_call(
        self, bound: BoundInputs, states: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] | None:
        """A step of few rows in C++; None where it is to run as it is emitted."""
        if not self._in_cpp or not is_few(self.program, bound):
            return None
        dtypes = tuple(state.dtype for state in states.values())
        dtype = DTYPES[self.precision.model]
        if dtypes not in self._steps:
            self._steps[dtypes] = loaded(self.program, self.emitted, self.module, states, dtype)
        step = self._steps[dtypes]
        return step(bound, states) if step is not None else None

    def empty(
        self, like: torch.Tensor, dim: int, length: int, dtype: ModelDType | None = None
    ) -> torch.Tensor:
        shape = (*like.shape[:dim], length, *like.shape[dim + 1 :])
        half = dtype is not None and like.dtype.is_floating_point
        return like.new_empty(shape, dtype=DTYPES[dtype] if dtype and half else like.dtype)

    def array(self, state: torch.Tensor) -> Array:
        return to_numpy(state)

    def trace(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], dict[ValueKey, Array]]:
        """Runs the same text with every value stored, on the same parameters."""
        outputs, values = self._traced(self._tensors(inputs))
        found = {key: to_numpy(value) for key, value in values.items()}
        return _arrays(outputs), found

    def _traced(
        self, tensors: Sequence[torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[ValueKey, torch.Tensor]]:
        """Outputs and values of the traced text. Raises IndexOutOfRange."""
        if self._twin is None:
            emitted = self._emit(taps=True)
            file = self._import(emitted, "traced.py")
            model = file.Model(dtype=DTYPES[self.precision.model], device="meta")
            share(self.module, model)
            self._twin = Twin(file, model, emitted.takes)
        try:
            with torch.no_grad():
                outputs = self._twin.model(*tensors)
            return outputs, dict(self._twin.file.TAPS)
        except IndexError as error:
            if len(error.args) != 3:  # not one of the text's own checks
                raise
            raise _out_of_range(self._twin.takes, error) from None
        finally:
            self._twin.file.TAPS.clear()

    def _tensors(self, inputs: Mapping[str, Array]) -> list[torch.Tensor]:
        return self._given(bind_inputs(self.program, inputs, self.precision))

    def _given(self, bound: BoundInputs) -> list[torch.Tensor]:
        main = self.program.main
        given = (to_torch(bound.arrays[node_name(main[i])]) for i in main.inputs)
        return [tensor.to(self.options.device) for tensor in given]

    def _emit(self, *, taps: bool) -> Emitted:
        options = self.options
        return emit_model(
            self.program,
            train=options.train,
            taps=taps,
            source=options.source,
            preset=options.preset,
            compile=options.compile and not taps,
        )

    def _import(self, emitted: Emitted, name: str) -> ModuleType:
        """The module of a text, written to the folder asked for or to one that lives as long."""
        if self.options.out is None and self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="archc-", ignore_cleanup_errors=True)
        folder = Path(self._folder.name if self._folder else str(self.options.out))
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        write_file(path, emitted.text.encode())
        return _imported(path)


def _states(program: Program) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The states that each module is given and that it leaves, by its prefix."""
    kept: dict[str, list[str]] = defaultdict(list)
    made: dict[str, list[str]] = defaultdict(list)
    for path, function in calls(program):
        names = [node.attrs.string("path") for node in function.states]
        kept[_prefix(path)] += [join(path, name) for name in names]
        made[_prefix(path)] += [join(path, name) for name, _ in left(function)]
    return dict(kept), dict(made)


def _prefix(path: str) -> str:
    """What a module at a call path has as its `prefix`."""
    return f"{path}." if path else ""


def _out_of_range(takes: Sequence[Node], error: IndexError) -> IndexOutOfRange:
    number, index, size = error.args
    take = takes[number]
    return IndexOutOfRange(
        axis=take.attrs.axis("axis").name,
        index=index,
        size=size,
        span=span_of(take),
        calls=take.spans[1:],
    )


def _imported(path: Path) -> ModuleType:
    name = f"archc_model_{next(_serial)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    return {name: to_numpy(tensor) for name, tensor in tensors.items()}


def to_numpy(tensor: torch.Tensor) -> Array:
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _compile(file: ModuleType, emitted: Emitted, program: Program, model: torch.nn.Module) -> None:
    """One compiled function per layer kind; a model without layers is compiled as a whole.

    The classes are this load's own. Sizes of run-time axes are marked dynamic call by call. A loop
    with an exit stays in Python, and so do the layers around it; a scan's loop over chunks does too,
    and its chunk of full length is a compiled function of its own.
    """
    scanning = {method.kind for method in emitted.chunks}
    mark = torch._dynamo.maybe_mark_dynamic if scanning else torch._dynamo.mark_dynamic
    for method in (m for m in emitted.chunks if m.compiled):
        kind = getattr(file, method.kind)
        setattr(kind, method.name, _for_length(getattr(kind, method.name), method))
    if emitted.chunks:
        file.in_chunks = _between_graphs(file.in_chunks)  # type: ignore[attr-defined]
    kinds = [
        function.name
        for function in map(program.function, emitted.classes)
        if function is not program.main and not any("exit" in n.attrs for n in function.nodes)
    ]
    for name in kinds or [program.main_name]:
        kind = getattr(file, emitted.classes[name])
        compiled = torch.compile(kind.forward, fullgraph=emitted.classes[name] not in scanning)
        kind.forward = _with_dynamic_sizes(compiled, _run_time_dims(program, name), mark)


def _decodes(program: Program) -> bool:
    """Whether the program leaves states or goes on from them."""
    return any(function.states or function.left for function in program.functions)


def _compile_kinds(file: ModuleType, emitted: Emitted, program: Program) -> dict[str, Kind]:
    """The kinds that call no layers and loop over no steps; others are run as they are written."""
    from .kinds import Kind  # and Inductor, which what is not compiled needs none of

    kinds = {}
    text = Path(str(file.__file__)).read_text(encoding="utf-8")
    for function in map(program.function, emitted.classes):
        kinds_beside = map(program.function, beside(program, function.name))
        layered = any(inside(f) for f in kinds_beside)
        if function is program.main or layered or any(n.op in SCANS for n in function.nodes):
            continue
        cls = getattr(file, emitted.classes[function.name])
        dims = _run_time_dims(program, function.name)
        if continues(program):  # it is given `past` and its states, too
            dims += [[], *(_varying(program, node) for node in function.states)]
        kinds[function.name] = kind = Kind(cls.forward, text, dims)
        cls.forward = _method(kind)
    return kinds


def _method(kind: Kind) -> Callable[..., Any]:
    return lambda layer, *arguments: kind(layer, *arguments)


def _for_length(written: Callable[..., Any], method: ChunkMethod) -> Callable[..., Any]:
    """The method, compiled for chunks of full length. The last one, if shorter, runs as written."""
    compiled = torch.compile(written, fullgraph=True)

    def chunk(self: torch.nn.Module, first: torch.Tensor, *others: torch.Tensor) -> Any:
        whole = first.shape[method.dim] == method.length
        return (compiled if whole else written)(self, first, *others)

    return chunk


def _between_graphs(in_chunks: Callable[..., Any]) -> Callable[..., Any]:
    """The loop over chunks as it is written; its sequences have a size that a call decides."""

    def run(chunk: Any, length: int, reverse: bool, sequences: Any, dims: Any, *rest: Any) -> Any:
        results = in_chunks(chunk, length, reverse, sequences, dims, *rest)
        for result, dim in zip(results, dims, strict=False):
            torch._dynamo.maybe_mark_dynamic(result, dim)
        return results

    # torch's `disable` has no types
    return torch.compiler.disable(run)  # type: ignore[no-any-return, no-untyped-call]


def _run_time_dims(program: Program, name: str) -> list[list[int]]:
    """For each input of a function, its dimensions whose size a call decides."""
    function = program.function(name)
    return [_varying(program, function[i]) for i in function.inputs]


def _varying(program: Program, node: Node) -> list[int]:
    fixed = set(program.sizes)
    return [dim for dim, axis in enumerate(node.axes) if not axis.size.symbols() <= fixed]


def _with_dynamic_sizes(
    compiled: Callable[..., Any],
    dims: Sequence[Sequence[int]],
    mark: Callable[[torch.Tensor, int], None],
) -> Callable[..., Any]:
    """Size 1 stays static: it is its own program, since it broadcasts.

    `mark` may be a wish only: between two graphs a size is a number.
    """

    def forward(self: torch.nn.Module, *arguments: torch.Tensor) -> Any:
        for argument, varying in zip(arguments, dims, strict=True):
            for dim in varying:
                if argument.shape[dim] > 1:
                    mark(argument, dim)
        return compiled(self, *arguments)

    return forward
