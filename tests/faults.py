"""A catalogue of single faults: ways to break one rule of one backend while a `with` lasts.

`FAULTS[backend][kind]` makes a context manager. A `Faulty` backend is the real one with a fault
active while it lowers and while it runs; the reference runs of a comparison stay outside it.
A stale weight needs no such thing: the backend is given another layer's. `PASSES` are faults of
rewrites, which every backend would run.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from archc.backends.base import Backend, Executable
from archc.backends.numpy import tiles
from archc.compiler.ir.graph import Attrs, Program
from archc.compiler.ops import OPS
from archc.compiler.passes import canonicalize

Array = np.ndarray[Any, Any]
Fault = Callable[[], AbstractContextManager[Any]]


@dataclass
class Faulty(Backend):
    """`reads` says under which path each weight is looked up, `strikes` which programs are run wrongly."""

    inner: Backend
    fault: Fault = nullcontext
    reads: Callable[[str], str] = str
    strikes: Callable[[Program], bool] = lambda program: True

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.inner.name

    def emit(self, program: Program, **options: Any) -> dict[str, str]:
        with self.fault():
            return self.inner.emit(program, **options)

    def load(self, program: Program, weights: Mapping[str, Array], **options: Any) -> Executable:
        given = {path: weights[self.reads(path)] for path in weights}
        like = options.pop("like", None)
        options |= {"like": like.inner} if like is not None else {}
        fault = self.fault if self.strikes(program) else nullcontext
        with fault():
            return FaultyExecutable(self.inner.load(program, given, **options), fault)


@dataclass
class FaultyExecutable(Executable):
    inner: Executable
    fault: Fault

    def run(self, inputs: Mapping[str, Array]) -> Any:
        with self.fault():
            return self.inner.run(inputs)

    def trace(self, inputs: Mapping[str, Array]) -> Any:
        with self.fault():
            return self.inner.trace(inputs)

    def step(
        self, inputs: Mapping[str, Array], states: Mapping[str, Any], sizes: Mapping[str, int]
    ) -> Any:
        with self.fault():
            return self.inner.step(inputs, states, sizes)

    def empty(self, *like: Any) -> Any:
        return self.inner.empty(*like)

    def array(self, state: Any) -> Array:
        return self.inner.array(state)


def continues(program: Program) -> bool:
    """Whether it goes on from what is kept: a step, not the run of a whole sequence."""
    return any(node.op in ("state", "append") for f in program.functions for node in f.nodes)


@contextmanager
def setting(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name`, or `owner[name]` of a dict, is `value`."""
    mapping = isinstance(owner, dict)
    get, put = (dict.__getitem__, dict.__setitem__) if mapping else (getattr, setattr)
    old = get(owner, name)
    put(owner, name, value)
    try:
        yield
    finally:
        put(owner, name, old)


def wrapped(owner: Any, name: str, wrong: Callable[..., Any]) -> Fault:
    """`wrong(right, *arguments)` in place of the function `owner.name`."""
    right = owner[name] if isinstance(owner, dict) else getattr(owner, name)
    return lambda: setting(owner, name, lambda *arguments: wrong(right, *arguments))


def meaning(op: str, wrong: Callable[..., Any]) -> Fault:
    """`wrong(right, call, *arrays)` in place of what an op means to the numpy backend."""

    def fault() -> AbstractContextManager[Any]:
        prepare = OPS[op].prepare
        right = lambda call, *arrays: prepare(call)(*arrays)  # noqa: E731
        return setting(OPS[op], "prepare", lambda call: partial(wrong, right, call))

    return fault


def template(target: str, op: str, text: str) -> Fault:
    """Another expression of a pointwise op in a target's language."""
    return lambda: setting(OPS[op], target, text)


def changed(node: Any, **attrs: Any) -> Any:
    """The node, or call, with other attributes."""
    return replace(node, attrs=Attrs({**node.attrs, **attrs}))


def small_epsilon(right, *arguments):
    """1e-6 for 1e-5. The last argument is the constant's node or call."""
    *scope, node = arguments
    return right(*scope, changed(node, value=1e-6) if node.attrs["value"] == 1e-5 else node)


# ------------------------------------------------------------------------------------- numpy


def unscaled(right, call, a, b):
    return a if b.ndim == 0 and float(b) == 0.25 else right(call, a, b)


def interleaved(right, call, x):
    """Reads (pair, i) as (i, pair)."""
    into = call.attrs.axes("into")
    if [axis.name for axis in into] != ["pair", "i"]:
        return right(call, x)
    at = call.inputs[0].position(call.attrs.axis("axis"))
    pair, i = (call.extent(axis) for axis in into)
    return x.reshape(*x.shape[:at], i, pair, *x.shape[at + 1 :]).swapaxes(at, at + 1)


def without_vector(right, call, a, b):
    """Leaves out an operand that has the features' axis alone."""
    return a if b.ndim == 1 and a.ndim == 3 and a.shape[-1:] == b.shape else right(call, a, b)


