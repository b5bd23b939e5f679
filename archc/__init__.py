"""archc: describe a language-model architecture in one file, get checked, agreeing programs."""

from .api import Compiled, Model, backend, load

__all__ = ["Compiled", "Model", "backend", "load"]
__version__ = "0.1.0"
