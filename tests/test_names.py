"""Names and strings of a file never become code: the written text computes the same under any."""

from __future__ import annotations

import ast
import builtins
import keyword
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import small_models
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from archc.api import Model, backend, load
from archc.backends.torch.source import RESERVED as TORCH
from archc.backends.triton.host import RESERVED as TRITON
from archc.compiler.elaborate import module_of, preset_overrides, the_model
from archc.compiler.passes import optimise
from archc.dsl import Source, parse
from archc.dsl.lexer import RESERVED
from archc.dsl.words import WORDS as WORDS_OF_GRAMMAR

EXAMPLES = Path(__file__).parent.parent / "examples"
# Words of Python, of its builtins, of Triton and C++, and what the emitted texts call their own.
OTHERS = """torch self tl np F nn forward triton math x w n pid mask offsets x_ptr num_warps rows dtype
device state cuda template namespace auto void double char switch delete goto static long struct""".split()
NO_NAMES = RESERVED | set(
    chain(*WORDS_OF_GRAMMAR.values())
)  # some are names where they begin no line
TAKEN = sorted({*keyword.kwlist, *keyword.softkwlist, *dir(builtins), *OTHERS} - NO_NAMES - {"_"})
WORDS = st.one_of(
    st.sampled_from(TAKEN), st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,12}", fullmatch=True)
)
NAMES = st.lists(WORDS.filter(lambda w: w not in NO_NAMES), min_size=16, max_size=16, unique=True)
WRITTEN = r"""A quote \" ' and {__import__('os').system('exit')} # %s \N{DASH} \
")); import os; os.abort()
    print("in") """
DOCS = st.one_of(
    st.just(WRITTEN), st.text(max_size=30).filter(lambda d: '"""' not in d and d[-1:] != '"')
)
FORBIDDEN = {
    "__import__",
    "exec",
    "eval",
    "compile",
    "open",
    "print",
    "input",
    "breakpoint",
    "exit",
}


def text_of(names: list[str], doc: str) -> str:
    """A model with each name in another role: the first four are of the model itself."""
    (model, preset, x, out, block, fn, v, d, t, hyper, weight, label, inner, rep, i, const) = names
    return f'''"""{doc}"""
use std
block {block}({hyper} = 1.5)({v}[..., {d}]) -> [..., {d}] {{
  """{doc}"""
  weight {weight}[{d}]
  return ({v} * {weight} * {hyper}) |> rmsnorm as {inner}
}}
fn {fn}({v}[...]) = {v} * 2 + 1
model {model} {{
  """{doc}"""
  {d} = 4
  input {x}: float[batch, {t}, {d}]
  const {const}[{d}] = index({d}) * 0.5
  {v} = {x} + {const}
  repeat {rep}[{i}: 2] {{
    {v} += {fn}({v}) |> {block}({i} * 0.5 + 1) as {label} |> linear({d}) as {fn}
  }}
  output {out}[batch, {t}, {d}] = softmax({v}, {d})
}}
preset {preset} = {model}({d} = 8)
'''


def opened(names: list[str], doc: str) -> Model:
    module = module_of(parse(Source("names.arch", text_of(names, doc))))
    name, overrides = preset_overrides(module, names[1])
    return Model(module, the_model(module, name), overrides).with_random_weights(seed=0)


def is_safe(text: str) -> bool:
    """Whether a text parses, and calls nothing by name that a model has no use for."""
    calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return not {f.id for f in calls if isinstance(f, ast.Name)} & FORBIDDEN


def same(model: Model, names: list[str], other: str) -> bool:
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    expected = model.compile("numpy", level=0)(**{names[2]: x})[names[3]]
    return np.allclose(model.compile(other)(**{names[2]: x})[names[3]], expected, atol=1e-5)


def texts(model: Model, name: str) -> list[str]:
    emitted = backend(name).emit(optimise(model.program).program)
    return [text for file, text in emitted.items() if file.endswith(".py")]


