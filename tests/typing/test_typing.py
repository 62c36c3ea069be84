"""Users' programs are checked as ours is: the package is typed, and its types say no where they should."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent

_ERROR = re.compile(r"^(?P<file>[^:]+):(?P<line>\d+): error: .*\[(?P<code>[a-z-]+)\]$")


@pytest.fixture(scope="module")
def by_mypy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, str]]:
    """What mypy finds in the examples: the code of the error by file and line."""
    # Not from the project's directory nor with its settings: as a user has them. Its cache is kept from run to run.
    cache = HERE.parents[1] / ".mypy_cache" / "usage"
    done = _run(
        *("mypy", "--strict", "--config-file=", f"--cache-dir={cache}"),
        *("--no-error-summary", "--hide-error-context", "--no-color-output", "--no-pretty"),
        *(str(HERE / name) for name in ("usage.py", "misuse.py")),
        cwd=tmp_path_factory.mktemp("typing"),
    )
    errors: dict[str, dict[int, str]] = {"usage.py": {}, "misuse.py": {}}
    for line in done.splitlines():
        match = _ERROR.match(line)
        if match is not None:
            errors[Path(match["file"]).name][int(match["line"])] = match["code"]
        else:
            assert ": note: " in line, line
    return errors


@pytest.fixture(scope="module")
def by_pyright() -> dict[str, dict[int, str]]:
    """As :func:`by_mypy`, with the message, of which the words are its own: no names of rules are compared."""
    done = _run("pyright", f"--project={HERE}", f"--pythonpath={sys.executable}", "--outputjson", cwd=HERE)
    errors: dict[str, dict[int, str]] = {"usage.py": {}, "misuse.py": {}}
    found: list[dict[str, Any]] = json.loads(done)["generalDiagnostics"]
    for each in found:
        errors[Path(each["file"]).name][each["range"]["start"]["line"] + 1] = each["message"]
    return errors


def _run(*command: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if not name.startswith(("MYPY", "PYRIGHT"))},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode in (0, 1), done.stderr or done.stdout
    return done.stdout


def expected() -> dict[int, str]:
    lines = (HERE / "misuse.py").read_text("utf-8").splitlines()
    return {number: line.partition("# E: ")[2] for number, line in enumerate(lines, start=1) if "# E: " in line}


def test_right_use_passes(by_mypy: dict[str, dict[int, str]]) -> None:
    assert by_mypy["usage.py"] == {}


def test_wrong_use_is_refused_line_by_line(by_mypy: dict[str, dict[int, str]]) -> None:
    assert len(expected()) > 30
    assert by_mypy["misuse.py"] == expected()


def test_right_use_passes_under_pyright_too(by_pyright: dict[str, dict[int, str]]) -> None:
    assert by_pyright["usage.py"] == {}


def test_wrong_use_is_refused_line_by_line_under_pyright_too(by_pyright: dict[str, dict[int, str]]) -> None:
    assert sorted(by_pyright["misuse.py"]) == sorted(expected())
