"""The training loop on a toy: resuming to the bit, ranks, ZeRO stages, and what stops it."""

import json
import multiprocessing
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toy_task import SETTINGS, ToyTask, lines, losses, toy_train
from warm_python import warm_ranks

from hpc_hipgen.config import Training
from hpc_hipgen.files import sha256_of
from hpc_hipgen.training.average import WeightAverage
from hpc_hipgen.training.batches import Batches
from hpc_hipgen.training.checkpoint import AVERAGES, STATE, complete_checkpoints
from hpc_hipgen.training.clock import data_order
from hpc_hipgen.training.interruption import Interrupted
from hpc_hipgen.training.loop import train
from hpc_hipgen.training.outcome import NonFiniteLossError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run: its task and folder."""
    folder = tmp_path_factory.mktemp("whole") / "toy"
    return toy_train(folder), folder


def same(one, other):
    """True when all weights and averages are equal to the bit."""
    return all(torch.equal(a, b) for a, b in zip(one.state(), other.state(), strict=True))


def test_every_step_is_recorded(whole):
    _, folder = whole
    found = losses(folder)
    assert len(found) == SETTINGS["images"] // SETTINGS["batch"]
    assert [line["images"] for line in lines(folder)] == list(range(8, 97, 8))
    assert all(isinstance(line["images"], int) for line in lines(folder))
    assert {"error", "lr", "images_per_second", "memory_gib"} <= set(lines(folder)[0])
    assert list((folder.parent / "tensorboard" / "toy").glob("events*"))


def test_the_loss_falls(tmp_path):
    toy_train(tmp_path / "toy", images=2000, log_images=400, checkpoint_images=2000)
    found = losses(tmp_path / "toy")
    assert len(found) == 5 and found[-1] < 0.2 * found[0]


def test_a_second_run_is_the_same_to_the_bit_and_the_seed_counts(whole, tmp_path):
    assert same(toy_train(tmp_path / "toy"), whole[0])
    other = ToyTask()
    train(other, Training(**SETTINGS), tmp_path / "other", seed=8, title="toy")
    assert not same(other, whole[0])


@pytest.mark.parametrize(
    "settings",
    [
        {"zero_stage": 0},
        {"zero_stage": 1, "micro_batch": 4},
        {"zero_stage": 2, "precision": "bf16"},
        {"zero_stage": 3},
        {"zero_stage": 0, "optimizer": "muon"},
    ],
    ids=str,
)
@pytest.mark.parametrize("what", ["stop", "crash"])
def test_an_interrupted_run_goes_on_to_the_bit(tmp_path, settings, what):
    undisturbed = toy_train(tmp_path / "whole" / "toy", **settings)
    folder = tmp_path / "cut" / "toy"
    error = {"stop": Interrupted, "crash": OSError}[what]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(error):
        toy_train(folder, ToyTask(at={48: what}), **settings)
    assert signal.getsignal(signal.SIGTERM) is before, "the handlers are put back"
    # other first weights: all that counts is in the checkpoint
    resumed = ToyTask(first_weights=99)
    toy_train(folder, resumed, **settings)
    assert resumed.seen[0] == {"stop": 56, "crash": 32}[what]
    assert same_after(undisturbed, resumed, settings)
    assert losses(folder) == losses(tmp_path / "whole" / "toy")
    assert [line["images"] for line in lines(folder)] == list(range(8, 97, 8))


def same_after(one, other, settings):
    """At stage 3 the weights stay partitioned; the averages hold the result at every stage."""
    if settings["zero_stage"] < 3:
        return same(one, other)
    count = sum(len(list(a.module.parameters())) for a in one.averages.values())
    pairs = list(zip(one.state(), other.state(), strict=True))[-count:]
    return all(torch.equal(a, b) and a.numel() for a, b in pairs)


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_batches_made_ahead_by_other_processes_change_no_bit(whole, tmp_path, micro_batch):
    settings = {"micro_batch": micro_batch}
    here = whole[0] if micro_batch is None else toy_train(tmp_path / "here" / "toy", **settings)
    folder = tmp_path / "toy"
    with pytest.raises(OSError):
        toy_train(folder, ToyTask(at={48: "crash"}), workers=2, **settings)
    resumed = toy_train(folder, ToyTask(first_weights=99), workers=2, **settings)
    assert same(resumed, here)
    assert not multiprocessing.active_children()


def test_processes_that_make_batches_leave_signals_to_the_trainer(whole, tmp_path):
    """Slurm sends them to all processes of a job; the toy stops whoever makes its batch."""
    assert same(toy_train(tmp_path / "toy", ToyTask(at={48: "stop"}), workers=2), whole[0])


def test_a_damaged_image_is_one_line_whoever_reads_it(tmp_path):
    for workers in (0, 2):
        with pytest.raises(ValueError, match=r"^item-3: unreadable$"):
            toy_train(tmp_path / str(workers), ToyTask(at={8: "damaged"}), workers=workers)


def test_two_stops_are_no_worse_than_one(whole, tmp_path):
    for time in (16, 40):
        with pytest.raises(Interrupted, match="start again to go on"):
            toy_train(tmp_path / "toy", ToyTask(at={time: "stop"}))
    assert same(toy_train(tmp_path / "toy"), whole[0])


def test_a_stop_at_the_last_step_ends_well(whole, tmp_path):
    assert same(toy_train(tmp_path / "toy", ToyTask(at={88: "stop"})), whole[0])


def test_a_finished_run_is_loaded_and_not_trained(whole, tmp_path):
    shutil.copytree(whole[1], tmp_path / "toy")
    task = ToyTask(first_weights=99)
    figures = train(task, Training(**SETTINGS), tmp_path / "toy", seed=7, title="toy")
    assert figures["images"] == 96 and figures["images_per_second"] is None
    assert task.seen == [] and same(task, whole[0])


def damage(checkpoint, what):
    """Spoils one file of a checkpoint."""
    state = checkpoint / STATE
    content = bytearray(state.read_bytes())
    if what == "cut":
        state.write_bytes(content[:-100])
    elif what == "altered":  # the same size
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    else:
        {"lost": state, "unmarked": checkpoint / "complete.json"}[what].unlink()


DAMAGES = {
    "cut": "bytes, ",
    "lost": "state.pt is missing",
    "unmarked": "complete.json is missing",
    "altered": "state.pt does not hold what was written",
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(whole, tmp_path, what, capsys):
    shutil.copytree(whole[1], tmp_path / "toy")
    checkpoints = tmp_path / "toy" / "checkpoints"
    damage(checkpoints / "0000000096", what)
    task = toy_train(tmp_path / "toy", ToyTask(first_weights=99))
    assert task.seen[0] == 64
    assert same(task, whole[0]) and losses(tmp_path / "toy") == losses(whole[1])
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"damaged checkpoint: {checkpoints / '0000000096'}: ")
    assert DAMAGES[what] in said[0]
    assert said[1] == f"going on from the one before: {checkpoints / '0000000064'}"
    assert [p.name for p in complete_checkpoints(checkpoints)] == ["0000000096", "0000000064"]


def test_when_every_checkpoint_is_damaged_the_run_starts_anew_and_says_so(whole, tmp_path, capsys):
    shutil.copytree(whole[1], tmp_path / "toy")
    for checkpoint in (tmp_path / "toy" / "checkpoints").iterdir():
        damage(checkpoint, "altered")
    with pytest.raises(OSError):
        toy_train(tmp_path / "toy", crashed := ToyTask(at={48: "crash"}))
    assert crashed.seen[0] == 0
    task = toy_train(tmp_path / "toy")
    assert task.seen[0] == 32, "its own checkpoint counts, not the damaged ones of later"
    assert same(task, whole[0])
    assert "nothing to go on from; starting anew" in capsys.readouterr().err


def test_the_checkpoint_of_another_network_is_refused(whole, tmp_path):
    shutil.copytree(whole[1], tmp_path / "toy")
    task = ToyTask()
    task.module.layers[0] = torch.nn.Linear(6, 9)
    with pytest.raises(ValueError, match=r"0000000096 is of another network: layers.0.weight"):
        toy_train(tmp_path / "toy", task)


@pytest.mark.parametrize("persistent", [True, False])
def test_a_table_that_never_changes_is_no_part_of_a_checkpoint(whole, tmp_path, persistent):
    shutil.copytree(whole[1], tmp_path / "toy")
    task = ToyTask(first_weights=99)
    task.module.register_buffer("table", torch.ones(3), persistent=persistent)
    if persistent:
        with pytest.raises(ValueError, match="of another network: table"):
            toy_train(tmp_path / "toy", task)
    else:
        assert same(toy_train(tmp_path / "toy", task), whole[0])


def partly_frozen(folder, base=0, at=None, stores_frozen=False):
    """Trains the toy on a first layer that is given, that of the weights `base`."""
    task = ToyTask(first_weights=base)
    first = task.module.layers[0].state_dict()
    task = ToyTask(first_weights=5, at=at)
    task.module.layers[0].requires_grad_(False).load_state_dict(first)
    task.averages = {"export": WeightAverage(task.module, 0.9)}
    task.stores_frozen = stores_frozen
    return toy_train(folder, task, zero_stage=0)


def test_the_weights_of_a_base_are_no_part_of_a_checkpoint(tmp_path):
    """They are read again where it is; another base is seen."""
    expected = partly_frozen(tmp_path / "whole")
    with pytest.raises(Interrupted):
        partly_frozen(tmp_path / "toy", at={48: "stop"})
    (path,) = (tmp_path / "toy" / "checkpoints").glob("*56")
    state = torch.load(path / STATE, weights_only=True)
    averages = torch.load(path / AVERAGES, weights_only=True)
    for weights in (state["weights"], averages["export"]["module"]):
        assert weights and not any(name.startswith("layers.0.") for name in weights)
    shutil.copytree(tmp_path / "toy", tmp_path / "other")
    assert same(partly_frozen(tmp_path / "toy"), expected)
    with pytest.raises(ValueError, match=r"56 is of another network: layers.0.weight of the base"):
        partly_frozen(tmp_path / "other", base=1)


def test_a_checkpoint_that_holds_the_base_is_gone_on_with(tmp_path):
    """As they were once all written; and what is frozen by itself, as a prior's mean, is kept."""
    expected = partly_frozen(tmp_path / "whole")
    with pytest.raises(Interrupted):
        partly_frozen(tmp_path / "toy", at={48: "stop"}, stores_frozen=True)
    assert same(partly_frozen(tmp_path / "toy", base=1), expected)


