"""Evaluation of sample shards and the report, on a run folder of random images."""

import html
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from report_run import (
    FILMS,
    GENERATORS,
    asked,
    experiment,
    make_run,
    plant_copies,
    stub_films,
    write_shard,
)

from hpc_hipgen.config import parse_experiment
from hpc_hipgen.evaluation import figures, measurements, real_films, report, results, samples
from hpc_hipgen.evaluation.measured_files import (
    load_table,
    read_array,
    read_features,
    store_features,
    store_table,
)
from hpc_hipgen.evaluation.memorisation import ALARM
from hpc_hipgen.files import DamagedError
from hpc_hipgen.radiograph.geometry import PATIENT_SIDES
from hpc_hipgen.rulers.ruler import Measurement
from hpc_hipgen.run import Run
from hpc_hipgen.tables import number
from jobs import evaluate, export
from jobs import report as report_job


def test_a_shard_is_measured_in_patient_sides_and_only_once(tmp_path, stubs, monkeypatch, capsys):
    run = make_run(tmp_path / "run")
    run.mark_done("prepare")
    assert evaluate.items(run) == [("reference", 0), ("ruler", 0), ("ruler", 1)]
    assert evaluate.evaluate_items(run, evaluate.items(run)) == 3
    table = pd.read_parquet(run.path("evaluation", "ruler", "shard-00000.parquet"))
    assert table["measured_left"].iloc[1] == asked(1)[0] + 1
    assert table["measured_right"].iloc[1] == asked(1)[1] - 2
    assert math.isnan(table["measured_left"].iloc[3])
    assert table["reason"].tolist() == ["", "", "", "no clear landmarks", "", ""]
    assert table["image_right_head_x"].iloc[0] == 12
    keys, features, name = read_features(run.path("evaluation", "ruler", "shard-00000.npz"))
    assert keys == table["key"].tolist() and features.shape == (6, 8)
    assert name == "EfficientNet-Lite0"

    # nothing is loaded when nothing is missing
    monkeypatch.setattr("hpc_hipgen.rulers.ruler.ruler_of", None)
    assert evaluate.main(["--run", str(run.folder)]) == 0
    assert "0 done now, 3 were there already" in capsys.readouterr().out


def test_references_are_the_nominal_views_of_training_films(tmp_path, stubs, monkeypatch):
    asked_for = []

    def films(_, *given, **more):
        asked_for.append((given, more))
        return stub_films("", *given, **more)

    monkeypatch.setattr(measurements, "read_manifest", films)
    run = make_run(tmp_path / "run", ["ruler", "llcm_4"], **GENERATORS)
    evaluate.evaluate_items(run, [("reference", 0), ("controls", 0)])
    assert asked_for == 2 * [(("train",), {"nominal_only": True})]
    reference, controls = (
        run.path("evaluation", row, "shard-00000.npz") for row in ("reference", "controls")
    )
    train = stub_films("", "train")
    keys, features, _ = read_features(reference)
    assert keys == train.ids and (features[:, 0] * 64 == train.images[:, 0, 1]).all()
    assert read_array(reference, "prompt_class").tolist() == train.prompt_class.tolist()
    held_out = stub_films("", "validation")
    keys, features, _ = read_features(controls)
    assert keys[:12] == [f"validation-{name}" for name in held_out.ids]
    assert (features[:12, 0] * 64 == held_out.images[:, 0, 1]).all()


