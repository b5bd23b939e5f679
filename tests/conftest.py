"""Options and fixtures of all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from commands import SMALL

# What a processor says that it has is taken for granted: else torch.compile tries each set of
# instructions in every new folder, six seconds of a C++ compiler.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--accept", action="store_true", help="rewrite golden files to what is computed now"
    )
    parser.addoption(
        "--all-kernels", action="store_true", help="compile every kernel of every example: an hour"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes an hour runs when it is asked for."""
    if not config.getoption("--all-kernels"):
        left = [item for item in items if item.get_closest_marker("all_kernels")]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if not item.get_closest_marker("all_kernels")]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "all_kernels: run with --all-kernels only")
    if config.getoption("--accept") and os.environ.get("CI"):
        raise pytest.UsageError("--accept rewrites the goldens; a CI run (CI is set) only compares")


@pytest.fixture
def accept(request: pytest.FixtureRequest) -> bool:
    """Whether goldens are to be rewritten."""
    return bool(request.config.getoption("--accept"))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A file with a model and a preset of it."""
    path = tmp_path / "small.arch"
    path.write_text(SMALL)
    return path
