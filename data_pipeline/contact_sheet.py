"""A contact sheet of previewed samples, as one picture. Importing this needs Pillow.

| caption                              |
| before   after    | before   after   |  headings
| [cell]   [cell]   | [cell]   [cell]  |  a sample, and another beside it
| row 3    cat      | row 8    dog     |
| cat               | dog              |
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.preview import Cell, Content, Plot, Preview

try:
    from PIL import Image, ImageDraw, ImageFont
except ImportError as error:
    raise DataError(
        "Pillow is not installed, which draws previews: pip install 'distrain[images]'"
    ) from error

LEAST, SMALL, LARGE = 96, 128, 160
"""Pixels of a picture's longer side: what it has at least, what small pictures are enlarged to,
about, and what large ones are reduced to."""

PLOT = (160, 104)
"""Width and height of a plot, and of a text."""

MARKED = 32
"""Up to so many points of a line are marked."""

TEXT, TITLE = 12, 17
"""Two sizes of type, in pixels."""

LINE, TITLE_LINE, GAP = 15, 24, 8
"""Pixels from line to line, and between cells."""

MOST_TEXT_LINES = 6

INK, PALE, FRAME = "#222222", "#767676", "#cccccc"
BEFORE = ("#8a8a8a", "#a6a6a6", "#bcbcbc")
AFTER = ("#1f4fa8", "#3f88d8", "#74b3ee")
"""Of a plot's lines, in turn."""

_FINE = 3
"""Lines are drawn so many times larger and reduced, which smooths them."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class _Block:
    """One sample, drawn: its pictures, and below each its lines of text, the row's first."""

    pictures: list[Image.Image]
    below: list[list[tuple[str, str]]]


