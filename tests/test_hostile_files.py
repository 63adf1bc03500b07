"""Hostile files: any bytes give a right value or one sentence, and never run, wait or escape."""

import contextlib
import csv
import io
import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from hypothesis import HealthCheck, Phase, given, settings
from PIL import Image as PillowImage

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.commands import eval as eval_command
from siglip_flowers.commands import predict as predict_command
from siglip_flowers.commands import train as train_command
from siglip_flowers.commands.predict import format_csv_lines
from siglip_flowers.config import DataArguments
from siglip_flowers.data.pixels.tensors import PixelForm
from siglip_flowers.data.sources.load import load_data
from siglip_flowers.inference.reading import ImageReader
from siglip_flowers.model.loading import (
    load_classifier,
    load_image_processor,
    load_saved_classifier,
)
from siglip_flowers.model.text_head import load_text_tower
from siglip_flowers.training.checkpoints import STATE_FILE, had_ended, write_manifest
from siglip_flowers.training.output import find_checkpoint
from siglip_flowers.training.trainer import SiglipTrainer
from tests.hostile import (
    DOCUMENTS,
    EPS,
    damage,
    damage_json,
    make_images,
    read_checkpoint,
    read_image,
    time_limit,
)
from tests.small_runs import (
    CLASSES,
    draw_image,
    make_checkpoint,
    make_folder,
    save_classifier,
    small_options,
)

EXAMPLES = {
    "image": 120,
    "model.safetensors": 10,
    "config.json": 10,
    "preprocessor_config.json": 15,
}
CLASS_NAMES = (
    "<script>alert(1)</script>",
    "a/b\\c",
    "..",
    ".hidden",
    "two\nlines",
    "red \x1b[31m\x07\x9b2J\u202e",
    "$\\frac{1}{0$",
    "=cmd()|'/C calc'!A0",
    "| **bold** `code` |",
    "😀 مرحبا",
    "x" * 10_000,
    "Rose!",
    "rose!",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def copy(checkpoint, tmp_path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EXAMPLES)
def test_any_bytes_give_a_value_or_a_sentence(checkpoint, name, tmp_path):
    if name == "image":
        strategy = damage([*make_images(), *DOCUMENTS])
    elif name == "model.safetensors":
        strategy = damage([(checkpoint / name).read_bytes()])
    else:
        strategy = damage_json(json.loads((checkpoint / name).read_text()))

    @settings(
        max_examples=EXAMPLES[name],
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def examine(content: bytes) -> None:
        with time_limit():
            if name == "image":
                read_image(content)
            else:
                read_checkpoint(checkpoint, name, content, tmp_path)

    examine()


def test_the_images_that_are_damaged_are_whole_ones():
    # Or nothing but refusals would be drawn.
    assert all(map(read_image, make_images()))


# Images


@pytest.fixture
def odd_files(tmp_path) -> list[str]:
    """Things that are called images and are none, or would be waited for."""
    folder = tmp_path / "odd"
    folder.mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "nowhere.jpg").symlink_to("missing")
    (folder / "endless.jpg").symlink_to("/dev/zero")
    for number, content in enumerate((*DOCUMENTS, b"", b"\xff\xd8\xff")):
        (folder / f"{number}.jpg").write_bytes(content)
    return sorted(str(path) for path in folder.iterdir())


def test_what_is_no_image_is_named_and_not_waited_for(odd_files):
    reader = ImageReader(PixelForm(8, 2), num_workers=1)
    with time_limit():
        [batch] = reader.read_batches(odd_files, 64)
    assert all(batch.problems)
    problems = dict(zip([Path(path).name for path in odd_files], batch.problems, strict=True))
    for name in ("pipe", "endless", "folder"):
        assert problems[f"{name}.jpg"] == "not a regular file"


def test_ghostscript_is_never_started(tmp_path, monkeypatch):
    trace = tmp_path / "started"
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gs"
    program.write_text(f"#!/bin/sh\ntouch {trace}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name in ("x.jpg", "x.eps"):
        (tmp_path / name).write_bytes(EPS)
    sources = [EPS, tmp_path / "x.jpg", tmp_path / "x.eps"]
    [batch] = ImageReader(PixelForm(8, 2), num_workers=1).read_batches(sources, 3)
    assert batch.problems == ["not an image"] * 3
    assert not trace.exists()


# Weights and the files beside them


class Trap:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (os.mkdir, (str(self.trace),))


@pytest.fixture
def trace(tmp_path):
    yield tmp_path / "trace"
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("form", ["pickle", "zip"])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_pickles_in_the_place_of_weights_run_nothing(copy, trace, form, name):
    (copy / "model.safetensors").unlink()
    if form == "zip":
        torch.save({"x": Trap(trace)}, copy / name)
    else:
        (copy / name).write_bytes(pickle.dumps(Trap(trace)))
    with pytest.raises(RunError, match="pickled weights are not loaded"):
        load_classifier(str(copy), ["a", "b"])


def test_an_adapter_is_no_model_and_leads_nowhere(copy, trace):
    base = {"peft_type": "LORA", "base_model_name_or_path": "/somewhere/else", "r": 4}
    (copy / "adapter_config.json").write_text(json.dumps(base))
    torch.save({"x": Trap(trace)}, copy / "adapter_model.bin")
    with pytest.raises(InputError, match=r"holds an adapter \(adapter_config.json\)"):
        load_classifier(str(copy), ["a", "b"])


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "x.bin", 7])
def test_an_index_leads_to_files_beside_it_only(copy, trace, name):
    (copy / "model.safetensors").unlink()
    torch.save({"x": Trap(trace)}, copy / "x.bin")
    index = {"metadata": {}, "weight_map": {"embeddings.patch_embedding.weight": name}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="which is not a safetensors file beside it"):
        load_classifier(str(copy), ["a", "b"])


