"""A step of few rows as one C++ function: `text` writes it, `load` builds and runs it.

The text is written from the graph, not from the emitted module, whose tensors it reads. `step.h`,
which it includes, has the threads and the functions of its ops.
"""

from .load import Step, is_few, loaded

__all__ = ["Step", "is_few", "loaded"]
