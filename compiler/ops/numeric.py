"""NumPy, loaded by its first use: `check`, `cost` and `fmt` infer types and compute no arrays."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["Array", "later", "np"]

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]
    later = np
else:
    Array = Any

    class _NumPy:
        """The module: any attribute loads it."""

        def __getattr__(self, name: str) -> Any:
            found = getattr(import_module("numpy"), name)
            setattr(self, name, found)
            return found

    class _Functions:
        """Its functions by name, for tables: `later.exp` loads the module when it is called."""

        def __getattr__(self, name: str) -> Any:
            return _Function(name)

    class _Function:
        """A function of the module. `load` gives the function itself."""

        def __init__(self, name: str) -> None:
            self.name = name

        def load(self) -> Any:
            return getattr(np, self.name)

        def __call__(self, *arrays: Any) -> Any:
            return self.load()(*arrays)

    np, later = _NumPy(), _Functions()
