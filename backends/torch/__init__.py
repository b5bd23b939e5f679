"""PyTorch: `emit` writes a standalone, readable `model.py`; `load` runs it, eager or compiled.

The text is an `nn.Module` per layer kind and one for the model, with no import of archc. What is
run is always that text, so what a person reads is what was tested. Emitting needs no PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from ...compiler.ir.graph import Program
from ...compiler.ops import Array, ModelDType
from ...dsl.errors import MissingPackage
from ..base import Backend, Executable
from .emit import emit_model

if TYPE_CHECKING:
    from .runtime import TorchExecutable


class TorchBackend(Backend):
    """`emit` takes `train`, `source` and `preset`; `load` also the other fields of `Options`."""

    name: ClassVar[str] = "torch"

    def unwanted_passes(self, dtype: ModelDType, **options: Any) -> tuple[str, ...]:
        """A folded norm scales a product, which is often wider than what was normalised: for nothing
        only where torch.compile joins it to what follows. And it is float32 at least, which torch can
        only do on widened weights.

        What torch.compile makes of elementwise steps one after another stores no factors. Weights
        are packed for oneDNN, which multiplies on a CPU and in two dtypes.
        """
        compiled = bool(options.get("compile"))
        norms = () if compiled and dtype in ("f32", "f64") else ("fuse-norm-linear",)
        scans = ("chunk-scan",) if compiled else ()
        here = dtype in ("f32", "bf16") and options.get("device", "cpu") == "cpu"
        packs = here and options.get("pack_weights", True) and not options.get("train")
        return (*norms, *scans, "visible-keys", *(() if packs else ("pack-weights",)))

    def emit(self, program: Program, **options: Any) -> dict[str, str]:
        return {"model.py": emit_model(program, **options).text}

    def load(
        self,
        program: Program,
        weights: Mapping[str, Array],
        *,
        dtype: ModelDType = "f32",
        like: Executable | None = None,
        **options: Any,
    ) -> TorchExecutable:
        """Eager, or with `compile=True` one `torch.compile`d function per layer kind.

        In a program of a decoding those are kept on disk, and kinds that call layers or loop over
        steps run as they are written.

        With `train=True` parameters take gradients and are copies of `weights`; else they share its
        memory. Raises MissingPackage, MissingWeight, WeightShape, NoLowering.
        """
        if find_spec("torch") is None:
            raise MissingPackage(package="PyTorch", purpose="the torch backend", extra="torch")
        from .runtime import Options, TorchExecutable

        other = like if isinstance(like, TorchExecutable) else None
        return TorchExecutable(program, weights, dtype, Options(**options), other)
