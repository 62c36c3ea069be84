"""The other pools, each in the best of its documented configurations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any

from .system import Futures, System

__all__ = [
    "Billiard",
    "ConcurrentFutures",
    "Dask",
    "Joblib",
    "Loky",
    "Mpire",
    "MultiprocessingPool",
    "Pebble",
    "Ray",
    "Threads",
]


class ConcurrentFutures(Futures):
    name, title, module = "concurrent.futures", "concurrent.futures", "concurrent.futures"
    imports = "from concurrent.futures import ProcessPoolExecutor"
    first = """
from concurrent.futures import ProcessPoolExecutor
with ProcessPoolExecutor(2) as pool:
    pool.submit(same, 1).result()
    tell()
"""
    can_rotate = True

    def open(self) -> None:
        from concurrent.futures import ProcessPoolExecutor

        options: dict[str, Any] = {"max_tasks_per_child": self.shape.rotate} if self.shape.rotate else {}
        self.pool = ProcessPoolExecutor(self.shape.single, **options)


class MultiprocessingPool(System):
    name, title, module = "multiprocessing.Pool", "multiprocessing.Pool", "multiprocessing"
    imports = "from multiprocessing import Pool"
    first = """
from multiprocessing import Pool
pool = Pool(2)
pool.apply(same, (1,))
tell()
pool.close()
pool.join()
"""
    can_rotate = True

    def open(self) -> None:
        from multiprocessing import Pool

        self.pool: Any = Pool(self.shape.single, maxtasksperchild=self.shape.rotate)

    def put(self, argument: Any) -> None:
        self.pool.apply_async(self.function, (argument,), callback=self.done, error_callback=self.done)

    def call(self, argument: Any) -> Any:
        return self.pool.apply(self.function, (argument,))

    def map(self, items: Sequence[Any]) -> list[Any]:
        result: list[Any] = self.pool.map(self.function, items)
        return result

    def join(self) -> None:
        self.pool.close()
        self.pool.join()


class Threads(Futures):
    name, title, module = "threads", "ThreadPoolExecutor", "concurrent.futures"
    imports = "from concurrent.futures import ThreadPoolExecutor"
    first = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool:
    pool.submit(same, 1).result()
    tell()
"""
    kind = "threads"
    has_threads = True

    def open(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self.pool = ThreadPoolExecutor(self.slots)


class Loky(Futures):
    name, title, module, distribution = "loky", "loky", "loky", "loky"
    imports = "from loky import ProcessPoolExecutor"
    first = """
from loky import ProcessPoolExecutor
with ProcessPoolExecutor(2) as pool:
    pool.submit(same, 1).result()
    tell()
"""

    def open(self) -> None:
        from loky import ProcessPoolExecutor

        self.pool = ProcessPoolExecutor(self.shape.single)


class Pebble(Futures):
    name, title, module, distribution = "pebble", "pebble", "pebble", "Pebble"
    imports = "from pebble import ProcessPool"
    first = """
from pebble import ProcessPool
with ProcessPool(2) as pool:
    pool.schedule(same, args=[1]).result()
    tell()
"""
    can_rotate = True

    def open(self) -> None:
        from pebble import ProcessPool

        self.pool = ProcessPool(self.shape.single, max_tasks=self.shape.rotate or 0)

    def put(self, argument: Any) -> None:
        self.pool.schedule(self.function, args=(argument,)).add_done_callback(self._told)

    def call(self, argument: Any) -> Any:
        return self.pool.schedule(self.function, args=(argument,)).result()

    def map(self, items: Sequence[Any]) -> list[Any]:
        return list(self.pool.map(self.function, items, chunksize=self.chunk(items)).result())

    def join(self) -> None:
        self.pool.close()
        self.pool.join()


class Mpire(System):
    name, title, module, distribution = "mpire", "mpire", "mpire", "mpire"
    imports = "from mpire import WorkerPool"
    first = """
from mpire import WorkerPool
with WorkerPool(2) as pool:
    pool.apply(same, (1,))
    tell()
"""
    can_rotate = True

    def open(self) -> None:
        from mpire import WorkerPool

        self.pool: Any = WorkerPool(self.shape.single, keep_alive=True)

    def put(self, argument: Any) -> None:
        self.pool.apply_async(self.function, (argument,), callback=self.done, error_callback=self.done)

    def stream(self, arguments: Iterable[Any]) -> None:
        if self.shape.rotate is None:
            super().stream(arguments)
            return
        # apply_async has no lifespan.
        for result in self.pool.imap_unordered(
            self.function, list(arguments), chunk_size=1, worker_lifespan=self.shape.rotate
        ):
            self.done(result)

    def call(self, argument: Any) -> Any:
        return self.pool.apply(self.function, (argument,))

    def map(self, items: Sequence[Any]) -> list[Any]:
        # It spreads what is a tuple.
        each = [(item,) for item in items] if isinstance(items[0], tuple) else items
        result: list[Any] = self.pool.map(self.function, each, chunk_size=self.chunk(items))
        return result

    def join(self) -> None:
        self.pool.stop_and_join()


class Joblib(System):
    name, title, module, distribution = "joblib", "joblib", "joblib", "joblib"
    imports = "from joblib import Parallel, delayed"
    first = """
from joblib import Parallel, delayed
Parallel(2)([delayed(same)(1)])
tell()
"""
    has_put = False

    def open(self) -> None:
        from joblib import Parallel, delayed

        self.delayed: Any = delayed(self.function)
        self.parallel: Any = Parallel(self.shape.single).__enter__()  # the context keeps the workers
        self.streaming: Any = Parallel(self.shape.single, return_as="generator_unordered")

    def stream(self, arguments: Iterable[Any]) -> None:
        # It takes them from the iterator as it needs them.
        delayed, done = self.delayed, self.done
        for result in self.streaming(delayed(argument) for argument in arguments):
            done(result)

    feed = stream

    def call(self, argument: Any) -> Any:
        return self.parallel([self.delayed(argument)])[0]

    def map(self, items: Sequence[Any]) -> list[Any]:
        delayed = self.delayed
        result: list[Any] = self.parallel(delayed(item) for item in items)  # batches of a size that it finds itself
        return result

    def join(self) -> None:
        from joblib.externals.loky import get_reusable_executor

        self.parallel.__exit__(None, None, None)
        get_reusable_executor().shutdown(wait=True)


class Billiard(MultiprocessingPool):
    name, title, module, distribution = "billiard", "billiard", "billiard", "billiard"
    imports = "from billiard import Pool"
    first = MultiprocessingPool.first.replace("from multiprocessing", "from billiard")

    def open(self) -> None:
        from billiard import Pool

        self.pool = Pool(self.shape.single, maxtasksperchild=self.shape.rotate)


class Dask(System):
    name, title, module, distribution = "dask", "Dask", "distributed", "distributed"
    imports = "from distributed import Client, LocalCluster"
    first = """
from distributed import Client, LocalCluster
with LocalCluster(n_workers=2, threads_per_worker=4, dashboard_address=None) as cluster, Client(cluster) as client:
    client.submit(same, 1).result()
    tell()
"""
    has_threads, has_futures = True, True

    def open(self) -> None:
        import logging

        from distributed import Client, LocalCluster

        self.cluster: Any = LocalCluster(
            n_workers=self.shape.processes,
            threads_per_worker=self.shape.threads,
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        )
        self.client: Any = Client(self.cluster)
        self.pending: set[Any] = set()  # one that is collected is cancelled

    def put(self, argument: Any) -> None:
        future = self.client.submit(self.function, argument, pure=False)
        self.pending.add(future)
        future.add_done_callback(self._told)

    def _told(self, future: Any) -> None:
        error = future.exception()
        self.done(future.result() if error is None else error)
        self.pending.discard(future)

    def stream(self, arguments: Iterable[Any]) -> None:
        # A callback would ask the workers for one result at a time.
        from distributed import as_completed

        futures = [self.client.submit(self.function, argument, pure=False) for argument in arguments]
        for batch in as_completed(futures, with_results=True, raise_errors=False).batches():
            for future, result in batch:
                self.done(future.exception() if future.status == "error" else result)

    def call(self, argument: Any) -> Any:
        return self.client.submit(self.function, argument, pure=False).result()

    def map(self, items: Sequence[Any]) -> list[Any]:
        from dask import bag

        whole = bag.from_sequence(items, npartitions=self.slots).map(self.function)
        return list(self.client.compute(whole).result())

    def join(self) -> None:
        self.client.close()
        self.cluster.close()


class Ray(System):
    name, title, module, distribution = "ray", "Ray", "ray", "ray"
    imports = "import ray"
    first = """
import ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
ray.get(ray.remote(same).remote(1))
tell()
ray.shutdown()
"""
    has_threads = True
    BATCH = 1000

    def open(self) -> None:
        import ray

        function = self.function

        class Runner:
            def run(self, argument: Any) -> Any:
                return function(argument)

        self.ray: Any = ray
        ray.init(num_cpus=self.shape.processes, include_dashboard=False, log_to_driver=False, logging_level="error")
        # Actors with threads: its tasks have none, and cost more.
        remote = ray.remote(num_cpus=1, max_concurrency=self.shape.threads, max_restarts=-1)(Runner)
        self.actors = [remote.remote() for _ in range(self.shape.processes)]
        self.turn = 0
        self.maps: Any = None

    def _send(self, argument: Any) -> Any:
        self.turn += 1
        return self.actors[self.turn % len(self.actors)].run.remote(argument)

    def put(self, argument: Any) -> None:
        self._send(argument).future().add_done_callback(self._told)

    def _told(self, future: Future[Any]) -> None:
        error = future.exception()
        self.done(future.result() if error is None else error)

    def stream(self, arguments: Iterable[Any]) -> None:
        sent = [self._send(argument) for argument in arguments]
        for at in range(0, len(sent), self.BATCH):
            for result in self.ray.get(sent[at : at + self.BATCH]):
                self.done(result)

    def call(self, argument: Any) -> Any:
        return self.ray.get(self._send(argument))

    def map(self, items: Sequence[Any]) -> list[Any]:
        if self.maps is None:
            from ray.util.multiprocessing import Pool

            # It has actors of its own, which need the processors.
            for actor in self.actors:
                self.ray.kill(actor)
            self.maps = Pool(self.shape.processes)
        result: list[Any] = self.maps.map(self.function, items)
        return result

    def join(self) -> None:
        self.ray.shutdown()
