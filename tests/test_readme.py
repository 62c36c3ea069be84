"""The README's first example works when it is pasted into a file."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_first_example_of_the_readme_runs_as_a_script(tmp_path: Path) -> None:
    example = re.search(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert example is not None
    script = tmp_path / "example.py"
    script.write_text(example[1], "utf-8")

    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )

    files = list(Path(json.__file__).parent.glob("*.py"))
    kinds = [type(node) for file in files for node in ast.walk(ast.parse(file.read_bytes()))]
    functions, classes = kinds.count(ast.FunctionDef), kinds.count(ast.ClassDef)
    assert (done.stdout, done.stderr) == (
        f"{len(files)} files, {functions} functions, {classes} classes\n",
        "",
    )
    assert done.returncode == 0


def test_the_readme_names_every_make_target() -> None:
    makefile = README.with_name("Makefile").read_text("utf-8")
    targets = re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)
    assert "demo" in targets
    missing = [target for target in targets if f"make {target}" not in README.read_text("utf-8")]
    assert missing == []
