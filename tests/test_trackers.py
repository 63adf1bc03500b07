"""Experiment trackers: a real small run, read back from the files of each of them."""

import importlib.util
import json
import os
import sqlite3
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainerState

from siglip_flowers.base.errors import InputError
from siglip_flowers.commands.train import main as train
from siglip_flowers.tracking import kinds
from siglip_flowers.tracking.kinds import (
    WANDB_FINISH_SECONDS,
    WandbTracker,
    build_trackers,
    check_trackers,
    choose_trackers,
    choose_wandb_mode,
)
from siglip_flowers.tracking.trackers import RunFacts, Tracker, Trackers
from tests.small_runs import CLASSES, make_checkpoint, make_folder, small_options

SECRET = "hf_" + "q7" * 17
NAMES = ("aim", "wandb", "tensorboard", "trackio")
NEEDED = [name for name in NAMES if importlib.util.find_spec(name)]
# The name of the data set.
PROJECT = "data"
FIND_SPEC = "importlib.util.find_spec"


def needs(name):
    return pytest.mark.skipif(name not in NEEDED, reason=f"{name} is not installed")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A working directory of its own, where nobody is logged in to W&B."""
    root = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC", "WANDB_DIR", "AIM_REPO"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(root / "home"))
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("HF_TOKEN", SECRET)
        patch.chdir(root)
        yield root


@pytest.fixture(scope="module")
def options(environment):
    """The options of a run that logs to every tracker that is installed."""
    if not NEEDED:
        pytest.skip("no tracker is installed")
    checkpoint, folder = make_checkpoint(environment / "tiny"), make_folder(environment / "data")
    more = ("--report_to", *NEEDED, "--aim_repo", str(environment))
    return small_options(checkpoint, folder, environment / "run", *more)


@pytest.fixture(scope="module")
def run_dir(environment, options):
    """A finished run, tracked."""
    assert train(options) == 0
    return environment / "run"


@pytest.fixture
def metrics(run_dir):
    return json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))["splits"]


def read_ids(run_dir):
    (path,) = run_dir.glob("checkpoints/checkpoint-*/trackers.json")
    return json.loads(path.read_text(encoding="utf-8"))


def read_history(run_dir):
    lines = (run_dir / "history.csv").read_text(encoding="utf-8").splitlines()
    names = lines[0].split(",")
    return [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]


def read_aim(root, run_hash):
    """Return {(name, subset): {step: (epoch, value)}} and the run, by queries of Aim's SDK."""
    from aim import Repo

    found, run = {}, None
    # A new object: one that is open keeps what it saw of the index.
    repository = Repo(str(root))
    for collection in repository.query_metrics(f"run.hash == '{run_hash}'").iter_runs():
        run = collection.run
        for metric in collection:
            key = (metric.name, metric.context.to_dict().get("subset"))
            _, columns = metric.data.numpy()
            steps = [int(step) for step in metric.data.indices_list()]
            epochs, values = columns[1].tolist(), columns[0].tolist()
            found[key] = dict(zip(steps, zip(epochs, values, strict=True), strict=True))
    return repository, run, found


@needs("aim")
def test_aim_gives_back_settings_and_metrics_by_split_and_epoch(environment, run_dir, metrics):
    _, run, found = read_aim(environment, read_ids(run_dir)["aim"])
    assert run.name == "run"
    assert run.experiment == PROJECT
    assert run["hparams"]["learning_rate"] == 1e-3
    assert run["hparams"]["num_classes"] == len(CLASSES)
    rows = [row for row in read_history(run_dir) if row["validation_loss"]]
    assert len(rows) == 2
    for split in ("train", "validation"):
        for name in ("loss", "accuracy"):
            expected = {
                int(row["step"]): (float(row["epoch"]), float(row[f"{split}_{name}"]))
                for row in rows
            }
            shown = found[name, split]
            assert shown.keys() == expected.keys()
            for step, pair in expected.items():
                assert shown[step] == pytest.approx(pair)
    ((epoch, accuracy),) = found["accuracy", "test"].values()
    assert (epoch, accuracy) == (2, pytest.approx(metrics["test"]["accuracy"]))
    assert run["results"]["validation"]["loss"] == pytest.approx(metrics["validation"]["loss"])
    # Every 2 of 6 steps, and with the checkpoint of step 3.
    assert len(found["batch_loss", "train"]) == 4
    assert len(found["learning_rate", None]) == 4
    assert {"__system__cpu", "__system__p_memory_percent"} <= {name for name, _ in found}


@needs("aim")
def test_aim_gives_back_example_images_and_the_confusion_matrix(environment, run_dir):
    run_hash = read_ids(run_dir)["aim"]
    repository, _, _ = read_aim(environment, run_hash)
    found = {}
    for collection in repository.query_images(f"run.hash == '{run_hash}'").iter_runs():
        for sequence in collection:
            assert sequence.context.to_dict() == {"subset": "test"}
            found[sequence.name] = sequence.values.values_list()[0]
    assert {image.size for image in found["examples"]} == {(16, 16)}
    assert all(image.caption.split(":")[0] in CLASSES for image in found["examples"])
    confusion = found["confusion_matrix"]
    confusion = confusion[0] if isinstance(confusion, list) else confusion
    assert min(confusion.to_pil_image().size) > 100