def over_everything(right, call, x):
    return np.broadcast_to(np.mean(right(call, x)), call.shape)


def along_rows(right, call, x):
    return right(changed(call, axis=call.inputs[0].axes[1]), x)


def as_tanh(right, call, x):
    return np.tanh(1.1283791671 * (x + 0.08943 * x**3))


def through_half(right, call, x):
    y = right(call, x)
    return y.astype(np.float16).astype(y.dtype) if call.attrs["dtype"] == "f32" else y


def several_tiles(fault: Fault) -> Fault:
    """With tiles of few keys, so that short inputs have several."""

    @contextmanager
    def both() -> Iterator[None]:
        with setting(tiles, "KEYS", 64), fault():
            yield

    return both


NUMPY: dict[str, Fault] = {
    "scale dropped": meaning("mul", unscaled),
    "mask bound": meaning("le", lambda right, call, a, b: right(call, a, b - 1)),
    "rope pairing": meaning("split", interleaved),
    "epsilon": meaning("const", small_epsilon),
    "gain dropped": meaning("mul", without_vector),
    "difference swapped": meaning("sub", lambda right, call, a, b: right(call, b, a)),
    "quotient swapped": meaning("div", lambda right, call, a, b: 1 / right(call, a, b)),
    "wrong axis": meaning("sum", over_everything),
    "bias dropped": meaning("add", without_vector),
    "GELU flavour": meaning("erf", as_tanh),
    "softmax axis": meaning("softmax", along_rows),
    "cast to half": meaning("cast", through_half),
    "last tile skipped": wrapped(
        tiles.TiledRun, "windows", lambda right, run: list(right(run))[:-1]
    ),
    "tiles not rescaled": several_tiles(
        wrapped(tiles.TiledRun, "enter_scores", lambda right, *given: np.ones_like(right(*given)))
    ),
}


# ------------------------------------------------------------------------------------- torch


def lowering(op: str, wrong: Callable[..., Any]) -> Fault:
    """`wrong(right, scope, node, *operands)` in place of what lowers an op to torch."""

    def fault() -> AbstractContextManager[Any]:
        from archc.backends import torch  # noqa: F401 (fills the table)

        return wrapped(OPS[op].lowerings, "torch", wrong)()

    return fault


def unscaled_attention() -> AbstractContextManager[Any]:
    from archc.backends.torch import attention

    one = ast.keyword("scale", ast.Constant(1.0))
    return setting(attention, "_scale", lambda scores: one)


def crossed_pairs(right, scope, node, x):
    paired = node.attrs.axis("axis").name == "pair"
    return right(scope, changed(node, at=1 - node.attrs.dim("at").constant) if paired else node, x)


def without_weight(right, scope, node, a, b):
    return a if b.weight else b if a.weight else right(scope, node, a, b)


def first_axis(right, scope, node, x):
    """Sums another axis than is asked for."""
    other = next(axis for axis in x.axes if axis not in node.attrs.axes("axes"))
    return right(scope, changed(node, axes=(other,)), x)


def narrowed(right, scope, node, x):
    from archc.backends.torch.source import expression

    y = right(scope, node, x)
    if node.type.dtype != "f32":
        return y
    return replace(y, expr=expression("{0}.to(torch.float16).to({0}.dtype)", y.expr))


TORCH: dict[str, Fault] = {
    "scale dropped": unscaled_attention,
    "mask bound": template("torch", "le", "{0} < {1}"),
    "rope pairing": lowering("pick", crossed_pairs),
    "epsilon": lowering("const", small_epsilon),
    "gain dropped": lowering("mul", without_weight),
    "difference swapped": template("torch", "sub", "{1} - {0}"),
    "quotient swapped": template("torch", "div", "{1} / {0}"),
    "wrong axis": lowering("sum", first_axis),
    "bias dropped": lowering("add", without_weight),
    "GELU flavour": template("torch", "erf", "torch.tanh(1.1283791671 * ({0} + 0.08943 * {0}**3))"),
    "softmax axis": lowering(
        "softmax",
        lambda right, scope, node, x: right(scope, changed(node, axis=node.axes[1]), x),
    ),
    "cast to half": lowering("cast", narrowed),
}

# ------------------------------------------------------------------------------------- triton


def rule(op: str, wrong: Callable[..., Any]) -> Fault:
    """`wrong(right, evaluator, node, at)` in place of the rule that writes an op into a kernel."""

    def fault() -> AbstractContextManager[Any]:
        from archc.backends.triton import evaluate

        return wrapped(evaluate.RULES, op, wrong)()

    return fault


def writer(name: str, wrong: Callable[..., Any]) -> Fault:
    """The same for a method that writes many ops."""

    def fault() -> AbstractContextManager[Any]:
        from archc.backends.triton import evaluate

        return wrapped(evaluate.Evaluator, name, wrong)()

    return fault


