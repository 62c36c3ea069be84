"""The ledger: what waits, in which order, and how often each task was tried."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush

from ..ids import TaskId, TaskOptions

__all__ = ["Ledger"]

_PLAIN = TaskOptions()


class Ledger:
    """Tasks that are accepted and not settled; which of them are with a worker is the fleet's knowledge.

    Suspects were in a worker when it ended, and any of them may have ended it: from then on they run alone.
    """

    def __init__(self) -> None:
        self.suspects: deque[TaskId] = deque()  # those that wait
        self.isolated: set[TaskId] = set()  # all suspects that are not settled
        self.delayed: list[tuple[float, TaskId]] = []
        self.tried: dict[TaskId, int] = {}  # only of tasks that were tried before: memory is for the exceptions
        self.options: dict[TaskId, TaskOptions] = {}  # likewise
        self.unwanted: set[TaskId] = set()  # those with a worker that are dropped if they come back
        self.submitted = 0
        self.settled = 0
        self.retried = 0
        self._plain: deque[TaskId] = deque()  # those that are ready, of priority 0
        self._others: dict[int, deque[TaskId]] = {}  # likewise, by priority; none is empty
        self._order: list[int] = []  # a heap of their priorities, negated
        self._prior = 0  # how many are in them: callers ask, while the supervisor changes them
        self._withdrawn: set[TaskId] = set()  # those that are settled, and still in one of the two
        self._newest = TaskId(0)  # that was ever taken from the plain ones, which come in their order
        self._back: set[TaskId] = set()  # those that were taken, and are in one of the two again
        self._mixed = False  # whether there was ever a priority

    @property
    def outstanding(self) -> int:
        return self.submitted - self.settled

    @property
    def ready(self) -> int:
        """How many could be given to any worker now."""
        return len(self._plain) + self._prior - len(self._withdrawn)

    @property
    def waiting(self) -> int:
        return self.ready + len(self.suspects) + len(self.delayed)

    def submit(self, tasks: Sequence[TaskId], options: Mapping[TaskId, TaskOptions]) -> None:
        self.submitted += len(tasks)
        if not options:
            self._plain.extend(tasks)
            return
        self.options.update(options)
        self._mixed = self._mixed or any(own.priority for own in options.values())
        for task in tasks:
            self._queue_for(task).append(task)

    def submit_taken(self, task: TaskId) -> None:
        """As :meth:`submit` and :meth:`take` of one while no other is ready."""
        self.submitted += 1
        self._newest = task

    def take(self, count: int) -> list[TaskId]:
        """The next ``count`` ready tasks, at the most: higher priorities first, then older ones."""
        tasks = self._pop(count)
        while self._withdrawn and (gone := self._withdrawn.intersection(tasks)):
            self._withdrawn -= gone
            tasks = [task for task in tasks if task not in gone]
            tasks += self._pop(count - len(tasks))
        return tasks

    def _pop(self, count: int) -> list[TaskId]:
        plain = self._plain
        if not self._order:
            tasks = [plain.popleft() for _ in range(min(count, len(plain)))]
            if tasks and tasks[-1] > self._newest:
                self._newest = tasks[-1]
        else:
            tasks = self._pop_by_priority(count)
        if self._back:
            self._back.difference_update(tasks)
        return tasks

    def _pop_by_priority(self, count: int) -> list[TaskId]:
        plain, order = self._plain, self._order
        tasks: list[TaskId] = []
        while len(tasks) < count and (plain or order):
            first = -order[0] if order else 0
            if (plain and first < 0) or not order:
                tasks.append(plain.popleft())
                self._newest = max(self._newest, tasks[-1])
                continue
            queue = self._others[first]
            tasks.append(queue.popleft())
            self._prior -= 1
            if not queue:
                del self._others[-heappop(order)]
        return tasks

    def withdraw(self, task: TaskId) -> bool:
        """Whether it waits: then it is not taken any more. The caller settles it."""
        if task in self.suspects:
            self.suspects.remove(task)
            return True
        for place, (_, delayed) in enumerate(self.delayed):
            if delayed == task:
                del self.delayed[place]
                heapify(self.delayed)
                return True
        if task in self._withdrawn or not self._is_ready(task):
            return False
        self._back.discard(task)
        self._withdrawn.add(task)
        return True

    def _is_ready(self, task: TaskId) -> bool:
        # Looking through the queues takes 10 ns a task of a million; a pool that has no priorities can do without.
        if self._mixed:
            priority = self.of(task).priority
            return task in (self._others.get(priority, ()) if priority else self._plain)
        return task > self._newest or task in self._back

    def put_back(self, tasks: Iterable[TaskId]) -> None:
        """To the front of their equals, in their order: they had their turn already."""
        for task in reversed(list(tasks)):
            queue = self._queue_for(task)
            queue.appendleft(task)
            if queue is not self.suspects:
                self._back.add(task)

    def try_again(self, task: TaskId, at: float | None = None, *, suspect: bool = False) -> None:
        """It goes to the front, now or at a later time."""
        self.retried += 1
        if suspect:
            self.isolated.add(task)
        if at is not None:
            heappush(self.delayed, (at, task))
        else:
            self.put_back([task])

    def wake(self, now: float) -> None:
        """Delayed tasks whose time has come go to the front, the longest due first."""
        due = []
        while self.delayed and self.delayed[0][0] <= now:
            due.append(heappop(self.delayed)[1])
        self.put_back(due)

    def _queue_for(self, task: TaskId) -> deque[TaskId]:
        """Where it is to be put now; it is counted already."""
        if task in self.isolated:
            return self.suspects
        priority = self.of(task).priority if self.options else 0
        if not priority:
            return self._plain
        self._prior += 1
        if priority not in self._others:
            self._others[priority] = deque()
            heappush(self._order, -priority)
        return self._others[priority]

    def of(self, task: TaskId) -> TaskOptions:
        return self.options.get(task, _PLAIN)

    def attempts(self, task: TaskId) -> int:
        """Attempts so far, with the one that has just ended."""
        return self.tried.get(task, 0) + 1

    def count_attempt(self, task: TaskId) -> int:
        """One more attempt is over; how many that makes."""
        self.tried[task] = count = self.tried.get(task, 0) + 1
        return count

    def settle(self, task: TaskId) -> None:
        self.settled += 1
        if self.tried:
            self.tried.pop(task, None)
        if self.options:
            self.options.pop(task, None)
        if self.isolated:
            self.isolated.discard(task)
        if self.unwanted:
            self.unwanted.discard(task)

    def settle_all(self, dispatches: Sequence[tuple[TaskId, object]]) -> None:
        if self.tried or self.options or self.isolated or self.unwanted:
            for task, _ in dispatches:
                self.settle(task)
        else:
            self.settled += len(dispatches)

    def drop_all(self) -> list[TaskId]:
        """Every waiting task, in the order of acceptance."""
        tasks = sorted([*self.take(self.ready), *self.suspects, *(task for _, task in self.delayed)])
        self.suspects.clear()
        self.delayed.clear()
        return tasks
