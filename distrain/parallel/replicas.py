"""The same model on every worker from the first step on."""

import hashlib
from collections.abc import Callable

import torch

from distrain.errors import ConfigError, ProgramError
from distrain.numerics import aligned, initialization_seed, seed_generators
from distrain.parallel.world import World

ModelSource = torch.nn.Module | Callable[[], torch.nn.Module]
"""A module, or a function that builds one."""


def build_model(source: ModelSource, seed: int, world: World) -> torch.nn.Module:
    """The model on this worker's device, with equal weights on all workers.

    A function is called under the run's seed, on every worker; a ready module gets the weights of
    rank 0.

    Raises:
        ConfigError: what was given is neither; or the models differ in structure.
        ProgramError: the function built other weights elsewhere, so it is not a function of the
            seed.
    """
    if isinstance(source, torch.nn.Module):
        model = source
    else:
        seed_generators(initialization_seed(seed), torch.device("cpu"))
        if world.device.type == "cuda":
            torch.cuda.manual_seed(initialization_seed(seed))
        model = source()
        if not isinstance(model, torch.nn.Module):
            raise ConfigError(f"the function that builds the model returned {type(model)}")
    for name, parameter in model.named_parameters():
        if torch.nn.parameter.is_lazy(parameter):
            raise ConfigError(
                f"parameter {name} has no shape yet (a lazy module): run the model once on a "
                "sample before it is given to the trainer, or give the sizes"
            )
    for name, value in model.state_dict().items():
        if not torch.is_tensor(value):
            raise ConfigError(
                f"the model keeps {name}, a {type(value).__name__}, beside its tensors "
                "(get_extra_state): a result and a checkpoint hold tensors alone"
            )
    model = model.to(world.device)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = aligned(tensor.data)
    if world.size > 1:
        _agree(model, world, may_differ=isinstance(source, torch.nn.Module))
    return model


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of the model's whole state."""
    digest = hashlib.sha256(_structure(model))
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _structure(model: torch.nn.Module) -> bytes:
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    state = [(name, tuple(t.shape), str(t.dtype)) for name, t in model.state_dict().items()]
    return repr((state, trainable)).encode()


def _agree(model: torch.nn.Module, world: World, *, may_differ: bool) -> None:
    structure = hashlib.sha256(_structure(model)).digest()
    strange = _differing_ranks(structure, world)
    if strange:
        raise ConfigError(
            f"the models of ranks {strange} have other parameters than that of rank 0: build the "
            "same model on every worker"
        )
    strange = _differing_ranks(bytes.fromhex(weights_digest(model)), world)
    if not strange:
        return
    if not may_differ:
        raise ProgramError(
            f"the function that builds the model gave other weights on ranks {strange} than on "
            "rank 0: draw random numbers from torch's generators only, which are seeded before it "
            "is called, or pass a module, whose weights are taken from rank 0"
        )
    for tensor in model.state_dict().values():
        world.communicator.broadcast(tensor)


def _differing_ranks(digest: bytes, world: World) -> list[int]:
    mine = torch.frombuffer(bytearray(digest), dtype=torch.uint8).to(world.device)
    everyone = world.communicator.all_gather(mine)
    return torch.nonzero((everyone != everyone[0]).any(dim=1)).flatten().tolist()