def contact_sheet(shown: Preview) -> Image.Image:
    """The samples on one sheet, about three wide to two high."""
    font = ImageFont.load_default(TEXT)
    pictures = [
        [_drawn(cell.content, font, _room(cells)) for cell in cells] for cells in shown.samples
    ]
    cell_width = max(SMALL, *(one.width for cells in pictures for one in cells))
    cell_height = max(one.height for cells in pictures for one in cells)
    blocks = [
        _Block(drawn, [_below(cell, font, cell_width) for cell in cells])
        for drawn, cells in zip(pictures, shown.samples, strict=True)
    ]
    num_lines = max(len(lines) for block in blocks for lines in block.below)
    width = len(shown.headings) * (cell_width + GAP) + 2 * GAP
    height = cell_height + num_lines * LINE + 2 * GAP
    across = _across(len(blocks), width, height)
    head = _headed(shown.caption, max(across * width + 2 * GAP, 5 * SMALL), font)
    first = head.height + LINE + GAP
    sheet = Image.new("RGB", (head.width, first + -(-len(blocks) // across) * height), "white")
    sheet.paste(head, (0, 0))
    pen = ImageDraw.Draw(sheet)
    for number, block in enumerate(blocks):
        left, top = 2 * GAP + number % across * width, first + number // across * height
        for place, (picture, lines) in enumerate(zip(block.pictures, block.below, strict=True)):
            x = left + place * (cell_width + GAP)
            if number < across:
                pen.text((x, head.height), shown.headings[place], PALE, font)
            sheet.paste(picture, (x, top + cell_height - picture.height))
            for line, (text, ink) in enumerate(lines):
                pen.text((x, top + cell_height + 3 + LINE * line), text, ink, font)
    return sheet


def _below(cell: Cell, font: Font, width: int) -> list[tuple[str, str]]:
    row = [] if cell.row is None else [(f"row {cell.row:,}", PALE)]
    return row + [(line, INK) for line in wrapped(cell.label, font, width, 2)]


def _headed(caption: tuple[str, ...], width: int, font: Font) -> Image.Image:
    """The caption, its first line larger."""
    title, room = ImageFont.load_default(TITLE), width - 4 * GAP
    large = wrapped(caption[0], title, room, 2)
    small = [line for text in caption[1:] for line in wrapped(text, font, room, MOST_TEXT_LINES)]
    middle = GAP + TITLE_LINE * len(large)
    head = Image.new("RGB", (width, middle + (LINE + 2) * len(small) + 2 * GAP), "white")
    pen = ImageDraw.Draw(head)
    for number, line in enumerate(large):
        pen.text((2 * GAP, GAP + TITLE_LINE * number), line, INK, title)
    for number, line in enumerate(small):
        pen.text((2 * GAP, middle + (LINE + 2) * number), line, INK, font)
    return head


def _across(count: int, width: int, height: int) -> int:
    """How many samples stand side by side."""

    def off(across: int) -> float:
        return abs(math.log(across * width / (-(-count // across) * height) / 1.5))

    return min(range(1, count + 1), key=off)


def shown_size(height: int, width: int, most: int = LARGE) -> tuple[int, int]:
    """What a picture is resized to: small ones become larger by a whole number of times.

    Those with a side longer than `most` are reduced to it.
    """
    longest = max(height, width)
    if longest > most:
        return max(1, round(height * most / longest)), max(1, round(width * most / longest))
    factor = max(round(SMALL / longest), -(-LEAST // longest))
    return height * factor, width * factor


def _room(cells: tuple[Cell, ...]) -> int:
    """The longer side that a picture before may have: that of those after, where there are any."""
    sides = [
        max(shown_size(*cell.content.shape[:2]))
        for cell in cells[1:]
        if isinstance(cell.content, np.ndarray)
    ]
    return max(sides, default=LARGE)


def _drawn(content: Content, font: Font, most: int) -> Image.Image:
    if isinstance(content, Plot):
        return _plotted(content)
    if isinstance(content, str):
        card = Image.new("RGB", PLOT, "white")
        lines = wrapped(content, font, PLOT[0] - 2 * GAP, (PLOT[1] - GAP) // LINE)
        pen = ImageDraw.Draw(card)
        for number, line in enumerate(lines):
            pen.text((GAP, GAP // 2 + LINE * number), line, INK, font)
    else:
        pixels = content if content.shape[2] == 3 else np.repeat(content, 3, axis=2)
        height, width = shown_size(pixels.shape[0], pixels.shape[1], most)
        larger = height >= pixels.shape[0]
        how = Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS
        card = Image.fromarray(pixels).resize((width, height), how)
    framed = Image.new("RGB", (card.width + 2, card.height + 2), FRAME)
    framed.paste(card, (1, 1))
    return framed


def _plotted(plot: Plot) -> Image.Image:
    """The lines after over those before; a gap where a value is missing."""
    width, height = PLOT
    fine = Image.new("RGB", (width * _FINE, height * _FINE), "white")
    pen = ImageDraw.Draw(fine)
    layers = [(plot.lines, BEFORE)]
    if plot.beneath is not None:
        layers = [(plot.beneath, BEFORE), (plot.lines, AFTER)]
    for lines, inks in layers:
        for number, line in enumerate(lines):
            points = _points(line, width * _FINE, height * _FINE)
            ink = inks[number % len(inks)]
            for start, end in pairwise(points):
                if not (math.isnan(start[1]) or math.isnan(end[1])):
                    pen.line((*start, *end), ink, round(1.4 * _FINE))
            for x, y in points if len(points) <= MARKED else []:
                if not math.isnan(y):
                    pen.circle((x, y), 2 * _FINE, ink)
    framed = Image.new("RGB", (width + 2, height + 2), FRAME)
    framed.paste(fine.resize(PLOT, Image.Resampling.LANCZOS), (1, 1))
    return framed


def _points(line: NDArray[np.float64], width: int, height: int) -> list[tuple[float, float]]:
    """Where a line's values stand; those beyond the least and the greatest are at the rim."""
    margin = 0.08
    across = (
        np.linspace(margin / 2, 1 - margin / 2, len(line)) if len(line) > 1 else [0.5] * len(line)
    )
    down = margin + (1 - 2 * margin) * (1 - np.clip(line, -margin / 2, 1 + margin / 2))
    return [(float(x) * width, float(y) * height) for x, y in zip(across, down, strict=True)]


def wrapped(text: str, font: Font, width: float, most_lines: int) -> list[str]:
    """Lines that are no wider than `width`; what goes beyond `most_lines` is cut, and ends so."""
    lines: list[str] = []
    rest = " ".join(text.split())
    while rest:
        fit = _fitting(rest, font, width)
        if len(lines) == most_lines - 1 and fit < len(rest):
            return [*lines, rest[: _fitting(rest, font, width - font.getlength("..."))] + "..."]
        if fit < len(rest) and " " in rest[: fit + 1]:
            fit = rest[: fit + 1].rindex(" ")
        lines.append(rest[:fit])
        rest = rest[fit:].lstrip()
    return lines


def _fitting(text: str, font: Font, width: float) -> int:
    """How many letters of a text fit, at least one."""
    lengths = range(1, len(text) + 1)
    return max(1, bisect_right(lengths, width, key=lambda count: font.getlength(text[:count])))
