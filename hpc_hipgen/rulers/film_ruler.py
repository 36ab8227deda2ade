"""The film ruler: measures both Norberg angles of a whole film of any size, or refuses.

From coarse to fine: the finder looks for both femoral heads in the shrunk film; a close-up of each
hip is cut, the line between the heads horizontal, the hip at the image's right mirrored; the hip
network marks head and rim in it, then again in several shifted and turned views of the close-up.
The median of these is the answer, their spread tells how sure it is. Whether there is a hip at all,
both networks say together: a real film convinces each of them less than any drawing does. A film
without hips in the polarity that it has is tried once more inverted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_model
from scipy.special import expit, logit
from torch import Tensor

from hpc_hipgen.files import reading_export, save_network
from hpc_hipgen.radiograph.films import FLAT, is_flat
from hpc_hipgen.radiograph.geometry import IMAGE_SIDES, Landmarks, caudal_rims, norberg_angle
from hpc_hipgen.radiograph.scenes import CLOSE_UP, CLOSE_UP_MARGIN, close_up_matrices
from hpc_hipgen.radiograph.views import resample
from hpc_hipgen.rulers.film_networks import (
    SIZE,
    FilmNetworks,
    cut,
    network_input,
    presence_logit,
    read_peaks,
    read_radius,
)

Seen = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Landmarks (v, 2, 5), doubt (v, 2) and presence (2,) over the views of a film."""

MASTER = round(SIZE * CLOSE_UP_MARGIN)
"""Pixels of a close-up with its margin, from which the views are cut."""

MIN_SIDE = 96
"""Pixels that a film must have at its shorter side."""

MIN_PRESENCE = 0.25
"""Below which a hip is not there. Of drawings, hips are above 0.99 and whatever is none below 0.01:
anything in between would do for them, and films lie between."""

HOPELESS = 0.02
"""Presence by the finder alone below which no close-up is looked at."""

DOUBTFUL = 12.0
"""Degrees above which a hip is called uncertain: measured, but to be looked at."""

MAX_UNCERTAINTY = 30.0
"""Degrees above which nothing is known of a hip; a film with two of these is refused. Pictures that
are no films are told by the presence of hips: of those of `film_check` none needs this."""

SETTINGS = "film_ruler.json"

MAX_HEAD_RATIO = 1.3
"""Of the two heads of a dog; a larger one means that one circle is about something else."""

_VIEWS = ((0, 1, 0, 0), (6, 0.95, 3, -2), (-6, 1.05, -3, 2))
"""Degrees, zoom and shift in pixels of the views of a close-up that are measured."""

_PIXELS_PER_D = SIZE / CLOSE_UP


@dataclass(frozen=True)
class FilmMeasurement:
    """What the film ruler says of one film; angles are NaN when it refuses and says why.

    `landmarks` (2, 5) in pixels of the film, rows in the order of `geometry.IMAGE_SIDES`; NaN where
    nothing was found. `uncertainty` (2,): half width in degrees of the 95 % interval of each angle
    on phantoms, told from `features` (2, 2), see `view_features`. `presence` in 0..1, by both
    networks, of the weaker hip. `inverted`: the film's polarity is reversed. `unsure`: it is
    refused for its uncertainty alone; there are two hips. `warning`: which hip of those that are
    measured is uncertain.
    """

    image_left: float
    image_right: float
    uncertainty: np.ndarray
    features: np.ndarray
    presence: float
    landmarks: np.ndarray
    inverted: bool = False
    reason: str = ""
    unsure: bool = False
    warning: str = ""


@dataclass(frozen=True)
class Calibration:
    """Half width of a 95 % interval in degrees from what the views of a close-up say.

    offset + spread x (SD of the angle over the views) + doubt x (doubt of the views), see
    `view_features`.
    """

    offset: float = 3.0
    spread: float = 2.0
    doubt: float = 10.0

    def half_width(self, features: np.ndarray) -> np.ndarray:
        """Degrees (...) of features (..., 2): spread in degrees and doubt 0..1."""
        return self.offset + features @ np.array([self.spread, self.doubt])


