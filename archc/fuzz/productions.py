"""What the generator can write: a table of productions, each a few statements of `.arch` text.

In a text `@` begins a fresh name, and the value that the production gives is the last `@..[axes] =`.
Words in braces are filled in by `draft.py`: `{x}` `{y}` `{z}` are values `[b, s, d]`, `{a}` and `{e}`
values of any axes (`{axes}` and `{both}` say which), `{raw}` an input, `{k}` `{c}` numbers.

What looks `ahead` is left out where a model decodes. What `jumps` has a step in it, a choice or an exit,
so that a rounding before it can change all behind it: half formats, which round by much, leave it out.
Other steps are taken by inputs, which every run holds exactly. Values stay finite where nothing of a row
is valid: what a mask hides is assumed to be, since 0 times infinity is no number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Production:
    """`top` stands in no body of a `repeat`, unless it is one; `untimed` bears no `time` line."""

    name: str
    text: str
    ahead: bool = False
    jumps: bool = False
    top: bool = False
    untimed: bool = False


UNARY = (
    "-{a}",
    "abs({a})",
    "exp(-abs({a}))",
    "log(abs({a}) + 0.5)",
    "log1p({a} * {a})",
    "sqrt({a} * {a} + 0.25)",
    "rsqrt({a} * {a} + 0.5)",
    "sin({a})",
    "cos({a})",
    "tanh({a})",
    "sigmoid({a})",
    "erf({a})",
    "relu({a})",
    "silu({a})",
    "gelu({a})",
    "gelu_tanh({a})",
    "gelu_quick({a})",
    "elu({a})",
    "softplus({a})",
    "clamp({a}, -1, 1.5)",
    "{a} |> softcap(2.0)",
    "({a} * {a} + 1) ** 1.5 * 0.1",
    "{a} ** 2 * 0.25",
    "float(f32({a}) * {c})",
    "cast(cast({a}, f32), float)",
    "stop_gradient({a})",
)
BINARY = (
    "{a} + {e}",
    "{a} - {e}",
    "{a} * {e}",
    "{a} / (abs({e}) + 0.5)",
    "max({a}, {e})",
    "min({a}, {e})",
    "where({a} == {a}, {a}, {e})",
)
STEPS = (
    "round(2 * {raw}) * {x}",
    "floor({raw}) + {x}",
    "float(int(4 * {raw})) * 0.25 + {x}",
    "where({raw} < {other}, {x}, {y})",
    "where({raw} <= 0.5 and not (ids == 0 or {other} > 1), {x}, 0)",
    "float(ids // 2 + ids % 3) * 0.5 - {x}",
    "where(ids != 1, {x}, {y})",
    "where(any({raw} > 0.5, d), {x}, {c})",
    'round_to({raw}, "bf16") * {x}',
    "float({raw} >= 0) * {x}",
    "where(index(d) < {k}, {x}, {y})",
)
ROWS = (
    "softmax({x}, d)",
    "cumsum({x}, d) * 0.25",
    "{x} - {c} * mean({y}, d)",
    "{x} * sum({y}, d) * 0.25",
    "{x} - amax({y}, d)",
    "{x} * dot({x}, {y}, d) * 0.25",
    "concat({x}[d: {k}..], {y}[d: 0..{k}], d)",
    "{x}[d: {k}] * {y} + {x}[d: -1]",
    "{x}[one: new][one: 0] * {c}",
    "{x} + {y}[d: ids % d]",
    "{x} * (index(d) + 1) / d",
    "{x} * {c} + position(s) / 8",
    "{x} / size(d) + float(slot(s)) * 0.1",
    "previous({x}, s) + {y}",
    "cumsum({x}, s) * 0.1",
    "cumsum({x}, s) / (slot(s) + 1)",
)
LAYERS = (
    "{x} |> linear(d) as @l",
    "{x} |> linear(d, bias = true) as @l |> {act}",
    "{x} |> linear(wide: {wide}) as @l |> {act} |> linear(d) as @m",
    "{x} |> ffn({wide}, act = {act}, bias = {flag}) as @l",
    "{x} |> gated_ffn({wide}, act = {act}) as @l",
    "{x} |> rmsnorm(1e-3) as @l",
    "{x} |> layernorm(1e-3, bias = {flag}) as @l",
    "{x} |> l2_normalise(0.1)",
    "{x} |> rmsnorm as @n |> linear(d) as @l",
    "{x} |> layernorm as @n |> gated_ffn({wide}) as @l",
    "{x} |> learned_positions(80) as @l",
    "{x} |> sinusoidal",
    '{x} |> sinusoidal(order = "blocks")',
    "rope({rope})({x}, s)",
    "{x} |> causal_conv({k}, bias = {flag}) as @l",
    "ids |> embedding(vocab, d) as @l",
    "{x} |> lstm(d) as @l",
    "{x} |> {block} as @l",
    "{x} |> attention({attention}) as @l",
    "{x} |> rmsnorm as @n |> attention({attention}) as @l",
    "{x} |> attention(heads, memory = memory) as @l",
    "{x} |> linear_attention(heads, mask = {mask}) as @l",
)
AHEAD = (
    "{x} - {c} * sum({y}, s) / (count(s) + 1)",
    "softmax({x}, s) * {y}",
    "{x} + {y}[s: -1] * {c}",
    "{x} * sum({y}, s, d) * 0.1",
    "{x} + max(amax({y}, s), -9)",
    "dot({x}, {y}, s, d) * 0.1 + {x}",
    "{x} |> lstm(d, reverse = true) as @l",
    "{x} / (count(s) + 1)",
    "{x} |> linear_attention(heads) as @l",
)
ROUTED = (
    "{x} |> mixture(n, {expert}, {route}) as @l",
    "{x} |> mixture(n, {expert}, {route}, beside = ffn({wide}), beside_gated = {flag}) as @l",
    "{x} |> mixture(n, ffn({wide}), capped(softmax_top(1), 2)) as @l",
)

SHAPES = {
    "several axes out": "@[b, s, g, r] = {x} |> linear(g: 2, r: 3) as @l",
    "log of a sum": "@[b, s] = logsumexp({x}, d)",
    "reduce features": "@[b, s] = sum({x} * {y}, d) * 0.5",
    "greatest feature": "@[b, s] = amax({x}, d)",
    "pick a feature": "@[b, s] = {x}[d: {k}]",
    "split features": "@[b, s, p, q] = {x}[d -> (p: 2, q)] * {c}",
    "swap halves": "@w = {x}[d -> (p: 2, q)]; @[b, s, d] = tanh(@w)[(q, p) -> d]",
    "another order": "@o[d, b, s] = {x} * {y}; @[b, s, d] = @o + {z}",
    "stack": "@[b, s, d, pair] = stack({x}, {y}, pair)",
    "stack and sum": "@t[b, s, d, @j] = stack({x}, {y}, @j); @[b, s, d] = sum(@t * @t, @j) * 0.5",
    "weight of features": "weight @w[d] = ones; @[b, s, d] = {x} * @w + {y}",
    "buffer": "buffer @w[d] = ones; @[b, s, d] = ({x} - @w) * {c}",
    "const": "const @w[d] = 0.5 ** index(d); @[b, s, d] = {x} * @w",
    "const list": (
        "const @w[@j: 3] = [1.0, -0.5, 2.0]; @t[b, s, d, @j] = {x} * @w; @[b, s, d] = sum(@t, @j)"
    ),
    "matrix": "weight @w[f: d, d] = fan_in; @[b, s, f] = dot({x}, @w, d)",
    "row of ids": "weight @w[rows: 4, d] = normal; @[b, s, d] = {x} + @w[rows: ids % 4]",
    "row of slots": "weight @w[rows: 80, d] = normal; @[b, s, d] = @w[rows: slot(s)] + {x}",
    "shift": (
        "@b[s] = max(slot(s) - {k}, 0);"
        " @[b, s, d] = where({k} <= slot(s), {x}[s -> t][t: @b], 0)"
    ),
    "ids counted": "@[b, s] = float(cumsum(int(ids == 1), s))",
    "lambda": "@f = (u[...]) -> u * {c} + {y}; @[b, s, d] = {x} |> @f",
    "of the memory": "@[b, d] = tanh(mean(memory, u))",
    "softmax by hand": (
        "@m = {mask}; @a[b, s, t] = dot({x}, {y}[s -> t], d) * 0.5;"
        " @p = softmax(where(@m(s, t), {score}, -inf), t); @[b, s, d] = dot(@p, {z}[s -> t], t)"
    ),
    "weights by hand": (
        "@m = {mask}; @a[b, s, t] = dot({x}, {y}[s -> t], d) * 0.25;"
        " @[b, s, d] = dot(where(@m(s, t), @a, 0), {z}[s -> t], t)"
    ),
    "slopes of heads": (
        "@a = alibi_slopes(heads); @[b, s, d] = {x} |> attention(heads, mask = {mask},"
        " score = (a[...], s, t) -> a - @a * abs(position(s) - position(t))) as @l"
    ),
    "long convolution": (
        "weight @w[d] = ones; @k[s, d] = exp(-0.3 * slot(s)) * @w;"
        " @[b, s, d] = {x} |> long_convolution(@k)"
    ),
    "scan": "scan s with @h[b, d] = 0 { @h = {c} * @h + {x} }; @[b, s, d] = @h",
    "gated scan": (
        "@g = sigmoid({y}); scan s with @h[..., d] = {c} { @h = @g * @h + (1 - @g) * {x} };"
        " @[b, s, d] = @h * 0.5"
    ),
    "scan of any kind": (
        "scan s with @h[b, d] = 0 { @h = tanh({c} * @h + {x}) }; @[b, s, d] = @h"
    ),
    "scan of two states": (
        "scan s with @h[b, d] = 0, @n[b, d] = 1"
        " { @h = 0.5 * @n + {c} * @h; @n = 0.25 * prev(@h) + {x} }; @[b, s, d] = @n - @h"
    ),
    "scan of a matrix": (
        "@e[b, s, f] = {y}[d -> f] * 0.5; scan s with @h[b, d, f] = 0"
        " { @h = {c} * @h + {x} * @e; @y = dot(@h, @e, f) }; @[b, s, d] = @y"
    ),
    "scan of a delta rule": (
        "@e[b, s, f] = {y}[d -> f] * 0.5; scan s with @h[b, d, f] = 0"
        " { @h = {c} * @h; @h = @h + @e * 0.5 * ({x} - dot(@h, @e, f)); @y = dot(@h, @e, f) };"
        " @[b, s, d] = @y"
    ),
    "scan that starts again": (
        "scan s (reset = ids == 1) with @h[b, d] = 1 { @h = {c} * @h + {x} }; @[b, s, d] = @h"
    ),
    "scan of a maximum": (
        "scan s with @h[b, d] = -4 { @h = max(@h, {x}) }; @[b, s, d] = @h"
    ),
    "scan with a weight": (
        "weight @w[f: d, d] = fan_in; scan s with @h[b, d] = 0"
        " { @h = tanh(dot(@h, @w, d)[f -> d] * 0.5 + {x}) }; @[b, s, d] = @h"
    ),
}  # fmt: skip
SHAPES_AHEAD = {
    "pairs": "@[b, s, t] = dot({x}, {y}[s -> t], d) * 0.5",
    "sum of pairs": (
        "@t[b, s, t] = {y}[d: 0] - {x}[s -> t][d: 0]; @[b, s] = sum(tanh(@t), t) * 0.1"
    ),
    "over time": "@[b, d] = sum({x}, s) / (count(s) + 1) + {y}[s: 0]",
    "slice of time": "@[b, d] = {x}[s: 0] + {y}[s: -1]",
    "next": (
        "@n[s] = min(slot(s) + 1, size(s) - 1); @[b, s, d] = {x}[s -> t][t: @n] + {y}"
    ),
    "scan in reverse": (
        "scan s (reverse = true) with @h[b, d] = 0 { @h = {c} * @h + {x} }; @[b, s, d] = @h"
    ),
    "last state": "scan s with @h[b, d] = 0 { @h = {c} * @h + {x} }; @[b, d] = last(@h)",
}  # fmt: skip
LONGER = {
    "longer": (
        "weight @w[d] = normal; @t[b, @j, d] = concat(@w[@j: new], {x}[s -> @j], @j);"
        " @[b, d] = mean(@t, @j)"
    ),
}  # fmt: skip
INSTANCES = {
    "bank by number": "bank @f[n] = ffn({wide}); @[b, s, d] = ({x} |> @f[0]) - @f[1]({y})",
    "bank by ids": "bank @f[n] = linear(d); @[b, s, d] = @f[ids % n]({x})",
    "bank of layers by ids": (
        "bank @f[n] = gated_ffn({wide}); @[b, s, d] = @f[ids % n]({x}) + {y}"
    ),
    "shared": "shared @f = ffn({wide}); @[b, s, d] = @f(@f({x}))",
    "tied": (
        "shared @e = embedding(vocab, d); @h = @e(ids) + {x}; @[b, s, vocab] = @h |> unembed(@e.w)"
    ),
    "bias of distance": (
        "shared @r = relative_bias(heads, 8, 16, past = true); @[b, s, d] = {x} |>"
        " attention(heads, mask = causal, score = (a[...], s, t) -> a + @r(s, t)) as @l"
    ),
    "repeat": "@x = {x}; repeat @r[i: {n}] { {body}; @x += {c} * {inner} }; @[b, s, d] = @x",
    "repeat of two kinds": (
        "@x = {x}; repeat @r[i: {n}] { if i % 2 == 0 { {body}; @x += {c} * {inner} }"
        " else { {body}; @x += {c} * {inner} } }; @[b, s, d] = @x"
    ),
    "repeat with numbers": (
        "@c = [1.0, 0.5, 0.25]; @x = {x};"
        " repeat @r[i: {n}] { {body}; @x = @c[i] * @x + 0.5 * {inner} }; @[b, s, d] = @x"
    ),
    "repeat with sizes": (
        "@c = [3, 8, 3]; @x = {x};"
        " repeat @r[i: {n}] { @x += {c} * (@x |> ffn(@c[i]) as @l) }; @[b, s, d] = @x"
    ),
}  # fmt: skip
EXITS = {
    "exit of all": (
        "@x = {x}; repeat @r[i: 3] { @x += 0.5 * (@x |> linear(d) as f) }"
        " until sum(@x, b, s, d) > 0; @[b, s, d] = @x"
    ),
    "exit of each row": (
        "@x = {x}; repeat @r[i: 3] { @x += 0.5 * (@x |> linear(d) as f) }"
        " until sum(@x, s, d) > 0; @[b, s, d] = @x"
    ),
}  # fmt: skip
CHOICES = {"topk": "@v, @i = topk({x}, d, k: 2); @[b, s, k] = @v * {y}[d: @i]"}


def _named(texts: Mapping[str, str], **traits: bool) -> list[Production]:
    return [Production(name, text, **traits) for name, text in texts.items()]


def _giving(axes: str, expressions: Iterable[str], **traits: bool) -> list[Production]:
    return [Production(text, f"@[{axes}] = {text}", **traits) for text in expressions]


GROUPS: dict[str, list[Production]] = {
    "unary": _giving("{axes}", UNARY),
    "binary": _giving("{both}", BINARY),
    "steps": _giving("b, s, d", STEPS),
    "rows": _giving("b, s, d", ROWS),
    "layers": _giving("b, s, d", LAYERS),
    "ahead": _giving("b, s, d", AHEAD, ahead=True)
    + _named(SHAPES_AHEAD, ahead=True)
    + _named(LONGER, ahead=True, untimed=True),
    "shapes": _named(SHAPES),
    "instances": _named(INSTANCES, top=True),
    "choices": _giving("b, s, d", ROUTED, jumps=True) + _named(CHOICES, jumps=True),
    "exits": _named(EXITS, ahead=True, jumps=True, top=True),
}
PRODUCTIONS = [production for group in GROUPS.values() for production in group]

# ------------------------------------------------------------------------------- words in braces

ACTS = ("relu", "silu", "gelu", "gelu_tanh", "tanh")
MASKS = (
    "causal",
    "sliding({k})",
    "(s, t) -> slot(t) < slot(s)",
    "(s, t) -> causal(s, t) and ids == ids[s -> t]",
    "(s, t) -> causal(s, t) and local(2)(s, t)",
    "(s, t) -> causal(s, t) and position(s) - position(t) <= {k}",
    "(s, t) -> causal(s, t) and (random(7, 1, of = 3)(s, t) or slot(s) == slot(t))",
    "(s, t) -> causal(s, t) and not (slot(t) == {k})",
)
MASKS_AHEAD = (
    "full",
    "window({k}, 1)",
    "local(2)",
    "random({k}, 1, of = 2)",
    "(s, t) -> prefix(s, t, ids[s: 0])",
    "(s, t) -> ids != ids[s -> t]",
    "(s, t) -> slot(s) <= slot(t)",
)
SCORES = (
    "{a}",
    "{a} |> softcap(2.0)",
    "{a} - 0.1 * abs(position(s) - position(t))",
    "{a} * sigmoid({a})",
    "{a} + 0.25 * float(slot(t) % 3)",
)
ROPES = (
    "",
    "100.0",
    'pairing = "interleaved"',
    "dims = 2",
    "scaling = linear_scaling(4.0)",
    "scaling = llama3(8.0, original = 16)",
    "scaling = yarn(4.0, 8)",
)
ROUTES = (
    "softmax_top(2)",
    "softmax_top(1)",
    "softmax_top(2, renormalise = true)",
    "top_softmax(2)",
    "sigmoid_top(2)",
)
EXPERTS = (
    "ffn({wide})",
    "gated_ffn({wide})",
    "ffn({wide}, act = {act}, bias = true)",
    "linear(d)",
)

# Blocks of a user's own: each is a definition in front of the model, and how it is applied.
BLOCKS = {
    "narrowing": (
        "block narrowing(width, act = relu)(x[..., d]) -> [..., d] { weight keep[d] = ones;"
        " h = x |> linear(width) as down |> act; return keep * x + (h |> linear(d) as up) }",
        ("narrowing({wide})", "narrowing(d, act = {act})"),
    ),
    "gated": (
        "block gated(bias = false)(x[..., d]) -> [..., d]"
        " { return x * sigmoid(x |> linear(d, bias = bias) as gate) }",
        ("gated", "gated(bias = true)"),
    ),
    "around": (
        "block around(inner, gain = 1.0)(x[..., d]) -> [..., d]"
        " { return x + gain * (x |> rmsnorm as norm |> inner as inner) }",
        ("around(ffn({wide}), gain = {c})", "around(gated_ffn({wide}, act = {act}))", "around(linear(d))"),
    ),
    "beside": (
        "block beside(first, second)(x[..., s, d]) -> [..., s, d]"
        " { y[..., s, d] = (x |> first as first) - (x |> second as second); return y }",
        ("beside(attention({attention}), ffn({wide}))", "beside(causal_conv({k}), gated_ffn({wide}))"),
    ),
    "twice": (
        "block twice(part)(x[..., d]) -> [..., d] { shared f = part; return f(x) + 0.5 * f(f(x)) }",
        ("twice(gated_ffn({wide}))", "twice(ffn({wide}))", "twice(linear(d, bias = true))"),
    ),
}  # fmt: skip
