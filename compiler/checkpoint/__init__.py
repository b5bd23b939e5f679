"""Checkpoint blocks: a file's config becomes hyperparameters, its tensors become weights.

    opened = open_checkpoint(path)                       # files: mapped, checked
    block = checkpoint_block(file, name, opened)         # the block of the .arch file that reads it
    values = evaluate_config(block, opened.config, hypers, opened.tensor_names)
    weights = bind(block, opened, program)               # program: elaborated with `values`

`fold` evaluates config lines, `arrangement` and `layout` the right sides of tensor lines, `lines`
spreads a block over the layers of a program, `binding` proves it complete, `account` lists what became
of each field and tensor. `export` writes tensors, `inverse` makes the config of hyperparameters.
"""

from .account import Row, config_rows, tensor_rows
from .binding import BoundWeights, bind
from .config import evaluate_config, read_config
from .export import SHARD_BYTES, save, written_names
from .inverse import Derived, config_of, values_of
from .opening import checkpoint_block, open_checkpoint
from .reader import Checkpoint, TensorStore

__all__ = [
    "SHARD_BYTES",
    "BoundWeights",
    "Checkpoint",
    "Derived",
    "Row",
    "TensorStore",
    "bind",
    "checkpoint_block",
    "config_of",
    "config_rows",
    "evaluate_config",
    "open_checkpoint",
    "read_config",
    "save",
    "tensor_rows",
    "values_of",
    "written_names",
]
