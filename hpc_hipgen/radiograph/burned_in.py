"""Finding what a viewer or a reader burned into a film's pixels: text, and the L or R of a side.

Letters are unlike anatomy in a way that needs no reading of them: thin strokes of one level of ink
with edges a pixel or two wide, in a row of pieces of similar height on a common line, with nothing
like it above or below. Bones have soft edges, trabeculae and grain have neighbours all around.

A film is searched at several sizes, so that letters are 6 to 24 pixels high in one of them; bright
and dark ink, lines that run across or along the film. Colour needs no such care: a radiograph has
none, so whatever is coloured was drawn into it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; the last two are the first pixels outside."""

_STROKE = 7
"""Strokes are narrower than this, in pixels of the size at which letters are looked for."""

_HEIGHTS = (6, 24)
"""Of the letters there."""

_LEAST_CONTRAST = 14.0
"""Grey levels by which ink must differ from what surrounds it to be looked at."""

_LIKENESS = 0.6
"""Share of the ink of a letter and of an L or R that both have, at which it counts as one."""

_AIR = 30.0
"""Grey level below which a film shows air."""

_TINTED, _LEAST_COLOUR, _MOST_COLOURED = 8, 40, 0.2
"""Difference of the channels that a quarter of a tinted film exceeds; that from the tint which is a
drawn colour; share of it beyond which this is a picture in colour, where colour tells nothing."""


@dataclass(frozen=True)
class Glyphs:
    """Connected pieces of ink, n of them: boxes (n, 4), and (n,) area, level and contrast."""

    box: np.ndarray
    area: np.ndarray
    level: np.ndarray
    contrast: np.ndarray

    def take(self, index: np.ndarray) -> Glyphs:
        """These pieces."""
        return Glyphs(*(getattr(self, f)[index] for f in ("box", "area", "level", "contrast")))

    def __len__(self) -> int:
        return len(self.area)

    @property
    def width(self) -> np.ndarray:
        """Pixels."""
        return self.box[:, 2] - self.box[:, 0]

    @property
    def height(self) -> np.ndarray:
        """Pixels."""
        return self.box[:, 3] - self.box[:, 1]


@dataclass(frozen=True)
class Level:
    """A film at one size: `grey` (h, w) float32, its `ink` (h, w) bool and the pieces of that."""

    grey: np.ndarray
    ink: np.ndarray
    glyphs: Glyphs

    def turned(self) -> Level:
        """The same mirrored along its diagonal: lines that ran down run to the right."""
        g = self.glyphs
        glyphs = Glyphs(g.box[:, [1, 0, 3, 2]], g.area, g.level, g.contrast)
        return Level(self.grey.T, self.ink.T, glyphs)


@dataclass(frozen=True)
class Mark:
    """Something burned in: a `box`, and `what` it is, "text", "colour" or "marker" (L or R)."""

    what: str
    box: Box


def find_marks(image: np.ndarray, colour: np.ndarray | None = None) -> list[Mark]:
    """What was burned into a film, from its top to its bottom; boxes have a small margin.

    Args:
        image: (h, w) uint8 grey.
        colour: (h, w) uint8, by how much the channels of a colour film differ.
    """
    text, single, markers = find_letters(image)
    coloured: list[Box] = []
    if colour is not None:
        coloured, sides = _coloured(image, colour)
        markers += sides
    # at another size an L may look like something else
    text += [box for box in single if not any(_overlap(box, other) for other in markers)]
    merged = _merge(image.shape, [*text, *coloured])
    marks = [
        Mark("colour" if any(_overlap(box, c) for c in coloured) else "text", box) for box in merged
    ]
    alone = [box for box in markers if not any(_overlap(box, other) for other in merged)]
    marks += [Mark("marker", box) for box in _merge(image.shape, alone)]
    return sorted(marks, key=lambda mark: (mark.box[1], mark.box[0]))