def means(folder):
    """The lines without what depends on the machine."""
    return [
        {k: v for k, v in line.items() if k in ("images", "loss", "error", "lr")}
        for line in lines(folder)
    ]


@pytest.mark.parametrize("what", ["stop", "crash"])
def test_lines_are_the_same_after_a_resume(tmp_path, what):
    toy_train(tmp_path / "whole" / "toy", log_images=24)
    with pytest.raises({"stop": Interrupted, "crash": OSError}[what]):
        toy_train(tmp_path / "toy", ToyTask(at={48: what}), log_images=24)
    told = []  # from the checkpoint at 56 or 32, amid a line
    train(
        ToyTask(), Training(**SETTINGS | {"log_images": 24}), tmp_path / "toy", seed=7, title="toy",
        also=lambda images, values: told.append((images, values["loss"])),
    )  # fmt: skip
    assert [images for images, _ in told] == [24, 48, 72, 96], "those of before again"
    assert [line["images"] for line in lines(tmp_path / "toy")] == [24, 48, 72, 96]
    assert means(tmp_path / "toy") == means(tmp_path / "whole" / "toy")


def test_a_checkpoint_from_before_the_lines_were_in_it_is_gone_on_with(whole, tmp_path):
    with pytest.raises(Interrupted):
        toy_train(tmp_path / "toy", ToyTask(at={48: "stop"}), log_images=24)
    (path,) = (tmp_path / "toy" / "checkpoints").glob("*56")
    state = torch.load(path / STATE, weights_only=True)
    assert len(state.pop("window")["loss"]) == 1
    torch.save(state, path / STATE)
    content = json.loads((path / "complete.json").read_text())
    content["files"][STATE] = [(path / STATE).stat().st_size, sha256_of(path / STATE)]
    (path / "complete.json").write_text(json.dumps(content))
    task = toy_train(tmp_path / "toy", ToyTask(first_weights=99), log_images=24)
    assert task.seen[0] == 56 and same(task, whole[0])
    assert [line["images"] for line in lines(tmp_path / "toy")] == [24, 48, 72, 96]


