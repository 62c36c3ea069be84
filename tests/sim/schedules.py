"""One seed, one schedule: a pool, what is asked of it, and what goes wrong; then a time without faults."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from mpms.core.fleet import Retiring, Serving
from mpms.core.limits import Limits
from mpms.core.policy import KILL_SECONDS
from mpms.ids import TaskId
from mpms.local.functions import Shipped

from .habits import RandomHabits
from .processes import Process
from .world import World, owned

__all__ = ["Schedule"]

_START_TIMEOUT = 3.0

_LONGEST = 600.0
"""Virtual seconds in which any schedule must have come to rest once nothing fails any more: the longest is some tens of
tasks of 3 s, in one thread, with a worker per task and all ends waited out."""


class Schedule:
    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.habits = RandomHabits(random)
        self.limits = _limits(random)
        self.before = owned()
        self.world = World(self.limits, self.habits, now=random.uniform(0, 1e6))
        self.world.tell("seed", seed, self.limits)
        self.chaos = random.choice([0.02, 0.3, 3.0, 8.0])
        self._plan()

    def run(self) -> None:
        world = self.world
        world.run(self.chaos)
        self._be_fair()
        world.run(_LONGEST)
        self._all_is_well()
        if not world.loop.stopped:
            world.host.close() if self.random.random() < 0.7 else world.host.stop(0.5)
            world.run(_LONGEST)
        assert world.loop.stopped, f"it does not end: {world.machine.mode}"
        self._it_ended_in_time()
        for cause, count in world.loop.crashes.items():
            world.reached[cause] += count
        world.end()
        self._nothing_is_left()

    # What goes on

    def _plan(self) -> None:
        random, host = self.random, self.world.host
        functions = [None, *(Shipped(name) for name in (b"a", b"b", b"c" * min(500, self.habits.capacity), b"d"))]
        for _ in range(random.randint(1, 6)):
            size = random.choice([0, 0, 10, 200, min(3000, 8 * self.habits.capacity)])
            count = random.choice([1, 3, 12, 40])
            some = random.choice([[None], [None], functions, [random.choice(functions)]])
            self._at_random(
                lambda count=count, size=size, some=some: host.submit(count, size, lambda: random.choice(some))
            )
        for _ in range(random.choice([0, 0, 0, 60])):
            self._at_random(lambda: host.submit(1))
        for _ in range(random.choice([0, 0, 3, 12])):
            self._at_random(self._cancels)
        faults = (
            self._dies,
            self._dies,
            self._dies_while_it_writes,
            self._freezes,
            self._freezes,
            self._hangs,
            self._grows,
        )
        seldom = (self._closes_its_descriptors, self._server_dies, self._server_dies, self._server_freezes)
        for _ in range(random.choice([0, 1, 4, 12])):
            self._at_random(random.choice(faults))
        for _ in range(random.choice([0, 0, 1, 3])):
            self._at_random(random.choice(seldom))
        if random.random() < 0.25:
            self._at_random(host.close)
        if random.random() < 0.25:
            timeout = random.choice([0.0, 0.1, 2.0])
            self._at_random(lambda: host.stop(timeout))

    def _at_random(self, act: Callable[[], None]) -> None:
        self.world.after(self.random.uniform(0, self.chaos), act)

    def _one(self) -> Process | None:
        alive = self.world.alive()
        return self.random.choice(alive) if alive and not self.habits.fair else None

    def _dies(self) -> None:
        if process := self._one():
            running = list(process.running)
            if running and self.random.random() < 0.5:
                process.die(-11, culprit=self.random.choice(running))
            else:
                process.die(self.random.choice([-9, -9, 0, 3]))

    def _dies_while_it_writes(self) -> None:
        if process := self._one():
            process.doom = self.random.randint(1, 60)

    def _freezes(self) -> None:
        if process := self._one():
            process.freeze()
            if self.random.random() < 0.6:
                self.world.after(self.random.choice([0.001, 0.1, 2.0]), process.thaw)

    def _hangs(self) -> None:
        process = self._one()
        if process and process.running:
            process.hung.add(self.random.choice(list(process.running)))

    def _grows(self) -> None:
        if process := self._one():
            process.memory += 2000

    def _cancels(self) -> None:
        random, submitted = self.random, self.world.host.submitted
        if random.random() < 0.1:
            self.world.host.cancel(None)
        elif submitted:
            count = min(submitted, random.choice([1, 1, 3, 20]))
            self.world.host.cancel([TaskId(n) for n in random.sample(range(1, submitted + 1), count)])

    def _closes_its_descriptors(self) -> None:
        if process := self._one():
            process.close_its_descriptors()

    def _server_dies(self) -> None:
        if self.world.server is not None and not self.habits.fair:
            self.world.reach("fork server lost")
            self.world.server.dies()

    def _server_freezes(self) -> None:
        server = self.world.server
        if server is not None:
            server.frozen = True
            self.world.after(self.random.choice([0.01, 1.0]), lambda: setattr(server, "frozen", False))

    def _be_fair(self) -> None:
        """Nothing fails from now on. What hangs goes on hanging where a limit is to deal with it."""
        world = self.world
        world.tell("fair")
        self.habits.fair = True
        if self.random.random() < 0.3:
            self._cancels()
        if world.server is not None:
            world.server.frozen = False
        for process in world.alive():
            process.doom = None
            if self.limits.running_limit is None:
                process.thaw()
                process.free()

    # What is true at the end

    def _all_is_well(self) -> None:
        """Nothing is waited for: every task has its outcome, and if the pool is open, it has full strength."""
        world, fleet = self.world, self.world.machine.fleet
        world.host.deliver()
        assert world.host.outstanding == 0, f"{world.host.outstanding} tasks have no outcome"
        assert not world.host.asked, f"nobody hears whether {world.host.asked} are cancelled"
        if world.host.broken is not None:
            assert self._starts_failed()
            world.reach("broke")
        elif not world.host.closed:
            serving = fleet.in_phase(Serving)
            assert len(serving) == self.limits.processes, f"{len(serving)} workers serve"
            assert all(world.processes[w.id].lives and world.processes[w.id].ready for w in serving)
            assert not any(isinstance(w.phase, Retiring) for w in fleet.workers.values())
            assert world.machine.next_deadline() is None, "it polls"
        late = {seq for process in world.processes.values() for seq in process.said} & world.host.timed_out
        if late:
            world.reach("late result")

    def _starts_failed(self) -> bool:
        """Or may have: what was killed or stopped was perhaps starting."""
        return any(
            what in ("ends", "fork server ends", "frozen", "mute")
            or (what in ("born", "fork server loads") and details[-1] != "ready")
            for _, what, details in self.world.story
        )

    def _it_ended_in_time(self) -> None:
        stop_at = self.world.host.stop_at
        if stop_at is not None and not self.world.host.broken:
            last = next(now for now, what, _ in reversed(self.world.story) if what != "ends")
            assert last <= stop_at + KILL_SECONDS + 0.2, "it was stopped, and went on"

    def _nothing_is_left(self) -> None:
        world = self.world
        assert not world.selector.keys
        assert not world.sockets, "a socket is open"
        assert owned() == self.before, "a descriptor is open"
        assert not [process.id for process in world.alive()], "a worker lives"


def _limits(random: Random) -> Limits:
    choice = random.choice
    return Limits(
        processes=random.randint(1, 3),
        threads=random.randint(1, 4),
        task_timeout=choice([None, None, 0.3, 1.0]),
        retries=choice([0, 0, 0, 2]),
        retry_backoff=choice([0.0, 0.3]),
        lifecycle=choice([None, None, 1, 5]),
        lifecycle_duration=choice([None, None, None, 1.0]),
        lifecycle_duration_hard=choice([None, None, None, 2.0]),
        watch_memory=choice([False, False, True]),
        grace=choice([0.02, 1.0]),
        start_timeout=_START_TIMEOUT,
        max_start_failures=choice([3, 5]),
    )
