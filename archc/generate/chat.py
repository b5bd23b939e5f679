"""Messages as the text that a model was trained to answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

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
    it runs in a sandbox, with the functions that transformers gives it. Raises `NoChatTemplate`,
    `ChatTemplateFails`, `MissingPackage`.
    """
    if tokenizer.chat_template is None:
        raise NoChatTemplate(path=path)
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise MissingPackage(
            package="jinja2", purpose="a chat template", extra="checkpoints"
        ) from None

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": refuse, "strftime_now": _now}
    environment.filters["tojson"] = _json  # jinja's own escapes for HTML
    try:
        template = environment.from_string(tokenizer.chat_template)
        return template.render(messages=turns, add_generation_prompt=True, **tokenizer.special)
    except (TemplateError, TypeError) as error:
        raise ChatTemplateFails(path=path, reason=str(error)) from None


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _json(value: object, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)
