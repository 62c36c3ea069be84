"""Every option says what it takes: a wrong one is refused by the constructor, with its name and what was given."""

from __future__ import annotations

from typing import Any

import pytest

from mpms import MPMS, WorkerGracefulDie

NO_INTEGER = [1.5, "2", True, [], 1j]
NO_NUMBER = ["2", True, [], None, 1j, float("nan")]
NO_CALLABLE = [1, "name", ()]

WRONG: dict[str, list[Any]] = {
    "worker": [None, 1, "name"],
    "collector": NO_CALLABLE,
    "processes": [*NO_INTEGER, 0, -1],
    "threads": [*NO_INTEGER, None, 0, -1],
    "task_queue_maxsize": [*NO_INTEGER, -1],
    "meta": [1, "name", [1]],
    "lifecycle": [*NO_INTEGER, False, -1],
    "lifecycle_duration": [x for x in NO_NUMBER if x is not None] + [0, -1.5],
    "lifecycle_duration_hard": [x for x in NO_NUMBER if x is not None] + [0, -1.5],
    "subproc_check_interval": [*NO_NUMBER, 0, -1],
    "process_initializer": NO_CALLABLE,
    "thread_initializer": NO_CALLABLE,
    "process_finalizer": NO_CALLABLE,
    "thread_finalizer": NO_CALLABLE,
    "name": [1, b"name", ""],
    "worker_graceful_die_timeout": [*NO_NUMBER, -1],
    "worker_graceful_die_exceptions": [ValueError, [ValueError], (int,), (ValueError(),), "ValueError", None],
    "task_timeout": [x for x in NO_NUMBER if x is not None] + [0, -1],
    "retries": [*NO_INTEGER, None, -1],
    "retry_backoff": [*NO_NUMBER, -0.1],
    "start_method": ["thread", 1, ["fork"], {}, True],
    "preload": NO_CALLABLE,
    "max_memory_per_process": [1.5, True, [], 0, -1, "", "big", "1.5XB", "-1GB", "0", "nan", "inf", "1e999"],
    "max_start_failures": [*NO_INTEGER, None, 0],
    "start_timeout": [*NO_NUMBER, 0, -1],
    "forward_logs": [1, "yes", None],
    "retry_on": [None, 1, "crash", ValueError, [ValueError], (int,), (ValueError(),)],
    "timeout_raises": [1, "yes", None],
    "max_memory_hard": [1.5, True, [], 0, -1, "", "big", "-1GB"],
    "min_free_memory": [1.5, True, [], 0, -1, "", "big", "-1GB"],
    "max_rate": [x for x in NO_NUMBER if x is not None] + [0, -1],
    "stop_on": [0, -1, True, 1.5, "", "5", "x%", "0%", "101%", "-1%", []],
    "native_threads": [x for x in NO_INTEGER if x is not None] + [0, -1],
    "on_error": NO_CALLABLE,
    "engine": NO_CALLABLE,
}


@pytest.mark.parametrize(("option", "value"), [(option, value) for option, values in WRONG.items() for value in values])
def test_a_wrong_option_is_refused_by_name_with_what_was_given_and_what_may_be(option: str, value: Any) -> None:
    options = {"worker": abs, option: value}
    with pytest.raises((TypeError, ValueError)) as info:
        MPMS(**options)
    text = str(info.value)
    assert option in text
    assert repr(value) in text
    assert "must be" in text


@pytest.mark.parametrize("hook", ["process_init", "thread_init", "process_fin", "thread_fin"])
@pytest.mark.parametrize("value", [1, None])
def test_the_arguments_of_a_hook_must_be_a_sequence(hook: str, value: Any) -> None:
    function = hook + ("ializer" if hook.endswith("init") else "alizer")
    with pytest.raises(TypeError, match=rf"{hook}args must be a sequence, not {value}"):
        MPMS(abs, **{function: print, f"{hook}args": value})


