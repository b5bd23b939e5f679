"""Counts what kernels move and compute, while Triton's interpreter runs them.

Hooks on the interpreter see the addresses of every load and store before memory is touched: they
are checked against the kernel's operands and counted. Per launch:

* issued bytes: summed over the programs, each lane of a load or store that its mask lets through;
* unique bytes: distinct bytes read, and distinct bytes written (`footprint.py`);
* sectors: bytes of the distinct groups of 32, from the start of an array, that each load or store of
  a tile touches;
* operations: of `tl.dot` (two for each multiplication), of elementwise float arithmetic, and special
  ones (exponentials, logarithms, roots, divisions, sines).

All programs of a launch run, or a few of them are `sampled` (`sampling.py`). A launch runs on real
data or is `dry`: then floats load as zero, nothing is stored and no product is formed, so sizes may be
those of a real model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import numpy as np

from .footprint import Footprint, Hull, Kind, Operand, distinct, operand
from .launches import Launch
from .sampling import Index, Quantities, Sampled

Handle = Any  # triton.runtime.interpreter.TensorHandle
SECTOR = 32  # bytes
SPECIAL = (np.exp, np.exp2, np.log, np.log2, np.sqrt, np.sin, np.cos)


class OutOfBounds(Exception):
    """A program reads or writes outside its operands."""


class Race(Exception):
    """What programs of a launch leave behind depends on the order in which they run."""


@dataclass(slots=True)
class Running:
    """One launch that is being counted."""

    kernel: str
    operands: list[Operand]
    sampled: bool
    dry: bool
    touched: Footprint | Hull
    program: Index = (0, 0, 0)
    number: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def access(self, kind: Kind, pointers: Handle, mask: Handle | None) -> None:
        """Checks and counts one load, store or atomic operation of a tile."""
        addresses = pointers.data if mask is None else pointers.data[_like(mask, pointers)]
        addresses = addresses.ravel()
        if not addresses.size:
            return
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        to = self._operand(pointers, int(addresses.min()), int(addresses.max()) + size)
        self.counts[f"{kind} {to.name}"] += addresses.size * size
        sectors = (addresses - np.uint64(to.storage)) // np.uint64(SECTOR)
        self.counts[f"{kind} sectors"] += distinct(sectors) * SECTOR
        self.touched.mark(kind, to, addresses, size, self.number)

    def _operand(self, pointers: Handle, low: int, high: int) -> Operand:
        made = getattr(pointers, "operand", None)
        named = self.operands if made is None else [made]
        found = next((o for o in named if o.holds(low, high)), None)
        if found is None:
            names = ", ".join(f"{o.name} ({o.stop - o.start} B)" for o in named)
            where = f": bytes {low - made.start} to {high - made.start}" if made else ""
            raise OutOfBounds(f"program {self.program} of {self.kernel} leaves {names}{where}")
        return found

    def at(self, address: int) -> Operand | None:
        """The operand that starts there."""
        return next((o for o in self.operands if o.start == address), None)


def _like(mask: Handle, pointers: Handle) -> Any:
    return np.broadcast_to(mask.data, pointers.data.shape)


class Traffic:
    """The launches of this process, counted while it is on; `running` is the one under way."""

    def __init__(self) -> None:
        self.launches: dict[tuple[Any, ...], Launch] = {}
        self.counting = self.sampled = self.dry = False
        self.running: Running | None = None

    @contextmanager
    def on(
        self, *, sampled: bool = False, dry: bool = False
    ) -> Iterator[dict[tuple[Any, ...], Launch]]:
        """Counts the launches inside. Dry ones with equal arguments run once."""
        self.switch(True, sampled, dry)
        try:
            yield self.launches
        finally:
            self.counting = False

    @contextmanager
    def without_races(self) -> Iterator[None]:
        """Raises Race where programs of a launch inside race."""
        with self.on() as launches:
            yield
        for launch in launches.values():
            if launch.races:
                raise Race(f"in {launch.kernel}: {'; '.join(launch.races)}")

    def switch(self, on: bool, sampled: bool = False, dry: bool = False) -> list[dict[str, Any]]:
        """Starts over or stops. The launches counted until now."""
        install()
        found = [launch.to_json() for launch in self.launches.values()]
        if on:
            self.launches = {}
        self.counting, self.sampled, self.dry = on, sampled, dry
        return found

    def launch(
        self, executor: Any, run: Callable[[], None], names: Iterable[tuple[str, Any]]
    ) -> None:
        """Counts `run`, in which `executor` runs one launch."""
        given = list(names)
        key = (executor.fn.__name__, *(_identity(value) for _, value in given))
        if not self.dry:
            key = (*key, len(self.launches))
        if key in self.launches:
            self.launches[key].times += 1
            return
        operands = [operand(n, v) for n, v in given if hasattr(v, "data_ptr")]
        touched = Hull() if self.sampled else Footprint.of(operands)
        name = executor.fn.__name__
        self.running = Running(name, operands, self.sampled, self.dry, touched)
        programs = _Programs(executor.fn, self.running)
        executor.fn = programs
        try:
            run()
        finally:
            self.running = None
        self.launches[key] = programs.result()


TRAFFIC = Traffic()


class _Programs:
    """Stands for a kernel's function in the interpreter's loop over the grid.

    Sampled, it chooses programs in its first call and ignores the others. The interpreter reads the
    signature and the globals of what it calls.
    """

    def __init__(self, function: Any, running: Running) -> None:
        import inspect

        self.function, self.running = function, running
        self.__name__, self.__globals__ = function.__name__, function.__globals__
        self.__signature__ = inspect.signature(function)
        self.__annotations__ = function.__annotations__
        self.totals: Counter[str] = Counter()
        self.grid: Index = ()
        self.ran, self.exact = 0, True

    def __call__(self, **arguments: Any) -> None:
        from triton.runtime.interpreter import interpreter_builder as builder

        if not self.running.sampled:
            self.grid = tuple(builder.grid_dim)
            self.totals.update(self._one(tuple(builder.grid_idx), arguments))
        elif not self.grid:
            self.grid = tuple(builder.grid_dim)
            chosen = Sampled(self.grid, lambda index: self._one(index, arguments))
            self.totals, self.exact = Counter(chosen.total()), chosen.exact

    def _one(self, index: Index, arguments: dict[str, Any]) -> Quantities:
        from triton.runtime.interpreter import interpreter_builder as builder

        self.running.program, self.running.number = index, self.ran
        self.running.counts = Counter()
        self.ran += 1
        builder.set_grid_idx(*index)
        self.function(**arguments)
        return self.running.counts

    def result(self) -> Launch:
        totals, touched = self.totals, self.running.touched
        issued: dict[Kind, dict[str, int]] = {
            kind: {
                o.name: totals[f"{kind} {o.name}"]
                for o in self.running.operands
                if totals[f"{kind} {o.name}"]
            }
            for kind in ("load", "store", "atomic")
        }
        unique = {kind: touched.unique(kind, found) for kind, found in issued.items()}
        return Launch(
            self.running.kernel,
            self.grid,
            programs=math.prod(self.grid),
            ran=self.ran,
            exact=self.exact,
            reads=issued["load"],
            writes=_sum(issued["store"], issued["atomic"]),
            unique_reads=unique["load"],
            unique_writes=_sum(unique["store"], unique["atomic"]),
            sectors=sum(totals[f"{kind} sectors"] for kind in ("load", "store", "atomic")),
            dot=totals["dot"],
            float_ops=totals["float"],
            special=totals["special"],
            races=tuple(touched.races()),
        )


def _sum(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    return {name: a.get(name, 0) + b.get(name, 0) for name in {**a, **b}}


def _identity(value: Any) -> object:
    if hasattr(value, "data_ptr"):
        return tuple(value.shape), tuple(value.stride()), str(value.dtype)
    return value


# ------------------------------------------------------------------------------------- hooks

_installed = False


def install() -> None:
    """Hooks into the interpreter, once per process and after `repairs.apply`."""
    global _installed
    if _installed:
        return
    _installed = True
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    for names, hook in HOOKS.items():
        for name in names:
            setattr(builder, name, hook(getattr(builder, name)))
    interpreter.GridExecutor.__call__ = _launching(interpreter.GridExecutor.__call__)


def _launching(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def call(self: Any, *arguments: Any, **options: Any) -> None:
        if not TRAFFIC.counting:
            return original(self, *arguments, **options)
        # Arguments are in this process's memory: the interpreter would copy each storage onto itself.
        self._init_args_hst = lambda given, named: (given, named)
        self._restore_args_dev = lambda *given: None
        named = [*zip(self.arg_names, arguments, strict=False), *options.items()]
        named = [(n, v) for n, v in (*named, ("grid", self.grid))]
        return TRAFFIC.launch(self, lambda: original(self, *arguments, **options), named)

    return call


def _loading(original: Callable[..., Handle]) -> Callable[..., Handle]:
    @wraps(original)
    def load(self: Any, pointers: Handle, mask: Handle, *rest: Any) -> Handle:
        running = TRAFFIC.running
        if running is None:
            return original(self, pointers, mask, *rest)
        running.access("load", pointers, mask)
        if running.dry and pointers.get_element_ty().is_floating():
            return _zeros(pointers)
        return original(self, pointers, mask, *rest)

    return load


def _zeros(pointers: Handle) -> Handle:
    from triton.runtime.interpreter import TensorHandle, _get_np_dtype

    kind = pointers.get_element_ty()
    return TensorHandle(np.zeros(pointers.data.shape, _get_np_dtype(kind)), kind)


def _storing(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def store(self: Any, pointers: Handle, value: Handle, mask: Handle, *rest: Any) -> Any:
        running = TRAFFIC.running
        if running is not None:
            running.access("store", pointers, mask)
            if running.dry:
                return None
        return original(self, pointers, value, mask, *rest)

    return store


def _changing(original: Callable[..., Handle]) -> Callable[..., Handle]:
    """Atomic read-modify-write: (op, pointers, value, mask, ...) or (pointers, compared, value, ...)."""

    @wraps(original)
    def change(self: Any, *arguments: Any) -> Handle:
        running = TRAFFIC.running
        if running is not None:
            handles = [a for a in arguments if hasattr(a, "get_element_ty")]
            mask = handles[2] if handles[2].data.dtype == np.bool_ else None
            running.access("atomic", handles[0], mask)
            if running.dry:
                return _zeros(handles[0])
        return original(self, *arguments)

    return change


def _moving(original: Callable[..., Handle]) -> Callable[..., Handle]:
    """Pointer arithmetic and spreading: the result points into the operand that the argument does."""

    @wraps(original)
    def move(self: Any, *arguments: Any) -> Handle:
        made = original(self, *arguments)
        running = TRAFFIC.running
        if running is not None:
            for pointers in (a for a in arguments if _points(a)):
                found = getattr(pointers, "operand", None)
                made.operand = found or running.at(int(pointers.data.flat[0]))
        return made

    return move


def _points(argument: Any) -> bool:
    return hasattr(argument, "data") and hasattr(getattr(argument, "dtype", None), "element_ty")


def _multiplying(original: Callable[..., Handle]) -> Callable[..., Handle]:
    @wraps(original)
    def dot(self: Any, a: Handle, b: Handle, accumulator: Handle, *rest: Any) -> Handle:
        running = TRAFFIC.running
        if running is not None:
            running.counts["dot"] += 2 * a.data.size * b.data.shape[-1]
            if running.dry:
                return accumulator
        return original(self, a, b, accumulator, *rest)

    return dot


def _computing(original: Callable[..., Handle]) -> Callable[..., Handle]:
    """Elementwise arithmetic: counted by the elements of a float result."""

    @wraps(original)
    def compute(self: Any, *arguments: Any) -> Handle:
        made = original(self, *arguments)
        running = TRAFFIC.running
        if running is not None and any(a.dtype.is_floating() for a in arguments if _is_handle(a)):
            special = any(a is op for a in arguments for op in (*SPECIAL, np.divide))
            running.counts["special" if special else "float"] += made.data.size
        return made

    return compute


def _special(original: Callable[..., Handle]) -> Callable[..., Handle]:
    @wraps(original)
    def compute(self: Any, *arguments: Any) -> Handle:
        made = original(self, *arguments)
        if TRAFFIC.running is not None:
            TRAFFIC.running.counts["special"] += made.data.size
        return made

    return compute


def _is_handle(argument: Any) -> bool:
    return hasattr(argument, "data") and hasattr(argument, "dtype")


Hook = Callable[[Callable[..., Any]], Callable[..., Any]]
HOOKS: dict[tuple[str, ...], Hook] = {
    ("create_masked_load",): _loading,
    ("create_masked_store",): _storing,
    ("create_atomic_rmw", "create_atomic_cas"): _changing,
    ("create_addptr", "create_splat", "create_broadcast", "create_expand_dims"): _moving,
    ("create_dot",): _multiplying,
    ("binary_op", "unary_op", "create_fma"): _computing,
    ("create_rsqrt", "create_erf"): _special,
}
