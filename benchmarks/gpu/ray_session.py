"""Ray for the parts that need it: the one that runs, or a private one that ends with the part."""

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.gpu.bench import Bench
from jobs.common import join_ray, leave_ray


@contextmanager
def joined(bench: Bench) -> Iterator[None]:
    """Joins the Ray that this process already uses, else starts one and stops it at the end."""
    import ray

    owned = not ray.is_initialized()
    join_ray()
    bench.note("Ray's resources", ray.cluster_resources())
    try:
        yield
    finally:
        if owned:
            leave_ray()
