"""One process that holds one model for benchmarks/lm_cpu.py and answers over pipes.

    python benchmarks/lm_engines.py '{"engine": "LlamaCpp", "folder": "DIR", ...}'

A question is a line of JSON (`{"do": "prefill", "ids": [...]}`), and so is the answer. Whatever the
libraries print goes to standard error. Prefill ends when the token after the last is known, and so
every engine computes the logits of the last position only. Decoding is greedy and ignores ends.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

ROOT = Path(__file__).parent.parent


class Unavailable(Exception):
    """Why an engine cannot run here."""


class Engine:
    """A language model that answers token by token: `start` reads a prompt, `step` one token.

    `capacity` is the number of positions that calls will need.
    """

    packages: ClassVar[tuple[str, ...]] = ()

    def __init__(self, folder: Path, threads: int, capacity: int) -> None:
        self.folder, self.threads, self.capacity = folder, threads, capacity

    def file(self, name: str) -> str:
        """The path of a prepared file."""
        if not (self.folder / name).exists():
            raise Unavailable(f"no {name} in {self.folder}: lm_cpu.py --prepare {self.folder}")
        return str(self.folder / name)

    def start(self, ids: Sequence[int]) -> int:
        raise NotImplementedError

    def step(self, token: int) -> int:
        raise NotImplementedError

    def prefill(self, ids: Sequence[int]) -> dict[str, Any]:
        begun = time.perf_counter()
        token = self.start(ids)
        return {"seconds": time.perf_counter() - begun, "tokens": [token]}

    def decode(self, ids: Sequence[int], count: int) -> dict[str, Any]:
        """`count` steps after a prompt; the prompt's own time does not count."""
        tokens = [self.start(ids)]
        begun = time.perf_counter()
        for _ in range(count):
            tokens.append(self.step(tokens[-1]))
        return {"seconds": time.perf_counter() - begun, "tokens": tokens}


class Archc(Engine):
    packages = ("archc",)

    def __init__(
        self,
        folder: Path,
        threads: int,
        capacity: int,
        *,
        weights: str,
        backend: str,
        **options: Any,
    ) -> None:
        super().__init__(folder, threads, capacity)
        import archc

        if "rows" not in inspect.signature(archc.Model.decoder).parameters:
            raise Unavailable("this archc has no decoder(rows='last')")
        _use_threads(backend, threads)
        model = archc.load(ROOT / "examples" / "llama.arch", weights=self.file(weights))
        self.decoder = model.decoder(
            backend=backend, max_length=capacity, inputs=["input_ids"], rows="last", **options
        )

    def start(self, ids: Sequence[int]) -> int:
        return self._next(None, ids)

    def step(self, token: int) -> int:
        return self._next(self.state, [token])

    def _next(self, state: Any, ids: Sequence[int]) -> int:
        outputs, self.state = self.decoder(state, input_ids=np.array([ids]))
        return int(np.asarray(outputs["logits"][0, -1], np.float32).argmax())


def _use_threads(backend: str, threads: int) -> None:
    if backend == "torch":
        import torch

        torch.set_num_threads(threads)


class Transformers(Engine):
    """Eager with a growing cache, or compiled with a static one."""

    packages = ("torch", "transformers")

    def __init__(
        self, folder: Path, threads: int, capacity: int, *, dtype: str, compiled: bool = False
    ) -> None:
        super().__init__(folder, threads, capacity)
        import torch
        from transformers import LlamaForCausalLM, StaticCache

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        name = "hf-f32" if dtype == "float32" else "hf-bf16"
        self.model = LlamaForCausalLM.from_pretrained(self.file(name), dtype=getattr(torch, dtype))
        self.model.eval()
        self.forward = self.model.forward
        self.cache: Any = None
        if compiled:
            self.forward = torch.compile(self.forward, fullgraph=True, dynamic=False)
            config = self.model.config
            self.cache = StaticCache(config=config, max_cache_len=capacity)
            # else the first call compiles for a cache without arrays, and a timed one again
            sizes = (1, config.num_key_value_heads, config.head_dim)
            self.cache.early_initialization(*sizes, getattr(torch, dtype), torch.device("cpu"))

    def start(self, ids: Sequence[int]) -> int:
        from transformers import DynamicCache

        if self.forward == self.model.forward:
            self.cache = DynamicCache(config=self.model.config)
        else:
            self.cache.reset()
        self.length = 0
        return self._next(ids)

    def step(self, token: int) -> int:
        return self._next([token])

    def _next(self, ids: Sequence[int]) -> int:
        import torch

        positions = torch.arange(self.length, self.length + len(ids))[None]
        self.length += len(ids)
        out = self.forward(
            input_ids=torch.tensor([ids]),
            position_ids=positions,
            past_key_values=self.cache,
            logits_to_keep=1,
        )
        return int(out.logits[0, -1].argmax())


