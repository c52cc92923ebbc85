"""Which parameters an optimizer treats in which way: groups by name patterns. Pure.

Torch's optimizers take a list of groups, each a dict with its `params` and the settings in which it
differs. Here such a list is made from patterns over the parameters' full names, as
`model.named_parameters()` gives them.
"""

import math
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch

from distrain.errors import ConfigError

Groups = list[dict[str, Any]]
"""What torch's optimizers take in place of parameters."""

_NORMS = (
    torch.nn.modules.batchnorm._NormBase,  # batch norm and instance norm
    torch.nn.LayerNorm,
    torch.nn.GroupNorm,
    torch.nn.RMSNorm,
)
_NORM_NAME = re.compile(r"Norm([123]d)?$")
_BIAS_NAME = re.compile(r"^bias(_.*)?$|_bias$")
_MOST_SHOWN = 5


class ParameterGroup:
    """Parameters with settings of their own: those whose full name matches a pattern.

    Attributes:
        match: As for files: `*` is any text, dots included, `?` one letter, `[ab]` one of them.
        settings: What the optimizer takes, such as lr, weight_decay or betas.
    """

    def __init__(self, match: str, **settings: Any) -> None:
        """The group of that pattern; settings left out are the optimizer's.

        Raises:
            ConfigError: the pattern is no text, or a number is out of range.
        """
        if not (isinstance(match, str) and match):
            raise ConfigError(
                f"a parameter group's pattern is {match!r}; give a text such as 'head.*', which is "
                "compared with the parameters' full names"
            )
        for name in ("lr", "weight_decay"):
            value = settings.get(name, 0.0)
            if not (isinstance(value, (int, float)) and 0 <= value < math.inf):
                raise ConfigError(
                    f"the parameter group {match!r} has {name} = {value!r}; give a finite number, "
                    "0 or more"
                )
        if "params" in settings:
            raise ConfigError(
                f"the parameter group {match!r} names params, which are those that match the "
                "pattern: leave params out"
            )
        self.match, self.settings = match, settings

    def __repr__(self) -> str:
        """As it was made."""
        settings = "".join(f", {name}={value!r}" for name, value in self.settings.items())
        return f"ParameterGroup({self.match!r}{settings})"


def split_parameters(
    model: torch.nn.Module,
    groups: Sequence[ParameterGroup],
    *,
    decay_norms_and_biases: bool = True,
) -> Groups:
    """A model's trainable parameters as torch's groups: first those that no pattern matches.

    A parameter is in one group only, a tied one as well: that of the first pattern which matches
    any of its names. Without `decay_norms_and_biases` each group is parted once more, and
    `weight_decay` is 0 for (see `undecayed`) the parameters of norms and biases.

    Raises:
        ConfigError: a pattern is left without a parameter.
    """
    names = _names(model)
    trainable = {id(p): p for p in model.parameters() if p.requires_grad}
    placed = {key: _first_match(groups, names[key]) for key in trainable}
    for number, group in enumerate(groups):
        if number not in placed.values():
            raise _nothing_matches(group, names, trainable)
    spared = set() if decay_norms_and_biases else undecayed(model)
    found: Groups = []
    for place in (None, *range(len(groups))):
        settings: Mapping[str, Any] = {} if place is None else groups[place].settings
        inside = [key for key in trainable if placed[key] == place]
        for keys, more in (
            ([key for key in inside if key not in spared], {}),
            ([key for key in inside if key in spared], {"weight_decay": 0.0}),
        ):
            if keys:
                found.append({"params": [trainable[key] for key in keys], **settings, **more})
    return found


def undecayed(model: torch.nn.Module) -> set[int]:
    """The `id`s of the parameters of norms and of biases.

    Norms are torch's batch, instance, layer, group and RMS norms with what derives from them: all
    their own parameters. Of a module of another class whose name ends in Norm, Norm1d, Norm2d or
    Norm3d, those of at most one dimension. Biases are the parameters of at most one dimension whose
    name, after the last dot, is `bias`, begins with `bias_` (an LSTM's `bias_ih_l0`) or ends in
    `_bias` (attention's `in_proj_bias`); a tied parameter is one where any of its names says so.
    """
    found: set[int] = set()
    for module in model.modules():
        named = _NORM_NAME.search(type(module).__name__) is not None
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            flat = parameter.ndim <= 1
            if isinstance(module, _NORMS) or (flat and (named or _BIAS_NAME.search(name))):
                found.add(id(parameter))
    return found


def _names(model: torch.nn.Module) -> dict[int, list[str]]:
    """All names of each parameter: a tied one has several."""
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return found


def _first_match(groups: Sequence[ParameterGroup], names: Sequence[str]) -> int | None:
    for number, group in enumerate(groups):
        if any(fnmatchcase(name, group.match) for name in names):
            return number
    return None


def _nothing_matches(
    group: ParameterGroup, names: Mapping[int, list[str]], trainable: Mapping[int, object]
) -> ConfigError:
    """Why a group is left without parameters, and what can be done."""
    match = group.match
    named = [(key, name) for key, known in names.items() for name in known]
    matching = {key: name for key, name in named if fnmatchcase(name, match)}
    taken = [name for key, name in matching.items() if key in trainable]
    if taken:
        return ConfigError(
            f"every parameter that the group {match!r} matches, such as {taken[0]}, is in a group "
            "before it, and the first that matches counts: put it before that one"
        )
    if matching:
        return ConfigError(
            f"the group {match!r} matches only parameters that require no gradient, such as "
            f"{min(matching.values())}: leave it out, or let them be trained"
        )
    known = [name for key, name in named if key in trainable]
    near = _near_patterns(match, known)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    else:
        more = f" and {len(known) - _MOST_SHOWN} more" if len(known) > _MOST_SHOWN else ""
        hint = f"there are {', '.join(known[:_MOST_SHOWN])}{more}"
    return ConfigError(
        f"no parameter has a name like {match!r}, which is compared with the whole name; {hint}"
    )


def _near_patterns(match: str, names: Sequence[str]) -> list[str]:
    """Names, and patterns for all that lies within a module, that may have been meant."""
    parts = [name.split(".") for name in names]
    modules = {".".join(part[:depth]) for part in parts for depth in range(1, len(part))}
    candidates = {module: f"{module}.*" for module in sorted(modules)}
    candidates |= {name: name for name in names}
    plain = match.strip("*.?")
    near = get_close_matches(plain, candidates, n=3)
    near = near or [name for name in candidates if plain and plain in name][:3]
    return [candidates[name] for name in near]