def test_one_hip_without_an_angle_is_an_image_that_was_not_measured(tmp_path, stubs):
    class OneHip:
        def measure(self, images, batch):
            return [Measurement(100.0, math.nan, 0.5, np.zeros((2, 5)))] * len(images)

    run = make_run(tmp_path / "run")
    path = run.path("samples", "ruler", "shard-00000.tar")
    shard = samples.read_samples(path)
    said = measurements.evaluate_shard(
        run, ("ruler", 0), shard, OneHip(), SimpleNamespace(name="x", extract=lambda i, _: i[:, 0])
    )
    assert said == "6 images, 6 not measured"
    table = load_table(run.path("evaluation", "ruler", "shard-00000.parquet"))
    assert set(table["reason"]) == {"no finite angle"}
    assert table["measured_left"].isna().all() and (table["measured_right"] == 100).all()
    with pytest.raises(ValueError, match=r"of row 'llcm_4' says it belongs to 'ruler'"):
        measurements.measured(shard, "llcm_4", OneHip(), 4)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--row", "llcm_4"], "'llcm_4' is not one of reference, ruler"),
        (["--row", "ruler", "--shard", "7"], "shard-00007.tar: no such sample shard"),
    ],
)
def test_mistakes_end_in_one_line_and_status_2(tmp_path, stubs, capsys, arguments, words):
    run = make_run(tmp_path / "run")
    run.mark_done("prepare")
    assert evaluate.main(["--run", str(run.folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert evaluate.main(["--run", str(tmp_path / "nowhere")]) == 2


def test_damaged_shards_are_named(tmp_path):
    path = tmp_path / "shard-00000.tar"
    write_shard(path, "ruler", [0], np.random.default_rng(0), drop=["seed"])
    with pytest.raises(ValueError, match=r"shard-00000.tar: sample ruler-00000: .*'seed'"):
        samples.read_samples(path)
    write_shard(path, "ruler", range(4), np.random.default_rng(0))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"shard-00000.tar"):
        samples.read_samples(path)


def test_damaged_measurements_and_features_are_named_with_what_to_do(tmp_path):
    table, features = (tmp_path / f"shard-00000.{kind}" for kind in ("parquet", "npz"))
    advice = f"remove {tmp_path}/shard-00000.* and start again"
    for read, path in ((load_table, table), (read_features, features)):
        with pytest.raises(DamagedError, match=f"^{re.escape(f'{path}: missing; {advice}')}"):
            read(path)
    store_table(table, pd.DataFrame({"key": ["a"], "asked_left": [101.5]}))
    assert load_table(table)["asked_left"].tolist() == [101.5]
    whole = table.read_bytes()
    place = whole.index(np.float64(101.5).tobytes())
    changed = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    for content in (b"", whole[:100], changed):
        table.write_bytes(content)
        with pytest.raises(DamagedError, match=f"^{re.escape(f'{table}: damaged; {advice}')}"):
            load_table(table)
    for content in (b"", b"PK\x03\x04 cut short"):
        features.write_bytes(content)
        with pytest.raises(DamagedError, match=f"^{re.escape(f'{features}: damaged; {advice}')}"):
            read_features(features)
    store_features(features, ["a"], np.zeros((1, 2)), backbone="b", prompt_class=np.array([87654]))
    assert read_array(features, "prompt_class").tolist() == [87654]
    content = bytearray(features.read_bytes())
    content[content.index(np.int64(87654).tobytes())] ^= 1
    features.write_bytes(content)
    with pytest.raises(DamagedError, match=re.escape(f"{features}: damaged; {advice}")):
        read_array(features, "prompt_class")


@pytest.mark.slow
def test_the_whole_report(tmp_path, stubs, capsys, monkeypatch):
    rows = ["ruler", "round_trip", "stable_diffusion", "llcm_4"]  # llcm_1 was not sampled
    run = make_run(tmp_path / "run", rows, **GENERATORS)
    plant_copies(run, "llcm_4")
    evaluate.evaluate_items(run, evaluate.items(run))
    log = [{"images": 16 * i, "loss": 1 / i, "images_per_second": 10.0} for i in range(1, 5)]
    run.path("llcm").mkdir()
    text = "\n".join(json.dumps(line) for line in log)
    run.path("llcm", "metrics.jsonl").write_text(text + '\n{"images": 80, "lo')
    run.mark_done("train-llcm", images=64, parameters=1200.0, seconds=2.5)
    note = {"images": 8, "seconds": 4.0, "evaluations": 32}
    run.path("samples", "llcm_4", "shard-00000.json").write_text(json.dumps(note))
    assert report_job.main(["--run", str(run.folder)]) == 0

    metrics = json.loads(run.path("report", "metrics.json").read_text())
    assert list(metrics["faithfulness"]) == rows
    left = metrics["faithfulness"]["llcm_4"]["left"]
    assert {"r", "r_low", "r_high", "r2_identity", "mae", "bias", "slope", "n", "failed"} <= set(
        left
    )
    assert (left["n"], left["failed"]) == (FILMS - 1, 1)
    assert (left["mae"], left["bias"], left["r"]) == pytest.approx((1, 1, 1))
    assert metrics["faithfulness"]["llcm_4"]["right"]["bias"] == pytest.approx(-2)
    assert metrics["confidence"]["llcm_4"]["median"] == pytest.approx(0.9)
    assert metrics["ruler"]["mae"] == pytest.approx(1.5)
    assert metrics["ruler"]["left"]["r"] == pytest.approx(1), "its error is a bias alone"
    assert metrics["against_teacher"]["llcm_4"]["difference"] == pytest.approx(0)
    assert metrics["frechet"]["name"] == "Fréchet distance (EfficientNet-Lite0)"
    ruler = metrics["frechet"]["rows"]["ruler"]["1"]
    assert ruler["frechet"] == ruler["floor"] and ruler["n"] == FILMS // 2
    alike = metrics["diversity"]["rows"]["ruler"]
    assert list(alike) == ["all", "1", "2"] and alike["all"]["n"] == FILMS
    assert alike["all"]["low"] <= alike["all"]["ssim"] <= alike["all"]["high"] < 0.2
    assert list(metrics["runtime"]) == ["train-llcm"], "a training is one entry"
    noted = metrics["runtime"]["train-llcm"]
    assert noted["images"] == 64, "the cut-off line does not count"
    assert noted["seconds"] == pytest.approx(64 / 10), "over all starts, not 2.5 of the last"
    assert noted["images_per_s_median"] == 10 and noted["finished"]

    page = run.path("report", "report.html").read_text()
    low = number(left["r_low"], 3)
    assert f"<small>{low} to 1.000</small>" in page and "<small>1.00 to 1.00</small>" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page), "nothing is outside the file"
    assert "Every generator" in page and "SSIM 0.0" in page
    for words in ("LLCM, 4 steps", "DreamBooth (paper)", "not for diagnosis", "LLCM, 1 step"):
        assert words in page
    table = pd.read_csv(run.path("report", "table1.csv"))
    assert len(table) == 2 * (len(rows) + 3)
    compared = pd.read_csv(run.path("report", "comparison.csv")).set_index("row")
    assert list(compared.index) == ["stable_diffusion", "llcm_4"]
    line = compared.loc["llcm_4"]
    assert line["training_seconds"] == pytest.approx(64 / 10) and line["parameters"] == 1200
    assert math.isnan(line["seconds_with_bases"]), "nothing is known of its teacher's training"
    assert (line["seconds_per_image"], line["evaluations_per_image"]) == (0.5, 4)
    assert line["mae_left"] == pytest.approx(1) and line["copied"] == 0.5
    found = metrics["memorisation"]
    assert (found["rows"]["llcm_4"]["found"], found["rows"]["llcm_4"]["n"]) == (FILMS // 2, FILMS)
    assert found["rows"]["stable_diffusion"]["found"] == found["held_out"]["ruler"]["found"] == 0
    closest = [(pair["key"], pair["film"]) for pair in found["pairs"]["llcm_4"]]
    assert len(closest) == 3 and all(int(key[-5:]) == int(film[6:]) for key, film in closest)
    assert "Copies of training films" in page and page.count("6 of 12</td>") == 2
    listed = pd.read_csv(run.path("report", "copies.csv"), dtype={"key": str})
    assert set(listed["row"]) == {"llcm_4"} and not listed["key"].duplicated().any()
    number_of = {key: int(key[-5:]) for key in listed["key"]}  # that of the film it was planted of
    assert sorted(number_of.values()) == list(range(FILMS // 2))
    assert listed["film"].tolist() == [f"film-train-{n}" for n in number_of.values()]
    assert listed["view"].tolist() == [f"train-{n}" for n in number_of.values()]
    assert set(listed["embedding"]) <= {"features", "pixels"}
    assert (listed["distance"] < listed["threshold"]).all() and (listed["chance"] < ALARM).all()
    assert "film-train" not in json.dumps(metrics), "names of films are in the table alone"
    assert export.main(["--run", str(run.folder), "--row", "llcm_4"]) == 0
    kept = {path.stem for path in run.path("dicom", "llcm_4").iterdir()}
    assert kept == {f"llcm_4-{n:05d}" for n in range(FILMS // 2, FILMS)}
    text = run.path("report", "comparison.md").read_text().splitlines()
    assert "| 6 of 12 |" in text[3], "one copy among many is no 0 %"
    assert len(text) == 4 and text[3].startswith("| LLCM, 4 steps | 1,200 | 64 | 0.1 (–) | 1.00")
    assert tensorboard_images(run) == {
        "chain_of_errors", "closest_pairs", "dots", "losses", "samples",
        *(f"samples/{row}" for row in rows),
    }  # fmt: skip
    for name in ("samples.png", "dots.png", "chain_of_errors.svg", "losses.svg"):
        assert run.path("report", "figures", name).is_file()

    assert run.done("report") is None, "its films, and so what belongs to it, are not known"
    assert "the stage itself is not done yet" in capsys.readouterr().out
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="lacks shards"):
        patch.setattr(report_job, "report", lambda run: run.path("report", "report.html"))
        report_job.whole_report(run)
    monkeypatch.setattr(report_job, "stages", lambda config: [])  # as if all were measured
    report_job.report(run)
    before = run.path("report", "report.html").stat().st_mtime_ns
    assert run.done("report")
    report_job.report(run)
    assert run.path("report", "report.html").stat().st_mtime_ns == before
    write_shard(
        run.path("samples/llcm_1/shard-00000.tar"), "llcm_1", range(8), np.random.default_rng(1)
    )
    assert report_job.main(["--run", str(run.folder), "--force"]) == 2
    assert "python -m jobs.evaluate" in capsys.readouterr().err


@pytest.mark.parametrize("film, n", [(0, 1), (FILMS, None)])
def test_a_part_of_the_test_films_makes_a_report_too(tmp_path, stubs, film, n):
    few = {"sampling": {"llcm_steps": [4], "shard_size": FILMS // 2}}
    run = make_run(tmp_path / "run", ["round_trip", "llcm_4"], **{**GENERATORS, **few})
    path = run.path("samples", "ruler", "shard-00000.tar")
    write_shard(path, "ruler", [film], np.random.default_rng(2))
    evaluate.evaluate_items(run, evaluate.items(run))
    found = results.collect(run)
    decoded = found.metrics["memorisation"]["controls"].get("through the autoencoder")
    assert (decoded and decoded["n"]) == n
    assert found.partial == {"ruler": "1 of 2 shards"}


def test_what_was_measured_again_makes_another_report(tmp_path, stubs):
    run = make_run(tmp_path / "run", ["ruler", "llcm_4"], **GENERATORS)
    evaluate.evaluate_items(run, evaluate.items(run))
    before = report_job._evaluated(run)
    assert list(before) == ["ruler", "llcm_4", "reference", "controls"]
    shard = run.path("evaluation", "llcm_4", "shard-00001.parquet")
    shard.touch()
    assert report_job._evaluated(run) == before, "the same again is no news"
    table = pd.read_parquet(shard)
    table.assign(measured_left=table["measured_left"] + 1).to_parquet(shard)
    after = report_job._evaluated(run)
    assert [row for row in before if before[row] != after[row]] == ["llcm_4"]


def tensorboard_images(run):
    """Names of the pictures in tensorboard/report."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path("tensorboard", "report")))
    events.Reload()
    return set(events.Tags()["images"])


def test_films_without_generators_make_a_report_too(tmp_path, stubs):
    (tmp_path / "films").mkdir()
    data = {"source": "films", "films": str(tmp_path / "films"), "resolution": 32}
    run = make_run(tmp_path / "run", data=data)
    evaluate.evaluate_items(run, [("ruler", 0), ("ruler", 1)])
    page = report_job.report(run).read_text()
    assert "real films given by the user" in page and "phantoms, not on dogs" not in page
    assert real_films.CAVEAT in html.unescape(page) and "how well it agrees with them" in page
    assert json.loads(run.path("report", "metrics.json").read_text())["frechet"] is None
    assert not run.path("report", "copies.csv").exists(), "nobody looked for any"


def test_where_nothing_is_a_copy_the_table_of_copies_is_a_head_alone(tmp_path, stubs, monkeypatch):
    run = make_run(tmp_path / "run", ["ruler", "llcm_4"], **GENERATORS)
    evaluate.evaluate_items(run, evaluate.items(run))
    for name in ("_figures", "_render", "_tensorboard"):  # which take long
        monkeypatch.setattr(report, name, lambda *given: "")
    report.write_report(run)
    audited = json.loads(run.path("report", "metrics.json").read_text())["memorisation"]
    assert audited["rows"]["llcm_4"]["found"] == 0 and audited["copies"] == []
    text = run.path("report", "copies.csv").read_text()
    assert text == "row,key,shard,film,view,embedding,distance,threshold,chance,mirrored\n"


def test_intervals_of_real_films_resample_their_dogs(tmp_path, stubs, monkeypatch):
    (tmp_path / "films").mkdir()
    run = make_run(tmp_path / "run", evaluation={"films": str(tmp_path / "films")})
    run.path("films").mkdir()
    lines = [f"film-{n:02d},dog-{n // 3}\n" for n in range(FILMS)]
    run.path("films", "manifest.csv").write_text("film,dog\n" + "".join(lines))
    rows = [("ruler", 0), ("ruler", 1), ("films", 0), ("films", 1)]
    evaluate.evaluate_items(run, rows)
    resampled = []
    monkeypatch.setattr(
        results,
        "bootstrap_intervals",
        lambda asked, measured, dogs, seed: resampled.append(sorted(set(dogs))) or {},
    )
    results.collect(run)
    films, dogs = [f"film-{n:02d}" for n in range(FILMS)], [f"dog-{n}" for n in range(FILMS // 3)]
    assert resampled == [films, films, dogs, dogs]  # two sides each


def test_nothing_evaluated_is_said(tmp_path):
    run = Run.create(tmp_path / "run", experiment())
    with pytest.raises(ValueError, match="nothing evaluated yet"):
        results.collect(run)


def test_always_drawing_one_angle_is_scored_on_the_images_that_were_measured(tmp_path, stubs):
    run = make_run(tmp_path / "run", ["ruler", "llcm_4"], **GENERATORS)
    evaluate.evaluate_items(run, [(row, k) for row in ("ruler", "llcm_4") for k in (0, 1)])
    page = report_job.report(run).read_text()
    metrics = json.loads(run.path("report", "metrics.json").read_text())
    measured = np.array([asked(film)[0] for film in range(FILMS) if film != 3])
    off = np.abs(measured - np.median(measured)).mean()
    left = metrics["faithfulness"]["llcm_4"]["left"]
    assert left["constant_mae"] == pytest.approx(off)
    assert f"<b>{off:.1f}° / " in page
    assert "LLCM, 4 steps; 11 of 12 measured" in page


@pytest.mark.parametrize(
    "rows, top",
    [
        (["ruler", "stable_diffusion", "stable_diffusion_caption"], "stable_diffusion"),
        (["ruler", "stable_diffusion_caption"], "stable_diffusion_caption"),
    ],
)
def test_the_negative_control_stands_at_the_top_only_when_alone(rows, top):
    scores = {row: {} for row in rows}
    found = results.Results(scores, [], {}, {"faithfulness": scores})
    assert report._headline(found)[0] == top


def test_grid_films_are_spread_over_the_angles_asked_for(tmp_path, stubs):
    run = make_run(tmp_path / "run")
    evaluate.evaluate_items(run, [("ruler", 0), ("ruler", 1)])
    grid = report.choose_grid(run, results.collect(run))
    assert [entry["film"] for entry in grid] == [f"film-{i:02d}" for i in (0, 2, 4, 7, 9, 11)]
    cell = grid[1]["cells"]["ruler"]
    assert int(cell["image"][0, 0]) == 2
    assert (cell["left_error"], cell["right_error"]) == pytest.approx((1, -2))


def test_a_figure_is_the_same_bytes_every_time():
    lines = {"llcm": [{"images": i, "loss": 1.0 / i} for i in range(1, 9)]}
    assert figures.svg(figures.loss_curves(lines)) == figures.svg(figures.loss_curves(lines))


@pytest.mark.parametrize("n, drawn", [(900, 0), (1100, 1)])
def test_many_dots_are_a_picture_in_the_page(n, drawn):
    """A browser does not open 100,000 of them."""
    angles = np.linspace(70, 120, n)
    columns = {f"{kind}_{s}": angles for kind in ("asked", "measured") for s in PATIENT_SIDES}
    table, scores = pd.DataFrame(columns), {side: {} for side in PATIENT_SIDES}
    for figure in (
        figures.dot_plot(table, scores, (70, 120)),
        figures.bland_altman({"a": table}, {"a": "a"}, {"a": scores}),
    ):
        page = figures.svg(figure)
        assert (page.count(b"<image ") > 0) == drawn
        assert (page.count(b"<use ") > n) != drawn


def test_the_panels_are_of_the_worst_films(tmp_path, monkeypatch):
    """Of the others no picture is read."""
    monkeypatch.setattr(report, "SHOWN_FILMS", 3)
    films, nothing = ["a", "b", "c", "d", "e"], np.zeros(5)
    table = pd.DataFrame(
        {
            **{"film": films, "key": films, "shard": 0, "reason": ["", "", "no hips", "", ""]},
            **{"asked_left": nothing, "measured_left": [1.0, -3.0, np.nan, 2.0, 0.5]},
            **{"asked_right": nothing, "measured_right": [0.0, 0.0, np.nan, np.nan, -9.0]},
        }
    )
    read = []

    def images(run, row, wanted):
        read.extend(wanted)
        return {film: np.zeros((8, 8), np.uint8) for film in wanted}

    monkeypatch.setattr(report, "_images", images)
    views = SimpleNamespace(film=films, landmarks=np.zeros((5, 2, 5)))
    monkeypatch.setattr(report, "read_manifest", lambda *_, **__: views)
    monkeypatch.setattr(report, "row_data", lambda *_: tmp_path)
    found = report.film_panels(None, SimpleNamespace(tables={"films": table}))
    assert [panel["film"] for panel in found] == read == ["c", "e", "b"]


def test_the_last_panel_of_each_column_has_the_labels_of_its_axis():
    table = pd.DataFrame(
        {f"{k}_{s}": [90.0, 100] for k in ("asked", "measured") for s in PATIENT_SIDES}
    )
    rows = [f"row {n}" for n in range(6)]  # four columns, the last two of one panel
    scores = {row: {side: {} for side in PATIENT_SIDES} for row in rows}
    figure = figures.bland_altman(dict.fromkeys(rows, table), {row: row for row in rows}, scores)
    figure.canvas.draw()
    shown = {
        axes.get_title("left"): any(
            t.get_visible() and t.get_text() for t in axes.get_xticklabels()
        )
        for axes in figure.axes
        if axes.get_visible()
    }
    assert [row for row, labelled in shown.items() if labelled] == rows[2:]


def test_smoothing_starts_without_bias_and_skips_holes():
    got = figures.smooth(np.array([2.0, 2.0, np.nan, 2.0]), 3)
    assert got == pytest.approx([2, 2, 2, 2])
    assert np.isnan(figures.smooth(np.array([np.nan, np.inf]), 3)).all()


@pytest.mark.parametrize("span", [0.0, 0.3, 5.0, 400.0])
def test_smoothing_is_the_recursion_of_an_exponential_average(span):
    rng = np.random.default_rng(0)
    values = np.where(rng.random(300) < 0.2, np.nan, rng.standard_normal(300))
    keep, total, weight, expected = np.exp(-1 / max(span, 1e-9)), 0.0, 0.0, []
    for value in values:
        if np.isfinite(value):
            total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        expected.append(total / weight if weight else np.nan)
    assert figures.smooth(values, span) == pytest.approx(expected, abs=1e-14, nan_ok=True)


def test_a_log_that_was_resumed_keeps_the_later_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"images": 2, "loss": 1}\n{"images": 1, "loss": 5}\n{"images": 2, "loss": 3}\n'
    )
    assert results.read_log(path) == [{"images": 1, "loss": 5}, {"images": 2, "loss": 3}]
    assert results.read_log(tmp_path / "absent") == []


def drawings(films=5, off=0.0, each=1):
    """Lines of an evaluation table, whose measured angles are off by so many degrees."""
    index = np.arange(films * each)
    asked = 90.0 + index % films
    table = {"index": index, "film": [f"film-{i % films}" for i in index]}
    table["prompt_class"] = 1 + index % films % 2
    for side in PATIENT_SIDES:
        table |= {f"asked_{side}": asked, f"measured_{side}": asked + off}
    return pd.DataFrame(table)


def test_the_clearness_of_a_row_is_its_median_and_its_worst():
    table = pd.DataFrame({"confidence": [0.2, *[0.9] * 10, *[0.95] * 10]})
    found = results._confidence(table)
    assert found["median"] == 0.9 and 0.8 < found["low"] <= 0.9


def test_with_feedback_rows_say_their_guidance_in_which_they_differ(tmp_path, tiny_settings):
    training = {"training": {"images": 8, "batch": 4, "lr": 1e-3}}
    tiny_settings["sampling"] |= {"guidance": 1.5, "llcm_guidance": 3}
    plain = Run.create(tmp_path / "plain", parse_experiment(tiny_settings, "x"))
    assert results.row_label("stable_diffusion", plain) == "Stable Diffusion, 2 steps"
    more = {"feedback": training, "reward_model": tiny_settings["ruler"]}
    run = Run.create(tmp_path / "tuned", parse_experiment(tiny_settings | more, "x"))
    tuned, untuned = (
        results.row_label(row, run) for row in ("stable_diffusion", "stable_diffusion_untuned")
    )
    assert untuned.endswith(", 2 steps, guidance 1.5") and "guidance" not in tuned


def test_one_angle_for_all_captions_is_their_median_and_each_drawings_own():
    tables = {"ruler": drawings(films=3), "llcm_4": drawings(films=5, each=2)}
    found = results._baseline(tables)
    assert found["left"] == found["right"] == {"angle": 92.0, "mae": pytest.approx(1.2)}


def test_a_row_that_is_worse_than_the_teacher_has_a_difference_above_zero():
    tables = {"stable_diffusion": drawings(off=1.0), "llcm_4": drawings(off=-3.0)}
    found = results._comparisons(tables, None)
    assert list(found) == ["llcm_4"]
    assert found["llcm_4"]["difference"] == pytest.approx(2) and found["llcm_4"]["low"] > 0


def test_a_class_is_compared_with_training_films_of_that_class():
    rng = np.random.default_rng(0)
    classes = np.array([1] * 12 + [2] * 8)
    training = rng.normal(size=(20, 6)) + 10 * classes[:, None]  # classes lie far apart
    table = drawings(films=20)
    drawn = rng.normal(size=(20, 6)) + 10 * table["prompt_class"].to_numpy()[:, None]
    features = results.Features({"llcm_4": drawn}, training, classes, "EfficientNet-Lite0")
    found = results._frechet(features, {"llcm_4": table})["rows"]["llcm_4"]
    assert [found[group]["n_reference"] for group in ("all", "1", "2")] == [20, 12, 8]
    assert [found[group]["n"] for group in ("all", "1", "2")] == [20, 10, 10]
    assert max(found[group]["frechet"] for group in ("1", "2")) < 30


def test_above_an_image_stands_each_side_with_its_own_angle():
    asked = [{"asked": {"left": 102.5, "right": 98.0}}]
    assert report._asked(asked) == ["asked\nR 98.0    L 102.5"]


def test_lines_of_the_ruler_lie_on_the_centres_of_its_pixels():
    drawn = report._overlay(np.array([[4.0, 8, 2, 3, 6], [12, 8, 3, 13, 6]]))
    assert drawn["line"] == "3.5,6.5 4.5,8.5 12.5,8.5 13.5,6.5"
    assert drawn["circles"] == [("4.5", "8.5", "2.0"), ("12.5", "8.5", "3.0")]


def test_the_papers_rows_have_both_sides_and_intervals_of_their_own():
    lines = report.table_1(results.Results({}, [], {}, {"faithfulness": {}}), {})
    llcm = {line["side"]: line for line in lines if line["name"] == "LLCM (paper)"}
    assert (llcm["left"]["r"], llcm["right"]["r"]) == (0.2026, 0.1458)
    for line in llcm.values():  # of 84 films, by Fisher
        half = np.arctanh(line["r_high"]) - np.arctanh(line["r"])
        assert half == pytest.approx(1.96 / 9, abs=1e-4)