class LlamaCpp(Engine):
    """The C interface, so that no wrapper's work is timed. Its cache is float16, as is its default."""

    packages = ("llama_cpp",)

    def __init__(self, folder: Path, threads: int, capacity: int, *, file: str) -> None:
        super().__init__(folder, threads, capacity)
        import llama_cpp as c

        path = self.file(file).encode()
        c.llama_backend_init()
        self.model = c.llama_model_load_from_file(path, c.llama_model_default_params())
        parameters = c.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = capacity
        parameters.n_threads = parameters.n_threads_batch = threads
        self.context = c.llama_init_from_model(self.model, parameters)
        self.vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self.model))

    def start(self, ids: Sequence[int]) -> int:
        import llama_cpp as c

        c.llama_memory_clear(c.llama_get_memory(self.context), True)
        return self._next(ids)

    def step(self, token: int) -> int:
        return self._next([token])

    def _next(self, ids: Sequence[int]) -> int:
        import llama_cpp as c

        given = (c.llama_token * len(ids))(*ids)
        if c.llama_decode(self.context, c.llama_batch_get_one(given, len(ids))):
            raise RuntimeError("llama_decode failed")
        logits = c.llama_get_logits_ith(self.context, -1)
        return int(np.ctypeslib.as_array(logits, (self.vocabulary,)).argmax())


class OpenVino(Engine):
    """GenAI's pipeline, which reads, chooses and times its tokens itself.

    `attention` is its `ATTENTION_BACKEND`: PA (its default, here without the cache of prefixes, which
    would skip a prompt read before) or SDPA.
    """

    packages = ("openvino", "openvino_genai")

    def __init__(
        self, folder: Path, threads: int, capacity: int, *, model: str, dtype: str, attention: str
    ) -> None:
        super().__init__(folder, threads, capacity)
        import openvino_genai as genai

        options: dict[str, Any] = {}
        if attention == "PA":
            options["scheduler_config"] = scheduler = genai.SchedulerConfig()
            scheduler.enable_prefix_caching = False
            scheduler.max_num_batched_tokens = capacity
        self.pipeline = genai.LLMPipeline(
            self.file(model),
            "CPU",
            ATTENTION_BACKEND=attention,
            INFERENCE_PRECISION_HINT=dtype,
            INFERENCE_NUM_THREADS=threads,
            **options,
        )

    def prefill(self, ids: Sequence[int]) -> dict[str, Any]:
        times, tokens = self._generate(ids, 1)
        return {"seconds": times[1] - times[0], "tokens": tokens}

    def decode(self, ids: Sequence[int], count: int) -> dict[str, Any]:
        times, tokens = self._generate(ids, count + 1)
        return {"seconds": times[-1] - times[1], "tokens": tokens}

    def _generate(self, ids: Sequence[int], count: int) -> tuple[list[float], list[int]]:
        """When it began and when each token came, and the tokens."""
        import openvino as ov
        import openvino_genai as genai

        times = []

        def arrived(_token: Any) -> Any:
            times.append(time.perf_counter())
            return genai.StreamingStatus.RUNNING

        class Streamer(genai.StreamerBase):
            def write(self, token: Any) -> Any:
                return arrived(token)

            def end(self) -> None:
                pass

        given = np.array([ids], np.int64)
        inputs = genai.TokenizedInputs(ov.Tensor(given), ov.Tensor(np.ones_like(given)))
        config = genai.GenerationConfig(
            max_new_tokens=count, ignore_eos=True, do_sample=False, apply_chat_template=False
        )
        begun = time.perf_counter()
        result = self.pipeline.generate(inputs, config, Streamer())
        return [begun, *times], [int(t) for t in result.tokens[0]]


class OnnxGenAI(Engine):
    packages = ("onnxruntime_genai",)

    def __init__(self, folder: Path, threads: int, capacity: int, *, model: str) -> None:
        super().__init__(folder, threads, capacity)
        import onnxruntime_genai as genai

        config = genai.Config(self.file(model))
        session = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = genai.Model(config)

    def start(self, ids: Sequence[int]) -> int:
        import onnxruntime_genai as genai

        parameters = genai.GeneratorParams(self.model)
        # a minimum length keeps the token that ends a text from being chosen
        parameters.set_search_options(max_length=self.capacity, min_length=self.capacity)
        self.generator = genai.Generator(self.model, parameters)
        self.generator.append_tokens(np.array([ids], np.int32))
        return self.step(-1)

    def step(self, token: int) -> int:
        """The generator remembers what it chose; `token` is that."""
        self.generator.generate_next_token()
        return int(self.generator.get_next_tokens()[0])


