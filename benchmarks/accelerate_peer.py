"""The digits job on Hugging Face Accelerate, as its users would write it.

It takes the process group that is there. For speed it gets gradients as views of DDP's buckets and
a fused optimizer; the data lie in memory, so that worker processes of a DataLoader would only cost.
"""

from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.digits_job import (
    CLIP_NORM,
    PER_WORKER,
    Trained,
    Training,
    Variant,
    build_net,
    fused_sgd,
    tensors,
)
from data_pipeline import Dataset


def by_accelerate(data: Dataset, world_size: int) -> Variant:
    dataset = TensorDataset(*tensors(data))

    def prepare(epochs: int) -> Training:
        views = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
        accelerator = Accelerator(cpu=True, kwargs_handlers=[views])
        net = build_net()
        model, optimizer, loader = accelerator.prepare(
            net,
            fused_sgd(net.parameters()),
            DataLoader(dataset, batch_size=PER_WORKER, shuffle=True, drop_last=True),
        )
        model.train()

        def train() -> Trained:
            seen = 0
            for _ in range(epochs):
                for x, y in loader:
                    optimizer.zero_grad()
                    accelerator.backward(nn.functional.cross_entropy(model(x), y))
                    accelerator.clip_grad_norm_(model.parameters(), CLIP_NORM)
                    optimizer.step()
                    seen += len(x) * world_size
            return Trained(seen, net)

        return train

    return prepare
