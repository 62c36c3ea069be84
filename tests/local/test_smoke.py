"""A pool runs tasks, under every start method."""

from __future__ import annotations

from mpms import MPMS


def test_every_task_arrives_once(any_method: str) -> None:
    got: list[int] = []
    with MPMS(abs, lambda meta, result: got.append(result), processes=2, threads=2, start_method=any_method) as pool:
        for number in range(100):
            pool.put(-number)
    assert sorted(got) == list(range(100))
