"""What an op is: one stanza holding its name, shape rule, NumPy meaning, lowerings and samples.

The table `OPS` is the single list of ops. Type inference, the verifier, the reference interpreter,
the cost model, the text reader and the swept tests all read it. An op's meaning is written once
here in NumPy, to be plainly right, and once per backend as a lowering that is compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, ClassVar, Literal, TypeVar

from ...dsl.diagnostics import InternalError
from ...dsl.dims import Dim
from ..ir.graph import Attrs, AttrValue, Axis, DType, TensorType, elements
from .gradient import Gradient, Rule
from .numeric import Array, np

Types = tuple[TensorType, ...]
ModelDType = Literal["f64", "f32", "bf16", "f16"]
TimeClass = Literal[
    "S", "P", "A", "M", "C"
]  # source, pointwise, affine index, mixing, causal state

# bool < i8 < int < float < f32 < f64
DTYPES: tuple[DType, ...] = ("bool", "i8", "int", "float", "f32", "f64")


@cache
def _format(name: str) -> np.dtype[Any]:
    import ml_dtypes  # noqa: F401 (registers its types by name)

    return np.dtype(name)


class _Formats(Mapping[str, "np.dtype[Any]"]):
    """Floating-point formats as NumPy types; ml_dtypes brings those that NumPy lacks."""

    NAMES: ClassVar[dict[str, str]] = {
        "f64": "float64",
        "f32": "float32",
        "bf16": "bfloat16",
        "f16": "float16",
        "f8_e4m3": "float8_e4m3fn",
        "f8_e5m2": "float8_e5m2",
    }

    def __getitem__(self, name: str) -> np.dtype[Any]:
        return _format(self.NAMES[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.NAMES)

    def __len__(self) -> int:
        return len(self.NAMES)


FORMATS = _Formats()


def promote(*dtypes: DType) -> DType:
    """The least element kind that holds all of `dtypes`."""
    return max(dtypes, key=DTYPES.index)


def floating(*dtypes: DType) -> DType:
    """As `promote`, but at least `float`."""
    return promote("float", *dtypes)


@dataclass(frozen=True, slots=True)
class Precision:
    """How a run stores and computes each element kind, given the model dtype."""

    model: ModelDType = "f32"

    def storage(self, dtype: DType) -> np.dtype[Any]:
        if dtype == "bool":
            return np.dtype(np.bool_)
        if dtype in ("int", "i8"):
            return np.dtype(np.int64 if dtype == "int" else np.int8)
        if self.model == "f64" or dtype == "f64":
            return FORMATS["f64"]
        return FORMATS[self.model] if dtype == "float" else FORMATS["f32"]

    def compute(self, dtype: DType) -> np.dtype[Any]:
        """Arithmetic happens here, then rounds to `storage`: half formats compute in float32."""
        stored = self.storage(dtype)
        return FORMATS["f32"] if stored in (FORMATS["bf16"], FORMATS["f16"]) else stored


@dataclass(frozen=True, slots=True)
class Call:
    """One evaluation: attributes, types, sizes. `windows` restricts an axis to [start, stop).

    `reuse` is the operand that nothing else reads, whose array the result may overwrite; operands in
    `exact` are known to be stored as their types say, which constants and states need not be.
    """

    attrs: Attrs
    inputs: Types
    outputs: Types
    sizes: Mapping[str, int]
    precision: Precision = Precision()
    windows: Mapping[Axis, tuple[int, int]] = field(default_factory=dict)
    reuse: int | None = None
    exact: frozenset[int] = frozenset()

    def window(self, axis: Axis) -> tuple[int, int]:
        return self.windows.get(axis) or (0, axis.size.evaluate(self.sizes))

    def extent(self, axis: Axis) -> int:
        start, stop = self.window(axis)
        return stop - start

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.extent(axis) for axis in self.outputs[0].axes)

    def compute(self, x: Array, dtype: DType) -> Array:
        return x.astype(self.precision.compute(dtype), copy=False)


def align(x: Array, axes: Sequence[Axis], to: Sequence[Axis]) -> Array:
    """A view of `x[axes]` that broadcasts against an array laid out as `to`."""
    if tuple(axes) == tuple(to):
        return x
    order = [axes.index(axis) for axis in to if axis in axes]
    lengths = iter([x.shape[i] for i in order])
    return x.transpose(order).reshape([next(lengths) if a in axes else 1 for a in to])


def aligning(axes: Sequence[Axis], to: Sequence[Axis]) -> Callable[[Array], Array] | None:
    """`align` for arrays of any sizes. Axes missing at the front are left to broadcasting.

    None where the array is as it should be.
    """
    order = [axes.index(axis) for axis in to if axis in axes]
    first = next((i for i, axis in enumerate(to) if axis in axes), len(to))
    index = tuple(slice(None) if axis in axes else None for axis in to[first:])
    if order != sorted(order):
        return lambda x: x.transpose(order)[index]
    return (lambda x: x[index]) if None in index else None


Infer = Callable[[Attrs, Types], Types]
Evaluate = Callable[..., "Array | tuple[Array, ...]"]
Prepare = Callable[["Call"], Evaluate]
Count = Callable[[Attrs, Types, Types], Dim]
Template = str | Mapping[str, str]
Lowering = TypeVar("Lowering", bound=Callable[..., Any])


def no_count(attrs: Attrs, inputs: Types, outputs: Types) -> Dim:
    return Dim()


def per_result(attrs: Attrs, inputs: Types, outputs: Types) -> Dim:
    """One scalar operation for each element of the result."""
    return elements(outputs[0].axes)


def per_operand(attrs: Attrs, inputs: Types, outputs: Types) -> Dim:
    """One scalar operation for each element of the first operand."""
    return elements(inputs[0].axes)


@dataclass(frozen=True, slots=True)
class Sample:
    """One case of the swept tests. `domain` bounds the random operands."""

    inputs: Types
    attrs: Mapping[str, AttrValue] = field(default_factory=dict)
    domain: tuple[float, float] = (-2.0, 2.0)


@dataclass(slots=True, eq=False)
class Op:
    """A primitive. `operands` says to which element kinds a pointwise op converts its operands.

    `torch`, `triton` and `cpp` are expression templates over `{0}`, `{1}`, ..., `{dtype}` (the result's
    type in the target's words) and the attributes; a template may be a mapping from the operands'
    class, one of "bool", "int", "float". Other ops have functions in `lowerings` instead.
    `flops` counts multiply-adds of contractions twice, `elementwise` other scalar operations.
    `gradient` is as `gradient.py` says; None where nobody has said.
    """

    name: str
    doc: str
    time: TimeClass = "P"
    pointwise: bool = False
    operands: Callable[[tuple[DType, ...]], tuple[DType, ...]] = lambda dtypes: dtypes
    torch: Template | None = None
    triton: Template | None = None
    cpp: Template | None = None
    flops: Count = no_count
    elementwise: Count = no_count
    samples: tuple[Sample, ...] = ()
    gradient: Gradient | None = None
    infer: Infer | None = None
    prepare: Prepare | None = None
    lowerings: dict[str, Callable[..., Any]] = field(default_factory=dict)

    def rule(self, function: Infer) -> Infer:
        """Registers the shape rule: (attributes, operand types) -> result types."""
        self.infer = function
        return function

    def meaning(self, function: Evaluate) -> Evaluate:
        """Registers the NumPy meaning: (call, *arrays laid out as the operand types) -> result."""
        self.prepare = lambda call: partial(function, call)
        return function

    def prepared_meaning(self, function: Prepare) -> Prepare:
        """The same in two steps, call -> (arrays -> result): what types and sizes decide is done once."""
        self.prepare = function
        return function

    def backward(self, function: Rule) -> Rule:
        """Registers the gradient: what is known of a node -> a gradient for each operand."""
        self.gradient = function
        return function

    def lowering(self, target: str) -> Callable[[Lowering], Lowering]:
        """Registers a function that lowers this op to `target`, in the stanza or in a backend."""

        def keep(function: Lowering) -> Lowering:
            if target in self.lowerings:
                raise InternalError(f"op {self.name} has two lowerings for {target}")
            self.lowerings[target] = function
            return function

        return keep

    def template(self, target: Literal["torch", "triton", "cpp"], dtype: DType) -> str | None:
        """The expression for operands of `dtype`; None where the target has none."""
        found = {"torch": self.torch, "triton": self.triton, "cpp": self.cpp}[target]
        if found is None or isinstance(found, str):
            return found
        return found.get(dtype if dtype in ("bool", "int") else "float")


OPS: dict[str, Op] = {}


def op(name: str, doc: str, **fields: Any) -> Op:
    """Adds an op to the table."""
    if name in OPS:
        raise InternalError(f"op {name} is declared twice")
    OPS[name] = Op(name, doc, **fields)
    return OPS[name]


def require(holds: bool, reason: str) -> None:
    """A shape rule's condition. A violation is our bug: the front end checks what people write."""
    if not holds:
        raise InternalError(reason)


def may_be_equal(a: Dim, b: Dim) -> bool:
    """False for sizes that differ. Sizes with symbols may agree under bindings: see `verify`."""
    difference = (a - b).constant
    return difference is None or difference == 0


def infer(name: str, attrs: Attrs, inputs: Types) -> Types:
    """The result types of `name {attrs}` on operands of types `inputs`. Raises InternalError."""
    found = OPS.get(name)
    if found is None:
        raise InternalError(f"there is no op {name}")
    if found.infer is None:
        raise InternalError(f"the type of {name} is declared, not inferred")
    try:
        return found.infer(attrs, inputs)
    except InternalError as error:
        operands = ", ".join(map(str, inputs))
        raise InternalError(f"{name}({operands}) {attrs}: {error}") from None
    except (KeyError, ValueError, AssertionError, TypeError) as error:
        operands = ", ".join(map(str, inputs))
        raise InternalError(f"{name}({operands}) {attrs}: malformed ({error!r})") from error


def same(x: Array) -> Array:
    """What an op is that changes nothing about the array."""
    return x


def prepared(name: str, call: Call) -> Evaluate:
    """The NumPy meaning of one op, ready to run. Each result is rounded to how its type is stored.

    Sources return values as they are: a constant stays exact until an op with a dtype reads it.
    `same` is returned for what leaves operands with axes as they are.
    """
    found = OPS[name]
    if found.prepare is None:
        raise InternalError(f"{name} runs a function: it has no meaning of its own")
    run = found.prepare(call)
    if found.time == "S":
        return run
    kinds = [call.precision.storage(t.dtype) for t in call.outputs]
    stored = [call.precision.storage(t.dtype) for t in call.inputs]
    if run is same and stored == kinds and call.inputs[0].axes:
        return same
    if isinstance(run, np.ufunc) and run.resolve_dtypes((*stored, None))[-1] == kinds[0]:
        return run  # its operands are exact
    return _rounded(run, kinds[0]) if len(kinds) == 1 else _all_rounded(run, kinds)


def _rounded(run: Evaluate, kind: np.dtype[Any]) -> Evaluate:
    def rounded(*arrays: Array) -> Array:
        result: Any = run(*arrays)
        made: Array = result if result.dtype is kind else result.astype(kind, copy=False)
        return made

    return rounded


def _all_rounded(run: Evaluate, kinds: Sequence[np.dtype[Any]]) -> Evaluate:
    def rounded(*arrays: Array) -> tuple[Array, ...]:
        pairs = zip(run(*arrays), kinds, strict=True)
        return tuple(r.astype(kind, copy=False) for r, kind in pairs)

    return rounded


def evaluate(name: str, call: Call, arrays: Sequence[Array]) -> tuple[Array, ...]:
    """All results of one op, run once."""
    result = prepared(name, call)(*arrays)
    return result if isinstance(result, tuple) else (result,)


# Axes of the samples: distinct sizes, one of them symbolic.
SAMPLE_SIZES = {"n": 5}
A = Axis("a", Dim.of(2))
B = Axis("b", Dim.of(3))
C = Axis("c", Dim.of(4))
N = Axis("n", Dim.symbol("n"))
N2 = Axis("n2", Dim.symbol("n"), time="n")


def tensor(dtype: DType, *axes: Axis) -> TensorType:
    return TensorType(dtype, axes)
