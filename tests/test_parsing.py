"""Options from defaults, YAML and the command line; a dump that reads back; --help."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
import yaml

from siglip_flowers import __version__
from siglip_flowers.base.errors import InputError
from siglip_flowers.commands.main import list_extension_options
from siglip_flowers.commands.train import COMMAND as TRAIN
from siglip_flowers.commands.train import KINDS as TRAIN_KINDS
from siglip_flowers.config.fields import list_options
from siglip_flowers.config.parsing import Command
from siglip_flowers.config.saved import dump_configuration, read_gone, read_version
from siglip_flowers.config.training import SiglipTrainingArguments
from tests.conftest import REPOSITORY

CONFIGS = sorted(
    path
    for path in (REPOSITORY / "configs").glob("*.yaml")
    # Those of other commands.
    if not path.name.startswith(("experiment_", "search", "linear_probe"))
)
NON_DEFAULT = [
    *("--data_dir", "somewhere else", "--shots", "3", "--learning_rate", "1e-5"),
    *("--head_init", "probe", "--wise_ft", "0.5", "--report_to", "wandb", "aim"),
    *("--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr": 1e-07}'),
    *("--eval_strategy", "steps", "--eval_steps", "0.25", "--save_strategy", "steps"),
    *("--save_steps", "0.25", "--gradient_checkpointing", "--early_stopping_patience", "2"),
    *("--max_grad_norm", "0.5", "--run_name", "день 1: #x", "--head_learning_rate", "1e-2"),
    *("--adam_epsilon", "1e-9", "--ddp_timeout", "7", "--augment", "no"),
]


def parse(*argv, kinds=TRAIN_KINDS, **options):
    """Return an object with every option."""
    parsed = Command("x", "y", kinds).parse(argv, **options)
    found = type("Found", (), {})()
    for instance in parsed:
        for item in list_options(type(instance)):
            setattr(found, item.name, getattr(instance, item.name))
    return found


@pytest.fixture
def write_yaml(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "c.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_yaml_overrides_defaults_and_the_command_line_overrides_yaml(write_yaml):
    path = write_yaml("learning_rate: 0.5\nweight_decay: 0.25\nshots: 2\n")
    for argv in (
        ("--config", path, "--weight_decay", "0.125"),
        ("--weight_decay", "0.125", "--config", path),
        (f"--config={path}", "--weight-decay=0.125"),
    ):
        found = parse(*argv, defaults={"shots": 1, "max_eval_samples": 9})
        assert (found.learning_rate, found.weight_decay) == (0.5, 0.125)
        assert (found.shots, found.max_eval_samples) == (2, 9)
        assert found.num_train_epochs == 10


def test_values_of_yaml_become_those_of_the_options(write_yaml):
    found = parse(
        "--config",
        write_yaml(
            # YAML 1.1 reads 1e-5 as text, and the word no as false.
            "learning_rate: 1e-5\n"
            "eval_strategy: no\n"
            "load_best_model_at_end: no\n"
            "wise_ft: 0.5\n"
            "num_train_epochs: 3\n"
            "head_learning_rate: null\n"
            "report_to: [wandb, aim]\n"
            "lr_scheduler_kwargs: {min_lr: 1.0e-6}\n"
            'output_dir: "-- my runs/цветы = 花"\n'
        ),
    )
    assert found.learning_rate == 1e-5
    assert (found.eval_strategy, found.load_best_model_at_end) == ("no", False)
    assert (found.wise_ft, found.num_train_epochs) == ("0.5", 3)
    assert found.head_learning_rate is None
    assert found.report_to == ["wandb", "aim"]
    assert found.lr_scheduler_kwargs == {"min_lr": 1e-6}
    assert found.output_dir == "-- my runs/цветы = 花"
    for text in ("report_to: []\n", "report_to: none\n"):
        assert parse("--config", write_yaml(text)).report_to == ["none"]


def test_a_tilde_is_the_home_directory_in_every_path(write_yaml, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = [
        item.name
        for kind in (*TRAIN_KINDS, *list_extension_options("train"))
        for item in list_options(kind)
        if item.metadata.get("path")
    ]
    assert {"data_dir", "cache_dir", "output_dir", "model_name_or_path", "aim_repo"} <= set(paths)
    for found in (
        parse(*(word for name in paths for word in (f"--{name}", "~/x"))),
        parse("--config", write_yaml("".join(f"{name}: ~/x\n" for name in paths))),
    ):
        assert [getattr(found, name) for name in paths] == [f"{tmp_path}/x"] * len(paths)
    found = parse("--compare", "~/x", "~/y", kinds=list_extension_options("eval"))
    assert found.compare == [f"{tmp_path}/x", f"{tmp_path}/y"]


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--learning_rte", "1"], r"Unknown option --learning_rte; did you mean --learning_rate\?"),
        (["--learning", "1"], r"Unknown option --learning"),
        (["--qqqqqqqq"], r"Unknown option --qqqqqqqq; see --help"),
        (["--shots"], r"Argument --shots: expected one argument"),
        (["--shots", "1.5"], r"Argument --shots: invalid int value: '1.5'"),
        (["--config"], r"Argument --config: expected one argument"),
        (["extra"], r"Unexpected argument 'extra'"),
        (["--output_dir", "a\udcff"], r"Argument --output_dir: invalid text"),
    ],
)
def test_a_wrong_option_is_named_with_the_nearest(argv, message):
    with pytest.raises(InputError, match=message):
        parse(*argv)


@pytest.mark.parametrize(
    "text, message",
    [
        ("shot: 1\n", r"Unknown key 'shot' in .*c\.yaml; did you mean shots\?"),
        ("shots: x\n", r"In .*c\.yaml: shots has an invalid int value: 'x'"),
        ("augment: 7\n", r"In .*c\.yaml: augment has an invalid value: '7'"),
        ("lora_target_modules: []\n", r"--lora_target_modules is empty"),
        ("seed: [1, 2]\n", r"In .*c\.yaml: seed has several values; give one"),
        ("learning_rate: .nan\n", r"In .*c\.yaml: learning_rate has an invalid float"),
        ("num_train_epochs: null\n", r"c\.yaml: num_train_epochs is null; give a value"),
        ("text\n", r"c\.yaml contains a str; it must contain lines 'option: value'"),
        ("a: b: c\n", r"c\.yaml is not valid YAML"),
        ("shots: 1\nshots: 2\n", r"c\.yaml is not valid YAML: duplicate key 'shots'"),
        ("resume_from_checkpoint: x\n", r"resume_from_checkpoint in .* is not supported: use --r"),
    ],
)
def test_a_wrong_file_is_named(write_yaml, text, message):
    with pytest.raises(InputError, match=message):
        parse("--config", write_yaml(text))


@pytest.mark.parametrize(
    "name, message",
    [
        ("binary.yaml", r"binary\.yaml is not valid YAML"),
        (".", r"cannot be read: Is a directory"),
        ("none.yaml", r"none\.yaml cannot be read: No such file"),
    ],
)
def test_a_file_that_is_not_text_is_named(tmp_path, name, message):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(InputError, match=message):
        parse("--config", str(tmp_path / name))


@pytest.mark.parametrize("argv", [[], NON_DEFAULT], ids=["defaults", "non-default"])
def test_a_dumped_configuration_reads_back_to_equal_arguments(write_yaml, argv):
    kinds = [kind for kind in TRAIN_KINDS if kind.__name__ != "TrainingOptions"]
    kinds.append(SiglipTrainingArguments)
    command = Command("x", "y", tuple(kinds))
    first = command.parse(argv)
    text = dump_configuration(*first)
    path = write_yaml(text)
    second = command.parse(["--config", path])
    for one, other in zip(first, second, strict=True):
        for item in list_options(type(one)):
            assert getattr(one, item.name) == getattr(other, item.name), item.name
    assert yaml.safe_load(dump_configuration(*second)) == yaml.safe_load(text)
    assert read_version(Path(path)) == __version__
    # What a run saves is what train.py accepts.
    accepted = {item.name for kind in TRAIN_KINDS for item in list_options(kind)}
    assert set(yaml.safe_load(text)) <= accepted


def test_help_of_train_is_two_screens(capsys):
    shown = {}
    for word in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            TRAIN.parse([word])
        shown[word] = capsys.readouterr().out
    names = re.findall(r"^  --(\w+)", shown["--help"], re.M)
    assert 30 <= len(set(names) - {"config", "help_all"}) <= 40
    assert len(shown["--help"].splitlines()) <= 75
    assert max(map(len, shown["--help"].splitlines())) <= 100
    # No sentence is cut off at an abbreviation.
    assert shown["--help"].count("(") == shown["--help"].count(")")
    # The script is not there for those who installed the package.
    assert shown["--help"].count("siglip-flowers train --") == 2
    kinds = (*TRAIN_KINDS, *list_extension_options("train"))
    accepted = {item.name for kind in kinds for item in list_options(kind)}
    named = set(re.findall(r"^  --(\w+)", shown["--help-all"], re.M))
    assert named == accepted | {"config", "help_all"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid(path):
    TRAIN.parse(["--config", str(path)])


def test_the_default_configuration_states_the_defaults():
    shipped = TRAIN.parse(["--config", str(REPOSITORY / "configs" / "default.yaml")])
    assert shipped == TRAIN.parse([])


def test_a_configuration_that_an_older_version_saved_is_read(caplog, tmp_path):
    saved = tmp_path / "config.yaml"
    shutil.copyfile(REPOSITORY / "tests" / "saved_models" / "config-0.1.yaml", saved)
    before = yaml.safe_load(saved.read_text(encoding="utf-8"))
    found = TRAIN.parse(["--config", str(saved)])
    values = {
        item.name: getattr(instance, item.name)
        for instance in found
        for item in dataclasses.fields(instance)
    }
    assert all(before[name] == values[name] for name in before if name in values)
    assert len(caplog.messages) == 1
    assert "older version" in caplog.messages[0]
    assert "remove_unused_columns" in caplog.messages[0]
    for name in sorted(read_gone()[1].keys() - TRAIN.fields.keys()):
        saved.write_text(f"{name}: other\n", encoding="utf-8")
        with pytest.raises(InputError, match=rf"^{name} in .*config\.yaml is (not supp|an option)"):
            TRAIN.parse(["--config", str(saved)])
