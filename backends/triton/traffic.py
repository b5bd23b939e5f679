"""Counts what kernels move and compute, while Triton's interpreter runs them.

Hooks on the interpreter (`hooks.py`) see the addresses of every load and store before memory is
touched: they are checked against the kernel's operands and counted. Per launch:

* issued bytes: summed over the programs, each lane of a load or store that its mask lets through;
* unique bytes: distinct bytes read, and distinct bytes written (`footprint.py`);
* sectors: bytes of the distinct groups of 32, from the start of an array, that each load or store of
  a tile touches;
* operations: of `tl.dot` (two for each multiplication), of elementwise float arithmetic, and special
  ones (exponentials, logarithms, roots, divisions, sines).

All programs of a launch run, or a few of them are `sampled` (`sampling.py`). A launch runs on real
data or is `dry`: then floats load as zero and are not stored, and no product is formed, so sizes may
be those of a real model. Whole numbers are loaded and stored, for they may become addresses: sampled,
the other programs of a launch that stores some run after those that are counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from .footprint import Footprint, Hull, Kind, Operand, distinct, operand
from .hooks import Handle, install
from .launches import Launch
from .sampling import Index, Quantities, Sampled

SECTOR = 32  # bytes


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
    stores_numbers: bool = False
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
        named = [o for o in self.operands if made is None or o.start == made.start]
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
        self.installed = self.counting = self.sampled = self.dry = False
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
        """Raises Race where programs of a launch inside race, unless they are counted anyway."""
        if self.counting:
            yield
            return
        with self.on() as launches:
            yield
        for launch in launches.values():
            if launch.races:
                raise Race(f"in {launch.kernel}: {'; '.join(launch.races)}")

    def switch(self, on: bool, sampled: bool = False, dry: bool = False) -> list[dict[str, Any]]:
        """Starts over or stops. The launches counted until now."""
        if not self.installed:
            install(self)
            self.installed = True
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
        if not self.dry:  # other data, maybe other addresses
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
            key = (*key, len(self.launches)) if self.running.stores_numbers else key
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
            if self.running.stores_numbers:
                for index in set(product(*map(range, self.grid))) - chosen.known.keys():
                    self._one(index, arguments)

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
