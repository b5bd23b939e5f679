"""Named arrays in safetensors files: inputs of a run in, outputs of a run out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..compiler.files import reason_of, write_file
from ..dsl.errors import BadTensorFile

if TYPE_CHECKING:
    from ..backends.base import Array

# safetensors' names of element types, as NumPy's; ml_dtypes brings bfloat16.
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "BOOL": "bool",
    **{
        f"{sign}{bits}": f"{name}{bits}"
        for sign, name in (("I", "int"), ("U", "uint"))
        for bits in (8, 16, 32, 64)
    },
}


def read_tensors(path: Path) -> dict[str, Array]:
    """All tensors of a safetensors file. Raises `BadTensorFile`."""
    import ml_dtypes  # noqa: F401 (registers bfloat16 with NumPy)
    import numpy as np
    from safetensors import SafetensorError, deserialize

    try:
        found = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except OSError as error:
        raise BadTensorFile(path=str(path), reason=reason_of(error)) from None
    except SafetensorError as error:
        raise BadTensorFile(path=str(path), reason=str(error)) from None
    for name, tensor in found:
        if tensor["dtype"] not in DTYPES:
            reason = f"`{name}` has element type {tensor['dtype']}"
            raise BadTensorFile(path=str(path), reason=reason)
    return {
        name: np.frombuffer(t["data"], DTYPES[t["dtype"]]).reshape(t["shape"]) for name, t in found
    }


def write_tensors(path: Path, tensors: Mapping[str, Array]) -> None:
    """Write a safetensors file; it appears complete or not at all. Raises `Unwritable`."""
    import numpy as np
    from safetensors.numpy import save

    write_file(path, save({name: np.ascontiguousarray(a) for name, a in tensors.items()}))
