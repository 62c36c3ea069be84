"""What becomes of a task: its result, an error, another attempt; or it goes back as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..ids import Seq, TaskId
from . import policy
from .fleet import Killed, Worker
from .limits import Limits
from .messages import (
    Crash,
    Effect,
    Fail,
    Keep,
    ResultsArrived,
    Retried,
    Settle,
    Timeout,
    Verdict,
    Withdrawn,
    WorkerExited,
)
from .tasks import Ledger

__all__ = ["Fates"]


class Fates:
    """Adds what is to be done to ``out``. ``limit_of`` says how long a task may run."""

    def __init__(self, limits: Limits, ledger: Ledger, limit_of: Callable[[TaskId], float | None]) -> None:
        self.out: list[Effect] = []
        self.are_enough = False  # so many tasks have failed that the pool is to stop
        self._limits = limits
        self._ledger = ledger
        self._limit_of = limit_of
        self._failed = 0  # tasks whose outcome is no value

    # Those that have a result

    def finish(self, worker: Worker, event: ResultsArrived, now: float) -> bool:
        """Settle those that are not to be tried again; whether there are such."""
        # What isn't there is late: it timed out, and has its outcome.
        take = worker.sent.pop
        settled = [(task, seq) for seq in event.seqs if (task := take(seq, None)) is not None]
        if worker.hung or worker.interrupted:
            for _, seq in settled:
                worker.hung.pop(seq, None)
                worker.interrupted.pop(seq, None)
        retried = 0
        if event.retry:
            again = [(task, seq) for task, seq in settled if seq in event.retry and self._has_attempts(task)]
            for task, seq in again:
                self._retry(task, seq, None, now)
            retried = len(again)
            settled = [pair for pair in settled if pair not in again]
        self._ledger.settle_all(settled)
        if settled:
            self.out.append(Settle(settled))
        if event.failed:
            # No more than were settled: the failure of one that is late was its timeout.
            self._note_failures(min(event.failed - retried, len(settled)))
        return retried > 0

    # Those that had not started

    def put_back(self, tasks: Sequence[TaskId]) -> None:
        """To the front of the queue; but for those that were cancelled meanwhile."""
        if not self._ledger.unwanted.isdisjoint(tasks):
            dropped = self._ledger.unwanted.intersection(tasks)
            for task in sorted(dropped):
                self.fail(task, None, Withdrawn())
            tasks = [task for task in tasks if task not in dropped]
        self._ledger.put_back(tasks)

    def keep(self, tasks: Iterable[TaskId]) -> None:
        """They have started: that is too late to cancel them."""
        started = self._ledger.unwanted.intersection(tasks)
        if started:
            self._ledger.unwanted -= started
            self.out.append(Keep(sorted(started)))

    # Those whose worker has ended, or is to

    def bury(self, worker: Worker, event: WorkerExited, now: float) -> None:
        """All that were with a worker that has ended, while the pool goes on."""
        self.put_back([task for seq, task in worker.sent.items() if seq > event.watermark])
        killed = isinstance(worker.phase, Killed) and not worker.is_suspicious
        for seq, task in reversed(worker.sent.items()):  # the oldest last, so that it is in front again
            if seq > event.watermark:
                continue
            if seq in worker.hung:
                self.time_out(worker, seq, task, now)
            elif event.blamed == seq:
                self._crash(worker, seq, task, now, blamed=True)
            elif event.blamed is not None or worker.overdue:
                self._bereave(worker, seq, task)
            elif killed:
                self._crash(worker, seq, task, now, blamed=False)
            else:  # somebody in it did it, and who is known only if there was nobody else
                self._crash(worker, seq, task, now, blamed=True if worker.ward and not event.orphaned else None)
        self.keep(worker.sent.values())

    def time_out(self, worker: Worker, seq: Seq, task: TaskId, now: float) -> None:
        verdict = Timeout(worker.id, self._limit_of(task) or 0.0, self._ledger.attempts(task))
        if self._has_attempts(task) and self._limits.retry_timeouts:
            self._retry(task, seq, verdict, now)
        else:
            self.fail(task, seq, verdict)

    def _crash(self, worker: Worker, seq: Seq, task: TaskId, now: float, *, blamed: bool | None) -> None:
        verdict = Crash(worker.id, blamed, self._ledger.attempts(task))
        if self._has_attempts(task) and self._limits.retry_crashes:
            self._retry(task, seq, verdict, now, suspect=blamed is not False)
        else:
            self.fail(task, seq, verdict)

    def _bereave(self, worker: Worker, seq: Seq, task: TaskId) -> None:
        """Another task ended the worker, and pays for it."""
        if self._retries(task) and self._limits.retry_crashes:
            self._ledger.try_again(task)
        else:
            self.fail(task, seq, Crash(worker.id, False, self._ledger.attempts(task)))

    # Attempts and failures

    def fail(self, task: TaskId, seq: Seq | None, verdict: Verdict) -> None:
        self._ledger.settle(task)
        self.out.append(Fail(task, seq, verdict))
        if isinstance(verdict, Crash | Timeout):
            self._note_failures(1)

    def _retry(self, task: TaskId, seq: Seq, verdict: Verdict | None, now: float, *, suspect: bool = False) -> None:
        delay = policy.backoff(self._limits, task, self._ledger.count_attempt(task))
        self._ledger.try_again(task, now + delay if delay else None, suspect=suspect)
        self.out.append(Retried(task, seq, verdict))
        self.keep([task])

    def _has_attempts(self, task: TaskId) -> bool:
        return self._ledger.attempts(task) <= self._retries(task)

    def _retries(self, task: TaskId) -> int:
        own = self._ledger.of(task).retries
        return self._limits.retries if own is None else own

    def _note_failures(self, count: int) -> None:
        self._failed += count
        if count and policy.stop_due(self._limits, self._failed, self._ledger.settled):
            self.are_enough = True
