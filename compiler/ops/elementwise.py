"""Pointwise ops: each is a row of a table. Operands align by axis, in the widest one's layout.

A row gives the NumPy function and the torch, Triton and C++ expressions. Triton expressions avoid
libdevice, which Triton's interpreter lacks, and keep the accuracy the plain formula would lose.
C++ is written over what `step.h` of the torch backend defines, with floats in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..ir.graph import Attrs, Axis, DType, TensorType
from .erf import erf
from .numeric import Array, later, np
from .registry import (
    DTYPES,
    FORMATS,
    A,
    B,
    C,
    Call,
    Evaluate,
    N,
    Op,
    Sample,
    Template,
    Types,
    aligning,
    floating,
    op,
    per_result,
    promote,
    require,
    same,
    tensor,
)

DTypes = tuple[DType, ...]
Function = Callable[..., Array]


def union(inputs: Types) -> tuple[Axis, ...]:
    """The result's axes: the widest operand's (so that it need not move), then what others add."""
    by_width = sorted(inputs, key=lambda t: -len(t.axes))
    return tuple(dict.fromkeys(axis for t in by_width for axis in t.axes))


def as_they_are(dtypes: DTypes) -> DTypes:
    return dtypes


def promoted(dtypes: DTypes) -> DTypes:
    return (promote(*dtypes),) * len(dtypes)


def numbers(dtypes: DTypes) -> DTypes:
    require(promote(*dtypes) != "bool", "arithmetic on bool")
    return promoted(dtypes)


def floats(dtypes: DTypes) -> DTypes:
    return (floating(*dtypes),) * len(dtypes)


def bools(dtypes: DTypes) -> DTypes:
    require(set(dtypes) == {"bool"}, "needs bool")
    return dtypes


def choice(dtypes: DTypes) -> DTypes:
    require(dtypes[0] == "bool", "the condition is not bool")
    return ("bool", *promoted(dtypes[1:]))


def pointwise(
    name: str,
    arity: int,
    doc: str,
    function: Function,
    torch: Template,
    triton: Template,
    cpp: Template,
    operands: Callable[[DTypes], DTypes] = numbers,
    result: DType | None = None,
    samples: tuple[Sample, ...] = (),
    gradient: tuple[str, ...] = (),
) -> Op:
    """Adds a pointwise op. `result` is the result's element kind; without it, the last operand's.

    Without a text for each operand no gradient flows through it. `function` sees aligned arrays,
    already in the dtype of computation.
    """
    made = op(name, doc, pointwise=True, operands=operands, torch=torch, triton=triton, cpp=cpp)
    made.samples, made.elementwise = samples, per_result
    made.gradient = gradient or ("",) * arity

    @made.rule
    def _(attrs: Attrs, inputs: Types) -> Types:
        require(len(inputs) == arity, f"needs {arity} operands")
        kinds = operands(tuple(t.dtype for t in inputs))
        return (TensorType(result or kinds[-1], union(inputs)),)

    @made.prepared_meaning
    def _(call: Call) -> Evaluate:
        kinds = operands(tuple(t.dtype for t in call.inputs))
        to = call.outputs[0].axes
        fits = [_fitting(call, i, kind, to) for i, kind in enumerate(kinds)]
        run: Function = getattr(function, "load", lambda: function)()
        if _may_overwrite(call, kinds) and isinstance(run, np.ufunc):
            return _overwriting(run, fits, call.reuse or 0)
        return _fitted(run, fits)

    return made


def _fitting(call: Call, index: int, kind: DType, to: tuple[Axis, ...]) -> Function | None:
    """What brings an operand to the dtype of computation and the layout of the result.

    None for one that is known to have them.
    """
    x = call.inputs[index]
    dtype, aligned = call.precision.compute(kind), aligning(x.axes, to)
    if index in call.exact and call.precision.storage(x.dtype) == dtype:
        return aligned

    def converted(x: Array) -> Array:
        return x if x.dtype is dtype else x.astype(dtype)

    return converted if aligned is None else lambda x: aligned(converted(x))


def _may_overwrite(call: Call, kinds: DTypes) -> bool:
    """Whether the result has the elements and the dtype of the operand to reuse."""
    if call.reuse is None or not call.outputs[0].axes:
        return False
    (result,), reused, precision = call.outputs, call.inputs[call.reuse], call.precision
    found = precision.storage(result.dtype), precision.compute(kinds[call.reuse])
    return set(reused.axes) == set(result.axes) and {precision.storage(reused.dtype)} == {*found}


def _fitted(run: Function, fits: Sequence[Function | None]) -> Evaluate:
    """`run` on fitted operands; written out for one and two, of which there are many."""
    if not any(fits):
        return run
    if len(fits) == 1:
        (one,) = (fit or same for fit in fits)
        return lambda x: run(one(x))
    if len(fits) == 2:
        left, right = fits
        if left is None:
            right = right or same
            return lambda a, b: run(a, right(b))
        if right is None:
            return lambda a, b: run(left(a), b)
        return lambda a, b: run(left(a), right(b))
    given = [fit or same for fit in fits]
    return lambda *arrays: run(*[fit(x) for fit, x in zip(given, arrays, strict=True)])


def _overwriting(run: Function, fits: Sequence[Function | None], reused: int) -> Evaluate:
    if not any(fits) and len(fits) == 2:
        return (lambda a, b: run(a, b, out=b)) if reused else lambda a, b: run(a, b, out=a)
    given = [fit or same for fit in fits]

    def overwrite(*arrays: Array) -> Array:
        fitted = [fit(x) for fit, x in zip(given, arrays, strict=True)]
        return run(*fitted, out=fitted[reused])

    return overwrite


def on(*dtypes: DType, domain: tuple[float, float] = (-2.0, 2.0)) -> tuple[Sample, ...]:
    """Unary samples, one for each element kind."""
    return tuple(Sample((tensor(d, A, N),), domain=domain) for d in dtypes)


def pairs(*dtypes: DType, domain: tuple[float, float] = (-2.0, 2.0)) -> tuple[Sample, ...]:
    """Binary samples: equal axes in another order, a missing axis, an added axis, a scalar."""
    layouts = [((A, B), (B, A)), ((A, N), (N,)), ((B,), (A, C)), ((), (A, B))]
    return tuple(
        Sample((tensor(d, *left), tensor(d, *right)), domain=domain)
        for d in dtypes
        for left, right in layouts
    )


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)). Where the exponential overflows, the result is below what is representable."""
    made = np.asarray(np.negative(x))
    with np.errstate(over="ignore"):
        np.exp(made, out=made)
    made += 1
    return np.asarray(np.reciprocal(made, out=made))


