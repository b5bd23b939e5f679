"""The interpreter's repairs, and the worker process that it runs in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from archc.backends.triton.repairs import round_bits, widen_bits
from archc.dsl.diagnostics import InternalError

pytest.importorskip("triton")

PROBE = """
import json, sys
import numpy as np, torch
from archc.backends.triton.repairs import apply
apply()
import triton, triton.language as tl

@triton.jit
def half(x_ptr, y_ptr, add_ptr, dot_ptr, top_ptr, round_ptr, N: tl.constexpr):
    i = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    x, y = tl.load(x_ptr + i), tl.load(y_ptr + i)
    tl.store(add_ptr + i, x + y * x)
    tl.store(dot_ptr + i, tl.dot(x, y))
    tl.store(top_ptr + i, tl.max(x, axis=1, keep_dims=True) + tl.zeros((N, N), tl.float32))
    tl.store(round_ptr + i, x.to(tl.float32) * 1.001)

random = torch.Generator().manual_seed(0)
x, y = (torch.randn(16, 16, generator=random).bfloat16() for _ in range(2))
add, rounded = torch.empty_like(x), torch.empty_like(x)
dot, top = torch.empty(16, 16), torch.empty(16, 16)
half[(1,)](x, y, add, dot, top, rounded, N=16)
wide, other = x.float(), y.float()
from triton.runtime import interpreter
patched, kept = [], interpreter._patch_builtin
interpreter._patch_builtin = lambda *given: patched.append(kept(*given))
checked, semantic = [], type(interpreter.interpreter_semantic)
semantic.device_assert = lambda *given: checked.append(given)
half[(1,)](x, y, add, dot, top, rounded, N=16)
print(json.dumps({
    "add": torch.equal(add, (wide + (other * wide).bfloat16().float()).bfloat16()),
    "dot": float((dot - wide @ other).abs().max()),
    "top": torch.equal(top, wide.amax(1, keepdim=True).expand(16, 16)),
    "round": torch.equal(rounded, (wide * 1.001).bfloat16()),
    "spared": not patched and not checked,
}))
"""


def test_bfloat16_is_exact_in_the_repaired_interpreter(tmp_path):
    script = Path(tmp_path, "probe.py")
    script.write_text(PROBE)
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["add"]
    assert found["top"]
    assert found["round"]
    assert found["dot"] < 1e-5
    assert found["spared"]


def test_bits_round_to_nearest_even():
    x = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    assert np.array_equal(round_bits(x), x.astype(ml_dtypes.bfloat16).view(np.uint16))
    assert np.array_equal(round_bits(widen_bits(round_bits(x))), round_bits(x))
    assert np.isnan(widen_bits(round_bits(np.float32("nan"))))


def test_worker_reports_what_went_wrong():
    from archc.backends.triton.session import Worker

    worker = Worker.shared()
    with pytest.raises(InternalError, match="KeyError"):
        worker.ask(do="run", model=-1, inputs="", outputs="")
    assert Worker.shared() is worker
