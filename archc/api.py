"""The Python face: `load` a file, `compile` it for a backend, call the result with named arrays.

model = archc.load("examples/llama.arch", weights="SmolLM2-135M")
logits = model.compile(backend="torch")(input_ids=ids)["logits"]
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compiler.causality import elaborate_proved
from .compiler.elaborate import (
    Module,
    Request,
    hyperparameters,
    module_of,
    preset_overrides,
    the_model,
)
from .compiler.ir.graph import Program
from .dsl import parse_file
from .dsl.errors import (
    NoWeights,
    OtherModel,
    OtherPreset,
    UnknownBackend,
    UnknownInput,
    UnknownOutput,
)
from .dsl.syntax import CheckpointDef, InputStmt, ModelDef, walk

if TYPE_CHECKING:  # what only some calls need is imported by them: `check` needs none of it
    from .backends.base import Array, Backend, Executable
    from .compiler.checkpoint import Checkpoint
    from .compiler.incremental import Incremental
    from .compiler.ops import ModelDType
    from .compiler.passes import Optimised
    from .compiler.passes.quantise import Quant
    from .decoder import Decoder, Rows
    from .generate import Result
    from .generate.prompts import Prompts
    from .gradient import Gradient

# name -> (module, class): a backend is imported when it is first asked for
BACKENDS: dict[str, tuple[str, str]] = {
    "numpy": ("archc.backends.numpy", "NumpyBackend"),
    "torch": ("archc.backends.torch", "TorchBackend"),
    "triton": ("archc.backends.triton", "TritonBackend"),
}


def backend(name: str) -> Backend:
    """The backend called `name`; `MissingPackage` when what it needs is not installed."""
    if name not in BACKENDS:
        raise UnknownBackend(name=name, known=tuple(BACKENDS))
    module, class_name = BACKENDS[name]
    made: Backend = getattr(import_module(module), class_name)()
    return made


@dataclass(frozen=True)
class Model:
    """A model with its hyperparameters fixed, not yet lowered to any backend."""

    module: Module
    definition: ModelDef
    overrides: Mapping[str, Any]
    weights: Mapping[str, Array] | None = None
    loss: bool = False
    checkpoint: Checkpoint | None = None
    block: CheckpointDef | None = None
    _programs: dict[Any, Program] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @cached_property
    def program(self) -> Program:
        """The graph with every declared input whose default is not computed."""
        return self.program_for(None)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs that the text declares."""
        return tuple(s.name for s in walk(self.definition) if isinstance(s, InputStmt))

    def program_for(self, given: Collection[str] | None) -> Program:
        """The graph when just `given` inputs are supplied: the others are replaced by defaults.

        Raises `UnknownInput`, and what elaboration raises.
        """
        for name in given or ():
            if name not in self.inputs:
                raise UnknownInput(name=name, known=self.inputs)
        key = None if given is None else frozenset(given)
        if key not in self._programs:
            request = Request(self.overrides, key, self.loss)
            self._programs[key] = elaborate_proved(self.module, self.definition, request)
        return self._programs[key]

    @property
    def hyperparameters(self) -> dict[str, int]:
        """The whole-number hyperparameters by name."""
        return self.program.sizes

    def parameter_count(self) -> int:
        """The number of weights, each shared one counted once. Buffers do not count."""
        return self.program.parameter_count

    def with_random_weights(self, seed: int) -> Model:
        """The same model with seeded random weights, the same for every backend and dtype."""
        from .compiler.weights import random_weights

        return self.with_weights(random_weights(self.program, seed), checkpoint=None, block=None)

    def with_weights(self, weights: Mapping[str, Array], **source: Any) -> Model:
        """The same model with other weights, and the `checkpoint` and `block` they are from.

        The graphs made so far are kept: they do not depend on weights.
        """
        made = replace(self, weights=weights, **source)
        made._programs.update(self._programs)
        return made

    def incremental(self, given: Collection[str] | None = None) -> Incremental:
        """The programs that run a sequence chunk by chunk, when just `given` inputs are supplied.

        Raises `NoDecode`, `NeedsWholeSequence`, and what `program_for` raises.
        """
        from .compiler.incremental import derive

        return derive(self.program_for(given), self.definition.span)

    def compile(
        self,
        backend: str = "numpy",
        *,
        dtype: ModelDType = "f32",
        level: int = 1,
        quant: Quant | None = None,
        inputs: Collection[str] | None = None,
        outputs: Collection[str] | None = None,
        **options: Any,
    ) -> Compiled:
        """Optimise for `level` (0 leaves the graph alone) and load the weights into a backend.

        With `quant` ("int8" or "int4") the weights of products are held in so many bits. `inputs`
        names those that calls will supply (default: all but the ones whose default is computed),
        `outputs` those that they want (default: all): logits that only a loss reads are never whole.
        `options` are the backend's, such as `compile=True` for torch. Raises `NoWeights` when the
        model has none, `UnknownInput`, `UnknownOutput`.
        """
        from .compiler.passes import optimise

        weights = self.given_weights()
        runner = _backend(backend)
        program = self.program_for(inputs)
        optimised = optimise(
            program if outputs is None else returning(program, outputs),
            level=level,
            disable=runner.unwanted_passes(dtype, **options),
            quant=quant,
        )
        executable = runner.load(optimised.program, weights, dtype=dtype, **options)
        return Compiled(self, backend, optimised, executable)

    def decoder(
        self,
        backend: str = "torch",
        *,
        dtype: ModelDType = "f32",
        cache_dtype: ModelDType | None = None,
        max_length: int | None = None,
        inputs: Collection[str] | None = None,
        rows: Rows = "all",
        level: int = 1,
        quant: Quant | None = None,
        **options: Any,
    ) -> Decoder:
        """Load the weights into a backend to go on from where a call stopped; see `archc.decoder`.

        `cache_dtype` is that of what is kept (default: `dtype`), `max_length` the greatest number of
        slots (default: no limit). `inputs`, `level`, `quant` and `options` are as for `compile`;
        with `rows="last"` outputs have the last new row only.
        """
        from .decoder import Decoder

        return Decoder(
            self,
            backend,
            dtype=dtype,
            cache_dtype=cache_dtype,
            max_length=max_length,
            inputs=inputs,
            rows=rows,
            level=level,
            quant=quant,
            **options,
        )

    def gradient(self, backend: str = "numpy", **options: Any) -> Gradient:
        """Load the weights to compute a loss and its gradient for them; see `archc.gradient`."""
        from .gradient import Gradient

        return Gradient(self, backend, **options)

    def generate(self, prompts: Prompts | None = None, **options: Any) -> list[Result]:
        """Continue texts or token ids, token by token; `archc.generate.generate` has the options."""
        from .generate import generate

        return generate(self, prompts, **options)

    def export(self, directory: str | Path, *, shard_bytes: int | None = None) -> tuple[str, ...]:
        """Write the model as a Hugging Face directory: config.json and safetensors.

        Weights of more than `shard_bytes` (default 5 GB) are written as shards with an index.
        Tensors read from such a directory are written back byte for byte. Returns the files' names.
        """
        from .compiler.checkpoint import SHARD_BYTES
        from .exporter import export

        return export(self, Path(directory), shard_bytes or SHARD_BYTES)

    def given_weights(self) -> Mapping[str, Array]:
        """The weights, or the error that says why there are none."""
        if self.weights is not None:
            return self.weights
        if self.checkpoint is not None:
            self.checkpoint.weights_file()
        raise NoWeights(model=self.definition.name)