TRITON_TANH = (
    "tl.where(tl.abs({0}) < 0.1, {0} * (1 - {0} * {0} * (1 / 3 - {0} * {0} * (2 / 15"
    " - {0} * {0} * (17 / 315)))), 2 * tl.sigmoid(2 * {0}) - 1)"
)
# Kahan: the rounding error of 1 + x cancels in log(1 + x) / ((1 + x) - 1).
TRITON_LOG1P = (
    "tl.where({0} + 1 == 1, {0}, tl.where({0} < 1, tl.log({0} + 1) * ({0} / (({0} + 1) - 1)),"
    " tl.log({0} + 1)))"
)
# Up from a fraction over one half, and from exactly one half above an odd number.
TRITON_ROUND = (
    "(tl.floor({0}) + tl.where(({0} - tl.floor({0}) > 0.5) | (({0} - tl.floor({0}) == 0.5)"
    " & (tl.floor({0}) != 2 * tl.floor(tl.floor({0}) / 2))), 1.0, 0.0))"
)
TRITON_POW = (
    "tl.where({1} == 0, 1.0, tl.exp2({1} * tl.log2(tl.abs({0}))) * tl.where({0} < 0,"
    " tl.where({1} == tl.floor({1}), 1 - 2 * ({1} - 2 * tl.floor({1} / 2)), float('nan')), 1.0))"
)
# Integer division truncates in Triton and floors in the language. No method is called on an operand: in
# the interpreter the number of a loop's round is Python's.
TRITON_FLOORDIV = {
    "int": "(({0} - ((({0} % {1}) + {1}) % {1})) // {1})",
    "float": "tl.floor({0} / {1})",
}
TRITON_MOD = {
    "int": "((({0} % {1}) + {1}) % {1})",
    "float": "({0} - tl.floor({0} / {1}) * {1})",
}

