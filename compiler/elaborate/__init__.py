"""Elaboration: from a syntax tree to a typed graph.

`module_of` collects definitions, `the_model` picks the model, `elaborate` runs its text: compile-time
values are computed, calls are expanded under `labels.py`'s rules, tensors become graph nodes.
"""

from .model import (
    Request,
    elaborate,
    hyperparameters,
    module_of,
    preset_overrides,
    the_model,
)
from .module import Module

__all__ = [
    "Module",
    "Request",
    "elaborate",
    "hyperparameters",
    "module_of",
    "preset_overrides",
    "the_model",
]