def online(name: str, wrong: Callable[..., Any]) -> Fault:
    """`wrong(right, *arguments)` in place of a function that writes the loop over keys."""

    def fault() -> AbstractContextManager[Any]:
        from archc.backends.triton import online

        return wrapped(online, name, wrong)()

    return fault


def constant(old: float, new: float) -> Fault:
    def wrong(right, evaluator, node, at):
        return right(
            evaluator, changed(node, value=new) if node.attrs["value"] == old else node, at
        )

    return rule("const", wrong)


def crossed_view(right, evaluator, node, at):
    paired = node.op == "pick" and node.attrs.axis("axis").name == "pair"
    crossed = changed(node, at=1 - node.attrs.dim("at").constant) if paired else node
    return right(evaluator, crossed, at)


def without_vector_of(op: str) -> Fault:
    def wrong(right, evaluator, node, at):
        operands = evaluator.region.operands(node)
        if node.op == op and len(operands[1].axes) == 1 and len(operands[0].axes) == 3:
            return evaluator.value(operands[0].id, at)
        return right(evaluator, node, at)

    return writer("_pointwise", wrong)


def narrowed_cast(right, evaluator, node, at):
    value = right(evaluator, node, at)
    if node.op != "cast" or node.type.dtype != "f32":
        return value
    return replace(value, text=f"{value.text}.to(tl.float16).to(tl.float32)")


def another_axis(right, evaluator, node, at):
    """Sums along an axis that is not asked for."""
    (x,) = evaluator.region.operands(node)
    other = next(axis for axis in x.axes if axis not in node.attrs.axes("axes"))
    return right(evaluator, changed(node, axes=(other,)), at)


TRITON: dict[str, Fault] = {
    "scale dropped": constant(0.25, 1.0),
    "mask bound": template("triton", "le", "({0} < {1})"),
    "rope pairing": writer("_view", crossed_view),
    "epsilon": constant(1e-5, 1e-6),
    "gain dropped": without_vector_of("mul"),
    "difference swapped": template("triton", "sub", "({1} - {0})"),
    "quotient swapped": template("triton", "div", "({1} / {0})"),
    "wrong axis": rule("sum", another_axis),
    "bias dropped": without_vector_of("add"),
    "GELU flavour": template("triton", "erf", "({0} / (1.0 + tl.abs({0})))"),
    "softmax axis": rule(
        "softmax",
        lambda right, evaluator, node, at: right(evaluator, changed(node, axis=node.axes[1]), at),
    ),
    "cast to half": writer("_pointwise", narrowed_cast),
    "sum not divided": online("_normalised", lambda right, r, part, parent, t: part.finish(parent)),
    "tiles not rescaled": online("_weights", lambda right, *given: right(*given) and "1.0"),
}

FAULTS: dict[str, dict[str, Fault]] = {"numpy": NUMPY, "torch": TORCH, "triton": TRITON}

# ------------------------------------------------------------------------------------- passes


def in_a_pass(name: str, function: str, wrong: Callable[..., Any]) -> Fault:
    """`wrong(right, edit, *arguments)` in place of a function of a pass's module."""
    return wrapped(vars(import_module(f"archc.compiler.passes.{name}")), function, wrong)


def taken_for_neutral(op: str, value: float) -> Fault:
    """`x op value` is rewritten to x."""
    return lambda: setting(canonicalize.NEUTRAL, op, value)


def times(value: float) -> Callable[..., int]:
    def wrong(right, edit, *arguments):
        made = right(edit, *arguments)
        kind = edit[made].type.dtype
        return edit.add("mul", (made, edit.add("const", (), {"value": value, "dtype": kind})))

    return wrong


def without_gains(right, edit, weight, form):
    return right(edit, weight, replace(form, gains=[]))


def first_gain_twice(right, edit, weight, form):
    return right(edit, weight, replace(form, gains=[*form.gains, *form.gains[:1]]))


def from_the_start(right, edit, whole, packed, part, start, columns):
    return right(edit, whole, packed, part, start * 0, columns)


def backwards(right, edit, operands, group, parts, packed):
    """Packs the first matrix, over and over, where the shapes allow it."""
    alike = all(n.axes == operands[0].axes for n in operands)
    return right(edit, operands[:1] * len(operands) if alike else operands, group, parts, packed)


PASSES: dict[str, Fault] = {
    "gain not folded": in_a_pass("fuse_norm_linear", "_scaled_weight", without_gains),
    "gain folded twice": in_a_pass("fuse_norm_linear", "_scaled_weight", first_gain_twice),
    "shift dropped": in_a_pass("fuse_norm_linear", "_shift", times(0.0)),
    "columns of the first part": in_a_pass("pack_projections", "_column_slice", from_the_start),
    "first matrix for all": in_a_pass("pack_projections", "_joined", backwards),
    "scale taken for one": taken_for_neutral("mul", 0.25),
    "one taken for nothing": taken_for_neutral("add", 1),
}