class FilmRuler:
    """Measures films with trained networks."""

    def __init__(
        self,
        networks: FilmNetworks,
        calibration: Calibration | None = None,
        min_presence: float = MIN_PRESENCE,
        max_uncertainty: float = MAX_UNCERTAINTY,
        doubtful: float = DOUBTFUL,
        lab_films: int = 0,
    ) -> None:
        """Refuses hips below `min_presence` (0..1), and two above `max_uncertainty` (degrees).

        A hip above `doubtful` degrees is measured with a warning.

        `lab_films`: how many films the networks have seen besides drawings.
        """
        # convolutions of fp32 on a CPU then take two thirds of the time
        self.networks = networks.eval().to(memory_format=torch.channels_last)
        self.calibration = calibration or Calibration()
        self.min_presence = min_presence
        self.max_uncertainty = max_uncertainty
        self.doubtful = doubtful
        self.lab_films = lab_films

    def measure(self, films: Sequence[np.ndarray]) -> list[FilmMeasurement]:
        """Measures films (h, w) uint8 of any sizes as one batch."""
        results = [_unfit(film) for film in films]
        todo = [i for i, found in enumerate(results) if found is None]
        refused = self._measure(films, todo, results)
        turned = {i: 255 - films[i] for i in refused}
        first = {i: results[i] for i in refused}
        for i in self._measure(turned, refused, results, inverted=True):
            results[i] = first[i]
        return [found for found in results if found is not None]

    @torch.no_grad()
    def _measure(self, films, todo: list[int], results: list, inverted: bool = False) -> list[int]:
        """Fills in results; returns the films that show no pair of hips, as they are."""
        if not todo:
            return []
        heads, presence = self._find([films[i] for i in todo])
        pairs = []
        for i, points, seen in zip(todo, heads, presence, strict=True):
            if reason := _missing(seen, min(HOPELESS, self.min_presence)):
                results[i] = _refusal(reason, float(seen.min()))
            else:
                pairs.append((i, points, seen))
        if pairs:
            images = [films[i] for i, _, _ in pairs]
            hips = self._hips(images, np.stack([points for _, points, _ in pairs]))
            for (i, _, seen), hip in zip(pairs, hips, strict=True):
                results[i] = self._verdict(*hip, seen, inverted)
        return [i for i in todo if results[i].reason and not results[i].unsure]

    def _find(self, films: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Head centres (b, 2, 2) in film pixels, and their presence (b, 2) in 0..1."""
        small, scales = zip(*(_letterbox(film) for film in films), strict=True)
        logits, _ = self.networks.finder(_input(_to_tensor(np.stack(small), self._device)))
        points, _ = read_peaks(logits)
        scale = np.array(scales)[:, None, None]
        heads = (points.double().cpu().numpy() + 0.5) / scale - 0.5
        return heads, presence_logit(logits).sigmoid().cpu().numpy()

    @property
    def _device(self) -> torch.device:
        return next(self.networks.parameters()).device

    def _hips(self, films: list[np.ndarray], heads: np.ndarray) -> list[Seen]:
        """What the views of each film show."""
        matrices = close_up_matrices(heads, MASTER)
        masters = _close_ups(films, matrices)
        first = self._look_straight(masters)
        found = _to_film(first[0][0, :, :2].reshape(-1, 2, 2), matrices)
        moved = np.abs(first[0][0, :, :2] - (MASTER - 1) / 2).max(1).reshape(-1, 2).max(1)
        again = moved > 0.06 * _PIXELS_PER_D
        if again.any():
            matrices[again] = close_up_matrices(found[again], MASTER)
            chosen = [film for film, redo in zip(films, again, strict=True) if redo]
            both = np.repeat(again, 2)
            masters[both] = _close_ups(chosen, matrices[again])
            for part, new in zip(first, self._look_straight(masters[both]), strict=True):
                part[:, both] = new
        others = self._look(masters, _view_matrices(first[0][0, :, :2], _VIEWS[1:]))
        rows, doubt, presence = map(np.concatenate, zip(first, others, strict=True))
        count = len(films)
        rows = rows.reshape(len(_VIEWS), count, 2, 5)
        doubt, presence = (a.reshape(len(_VIEWS), count, 2) for a in (doubt, presence))
        return [
            (_rows_to_film(rows[:, i], matrices[i]), doubt[:, i], np.median(presence[:, i], 0))
            for i in range(count)
        ]

    def _look_straight(self, masters: np.ndarray) -> tuple[np.ndarray, ...]:
        """`_look` at the middle of each close-up."""
        centres = np.full((len(masters), 2), (MASTER - 1) / 2)
        return self._look(masters, _view_matrices(centres, _VIEWS[:1]))

    def _look(self, masters: np.ndarray, views: np.ndarray) -> tuple[np.ndarray, ...]:
        """Landmarks (v, b, 5) in pixels of the close-ups (b, n, n), doubts and presences (v, b)."""
        count, many = views.shape[:2]
        images = _to_tensor(masters, self._device).repeat(count, 1, 1, 1)
        matrices = torch.from_numpy(views.reshape(-1, 2, 3)).float().to(self._device)
        logits, radii = self.networks.hip(_input(cut(images, matrices, SIZE)))
        points, share = read_peaks(logits)
        points = points @ matrices[:, :, :2].mT + matrices[:, None, :, 2]
        zoom = torch.linalg.det(matrices[:, :, :2]).sqrt()
        rows = torch.cat(
            [points[:, 0], (read_radius(logits, radii) * zoom)[:, None], points[:, 1]], 1
        )
        presence = presence_logit(logits).min(1).values.sigmoid()
        parts = (rows, 1 - share.min(1).values, presence)
        return tuple(p.double().cpu().numpy().reshape(count, many, *p.shape[1:]) for p in parts)

    def _verdict(
        self,
        rows: np.ndarray,
        doubt: np.ndarray,
        presence: np.ndarray,
        seen: np.ndarray,
        inverted: bool,
    ) -> FilmMeasurement:
        """The answer for one film from the landmarks (v, 2, 5) of its views."""
        middle = np.median(rows, 0)
        features = view_features(rows, doubt)
        uncertainty = self.calibration.half_width(features)
        # neither network alone decides, however sure of itself it is
        seen, presence = (np.clip(p, 1e-6, 1 - 1e-6) for p in (seen, presence))
        sure = expit((logit(seen) + logit(presence)) / 2)
        reason, unsure, warning = "", False, ""
        if sure.min() < self.min_presence:
            reason = f"no hip where one was expected ({IMAGE_SIDES[int(sure.argmin())]})"
        elif implausible := _implausible(middle):
            reason = f"the landmarks are not those of two hips ({implausible})"
        elif uncertainty.min() > self.max_uncertainty:
            reason, unsure = f"too uncertain (± {uncertainty.min():.0f} degrees or more)", True
        elif (doubtful := np.flatnonzero(uncertainty > self.doubtful)).size:
            hips = ", ".join(f"{IMAGE_SIDES[i]} ± {uncertainty[i]:.0f} degrees" for i in doubtful)
            warning = f"look at the landmarks: {hips}"
        angles = Landmarks.from_array(middle).norberg_angles()
        left, right = (np.nan, np.nan) if reason else (angles.image_left, angles.image_right)
        least = float(sure.min())
        return FilmMeasurement(
            left, right, uncertainty, features, least, middle, inverted, reason, unsure, warning
        )


def view_features(rows: np.ndarray, doubt: np.ndarray) -> np.ndarray:
    """What uncertainty is told from, (2, 2), of landmarks (v, 2, 5) and doubts (v, 2) of the views.

    For each hip the standard deviation of its angle over the views in degrees (one view gone astray
    counts, though it does not move the median: on a film, it warns of a second place that looks
    like a rim), and the root of the median doubt, a doubt being the share of a heat map's mass that
    lies away from its peak.
    """
    heads, rims = rows[:, :, :2], rows[:, :, 3:]
    angles = norberg_angle(heads, heads[:, ::-1], rims)
    return np.stack([angles.std(0), np.sqrt(np.median(doubt, 0))], -1)


def _unfit(film: np.ndarray) -> FilmMeasurement | None:
    """The refusal of a picture that cannot be a film at all, or None."""
    if min(film.shape) < MIN_SIDE:
        return _refusal(f"not a film: {film.shape[1]} x {film.shape[0]} pixels are too few")
    if max(film.shape) > 6 * min(film.shape):
        return _refusal(f"not a film: {film.shape[1]} x {film.shape[0]} pixels is a strip")
    if is_flat(film):
        return _refusal(f"not a film: {FLAT}")
    return None


def _refusal(reason: str, presence: float = 0.0) -> FilmMeasurement:
    nothing = np.full((2, 5), np.nan)
    return FilmMeasurement(
        np.nan, np.nan, nothing[:, 0], nothing[:, :2], presence, nothing, reason=reason
    )


def _missing(presence: np.ndarray, least: float) -> str:
    """Why a pair of heads with these presences (2,) is none; empty when it is one."""
    seen = presence >= least
    if seen.all():
        return ""
    if not seen.any():
        return "no hips found: not a ventrodorsal film of the pelvis, or not upright"
    return f"one hip missing ({IMAGE_SIDES[int(presence.argmin())]})"


def _implausible(rows: np.ndarray) -> str:
    """What makes landmarks (2, 5) impossible in a dog, in words; empty when nothing does."""
    heads, radii, rims = rows[:, :2], rows[:, 2], rows[:, 3:]
    across = heads[1] - heads[0]
    distance = float(np.hypot(*across))
    angles = norberg_angle(heads, heads[::-1], rims)
    arms = np.hypot(*(rims - heads).T) / np.maximum(radii, 1e-6)
    if across[0] <= 0 or abs(across[1]) > 0.7 * across[0]:
        return "the heads are not side by side"
    if (radii < 0.06 * distance).any() or (radii > 0.19 * distance).any():
        return "head size"
    if max(radii) > MAX_HEAD_RATIO * min(radii):
        return "heads of two sizes"
    if (arms < 0.75).any() or (arms > 2.1).any() or caudal_rims(heads, rims).any():
        return "place of the rim"
    if (angles < 45).any() or (angles > 135).any():
        return "angle"
    return ""


def _letterbox(film: np.ndarray) -> tuple[np.ndarray, float]:
    """The film shrunk to `SIZE` pixels at its longer side, at the top left of a black square."""
    height, width = film.shape
    scale = SIZE / max(height, width)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = Image.fromarray(film).resize(shape, Image.Resampling.BILINEAR, reducing_gap=2.0)
    square = np.zeros((SIZE, SIZE), np.uint8)
    square[: shape[1], : shape[0]] = np.asarray(small)
    return square, scale


def _close_ups(films: Sequence[np.ndarray], matrices: np.ndarray) -> np.ndarray:
    """Close-ups (2 b, n, n) uint8 of films with similarities (b, 2, 2, 3), left before right."""
    pairs = [(film, m) for film, both in zip(films, matrices, strict=True) for m in both]
    return np.stack([resample(film, matrix, MASTER) for film, matrix in pairs])


def _view_matrices(centres: np.ndarray, views: Sequence[tuple[float, ...]]) -> np.ndarray:
    """Similarities (v, b, 2, 3) from pixels of a view to those of a close-up.

    The middle of a view looks at a centre (b, 2), but for the view's own shift.
    """
    matrices = []
    for degrees, zoom, *shift in views:
        angle, middle = np.radians(degrees), (SIZE - 1) / 2
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
        offsets = centres - turn @ (middle + np.array(shift))
        linear = np.broadcast_to(turn, (len(centres), 2, 2))
        matrices.append(np.concatenate([linear, offsets[..., None]], -1))
    return np.stack(matrices)


def _to_film(points: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Points (..., 2) of close-ups back in film pixels, `matrices` (..., 2, 3)."""
    moved = (points - matrices[..., 2])[..., None]
    return np.linalg.solve(matrices[..., :2], moved)[..., 0]


def _rows_to_film(rows: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Landmarks (v, 2, 5) of close-ups in film pixels, `matrices` (2, 2, 3) of both hips."""
    scale = np.sqrt(np.abs(np.linalg.det(matrices[..., :2])))
    heads, rims = (_to_film(rows[..., part], matrices) for part in (slice(0, 2), slice(3, 5)))
    return np.concatenate([heads, (rows[..., 2] / scale)[..., None], rims], -1)


def _input(images: Tensor) -> Tensor:
    """`network_input` in the memory format of the networks."""
    return network_input(images).contiguous(memory_format=torch.channels_last)


def _to_tensor(images: np.ndarray, device: torch.device) -> Tensor:
    """(b, n, n) uint8 to (b, 1, n, n) float in 0..1."""
    return torch.from_numpy(images).to(device)[:, None].float() / 255


def save_film_ruler(ruler: FilmRuler, folder: Path, settings: dict) -> None:
    """Writes model.safetensors and film_ruler.json (channels, calibration, and `settings`)."""
    stored = {**ruler.networks.channels, **settings, "calibration": vars(ruler.calibration)}
    stored["lab_films"] = ruler.lab_films
    save_network(ruler.networks, folder, SETTINGS, stored)


def load_film_ruler(folder: Path, **limits: float) -> FilmRuler:
    """Loads what `save_film_ruler` wrote; `limits` are those of `FilmRuler`.

    Raises:
        ValueError: when the folder holds no film ruler, or a damaged one.
    """
    if not (folder / SETTINGS).is_file():
        raise ValueError(f"{folder}: holds no film ruler ({SETTINGS})")
    with reading_export(folder, RuntimeError, TypeError):
        settings = json.loads((folder / SETTINGS).read_text())
        networks = FilmNetworks(tuple(settings["finder"]), tuple(settings["hip"]))
        load_model(networks, folder / "model.safetensors")
        calibration, films = Calibration(**settings["calibration"]), settings.get("lab_films", 0)
        return FilmRuler(networks, calibration, lab_films=films, **limits)
