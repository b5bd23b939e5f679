"""A sequence that a decoder runs chunk by chunk: how it is split, and the outputs joined again.

model(x)  =  join(decoder(None, x[: n1]), decoder(state, x[n1 : n1 + n2]), ..)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Literal

import numpy as np

from .backends.base import node_name
from .compiler.ir.graph import STATE
from .decoder import Decoder, along, rows_of
from .dsl.errors import ChunkSizes, UnjoinedOutput

if TYPE_CHECKING:
    from .backends.base import Array
    from .compiler.ir.graph import Program
    from .decoder import State

Chunks = tuple[int, ...] | Literal["auto"]  # how many rows each has


def sizes_of(chunks: Chunks, program: Program, inputs: Mapping[str, Array]) -> tuple[int, ...]:
    """The chunks of a sequence that a caller asked for; `auto` is half of it, then row by row.

    Raises `ChunkSizes` where they do not make up the sequence. Of inputs without any, the run has to say
    what is wrong with them.
    """
    rows = rows_of(program, inputs)
    if rows == 0:
        return (0,)
    if chunks == "auto":
        first = max((rows + 1) // 2, prefix_of(program, inputs))
        return (first, *[1] * (rows - first))
    if sum(chunks) != rows:
        words = described(chunks)
        raise ChunkSizes(chunks=words, total=sum(chunks), axis=program.decode, rows=rows)
    return chunks


def prefix_of(program: Program, inputs: Mapping[str, Array]) -> int:
    """The rows that must be in the first chunk, since they see one another; as far as there are any."""
    if program.after not in inputs:
        return 0
    longest = int(np.max(inputs[program.after], initial=0))
    return min(longest, rows_of(program, inputs))


def described(sizes: Sequence[int]) -> str:
    """`4, 3 x 1` for chunks of 4, 1, 1 and 1 rows."""
    runs = [(size, len(list(same))) for size, same in groupby(sizes)]
    return ", ".join(f"{count} x {size}" if count > 1 else str(size) for size, count in runs)


def steps(
    decoder: Decoder, sizes: Sequence[int], inputs: Mapping[str, Array]
) -> Iterator[tuple[dict[str, Array], State]]:
    """The outputs of each chunk and the state after it."""
    state, start = None, 0
    for rows in sizes:
        outputs, state = decoder(state, **sliced(decoder.derived.prefill, inputs, start, rows))
        yield outputs, state
        start += rows


def sliced(
    program: Program, inputs: Mapping[str, Array], start: int, rows: int
) -> dict[str, Array]:
    """`rows` rows of the inputs along the decoded axis; the others whole."""
    main, found = program.main, dict(inputs)
    for node_id in main.inputs:
        name, dim = node_name(main[node_id]), along(program, node_id)
        if dim is not None and name in inputs and inputs[name].ndim == len(main[node_id].axes):
            found[name] = _rows(inputs[name], dim, start, rows)
    return found


def joined(decoder: Decoder, outputs: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """The outputs of the whole sequence. What has no rows along it is that of the last chunk with it."""
    found = {}
    for name, node_id in _outputs(decoder.derived.prefill):
        dim = along(decoder.derived.prefill, node_id)
        parts = [of_chunk[name] for of_chunk in outputs if name in of_chunk]
        found[name] = parts[-1] if dim is None else np.concatenate(parts, dim)
    return found


def check_joinable(program: Program) -> None:
    """Raises `UnjoinedOutput` for one that has an entry for every slot so far in every row."""
    for name, node_id in _outputs(program):
        node = program.main[node_id]
        for axis in node.axes:
            if axis.time == program.decode and axis.name != program.decode:
                spans = node.spans or (None,)
                raise UnjoinedOutput(name=name, axis=axis.name, span=spans[0], calls=spans[1:])


def run(decoder: Decoder, sizes: Sequence[int], inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs of a sequence that is run in chunks of these `sizes`."""
    check_joinable(decoder.derived.prefill)
    return joined(decoder, [outputs for outputs, _ in steps(decoder, sizes, inputs)])


def rows_along(program: Program, output: str) -> int | None:
    """The dimension of an output that has a row for each of the sequence; None where there is none."""
    return along(program, dict(program.main.outputs)[output])


def _outputs(program: Program) -> list[tuple[str, int]]:
    return [(name, i) for name, i in program.main.outputs if not name.startswith(STATE)]


def _rows(array: Array, dim: int, start: int, rows: int) -> Array:
    return array[(slice(None),) * dim + (slice(start, start + rows),)]
