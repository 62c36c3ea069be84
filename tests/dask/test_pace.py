"""How many tasks go, and how many in a parcel."""

from __future__ import annotations

import pytest

pytest.importorskip("distributed", reason="Dask is not installed")

from mpms.dask.pace import Pace

MACHINES = {"tcp://one": 4, "tcp://two": 4}


def test_without_a_machine_one_task_goes_so_that_the_cluster_knows_of_the_demand() -> None:
    assert Pace(4).room({}, 0, 0) == 1
    assert Pace(4).room({}, 1, 1) == 0


def test_slow_tasks_go_one_by_one_as_many_as_there_are_threads() -> None:
    pace = Pace(3)
    assert (pace.size, pace.room(MACHINES, 0, 0), pace.room(MACHINES, 6, 6)) == (1, 6, 0)
    pace.learn(1, 10.0)
    assert (pace.size, pace.room(MACHINES, 6, 6)) == (1, 0)


def test_a_dask_worker_with_fewer_threads_gets_no_more_than_it_has() -> None:
    assert Pace(16).room(MACHINES, 0, 0) == 8


def test_parcels_of_quick_tasks_grow_up_to_a_bound_and_few_go() -> None:
    pace = Pace(4)
    for _ in range(20):
        pace.learn(pace.size, 0.001)
    assert pace.size == 1000
    assert pace.room(MACHINES, 0, 0) >= 6000
    assert pace.room(MACHINES, 6, 6000) == 0


def test_parcels_shrink_by_steps() -> None:
    pace = Pace(4)
    for _ in range(6):
        pace.learn(pace.size, 0.001)
    assert pace.size == 64
    sizes = []
    for _ in range(4):
        pace.learn(pace.size, 5.0)
        sizes.append(pace.size)
    assert sizes == [16, 4, 1, 1]