def find_letters(image: np.ndarray) -> tuple[list[Box], list[Box], list[Box]]:
    """Boxes of lines of text, some in several boxes, of single letters, of the L or R of a side."""
    text: list[Box] = []
    single: list[Box] = []
    markers: list[Box] = []
    for scale, grey in _sizes(image.astype(np.float32)):
        for polarity in (grey, 255 - grey):
            level = _level(polarity)
            accept = _is_text if polarity is grey else _is_odd_text
            text += [_unscaled(box, scale) for box in _text_lines(level, accept)]
            down = _text_lines(level.turned(), _is_odd_text)
            text += [_unscaled((x0, y0, x1, y1), scale) for y0, x0, y1, x1 in down]
            if polarity is grey:
                others, sides = _lone_letters(level)
                single += [_unscaled(box, scale) for box in others]
                markers += [_unscaled(box, scale) for box in sides]
    return text, single, markers


def _unscaled(box: Box, scale: float) -> Box:
    """A box in pixels of the film."""
    low, high = np.floor(np.array(box[:2]) / scale), np.ceil(np.array(box[2:]) / scale)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _overlap(one: Box, other: Box) -> bool:
    return all(max(one[k], other[k]) < min(one[k + 2], other[k + 2]) for k in (0, 1))


def _merge(shape: tuple[int, ...], boxes: list[Box]) -> list[Box]:
    """Boxes with a margin of a quarter of their shorter side, joined where they meet."""
    covered = np.zeros(shape, bool)
    for x0, y0, x1, y1 in boxes:
        margin = max(2, round(0.25 * min(x1 - x0, y1 - y0)))
        covered[max(0, y0 - margin) : y1 + margin, max(0, x0 - margin) : x1 + margin] = True
    found = ndimage.find_objects(ndimage.label(covered)[0])
    return [(x.start, y.start, x.stop, y.stop) for y, x in found]


def _coloured(image: np.ndarray, colour: np.ndarray) -> tuple[list[Box], list[Box]]:
    """Boxes of what has another colour than the film's tint at that grey; boxes of an L or R."""
    bins, tint = image // 16, np.zeros(16)
    if np.percentile(colour, 75) > _TINTED:
        for grey in np.unique(bins):
            tint[grey] = np.median(colour[bins == grey])
    drawn = np.abs(colour - tint[bins]) > _LEAST_COLOUR
    if drawn.mean() > _MOST_COLOURED:
        return [], []
    reach = max(4, round(0.01 * max(image.shape)))
    together = ndimage.label(ndimage.maximum_filter(drawn, size=2 * reach + 1))[0]
    boxes: tuple[list[Box], list[Box]] = ([], [])
    for place in ndimage.find_objects(np.where(drawn, together, 0)):
        (y0, y1), (x0, x1) = ((axis.start, axis.stop) for axis in place)
        side = y1 - y0 >= _HEIGHTS[0] and x1 - x0 <= 1.3 * (y1 - y0) and _is_side(drawn[place])
        boxes[side].append((x0, y0, x1, y1))
    return boxes


