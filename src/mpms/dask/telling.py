"""What became of a task, in words: what machines have written is completed by what only the client knows."""

from __future__ import annotations

from ..errors import TaskCancelled, TaskTimeout, WorkerCrashed
from ..local.evidence import Who
from ..local.verdicts import Maker
from ..outcome import Cancelled, Crashed, Failure, Raised
from ..wire.failures import load_error
from .messages import ARGUMENTS, Sealed

__all__ = ["at", "cancelled", "lost", "opened", "withdrawn"]


def opened(failure: Failure, who: Who, machine: str) -> Failure:
    """What a machine has written, completed by what is known here. On the delivery thread."""
    error: BaseException = _open_error(failure.error, who, machine)
    return failure if error is failure.error else Raised(error)


def _open_error(error: BaseException, who: Who, machine: str) -> BaseException:
    if isinstance(error, Sealed):
        opened = load_error(error.data)
    else:
        opened = error
        if isinstance(error, WorkerCrashed | TaskTimeout | TaskCancelled):
            text = str(error.args[0]).replace(ARGUMENTS, who.arguments)
            error.args = (text, *error.args[1:])
        if isinstance(error, WorkerCrashed | TaskTimeout):
            error.arguments = who.arguments
            if error.worker is not None:
                error.worker = at(error.worker, machine)
                error.args = (f"{error.args[0]} The machine was {machine}.",)
    attempts = getattr(error, "attempts", ())
    if attempts:
        earlier = tuple(_open_error(each, who, machine) for each in attempts)
        try:
            setattr(opened, "attempts", earlier)  # noqa: B010  (any exception may come)
        except Exception:  # a class of the user's, that takes no attributes
            pass
    return opened


def lost(machine: str) -> Maker:
    def make(who: Who) -> Failure:
        text = (
            f"the machine {machine} was lost while it ran, or may have run, task {who}: its Dask worker ended, left "
            "the cluster, or was cut off. With retries=1 it would have been run again."
        )
        error = WorkerCrashed(text, blamed=False, task=who.task, arguments=who.arguments, worker=machine)
        return Crashed(error)

    return make


def cancelled(*, started: bool) -> Cancelled:
    when = "while it ran the task" if started else "before the task had started"
    return Cancelled(TaskCancelled(f"the pool was stopped {when}", started=started))


def withdrawn() -> Cancelled:
    return Cancelled(TaskCancelled("it was cancelled before it had started"))


def at(name: str, address: str) -> str:
    return f"{name}@{address.rpartition('://')[2]}"
