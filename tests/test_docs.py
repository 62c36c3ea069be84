"""Every Python block of the docs runs as a script, and prints what the block of text below it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"

_BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)


def _blocks() -> list[tuple[str, str, str | None]]:
    """Where it is, the program, and what it prints if that is said."""
    blocks = []
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text("utf-8")
        for match in _BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 2
            blocks.append((f"{page.name}:{line}", match[1], match[2]))
    return blocks


BLOCKS = _blocks()


@pytest.mark.parametrize(("program", "output"), [block[1:] for block in BLOCKS], ids=[b[0] for b in BLOCKS])
def test_a_block_runs_as_a_script(tmp_path: Path, program: str, output: str | None) -> None:
    script = tmp_path / "example.py"
    script.write_text(program, "utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    # Of a thread; and none at all, but for Dask's, which logs that a machine that ends no longer hears the other.
    assert not re.search("Exception (in thread|ignored)", done.stderr), done.stderr
    assert "Traceback" not in done.stderr or "dask" in program, done.stderr
    assert done.stdout == (output or "")


def test_the_guide_has_programs() -> None:
    assert sum(place.startswith("guide.md") for place, _, _ in BLOCKS) > 10


def test_what_is_linked_exists() -> None:
    for page in DOCS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
