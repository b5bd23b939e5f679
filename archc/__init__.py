"""archc: describe a language-model architecture in one file, get checked, agreeing programs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Compiled, Model, backend, load
    from .memory import keep_memory

__all__ = ["Compiled", "Model", "backend", "keep_memory", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The Python face, imported when it is first used: not every command needs it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import api, memory

    return getattr(memory if name == "keep_memory" else api, name)