def _sizes(grey: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    """The film and its factor at the sizes in which letters are looked for."""
    longest = max(grey.shape)
    if longest < 1000:
        factor = 2 if longest >= 300 else 3
        yield float(factor), ndimage.zoom(grey, factor, order=3, grid_mode=True, mode="nearest")
    yield 1.0, grey
    factor = 2
    while longest / factor >= 250:
        height, width = (n // factor * factor for n in grey.shape)
        blocks = grey[:height, :width].reshape(height // factor, factor, width // factor, factor)
        yield 1 / factor, blocks.mean((1, 3))
        factor *= 2


def _level(grey: np.ndarray) -> Level:
    """Ink is what an opening removes, down to half of what is the most near by."""
    relief = grey - ndimage.grey_opening(grey, size=(_STROKE, _STROKE))
    most = ndimage.maximum_filter(relief, size=2 * _STROKE + 1)
    floor = max(_LEAST_CONTRAST, 2.5 * float(np.median(relief)))  # not the grain of the film
    ink = relief > np.maximum(floor, 0.5 * most)
    labels, count = ndimage.label(ink, np.ones((3, 3)))
    flat = labels.ravel()
    area = np.bincount(flat, minlength=count + 1)[1:]
    level, contrast = (
        np.bincount(flat, values.ravel(), minlength=count + 1)[1:] / np.maximum(area, 1)
        for values in (grey, relief)
    )
    slices = ndimage.find_objects(labels)
    box = np.array([(x.start, y.start, x.stop, y.stop) for y, x in slices]).reshape(-1, 4)
    return Level(grey, ink, Glyphs(box, area, level, contrast))


def _text_lines(level: Level, accept: Callable[[Level, Glyphs], bool]) -> list[Box]:
    """Boxes of the lines that run across one size of a film, in its pixels."""
    letters = _letters(level.glyphs)
    return [
        _whole_line(level.glyphs, line)
        for line in _rows(letters)
        if len(line) >= 3 and accept(level, line)
    ]


def _letters(glyphs: Glyphs) -> Glyphs:
    """The pieces that might be a letter or a few that touch."""
    width, height = glyphs.width, glyphs.height
    low, high = _HEIGHTS
    fill = glyphs.area / np.maximum(width * height, 1)
    size = (height >= low) & (height <= high) & (width >= 2) & (width <= 10 * height)
    return glyphs.take(size & (fill > 0.15) & (glyphs.contrast > 18))


def _rows(letters: Glyphs) -> list[Glyphs]:
    """Letters joined to rows: neighbours of like height, ink and base line or top."""
    count = len(letters)
    if count < 2:
        return []
    x0, y0, x1, y1 = letters.box.T
    middle = (y0 + y1) / 2
    ends = np.concatenate([np.column_stack([x0, middle]), np.column_stack([x1, middle])])
    pairs = cKDTree(ends).query_pairs(1.3 * _HEIGHTS[1], output_type="ndarray") % count
    i, j = pairs[pairs[:, 0] != pairs[:, 1]].T
    heights, contrast = letters.height, letters.contrast
    tall, strong = np.maximum(heights[i], heights[j]), np.maximum(contrast[i], contrast[j])
    slack = 0.15 * tall + 0.5
    gap = np.maximum(x0[i], x0[j]) - np.minimum(x1[i], x1[j])
    alike = (
        ((np.abs(y0[i] - y0[j]) <= slack) | (np.abs(y1[i] - y1[j]) <= slack))
        & (np.minimum(heights[i], heights[j]) > 0.5 * tall)
        & (gap <= 1.1 * tall)
        & (gap > -0.3 * tall)
        & (np.minimum(contrast[i], contrast[j]) > 0.5 * strong)
        & (np.abs(letters.level[i] - letters.level[j]) <= 0.35 * strong)
    )
    graph = coo_array((np.ones(alike.sum()), (i[alike], j[alike])), shape=(count, count))
    _, label = connected_components(graph, directed=False)
    order = np.argsort(label, kind="stable")
    return [letters.take(part) for part in np.split(order, np.cumsum(np.bincount(label))[:-1])]


def _bounds(glyphs: Glyphs) -> Box:
    x0, y0 = glyphs.box[:, :2].min(0)
    x1, y1 = glyphs.box[:, 2:].max(0)
    return int(x0), int(y0), int(x1), int(y1)


def line_features(level: Level, line: Glyphs) -> dict[str, float]:
    """What tells a line of text from anatomy, in units of its contrast."""
    x0, y0, x1, y1 = _bounds(line)
    contrast, height = float(np.median(line.contrast)), float(np.median(line.height))
    margin = max(2, round(0.35 * height))
    above = level.ink[max(0, y0 - margin) : max(0, y0 - 1), x0:x1]
    below = level.ink[y1 + 1 : y1 + margin, x0:x1]
    beside = np.concatenate([above, below])
    ink, grey = level.ink[y0:y1, x0:x1], level.grey[y0:y1, x0:x1]
    ground = grey[~ndimage.binary_dilation(ink)]
    low, high = np.percentile(ground, (16, 84)) if ground.size > 9 else (0, 9e9)
    return {
        "contrast": contrast,
        "beside": float(beside.mean()) if beside.size else 0.0,
        "spread": float(grey[ink].std()) / contrast,
        "ground": float(high - low) / 2 / contrast,
        "darkness": float(np.percentile(_around(level.grey, (x0, y0, x1, y1), margin), 90)),
        "edge": float(np.percentile(np.abs(np.diff(grey, axis=1)), 90)) / contrast,
        "sharpest": float(np.abs(np.diff(grey, axis=1)).max()) / contrast,
    }


def _around(grey: np.ndarray, box: Box, margin: int) -> np.ndarray:
    """Grey levels along a frame of `margin` pixels around a box."""
    x0, y0, x1, y1 = box
    top, left = max(0, y0 - margin), max(0, x0 - margin)
    part = grey[top : y1 + margin, left : x1 + margin]
    frame = np.ones(part.shape, bool)
    rows = slice(max(0, y0 - top - 1), y1 - top + 1)
    frame[rows, max(0, x0 - left - 1) : x1 - left + 1] = False
    return part[frame] if frame.any() else np.array([255.0])


def _is_text(level: Level, line: Glyphs) -> bool:
    """Whether a row of pieces is a line of text; the fewer they are, the clearer it must be."""
    few = len(line) < 5
    f = line_features(level, line)
    return (
        f["contrast"] >= (30 if few else 22)
        and f["beside"] <= (0.03 if few else 0.1)
        and f["spread"] <= (0.24 if few else 0.28)
        and f["ground"] <= 0.5
        and f["edge"] >= 0.35
    )


def _is_odd_text(level: Level, line: Glyphs) -> bool:
    """The same of text that is dark or runs along the film: rare, so it must be clearer yet."""
    return len(line) >= 4 and np.median(line.contrast) >= 40 and _is_text(level, line)


@functools.cache
def _templates() -> tuple[np.ndarray, ...]:
    """L and R (16, 12) float, upright and as a mirrored film shows them, filling their box."""
    drawn = []
    for letter in "LR":
        page = Image.new("L", (120, 120))
        ImageDraw.Draw(page).text((60, 60), letter, 255, ImageFont.load_default(80), anchor="mm")
        shape = _shape(np.asarray(page.crop(page.getbbox()), np.float32) / 255)
        drawn += [shape, shape[:, ::-1]]
    return tuple(drawn)


def _shape(piece: np.ndarray) -> np.ndarray:
    """A piece of ink (h, w), 0 to 1, stretched to (16, 12)."""
    picture = Image.fromarray(np.asarray(piece, np.float32))
    return np.asarray(picture.resize((12, 16), Image.Resampling.BILINEAR, reducing_gap=None))


def _is_side(ink: np.ndarray) -> bool:
    """Whether a piece of ink (h, w) bool has the shape of an L or R."""
    shape = _shape(ink) > 0.5
    likeness = [
        np.minimum(shape, t > 0.5).sum() / np.maximum(shape, t > 0.5).sum() for t in _templates()
    ]
    return bool(max(likeness) >= _LIKENESS)


def _lone_letters(level: Level) -> tuple[list[Box], list[Box]]:
    """Boxes of single letters: what is left of a text at the film's edge, and the L or R of a side.

    A single piece is little to go by: one that is no L or R counts only where there is nothing of
    the dog, on black.
    """
    single: list[Box] = []
    sides: list[Box] = []
    glyphs = _letters(level.glyphs)
    glyphs = glyphs.take((glyphs.contrast >= 35) & (glyphs.width <= 1.3 * glyphs.height))
    for n in range(len(glyphs)):
        piece = glyphs.take(np.array([n]))
        f = line_features(level, piece)
        if f["contrast"] < 35 or f["spread"] > 0.3 or f["beside"] > 0.05:
            continue
        x0, y0, x1, y1 = _bounds(piece)
        if f["sharpest"] >= 0.35 and f["ground"] <= 0.35 and _is_side(level.ink[y0:y1, x0:x1]):
            sides.append((x0, y0, x1, y1))
        elif f["darkness"] < _AIR and f["ground"] <= 0.1:
            single.append((x0, y0, x1, y1))
    return single, sides


def _whole_line(glyphs: Glyphs, line: Glyphs) -> Box:
    """The line with the points, dashes and other pieces that stand in it or at its ends."""
    x0, y0, x1, y1 = _bounds(line)
    height, contrast = y1 - y0, float(np.median(line.contrast))
    slack = 0.25 * height
    gx0, gy0, gx1, gy1 = glyphs.box.T
    within = (gy0 >= y0 - slack) & (gy1 <= y1 + slack) & (glyphs.contrast > 0.3 * contrast)
    while True:
        near = within & (gx1 >= x0 - 1.5 * height) & (gx0 <= x1 + 1.5 * height)
        box = min(x0, *gx0[near]), min(y0, *gy0[near]), max(x1, *gx1[near]), max(y1, *gy1[near])
        if (box[0], box[2]) == (x0, x1):
            return int(box[0]), int(box[1]), int(box[2]), int(box[3])
        x0, x1 = box[0], box[2]
