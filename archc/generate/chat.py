"""Messages as the text that a model was trained to answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..dsl.errors import ChatTemplateFails, MissingPackage, NoChatTemplate

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

Turn = Mapping[str, str]  # {"role": "user", "content": ..}


def chat(tokenizer: Tokenizer, message: str, path: str, *, system: str | None = None) -> str:
    """`message` as the first turn of a conversation, after an instruction `system` if there is one."""
    turns = [] if system is None else [{"role": "system", "content": system}]
    return conversation(tokenizer, [*turns, {"role": "user", "content": message}], path)


def conversation(tokenizer: Tokenizer, turns: Sequence[Turn], path: str) -> str:
    """The text of `turns` up to the next answer, by the template of the checkpoint `path`.

    It holds the special tokens: `encode(text, special=False)`. The template comes with the weights, so
    it runs in a sandbox (`template.py`). Raises `NoChatTemplate`,
    `ChatTemplateFails`, `MissingPackage`.
    """
    if tokenizer.chat_template is None:
        raise NoChatTemplate(path=path)
    try:
        from ..template import render
    except ImportError:
        raise MissingPackage(
            package="jinja2", purpose="a chat template", extra="checkpoints"
        ) from None
    try:
        return render(
            tokenizer.chat_template,
            messages=turns,
            add_generation_prompt=True,
            **tokenizer.special,
        )
    except Exception as error:  # a template is code of others: it fails in any way
        raise ChatTemplateFails(path=path, reason=str(error) or type(error).__name__) from None
