"""A port and the class in `transformers` that it is of: the same checkpoint in both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..api import Model
from ..backends.base import Array
from ..compiler.checkpoint.lines import expand
from ..dsl.errors import NothingMatches
from .experts import Choice, choices
from .inputs import Case, random_cases, read_inputs
from .matching import Matched, matched
from .names import owned
from .peer import Peer
from .session import Candidate, Session, Stage

TOKENS = "input_ids"  # what classes call ids of tokens, a decoder's too; others have no padding
EXACT = Candidate("numpy", 0, "f64", "numpy@O0@f64")  # what is compared when nothing else is asked


@dataclass(frozen=True)
class Port:
    """The model and the class, and which modules are which regions."""

    model: Model
    peer: Peer
    session: Session
    matched: Matched

    @classmethod
    def of(cls, model: Model, peer: Peer, inputs: Case | None) -> Port:
        weights, block, checkpoint = model.given_weights(), model.block, model.checkpoint
        assert block is not None
        assert checkpoint is not None
        names = inputs.inputs if inputs else peer.accepts & read_inputs(model.program).keys()
        if not names:
            raise NothingMatches(name=peer.class_name, model=model.definition.name)
        session = Session(model.program_for(names), weights)
        file = checkpoint.weights_file()
        modules = owned(peer.parameters(), file.names, file.read, peer.base)
        lines = expand(block, session.program, file.names)
        found = matched(session.stage(0, "f64").values, lines, modules, file.names)
        return cls(model, peer, session, found)

    def cases(self, seed: int, sizes: Mapping[str, int]) -> Iterator[Case]:
        """Random ones, padded as the class expects it."""
        for case in random_cases(self.session.program, seed, sizes):
            masked = {n: self._ends(v) if v.dtype == bool else v for n, v in case.inputs.items()}
            yield Case(case.name, dict(self._padded(masked)))

    @staticmethod
    def _ends(mask: Array) -> Array:
        """Padding at the end alone: a query of padding that sees nothing makes classes give NaN."""
        ended = np.sort(mask, axis=-1)[..., ::-1].copy()
        ended[..., 0] = True
        return ended

    def _padded(self, inputs: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
        """The class's own id where padding is, and nowhere else."""
        nodes = read_inputs(self.session.program)
        masks = {nodes[n].axes: v for n, v in inputs.items() if nodes[n].type.dtype == "bool"}
        for name, value in inputs.items():
            mask, pad = masks.get(nodes[name].axes), self.peer.padding
            if name.endswith(TOKENS) and mask is not None and pad is not None:
                value = np.where(mask, np.where(value == pad, pad + 1, value), pad)
            yield name, value

    @property
    def stage(self) -> Stage:
        """The graph as written."""
        return self.session.stage(0, "f64")

    @cached_property
    def choices(self) -> Sequence[Choice]:
        """The choices of experts."""
        return tuple(choices(self.stage.values, self.matched.regions))

    @cached_property
    def numbers(self) -> tuple[float, ...]:
        """Small numbers of the config, which may be an epsilon."""
        config = self.model.checkpoint.config if self.model.checkpoint else {}
        return tuple(v for v in config.values() if isinstance(v, float) and 0 <= v <= 1e-2)
