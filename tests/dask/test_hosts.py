"""On several hosts, one of which is cut off from the others while it goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from .clusters import ROOT, thorough

NAMESPACE = ["unshare", "--user", "--map-root-user", "--net"]


def why_not() -> str:
    """Why no hosts can be made here, if so."""
    missing = [name for name in ("unshare", "nsenter", "ip") if shutil.which(name) is None]
    if missing:
        return f"hosts are made of network namespaces, by commands that aren't here: {', '.join(missing)}"
    tried = [
        *NAMESPACE,
        "sh",
        "-c",
        "ip link add name try0 type bridge && ip link add name try1 type veth && unshare --net true",
    ]
    done = subprocess.run(tried, capture_output=True, text=True)
    return f"hosts are made of network namespaces, which may not be made here: {done.stderr}" if done.returncode else ""


@thorough
def test_what_a_host_that_is_cut_off_had_started_is_lost_and_the_others_do_the_rest() -> None:
    if reason := why_not():
        pytest.skip(reason)
    done = subprocess.run(
        [*NAMESPACE, sys.executable, "-m", "tests.dask.hosts"],
        cwd=ROOT,
        env={**os.environ, "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    [error] = told["lost"]
    assert "the machine tcp://10.83.0.3:" in error
    assert told["seconds"] < 60  # 12 are those of Dask, which allows no fewer than 11
    assert told["started"] == ["0", "1", "2", "3", "4", "5"]
    assert len(told["returned"]) == 5
