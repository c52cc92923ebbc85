"""The digits job on Lightning's Trainer and on Lightning Fabric, as their users would write it.

Both take the process group that is there, the launcher being torch elastic's. They get what their
documentation has for speed: `barebones=True` (no logger, checkpoints, progress bar, summary or
sanity check), gradients as views of DDP's buckets, and a fused optimizer. The data lie in memory,
so that worker processes of a DataLoader would only cost.
"""

import logging
import warnings
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.fabric.strategies import DDPStrategy as FabricDDPStrategy
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
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


class _DigitsModule(LightningModule):  # type: ignore[misc] # mypy doesn't look into Lightning
    def __init__(self) -> None:
        super().__init__()
        self.net = build_net()

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return fused_sgd(self.parameters())


def _loader(dataset: TensorDataset) -> DataLoader[Any]:
    """Lightning gives it a DistributedSampler."""
    return DataLoader(dataset, batch_size=PER_WORKER, shuffle=True, drop_last=True)


def _quiet() -> None:
    """Its advice, among it more worker processes for the DataLoader, is not for this job."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\.")


def by_lightning(data: Dataset, world_size: int) -> Variant:
    _quiet()
    dataset = TensorDataset(*tensors(data))

    def prepare(epochs: int) -> Training:
        module = _DigitsModule()
        trainer = Trainer(
            accelerator="cpu",
            devices=world_size,
            strategy=DDPStrategy(process_group_backend="gloo", gradient_as_bucket_view=True),
            plugins=[TorchElasticEnvironment()],
            max_epochs=epochs,
            gradient_clip_val=CLIP_NORM,
            barebones=True,
        )
        loader = _loader(dataset)

        def train() -> Trained:
            trainer.fit(module, loader)
            return Trained(trainer.global_step * PER_WORKER * world_size, module.net)

        return train

    return prepare


def by_fabric(data: Dataset, world_size: int) -> Variant:
    _quiet()
    dataset = TensorDataset(*tensors(data))

    def prepare(epochs: int) -> Training:
        fabric = Fabric(
            accelerator="cpu",
            devices=world_size,
            strategy=FabricDDPStrategy(process_group_backend="gloo", gradient_as_bucket_view=True),
            plugins=[TorchElasticEnvironment()],
        )
        fabric.launch()
        net = build_net()
        model, optimizer = fabric.setup(net, fused_sgd(net.parameters()))
        loader = fabric.setup_dataloaders(_loader(dataset))

        def train() -> Trained:
            seen = 0
            for _ in range(epochs):
                for x, y in loader:
                    optimizer.zero_grad()
                    fabric.backward(nn.functional.cross_entropy(model(x), y))
                    fabric.clip_gradients(model, optimizer, max_norm=CLIP_NORM)
                    optimizer.step()
                    seen += len(x) * world_size
            return Trained(seen, net)

        return train

    return prepare
