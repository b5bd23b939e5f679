"""What finishes a product in registers: pieces of it, one result or several, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from checks import model_of, ops, ran, same
from graphs import Model, Value, b, d, e, g, hidden, r, s

from archc.compiler.elaborate import Request, elaborate, module_of, the_model
from archc.compiler.ir.graph import Axis, Program
from archc.compiler.passes import optimise
from archc.dsl.dims import Dim
from archc.dsl.parse import parse
from archc.dsl.span import Source

LAYER = """use std
model Layer {
  d = 12; heads = 4; kv_heads = 2; head_dim = 8; hidden = 10
  pairing = "half"; turned = none; act = silu; bias = false
  input x: float[b, s, d]
  turn = rope(pairing = pairing, dims = turned)
  x += x |> rmsnorm(1e-5) as n1 |> attention(heads, kv_heads, head_dim, mask = causal, rotate = turn) as mix
  output y[b, s, d] = x + (x |> layernorm(1e-5) as n2 |> gated_ffn(hidden, act, bias = bias) as ffn)
}
"""


def layer(text: str = LAYER, **values: object) -> Program:
    module = module_of(parse(Source("layer.arch", text)))
    return elaborate(module, the_model(module, None), Request(values))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"bias": True},
        {"pairing": "interleaved"},
        {"turned": 4},
        {"pairing": "interleaved", "turned": 4},
        {"kv_heads": 4},
    ],
    ids=str,
)
def test_a_decoder_layer_is_four_products_and_an_attention(values: dict[str, object]) -> None:
    """Turned queries and keys beside the values; the gate, its activation and the product of both.
    What is left are the angles, a table, and the centred value of the layernorm."""
    program = layer(**values)
    done = optimise(program, disable=["pack-weights"])
    found = ops(done.program)
    same(program, done.program, 1e-10)
    assert (found["attend"], found["linear"], found["pointwise"]) == (1, 4, 2)
    assert found["dot"] == found["concat"] == 0


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_normalised_queries_are_turned_in_the_kernel_that_normalises(pairing: str) -> None:
    """The halves of a row go different ways and meet again: all of it joins at once."""
    text = LAYER.replace("rotate = turn", "rotate = turn, norm = rmsnorm(1e-6)")
    program = layer(text, pairing=pairing)
    done = optimise(program, disable=["pack-weights"])
    found = ops(done.program)
    assert (found["attend"], found["linear"], found["pointwise"]) == (1, 4, 4)
    same(program, done.program, 1e-10)


def test_a_rotation_of_few_elements_of_a_head_stays_outside() -> None:
    """One of eight, one more, and six: a lane would compute eight products."""
    found = ops(optimise(layer(turned=2), disable=["pack-weights"]).program)
    assert (found["attend"], found["linear"], found["pointwise"]) == (1, 4, 4)


# --------------------------------------------------------------------------------------- guards

two = Axis("two", e.size - 2)
later = Axis("later", s.size - 1, time="s")
one, rest = Axis("one", Dim.of(1)), Axis("rest", e.size - 1)
single, joined = Axis("single", Dim.of(1)), Axis("joined", e.size)
nine, whole = Axis("nine", hidden.size - 1), Axis("whole", hidden.size)


def cut(x: Value, axis: Axis, into: Axis, start: int) -> Value:
    return x.op("slice", axis=axis, into=into, start=Dim.of(start), step=1)


def heads(m: Model, x: Value) -> Value:
    return x.dot(m.weight("w", g, e, d), d)


def overlapping(m: Model, x: Value) -> Value:
    """Three windows of two elements of four: some products would be computed twice."""
    y = heads(m, x)
    return cut(y, e, two, 0) * cut(y, e, two, 1) * cut(y, e, two, 2)


def differences(m: Model, x: Value) -> Value:
    """Neighbouring rows: each would be computed for two rows of the result."""
    y = heads(m, x)
    return cut(y, s, later, 1) * cut(y, s, later, 0).op("exp")


def uneven(m: Model, x: Value) -> Value:
    """One element and nine: a lane of a kernel would compute ten pieces of one."""
    y = x.dot(m.weight("w", g, hidden, d), d)
    parts = cut(y, hidden, one, 0).op("exp"), cut(y, hidden, nine, 1)
    return m.add("concat", tuple(p.id for p in parts), axis=whole, parts=(one, nine))


def nested(m: Model, x: Value) -> Value:
    """Along two axes: a lane would compute two times four pieces."""
    y, rows = heads(m, x).op("exp"), []
    for i in range(2):
        row = cut(y, g, single, i)
        parts = cut(row, e, one, 0).op("exp"), cut(row, e, rest, 1)
        rows.append(m.add("concat", tuple(p.id for p in parts), axis=joined, parts=(one, rest)))
    return m.add("concat", tuple(p.id for p in rows), axis=g, parts=(single, single))


def widened(m: Model, x: Value) -> Value:
    """One element times the others: it would be computed for each."""
    y = heads(m, x)
    return y.op("pick", axis=e, at=Dim()) * cut(y, e, rest, 1)


def repeated(m: Model, x: Value) -> Value:
    """Each element twice: it would be computed for both."""
    return heads(m, x).op("broadcast", axes=(two,)) * m.weight("v", two).op("exp")


@pytest.mark.parametrize("build", [overlapping, differences, uneven, nested, widened, repeated])
def test_what_would_compute_a_product_twice_stays_outside(
    build: Callable[[Model, Value], Value],
) -> None:
    done = ran(model_of(build))
    (product,) = [n for n in done.program.main.nodes if n.op in ("linear", "dot")]
    assert set(product.axes) in ({b, s, g, e}, {b, s, g, hidden})
    assert ops(done.program)["pointwise"] == 1


pair = Axis("pair", hidden.size * 2)


def halves(y: Value) -> tuple[Value, Value]:
    first, second = (
        y.op("slice", axis=pair, into=hidden, start=hidden.size * i, step=1) for i in (0, 1)
    )
    return first, second


def test_two_halves_of_one_product_are_one_result() -> None:
    """The gate of a packed matrix that the text has as one."""

    def build(m: Model, x: Value) -> Value:
        y = x.dot(m.weight("w", pair, d), d) + m.weight("b", pair)
        gate, up = (
            y.op("slice", axis=pair, into=hidden, start=hidden.size * i, step=1) for i in (0, 1)
        )
        return gate * gate.op("sigmoid") * up

    found = ops(ran(model_of(build)).program)
    assert (found["linear"], found["pointwise"]) == (1, 0)


def test_what_only_regions_read_is_no_result_of_its_own() -> None:
    """Each half by itself would read x again: the region that joins them reads the product."""

    def build(m: Model, x: Value) -> Value:
        y = x.dot(m.weight("w", r, e, d), d)
        first, second = cut(y, e, two, 0).op("exp"), cut(y, e, two, 2)
        return first.sum(r) - second.op("softmax", axis=r).sum(two).op("exp").sum(r)

    done = ran(model_of(build))
    assert all(len(n.types) == 1 for n in done.program.main.nodes if n.op == "linear")


def test_what_waits_for_a_piece_of_the_product_is_no_part_of_it() -> None:
    """The second half is scaled by what a kernel between computes from the first."""

    def build(m: Model, x: Value) -> Value:
        first, second = halves(x.dot(m.weight("w", r, pair, d), d))
        scaled = second.op("exp") * first.op("softmax", axis=r)
        return scaled.dot(m.weight("v", g, r, hidden), r, hidden) + first.sum(r, hidden)

    done = ran(model_of(build))
    assert ops(done.program)["exp"] == ops(done.program)["softmax"] == 0
