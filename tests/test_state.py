"""What is kept of earlier positions: keys and values, latents, windows, recurrences, last inputs."""

from __future__ import annotations

import pytest
from bundled import example
from small_models import model, program

from archc.compiler.state import State, state_of
from archc.dsl.dims import Dim

ATTENTION = "decode s\ny = x |> attention({}) as mix\noutput z[b, s, d] = y"


def states(body: str, above: str = "") -> tuple[State, ...]:
    return state_of(program(model(body, above)))


def kept(found: tuple[State, ...]) -> list[tuple[str, str, str, str]]:
    """Kind, place, bytes of one and how many, in the order of the text."""
    return [(s.kind, s.place, str(s.bytes), str(s.count)) for s in found]


# --------------------------------------------------------------------------------- attention


@pytest.mark.parametrize(
    ("arguments", "each"),
    [
        ("2, mask = causal", 16),
        ("2, mask = causal, rotate = rope(100.0)", 16),
        ("2, mask = causal, norm = rmsnorm", 16),
        ("2, kv_heads = 1, mask = causal, rotate = rope(100.0)", 8),
        ("2, head_dim = 32, mask = causal", 128),
    ],
)
def test_attention_keeps_keys_and_values(arguments: str, each: int) -> None:
    """However wide they are, with rotary turns or without, with normed keys."""
    found = states(ATTENTION.format(arguments))
    assert kept(found) == [
        ("append", "mix.k", str(each), "1"),
        ("append", "mix.v", str(each), "1"),
    ]
    assert all(state.span is not None and state.span.line == 9 for state in found)


def test_the_first_layer_keeps_no_ids_in_their_stead() -> None:
    body = (
        "decode s\nx = ids |> embedding(8, d) as e\ny = x |> attention(2, mask = causal) as mix\n"
    )
    found = states(body + "output z[b, s, d] = y")
    assert [state.place for state in found] == ["mix.k", "mix.v"]
    position = model("decode s\noutput y = x |> learned_positions(9) as p")
    assert state_of(program(position)) == ()


def test_a_product_with_one_hot_ids_is_a_lookup() -> None:
    found = states("""decode s
      weight e[rows: 8, d] = normal
      hot[b, s, rows] = where(ids == index(rows), 1.0, 0.0)
      h[b, s, d] = dot(hot, e, rows)
      y = h |> attention(2, mask = causal) as mix
      output z[b, s, d] = y""")
    assert [state.place for state in found] == ["mix.k", "mix.v"]


def test_without_decode_nothing_is_kept() -> None:
    assert states("output y = x |> attention(2, mask = causal) as mix") == ()


def test_a_window_keeps_its_last_keys() -> None:
    found = states(ATTENTION.format("2, mask = sliding(3)"))
    assert [(s.kind, s.capacity) for s in found] == [("ring", Dim.of(3))] * 2


def test_a_window_of_declared_positions_is_not_bounded_in_slots() -> None:
    found = states("time s: position = ids\n" + ATTENTION.format("2, mask = sliding(3)"))
    assert [s.kind for s in found] == ["append", "append"]


SHARED = """decode s
  k = x |> linear(g: 1, e: 4)
  v = x |> linear(g: 1, e: 4)
  repeat layers[i: 6] {{
    {change}
    q = x |> linear(g: 1, e: 4) as q
    a = dot(q, k[s -> t], e)
    p = softmax(where({mask}, a, -inf), t)
    m[b, s, h] = dot(p, v[s -> t], t)[(g, e) -> h]
    x += m |> linear(d) as o
  }}
  output y = x"""
RENEWED = """if i % 2 == 0 {
      k = x |> linear(g: 1, e: 4) as k
      v = x |> linear(g: 1, e: 4) as v
    }"""


def test_a_value_that_layers_share_is_one_state() -> None:
    found = states(SHARED.format(change="", mask="causal(s, t)"))
    assert kept(found) == [("append", "k", "8", "1"), ("append", "v", "8", "1")]


def test_a_value_that_every_second_layer_renews_is_a_state_of_that_layer() -> None:
    found = states(SHARED.format(change=RENEWED, mask="causal(s, t)"))
    assert kept(found) == [("append", "layers[].k", "8", "3"), ("append", "layers[].v", "8", "3")]


def test_a_shared_value_is_kept_for_its_widest_reader() -> None:
    mask = "(sliding(3) if i == 0 else sliding(4))(s, t)"
    found = states(SHARED.format(change="", mask=mask))
    assert [(s.kind, s.capacity) for s in found] == [("ring", Dim.of(4))] * 2
    some = "(sliding(3) if i == 0 else causal)(s, t)"
    assert [s.kind for s in states(SHARED.format(change="", mask=some))] == ["append"] * 2


def test_linear_attention_keeps_values_before_they_are_raised() -> None:
    found = states("decode s\ny = x |> linear_attention(2, mask = causal) as mix\noutput y = y")
    assert kept(found) == [("append", "mix.k", "16", "1"), ("append", "mix.v", "16", "1")]


