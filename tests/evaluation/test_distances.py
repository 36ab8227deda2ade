"""Fréchet and kernel distances against closed forms and torchmetrics."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import nn
from torch_fidelity.metric_prc import calculate_precision_recall_full
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from hpc_hipgen.evaluation import distances as d
from hpc_hipgen.evaluation.samples import spread


def sets(n=40, m=55, width=12, shift=0.5, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(width, width))
    return rng.normal(size=(n, width)) @ mix, rng.normal(shift, 1.3, (m, width)) @ mix


def brute_force(x, y):
    s1, s2 = np.cov(x.T), np.cov(y.T)
    root = linalg.sqrtm(s1 @ s2).real
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * root)


class Table(nn.Module):
    """Looks features up by image number, so that torchmetrics sees exactly ours."""

    def __init__(self, features):
        super().__init__()
        self.features, self.num_features = torch.from_numpy(features), features.shape[1]

    def forward(self, numbers):
        return self.features[numbers]


@pytest.mark.parametrize("n, m, width", [(40, 55, 12), (20, 31, 64), (2, 3, 5)])
def test_frechet_agrees_with_torchmetrics(n, m, width):
    x, y = sets(n, m, width)
    metric = FrechetInceptionDistance(Table(np.concatenate([x, y]))).set_dtype(torch.float64)
    metric.update(torch.arange(n), real=False)
    metric.update(torch.arange(n, n + m), real=True)
    assert d.frechet_distance(x, y) == pytest.approx(float(metric.compute()), rel=1e-3)


def test_frechet_closed_forms():
    x, y = sets()
    assert d.frechet_distance(x, y) == pytest.approx(brute_force(x, y), rel=1e-6)
    assert d.frechet_distance(x, y) == pytest.approx(d.frechet_distance(y, x))
    assert d.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert d.frechet_distance(x, x + 2.0) == pytest.approx(4.0 * x.shape[1])
    scaled = x.mean(0) + 3 * (x - x.mean(0))  # same axes: sum of (sd1 - sd2)²
    assert d.frechet_distance(x, scaled) == pytest.approx(4 * x.var(0, ddof=1).sum())


def test_kernel_distance_agrees_with_torchmetrics():
    x, y = sets(40, 40)  # it takes both sets to be of one size
    expected = float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y)))
    assert d.kernel_distance(x, d.Reference(y))[0] == pytest.approx(expected, rel=1e-9)


def test_kernel_jackknife_is_the_brute_force_one():
    x, y = sets(8, 9, 4)
    values_x = [d.kernel_distance(np.delete(x, i, 0), d.Reference(y))[0] for i in range(8)]
    values_y = [d.kernel_distance(x, d.Reference(np.delete(y, i, 0)))[0] for i in range(9)]
    expected = np.sqrt(7 * np.var(values_x) + 8 * np.var(values_y))
    assert d.kernel_distance(x, d.Reference(y))[1] == pytest.approx(expected, rel=1e-9)


def test_the_error_of_a_frechet_distance_is_its_spread_over_samples():
    rng = np.random.default_rng(5)
    reference = rng.normal(size=(200, 4))
    drawn = [rng.normal(0.3, 1.2, (60, 4)) for _ in range(60)]
    found = [d.frechet_distance(x, reference) for x in drawn]
    errors = [d.frechet_error(x, reference) for x in drawn[:20]]
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.35)


@pytest.mark.parametrize("n, m, width", [(12, 30, 5), (9, 40, 60), (30, 4, 5), (8, 6, 7)])
def test_the_error_of_a_frechet_distance_is_the_brute_force_jackknife(n, m, width):
    x, y = sets(n, m, width)
    left_out = [d.frechet_distance(np.delete(x, i, 0), y) for i in range(n)]
    assert d.frechet_error(x, y) == pytest.approx(np.sqrt((n - 1) * np.var(left_out)), rel=1e-5)


def test_the_error_of_many_images_is_that_of_groups(monkeypatch):
    """Left out by groups, as many of 1,000 could not be one by one; nearly the same number."""
    x, y = sets(60, 80, 4)
    alone = d.frechet_error(x, y)
    monkeypatch.setattr(d, "ALONE", 59)
    monkeypatch.setattr(d, "GROUPS", 20)
    left_out = [d.frechet_distance(np.delete(x, slice(i, None, 20), 0), y) for i in range(20)]
    expected = np.sqrt(19 * np.var(left_out))
    assert d.frechet_error(x, y) == pytest.approx(expected, rel=1e-5)
    assert expected == pytest.approx(alone, rel=0.4)


def test_precision_and_recall_are_the_brute_force_ones():
    x, y = sets(30, 40, 3, shift=2.0)

    def covered(these, those):
        """Share of `these` that lie within the reach of any of `those`."""
        reach = [sorted(np.linalg.norm(those - z, axis=1))[d.NEIGHBOURS] for z in those]
        inside = [(np.linalg.norm(those - z, axis=1) <= reach).any() for z in these]
        return np.mean(inside)

    found = d.precision_recall(x, d.Reference(y))
    peer = calculate_precision_recall_full(torch.from_numpy(x), torch.from_numpy(y), d.NEIGHBOURS)
    assert (found["precision"], found["recall"]) == pytest.approx(peer, rel=1e-6)
    assert found["precision"] == pytest.approx(covered(x, y), rel=1e-3)
    assert found["recall"] == pytest.approx(covered(y, x), rel=1e-3)
    assert 0 < found["precision"] < 1 and found["precision"] != found["recall"]
    collapsed = d.precision_recall(y[:1] + 1e-6 * x, d.Reference(y))  # one film over and over
    assert collapsed["precision"] == 1 and collapsed["recall"] < 0.1


def test_kernel_distance_is_unbiased_where_frechet_is_not():
    rng = np.random.default_rng(3)
    pairs = [(rng.normal(size=(20, 100)), rng.normal(size=(20, 100))) for _ in range(40)]
    kernels = np.array([d.kernel_distance(x, d.Reference(y))[0] for x, y in pairs])
    assert abs(kernels.mean()) < 3 * kernels.std() / np.sqrt(len(kernels))
    assert d.frechet_distance(*pairs[0]) > 50, "half of the total variance is bias at n = 20"


@pytest.mark.parametrize(
    "x, y, words",
    [
        (np.zeros((1, 3)), np.zeros((5, 3)), "two or more rows"),
        (np.zeros((5, 3)), np.zeros((5, 4)), "equal width"),
        (np.full((5, 3), np.nan), np.zeros((5, 3)), "not finite"),
    ],
)
def test_bad_features_are_refused(x, y, words):
    with pytest.raises(ValueError, match=words):
        d.frechet_distance(x, y)


def test_sample_and_floor_use_the_same_number_of_images():
    x, y = sets(60, 70)
    reference = d.Reference(y)
    real = x[:25] + 0.1
    got = d.compare_sets(x, reference, real)
    assert (got["n"], got["n_reference"]) == (25, 70)
    assert got["floor"] == pytest.approx(d.frechet_distance(real, y))
    assert got["kid_floor"] == pytest.approx(d.kernel_distance(real, reference)[0])
    few = d.compare_sets(x[:2], reference, real)
    assert few["frechet"] is None and few["n"] == 2
    assert got["precision_floor"] == pytest.approx(d.precision_recall(real, reference)["precision"])
    lonely = d.compare_sets(x, d.Reference(y[:1]), real)
    assert lonely["frechet"] is None and lonely["n_reference"] == 1
    alone = d.compare_sets(x, reference, None)
    assert alone["n"] == 60 and alone["floor"] is None


@pytest.mark.parametrize("n, per_caption, shares", [(12, 2, [1] * 12), (18, 3, [1, 2] * 6)])
def test_every_caption_keeps_its_share_of_fewer_images(n, per_caption, shares):
    films = [f"film-{i}" for i in range(12)] * per_caption  # one drawing of each, then the next
    drawn = np.array(films)[spread(films, n)].tolist()
    assert sorted(drawn.count(film) for film in set(films)) == sorted(shares)
    features, _ = sets(len(films), 30)
    real, reference = sets(12, 30)[0] + 0.1, d.Reference(sets(12, 30)[1])
    once = d.compare_sets(features[:12], reference, real)
    assert d.compare_sets(features, reference, real, films)["frechet"] == once["frechet"]


def test_of_drawings_that_stand_side_by_side_each_caption_has_one():
    features, training = sets(24, 30)
    films = [f"film-{i // 2}" for i in range(24)]
    real, reference = sets(12, 30)[0] + 0.1, d.Reference(training)
    found = d.compare_sets(features, reference, real, films)
    assert found["frechet"] == d.compare_sets(features[::2], reference, real)["frechet"]


def test_images_are_spread_over_a_row():
    assert spread("abcdefg", 3).tolist() == [0, 3, 6]
    assert spread("ab", 5).tolist() == [0, 1] and spread("", 3).tolist() == []


@pytest.fixture(scope="module")
def backbone():
    return d.load_backbone()


def test_backbone_is_deterministic_and_batch_free(backbone):
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64), dtype=np.uint8)
    features = backbone.extract(images, batch=2)
    assert features.shape == (5, 1280) and features.dtype == np.float32
    np.testing.assert_allclose(features, backbone.extract(images, batch=5), atol=1e-4)
    assert np.ptp(features, axis=0).max() > 0.01, "the features tell the images apart"
    assert "FID" not in d.distance_name(backbone.name)
    with pytest.raises(ValueError, match="uint8"):
        backbone(torch.zeros(1, 8, 8))


def test_torchmetrics_takes_the_backbone_as_it_is(backbone):
    metric = FrechetInceptionDistance(backbone)
    metric.update(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), real=True)
    assert metric.real_features_sum.shape == (1280,)


def test_unknown_weights_are_refused_before_they_are_read(tmp_path):
    wrong = tmp_path / "weights-inception-2015-12-05-6726825d.pth"
    wrong.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="not the known weights"):
        d.load_backbone(wrong)
    with pytest.raises(ValueError, match="no such weight file"):
        d.load_backbone(tmp_path / "absent.pth")


def test_the_floor_is_of_as_many_films_as_the_sample(monkeypatch):
    rng, compared, own = np.random.default_rng(0), [], d.frechet_distance
    monkeypatch.setattr(d, "frechet_distance", lambda x, y: compared.append(len(x)) or own(x, y))
    drawn, training, real = (rng.normal(size=(n, 4)) for n in (10, 20, 30))
    assert d.compare_sets(drawn, d.Reference(training), real)["n"] == 10
    assert compared == [10, 10]


def test_the_network_sees_films_as_its_weights_expect_them():
    network = d._EfficientNetLite0.__new__(d._EfficientNetLite0)
    nn.Module.__init__(network)
    network.body = SimpleNamespace(extract_features=lambda x: x)
    films = torch.zeros(3, 3, 896, 896, dtype=torch.uint8)
    films[1] = 255
    films[2, ..., ::4] = 255  # finer than the network's pixels: their mean
    expected = torch.tensor([-127.0, 128.0, 255 / 4 - 127]) / 128
    assert torch.allclose(network(films)[:, 0], expected, atol=0.01)
