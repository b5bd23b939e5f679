"""The site is built strictly: no link leads nowhere, every error has its entry, nothing is fetched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from archc.dsl.diagnostics import CATALOGUE

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mkdocs = pytest.importorskip("mkdocs.commands.build")
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    package = folder / "types" / "archc"
    package.mkdir(parents=True)
    for part in (*(ROOT / "archc").iterdir(), *(ROOT / n for n in ("dsl", "compiler", "backends"))):
        (package / part.name).symlink_to(part)
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder / "site"))
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(package.parent)]
    mkdocs.build(config)
    return folder / "site"


def test_every_error_has_an_entry(site: Path) -> None:
    page = (site / "errors.html").read_text(encoding="utf-8")
    assert set(re.findall(r'<h2 id="([\w-]+)">', page)) == set(CATALOGUE)


def test_nothing_is_fetched(site: Path) -> None:
    fetched = re.compile(
        r'<(?:script|img|iframe)[^>]+src="http|<link[^>]+stylesheet[^>]+href="http'
    )
    for page in site.rglob("*.html"):
        assert not fetched.search(page.read_text(encoding="utf-8")), page.name


def test_python_pages_hold_the_docstrings(site: Path) -> None:
    page = (site / "api.html").read_text(encoding="utf-8")
    for name in ("archc.api.load", "archc.api.Model.compile", "archc.decoder.Decoder"):
        assert f'id="{name}"' in page