@pytest.mark.parametrize("bomb", ["length", "offsets", "shape", "deep"])
def test_safetensors_headers_are_not_believed(copy, bomb):
    path = copy / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, tensors = json.loads(content[8 : 8 + length]), content[8 + length :]
    first = next(name for name in header if name != "__metadata__")
    if bomb == "offsets":
        header[first]["data_offsets"] = [0, 1 << 60]
    elif bomb == "shape":
        header[first]["shape"] = [1 << 40, 1 << 40]
    text = b"[" * 100_000 if bomb == "deep" else json.dumps(header).encode()
    size = 1 << 60 if bomb == "length" else len(text)
    path.write_bytes(struct.pack("<Q", size) + text + tensors)
    with pytest.raises(RunError, match="could not be read"):
        load_classifier(str(copy), ["a", "b"])


@pytest.mark.parametrize("kind", ["siglip_vision_model", "unheard_of"])
def test_code_of_a_checkpoint_is_not_run_and_nobody_is_asked(copy, trace, monkeypatch, kind):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (copy / "evil.py").write_text(f"import os\nos.mkdir({str(trace)!r})\n")
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": kind, "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.E"}}
    (copy / "config.json").write_text(json.dumps(config))
    if kind == "unheard_of":
        with pytest.raises(InputError, match="is not a SigLIP model"):
            load_classifier(str(copy), ["a", "b"])
    else:
        load_classifier(str(copy), ["a", "b"])