# ------------------------------------------------------------------------------------ latents

LATENT = """block latent(down, act = none)(x[..., s, d]) -> [..., s, d] {
  c = x |> linear(c: down) as down |> rmsnorm as norm
  k = c |> linear(h: 4, e: 4) as k
  v = c |> linear(h: 4, e: 4) as v
  if act != none { k = act(k) }
  q = x |> linear(h: 4, e: 4) as q
  a = dot(q, k[s -> t], e)
  p = softmax(where(causal(s, t), a, -inf), t)
  y[..., s, o] = dot(p, v[s -> t], t)[(h, e) -> o]
  return y |> linear(d) as o
}"""


def test_a_latent_is_kept_instead_of_what_is_made_of_it() -> None:
    found = states("decode s\noutput y = x |> latent(3) as mix", LATENT)
    assert kept(found) == [("append", "mix.down", "6", "1")]


def test_what_is_as_wide_as_its_source_is_no_latent() -> None:
    found = states("decode s\noutput y = x |> latent(8) as mix", LATENT)
    assert [state.place for state in found] == ["mix.k", "mix.v"]


@pytest.mark.parametrize(
    "act", ["(a[...]) -> a * a", "(a[...]) -> 1 / a", "(a[...]) -> 2 - 3 * a / 4"]
)
def test_what_is_linear_can_wait(act: str) -> None:
    found = states(f"decode s\nbent = {act}\noutput y = x |> latent(3, act = bent) as mix", LATENT)
    linear = "2 -" in act
    assert [state.place for state in found] == (["mix.down"] if linear else ["mix.down", "mix.k"])


def test_an_activation_between_latent_and_product_cannot_wait() -> None:
    """The latent is kept for the values, which are linear in it; the keys are kept themselves."""
    found = states("decode s\noutput y = x |> latent(3, act = tanh) as mix", LATENT)
    assert [(s.place, str(s.bytes)) for s in found] == [("mix.down", "6"), ("mix.k", "32")]


@pytest.mark.parametrize(("preset", "layers"), [("deepseek_v2", 60), ("deepseek_v2_lite", 27)])
def test_multi_head_latent_attention_keeps_its_latent_and_the_turned_key(
    preset: str, layers: int
) -> None:
    found = state_of(example("deepseek_v2", preset))
    assert {s.kind for s in found} == {"append"}
    assert sum((s.total for s in found), Dim()) == Dim.of(layers * (512 + 64) * 2)


# ---------------------------------------------------------------------------------- examples


def test_layers_with_a_window_are_told_from_those_without() -> None:
    found = state_of(example("gemma", "gemma3_27b"))
    counts = [(s.kind, s.capacity, s.count) for s in found]
    assert counts == [("ring", Dim.of(1024), Dim.of(52))] * 2 + [("append", None, Dim.of(10))] * 2


def test_an_encoder_is_read_as_keys_and_values_made_once() -> None:
    found = state_of(example("t5", "t5_small"))
    each = 8 * 64 * 2
    assert kept(found) == [
        ("append", "decoder[].self.k", str(each), "6"),
        ("append", "decoder[].self.v", str(each), "6"),
        ("constant", "decoder[].cross.k", f"{each}*t", "6"),
        ("constant", "decoder[].cross.v", f"{each}*t", "6"),
    ]


def test_a_convolution_keeps_its_last_inputs_and_a_scan_its_state() -> None:
    found = state_of(example("mamba", "mamba_130m"))
    assert [(s.kind, str(s.bytes), s.capacity, str(s.count)) for s in found] == [
        ("last", "3072", Dim.of(3), "24"),
        ("recurrent", str(1536 * 16 * 4), None, "24"),
    ]


def test_a_long_convolution_keeps_its_inputs() -> None:
    found = state_of(example("hyena", "tiny"))
    assert [(s.kind, s.capacity) for s in found] == [("last", Dim.of(2)), ("append", None)]


# ------------------------------------------------------------------------ reads of earlier slots


@pytest.mark.parametrize(
    ("index", "found"),
    [
        ("max(slot(s) - 1, 0)", [("last", 1)]),
        ("max(slot(s) - 2 * 3, 0)", [("last", 6)]),
        ("where(slot(s) < 4, 0, slot(s) - 4)", [("append", None)]),
        ("slot(s)", []),
        ("slot(s) // 2", [("append", None)]),
    ],
)
def test_how_far_back_an_index_reads(index: str, found: list[tuple[str, int | None]]) -> None:
    made = states(f"decode s\nz = 2 * x\noutput y = z[s: {index}]")
    capacities = [s.capacity.constant if s.capacity is not None else None for s in made]
    assert list(zip([s.kind for s in made], capacities, strict=True)) == found


def test_a_running_sum_of_values_is_a_state_and_one_of_facts_is_none() -> None:
    body = "decode s\noutput y = cumsum(x, s)\noutput n = cumsum(int(keep), s)"
    assert kept(states(body)) == [("recurrent", "", "16", "1")]
