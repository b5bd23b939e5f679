"""What runs where: a table, construct × backend, computed by compiling a small model for each cell.

A construct is a few lines of a model. A cell is "runs" when elaboration, the passes and the backend
accept these lines, else the id of the error they raise. The tests run every cell; this module only
compiles. `python -m archc.support` writes the tables between the markers of the pages it names.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import get_args

from .api import BACKENDS, Model, backend
from .compiler.elaborate import module_of, preset_overrides, the_model
from .compiler.ops import ModelDType
from .compiler.passes import optimise
from .compiler.passes.quantise import Quant
from .dsl import Source, parse
from .dsl import syntax as syn
from .dsl.diagnostics import ArchError, Diagnostics
from .importer import examples

RUNS = "runs"

HEAD = """use std

model Support {
  d = 16; heads = 4; vocab = 11; n = 3
  input ids: ids[b, s] < vocab
  input x: float[b, s, d]
  input y: float[b, s, d]
  input m: float[b, t, d]
  input keep: bool[b, s]
"""


@dataclass(frozen=True, slots=True)
class Construct:
    """Lines of a model; `@` stands for a name of its own, and the output is called so.

    `header` are statements that change the whole model. `block` is a checkpoint block behind the
    model, for weights stored in the format `stored`. Of a bundled `example` it is the tiny preset.
    With `quant` the weights are quantised.
    """

    group: str
    name: str
    lines: str
    header: str = ""
    dtype: ModelDType = "f32"
    block: str = ""
    stored: str = ""
    example: str = ""
    quant: Quant | None = None


@cache
def bundled() -> dict[str, syn.File]:
    """The bundled examples by name."""
    return {Path(file.span.source.name).stem: file for file in examples()}


def _group(name: str, rows: dict[str, str], header: str = "") -> tuple[Construct, ...]:
    return tuple(Construct(name, row, lines, header) for row, lines in rows.items())


WIDE = "output @[b, s, d] = x |> linear(@wide: 256) as @up |> linear(d) as @down"


def _attend(**options: str) -> str:
    given = "".join(f", {name} = {value}" for name, value in options.items())
    return f"output @[b, s, d] = x |> attention(heads{given}) as @"


def _route(route: str, options: str = "") -> str:
    given = ", ".join(filter(None, ("heads, gated_ffn(8)", route, options)))
    return f"output @[b, s, d] = x |> mixture({given}) as @"


ELEMENTWISE = {
    "`+` `-` `*` `/`": "output @[b, s, d] = (x + y) * x - y / 3",
    "`**`": "output @[b, s, d] = (x * x + 1) ** 1.5",
    "`//` `%` of whole numbers": "output @[b, s] = ids // 3 + ids % 4",
    "`min` `max` `abs`": "output @[b, s, d] = max(abs(x), y) - min(x, 0.5)",
    "`exp` `log` `log1p`": "output @[b, s, d] = exp(x) + log(abs(y) + 1) + log1p(y * y)",
    "`sqrt` `rsqrt`": "output @[b, s, d] = sqrt(x * x + 1) + rsqrt(y * y + 1)",
    "`sin` `cos` `tanh`": "output @[b, s, d] = sin(x) + cos(y) * tanh(x)",
    "`sigmoid` `erf`": "output @[b, s, d] = sigmoid(x) + erf(y)",
    "`round` `floor` `int`": "output @[b, s, d] = round(3 * x) + floor(y) + int(4 * x)",
    "comparisons, `and` `or` `not`": "output @[b, s, d] = x < y and not (x == 0 or y <= -1)",
    "`where`": "output @[b, s, d] = where(keep, x, y - 1)",
    "`f32` `float` `cast`": "output @[b, s, d] = float(f32(x) * cast(y, f32)) + float(ids)",
    "`round_to`": 'output @[b, s, d] = round_to(x, "bf16")',
    "`stop_gradient`": "output @[b, s, d] = x * stop_gradient(y)",
}
ACTIVATIONS = {
    f"`{name}`": f"output @[b, s, d] = {name}(x)"
    for name in ("relu", "silu", "gelu", "gelu_tanh", "gelu_quick", "elu", "softplus")
} | {
    "`softcap`": "output @[b, s, d] = x |> softcap(1.5)",
    "`clamp`": "output @[b, s, d] = clamp(x, -1, y)",
}
AXES = {
    "alignment by name": "weight @w[d] = ones; output @[b, s, d] = x * @w",
    "outer product": "output @[b, s, t] = sum(x, d) * sum(m, d)",
    "rename": "output @[b, t, d] = x[s -> t] * 2",
    "split": "output @[b, s, g, j] = x[d -> (g: 2, j)] + 1",
    "merge": "output @[b, r] = x[(s, d) -> r] * 2",
    "order": "output @[d, b, s] = x + y",
    "slice": "output @[b, s, d] = x[d: 2..9] + y[d: 0..7]",
    "pick": "output @[b, d] = x[s: -1] + y[s: 0]",
    "new axis": "output @[one, b, s, d] = x[one: new]",
    "take by a tensor": "weight @w[rows: 11, d]; output @[b, s, d] = @w[rows: ids]",
    "take along shared axes": "output @[b, s] = x[d: ids]",
    "`concat`": "output @[b, s, d] = concat(x, y[d: 0..5], d)",
    "`stack`": "output @[b, s, d, p] = stack(x, y, p)",
}
REDUCTIONS = {
    "`sum`": "output @[b, d] = sum(x, s)",
    "`sum` over several axes": "output @[b] = sum(x, s, d)",
    "`mean`": "output @[b, s] = mean(x, d)",
    "`amax` `any`": "output @[b, s] = where(any(x > 1, d), amax(x, d), 0)",
    "`softmax`": "output @[b, s, d] = softmax(x, d)",
    "`logsumexp`": "output @[b, s] = logsumexp(x, d)",
    "`softmax` of a row of `-inf`": "output @[b, s, d] = softmax(where(keep, x, -inf), d)",
    "`cumsum`": "output @[b, s, d] = cumsum(x, s)",
    "`topk`": "@v, @i = topk(x, d, k: 3); output @[b, s, k] = @v * y[d: @i]",
    "`dot`": "output @[b, s, t] = dot(x, m, d)",
    "`dot` over two axes": "output @[b] = dot(x, y, s, d)",
}
LAYERS = {
    "`linear`, to several axes": "output @[b, s, g, e] = x |> linear(g: 2, e: 5) as @",
    "`linear` with bias": "output @[b, s, d] = x |> linear(d, bias = true) as @",
    "`ffn`": "output @[b, s, d] = x |> ffn(24, act = gelu, bias = true) as @",
    "`gated_ffn`": "output @[b, s, d] = x |> gated_ffn(24) as @",
    "`embedding`, tied `unembed`": (
        "shared @e = embedding(vocab, d); output @[b, s, vocab] = @e(ids) |> unembed(@e.w)"
    ),
    "`rmsnorm`": "output @[b, s, d] = x |> rmsnorm(1e-3) as @",
    "`layernorm`": "output @[b, s, d] = x |> layernorm(1e-3) as @",
    "norm before `linear`": "output @[b, s, d] = x |> rmsnorm as @n |> linear(d) as @l",
    "`l2_normalise`": "output @[b, s, d] = x |> l2_normalise",
    "`lstm`": "output @[b, s, d] = x |> lstm(d) as @",
    "`causal_conv`": "output @[b, s, d] = x |> causal_conv(3) as @",
    "`long_convolution`": (
        "weight @w[d] = ones; @k[s, d] = exp(-slot(s)) * @w;"
        " output @[b, s, d] = x |> long_convolution(@k)"
    ),
}
POSITIONS = {
    "learned": "output @[b, s, d] = x |> learned_positions(16) as @",
    "sinusoidal": "output @[b, s, d] = x |> sinusoidal",
    "sinusoidal, in blocks, at given positions": (
        '@p = sinusoidal(order = "blocks", steps = d // 2 - 1); output @[b, s, d] = @p(x, ids)'
    ),
    "rotary, halves": "output @[b, s, d] = rope()(x, s)",
    "rotary, neighbours": 'output @[b, s, d] = rope(pairing = "interleaved")(x, s)',
    "rotary, part of a head": "output @[b, s, d] = rope(dims = 6)(x, s)",
    "rotary, Llama 3 scaling": (
        "output @[b, s, d] = rope(scaling = llama3(8.0, original = 16))(x, s)"
    ),
    "rotary, linear scaling": "output @[b, s, d] = rope(scaling = linear_scaling(4.0))(x, s)",
}
ATTENTION = {
    "multi-head": _attend(),
    "grouped heads": _attend(kv_heads="2"),
    "one key-value head": _attend(kv_heads="1"),
    "sinks": _attend(sinks="true"),
    "cross": "output @[b, s, d] = x |> attention(heads, memory = m) as @",
    "mask: causal": _attend(mask="causal"),
    "mask: sliding window": _attend(mask="sliding(3)"),
    "mask: two-sided window": _attend(mask="window(2, 1)"),
    "mask: blocks": _attend(mask="local(2)"),
    "mask: random": _attend(mask="random(7, 1, of = 3)"),
    "mask: prefix": _attend(mask="(s, t) -> prefix(s, t, ids[s: 0])"),
    "mask: any expression": _attend(mask="(s, t) -> causal(s, t) or ids[s -> t] == ids"),
    "rotary": _attend(mask="causal", rotate="rope()"),
    "ALiBi": (
        "@a = alibi_slopes(heads); " + _attend(
            mask="causal",
            score="(a[...], s, t) -> a - @a * abs(position(s) - position(t))",
        )
    ),
    "score hook: soft cap": _attend(score="(a[...], s, t) -> a |> softcap(2.0)"),
    "normalised queries and keys": _attend(norm="rmsnorm(1e-5)"),
    "own head size and scale": _attend(head_dim="3", scale="0.3"),
    "linear": "output @[b, s, d] = x |> linear_attention(heads) as @",
    "linear, causal": "output @[b, s, d] = x |> linear_attention(heads, mask = causal) as @",
    "a bidirectional mask, fully hidden rows": _attend(mask="(s, t) -> keep[s -> t]"),
}  # fmt: skip
ROUTING = {
    "softmax over all, the best": _route("softmax_top(2)"),
    "softmax over all, the best, shares that sum to one": _route(
        "softmax_top(2, renormalise = true)"
    ),
    "softmax over the best": _route("top_softmax(2)"),
    "one expert": _route("softmax_top(1)"),
    "sigmoid, a bias for the selection": _route("sigmoid_top(2)"),
    "the best groups": _route("softmax_top(2, within = best_groups(2, 1))"),
    "capacity, what comes later is dropped": _route("capped(softmax_top(1), 2)"),
    "shared experts": _route("softmax_top(2)", "beside = ffn(8)"),
    "shared experts behind a gate": _route(
        "softmax_top(2)", "beside = ffn(8), beside_gated = true"
    ),
    "losses of a router": (
        "@v, @i = topk(softmax(x, d), d, k: 2); @p = softmax(x, d);"
        " output @[b] = load_balance(@p, @i) + squared_load()(@p, @i) + router_z(x)"
    ),
}
TEXT = {
    "`repeat`": "@ = x; repeat @r[i: n] { @ += @ |> rmsnorm |> linear(d) }; output @o[b, s, d] = @",
    "`repeat` with several kinds of layer": (
        "@ = x; repeat @r[i: n] { if i % 2 == 0 { @ += @ |> ffn(24) as f }"
        " else { @ += @ |> linear(d) as g } }; output @o[b, s, d] = @"
    ),
    "`repeat` with numbers that differ": (
        "@c = [1.0, 0.5, 0.25]; @ = x; repeat @r[i: n] { @ += @c[i] * (@ |> linear(d) as f) };"
        " output @o[b, s, d] = @"
    ),
    "`repeat` with sizes that differ": (
        "@c = [8, 24, 8]; @ = x; repeat @r[i: n] { @ += @ |> ffn(@c[i]) }; output @o[b, s, d] = @"
    ),
    "`shared`": "shared @f = ffn(24); output @[b, s, d] = @f(@f(x))",
    "`bank` by number": "bank @f[n] = linear(d); output @[b, s, d] = (x |> @f[0]) - @f[2](x)",
    "lambdas that capture": "@f = (u[...]) -> u * y; output @[b, s, d] = @f(x) + (m[t: 0] |> @f)",
    "`buffer`": "buffer @c[d] = ones; output @[b, s, d] = x * @c",
    "`const` tables": "const @c[d] = 0.5 ** index(d); output @[b, s, d] = x * @c",
    "`index` `size` `position`": "output @[b, s, d] = x * (index(s) + position(s)) / size(s)",
    "`bank` by a tensor": "bank @f[n] = linear(d); output @[b, s, d] = @f[ids % n](x)",
    "`repeat .. until`, all rows together": (
        "@ = x; repeat @r[i: n] { @ += @ |> linear(d) as f } until sum(@, b, s, d) > 0;"
        " output @o[b, s, d] = @"
    ),
    "`repeat .. until`, each row by itself": (
        "@ = x; repeat @r[i: n] { @ += @ |> linear(d) as f } until sum(@, s, d) > 0;"
        " output @o[b, s, d] = @"
    ),
    "`scan`": "scan s with @[b, d] = 0 { @ = 0.5 * @ + x }; output @o[b, s, d] = @",
    "`scan` in reverse, with reset": (
        "scan s (reverse = true, reset = keep) with @[b, d] = 1 { @ = 0.5 * @ + x };"
        " output @o[b, s, d] = @"
    ),
    "`scan` of a delta rule": (
        "@k = l2_normalise(0.1)(x); scan s with @[b, d, n] = 0 {"
        " @ = @ + @k * (y[d: 0..n][d -> n] - dot(@, @k, d)); @y = dot(@, @k, d) };"
        " output @o[b, s, n] = @y"
    ),
    "`scan` of several states, `prev`, `last`": (
        "scan s with @[..., d] = 0, @n = y[s: 0] { @ = @n - 0.5 * @; @n = prev(@) + x };"
        " output @o[b, s, d] = @n + last(@)"
    ),
}
PADDING = {
    "padding: attention": _attend(mask="causal"),
    "padding: `mean` `sum` `amax`": "output @[b, d] = mean(x, s) + sum(y, s) - amax(x, s)",
    "padding: `softmax`": "output @[b, s, d] = softmax(x, s)",
    "padding: `scan` holds": (
        "scan s with @[b, d] = 0 { @ = 0.5 * @ + x }; output @o[b, s, d] = @"
    ),
}
DECODE = {"`decode`: causality is proved": _attend(mask="causal", rotate="rope()")}
SEGMENTS = {
    "segments": _attend(mask="(s, t) -> causal(s, t) and segment(s) == segment(t)"),
    "segments: `scan` starts again": (
        "scan s with @[b, d] = 0 { @ = 0.5 * @ + x }; output @o[b, s, d] = @"
    ),
}
PREFIX = {
    "`decode .. after`": _attend(mask="(s, t) -> prefix(s, t, length)", rotate="rope()"),
}
DTYPES: dict[ModelDType, str] = {
    "f64": "float64",
    "f32": "float32",
    "bf16": "bfloat16",
    "f16": "float16",
}
IN_DTYPE = "output @[b, s, d] = x |> rmsnorm as @n |> attention(heads, mask = causal) as @a"
STORED = "output @[b, s, d] = x |> linear(rows: 32) as @u |> linear(d) as @d"
BLOCK = """checkpoint {} "tiny" for Support {{
  "up.weight"[d, rows] = @u.w
  "down.weight" = @d.w
}}"""

CONSTRUCTS: tuple[Construct, ...] = (
    *_group("elementwise", ELEMENTWISE),
    *_group("activations", ACTIVATIONS),
    *_group("axes", AXES),
    *_group("reductions", REDUCTIONS),
    *_group("layers", LAYERS),
    *_group("positions", POSITIONS),
    *_group("attention", ATTENTION),
    *_group("routing", ROUTING),
    *_group("text", TEXT),
    *_group("time", PADDING, "time s: valid = keep"),
    *_group("time", SEGMENTS, "time s: segment = ids // 4, position = ids"),
    *_group("time", DECODE, "decode s"),
    *_group("time", PREFIX, "input length: int[b] = 2; decode s after length"),
    *(Construct("dtypes", name, IN_DTYPE, dtype=dtype) for dtype, name in DTYPES.items()),
    *(
        Construct(
            "checkpoints", name, STORED, block=BLOCK.format(stored.partition(" ")[0]), stored=stored
        )
        for name, stored in {
            "Hugging Face directory": "huggingface",
            "Hugging Face directory in shards": "huggingface shards",
            "GGUF, F32": "gguf F32",
            "GGUF, F16": "gguf F16",
            "GGUF, Q8_0": "gguf Q8_0",
            "GGUF, Q4_1": "gguf Q4_1",
        }.items()
    ),
    *(Construct("quantised weights", f"`{quant}`", WIDE, quant=quant) for quant in get_args(Quant)),
    *(Construct("examples", f"`{name}`", "", example=name) for name in bundled()),
)


def source_of(constructs: Iterable[Construct]) -> Source:
    """One model with the lines of all; they have the same header. Names are numbered by place."""
    several = list(constructs)
    text = HEAD + f"  {several[0].header}\n"
    for number, construct in enumerate(several):
        text += "  " + construct.lines.replace("@", f"c{number}_") + "\n"
    blocks = (c.block.replace("@", f"c{number}_") for number, c in enumerate(several))
    return Source("support.arch", text + "}\n" + "\n".join(blocks))


def model_of(constructs: Iterable[Construct]) -> Model:
    """The model of `source_of`, or the only example. Raises `ArchError` or `Diagnostics`."""
    several = list(constructs)
    if several[0].example:
        module = module_of(bundled()[several[0].example])
        name, overrides = preset_overrides(module, "tiny")
        return Model(module, the_model(module, name), overrides)
    module = module_of(parse(source_of(several)))
    return Model(module, the_model(module), {})


@cache
def alone(construct: Construct) -> Model:
    """Its own model, whose graph is made once for every backend. Raises what `model_of` raises."""
    return model_of([construct])


@cache
def status(construct: Construct, backend_name: str) -> str:
    """`RUNS`, or the id of the error that refuses it."""
    try:
        model = alone(construct)
        runner = backend(backend_name)
        unwanted = runner.unwanted_passes(construct.dtype)
        runner.emit(optimise(model.program, disable=unwanted, quant=construct.quant).program)
        if construct.group == "dtypes":  # which only loading refuses
            model.with_random_weights(0).compile(backend_name, dtype=construct.dtype)
    except ArchError as error:
        return error.id
    except Diagnostics as found:
        return found.errors[0].id
    return RUNS


def groups() -> dict[str, list[Construct]]:
    found: dict[str, list[Construct]] = {}
    for construct in CONSTRUCTS:
        found.setdefault(construct.group, []).append(construct)
    return found


# --------------------------------------------------------------------------------- pages


def table() -> str:
    """Every cell, as Markdown."""
    return "".join(f"{line}\n" for line in _table())


def _table() -> Iterator[str]:
    names = tuple(BACKENDS)
    for group, constructs in groups().items():
        yield f"\n## {group.capitalize()}\n"
        yield f"| construct | {' | '.join(names)} |"
        yield "|---" * (1 + len(names)) + "|"
        for construct in constructs:
            cells = (_shown(status(construct, name)) for name in names)
            yield f"| {construct.name} | {' | '.join(cells)} |"


def _shown(cell: str) -> str:
    return cell if cell == RUNS else f"refused: `{cell}`"


def summary() -> str:
    """A row for each group, as Markdown."""
    names = tuple(BACKENDS)
    rows = [f"| | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for group, constructs in groups().items():
        cells = (_counted(constructs, name) for name in names)
        rows.append(f"| {group} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _counted(constructs: list[Construct], backend_name: str) -> str:
    refused = [c.name for c in constructs if status(c, backend_name) != RUNS]
    total = f"{len(constructs) - len(refused)} of {len(constructs)}"
    return total + (f"; refused: {', '.join(refused)}" if refused else "")


START, END = "<!-- support -->\n", "<!-- end of support -->"
PAGES = {Path("docs/support.md"): table, Path("README.md"): summary}


def replaced(page: str, text: str) -> str:
    """`page` with `text` between the markers."""
    before, start, rest = page.partition(START)
    return before + start + text + rest[rest.index(END) :]


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path.cwd()
    for page, text in PAGES.items():
        path = root / page
        path.write_text(replaced(path.read_text(encoding="utf-8"), text()), encoding="utf-8")
        print(f"wrote {page}")


if __name__ == "__main__":
    main()