@pytest.mark.parametrize("text", ["{", '{"tokenizer_class": 1}', "AUTO"])
def test_hostile_tokenizers_are_refused(nano_dir, tmp_path, trace, monkeypatch, text):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    copy = Path(shutil.copytree(nano_dir, tmp_path / "nano"))
    (copy / "evil.py").write_text(f"import os\nos.mkdir({str(trace)!r})\n")
    auto = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (copy / name).exists():
            (copy / name).write_text(json.dumps(auto) if text == "AUTO" else text)
    # A file that only repeats what is known already does no harm.
    with contextlib.suppress(InputError):
        load_text_tower(str(copy))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"size": {"height": 8, "width": 16}}, "has a size that is not square"),
        ({"size": {"height": 48, "width": 48}}, "of another size than its config.json says"),
        ({"size": {"height": 10**9, "width": 10**9}}, "must be a whole number from 1 to 4096"),
        ({"image_std": [0, 0, 0]}, "image_std that does not work"),
        ({"rescale_factor": "x"}, "does not work"),
        ({"resample": 99}, "does not work"),
    ],
)
def test_absurd_processors_are_refused(copy, change, message):
    path = copy / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        load_image_processor(str(copy))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, but it must be"),
        ({"image_size": 10**6}, "must be a whole number from 1 to 4096"),
        ({"num_labels": 10**10}, "num_labels is 10000000000, but it must be"),
        ({"model_type": "siglip", "vision_config": {"model_type": "clip"}}, "model_type is 'clip'"),
        ({"num_attention_heads": 3}, "must be divisible by num_heads"),
        ({"hidden_act": "os.system"}, "os.system"),
        ({"hidden_size": "16"}, "is not a SigLIP model"),
        ({"architectures": 5}, "is not a SigLIP model"),
    ],
)
def test_absurd_configurations_are_refused(copy, change, message):
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for from_scratch in (False, True):
        with pytest.raises(InputError, match=message):
            load_classifier(str(copy), ["a", "b"], from_scratch=from_scratch)


@pytest.mark.slow
def test_a_resumed_run_runs_no_pickle(checkpoint, trace, tmp_path, monkeypatch, capsys):
    folder, run = make_folder(tmp_path / "data", train=4, held_out=2), tmp_path / "run"
    options = small_options(checkpoint, folder, run)
    step = SiglipTrainer.training_step

    def stop_in_second_epoch(self, *args, **kwargs):
        if self.state.global_step >= 2:
            raise RunError("stopped")
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SiglipTrainer, "training_step", stop_in_second_epoch)
        assert train_command.main(options) == 1
    newest = find_checkpoint(run)
    assert newest is not None
    whole = Path(shutil.copytree(newest, tmp_path / "kept"))
    replaced = [path.name for path in whole.iterdir() if path.suffix in (".pt", ".pth", ".bin")]
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth"} <= set(replaced)
    for path in whole.iterdir():
        # Only sizes are in the manifest.
        for content, rest in ((b"", b"\0"), (b"[]", b" ")) if path.name != "manifest.json" else ():
            shutil.rmtree(newest)
            shutil.copytree(whole, newest)
            (Path(newest) / path.name).write_bytes(content.ljust(path.stat().st_size, rest))
            assert train_command.main(options) == 1
            said = capsys.readouterr().err.splitlines()[-1]
            assert path.name in said or "one of its files is damaged" in said, path.name
    unread = {"training_args.bin"}
    for name in [*(set(replaced) - unread), "model.safetensors", *unread]:
        shutil.rmtree(newest)
        shutil.copytree(whole, newest)
        if name == "model.safetensors":
            (Path(newest) / name).unlink()
            name = "pytorch_model.bin"
        torch.save({"x": Trap(trace)}, Path(newest) / name)
        write_manifest(Path(newest))
        capsys.readouterr()
        # What is never read back does not stop the run; it comes last, as it ends the run.
        code = train_command.main(options)
        err = capsys.readouterr().err
        assert not trace.exists(), name
        assert code == (0 if name in unread else 1), (name, err)
        assert ("more than tensors and numbers" in err) == (code == 1)


@pytest.mark.parametrize("change", [{"global_step": 2.5}, {"best_metric": "high"}])
def test_a_state_whose_numbers_are_none_is_refused(tmp_path, change):
    state = {"global_step": 2, "best_metric": None, "max_steps": 3, "log_history": []}
    (tmp_path / STATE_FILE).write_text(json.dumps(state | change))
    with pytest.raises(RunError, match=f"{STATE_FILE} cannot be read .*not a number"):
        had_ended(tmp_path)


# Class names


def save_named_data(directory: Path, names: list[str], label: object) -> str:
    generator = np.random.default_rng(0)
    features = Features(image=Image(), label=label)
    labels = names if isinstance(label, Value) else list(range(len(names)))
    data = DatasetDict()
    for split in ("train", "validation", "test"):
        pixels = generator.integers(0, 256, (len(names), 16, 16, 3), dtype=np.uint8)
        rows = {"image": list(map(PillowImage.fromarray, pixels)), "label": labels}
        data[split] = Dataset.from_dict(rows, features=features)
    data.save_to_disk(directory)
    return str(directory)


