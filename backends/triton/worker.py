"""The worker process: `python -m archc.backends.triton.worker` with TRITON_INTERPRET=1.

It loads generated models, runs them in Triton's interpreter and counts what they move. Requests are
JSON lines on stdin, answers JSON lines on stdout; arrays travel in safetensors files.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from contextlib import nullcontext
from typing import Any, TextIO

import numpy as np

from .session import GeneratedModel, apart, named_as
from .traffic import TRAFFIC


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answers requests until stdin ends."""
    models: dict[int, GeneratedModel] = {}
    for line in requests:
        try:
            answer = _answer(models, json.loads(line))
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(models: dict[int, GeneratedModel], request: dict[str, Any]) -> dict[str, Any]:
    from safetensors.torch import load_file, save_file

    if request["do"] == "count":
        return {"launches": TRAFFIC.switch(request["on"])}
    if request["do"] == "blank":
        from .blank import blank_run

        return blank_run(request)
    key = request["model"]
    if request["do"] == "load":
        weights = load_file(request["weights"])
        models[key] = GeneratedModel(
            request["folder"], weights, request["dtype"], "cpu", "interpreter"
        )
    elif request["do"] == "drop":
        models.pop(key, None)
    else:
        model, given = models[key], load_file(request["inputs"])
        inputs, states = named_as("input", given), named_as("state", given)
        with TRAFFIC.without_races() if request["races"] else nullcontext():
            results = model.run(inputs, states, request["sizes"])
        save_file(apart(results), request["outputs"])
    return {}


def main() -> None:
    from .repairs import apply

    apply()
    np.seterr(all="ignore")  # masked lanes compute too
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what kernels print must not mix with answers
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
