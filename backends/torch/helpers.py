"""What emitted models call: `emit.py` reads this file as text, and writes the sections that a model needs.

A section begins at a line with its name and goes on to the next. Nothing imports this module: it is one
so that it is formatted and linted as the code that it becomes.
"""

import torch
import torch.nn.functional as F

# ----------------------------------------------------------------------- weights


def weights(model):
    """(path in the .arch file, module, attribute) of every weight."""
    for module in model.modules():
        for attribute, path in getattr(module, "PATHS", {}).items():
            yield module.prefix + path, module, attribute


# ------------------------------------------------------------------------- check


def check(index, size, take):
    """Raises IndexError(which take, index, size) for the first index that is outside."""
    outside = index[(index < 0) | (index >= size)]
    if outside.numel():
        raise IndexError(take, int(outside[0]), size)


# --------------------------------------------------------------------------- OPS

OPS = "".join(c if c.isalnum() else "_" for c in __name__)  # the namespace of this file's own ops
while any(hasattr(getattr(torch.ops, OPS), op) for op in ("grouped_linear", "packed_linear")):
    OPS += "_"  # a text of this name was read before, and its ops may be in use

# ------------------------------------------------------------------ affine_steps


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


# --------------------------------------------------------------------- in_chunks


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


# --------------------------------------------------------------------------- cat


def cat(chunks, dim, *shape, **factory):
    """The chunks of a loop joined; where there are none, nothing of this shape."""
    return torch.cat(chunks, dim) if chunks else torch.empty(shape, **factory)


# ------------------------------------------------------------------------- stack


def stack(steps, dim, *shape, **factory):
    """The steps of a loop along a new dimension; where there are none, nothing of this shape."""
    return torch.stack(steps, dim) if steps else torch.empty(shape, **factory)


# ------------------------------------------------------------------------ append


def append(kept, past, rows, dim):
    """`rows` after the first `past` entries of `kept` along `dim`, written there if it has room.

    What is compiled is given room: a test would be one more assumption about sizes.
    """
    count = rows.shape[dim]
    if not torch.compiler.is_compiling() and kept.shape[dim] < past + count:
        return torch.cat([kept.narrow(dim, 0, past).to(rows.dtype), rows], dim)
    kept.narrow(dim, past, count).copy_(rows)
    return kept.narrow(dim, 0, past + count).to(rows.dtype)


# -------------------------------------------------------------------------- amax


def amax(x, dims):
    """The greatest over dims; of nothing, the least there is."""
    least = -torch.inf if x.is_floating_point() else -(2**31)
    return x.amax(dims) if x.numel() else torch.full_like(x.sum(dims), least)


# ----------------------------------------------------------------------- softmax


def softmax(x, dim):
    """Softmax that gives zeros, and no gradient, for a row that is -inf throughout."""
    empty = (x == -torch.inf).all(dim, keepdim=True)
    return torch.softmax(x.masked_fill(empty, 0.0), dim).masked_fill(empty, 0.0)


# ---------------------------------------------------------------------- convolve


def convolve(x, kernel, dim):
    """y[s] = sum over t <= s of kernel[s - t] x[t] along `dim`: transforms that do not wrap."""
    dtype, length = x.dtype, x.shape[dim]
    if dtype in (torch.bfloat16, torch.float16):
        x, kernel = x.float(), kernel.float()
    size = max(2 * length, 1)
    spectrum = torch.fft.rfft(x, size, dim) * torch.fft.rfft(kernel, size, dim)
    return torch.fft.irfft(spectrum, size, dim).narrow(dim, 0, length).to(dtype)


# -------------------------------------------------------------------- substitute


def substitute(t, y, reverse):
    """x = y + t x for the part of t before (behind, if `reverse`) its diagonal, row by row."""
    dtype = y.dtype
    if dtype in (torch.bfloat16, torch.float16):
        t, y = t.float(), y.float()
    t = t.triu(1) if reverse else t.tril(-1)
    one = torch.eye(t.shape[-1], dtype=t.dtype, device=t.device)
    x = torch.linalg.solve_triangular(one - t, y, upper=reverse, unitriangular=True)
    return x.to(dtype)


# ----------------------------------------------------------------- rows_by_index


def rows_by_index(index, entries):
    """The order that sorts rows by their index, and on the host how many rows pick each entry."""
    counts = index.new_zeros(entries).index_add(0, index, torch.ones_like(index))
    return index.argsort(stable=True), counts.cpu()


# ---------------------------------------------------------------- grouped_linear


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

# ----------------------------------------------------------------- packed_linear

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


# ---------------------------------------------------------------------- few_rows

HAS_FEW_ROWS = hasattr(torch.ops.few_rows, "product")  # `few_rows.py` registers it, if it can


def are_few(x, *weights):
    """Whether rows of x are so few that a product takes the time of reading its weights."""
    trained = torch.is_grad_enabled() and any(t.requires_grad for t in [x, *weights])
    taken = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
    return HAS_FEW_ROWS and taken and not trained and 0 < x.numel() < 8 * x.shape[-1]


def as_rows(x):
    return x.reshape(-1, x.shape[-1]).contiguous()


# ------------------------------------------------------------------------ linear


def linear(x, w, bias=None):
    """F.linear(x, w, bias), w as it is stored: read once for a few rows, by oneDNN for many."""
    stored = w.is_contiguous() and w.dtype in (torch.float32, torch.bfloat16)
    if are_few(x, w) and stored:
        y = torch.ops.few_rows.product(as_rows(x), w).view(*x.shape[:-1], w.shape[0])
        return y if bias is None else y + bias
    if by_onednn(x, w):
        return getattr(torch.ops, OPS).packed_linear(x, w.to(x.dtype), bias)
    return packed_linear(x, w, bias)


# ---------------------------------------------------------------------- quantise


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


# -------------------------------------------------------------------- dequantise


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


# -------------------------------------------------------------- quantised_linear


def quantised_linear(x, codes, *steps, group, length):
    """F.linear(x, w) with a matrix in few bits, of which a block of rows at a time is dequantised."""
    if group == 32 and length % group == 0 and are_few(x):
        rows = torch.ops.few_rows.coded(as_rows(x), codes, *steps)
        return rows.view(*x.shape[:-1], len(codes))
    blocks = (part.split(max(2**20 // length, 1)) for part in (codes, *steps))
    weights = (dequantise(*block, group=group, length=length) for block in zip(*blocks))
    return torch.cat([linear(x, w) for w in weights], -1)
