"""Coverage-guided fuzzing of grammar and elaborator, by hand.

    python tests/fuzz/text.py -max_total_time=600 -max_len=600

Needs `pip install atheris`. Options are those of libFuzzer, and a folder to keep what was found. An input
that crashes, takes over 10 seconds or 2 GiB is written to a file and shown.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["archc.dsl", "archc.compiler"]):
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import splices


def one_input(data: bytes) -> None:
    given = atheris.FuzzedDataProvider(data)

    def choose(count: int) -> int:
        return int(given.ConsumeIntInRange(0, count - 1)) if count > 1 else 0

    way = choose(4)
    if way == 0:
        splices.examine(given.ConsumeUnicodeNoSurrogates(400))
    else:
        splices.examine(splices.soup(choose) if way == 1 else splices.grafted(choose))


if __name__ == "__main__":
    atheris.Setup([sys.argv[0], "-timeout=10", "-rss_limit_mb=2048", *sys.argv[1:]], one_input)
    splices.grafts()  # takes longer than an input may
    atheris.Fuzz()
