"""archc: describe a language-model architecture in one file, get checked, agreeing programs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Compiled, Model, backend, load

__all__ = ["Compiled", "Model", "backend", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The Python face, imported when it is first used: not every command needs it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import api

    return getattr(api, name)
