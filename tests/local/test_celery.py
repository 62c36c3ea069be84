"""A pool in a task of Celery: in a daemonic child of billiard, whose standard output is a logger."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from .helpers import PATIENCE

APP = """
import os
import sys
from pathlib import Path

from celery import Celery

from mpms import MPMS

here = Path(__file__).parent
app = Celery("app", broker="filesystem://", backend=f"file://{here}/results")
app.conf.broker_transport_options = {
    "control_folder": f"{here}/control", "data_folder_in": f"{here}/box", "data_folder_out": f"{here}/box"
}


def square(number):
    print("squared", number)
    if number == 3:
        os._exit(5)
    return number * number


@app.task
def squares(count):
    with MPMS(square, processes=2, threads=1) as pool:
        for number in range(count):
            if number != 3:
                pool.put(number)
        outcomes = pool.iter_results()
        pairs = [next(outcomes) for _ in range(count - 1)]  # else one that is done may be lost with the worker
        pool.put(3)
        pool.close()
        results = [result if isinstance(result, int) else str(type(result)) for _, result in [*pairs, *outcomes]]
    return type(sys.stdout).__name__, len(results), [each for each in results if not isinstance(each, int)]
"""

CLIENT = """
from app import squares

print(squares.delay(10).get(timeout=60))
"""


def test_a_task_of_celery_may_have_a_pool(tmp_path: Path) -> None:
    for folder in ("box", "control", "results"):
        (tmp_path / folder).mkdir()
    (tmp_path / "app.py").write_text(APP)
    command = [sys.executable, "-m", "celery", "-A", "app", "worker", "-P", "prefork", "-c", "1", "--loglevel=error"]
    log = (tmp_path / "log").open("wb")
    with log, subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log) as worker:
        try:
            asked = [sys.executable, "-c", CLIENT]
            told = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
        finally:
            worker.send_signal(signal.SIGTERM)
    # The task that ends its process is the only one lost.
    assert told.stdout == "['LoggingProxy', 10, [\"<class 'mpms.errors.WorkerCrashed'>\"]]\n", told.stderr
    assert worker.returncode == 0
