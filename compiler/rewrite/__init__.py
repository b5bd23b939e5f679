"""The rewrite engine: rules as data, one loop, a record of every site and of where values went."""

from .edit import Edit, Moved
from .engine import (
    Declined,
    Fuse,
    Guard,
    Moves,
    Outcome,
    Pass,
    Rewrite,
    Rule,
    Session,
    Site,
    code,
    refusal,
    run_pass,
)
from .region import Region, close, extract, is_free
from .values import ValueMap

__all__ = [
    "Declined",
    "Edit",
    "Fuse",
    "Guard",
    "Moved",
    "Moves",
    "Outcome",
    "Pass",
    "Region",
    "Rewrite",
    "Rule",
    "Session",
    "Site",
    "ValueMap",
    "close",
    "code",
    "extract",
    "is_free",
    "refusal",
    "run_pass",
]
