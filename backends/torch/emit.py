"""`model.py`: a program as standalone PyTorch.

One class per layer kind and one for the model, tables as functions, sizes as constants at the top.
A kind's class is written after all its callers, so that it knows what they agree on about what they
pass (that a mask is causal, that positions are slots).
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import ClassVar

from ...compiler.ir.graph import (
    STATE,
    Axis,
    DType,
    Function,
    Node,
    Parameter,
    Program,
    callees,
)
from ...compiler.ir.walk import calls, join
from ...dsl.diagnostics import InternalError
from ..numpy.prepared import symbols
from . import contraction, layers, lowering, quantised, scans
from .layout import Group, Layout, Value, flat, single
from .module import ChunkMethod, Module
from .scope import Scope
from .source import Method, Statement, expression, identifier, number, plain, statement

__all__ = ["contraction", "emit_model", "layers", "lowering", "quantised", "scans"]

HELPERS = {
    "OPS": """
OPS = "".join(c if c.isalnum() else "_" for c in __name__)  # the namespace of this file's own ops
while any(hasattr(getattr(torch.ops, OPS), op) for op in ("grouped_linear", "packed_linear")):
    OPS += "_"  # a text of this name was read before, and its ops may be in use
""",
    "affine_steps": '''
def affine_steps(factors, offsets, state):
    """h = factor h + offset for each entry along dimension 0: all states, from `state` to the last.

    They are written into one buffer, unless gradients are asked for.
    """
    factors, offsets, _ = torch.broadcast_tensors(factors, offsets, state[None])
    if torch.is_grad_enabled():
        states = [state]
        for factor, offset in zip(factors, offsets):
            states.append(factor * states[-1] + offset)
        return torch.stack(states)
    states = state.new_empty(len(offsets) + 1, *state.shape)
    states[0] = state
    for factor, offset, before, after in zip(factors, offsets, states[:-1], states[1:]):
        torch.addcmul(offset, factor, before, out=after)
    return states
''',
    "append": '''
def append(kept, past, rows, dim):
    """`rows` after the first `past` entries of `kept` along `dim`, written there if it has room.

    What is compiled is given room: a test would be one more assumption about sizes.
    """
    count = rows.shape[dim]
    if not torch.compiler.is_compiling() and kept.shape[dim] < past + count:
        return torch.cat([kept.narrow(dim, 0, past).to(rows.dtype), rows], dim)
    kept.narrow(dim, past, count).copy_(rows)
    return kept.narrow(dim, 0, past + count).to(rows.dtype)
''',
    "convolve": '''
def convolve(x, kernel, dim):
    """y[s] = sum over t <= s of kernel[s - t] x[t] along `dim`: transforms that do not wrap."""
    dtype, length = x.dtype, x.shape[dim]
    if dtype in (torch.bfloat16, torch.float16):
        x, kernel = x.float(), kernel.float()
    size = max(2 * length, 1)
    spectrum = torch.fft.rfft(x, size, dim) * torch.fft.rfft(kernel, size, dim)
    return torch.fft.irfft(spectrum, size, dim).narrow(dim, 0, length).to(dtype)
''',
    "in_chunks": '''
def in_chunks(chunk, length, reverse, sequences, dims, states, captured):
    """`chunk` on `length` entries of the (sequence, dimension) pairs at a time, states passed on.

    Returns its sequences, joined along `dims`, and the last states.
    """
    parts = list(zip(*(x.split(length, dim) for x, dim in sequences)))
    made = [[] for _ in dims]
    for part in reversed(parts) if reverse else parts:
        results = chunk(*part, *(x.contiguous() for x in states), *captured)
        for chunks, result in zip(made, results):
            chunks.append(result)
        states = results[len(dims) :]
    order = slice(None, None, -1 if reverse else 1)
    return *(torch.cat(chunks[order], dim) for chunks, dim in zip(made, dims)), *states
''',
    "grouped_linear": '''
@torch.library.custom_op(OPS + "::grouped_linear", mutates_args=())
def grouped_linear(
    x: torch.Tensor, w: torch.Tensor, order: torch.Tensor, counts: torch.Tensor, shared: int = 1
) -> torch.Tensor:
    """w[i[r]] x[r // shared] for each row r: one product for each entry of w that some row picks.

    `order` and `counts` are what `rows_by_index` makes of i. An op of its own is one node of a
    compiled graph, which could not hold the sizes that the data decide.
    """
    rows = x[order // shared]
    y = rows.new_empty(len(order), w.shape[1])
    sizes = counts.tolist()
    for matrix, given, result in zip(w, rows.split(sizes), y.split(sizes)):
        if len(given):
            torch.mm(given, matrix.mT, out=result)
    return torch.empty_like(y).index_copy_(0, order, y)


@torch.library.custom_op(OPS + "::grouped_outer", mutates_args=())
def grouped_outer(
    x: torch.Tensor, y: torch.Tensor, order: torch.Tensor, counts: torch.Tensor, shared: int = 1
) -> torch.Tensor:
    """For each entry the sum of y[r] x[r // shared]^T over the rows that pick it."""
    rows, y = x[order // shared], y[order]
    w = x.new_empty(len(counts), y.shape[1], x.shape[1])
    sizes = counts.tolist()
    for left, right, result in zip(y.split(sizes), rows.split(sizes), w):
        torch.mm(left.mT, right, out=result)  # zeros where there are no rows
    return w


@grouped_linear.register_fake
def _(x, w, order, counts, shared=1):
    return x.new_empty(order.shape[0], w.shape[1])


@grouped_outer.register_fake
def _(x, y, order, counts, shared=1):
    return x.new_empty(counts.shape[0], y.shape[1], x.shape[1])


def sum_of_shared(rows, x, shared):
    return rows.view(x.shape[0], shared, x.shape[1]).sum(1)


def keep_for_gradients(ctx, inputs, output):
    *tensors, ctx.shared = inputs
    ctx.save_for_backward(*tensors)


def linear_gradients(ctx, grad):
    x, w, *groups = ctx.saved_tensors
    to_x, to_w, *_ = ctx.needs_input_grad
    dx = sum_of_shared(grouped_linear(grad, w.mT, *groups), x, ctx.shared) if to_x else None
    dw = grouped_outer(x, grad, *groups, ctx.shared) if to_w else None
    return dx, dw, None, None, None


def outer_gradients(ctx, grad):
    x, y, *groups = ctx.saved_tensors
    dx = sum_of_shared(grouped_linear(y, grad.mT, *groups), x, ctx.shared)
    return dx, grouped_linear(x, grad, *groups, ctx.shared), None, None, None


grouped_linear.register_autograd(linear_gradients, setup_context=keep_for_gradients)
grouped_outer.register_autograd(outer_gradients, setup_context=keep_for_gradients)
''',
    "packed_linear": '''
HAS_ONEDNN = torch.backends.mkldnn.is_available() and (
    torch.backends.cpu.get_cpu_capability().startswith("AVX")
)
HAS_BF16 = HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # instructions of the CPU


def pack(w):
    """The matrix in the order in which oneDNN multiplies, if it does here and in this dtype."""
    taken = HAS_ONEDNN if w.dtype == torch.float32 else HAS_BF16 and w.dtype == torch.bfloat16
    return torch.ops.mkldnn._reorder_linear_weight(w) if taken and w.device.type == "cpu" else w


def onednn_linear(x, w, bias=None):
    return torch.ops.mkldnn._linear_pointwise(x, w, bias, "none", [], "")


# An op of its own is one node of a compiled graph, in which oneDNN's op must have constant weights.
torch.library.define(OPS + "::packed_linear", "(Tensor x, Tensor w, Tensor? bias=None) -> Tensor")
torch.library.impl(OPS + "::packed_linear", "default", onednn_linear)


@torch.library.register_fake(OPS + "::packed_linear")
def _(x, w, bias=None):
    return x.new_empty(*x.shape[:-1], w.shape[0])


def by_onednn(x, w):
    """Whether oneDNN multiplies x by w, in whichever order it is."""
    taken = HAS_ONEDNN if x.dtype == torch.float32 else HAS_BF16 and x.dtype == torch.bfloat16
    trained = torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)
    return taken and not trained and x.device.type == "cpu" and x.numel() > 0


def packed_linear(x, w, bias=None):
    """F.linear(x, w, bias) where w is what `pack` made: in oneDNN's order, or as it was.

    What is compiled does not see the order. Without instructions for bfloat16, three rows are faster in
    float32, the weight's way included.
    """
    unseen = torch.compiler.is_compiling() and by_onednn(x, w)
    if unseen or (w.is_mkldnn and not x.requires_grad):
        return getattr(torch.ops, OPS).packed_linear(x, w.to(x.dtype), bias)
    w = (w.to_dense() if w.is_mkldnn else w).to(x.dtype)
    slow = x.dtype == torch.bfloat16 and x.device.type == "cpu" and not HAS_BF16
    if slow and x.numel() > 2 * x.shape[-1]:
        bias = bias if bias is None else bias.float()
        return F.linear(x.float(), w.float(), bias).to(x.dtype)
    return F.linear(x, w, bias)
''',
    "few_rows": '''
HAS_FEW_ROWS = hasattr(torch.ops.few_rows, "product")  # `few_rows.py` registers it, if it can


def are_few(x, *weights):
    """Whether rows of x are so few that a product takes the time of reading its weights."""
    trained = torch.is_grad_enabled() and any(t.requires_grad for t in [x, *weights])
    taken = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
    return HAS_FEW_ROWS and taken and not trained and 0 < x.numel() < 8 * x.shape[-1]


def as_rows(x):
    return x.reshape(-1, x.shape[-1]).contiguous()
''',
    "linear": '''
def linear(x, w, bias=None):
    """F.linear(x, w, bias), w as it is stored: read once for a few rows, by oneDNN for many."""
    stored = w.is_contiguous() and w.dtype in (torch.float32, torch.bfloat16)
    if are_few(x, w) and stored:
        y = torch.ops.few_rows.product(as_rows(x), w).view(*x.shape[:-1], w.shape[0])
        return y if bias is None else y + bias
    if by_onednn(x, w):
        return getattr(torch.ops, OPS).packed_linear(x, w.to(x.dtype), bias)
    return packed_linear(x, w, bias)
''',
    "quantise": '''
def quantise(w, bits, group):
    """Codes of the last dimension and, for each group of them, a scale and with 4 bits an offset.

    8 bits: w = scale * code. 4 bits, two to a byte, the first low: w = scale * (code - 8) + offset.
    A block of rows at a time: what is computed on the way takes more memory than what is kept.
    """
    taken = w.device.type == "cpu" and w.dtype in (torch.float32, torch.bfloat16)
    if HAS_FEW_ROWS and taken and group == 32 and w.shape[-1] % group == 0:
        codes = w.new_empty(*w.shape[:-1], w.shape[-1] * bits // 8, dtype=torch.int8)
        steps = [w.new_empty(*w.shape[:-1], w.shape[-1] // group) for _ in range(8 // bits)]
        torch.ops.few_rows.encode(w.contiguous(), codes, *steps)
        return codes, *steps
    blocks = w.reshape(-1, w.shape[-1]).split(max(2**20 // w.shape[-1], 1))
    parts = zip(*(quantise_rows(block, bits, group) for block in blocks))
    return tuple(torch.cat(part).view(*w.shape[:-1], part[0].shape[-1]) for part in parts)


def quantise_rows(w, bits, group):
    length = w.shape[-1]
    short = w[..., -1:].expand(*w.shape[:-1], -length % group)
    entries = torch.cat([w, short], -1).float().unflatten(-1, (-1, group))
    least, most = entries.aminmax(dim=-1)
    if bits == 8:
        steps = [torch.maximum(most, -least) / 127]
    else:
        scales = (most - least) / 15
        steps = [scales, least + 8 * scales]
    steps = [x.to(w.dtype) for x in steps]
    scales, *offsets = (x.to(entries.dtype).unsqueeze(-1) for x in steps)
    codes = (entries - offsets[0] if offsets else entries) / scales
    codes = codes.masked_fill(scales == 0, 0.0).round()
    codes = codes.clamp(-127, 127) if bits == 8 else (codes + 8).clamp(0, 15)
    codes = codes.to(torch.uint8 if bits == 4 else torch.int8).flatten(-2)[..., :length]
    if bits == 4:
        codes = F.pad(codes, (0, length % 2)).unflatten(-1, (-1, 2))
        codes = (codes[..., 0] | codes[..., 1] << 4).view(torch.int8)
    return codes, *steps
''',
    "dequantise": '''
def dequantise(codes, scales, offsets=None, *, group, length):
    """What `quantise` was given, as its codes have it: `length` entries along the last dimension."""
    taken = scales.device.type == "cpu" and scales.dtype in (torch.float32, torch.bfloat16)
    if HAS_FEW_ROWS and taken and group == 32 and length % group == 0:
        stored = (x for x in (codes, scales, offsets) if x is not None)
        rows = (x.reshape(-1, x.shape[-1]).contiguous() for x in stored)
        return torch.ops.few_rows.decoded(*rows).view(*codes.shape[:-1], length)
    if offsets is not None:
        codes = torch.stack((codes & 15, codes >> 4 & 15), -1).flatten(-2)[..., :length] - 8
    short = -length % group
    codes = F.pad(codes, (0, short)) if short else codes
    wide = torch.promote_types(scales.dtype, torch.float32)
    whole = codes.to(wide).unflatten(-1, (-1, group)).mul_(scales.unsqueeze(-1))
    whole = whole if offsets is None else whole.add_(offsets.unsqueeze(-1))
    return whole.flatten(-2)[..., :length].to(scales.dtype)
''',
    "quantised_linear": '''
def quantised_linear(x, codes, *steps, group, length):
    """F.linear(x, w) with a matrix in few bits, of which a block of rows at a time is dequantised."""
    if group == 32 and length % group == 0 and are_few(x):
        rows = torch.ops.few_rows.coded(as_rows(x), codes, *steps)
        return rows.view(*x.shape[:-1], len(codes))
    blocks = (part.split(max(2**20 // length, 1)) for part in (codes, *steps))
    weights = (dequantise(*block, group=group, length=length) for block in zip(*blocks))
    return torch.cat([linear(x, w) for w in weights], -1)
''',
    "rows_by_index": '''
def rows_by_index(index, entries):
    """The order that sorts rows by their index, and on the host how many rows pick each entry."""
    counts = index.new_zeros(entries).index_add(0, index, torch.ones_like(index))
    return index.argsort(stable=True), counts.cpu()
''',
    "amax": '''
def amax(x, dims):
    """The greatest over dims; of nothing, the least there is."""
    least = -torch.inf if x.is_floating_point() else -(2**31)
    return x.amax(dims) if x.numel() else torch.full_like(x.sum(dims), least)
''',
    "softmax": '''
def softmax(x, dim):
    """Softmax that gives zeros, and no gradient, for a row that is -inf throughout."""
    empty = (x == -torch.inf).all(dim, keepdim=True)
    return torch.softmax(x.masked_fill(empty, 0.0), dim).masked_fill(empty, 0.0)
''',
    "cat": '''
def cat(chunks, dim, *shape, **factory):
    """The chunks of a loop joined; where there are none, nothing of this shape."""
    return torch.cat(chunks, dim) if chunks else torch.empty(shape, **factory)
''',
    "stack": '''
def stack(steps, dim, *shape, **factory):
    """The steps of a loop along a new dimension; where there are none, nothing of this shape."""
    return torch.stack(steps, dim) if steps else torch.empty(shape, **factory)
''',
}
# What a helper's own text is written with.
BELOW = {
    "grouped_linear": ("OPS",),
    "linear": ("OPS", "few_rows", "packed_linear"),
    "packed_linear": ("OPS",),
    "quantise": ("few_rows",),
    "dequantise": ("few_rows",),
    "quantised_linear": ("OPS", "few_rows", "linear", "packed_linear"),
}
# Every name that a helper defines.
GLOBALS = frozenset(
    re.findall(r"^(?:def )?([A-Za-z]\w*)(?:\(| = )", "".join(HELPERS.values()), re.MULTILINE)
)
PREFILL = """
The model is given the first rows of a sequence. Beside its outputs it returns what another program,
the chunk, goes on from: a dictionary in which a module's `prefix` leads to the list of its states.
The states of each class, in their order:
"""
STATELESS = """
The model goes on from the first `past` rows of a sequence and is given the rows that follow, then
`past`. It keeps nothing of earlier rows.
"""
CHUNK = """
The model goes on from the first `past` rows of a sequence and is given the rows that follow. It takes
its own states and, as `layer_states`, those of each layer: a dictionary in which a module's `prefix`
leads to the list of its states. One with an axis `{past}` is a buffer with room for more along that
axis: the new rows are written behind the first `past`. The others are returned, by prefix too, as
they are after the new rows. The states of each class, in their order:
"""
CHECK = '''
def check(index, size, take):
    """Raises IndexError(which take, index, size) for the first index that is outside."""
    outside = index[(index < 0) | (index >= size)]
    if outside.numel():
        raise IndexError(take, int(outside[0]), size)
'''
WEIGHTS = '''
def weights(model):
    """(path in the .arch file, module, attribute) of every weight."""
    for module in model.modules():
        for attribute, path in getattr(module, "PATHS", {}).items():
            yield module.prefix + path, module, attribute
'''


def emit_model(
    program: Program,
    *,
    train: bool = False,
    taps: bool = False,
    compile: bool = False,
    source: str = "",
    preset: str = "",
) -> Emitted:
    """The text of `model.py`, and its class for each function.

    With `train` derived parameters are recomputed in the forward pass, so gradients reach the
    weights; with `taps` every value of the program is stored in TAPS[call path, node id]. With
    `compile` the chunks of scans are methods, which can be compiled by themselves.
    """
    file = File(program, train, taps, compile)
    text = file.render(source, preset)
    return Emitted(text, file.classes, tuple(file.takes), tuple(file.chunks), file.stored)


Stored = dict[int, tuple[tuple[str, Layout], ...]]


@dataclass(frozen=True, slots=True)
class Emitted:
    """A file's text, class names by function, the `take` nodes that a traced text checks, the methods
    that a loader compiles by themselves, and as what modules store weights, tables and what is derived
    of them: attributes and layouts, by function and node."""

    text: str
    classes: dict[str, str]
    takes: tuple[Node, ...]
    chunks: tuple[ChunkMethod, ...] = ()
    stored: dict[str, Stored] = field(default_factory=dict)


@dataclass(slots=True)
class File:
    """The file being written."""

    program: Program
    train: bool
    taps: bool
    compile: bool = False
    parameters: dict[str, Parameter] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)
    helpers: set[str] = field(default_factory=set)
    tables: dict[str, tuple[str, list[str]]] = field(default_factory=dict)  # body: name, lines
    classes: dict[str, str] = field(default_factory=dict)  # function: class name
    facts: dict[str, list[Sequence[Value]]] = field(default_factory=dict)  # of each call
    takes: list[Node] = field(default_factory=list)
    chunks: list[ChunkMethod] = field(default_factory=list)
    passed: dict[str, Sequence[str]] = field(default_factory=dict)  # names, of the first call
    stored: dict[str, Stored] = field(default_factory=dict)  # by function
    taken: set[str] = field(default_factory=lambda: {"Model", "check", "weights", *GLOBALS})

    def __post_init__(self) -> None:
        self.parameters.update((p.path, p) for p in self.program.parameters)
        for symbol, _ in self.program.bindings:
            self.constants[symbol] = self._global(symbol.upper(), "N")
        for function in self._functions():
            words = re.split(r"\W+|_", function.name)
            name = "".join(word[:1].upper() + word[1:] for word in words)
            self.classes[function.name] = self._global(name, "Layer")
        self.classes[self.program.main_name] = "Model"

    def _global(self, wanted: str, fallback: str) -> str:
        name = identifier(wanted, self.taken, fallback)
        self.taken.add(name)
        return name

    def _functions(self) -> list[Function]:
        """Main and the layer kinds, each after all its callers."""
        order: dict[str, None] = {}

        def visit(name: str) -> None:
            for node in reversed(self.program.function(name).nodes):
                if node.op == "repeat":
                    for kind in reversed(callees(node)):
                        if kind not in order:
                            visit(kind)
            order[name] = None

        visit(self.program.main_name)
        return [self.program.function(name) for name in reversed(order)]

    def keeps(self, name: str) -> bool:
        """Whether a function leaves states, or one that it calls."""
        function = self.program.function(name)
        return bool(function.left) or any(map(self.keeps, inside(function)))

    def returns_states(self, name: str) -> bool:
        """Whether a layer's results end in its states: also where only others of its loop have some."""
        return any(map(self.keeps, beside(self.program, name)))

    def passes_on(self, name: str) -> bool:
        """Whether a layer is given all states, for layers inside it or inside others of its loop."""
        functions = map(self.program.function, beside(self.program, name))
        return any(map(self.keeps, (kind for f in functions for kind in inside(f))))

    @property
    def continues(self) -> bool:
        """Whether the program is given `past`."""
        return continues(self.program)

    # ---- what modules ask for

    def grouping(self, path: str, relative: str, node: Node) -> Layout:
        """The stored dimensions of a weight, in the axes its node has for them."""
        axes = iter(node.axes)
        groups = self.parameter(path, relative).grouping
        return tuple(tuple(next(axes) for _ in group) for group in groups)

    def parameter(self, path: str, relative: str) -> Parameter:
        """The weight that `relative` names at the call path `path`."""
        return self.parameters[join(path, relative)]

    def used_as(self, function: Function, node: Node) -> Layout:
        """A derived weight's stored dimensions: the matrix that the first dot with it wants."""
        summed = _summed(self.program, function, node.id)
        outer = tuple(axis for axis in node.axes if axis not in summed)
        inner = tuple(axis for axis in node.axes if axis in summed)
        matrix = (outer, inner) if node.axes == (*outer, *inner) else (inner, outer)
        return matrix if outer and inner and flat(matrix) == node.axes else single(node.axes)

    def table(self, body: Function, axes: Sequence[Axis]) -> ast.expr:
        """The name of the function that computes a table in float64."""
        if body.name not in self.tables:
            name = self._global(body.name, "table")
            self.tables[body.name] = (name, [])
            self.tables[body.name] = (name, Table(self, body).render(name, axes))
        return ast.Name(self.tables[body.name][0])

    def called(self, node: Node, operands: Sequence[Value], names: Sequence[str]) -> None:
        """Notes what a call knows of the values it passes, and their names. Carried ones change."""
        carried = int(str(node.attrs.get("carried", len(node.types))))
        for kind in callees(node):
            inputs = self.program.function(kind).inputs
            unknown = Value(number(0), "float", finite=False)
            facts = [unknown] * carried + list(operands[carried:])
            facts += [replace(unknown, finite=True)] * (len(inputs) - len(facts))
            self.facts.setdefault(kind, []).append(facts)
            self.passed.setdefault(kind, names)

    def module_list(self, attribute: str, node: Node) -> ast.stmt:
        path, indices, kinds = (node.attrs[name] for name in ("path", "indices", "kinds"))
        assert isinstance(indices, tuple)
        assert isinstance(kinds, tuple)
        if not re.fullmatch(r"[\w.\[\]]+", str(path)):
            raise InternalError(f"not a path: {path!r}")
        prefix = ast.Name(f'f"{{prefix}}{path}[{{i}}]."')
        names = [ast.Name(self.classes[str(kind)]) for kind in kinds]
        in_order = indices == tuple(range(len(indices)))
        numbers: ast.expr = ast.Tuple([number(int(str(i))) for i in indices])
        if in_order:
            numbers = expression("range({0})", number(len(indices)))
        if len(set(kinds)) == 1:
            template = "{0} = nn.ModuleList([{1}({2}, dtype, device) for i in {3}])"
            return statement(template, self_(attribute), names[0], prefix, numbers)
        template = "{0} = nn.ModuleList([kind({1}, dtype, device) for i, kind in {2}])"
        pairs = expression("zip({0}, {1})", numbers, ast.Tuple([*names]))
        return statement(template, self_(attribute), prefix, pairs)

    # ---- text

    def render(self, source: str, preset: str) -> str:
        first = {f.name: path for path, f in reversed(list(calls(self.program)))}
        classes = [self._class(function, first[function.name]) for function in self._functions()]
        below = {part for name in self.helpers & BELOW.keys() for part in BELOW[name]}
        blocks = [
            self._head(source, preset),
            *(HELPERS[name].strip().split("\n") for name in sorted(self.helpers | below)),
            *([CHECK.strip().split("\n")] if self.takes else []),
            *(lines for _, lines in self.tables.values()),
            *reversed(classes),
            WEIGHTS.strip().split("\n"),
        ]
        return "\n\n\n".join("\n".join(lines).rstrip() for lines in blocks) + "\n"

    def _class(self, function: Function, path: str) -> list[str]:
        module = Module(self, function, path, self.classes[function.name])
        if function.name in self.facts:
            module.know(_agreed(self.facts[function.name]))
        scope = module.scope
        scope.lower_all()
        self.stored[function.name] = module.stored()
        named = [(name, i) for name, i in function.outputs if not name.startswith(STATE)]
        values = [scope.full(scope.value(i), function[i].axes).expr for _, i in named]
        states = [scope.full(scope.value(i), function[i].axes).expr for _, i in left(function)]
        if function.name == self.program.main_name:
            names = ", ".join(name for name, _ in named)
            results: ast.expr = ast.Dict([ast.Constant(name) for name, _ in named], values)
            if self.keeps(function.name):
                leave = statement("left[self.prefix] = {0}", ast.List(states))
                scope.method.append(Statement(leave))
                results, names = ast.Tuple([results, ast.Name("left")]), f"{names}; states"
            module.finish(results)
            return module.render(f"The model. Returns {names}.")
        values += states
        alone = len(values) == 1 and not self.returns_states(function.name)
        module.finish(values[0] if alone else ast.Tuple(values))
        return module.render(f"Layers `{plain(re.sub(r'[0-9]+]$', 'i]', path))}`.")

    def _head(self, source: str, preset: str) -> list[str]:
        names = zip(self.constants.values(), self.program.bindings, strict=True)
        sizes = [f"{name} = {value}" for name, (_, value) in names]
        taps = ["", "TAPS = {}  # (call path, node of the program): its value in the last run"]
        return [
            *self._docstring(source or self._source(), preset),
            "",
            *(["from functools import cache", ""] if self.tables else []),
            "import torch",
            "import torch.nn.functional as F",
            "from torch import nn",
            *(["", *sizes] if sizes else []),
            *(taps if self.taps else []),
        ]

    def _docstring(self, source: str, preset: str) -> list[str]:
        name = f"{self.program.name}, preset {preset}" if preset else self.program.name
        title = f"{name}, from {source}" if source else name
        lines = [
            f'"""{plain(title)}.',
            "",
            "Written by archc. Weights are stored as matrices and named after the file's paths:",
            "each class's PATHS maps its attributes to them, `weights(model)` lists them all.",
        ]
        if self._derives():
            lines.append("After loading weights, call `prepare()` on every module that has it.")
        return [*lines, *self._about_states(), '"""']

    def _about_states(self) -> list[str]:
        """How a program is called that leaves states, or goes on from them."""
        left_by = self._listed(lambda f: [(path, f[i].axes) for path, i in left(f)])
        if not self.continues:
            return ["", *PREFILL.strip().split("\n"), *left_by] if left_by else []
        given = self._listed(lambda f: [(n.attrs.string("path"), n.axes) for n in f.states])
        past = self.program.past
        if not given:
            return ["", *STATELESS.strip().split("\n")]
        lines = ["", *CHUNK.format(past=past).strip().split("\n"), *given]
        return [*lines, "Those returned, in their order:", *left_by] if left_by else lines

    def _listed(self, states: Callable[[Function], list[tuple[str, Sequence[Axis]]]]) -> list[str]:
        """A paragraph for each class that has states."""
        lines = []
        for function in self._functions():
            words = [f"{path} [{', '.join(map(str, axes))}]" for path, axes in states(function)]
            text = f"{self.classes[function.name]}: {', '.join(words)}"
            wrapped = textwrap.wrap(text, 96, initial_indent="  ", subsequent_indent="    ")
            lines += wrapped if words else []
        return lines

    def _derives(self) -> bool:
        nodes = (node for function in self._functions() for node in function.nodes)
        return not self.train and any(node.op == "derived" for node in nodes)

    def _source(self) -> str:
        """The file that the outputs' text stands in."""
        main = self.program.main
        origins = [o for i in main.output_ids for o in main[i].origins if o.spans]
        return PurePath(origins[0].spans[-1].source.name).name if origins else ""


def inside(function: Function) -> list[str]:
    """The kinds of the layers that a function calls."""
    return [kind for node in function.nodes if node.op == "repeat" for kind in callees(node)]


def beside(program: Program, name: str) -> set[str]:
    """The kinds that share a loop with a layer, its own among them."""
    nodes = (node for function in program.functions for node in function.nodes)
    loops = (set(callees(node)) for node in nodes if node.op == "repeat")
    return set().union(*(kinds for kinds in loops if name in kinds))


def continues(program: Program) -> bool:
    """Whether a program goes on from states, or counts its slots from where another stopped."""
    if any(function.states for function in program.functions):
        return True
    return any(program.past in symbols(program, node) for node in program.main.nodes)


def left(function: Function) -> list[tuple[str, int]]:
    """The states that a function returns: of those that grow the rows were written where they are."""
    return [(path, i) for path, i in function.left if function[i].op != "append"]


def without_blank(lines: list[str]) -> list[str]:
    """The lines of a body without an empty one in front."""
    return lines[1:] if lines[:1] == [""] else lines


def self_(attribute: str) -> ast.expr:
    return ast.Attribute(ast.Name("self"), attribute)


def _agreed(calls: Iterable[Sequence[Value]]) -> list[Value]:
    """What all calls know about each operand."""
    return [
        replace(
            values[0],
            finite=all(v.finite for v in values),
            known=values[0].known if len({v.known for v in values}) == 1 else (),
        )
        for values in zip(*calls, strict=True)
    ]


def _summed(program: Program, function: Function, node_id: int) -> Group:
    """The axes that the first dot reading a value sums, be it inside a fused node."""
    for node in function.nodes:
        if node_id not in node.inputs:
            continue
        if node.op == "dot":
            return node.attrs.axes("axes")
        if node.op in ("linear", "pointwise", "attend"):
            body = program.body(node)
            found = _summed(program, body, body.inputs[node.inputs.index(node_id)])
            if found:
                return found
    return ()


@dataclass(slots=True)
class Table:
    """A table's function: no parameters, everything in float64."""

    file: File
    body: Function

    @property
    def program(self) -> Program:
        return self.file.program

    checks: ClassVar[bool] = False

    def tapped(self, node: Node) -> bool:
        return False

    def check(self, scope: Scope, node: Node, index: ast.expr) -> None:
        """Tables are computed once, when a model is made."""

    def word(self, dtype: DType) -> ast.expr:
        kinds = {"int": "torch.int64", "bool": "torch.bool"}
        return expression(kinds.get(dtype, "torch.float64"))

    def constant(self, symbol: str) -> str | None:
        return self.file.constants.get(symbol)

    def helper(self, name: str) -> ast.expr:
        self.file.helpers.add(name)
        return ast.Name(name)

    def table(self, node: Node) -> Value:
        made = expression("{0}()", self.file.table(self.program.body(node), node.axes))
        return Value(made, node.type.dtype, single(node.axes))

    def render(self, name: str, axes: Sequence[Axis]) -> list[str]:
        scope = Scope(self, self.body, Method())  # type: ignore[arg-type]
        scope.lower_all()
        value = scope.full(scope.value(self.body.output_ids[0]), axes)
        scope.method.append(Statement(ast.Return(value.expr)))
        doc = f'    """`{plain(self.body.name)}`, computed once in float64."""'
        return ["@cache", f"def {name}():", doc, *without_blank(scope.method.render(4))]