def read_trackio():
    """Return (name of the run, step, logged figures) of every row of Trackio's database."""
    with sqlite3.connect(Path(os.environ["TRACKIO_DIR"], f"{PROJECT}.db")) as database:
        rows = database.execute("select run_name, step, metrics from metrics").fetchall()
    return [(name, step, json.loads(row)) for name, step, row in rows]


def read_wandb(path):
    """Return the records of a .wandb file: a LevelDB log of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    records, position, parts = [], 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        if kind == 0:
            break
        position += 7
        parts += content[position : position + length]
        position += length
        if kind in (1, 4):
            records.append(Record.FromString(parts))
            parts = b""
    return records


@needs("wandb")
def test_wandb_keeps_an_offline_run_that_can_be_synced(environment, run_dir, metrics):
    run_id = read_ids(run_dir)["wandb"]
    path = sorted(environment.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))[0]
    records = read_wandb(path)
    (start,) = [one.run for one in records if one.WhichOneof("record_type") == "run"]
    assert (start.project, start.display_name, start.run_id) == (PROJECT, "run", run_id)
    config = {item.key: json.loads(item.value_json) for item in start.config.update}
    assert config["learning_rate"] == 1e-3
    logged: dict[str, list] = {}
    for record in records:
        for item in record.history.item:
            key = item.key or ".".join(item.nested_key)
            logged.setdefault(key, []).append(json.loads(item.value_json))
    rows = [row for row in read_history(run_dir) if row["validation_loss"]]
    expected = [float(row["validation_loss"]) for row in rows]
    assert logged["validation/loss"] == pytest.approx(expected)
    assert logged["test/accuracy"] == pytest.approx([metrics["test"]["accuracy"]])
    assert logged["examples.ncols"] == [5]
    assert logged["examples.nrows"][0] > 0
    (image,) = logged["confusion_matrix.path"]
    assert (path.parent / "files" / image).is_file()
    # The exit record: without it the file counts as cut off.
    assert any(one.WhichOneof("record_type") == "exit" for one in records)


def read_tensorboard(directory, tag):
    """Return (step, value) of a tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


@pytest.mark.parametrize(
    "kind", [pytest.param(name, marks=needs(name)) for name in ("tensorboard", "trackio")]
)
def test_local_trackers_give_back_the_curves(run_dir, metrics, kind):
    def read(tag):
        if kind == "tensorboard":
            return read_tensorboard(run_dir / "tensorboard", tag)
        return [(step, row[tag]) for _, step, row in read_trackio() if tag in row]

    rows = [row for row in read_history(run_dir) if row["validation_loss"]]
    expected = {int(r["step"]): float(r["validation_loss"]) for r in rows}
    assert dict(read("validation/loss")) == pytest.approx(expected)
    ((_, test),) = read("test/accuracy")
    assert test == pytest.approx(metrics["test"]["accuracy"])