def test_the_type_of_a_wrong_option_is_a_type_error_and_its_range_a_value_error() -> None:
    for options in ({"threads": "2"}, {"retries": 1.5}, {"task_timeout": "2"}, {"preload": 1}):
        with pytest.raises(TypeError):
            MPMS(abs, **options)
    for options in ({"threads": 0}, {"retries": -1}, {"task_timeout": 0}, {"start_method": "thread"}):
        with pytest.raises(ValueError):
            MPMS(abs, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"processes": 1, "threads": 1},
        {"task_queue_maxsize": 0},
        {"task_queue_maxsize": None},
        {"lifecycle": 0},  # off, as in 2.6
        {"lifecycle": 1, "lifecycle_duration": 0.5, "lifecycle_duration_hard": 1},
        {"subproc_check_interval": 0.1},
        {"worker_graceful_die_timeout": 0},
        {"worker_graceful_die_exceptions": ()},
        {"worker_graceful_die_exceptions": (WorkerGracefulDie, MemoryError, SystemExit)},
        {"process_initializer": print, "process_initargs": ["a", "list"]},
        {"meta": [("pairs", 1)]},
        {"name": "with spaces / and ü"},
        {"max_memory_per_process": 1},
        {"max_memory_per_process": "1.5GB"},
        {"max_memory_per_process": " 512 MiB "},
        {"task_timeout": 0.001, "retries": 0, "retry_backoff": 0},
        {"retry_on": ()},
        {"retry_on": (OSError,), "retries": 1},
        {"retry_on": callable},  # a lambda has another name in every process of pytest-xdist
        {"max_memory_hard": "2GiB", "min_free_memory": 1},
        {"max_rate": 0.1},
        {"stop_on": 1},
        {"stop_on": "0.5%"},
        {"stop_on": "100%"},
        {"native_threads": 1, "timeout_raises": True, "on_error": print},
    ],
    ids=str,
)
def test_what_may_be_given(options: dict[str, Any]) -> None:
    assert MPMS(abs, **options)


@pytest.mark.parametrize("seconds", [40 * 86_400.0, 1e12, float("inf")])
@pytest.mark.parametrize("option", ["task_timeout", "lifecycle_duration", "lifecycle_duration_hard", "start_timeout"])
def test_a_duration_may_be_months_or_for_ever(option: str, seconds: float) -> None:
    # poll(2) and epoll_wait(2) take no more than 24 days.
    with MPMS(abs, processes=1, threads=1, **{option: seconds}) as pool:
        pool.put(-1)
        assert next(pool.iter_results())[1] == 1
        pool.put(-2)
    assert pool.finish_count == 2


@pytest.mark.parametrize("timeout", [40 * 86_400.0, float("inf")])
def test_a_shutdown_may_take_for_ever(timeout: float) -> None:
    pool = MPMS(abs, processes=1, threads=1)
    pool.put(-1)
    assert pool.graceful_shutdown(timeout) is True


@pytest.mark.parametrize("words", [("process",), ("collector", "threads", "name", "meta", "worker", "lifecycle")])
def test_names_of_options_are_free_for_the_keyword_arguments_of_tasks(words: tuple[str, ...]) -> None:
    def echo(**kwargs: Any) -> dict[str, Any]:
        return kwargs

    with MPMS(echo, processes=1, threads=1) as pool:
        pool.put(**dict.fromkeys(words, 1))
        pool.close()
        ((meta, result),) = pool.iter_results()
    assert result == meta.kwargs == dict.fromkeys(words, 1)


@pytest.mark.parametrize("word", ["self", "args", "kwargs", "task", "meta", "mpms", "wait_for_empty"])
def test_names_of_our_own_parameters_are_free_for_tasks_too(word: str) -> None:
    def echo(**kwargs: Any) -> dict[str, Any]:
        return kwargs

    pool = MPMS(echo, processes=1, threads=1)
    if word == "self":
        with pytest.raises(TypeError):
            pool.put(**{word: 1})  # as every method of Python
        return
    pool.put(**{word: 1})
    pool.close()
    assert [result for _, result in pool.iter_results()] == [{word: 1}]
    pool.join()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("timeout", value) for value in ["2", True, [], 0, -1, float("nan")]],
        *[("retries", value) for value in [1.5, "2", True, -1]],
        *[("priority", value) for value in [1.5, "2", True, None]],
    ],
)
def test_a_wrong_option_of_a_single_task_is_refused_before_the_pool_is_started(option: str, value: Any) -> None:
    pool = MPMS(abs, processes=1, threads=1)
    with pytest.raises((TypeError, ValueError), match=option) as info:
        pool.put_with((1,), **{option: value})
    assert repr(value) in str(info.value)
    assert pool.total_count == 0
    pool.start()
    pool.join()


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", None, True])
def test_a_wrong_size_is_refused_by_resize(value: Any) -> None:
    pool = MPMS(abs, processes=1, threads=1)
    with pytest.raises((TypeError, ValueError), match="processes must be"):
        pool.resize(value)
