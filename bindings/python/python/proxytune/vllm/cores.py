"""The cores of vLLM's CPU worker."""

import contextlib
import os
import re


@contextlib.contextmanager
def all_cores():
    """Threads started in here may run on all cores of vLLM's CPU worker, which has bound this one to its first."""
    cores = worker_cores()
    if not cores:
        yield
        return
    bound = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, bound)


def worker_cores():
    """The cores that vLLM tells OpenMP to bind its threads to, as `0 1`, `{0,1}` or `proclist=[0,1]`, by library."""
    for name in ("GOMP_CPU_AFFINITY", "OMP_PLACES", "KMP_AFFINITY"):
        listed = re.search(r"\d[\d\s,-]*", os.environ.get(name, ""))
        if listed and hasattr(os, "sched_setaffinity"):
            ranges = (item.split("-") for item in re.split(r"[\s,]+", listed[0].strip(" ,")))
            return {core for ends in ranges for core in range(int(ends[0]), int(ends[-1]) + 1)}
    return set()
