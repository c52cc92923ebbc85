"""Manifests as YAML that every reader takes for the same."""

import re
from collections.abc import Sequence
from typing import Any

import yaml

_PLAIN = re.compile(r"(/|--)?[A-Za-z][-A-Za-z0-9._/]+")
_WORDS = {"yes", "no", "on", "off", "true", "false", "null"}


class _Dumper(yaml.SafeDumper):
    """Quotes more than PyYAML does.

    kubectl's reader takes `1e3`, `0o7` and `y`, which PyYAML leaves bare, for numbers and a truth
    value.
    """

    def ignore_aliases(self, _: Any) -> bool:
        """Always: no `&id001`, though two places may hold the same labels."""
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        style = None
    elif "\n" in text:
        style = "|"
    else:
        style = '"' if "'" in text else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def as_yaml(manifests: Sequence[dict[str, Any]]) -> str:
    """One document each; read back, they are equal."""
    return yaml.dump_all(
        manifests,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=False,
        explicit_start=True,
        width=1 << 20,
    )
