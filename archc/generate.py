"""Text from a decoder, token by token: run the sequence, choose the next token, append it, again.

Each step runs the whole sequence. Greedy at temperature 0, else sampled from softmax(logits / t).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .dsl.errors import (
    ChatTemplateFails,
    EmptyPrompt,
    MissingPackage,
    NoChatTemplate,
    NotGenerative,
)

if TYPE_CHECKING:
    from .api import Compiled, Model
    from .backends.base import Array
    from .compiler.ir.graph import Axis
    from .compiler.ops import ModelDType
    from .compiler.passes.quantise import Quant
    from .tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Decoder:
    """A loaded model as a function from token ids to the logits of the next token."""

    compiled: Compiled
    input: str
    output: str

    def next_logits(self, ids: Sequence[int]) -> Array:
        """float64[vocabulary] after the last of `ids`."""
        logits: Array = self.compiled(**{self.input: np.array([ids])})[self.output]
        last: Array = logits[0, -1].astype(np.float64)
        return last


def decoder(
    model: Model,
    backend: str = "torch",
    dtype: ModelDType = "f32",
    quant: Quant | None = None,
) -> Decoder:
    """Load `model` for generation. Raises `NotGenerative`, and what `Model.compile` raises."""
    name, output = _ends(model)
    return Decoder(model.compile(backend, dtype=dtype, quant=quant, inputs=[name]), name, output)


def _ends(model: Model) -> tuple[str, str]:
    """The names of the ids that go in and of the logits that come out, both `[b, s]` first."""
    main, time = model.program.main, model.program.decode
    if not time:
        raise _refuse(model, "it has no line `decode`")

    def along(axes: tuple[Axis, ...], rank: int) -> bool:
        return len(axes) == rank and axes[1].name == time

    nodes = [main[i] for i in main.inputs]
    needed = [n for n in nodes if not n.attrs.get("optional")]
    if len(needed) != 1 or needed[0].attrs["kind"] != "ids" or not along(needed[0].axes, 2):
        raise _refuse(model, f"its inputs are {', '.join(n.attrs.string('name') for n in needed)}")
    outputs = [name for name, i in main.outputs if along(main[i].axes, 3)]
    if not outputs:
        raise _refuse(model, f"no output has a row for each position along `{time}`")
    chosen = "logits" if "logits" in outputs else outputs[0]
    return needed[0].attrs.string("name"), chosen


def _refuse(model: Model, reason: str) -> NotGenerative:
    definition = model.definition
    return NotGenerative(model=definition.name, reason=reason, span=definition.span)


def generate(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[str]:
    """The continuation of `prompt`, in pieces of text as tokens complete them.

    Ends after `max_tokens`, or at a token that ends a text by the checkpoint. Raises `EmptyPrompt`.
    """
    ids = tokenizer.encode(prompt)
    if not ids:
        raise EmptyPrompt()
    choose = sampler(temperature, seed)
    text = tokenizer.stream()
    for _ in range(max_tokens):
        token = choose(model.next_logits(ids))
        if token in tokenizer.ends:
            break
        ids.append(token)
        yield text.push(token)
    yield text.finish()


def sampler(temperature: float, seed: int) -> Callable[[Array], int]:
    """The rule that picks a token from logits[vocabulary]. Ties go to the smallest id."""
    if temperature == 0:
        return lambda logits: int(np.argmax(logits))
    random = np.random.default_rng(seed)

    def sample(logits: Array) -> int:
        weights = np.exp((logits - logits.max()) / temperature)
        return int(np.searchsorted(np.cumsum(weights), random.random() * weights.sum(), "right"))

    return sample


def chat(tokenizer: Tokenizer, message: str, path: str) -> str:
    """`message` as the first turn of a conversation, by the checkpoint's own template.

    The template comes with the weights, so it runs in a sandbox. A beginning-of-text token is the
    tokenizer's to add. Raises `NoChatTemplate`, `ChatTemplateFails`, `MissingPackage`.
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
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    turns: list[dict[str, Any]] = [{"role": "user", "content": message}]
    try:
        template = environment.from_string(tokenizer.chat_template)
        return template.render(messages=turns, add_generation_prompt=True, bos_token="")
    except (TemplateError, TypeError) as error:
        raise ChatTemplateFails(path=path, reason=str(error)) from None
