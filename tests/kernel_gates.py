"""Kernels of the bundled examples at their published sizes, each once, and the registers that they
took when the baseline was last accepted.

`golden/registers.json` has a table for each version of Triton: by example and kernel, the registers
for the targets of `TARGETS` in order; null where the kernel has not been compiled.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from trained import small

from archc.api import load
from archc.backends.triton import TritonBackend
from archc.backends.triton.aot import Compiled
from archc.backends.triton.host import plan
from archc.backends.triton.kernel import Kernel
from archc.backends.triton.source import tile_of
from archc.backends.triton.tiles import TARGETS
from archc.compiler.gradient import derive
from archc.compiler.passes import optimise

EXAMPLES = Path(__file__).parent.parent / "examples"
BASELINE = Path(__file__).parent / "golden" / "registers.json"
MARGIN = 0.10
# Examples that have a kernel of every kind; `--all-kernels` finds out whether they still do.
COVER = (
    *("adaptive_llm", "block_recurrent", "deepseek_v2", "hyena", "linear_transformer", "llama"),
    *("llava", "mamba", "retro", "rwkv4"),
)


def examples() -> list[str]:
    """The covering examples first: a kernel that several have is theirs."""
    return [*COVER, *sorted({p.stem for p in EXAMPLES.glob("*.arch")} - {*COVER})]


@cache
def kernels_of(example: str) -> tuple[Kernel, ...]:
    model = load(EXAMPLES / f"{example}.arch")
    unwanted = TritonBackend().unwanted_passes("bf16")
    return tuple(plan(optimise(model.program, disable=unwanted).program).kernels.values())


def decoding(example: str) -> list[Kernel]:
    """The kernels that have other tiles where rows are few, as a program that decodes runs them: of
    each kind one that does all of a reduction and, where there is one, one that does a part."""
    chunk = load(EXAMPLES / f"{example}.arch").incremental().chunk
    unwanted = TritonBackend().unwanted_passes("bf16")
    made = plan(optimise(chunk, disable=unwanted).program).kernels.values()
    found = {
        (k.facts.kind, k.name.endswith("_part")): k
        for k in made
        if k.facts.kind in ("attend", "product")
    }
    return [replace(k, name=f"{example}__few_{k.name}") for k in found.values()]


def training(folder: Path) -> list[Kernel]:
    """What computes the gradients of a model with both norms, attention, a gate and a loss."""
    program = small(folder, "large").program.returning(["loss"])
    derived = derive(program, "loss", [p.path for p in program.parameters])
    unwanted = TritonBackend().unwanted_passes("bf16")
    made = plan(optimise(derived.backward, disable=unwanted).program).kernels.values()
    return [replace(k, name=f"small__{k.name}") for k in made]


def hardest(kernels: Iterable[Kernel]) -> list[Kernel]:
    """Of the kernels that train: the gradients of an attention's keys and values, which sum over
    rows, and the one with the most results."""
    *_, of_keys, of_values = (k for k in kernels if k.facts.kind == "attend")
    rows = [k for k in kernels if k.facts.kind == "row"]
    return [of_keys, of_values, max(rows, key=lambda k: k.facts.stored)]


def distinct(named: Iterable[str]) -> dict[str, list[Kernel]]:
    """The kernels of examples without those that an example before has."""
    seen: set[object] = set()
    found: dict[str, list[Kernel]] = {}
    for example in named:
        new = {k.identity: k for k in kernels_of(example) if k.identity not in seen}
        seen |= new.keys()
        found[example] = [replace(k, name=f"{example}__{k.name}") for k in new.values()]
    return found


def kind_of(kernel: Kernel) -> tuple[object, ...]:
    """What the gates depend on most: the row of a tile table and the products of the loop."""
    products = sum(line.count("tl.dot(") for line in kernel.body)
    tiles = tuple(tuple(tile_of(kernel, target, 2).items()) for target in TARGETS)
    if kernel.facts.kind in ("attend", "product"):
        return kernel.facts.kind, products, tiles
    wide = min(max(kernel.facts.width, 256), 4096)
    return kernel.facts.kind, kernel.blocks, wide, kernel.facts.angles


def first_of_each_kind(kernels: Iterable[Kernel]) -> list[Kernel]:
    return [*{kind_of(k): k for k in reversed([*kernels])}.values()]


@dataclass(frozen=True, slots=True)
class Baseline:
    """Registers by kernel name and target, of one version of Triton."""

    version: str
    table: Mapping[str, Mapping[str, int]]

    @classmethod
    def read(cls, version: str) -> Baseline:
        stored = json.loads(BASELINE.read_text()).get(version, {}) if BASELINE.exists() else {}
        return cls(
            version,
            {
                f"{example}__{name}": {
                    t: n for t, n in zip(TARGETS, row, strict=True) if n is not None
                }
                for example, kernels in stored.items()
                for name, row in kernels.items()
            },
        )

    def unknown(self, results: Sequence[Compiled]) -> list[str]:
        """What is not in the baseline."""
        return [
            f"{r.kernel} for {r.target}: no baseline; `pytest --accept` adds it"
            for r in results
            if r.target not in self.table.get(r.kernel, {})
        ]

    def excess(self, results: Sequence[Compiled]) -> Iterator[str]:
        """What takes more registers than the baseline and its margin allow."""
        for result in results:
            before = self.table.get(result.kernel, {}).get(result.target)
            if before is None or result.usage is None:
                continue
            if (now := result.usage.registers) > before * (1 + MARGIN):
                yield f"{result.kernel} for {result.target}: {now} registers, were {before}"

    def accepting(self, results: Sequence[Compiled], gone: Iterable[str] = ()) -> Baseline:
        table = {k: dict(row) for k, row in self.table.items() if k not in {*gone}}
        for result in results:
            if result.usage is not None:
                table.setdefault(result.kernel, {})[result.target] = result.usage.registers
        return Baseline(self.version, table)

    def write(self) -> None:
        """One line for each kernel, so that a difference is read like code."""
        stored = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
        here: dict[str, dict[str, list[int | None]]] = {}
        for key in sorted(self.table):
            example, name = key.split("__", 1)
            here.setdefault(example, {})[name] = [self.table[key].get(t) for t in TARGETS]
        stored[self.version] = here
        BASELINE.write_text(_pretty(stored))


def _pretty(stored: Mapping[str, Mapping[str, Mapping[str, object]]]) -> str:
    versions = []
    for version, found in stored.items():
        parts = [
            f"    {json.dumps(example)}: {{\n"
            + ",\n".join(f"      {json.dumps(k)}: {json.dumps(row)}" for k, row in kernels.items())
            + "\n    }"
            for example, kernels in found.items()
        ]
        versions.append(f"  {json.dumps(version)}: {{\n" + ",\n".join(parts) + "\n  }")
    return "{\n" + ",\n".join(versions) + "\n}\n"