@pytest.mark.slow
def test_class_names_survive_a_run_and_are_printed_harmlessly(checkpoint, tmp_path, capsys):
    data = save_named_data(
        tmp_path / "data", list(CLASS_NAMES), ClassLabel(names=list(CLASS_NAMES))
    )
    run = tmp_path / "run"
    options = ["--model_name_or_path", str(checkpoint), "--dataset_name", data]
    options += ["--output_dir", str(run), "--max_steps", "2", "--disable_tqdm", "true"]
    assert train_command.main([*options, "--bf16", "false"]) == 0
    printed = "".join(capsys.readouterr())
    assert all(char.isprintable() or char in "\n\t\r" for char in printed)
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert {row["name"] for row in metrics["splits"]["test"]["per_class"]} == set(CLASS_NAMES)
    table = pyarrow.parquet.read_table(run / "predictions_test.parquet")
    assert set(table["label_name"].to_pylist()) == set(CLASS_NAMES)
    assert set(load_saved_classifier(str(run / "model")).class_names) == set(CLASS_NAMES)
    assert PillowImage.open(run / "examples.png").width > 100
    # Nothing is called after a class.
    written = {path.name for path in tmp_path.rglob("*")}
    assert not written & {".hidden", "b\\c", "b"}
    assert yaml.safe_load((run / "config.yaml").read_text())
    assert eval_command.main(["--model", str(run)]) == 0
    printed = "".join(capsys.readouterr())
    assert all(char.isprintable() or char in "\n\t\r" for char in printed)


@pytest.mark.parametrize(
    "names, message",
    [(["a", " "], "' ' is empty or not UTF-8 text"), (["a", "b\0"], "not UTF-8 text")],
)
def test_names_that_are_no_text_are_refused(tmp_path, names, message):
    data = save_named_data(tmp_path / "data", names, Value("string"))
    with pytest.raises(InputError, match=message):
        load_data(DataArguments(dataset_name=data))


def test_names_of_folders_and_files_that_are_not_text_are_refused(tmp_path):
    folder = make_folder(tmp_path / "data", train=4, held_out=2)
    file = os.fsencode(folder / "train" / "aster") + b"/\xff.png"
    shutil.copy(folder / "train" / "aster" / "0.png", file)
    with pytest.raises(InputError, match=r"udcff.png' has a name that is not UTF-8"):
        load_data(DataArguments(data_dir=str(folder)))
    os.remove(file)
    os.rename(folder / "train" / "aster", os.fsencode(folder / "train") + b"/aster\xff")
    with pytest.raises(InputError, match=r"'aster\\udcff' is empty or not UTF-8"):
        load_data(DataArguments(data_dir=str(folder)))


def test_labels_that_a_spreadsheet_would_compute_are_quoted():
    text = format_csv_lines("@pic.png", [{"label": "=1+1", "score": 0.5}], None)
    assert next(csv.reader(io.StringIO(text)))[:4] == ["'@pic.png", "1", "'=1+1", "0.5"]
    text = format_csv_lines("pic.png", [{"label": "desert-rose", "score": 1e-5}], None)
    assert next(csv.reader(io.StringIO(text)))[:4] == ["pic.png", "1", "desert-rose", "1e-05"]


def test_a_list_of_file_names_may_hold_any_bytes(checkpoint, tmp_path, monkeypatch, capsys):
    model = str(save_classifier(tmp_path, CLASSES, checkpoint))
    draw_image(tmp_path / "good.png", "aster", 1)
    odd = os.fsencode(tmp_path) + b"/\xff.png"
    shutil.copy(tmp_path / "good.png", odd)
    lines = io.TextIOWrapper(io.BytesIO(odd + b"\nmissing\xfe.png\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", lines)
    assert predict_command.main(["-", "--json", "--model", model]) == 1
    out, err = capsys.readouterr()
    assert os.fsencode(json.loads(out)["image"]) == odd
    assert "missing\\udcfe.png" in err