def test_half_a_line_of_a_killed_run_is_dropped(whole, tmp_path):
    with pytest.raises(OSError):
        toy_train(tmp_path / "toy", ToyTask(at={80: "crash"}))
    with (tmp_path / "toy" / "metrics.jsonl").open("a") as file:
        file.write('{"images": 88, "lo')
    toy_train(tmp_path / "toy")
    assert losses(tmp_path / "toy") == losses(whole[1])


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_a_loss_that_is_no_number_stops_before_the_weights(tmp_path, micro_batch):
    task = ToyTask(bad=[3, 11])
    first = [value.clone() for value in task.state()]
    with pytest.raises(NonFiniteLossError, match=r"toy: .* at 0 images.*item-\d+") as error:
        # one batch is the whole data set: both are in it
        toy_train(tmp_path / "toy", task, batch=20, images=20, micro_batch=micro_batch)
    named = set(re.findall(r"item-\d+", str(error.value)))
    assert named == {"item-3", "item-11"} if micro_batch is None else named < {"item-3", "item-11"}
    assert all(torch.equal(a, b) for a, b in zip(first, task.state(), strict=True))
    assert not list((tmp_path / "toy").glob("checkpoints/0*"))


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_gradient_that_is_no_number_stops_before_the_weights(tmp_path, stage):
    task = ToyTask()
    first = [value.clone() for value in task.state()]
    task.module.layers[0].weight.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(NonFiniteLossError, match=r"toy: the gradient is not finite at 0 images"):
        toy_train(tmp_path / "toy", task, zero_stage=stage)
    assert stage == 3 or all(torch.equal(a, b) for a, b in zip(first, task.state(), strict=True))


