"""Rows to continue and the model that does: how it is loaded for them, and in which batches they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..dsl.errors import GenerationSetting
from .batches import Sharing, groups, rows_of, sharing_of, together
from .face import Face, face_of
from .prompts import Language, language_of
from .rows import Row
from .speculative import check_vocabulary, follower, speculate

if TYPE_CHECKING:
    from ..api import Model
    from ..backends.base import Array
    from ..decoder import Decoder


@dataclass(frozen=True, slots=True)
class Job:
    """`given` are the model's other inputs by name, `loading` the arguments of `Model.decoder`."""

    model: Model
    face: Face
    language: Language
    rows: Sequence[Row]
    given: Mapping[str, Array]
    loading: Mapping[str, Any]

    def run(self, decoder: Decoder | None) -> None:
        """Continue all rows, in as few batches as give each row what it gives alone."""
        ragged = len({(len(row.prompt), len(row.source)) for row in self.rows}) > 1
        names = self.face.names(ragged, self.given) if decoder is None else decoder.inputs
        sharing = self._sharing(names)
        if decoder is None:
            names = self.face.names(sharing == "padded", self.given)
            decoder = self.model.decoder(inputs=names, rows="last", **self.loading)
        for group in groups(self.rows, sharing):
            rows = [self.rows[i] for i in group]
            together(decoder, self.face, rows, self._given(group, decoder))

    def run_with(self, draft: Model | Decoder, ahead: int, decoder: Decoder | None) -> None:
        """Continue one row after the other, by a draft of `ahead` tokens at a time.

        Raises `OtherVocabulary`, and `GenerationSetting` for a decoder that gives the last row only.
        """
        small, loaded = _loaded(draft)
        face = face_of(small)
        check_vocabulary((self.language, language_of(small)), (self.face, face))
        if decoder is None:
            names = self.face.names(False, self.given)
            decoder = self.model.decoder(inputs=names, rows="all", **self.loading)
        elif decoder.rows != "all":
            expected = 'rows="all": drafted tokens are checked together'
            raise GenerationSetting(name="decoder", got='rows="last"', expected=expected)
        if loaded is None:
            names = face.names(False, [n for n in self.given if n in small.inputs])
            loaded = small.decoder(inputs=names, rows="last", **self.loading)
        for i, row in enumerate(self.rows):
            given = self._given([i], decoder)
            target = follower(decoder, self.face, row, given)
            speculate(target, follower(loaded, face, row, given), row, ahead)

    def _sharing(self, names: Sequence[str]) -> Sharing:
        if len(self.rows) < 2:
            return "alone"
        return sharing_of(self.model.program_for(names), self.face)

    def _given(self, group: Sequence[int], decoder: Decoder) -> dict[str, Array]:
        program = self.model.program_for(decoder.inputs)
        return rows_of(self.given, program, self.face, group, len(self.rows))


def _loaded(draft: Model | Decoder) -> tuple[Model, Decoder | None]:
    """A draft's model, and its decoder if it has been made."""
    from ..decoder import Decoder

    return (draft.model, draft) if isinstance(draft, Decoder) else (draft, None)
