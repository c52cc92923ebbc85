"""The same model on every worker from the first step on."""

import hashlib
import json
from collections.abc import Callable, Mapping
from itertools import zip_longest

import torch

from distrain.errors import ConfigError, ProgramError
from distrain.numerics import aligned, initialization_seed, seed_generators
from distrain.parallel.communicator import gather_bytes
from distrain.parallel.digest import tensor_digests
from distrain.parallel.world import World

ModelSource = torch.nn.Module | Callable[[], torch.nn.Module]
"""A module, or a function that builds one."""


def build_model(source: ModelSource, seed: int, world: World) -> torch.nn.Module:
    """The model on this worker's device, with equal weights on all workers.

    A function is called under the run's seed, on every worker; a ready module gets the weights of
    rank 0.

    Raises:
        ConfigError: what was given is neither; or the models differ in structure: the first
            parameter that does is named, and how it differs.
        ProgramError: the function built other weights elsewhere, so it is not a function of the
            seed; the first parameter that differs is named.
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
            f"the models of ranks {strange} have other parameters than that of rank 0: "
            f"{_differences(_described(model), strange[0], world)}; build the same model on every "
            "worker"
        )
    strange = _differing_ranks(bytes.fromhex(weights_digest(model)), world)
    if not strange:
        return
    if not may_differ:
        digests = tensor_digests(model.state_dict())
        raise ProgramError(
            f"the function that builds the model gave other weights on ranks {strange} than on "
            f"rank 0: {_differences(digests, strange[0], world)}; draw random numbers from torch's "
            "generators only, which are seeded before it is called, or pass a module, whose "
            "weights are taken from rank 0"
        )
    for tensor in model.state_dict().values():
        world.communicator.broadcast(tensor)


def refuse_differences(given: Mapping[str, object], world: World) -> None:
    """Refuses workers that were given different things: they would not do the same exchanges.

    Args:
        given: By name, what has to be the same, each with a `repr` that tells.
        world: All workers call this.

    Raises:
        ConfigError: on all workers; names the first that differs.
    """
    if world.size == 1:
        return
    described = {name: [repr(value)] for name, value in given.items()}
    digest = hashlib.sha256(json.dumps(described).encode()).digest()
    strange = _differing_ranks(digest, world)
    if strange:
        raise ConfigError(
            f"ranks {strange} were given another run than rank 0: "
            f"{_differences(described, strange[0], world)}; give every worker the same"
        )


def _differing_ranks(digest: bytes, world: World) -> list[int]:
    mine = torch.frombuffer(bytearray(digest), dtype=torch.uint8).to(world.device)
    everyone = world.communicator.all_gather(mine)
    return torch.nonzero((everyone != everyone[0]).any(dim=1)).flatten().tolist()


def _described(model: torch.nn.Module) -> dict[str, list[str]]:
    """Kind, shape, dtype and whether it is trained, by tensor."""
    described = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        trained = "trained" if tensor.requires_grad else "frozen"
        described[name] = [
            "a parameter" if is_parameter else "a buffer",
            f"of shape {tuple(tensor.shape)}",
            str(tensor.dtype),
            *([trained] if is_parameter else []),
        ]
    return described


def _differences(mine: Mapping[str, object], rank: int, world: World) -> str:
    """How that rank's description of its tensors differs from rank 0's.

    A closing exchange, which all workers enter since all saw the same digests.
    """
    told = gather_bytes(json.dumps(mine).encode(), world.communicator, world.device)
    return first_difference(json.loads(told[0]), json.loads(told[rank]), rank)


def first_difference(first: Mapping[str, object], other: Mapping[str, object], rank: int) -> str:
    """The first tensor that rank 0 and another describe in two ways, and how it differs.

    Args:
        first: By tensor, in order, what rank 0 has: texts to name, or a digest of its values.
        other: The same of the other.
        rank: The other.
    """
    for name, ours in first.items():
        if name not in other:
            return f"{name} is missing on rank {rank}"
        theirs = other[name]
        if ours == theirs:
            continue
        if isinstance(ours, list) and isinstance(theirs, list):
            pairs = zip_longest(ours, theirs, fillvalue="nothing")
            there, here = next(pair for pair in pairs if pair[0] != pair[1])
            return f"{name} is {there} on rank 0 and {here} on rank {rank}"
        return f"the values of {name} differ"
    for name in other:
        if name not in first:
            return f"{name} is on rank {rank} alone"
    ours, theirs = next(pair for pair in zip(first, other, strict=True) if pair[0] != pair[1])
    return f"{ours} comes on rank 0 where {theirs} comes on rank {rank}"