def test_a_batch_above_the_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="toy: batch 24 is above the 20 data items"):
        toy_train(tmp_path / "toy", batch=24)


def test_accumulation_changes_no_loss(whole, tmp_path):
    toy_train(tmp_path / "toy", micro_batch=2)
    assert losses(tmp_path / "toy") == pytest.approx(losses(whole[1]), rel=2e-6, abs=1e-6)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_zero_stages_change_no_loss(whole, tmp_path, stage):
    toy_train(tmp_path / "toy", zero_stage=stage)
    assert losses(tmp_path / "toy") == pytest.approx(losses(whole[1]), rel=1e-5, abs=1e-5)


KINDS = {str(stage): {"zero_stage": stage} for stage in (0, 1, 2, 3)}
KINDS["muon"] = {"zero_stage": 0, "optimizer": "muon"}
"""Settings under which runs go on with another number of ranks."""

BAD = int(data_order(7, 4, 1, 20)[0])
"""An item of the second rank, which has images 4 to 7 of the first batch."""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """A folder with all that two ranks train, in one start of theirs, and what it goes on from."""
    folder = tmp_path_factory.mktemp("ranks")
    runs = [
        # as a network that is larger than a bucket, one of its matrices too
        (folder / f"accumulates-{stage}", {"zero_stage": stage, "micro_batch": 2, "bucket": 200})
        for stage in (1, 3)
    ]
    # as of `_linear_of_torch`, which comes later
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)
        for kind, settings in KINDS.items():
            toy_train(folder / f"one-{kind}", **settings)
            with pytest.raises(Interrupted):
                toy_train(folder / f"one-two-{kind}", ToyTask(at={48: "stop"}), **settings)
    for kind, settings in KINDS.items():
        other = settings | {"first_weights": 99}
        runs += [
            (folder / f"two-{kind}", settings),
            (folder / f"two-two-{kind}", settings | {"stop": 48}),
            (folder / f"two-two-{kind}", other),
            (folder / f"two-one-{kind}", settings | {"stop": 48}),
            (folder / f"one-two-{kind}", other),
        ]
    runs.append((folder / "bad", {"bad": [BAD]}))
    given = json.dumps([(str(place), settings) for place, settings in runs])
    warm_ranks(Path(__file__).with_name("toy_task.py"), given, folder=folder, path=[ROOT])
    return folder