QUIET = settings(
    deadline=None, suppress_health_check=list(HealthCheck), database=None, phases=[Phase.generate]
)


@settings(QUIET, max_examples=4)
@given(NAMES, DOCS)
def test_any_names_and_words_make_the_same_model(names: list[str], doc: str) -> None:
    model = opened(names, doc)
    for written in ("torch", "triton"):
        assert all(map(is_safe, texts(model, written)))
    assert same(model, names, "torch")


@pytest.mark.parametrize(
    "name", ["except", "class", "_4k", "self", "states", "n_t", "run", "model", "False"]
)
@pytest.mark.parametrize("role", range(16))
def test_a_taken_name_in_each_role_is_another_in_the_text(role: int, name: str) -> None:
    names = "M tiny x y b f v d t h w l p r i c".split()
    names[role] = name
    model = opened(names, "")
    for written in ("torch", "triton"):
        assert all(map(is_safe, texts(model, written)))


@pytest.mark.parametrize(("written", "reserved"), [("torch", TORCH), ("triton", TRITON)])
@pytest.mark.parametrize("example", ["llama", "deepseek_v2", "mamba2", "t5"])
def test_no_value_has_the_name_of_a_builtin_that_a_method_calls(
    written: str, reserved: frozenset[str], example: str
) -> None:
    """A value that nobody named has the name of its op, and `min` is one."""
    model = load(EXAMPLES / f"{example}.arch")
    programs = model.program, model.incremental().prefill, model.incremental().chunk
    methods = [
        node
        for program in programs
        for name, text in backend(written).emit(program).items()
        if name == "model.py"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.name == "forward"
    ]
    assert methods
    called = {
        node.func.id
        for method in methods
        for node in ast.walk(method)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert called & {*dir(builtins)} <= reserved


def test_functions_of_a_kernel_beside_values_of_their_names() -> None:
    text = """use std
model M {
  input x: float[b, s, d]
  greatest = amax(x, b, s, d)
  output y[b] = amax(x - greatest, s, d) + greatest
}"""
    model = small_models.opened(text)
    x = np.linspace(-1, 2, 24, dtype=np.float32).reshape(2, 3, 4)
    for level in (0, 1):
        found = model.compile("triton", level=level)(x=x)["y"]
        np.testing.assert_allclose(found, x.max((1, 2)), atol=1e-6)


def test_the_least_of_two_sizes_beside_a_value_named_min() -> None:
    text = """use std
model M { input x: float[b, s, d]; decode s; output y[b, s, d] = min(previous(x, s), 1) + x }"""
    model = small_models.opened(text)
    x = np.linspace(-1, 2, 8, dtype=np.float32).reshape(1, 4, 2)
    y = small_models.continued(model.decoder("triton", level=0), {"x": x}, (1,) * 4)
    expected = np.minimum(np.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :4], 1) + x
    np.testing.assert_allclose(y, expected, atol=1e-6)


@pytest.mark.parametrize("shift", [5])
def test_triton_computes_the_same_under_names_that_are_taken(shift: int) -> None:
    names = [*OTHERS, "__import__", "class", "def", "lambda"][shift : shift + 16]
    model = opened(names, WRITTEN)
    assert all(map(is_safe, texts(model, "triton")))
    assert same(model, names, "triton")


def test_names_of_tensors_are_only_looked_up(tmp_path) -> None:
    """Tensor lines and class names of a checkpoint block stand in no written text."""
    names = "M tiny x y b f v d t h w l p r i c".split()
    block = """checkpoint huggingface "__import__('os').abort()" for M {
  "');__import__('os').abort()#" = r[0].l.w
}
"""
    module = module_of(parse(Source("names.arch", text_of(names, "doc") + block)))
    name, overrides = preset_overrides(module, "tiny")
    model = Model(module, the_model(module, name), overrides)
    assert not any("abort" in text for kind in ("torch", "triton") for text in texts(model, kind))