class Encoder(Engine):
    """MiniLM: ids and mask of a batch in, last hidden states out, both NumPy."""

    def encode(self, rows: int, columns: int) -> dict[str, Any]:
        ids = np.random.default_rng(0).integers(1000, 30000, (rows, columns))
        mask = np.ones_like(ids)
        begun = time.perf_counter()
        hidden = self.hidden(ids, mask)
        seconds = time.perf_counter() - begun
        return {"seconds": seconds, "sample": np.asarray(hidden, np.float32)[0, 0, :4].tolist()}

    def hidden(self, ids: Any, mask: Any) -> Any:
        raise NotImplementedError


class ArchcEncoder(Encoder):
    packages = ("archc",)

    def __init__(
        self, folder: Path, threads: int, capacity: int, *, backend: str, **options: Any
    ) -> None:
        super().__init__(folder, threads, capacity)
        import archc

        _use_threads(backend, threads)
        model = archc.load(ROOT / "examples" / "bert.arch", weights=self.file("minilm"))
        inputs = ["input_ids", "attention_mask"]
        self.compiled = model.compile(backend, inputs=inputs, **options)

    def hidden(self, ids: Any, mask: Any) -> Any:
        return self.compiled(input_ids=ids, attention_mask=mask.astype(bool))["hidden"]


class TransformersEncoder(Encoder):
    packages = ("torch", "transformers")

    def __init__(
        self, folder: Path, threads: int, capacity: int, *, dtype: str, compiled: bool = False
    ) -> None:
        super().__init__(folder, threads, capacity)
        import torch
        from transformers import BertModel

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        model = BertModel.from_pretrained(self.file("minilm"), dtype=getattr(torch, dtype)).eval()
        self.forward = torch.compile(model.forward) if compiled else model.forward

    def hidden(self, ids: Any, mask: Any) -> Any:
        import torch

        given = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        return self.forward(**given).last_hidden_state.float().numpy()


class OpenVinoEncoder(Encoder):
    packages = ("openvino",)

    def __init__(self, folder: Path, threads: int, capacity: int, *, dtype: str) -> None:
        super().__init__(folder, threads, capacity)
        import openvino as ov

        options = {"INFERENCE_PRECISION_HINT": dtype, "INFERENCE_NUM_THREADS": threads}
        self.model = ov.Core().compile_model(self.file("minilm.xml"), "CPU", options)

    def hidden(self, ids: Any, mask: Any) -> Any:
        return self.model([ids, mask])[0]


class OnnxEncoder(Encoder):
    packages = ("onnxruntime",)

    def __init__(self, folder: Path, threads: int, capacity: int) -> None:
        super().__init__(folder, threads, capacity)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        path, providers = self.file("minilm.onnx"), ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(path, options, providers=providers)

    def hidden(self, ids: Any, mask: Any) -> Any:
        return self.session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


class Limits(Engine):
    """What the machine gives to this many threads at this moment: read bandwidth and arithmetic."""

    packages = ("torch",)

    def __init__(self, folder: Path, threads: int, capacity: int) -> None:
        super().__init__(folder, threads, capacity)
        import torch

        torch.set_num_threads(threads)
        self.numbers = torch.ones(2**27)  # 512 MB
        self.square = torch.ones(2048, 2048)

    def limits(self) -> dict[str, Any]:
        begun = time.perf_counter()
        self.numbers.sum()
        read = time.perf_counter()
        self.square @ self.square
        done = time.perf_counter()
        return {
            "read GB/s": 4 * 2**27 / (read - begun) / 1e9,
            "f32 GFLOP/s": 2 * 2048**3 / (done - read) / 1e9,
        }


def peak_bytes() -> int:
    """The most memory that this process has had resident, mapped files included."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.split("\n") if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def loaded(
    engine: str, folder: str, threads: int, capacity: int, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The engine and the seconds that its imports and its loading took. Raises Unavailable."""
    made: type[Any] = globals()[engine]
    for package in made.packages:
        if importlib.util.find_spec(package) is None:
            raise Unavailable(f"{package} is not installed in {sys.executable}")
    begun = time.perf_counter()
    versions = {name: importlib.import_module(name) for name in made.packages}
    if options.get("backend") == "torch":
        importlib.import_module("torch")
    imported = time.perf_counter()
    model = made(Path(folder), threads, capacity, **options)
    done = time.perf_counter()
    return model, {
        "import": imported - begun,
        "load": done - imported,
        "versions": {n: str(getattr(m, "__version__", "")) for n, m in versions.items()},
    }


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")

    try:
        model, said = loaded(**json.loads(sys.argv[1]))
    except Unavailable as reason:
        answer({"unavailable": str(reason)})
        return
    answer(said)
    for line in sys.stdin:
        question = json.loads(line)
        said = getattr(model, question.pop("do"))(**question)
        answer(said | {"peak": peak_bytes()})


if __name__ == "__main__":
    main()