POSITIVE, SMALL = (0.01, 4.0), (-0.9, 3.0)

# name, meaning, NumPy, torch, Triton, C++, domain of the samples, gradient: float to float (int
# becomes float)
FUNCTIONS: tuple[tuple[str, str, Function, str, str, str, tuple[float, float], str], ...] = (
    (
        "exp",
        "e to the x",
        later.exp,
        "torch.exp({0})",
        "tl.exp({0})",
        "exponential({0})",
        (-4, 4),
        "d * y",
    ),
    (
        "log",
        "natural logarithm",
        later.log,
        "torch.log({0})",
        "tl.log({0})",
        "std::log({0})",
        POSITIVE,
        "d / a",
    ),
    (
        "log1p",
        "log(1 + x)",
        later.log1p,
        "torch.log1p({0})",
        TRITON_LOG1P,
        "std::log1p({0})",
        SMALL,
        "d / (1 + a)",
    ),
    (
        "sqrt",
        "square root",
        later.sqrt,
        "torch.sqrt({0})",
        "tl.sqrt({0})",
        "std::sqrt({0})",
        POSITIVE,
        "d / (2 * y)",
    ),
    (
        "rsqrt",
        "1 / sqrt(x)",
        lambda x: 1 / np.sqrt(x),
        "torch.rsqrt({0})",
        "tl.rsqrt({0})",
        "(1 / std::sqrt({0}))",
        POSITIVE,
        "d * y * y * y * -0.5",
    ),
    (
        "sin",
        "sine",
        later.sin,
        "torch.sin({0})",
        "tl.sin({0})",
        "std::sin({0})",
        (-9, 9),
        "d * cos(a)",
    ),
    (
        "cos",
        "cosine",
        later.cos,
        "torch.cos({0})",
        "tl.cos({0})",
        "std::cos({0})",
        (-9, 9),
        "-(d * sin(a))",
    ),
    (
        "tanh",
        "hyperbolic tangent",
        later.tanh,
        "torch.tanh({0})",
        TRITON_TANH,
        "std::tanh({0})",
        (-3, 3),
        "d * (1 - y * y)",
    ),
    (
        "sigmoid",
        "1 / (1 + exp(-x))",
        sigmoid,
        "torch.sigmoid({0})",
        "tl.sigmoid({0})",
        "sigmoid({0})",
        (-9, 9),
        "d * y * (1 - y)",
    ),
    (
        "erf",
        "error function",
        erf,
        "torch.erf({0})",
        "tl.erf({0})",
        "std::erf({0})",
        (-4, 4),
        "d * exp(-(a * a)) * 1.1283791670955126",
    ),
    (
        "round",
        "nearest whole, half to even",
        later.rint,
        "torch.round({0})",
        TRITON_ROUND,
        "std::nearbyint({0})",
        (-3, 3),
        "",
    ),
    (
        "floor",
        "greatest integer <= x",
        later.floor,
        "torch.floor({0})",
        "tl.floor({0})",
        "std::floor({0})",
        (-3, 3),
        "",
    ),
)
for _name, _doc, _numpy, _torch, _triton, _cpp, _domain, _gradient in FUNCTIONS:
    _samples = on("float", "f32", "f64", domain=_domain)
    pointwise(
        _name, 1, _doc, _numpy, _torch, _triton, _cpp, floats, samples=_samples,
        gradient=(_gradient,),
    )  # fmt: skip

