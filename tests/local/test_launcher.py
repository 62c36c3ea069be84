"""What the system refuses, or another thread changes meanwhile, stops neither a start nor an end."""

from __future__ import annotations

import errno
import os
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from mpms import MPMS
from mpms.ids import WorkerId
from mpms.local.launcher import Launcher, _environment
from mpms.local.loop import Loop
from mpms.local.servers import Server
from mpms.local.shipment import Shipment
from mpms.wire.messages import Job

from .helpers import PATIENCE, until


def test_an_environment_that_changes_while_it_is_read_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Changing(dict[str, str]):
        looks = 0

        def keys(self) -> Any:
            self.looks += 1
            return [*super().keys(), "REMOVED"] if self.looks == 1 else super().keys()

        def __iter__(self) -> Any:  # so that dict() asks for one after the other
            return iter(self.keys())

    environ = Changing(HOME="here")
    monkeypatch.setattr(os, "environ", environ)
    assert _environment() == {"HOME": "here"}
    assert environ.looks == 2


def test_a_server_whose_number_is_somebody_else_s_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    sock: Any = None
    Server(sock, 2**22 + 1).kill()


def test_a_birth_waits_while_too_many_descriptors_are_under_way() -> None:
    sent = list[int]()

    def sendmsg(parts: list[bytes], rights: list[tuple[int, int, Any]]) -> int:
        if not sent:
            sent.append(0)
            raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
        sent.append(len(rights[0][2]))
        return sum(map(len, parts))

    launcher = Launcher(Shipment("forkserver", Job(function=abs, threads=1)))
    launcher._loaded = True
    launcher._server = server = SimpleNamespace(  # type: ignore[assignment]
        socket=SimpleNamespace(sendmsg=sendmsg), end=lambda: None
    )
    assert server is not None
    link = launcher.start(WorkerId(1), "mpms-launcher-p1")
    try:
        assert sent == [0]
        assert launcher.wants_write
        launcher.flush()
        assert sent == [0, 4]
        assert not launcher.wants_write
    finally:
        launcher.close()
        link.close()


def test_a_pool_ends_though_the_program_has_closed_its_descriptors(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    close = Loop.close

    def fail(self: Loop) -> None:
        close(self)
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(Loop, "close", fail)
    pool = MPMS(abs, processes=1, threads=1)
    pool.put(-1)
    pool.close()
    assert [result for _, result in pool.iter_results()] == [1]
    joining = threading.Thread(target=pool.join, daemon=True)
    joining.start()
    joining.join(PATIENCE)
    assert not joining.is_alive()
    until(lambda: "can't close all that it had open" in caplog.text)
