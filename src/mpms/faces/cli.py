"""The command line: ``mpms demo``, ``mpms stack``, ``mpms --version``.

Only what the options mean is here; what a command does is in a module of its own, imported when it is
asked for.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata

from ..ids import START_METHODS

__all__ = ["main"]

INTERRUPTED = 128 + 2  # what a shell reports for a command that ended by SIGINT

# In chaos a worker lives for a few tenths of a second. A file of 10,000 lines takes as long, and longer when it shares
# its worker with others: it needs tens of attempts on a busy machine; nearly all files need one or two.
CHAOS_RETRIES = 1000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default this process's own); the exit status is returned.

    0: done; 1: the totals under chaos were not those of the clean run; 2: bad options (argparse exits with
    it); 130: interrupted by Ctrl-C.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        status: int = options.run(parser, options)
        return status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mpms", description="A pool of processes times threads.")
    parser.add_argument("--version", action="version", version=f"mpms {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo",
        help="parse every Python source file of this Python in a pool",
        description="Parse every Python source file of this Python in a pool, and count what is in them.",
    )
    demo.set_defaults(run=_demo)
    demo.add_argument(
        "--chaos",
        action="store_true",
        help="do it twice, the second time with a worker killed every 100 ms, and compare the totals",
    )
    demo.add_argument(
        "-p",
        "--processes",
        type=_at_least(1),
        metavar="N",
        help="worker processes (default: one per processor)",
    )
    demo.add_argument(
        "-t",
        "--threads",
        type=_at_least(1),
        default=4,
        metavar="N",
        help="threads in each (default: %(default)s)",
    )
    demo.add_argument(
        "--retries",
        type=_at_least(0),
        metavar="N",
        help=f"how often a file whose worker died is tried again (default: 0; {CHAOS_RETRIES} with --chaos)",
    )
    demo.add_argument(
        "--start-method",
        choices=START_METHODS,
        help="how workers are started (default: the pool's own)",
    )
    demo.add_argument(
        "--engine",
        type=_address,
        metavar="dask://HOST:PORT",
        help="run on a cluster of Dask, on whose machines the files have to be",
    )
    demo.add_argument("--limit", type=_at_least(1), metavar="N", help="only the first N files")
    demo.add_argument(
        "--paths",
        nargs="+",
        type=_directory,
        metavar="DIR",
        help="the files below these instead (default: standard library and site-packages)",
    )
    demo.add_argument(
        "--no-progress",
        dest="progress",
        action="store_false",
        help="no progress line (there is none anyway if stderr is not a terminal)",
    )

    stack = commands.add_parser(
        "stack",
        help="show where every thread of a running pool's workers is",
        description="Show where every thread of every worker is, with what it runs and since when; also while C code "
        "holds the GIL. Linux only.",
    )
    stack.set_defaults(run=_stack)
    stack.add_argument(
        "pid", type=_at_least(1), metavar="PID", help="the process that has the pool, or one of its workers"
    )
    return parser


def _demo(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from . import demo

    roots = options.paths or demo.installed()
    files = demo.find_sources(roots, limit=options.limit)
    if not files:
        parser.error(f"no *.py file below {', '.join(roots)}")
    if options.engine and (options.chaos or options.start_method == "fork"):
        parser.error("--engine: no processes of other machines are killed or forked: leave --chaos and fork out")
    retries = options.retries
    if retries is None:
        retries = CHAOS_RETRIES if options.chaos else 0
    job = demo.Job(
        files=files,
        processes=options.processes,
        threads=options.threads,
        retries=retries,
        start_method=options.start_method,
        engine=options.engine,
        progress=options.progress and sys.stderr.isatty(),
    )
    try:
        return demo.compare(job) if options.chaos else demo.show(job)
    except (ImportError, OSError) as error:
        if not options.engine:
            raise
        parser.error(f"--engine: {error}")


def _stack(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from ..local.stacks import stacks_of_process

    try:
        workers = stacks_of_process(options.pid)
    except FileNotFoundError:
        print(f"mpms stack: no process {options.pid}, or no /proc here", file=sys.stderr)
        return 1
    except PermissionError:
        print(f"mpms stack: the process {options.pid} is somebody else's", file=sys.stderr)
        return 1
    if not workers:
        print(f"mpms stack: the process {options.pid} has no workers of mpms", file=sys.stderr)
        return 1
    print("\n\n".join(map(str, workers)))
    return 0


def _version() -> str:
    try:
        return metadata.version("mpms")
    except metadata.PackageNotFoundError:  # run from a source tree that isn't installed
        return "(not installed)"


class _at_least:
    """An argparse type: whole numbers from `least` on."""

    def __init__(self, least: int) -> None:
        self.least = least

    def __call__(self, text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = self.least - 1
        if number < self.least:
            raise argparse.ArgumentTypeError(f"a whole number from {self.least} on is needed, not {text!r}")
        return number


def _address(text: str) -> str:
    if not text.startswith("dask://") or text == "dask://":
        raise argparse.ArgumentTypeError(f"dask://HOST:PORT is needed, not {text!r}")
    return text


def _directory(text: str) -> str:
    if not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"not a directory: {text!r}")
    return text