_backend = backend


@dataclass(frozen=True)
class Compiled:
    """A loaded model: call it with named arrays, get named arrays."""

    model: Model
    backend: str
    optimised: Optimised
    executable: Executable

    def __call__(self, /, **inputs: Any) -> dict[str, Array]:
        """Run. Arrays are named by the model's `input` and `output` lines."""
        import numpy as np

        return self.executable.run({name: np.asarray(value) for name, value in inputs.items()})

    @property
    def program(self) -> Program:
        """The program as the passes left it."""
        return self.optimised.program

    @property
    def module(self) -> Any:
        """The `nn.Module` of the torch backend."""
        return self.executable.module  # type: ignore[attr-defined]


def returning(program: Program, outputs: Collection[str]) -> Program:
    known = tuple(name for name, _ in program.main.outputs)
    for name in outputs:
        if name not in known:
            raise UnknownOutput(name=name, known=known)
    return program.returning(outputs)


def load(
    path: str | Path,
    *,
    preset: str | None = None,
    weights: str | Path | Mapping[str, Array] | None = None,
    model: str | None = None,
    loss: bool = False,
    overrides: Mapping[str, Any] | None = None,
    **hyperparameter_values: Any,
) -> Model:
    """Read an `.arch` file and fix its hyperparameters.

    They come from the preset, else from the config of the checkpoint `weights`, else from the
    model's defaults; keyword arguments win, and `overrides` is for names that no keyword can have.
    Raises `ArchError` or `Diagnostics`.
    """
    module = module_of(parse_file(path))
    values: dict[str, Any] = {}
    if preset is not None:
        own, values = preset_overrides(module, preset)
        if model not in (None, own):
            raise OtherPreset(name=preset, model=own, asked=str(model))
        model = own
    values |= dict(overrides or {}) | hyperparameter_values
    if weights is not None and not isinstance(weights, Mapping):
        return _load_checkpoint(module, Path(weights), model, values, loss)
    return Model(module, the_model(module, model), values, weights, loss)


def _load_checkpoint(
    module: Module, path: Path, model: str | None, overrides: dict[str, Any], loss: bool
) -> Model:
    """The model whose checkpoint block reads `path`, with its weights where `path` has them."""
    from .compiler.checkpoint import bind, checkpoint_block, evaluate_config, open_checkpoint

    opened = open_checkpoint(path)
    block = checkpoint_block(module.file, module.file.span.source.name, opened)
    if model not in (None, block.model):
        raise OtherModel(path=str(path), model=block.model, asked=str(model), span=block.span)
    definition = the_model(module, block.model)
    read = evaluate_config(block, opened.config, hyperparameters(definition), opened.tensor_names)
    bare = Model(module, definition, {**read, **overrides}, None, loss, opened, block)
    if opened.tensors is None:
        return bare
    return bare.with_weights(bind(block, opened, bare.program))
