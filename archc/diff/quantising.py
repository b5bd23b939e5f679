"""What quantised weights do to a model: in its outputs, and at the nodes where the error arises.

Both graphs run in float64, optimised alike, so what differs is the weights alone. A node introduces
the error of its result when its operands are those of the exact graph and its weights are not; in
the whole run it has that of its operands too. Errors are rms, relative to the rms of the exact value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

import numpy as np

from ..backends.base import Array, ValueKey, bind_inputs
from ..backends.numpy import NumpyBackend
from ..compiler.extract import Extract, islands
from ..compiler.ir.graph import Program
from ..compiler.ops import ModelDType, Precision
from ..compiler.passes import Optimised, optimise
from ..compiler.passes.quantise import Quant
from ..equality import is_float, rms
from .inputs import Case
from .reference import Rounded, Run
from .regions import folded, group
from .values import Values, by_definition, same_values


@dataclass(frozen=True, slots=True)
class Loss:
    """The greatest errors of a group's values; `introduced` is None where no weight of it changed."""

    introduced: float | None
    whole: float

    def shown(self) -> tuple[str, str]:
        """Both as text; nothing where none is introduced."""
        introduced = "" if self.introduced is None else f"{self.introduced:.1e}"
        return introduced, f"{self.whole:.1e}"

    def worse(self, other: Loss) -> Loss:
        both = [x for x in (self.introduced, other.introduced) if x is not None]
        return Loss(max(both, default=None), max(self.whole, other.whole))


@dataclass(frozen=True, slots=True)
class Quantising:
    """By group in the order they run, and by output."""

    quant: Quant
    dtype: ModelDType
    groups: Mapping[str, Loss]
    outputs: Mapping[str, Loss]

    def worse(self, other: Quantising) -> Quantising:
        groups, outputs = _worst(self.groups, other.groups), _worst(self.outputs, other.outputs)
        return Quantising(self.quant, self.dtype, groups, outputs)

    def rows(self) -> list[tuple[str, Loss]]:
        """Groups, those that differ in the number of their layer as one, then outputs."""
        losses = list(self.groups.values())
        labels = folded([(region, None) for region in self.groups])
        rows = [(label, reduce(Loss.worse, (losses[i] for i in m))) for label, m in labels]
        return [*rows, *((f"output {name}", loss) for name, loss in self.outputs.items())]

    def to_json(self) -> dict[str, Any]:
        """As plain data, layer by layer."""
        groups = [{"region": r, **asdict(loss)} for r, loss in self.groups.items()]
        outputs = {name: loss.whole for name, loss in self.outputs.items()}
        return {"quant": self.quant, "dtype": self.dtype, "groups": groups, "outputs": outputs}


def _worst(ours: Mapping[str, Loss], theirs: Mapping[str, Loss]) -> dict[str, Loss]:
    return {**theirs, **{k: loss.worse(theirs.get(k, loss)) for k, loss in ours.items()}}


def quantising(
    program: Program, weights: Mapping[str, Array], quant: Quant, dtype: ModelDType, case: Case
) -> Quantising:
    """The errors on one case, of a run that holds weights and inputs in `dtype`."""
    rounded = Rounded(weights, dtype)
    exact, few = (optimise(program, quant=q) for q in (None, quant))
    gold, got = (_run(o.program, rounded, case.inputs) for o in (exact, few))
    inner = dict(same_values(few))
    partners = {inner[key]: at for key, at in same_values(exact) if key in inner}
    values = Values(few.program)
    pairs = [
        (key, partners[key])
        for key in values.order
        if key in partners and key in got.values and partners[key] in gold.values
    ]
    alone = _introduced(few, values, rounded, case, gold, got, partners)
    groups: dict[str, Loss] = {}
    for key, at in pairs:
        if is_float(gold.values[at].dtype) and values.node(key).op not in ("const", "size"):
            loss = Loss(alone.get(key), error(got.values[key], gold.values[at]))
            region = group(few.program, key[0], values.node(key))
            groups[region] = loss.worse(groups.get(region, loss))
    outputs = {n: Loss(None, error(got.outputs[n], x)) for n, x in gold.outputs.items()}
    return Quantising(quant, dtype, groups, outputs)


def _run(program: Program, weights: Mapping[str, Array], inputs: Mapping[str, Array]) -> Run:
    loaded = NumpyBackend().load(by_definition(program), weights, dtype="f64")
    return Run(*loaded.trace(inputs))


def error(got: Array, exact: Array) -> float:
    """rms of the difference over the rms of `exact`, where both are finite."""
    finite = np.isfinite(got) & np.isfinite(exact)
    return rms(got[finite] - exact[finite]) / (rms(exact[finite]) or 1.0)


def _introduced(
    few: Optimised,
    values: Values,
    weights: Mapping[str, Array],
    case: Case,
    gold: Run,
    got: Run,
    partners: Mapping[ValueKey, ValueKey],
) -> dict[ValueKey, float]:
    """The error of each node that reads quantised weights, on the exact graph's operands."""
    sizes = bind_inputs(few.program, case.inputs, Precision("f64")).sizes
    found: dict[ValueKey, float] = {}
    for path, function in values.functions.items():
        chosen = [
            i
            for where, i in partners
            if where == path and _reads_codes(few.program, values, path, i)
        ]
        for node_id in chosen:
            extract = islands(few.program, function, path, [node_id], sizes)
            fed = _fed(extract, path, gold, got, partners)
            at = partners[path, node_id]
            if fed is not None and at in gold.values:
                (result,) = _run(extract.program, weights, fed).outputs.values()
                found[path, node_id] = error(result, gold.values[at])
    return found


def _reads_codes(program: Program, values: Values, path: str, node_id: int) -> bool:
    """Whether the node, or the body that it runs, dequantises a weight."""
    function = values.functions[path]
    node = function[node_id]
    node = function[node.inputs[0]] if node.op == "result" else node
    inside = program.body(node).nodes if "body" in node.attrs and node.op != "derived" else ()
    read: Iterable[str] = (function[i].op for i in node.inputs)
    return "dequantise" in (node.op, *read, *(n.op for n in inside))


def _fed(
    extract: Extract, path: str, gold: Run, got: Run, partners: Mapping[ValueKey, ValueKey]
) -> dict[str, Array] | None:
    """The operands as the exact graph has them; codes, which it has not, as they are."""
    fed: dict[str, Array] = {}
    for name, node_id in extract.feeds.items():
        key = path, node_id
        if partners.get(key) in gold.values:
            fed[name] = gold.values[partners[key]]
        elif key in got.values and not is_float(got.values[key].dtype):
            fed[name] = got.values[key]
        else:
            return None
    return fed
