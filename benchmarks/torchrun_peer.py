"""What a run under plain torchrun looks like: DDP, and torch.save every so many steps.

Started by `benchmarks.killed_runs`, which kills its workers; torchrun starts them again.

    torchrun --nproc-per-node 4 --max-restarts N torchrun_peer.py DATA FOLDER EVERY_STEPS
"""

import json
import sys
import time
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.digits_job import CLIP_NORM, PER_WORKER, build_net, fused_sgd, tensors
from data_pipeline import Dataset


def main(data: Path, folder: Path, every_steps: int) -> None:
    distributed.init_process_group("gloo")
    rank, size = distributed.get_rank(), distributed.get_world_size()
    torch.manual_seed(0)
    model = DistributedDataParallel(build_net(), gradient_as_bucket_view=True)
    optimizer = fused_sgd(model.parameters())
    images, labels = tensors(Dataset(data, "train"))
    step, newest = 0, folder / "checkpoint.pt"
    if newest.exists():
        state = torch.load(newest)
        step = state["step"]
        model.module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    batch = PER_WORKER * size
    with (folder / "events.jsonl").open("a", buffering=1) as log:

        def note(event: str, **fields: object) -> None:
            if rank == 0:
                log.write(json.dumps({"event": event, **fields, "time": time.time()}) + "\n")

        note("begin")
        note("resume", step=step)
        per_epoch = len(labels) // batch
        while True:
            epoch, number = divmod(step, per_epoch)
            order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
            rows = order[number * batch :][rank * PER_WORKER : (rank + 1) * PER_WORKER]
            optimizer.zero_grad()
            loss: torch.Tensor = nn.functional.cross_entropy(model(images[rows]), labels[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            step += 1
            note("step", step=step)
            if step % every_steps == 0 and rank == 0:
                state = {"step": step, "model": model.module.state_dict()}
                aside = newest.with_suffix(".partial")
                torch.save({**state, "optimizer": optimizer.state_dict()}, aside)
                aside.replace(newest)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
