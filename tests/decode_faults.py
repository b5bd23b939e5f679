"""Ways to break one rule of decoding while a `with` lasts, as `faults.py` has for the lowerings.

Each is of the derivation or of the decoder, so of every backend, but for the op that writes into a cache.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from faults import Fault, meaning, setting, wrapped

from archc.compiler.incremental import prefill
from archc.compiler.incremental.chunk import _Chunk
from archc.compiler.ops.structure import along
from archc.compiler.values import ZERO, Values
from archc.decoder import Decoder, Growing
from archc.dsl.dims import maximum


@dataclass(frozen=True)
class Broken:
    """A fault, and an example whose outputs it changes."""

    example: str
    fault: Fault


def stale(early: bool) -> dict[str, Fault]:
    """New rows one slot before or after their own, by backend."""
    by = -1 if early else 1

    def misplaced(right: Callable[..., Any], call: Any, kept: Any, rows: Any) -> Any:
        seen = right(call, kept, rows)
        part = call.attrs.axes("parts")[0]
        dim, past = call.inputs[0].position(part), call.extent(part)
        new = seen[along(dim, slice(past, None))].copy()
        if early:
            seen[along(dim, slice(past - 1, -1))] = new
        else:
            seen[along(dim, slice(past + 1, None))] = new[along(dim, slice(0, -1))]
            seen[along(dim, slice(past, past + 1))] = 0
        return seen

    def helper() -> AbstractContextManager[Any]:
        from archc.backends.torch import emit

        right = "kept.narrow(dim, past, count)"  # where nothing is written now, nothing is left to chance
        wrong = f"{right}.zero_()\n    kept.narrow(dim, past + {by}, count)"
        text = emit.HELPERS["append"].replace(right, wrong)
        return setting(emit.HELPERS, "append", text)

    def method() -> AbstractContextManager[Any]:
        from archc.backends.triton import source

        text = source.KEPT.replace("past, total - past)", f"past + {by}, total - past)")
        return setting(vars(source), "KEPT", text)

    return {"numpy": meaning("append", misplaced), "torch": helper, "triton": method}


def narrower(right: Callable[..., Any], values: Any, node: Any) -> Any:
    """A window of one key less, in what is kept and in the keys that are read."""
    reach = right(values, node)
    return reach if reach is None or reach == ZERO else reach - 1


def earlier(chunk: Any, made: Any) -> dict[str, Any]:
    """The attributes of a slice that starts one entry earlier, where there is one."""
    return {**made.attrs, "start": maximum(made.attrs.dim("start") - 1, 0)}


def late_ring(right: Callable[..., Any], chunk: Any, node: Any, value: int, *index: int) -> None:
    made = chunk.builder[value]
    if made.op == "slice":
        value = chunk.add("slice", made.inputs, earlier(chunk, made))
    right(chunk, node, value, *index)


def wrong_tail(right: Callable[..., Any], derivation: Any, builder: Any, kept: Any) -> int:
    """Of the whole sequence not the last rows."""
    made = builder[right(derivation, builder, kept)]
    if made.op != "slice":
        return int(made.id)
    return int(builder.add("slice", made.inputs, earlier(builder, made)))


def from_zero(comparing: bool) -> Callable[..., int]:
    """Rows of a chunk are counted from its first: in conditions, or in everything else."""

    def wrong(right: Callable[..., int], chunk: Any, node: Any) -> int:
        slots = [i for i in node.inputs if chunk.function[i].op == "index"]
        own = [i for i in slots if chunk.function[i].attrs.axis("axis") == chunk.decoded]
        right_slots = {i: chunk.made[i] for i in own}
        if (node.op in ("le", "lt", "eq")) == comparing:
            chunk.made.update({i: chunk.add("index", (), {"axis": chunk.decoded}) for i in own})
        made = right(chunk, node)
        chunk.made.update(right_slots)
        return made

    return wrong


def unmasked(right: Callable[..., int], chunk: Any, node: Any) -> int:
    """Conditions on a new row's slot hold for every key: a chunk has no causal mask."""
    made = right(chunk, node)
    slots = (chunk.function[i] for i in node.inputs)
    own = any(n.op == "index" and n.attrs.axis("axis") == chunk.decoded for n in slots)
    if node.op not in ("le", "lt") or not own:
        return made
    return int(chunk.add("max", (made, chunk.add("not", (made,), {})), {}))  # either


def not_carried(
    right: Callable[..., Any], chunk: Any, node: Any, value: int, index: int = 0
) -> None:
    """What a chunk leaves of a recurrence is what it was given."""
    kept = chunk.kept[node.id, index]
    if kept.kind == "recurrent":
        states = (n.id for n in chunk.builder.nodes if n.op == "state")
        value = next(i for i in states if chunk.builder[i].attrs.string("path") == kept.path)
    right(chunk, node, value, index)


def in_place(right: Callable[..., Any], decoder: Decoder, *given: Any) -> Any:
    """An older state writes where a newer one has its rows."""
    _, value, length, rows = given
    fits = isinstance(value, Growing) and value.room >= length + rows
    return value if fits else right(decoder, *given)


EVERYWHERE = {
    "window one narrower": Broken("mistral", wrapped(Values, "window", narrower)),
    "ring one late": Broken("mistral", wrapped(_Chunk, "leave", late_ring)),
    "no causal mask": Broken("llama", wrapped(_Chunk, "same", unmasked)),
    "mask by row": Broken("llama", wrapped(_Chunk, "same", from_zero(True))),
    "rotation not advanced": Broken("llama", wrapped(_Chunk, "same", from_zero(False))),
    "position not advanced": Broken("gpt2", wrapped(_Chunk, "same", from_zero(False))),
    "wrong tail of a convolution": Broken("mamba", wrapped(vars(prefill), "_left", wrong_tail)),
    "wrong tail of a window": Broken("mistral", wrapped(vars(prefill), "_left", wrong_tail)),
    "recurrence not carried": Broken("retnet", wrapped(_Chunk, "leave", not_carried)),
    "scan not carried": Broken("mamba", wrapped(_Chunk, "leave", not_carried)),
    "running sum not carried": Broken("nllb", wrapped(_Chunk, "leave", not_carried)),
    "older state not copied": Broken("llama", wrapped(Decoder, "_given", in_place)),
}
SORTS = ("ring one late", "no causal mask", "position not advanced")
FAULTS: dict[str, dict[str, Broken]] = {
    backend: {
        "slot one early": Broken("llama", stale(early=True)[backend]),
        "slot one late": Broken("llama", stale(early=False)[backend]),
        **EVERYWHERE,
    }
    for backend in ("numpy", "torch")
}
FAULTS["triton"] = {  # one of each sort: a run takes its time
    "slot one early": Broken("llama", stale(early=True)["triton"]),
    **{kind: EVERYWHERE[kind] for kind in SORTS},
}
