"""How an image goes on beyond its edges: Keras' four fill modes."""

from typing import Literal, Protocol

from data_pipeline.augment.arguments import require

FILL_MODES = ("constant", "nearest", "reflect", "wrap")
"""As Keras documents them, for a row of pixels abcd and the fill k:

- `constant`: kkkkkkkk|abcd|kkkkkkkk
- `nearest`: aaaaaaaa|abcd|dddddddd
- `reflect`: abcddcba|abcd|dcbaabcd
- `wrap`: abcdabcd|abcd|abcdabcd

Between two pixels of the row that goes on in this way, values are interpolated, at the edge too.
In scipy.ndimage these are `grid-constant`, `nearest`, `reflect` and `grid-wrap`; its `constant`
and `wrap` treat the edge itself differently.
"""

PAD_MODES: dict[str, Literal["edge", "symmetric", "wrap"]] = {
    "nearest": "edge",
    "reflect": "symmetric",
    "wrap": "wrap",
}
"""The same in numpy.pad."""


class _Filled(Protocol):
    @property
    def fill_mode(self) -> str: ...


def check_fill_mode(transform: _Filled) -> None:
    """Refuses a fill mode that there is not."""
    require(
        transform,
        "fill_mode",
        transform.fill_mode in FILL_MODES,
        f"be one of {', '.join(FILL_MODES)}",
    )