def test_no_secret_is_in_what_trackers_wrote(environment, run_dir):
    paths = [*environment.glob(".aim/**/*"), *environment.glob("wandb/**/*")]
    paths += Path(os.environ["TRACKIO_DIR"]).glob("**/*")
    paths += [*run_dir.glob("tensorboard/*"), run_dir / "config.yaml"]
    assert not [path for path in paths if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_a_resumed_run_continues_the_same_tracked_runs(environment, options, run_dir, caplog):
    before = read_ids(run_dir)
    # As a run that was killed after its last step, before its figures were written.
    (run_dir / "metrics.json").rename(run_dir / "kept.json")
    if "tensorboard" in before:
        # And of a step after its last checkpoint, which would be logged again.
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(run_dir / "tensorboard") as writer:
            writer.add_scalar("validation/loss", 9.0, 7)
    try:
        assert train(options) == 0
    finally:
        (run_dir / "kept.json").unlink()
    assert read_ids(run_dir) == before
    assert len(before) == len(NEEDED)
    # Such as that of a lock that is taken by force.
    assert not [record.message for record in caplog.records if record.name.startswith("aim")]
    if "trackio" in before:
        assert {name for name, _, _ in read_trackio()} == {before["trackio"]}
    if "tensorboard" in before:
        # The same directory: TensorBoard shows it as one run.
        directory = run_dir / "tensorboard"
        assert {path.parent for path in run_dir.rglob("events.out.tfevents.*")} == {directory}
        assert max(read_tensorboard(directory, "validation/loss"))[0] == 6
    if "aim" in before:
        from aim import Repo

        assert Repo(str(environment)).list_all_runs() == [before["aim"]]
    if "wandb" in before:
        paths = environment.glob("wandb/offline-run-*/run-*.wandb")
        assert [path.stem for path in paths] == [f"run-{before['wandb']}"] * 2


class Moody(Tracker):
    """A tracker that records what it is told, and fails in one of its methods."""

    def __init__(self, fails=""):
        self.fails = fails
        self.told = []

    def tell(self, what):
        self.told.append(what)
        if what == self.fails:
            raise OSError("the disk is full")

    def open(self, run, run_id):
        self.tell("open")
        return "id"

    def log(self, figures, step, epoch):
        self.tell("log")

    def log_results(self, results, step, epoch):
        self.tell("results")

    def close(self, *, failed):
        self.tell("close")


@pytest.mark.parametrize("hook", ["open", "log", "results", "close"])
def test_a_tracker_that_fails_warns_once_and_the_others_continue(tmp_path, caplog, hook):
    bad, good = Moody(hook), Moody()
    with Trackers({"bad": bad, "good": good}) as trackers:
        trackers.open(SimpleNamespace())
        for _ in range(3):
            trackers.on_log(None, TrainerState(), None, logs={"loss": 1.0})
        trackers.save(tmp_path)
        trackers.finish(lambda: SimpleNamespace(metrics={"test": {}}))
    assert [record.message for record in caplog.records] == [
        "bad failed (OSError: the disk is full); the run continues without it."
    ]
    assert bad.told.count(hook) == (2 if hook == "close" else 1)
    assert good.told == ["open", *["log"] * 4, "results", "close"]
    assert "good" in json.loads((tmp_path / "trackers.json").read_text(encoding="utf-8"))


def test_aim_is_the_default_where_it_is_installed(monkeypatch, caplog):
    monkeypatch.delenv("SIGLIP_FLOWERS_REPORT_TO")
    monkeypatch.setattr(FIND_SPEC, lambda name: object())
    assert choose_trackers(None) == ["aim"]
    assert choose_trackers(["none"]) == []
    monkeypatch.setattr(FIND_SPEC, lambda name: None)
    check_trackers(None)
    assert choose_trackers(None) == []
    (said,) = [record.message for record in caplog.records]
    assert said.startswith("Aim is not installed, so nothing is tracked; install a tracker")
    monkeypatch.setenv("SIGLIP_FLOWERS_REPORT_TO", "wandb, tensorboard")
    assert choose_trackers(None) == ["wandb", "tensorboard"]
    monkeypatch.setenv("SIGLIP_FLOWERS_REPORT_TO", "comet")
    with pytest.raises(InputError, match="tracker comet is unknown .* SIGLIP_FLOWERS_REPORT_TO"):
        check_trackers(None)


@pytest.mark.parametrize("main_process", [True, False])
def test_only_the_main_process_logs(monkeypatch, main_process):
    state = SimpleNamespace(is_main_process=main_process)
    monkeypatch.setattr(kinds, "PartialState", lambda: state)
    assert tuple(build_trackers(NAMES)._active) == (NAMES if main_process else ())


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """W&B as in a new process of somebody who is not logged in."""
    wandb = pytest.importorskip("wandb")
    # Before: it takes the address of its own process out of the environment.
    wandb.teardown()
    for name in [*(name for name in os.environ if name.startswith("WANDB_")), "NETRC"]:
        monkeypatch.delenv(name, raising=False)
    # Else it asks the server for the name of who is logged in.
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield wandb
    wandb.teardown()


def test_wandb_is_offline_unless_somebody_is_logged_in(nobody, monkeypatch, tmp_path):
    login = tmp_path / ".netrc"
    assert choose_wandb_mode() == "offline"
    for text in ("machine elsewhere.org login a password b\n", "garbage {{{\n"):
        login.write_text(text)
        assert choose_wandb_mode() == "offline"
    login.write_text(f"machine api.wandb.ai\n  login user\n  password {'0' * 40}\n")
    assert choose_wandb_mode() == "online"
    # As 'wandb login --host' leaves them.
    settings = tmp_path / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text("[default]\nbase_url = http://wandb.example.org:8080\n")
    nobody.teardown()
    assert choose_wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert choose_wandb_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert choose_wandb_mode() == "disabled"


def test_wandb_without_a_login_is_offline_whatever_is_asked(nobody, monkeypatch, tmp_path, capsys):
    # Online it would ask in a terminal what to do.
    for name, value in (("MODE", "online"), ("RUN_ID", "of-a-sweep"), ("NAME", "mine")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    tracker = WandbTracker()
    assert tracker.open(RunFacts("run", "photos", {}, tmp_path, 0), None) == "of-a-sweep"
    settings = tracker._run.settings
    tracker.close(failed=False)
    assert (settings.mode, settings.finish_timeout) == ("offline", WANDB_FINISH_SECONDS)
    assert settings.run_name == "mine"
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith("W&B is offline; upload the run with: wandb sync")