@pytest.mark.slow
def test_two_ranks_see_the_losses_of_one(whole, ranks):
    for folder in (ranks / "two-1", ranks / "accumulates-1", ranks / "accumulates-3"):
        assert losses(folder) == pytest.approx(losses(whole[1]), rel=1e-5, abs=1e-5)
        path = folder / "checkpoints" / "0000000096" / "averages.pt"
        averages = torch.load(path, weights_only=True)
        for name, average in whole[0].averages.items():
            for key, value in average.module.state_dict().items():
                assert torch.allclose(averages[name]["module"][key], value, atol=1e-5), (name, key)


@pytest.mark.slow
def test_a_bad_image_of_another_rank_is_named_too(ranks):
    said = (ranks / "bad" / "error.txt").read_text()
    assert f"at 0 images seen, on item-{BAD};" in said


def stored(folder):
    """All tensors of the last checkpoint by name."""
    path = complete_checkpoints(Path(folder) / "checkpoints")[0]
    state = torch.load(path / STATE, weights_only=True)
    averages = torch.load(path / AVERAGES, weights_only=True)
    assert path.name == "0000000096" and state.pop("step") == 12
    tensors = {f"{part} {name}": v for part in state for name, v in state[part].items()}
    return tensors | {
        f"average {name} {key}": value
        for name, average in averages.items()
        for key, value in average["module"].items()
    }


def apart(one, other):
    """Largest difference between the states at the end of two runs."""
    first, second = stored(one), stored(other)
    assert first.keys() == second.keys() and len(first) > 12
    return max((first[name] - second[name]).abs().max().item() for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_with_another_number_of_ranks(ranks, kind):
    """Stopped at 48 images on one rank or two, gone on with on one or two, however it is set."""
    task = toy_train(ranks / f"two-one-{kind}", ToyTask(first_weights=99), **KINDS[kind])
    assert task.seen[0] == 56
    assert apart(ranks / f"two-two-{kind}", ranks / f"two-{kind}") == 0.0
    # gradients are added up in another order; Muon makes the least of their parts the largest
    close = 1e-4 if kind == "muon" else 1e-5
    for name in ("two", "one-two", "two-one"):
        assert apart(ranks / f"{name}-{kind}", ranks / f"one-{kind}") < close, name
        expected = pytest.approx(losses(ranks / f"one-{kind}"), rel=close, abs=close)
        assert losses(ranks / f"{name}-{kind}") == expected, name


@pytest.mark.parametrize("later", [0, 2, 3])
def test_a_run_goes_on_with_another_zero_stage(whole, tmp_path, later):
    with pytest.raises(Interrupted):
        toy_train(tmp_path / "toy", ToyTask(at={48: "stop"}))
    toy_train(tmp_path / "toy", ToyTask(first_weights=99), zero_stage=later)
    assert apart(tmp_path / "toy", whole[1]) < 1e-5


def test_the_seed_decides_both_the_order_and_the_noise():
    def batch(items, random):
        return items.tolist(), random.uniform("noise").tolist()

    task, training = SimpleNamespace(size=1000, batch=batch), Training(images=64, batch=16, lr=1e-3)
    one, again, other = (Batches(task, training, seed).make(0) for seed in (1, 1, 2))
    assert one == again and one[0] != other[0] and one[1] != other[1]
