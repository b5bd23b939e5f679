"""The ops: one stanza each. Importing this package fills `OPS`; `infer` is every shape rule."""

from . import convolve, elementwise, program, quantise, reduce, structure, triangular
from .numeric import Array
from .program import FUSED, LOOPS, SCANS
from .registry import (
    DTYPES,
    FORMATS,
    OPS,
    Call,
    ModelDType,
    Op,
    Precision,
    Sample,
    align,
    evaluate,
    infer,
    prepared,
    promote,
    same,
)

__all__ = [
    "DTYPES",
    "FORMATS",
    "FUSED",
    "LOOPS",
    "OPS",
    "SCANS",
    "Array",
    "Call",
    "ModelDType",
    "Op",
    "Precision",
    "Sample",
    "align",
    "convolve",
    "elementwise",
    "evaluate",
    "infer",
    "prepared",
    "program",
    "promote",
    "quantise",
    "reduce",
    "same",
    "structure",
    "triangular",
]
