"""Ops that run functions of the program, and the fused ops that passes make.

They have no meaning of their own: a node means its body. Their types are declared by whoever builds
them and checked against the body by the verifier. `result` reads one result of a multi-result node.
"""

from __future__ import annotations

from ..ir.graph import Attrs
from .registry import A, B, Sample, Types, op, require, tensor

op(
    "table",
    "the value of function `body`, which has no inputs, evaluated once in float64",
    time="S",
)
op(
    "repeat",
    "iteration i runs function `kinds[i]` on (carried, captured, `scalars[..][i]`) at call path"
    " `path[indices[i]]`; the results are the last carried values. With `exit` a kind also returns,"
    " along those axes, whether to stop: a row that has stopped keeps its values",
    time="C",
)

op(
    "scan",
    "steps along `axis`, from its end if `reverse`: each runs `body` on (the first `stepped`"
    " operands at the step, `states`, captured); the results are the body's other outputs along"
    " `axis`, then the last states",
    time="C",
)

op(
    "chunked_scan",
    "as `scan`, `length` entries of `axis` at a time (the last time what is left): `body` runs on"
    " the entries of the first `stepped` operands, along `chunk` in place of `axis`",
    time="C",
)
# What runs `body` again and again along `axis`, with states passed on.
SCANS = frozenset({"scan", "chunked_scan"})
LOOPS = SCANS | {"repeat"}

RESULT = op(
    "result",
    "result `index` of a node that has several",
    samples=(Sample((tensor("float", A), tensor("int", B)), {"index": 1}),),
)


@RESULT.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    index = attrs.integer("index")
    require(0 <= index < len(inputs), "no such result")
    return (inputs[index],)


# Each means its `body`, exactly; a backend may compute it in one kernel.
FUSED: dict[str, str] = {
    "pointwise": "a region of pointwise and structural ops, with row reductions inside",
    "linear": "one contraction with what is computed on its operands and its result (`strategy`)",
    "attend": "scores, softmax and the product with the values, tile by tile, no scores stored",
    "grouped": "rows times the matrix that each row's index picks, sorted by index",
    "derived": "a parameter computed from weights when they are loaded",
}
for _name, _doc in FUSED.items():
    op(_name, _doc, time="M")
