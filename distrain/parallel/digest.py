"""Digests of tensors that any single flipped bit changes, cheap enough for a run that goes on.

A tensor's bytes are read as int32 words `x[i]`; the digest is the sum of `x[i] * odd[i]` modulo
2^64, with an odd number of its own for each position. Bit `b` of word `i` moves it by
`2^b * odd[i]`, which is no multiple of 2^64, so one flipped bit is seen for certain; so are several
in one word. Several words that change together cancel out by a chance of about 2^-33. Sums of
whole numbers have the same bits in any order and on any device.

This finds accidents and no forgeries: what has to stand up to intent is digested by SHA-256.
"""

import hashlib
from collections.abc import Mapping
from functools import cache

import torch

_WORDS = 4096
"""Words of a row; each row's sum is multiplied by an odd number of its own."""

_ROWS_ON_CPU, _ROWS_ELSEWHERE = 64, 4096
"""Rows widened to 64 bits at a time: what a CPU's cache holds, and what keeps a GPU busy."""

_GOLDEN, _MIX = 0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9


def tensor_digest(tensor: torch.Tensor) -> torch.Tensor:
    """The digest of a tensor's bytes in the order of its elements: `()`, int64, on its device."""
    words = _words(tensor.detach())
    num_rows, rest = divmod(len(words), _WORDS)
    device = tensor.device
    columns = _columns(device)
    # A short last row comes first: most tensors of most models have no other.
    total = (words[num_rows * _WORDS :] * columns[:rest]).sum()
    body = words[: num_rows * _WORDS].view(num_rows, _WORDS)
    at_once = _ROWS_ON_CPU if device.type == "cpu" else _ROWS_ELSEWHERE
    wide = torch.empty(min(num_rows, at_once), _WORDS, dtype=torch.int64, device=device)
    for start in range(0, num_rows, at_once):
        rows = wide[: num_rows - start].copy_(body[start : start + at_once])
        # GPUs have no matrix product of whole numbers.
        sums = torch.mv(rows, columns) if device.type == "cpu" else rows.mul_(columns).sum(1)
        total += (sums * _odd(_WORDS + start, len(rows), device)).sum()
    return total


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes as int32 words `(N,)`, the last padded with zeros; a view where that can be."""
    octets = tensor.contiguous().reshape(-1).view(torch.uint8)
    if octets.numel() % 4 or octets.storage_offset() % 4:
        padded = octets.new_zeros(-(-octets.numel() // 4) * 4)
        padded[: octets.numel()] = octets
        octets = padded
    return octets.view(torch.int32)


def _odd(start: int, count: int, device: torch.device) -> torch.Tensor:
    """The odd numbers of the places from `start` on: `(count,)`, int64."""
    mixed = torch.arange(start + 1, start + count + 1, dtype=torch.int64, device=device) * _GOLDEN
    mixed = (mixed ^ (mixed >> 30)) * _MIX
    return (mixed ^ (mixed >> 27)) | 1


@cache
def _columns(device: torch.device) -> torch.Tensor:
    return _odd(0, _WORDS, device)


def tensor_digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Digests by name, in the order given; every device is waited for once."""
    by_device: dict[torch.device, list[str]] = {}
    for name, tensor in tensors.items():
        by_device.setdefault(tensor.device, []).append(name)
    found: dict[str, int] = {}
    for names in by_device.values():
        values = torch.stack([tensor_digest(tensors[name]) for name in names]).tolist()
        found.update(zip(names, values, strict=True))
    return {name: found[name] for name in tensors}


def combined(digests: Mapping[str, int]) -> int:
    """One int64 for all of them: it changes with any single one, and with a name."""
    total = 0
    for name, digest in digests.items():
        factor = _factor(name)
        total += factor * (digest + 1)
    return (total + 2**63) % 2**64 - 2**63


@cache
def _factor(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") | 1