# name, meaning, NumPy, torch, Triton, C++, samples, gradients: number and number, promoted
Gradients = tuple[str, str]
ARITHMETIC: tuple[
    tuple[str, str, Function, Template, Template, str, tuple[Sample, ...], Gradients], ...
] = (
    (
        "add",
        "a + b",
        later.add,
        "({0} + {1})",
        "({0} + {1})",
        "({0} + {1})",
        pairs("float", "int"),
        ("d", "d"),
    ),
    (
        "sub",
        "a - b",
        later.subtract,
        "({0} - {1})",
        "({0} - {1})",
        "({0} - {1})",
        pairs("f32", "int"),
        ("d", "-d"),
    ),
    (
        "mul",
        "a * b",
        later.multiply,
        "({0} * {1})",
        "({0} * {1})",
        "({0} * {1})",
        pairs("float", "f64", "int"),
        ("d * b", "d * a"),
    ),
    (
        "floordiv",
        "floor of the quotient",
        later.floor_divide,
        "torch.div({0}, {1}, rounding_mode='floor')",
        TRITON_FLOORDIV,
        "quotient({0}, {1})",
        pairs("int", "f32", domain=(1, 5)),
        ("", ""),
    ),
    (
        "mod",
        "a - b * floordiv(a, b): the sign of b",
        later.mod,
        "torch.remainder({0}, {1})",
        TRITON_MOD,
        "remainder_of({0}, {1})",
        pairs("int", "f32", domain=(1, 5)),
        ("d", "-(d * floordiv(a, b))"),
    ),
)
for _name, _doc, _numpy, _torch_of, _triton_of, _cpp, _samples, _gradients in ARITHMETIC:
    pointwise(
        _name, 2, _doc, _numpy, _torch_of, _triton_of, _cpp, numbers, samples=_samples,
        gradient=_gradients,
    )  # fmt: skip

pointwise(
    "div", 2, "a / b, float also for integers", later.divide, "({0} / {1})", "({0} / {1})",
    "({0} / {1})", floats, samples=pairs("float", "int", domain=(1, 5)), gradient=("d / b", "-(d * y / b)"),
)  # fmt: skip
pointwise(
    "pow", 2, "a to the b, float also for integers", later.power, "torch.pow({0}, {1})", TRITON_POW,
    "std::pow({0}, {1})", floats, samples=pairs("float", domain=(0.1, 3)),
    gradient=("d * b * pow(a, b - 1)", "where(eq(a, 0), 0, d * y * log(a))"),
)  # fmt: skip
# Which operand counts, NaN among them.
ANY_NAN = "propagate_nan=tl.PropagateNan.ALL"
# Equal ones share it.
LESSER = tuple(
    f"d * where(eq(a, b), 0.5, where({least}, 1, 0))" for least in ("lt(a, b)", "lt(b, a)")
)
pointwise(
    "min", 2, "the lesser; `and` on bool", later.minimum,
    {"bool": "({0} & {1})", "int": "torch.minimum({0}, {1})", "float": "torch.minimum({0}, {1})"},
    {"bool": "({0} & {1})", "int": "tl.minimum({0}, {1})",
     "float": f"tl.minimum({{0}}, {{1}}, {ANY_NAN})"},
    "least({0}, {1})", promoted, samples=pairs("float", "int", "bool"), gradient=LESSER,
)  # fmt: skip
pointwise(
    "max", 2, "the greater; `or` on bool", later.maximum,
    {"bool": "({0} | {1})", "int": "torch.maximum({0}, {1})", "float": "torch.maximum({0}, {1})"},
    {"bool": "({0} | {1})", "int": "tl.maximum({0}, {1})",
     "float": f"tl.maximum({{0}}, {{1}}, {ANY_NAN})"},
    "greatest({0}, {1})", promoted, samples=pairs("float", "int", "bool"), gradient=LESSER[::-1],
)  # fmt: skip

