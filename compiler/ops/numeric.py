"""NumPy, loaded by its first use: `check`, `cost` and `fmt` infer types and compute no arrays.

Before that, `np.exp` is a function that loads NumPy when it is called; so a stanza may name it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["Array", "np"]

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]
else:
    Array = Any

    class _NumPy:
        """The module once it is loaded, until then its functions by name."""

        def __getattr__(self, name: str) -> Any:
            if "numpy" in sys.modules:
                return getattr(sys.modules["numpy"], name)
            return lambda *args, **kwargs: getattr(import_module("numpy"), name)(*args, **kwargs)

    np = _NumPy()
