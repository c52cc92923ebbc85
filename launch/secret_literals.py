"""What looks like a password, a key or a token, and must not stand in a manifest."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_KINDS = {
    "an AWS access key": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "a GitHub token": r"\b(gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,})",
    "a GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "a Slack token": r"\bxox[abeprs]-[A-Za-z0-9-]{10,}",
    "a Google API key": r"\bAIza[A-Za-z0-9_-]{35}",
    # The last part has a figure in it: `sk-learn-baseline` is a name.
    "an API key": r"\bsk-([A-Za-z0-9_]+-)*(?=[A-Za-z_]*[0-9])[A-Za-z0-9_]{16,}",
    "a signed web token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "a password in an address": r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"']*:[^\s/@\"']+@",
    "a signed address": r"[?&](X-Amz-Signature|X-Goog-Signature|sig)=[^\s&\"']+",
    "a key in a connection string": r"\b(AccountKey|SharedAccessKey|SharedAccessSignature)=[^\s;]+",
    "an authorization header": r"\bAuthorization: *(Basic|Bearer) +\S+",
}
_PATTERNS = {kind: re.compile(pattern) for kind, pattern in _KINDS.items()}

_NAMES = re.compile(
    r"(^|_)(PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|CREDENTIALS?|CONNECTION_?STRING"
    r"|(API|ACCESS|ACCOUNT|SECRET|STORAGE|PRIVATE)_?KEY)(_ID)?$",
    re.IGNORECASE,
)
_OF_A_TEXT = re.compile(
    r"(^|_)(BOS|EOS|PAD|UNK|SEP|CLS|MASK|START|END|STOP|SPECIAL|IMAGE|MAX|MIN|NUM|PER)_TOKEN(_ID)?$",
    re.IGNORECASE,
)
"""Tokens of a language model, their numbers, or how many there are."""

_HARMLESS = re.compile(
    r"[0-9]{0,2}|[\W_]{1,2}|true|false|yes|off|none|null|<[^<>]*>|\[[^\[\]]*\]|(~|\.\.?)?/.*",
    re.IGNORECASE,
)
"""A small number or mark, a switch, a word of a vocabulary, a path, at which a secret may lie."""


def secret_in(text: str, name: str = "") -> str | None:
    """What kind of secret a text seems to hold, by its form or by the name it is given; or None.

    A value that is a path to a secret (VARIABLE=/run/secrets/key) is none.
    """
    for kind, pattern in _PATTERNS.items():
        if pattern.search(text):
            return kind
    plain = name.replace("-", "_")
    if _NAMES.search(plain) and not _OF_A_TEXT.search(plain) and not _HARMLESS.fullmatch(text):
        return f"by its name, {name}"
    return None


def secret_in_words(words: Sequence[str]) -> str | None:
    """The same of a program's arguments: `--password X`, `--password=X`, `password=X`."""
    for at, word in enumerate(words):
        name, equals, value = word.partition("=")
        following = words[at + 1] if at + 1 < len(words) else ""
        if not equals and word.startswith("-") and not following.startswith("-"):
            value = following
        found = secret_in(word) or secret_in(value, name.lstrip("-").rpartition(".")[2])
        if found is not None:
            return found
    return None


def secret_in_table(table: Mapping[str, Any]) -> str | None:
    """The same of a table of TOML and of those within it, by the names of their fields."""
    for name, value in table.items():
        texts = value if isinstance(value, list) else [value]
        for text in texts:
            found = None
            if isinstance(text, str):
                found = secret_in(text, name)
            elif isinstance(text, Mapping):
                found = secret_in_table(text)
            if found is not None:
                return found
    return None
