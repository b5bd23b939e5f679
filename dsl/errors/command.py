"""The command and its options, passes and knobs."""

from __future__ import annotations

from ..diagnostics import ArchError, did_you_mean


class BadKnob(ArchError, id="bad-knob"):
    name: str
    got: str
    expected: str
    title = "{name}={got} is not understood"
    help = "it takes {expected}"


class UnknownPass(ArchError, id="unknown-pass"):
    name: str
    known: tuple[str, ...]
    title = "there is no pass `{name}`"

    def help_text(self) -> str:
        return did_you_mean(self.name, self.known) or f"the passes are {', '.join(self.known)}"


class UnknownBackend(ArchError, id="unknown-backend"):
    name: str
    known: tuple[str, ...]
    title = "there is no backend `{name}`"

    def help_text(self) -> str:
        return did_you_mean(self.name, self.known) or f"backends: {', '.join(self.known)}"


class NothingFails(ArchError, id="nothing-fails"):
    path: str
    asked: str
    title = "{path} does not fail: there is nothing to keep while it is made smaller"
    help = (
        "{asked} found nothing wrong: ask other --backends, another --dtype or --size, other weights"
        " by --random, or a command of your own by --check"
    )


class NoWeights(ArchError, id="no-weights"):
    model: str
    title = "`{model}` has no weights yet"
    help = "name a checkpoint with `--weights DIR`, or take random ones with `--random SEED`"


class UnknownClass(ArchError, id="unknown-class"):
    name: str
    path: str
    title = "transformers has no class `{name}`, which {path} is said to be of"
    help = "`--class NAME` names another"


class PeerFails(ArchError, id="peer-fails"):
    name: str
    reason: str
    title = "`{name}` of transformers does not run: {reason}"
    help = "`--inputs IN.safetensors` gives it other inputs, `--class NAME` takes another class"


class NothingMatches(ArchError, id="nothing-matches"):
    name: str
    model: str
    title = "nothing of `{name}` can be compared with `{model}`"
    help = (
        "inputs and outputs are matched by their names, a module with the region whose weights the\n"
        "checkpoint block makes of its tensors"
    )


class BadTensorFile(ArchError, id="bad-tensor-file"):
    path: str
    reason: str
    title = "cannot read tensors from {path}: {reason}"
    help = "inputs are one safetensors file, keyed by the names of the model's `input` lines"


class Unwritable(ArchError, id="unwritable"):
    path: str
    reason: str
    title = "cannot write {path}: {reason}"


class OtherModel(ArchError, id="other-model"):
    path: str
    model: str
    asked: str
    title = "the checkpoint {path} is one of `{model}`, not of `{asked}`"
    labels = {"span": "this block reads it"}
    help = "run `{model}`, or write a `checkpoint` block for `{asked}`"


class NotGenerative(ArchError, id="not-generative"):
    model: str
    reason: str
    title = "`{model}` cannot generate text: {reason}"
    help = (
        "it takes a line `decode s`, one `ids` input along s without a default, and an output\n"
        "`logits[b, s, vocab]` with a number for each id"
    )


class NoChatTemplate(ArchError, id="no-chat-template"):
    path: str
    title = "the checkpoint {path} has no chat template"
    help = "leave out `--chat` to continue the prompt as plain text"


class ChatTemplateFails(ArchError, id="chat-template"):
    path: str
    reason: str
    title = "the chat template of {path} cannot be used: {reason}"
    help = "leave out `--chat` to continue the prompt as plain text"


class EmptyPrompt(ArchError, id="empty-prompt"):
    title = "the prompt has no tokens"
    help = "a model without a beginning-of-text token needs at least one to go on from"


class GenerationSetting(ArchError, id="generation-setting"):
    name: str
    got: str
    expected: str
    title = "cannot generate with {name}: {got}"
    help = "it takes {expected}"


class OtherVocabulary(ArchError, id="other-vocabulary"):
    model: str
    draft: str
    reason: str
    title = "{draft} cannot draft for {model}: {reason}"
    help = "both must have one vocabulary: take a smaller model of the same family"


class CacheFull(ArchError, id="cache-full"):
    length: int
    max_length: int
    title = "{length} tokens are longer than the greatest length, {max_length}"
    help = "give a shorter prompt, or a greater `--max-length`"


class ChunkSizes(ArchError, id="chunk-sizes"):
    chunks: str
    total: int
    axis: str
    rows: int
    title = (
        "the chunks {chunks} have {total} rows together, but the inputs have {rows} along `{axis}`"
    )
    help = "give numbers that add up to {rows}, or `--chunks auto`"


class UnjoinedOutput(ArchError, id="unjoined-output"):
    name: str
    axis: str
    title = (
        "output `{name}` cannot be joined from chunks: its axis `{axis}` grows from one to the next"
    )
    labels = {"span": "has an entry for every position so far"}
    help = "run the sequence in one piece, or take each chunk's output from `model.decoder(..)`"


class LogitsNotNumbers(ArchError, id="logits-not-numbers"):
    tokens: int
    title = "the logits after token {tokens} are not numbers"
    help = (
        "f16 overflows where bf16 and f32 do not: try `--dtype f32`; `archc diff` with these weights\n"
        "finds the line where it begins"
    )


class TextTooShort(ArchError, id="text-too-short"):
    tokens: int
    title = "the text has too few tokens to be scored: {tokens}"
    help = "a token is scored by those before it, so it takes two"


class UnreadableText(ArchError, id="unreadable-text"):
    path: str
    reason: str
    title = "cannot read the text {path}: {reason}"
    help = "a text is a file in UTF-8"


class OutOfMemory(ArchError, id="out-of-memory"):
    reason: str
    title = "this machine has too little memory: {reason}"
    help = "take a smaller model or batch, or `--dtype bf16`"
