"""The process that measures one contestant, or checks it: started anew for every measurement.

    python -m benchmarks.loading.measure TASK ROWS CACHE CONTESTANT THREADS SECONDS OUT.json

With 0 seconds the contestant is checked instead.
"""

import json
import os
import random
import sys
import time
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from benchmarks.loading import contestants
from benchmarks.loading.check import check
from benchmarks.loading.task import Epochs, Task, make_data


def samples_per_s(task: Task, epochs: Epochs, seconds: float) -> float:
    """Over at least so many seconds, after so many or an epoch, whichever is less, unmeasured.

    The first batch is waited for before those begin. Each batch is dropped as soon as it is there.
    """
    stream = chain.from_iterable(epochs)
    seen = len(next(stream)[1])
    warm = time.perf_counter() + seconds
    while seen < task.rows and time.perf_counter() < warm:
        seen += len(next(stream)[1])
    counted, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        counted += len(next(stream)[1])
    return counted / took


def main() -> None:
    name, rows, cache, contestant, threads, seconds, out = sys.argv[1:]
    seed = 0
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    task = make_data(Path(cache), name, int(rows))
    make = contestants.load(contestant)
    folder = task.folder.parent / contestant
    epochs = make(task, folder, int(threads))
    found = {}
    if float(seconds) == 0:
        check(task, epochs, complete=contestants.CONTESTANTS[contestant].complete)
    else:
        found["samples_per_s"] = samples_per_s(task, epochs, float(seconds))
    Path(out).write_text(json.dumps(found))
    sys.stdout.flush()
    # Some libraries wait for minutes, or hang, when what they prefetch is given up.
    os._exit(0)


if __name__ == "__main__":
    main()