COMPARISONS: tuple[tuple[str, Function, str], ...] = (
    ("eq", later.equal, "({0} == {1})"),
    ("lt", later.less, "({0} < {1})"),
    ("le", later.less_equal, "({0} <= {1})"),
)
for _name, _numpy, _text in COMPARISONS:
    pointwise(
        _name, 2, f"a {_name} b, as bool", _numpy, _text, _text, _text, promoted, "bool",
        samples=pairs("int", "f32"),
    )  # fmt: skip

pointwise(
    "where", 3, "a where the condition holds, else b", later.where,
    "torch.where({0}, {1}, {2})", "tl.where({0}, {1}, {2})", "({0} ? {1} : {2})",
    choice,
    samples=(
        Sample((tensor("bool", B, A), tensor("float", A, B), tensor("float"))),
        Sample((tensor("bool", N), tensor("int", A), tensor("f32", N, A))),
    ), gradient=("", "where(a, d, 0)", "where(a, 0, d)"),
)  # fmt: skip
pointwise(
    "abs", 1, "magnitude", later.abs, "torch.abs({0})", "tl.abs({0})",
    "std::abs({0})", samples=on("float", "int"),
    gradient=("d * (where(lt(0, a), 1, 0) - where(lt(a, 0), 1, 0))",),
)  # fmt: skip
pointwise(
    "not", 1, "negation", later.logical_not, "(~{0})", "({0} == 0)", "(!{0})", bools,
    samples=on("bool"),
)  # fmt: skip
pointwise(
    "to_int", 1, "truncation towards zero", later.trunc, "{0}.to({dtype})", "{0}.to({dtype})",
    "int64_t({0})", as_they_are, "int", on("float", "f64", "bool", domain=(-5, 5)),
)  # fmt: skip
pointwise(
    "to_float", 1, "an integer or a truth value as a float", later.asarray, "{0}.to({dtype})",
    "tl.cast({0}, {dtype})", "float({0})", as_they_are, "float", on("int", "bool"),
)  # fmt: skip
pointwise(
    "stop_gradient", 1, "x, through which no gradient flows", later.asarray, "{0}.detach()", "{0}",
    "{0}", as_they_are, samples=on("float"),
)  # fmt: skip


CAST = op(
    "cast",
    "`dtype` as a floor: at least this precision from here; `float` goes back to the model's",
    pointwise=True,
    torch="{0}.to({dtype})",
    triton="{0}.to({dtype})",
    cpp="float({0})",
    samples=tuple(
        Sample((tensor(source, A, N),), {"dtype": target})
        for source in ("float", "f32", "f64", "int")
        for target in ("float", "f32", "f64")
    ),
    gradient=("d",),
)


@CAST.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    target = attrs.string("dtype")
    require(target in DTYPES[DTYPES.index("float") :], f"cannot cast to {target}")
    kind: DType = DTYPES[DTYPES.index(target)]
    return (
        TensorType(kind if kind == "float" else promote(kind, inputs[0].dtype), inputs[0].axes),
    )


@CAST.prepared_meaning
def _(call: Call) -> Evaluate:
    return same


ROUND_TO = op(
    "round_to",
    "x rounded to the nearest number of `format`, in every mode; the type stays",
    pointwise=True,
    torch="{0}.to({format}).to({dtype})",
    triton="{0}.to({format}).to({dtype})",
    elementwise=per_result,
    samples=tuple(Sample((tensor("float", A, N),), {"format": name}) for name in FORMATS),
    gradient=("d",),  # as if it rounded nothing
)


@ROUND_TO.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    require(attrs.string("format") in FORMATS, f"no format {attrs.string('format')}")
    require(inputs[0].dtype in DTYPES[DTYPES.index("float") :], "rounds floats only")
    return inputs


@ROUND_TO.meaning
def _(call: Call, x: Array) -> Array:
    return x.astype(FORMATS[call.attrs.string("format")])
