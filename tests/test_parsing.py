"""Configuration: defaults, then YAML, then the command line, and a dump that reads back."""

import dataclasses
from dataclasses import dataclass, field

import pytest
import yaml

from siglip_flowers.base.errors import InputError
from siglip_flowers.commands import eval as eval_command
from siglip_flowers.commands import train as train_command
from siglip_flowers.config import (
    AugmentationArguments,
    DataArguments,
    ModelArguments,
    SiglipTrainingArguments,
)
from siglip_flowers.config.parsing import dump_configuration, parse_arguments
from siglip_flowers.training.build import RunArguments
from tests.conftest import REPOSITORY

KINDS = (
    DataArguments,
    AugmentationArguments,
    ModelArguments,
    SiglipTrainingArguments,
)
CONFIGS = sorted(
    path
    for path in (REPOSITORY / "configs").glob("*.yaml")
    # Of train.py: experiment, search and probe have options of their own.
    if not path.name.startswith(("experiment_", "search", "linear_probe"))
)


def parse(*argv: str, kinds=KINDS, defaults=None):
    return parse_arguments(kinds, argv, prog="x", description="y", defaults=defaults)


@pytest.fixture
def write_yaml(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "c.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_yaml_overrides_defaults_and_the_command_line_overrides_yaml(write_yaml):
    path = write_yaml("learning_rate: 0.5\nweight_decay: 0.25\n")
    for argv in (
        ("--config", path, "--weight_decay", "0.125"),
        ("--weight_decay", "0.125", "--config", path),
        (f"--config={path}", "--weight-decay=0.125"),
    ):
        training = parse(*argv)[3]
        assert (training.learning_rate, training.weight_decay) == (0.5, 0.125)
        assert training.num_train_epochs == SiglipTrainingArguments(output_dir="x").num_train_epochs


def test_given_defaults_are_overridden_by_yaml_and_command_line(write_yaml):
    path = write_yaml("shots: 2\n")
    given = {"shots": 1, "split_seed": 5, "data_dir": "here", "max_eval_samples": 9}
    data = parse("--config", path, "--split_seed", "6", defaults=given)[0]
    assert (data.shots, data.split_seed, data.data_dir) == (2, 6, "here")
    assert data.max_eval_samples == 9


def test_a_float_without_a_dot_is_a_number(write_yaml):
    # YAML 1.1 reads 1e-5 as text.
    assert yaml.safe_load("a: 1e-5") == {"a": "1e-5"}
    assert parse("--config", write_yaml("learning_rate: 1e-5\n"))[3].learning_rate == 1e-5


def test_null_unsets_what_may_be_unset(write_yaml):
    path = write_yaml("head_learning_rate: null\nsave_total_limit:\n")
    training = parse("--config", path)[3]
    assert training.head_learning_rate is None
    assert training.save_total_limit is None


def test_null_is_refused_where_a_value_is_needed(write_yaml):
    with pytest.raises(InputError, match=r"c\.yaml: num_train_epochs is null, which it cannot be"):
        parse("--config", write_yaml("num_train_epochs: null\n"))


def test_the_bare_word_no_stays_a_word(write_yaml):
    # YAML 1.1 reads no as false.
    path = write_yaml("eval_strategy: no\nload_best_model_at_end: no\n")
    training = parse("--config", path)[3]
    assert training.eval_strategy == "no"
    assert training.load_best_model_at_end is False


def test_lists_and_dictionaries_are_read(write_yaml):
    path = write_yaml(
        "report_to: [wandb, aim]\n"
        "lr_scheduler_type: cosine_with_min_lr\n"
        "lr_scheduler_kwargs: {min_lr: 1.0e-6}\n"
    )
    training = parse("--config", path)[3]
    assert training.report_to == ["wandb", "aim"]
    assert training.lr_scheduler_kwargs == {"min_lr": 1e-6}
    assert parse("--config", path, "--report_to", "none")[3].report_to == ["none"]
    assert parse("--config", write_yaml("report_to: []\n"))[3].report_to == ["none"]
    assert parse("--config", write_yaml("report_to: wandb\n"))[3].report_to == ["wandb"]


def test_text_with_spaces_dashes_and_letters_of_other_scripts_arrives_whole(write_yaml):
    path = write_yaml('output_dir: "-- my runs/цветы = 花"\n')
    assert parse("--config", path)[3].output_dir == "-- my runs/цветы = 花"


@pytest.mark.parametrize("word, value", [("true", True), ("False", False), ("no", False)])
def test_switches_take_a_word_or_none(word, value):
    assert parse("--augment", word)[1].augment is value
    assert parse("--skip_corrupt_images")[0].skip_corrupt_images is True
    assert parse()[0].skip_corrupt_images is False


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--learning_rte", "1"], r"Unknown option --learning_rte; did you mean --learning_rate\?"),
        (["--learning", "1"], r"Unknown option --learning"),
        (["--qqqqqqqq"], r"Unknown option --qqqqqqqq; see --help"),
        (["--shots"], r"Argument --shots: expected one argument"),
        (["--shots", "1.5"], r"Argument --shots: invalid int value: '1.5'"),
    ],
)
def test_a_wrong_option_is_named_with_the_nearest(argv, message):
    with pytest.raises(InputError, match=message):
        parse(*argv)


@pytest.mark.parametrize(
    "text, message",
    [
        ("shot: 1\n", r"Unknown key 'shot' in .*c\.yaml; did you mean shots\?"),
        ("shots: x\n", r"In .*c\.yaml: Argument --shots: invalid int value: 'x'"),
        ("augment: 7\n", r"In .*c\.yaml: Argument --augment"),
        ("seed: [1, 2]\n", r"In .*c\.yaml: '2' is one value too many"),
        ("text\n", r"c\.yaml holds a str; it must hold lines 'option: value'"),
        ("a: b: c\n", r"c\.yaml is not valid YAML"),
    ],
)
def test_a_wrong_file_is_named(write_yaml, text, message):
    with pytest.raises(InputError, match=message):
        parse("--config", write_yaml(text))


def test_a_file_that_is_not_text_is_named(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(InputError, match=r"c\.yaml is not valid YAML"):
        parse("--config", str(path))
    with pytest.raises(InputError, match=r"cannot be read: Is a directory"):
        parse("--config", str(tmp_path))


def test_an_empty_file_changes_nothing(write_yaml):
    assert dump_configuration(*parse("--config", write_yaml("# nothing\n"))) == dump_configuration(
        *parse()
    )


NON_DEFAULT = [
    *("--data_dir", "somewhere else", "--shots", "3", "--learning_rate", "1e-5"),
    *("--head_init", "probe", "--wise_ft", "0.5", "--report_to", "wandb", "aim"),
    *("--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr": 1e-07}'),
    *("--eval_strategy", "steps", "--eval_steps", "0.25", "--save_strategy", "steps"),
    *("--save_steps", "0.25", "--gradient_checkpointing", "--early_stopping_patience", "2"),
    *("--optim_args", "weight_decay=0.1", "--max_grad_norm", "0.5", "--run_name", "день 1: #x"),
    *("--adam_epsilon", "1e-9", "--torch_empty_cache_steps", "7", "--augment", "no"),
]


@pytest.mark.parametrize("argv", [[], NON_DEFAULT], ids=["defaults", "non-default"])
def test_a_dumped_configuration_reads_back_to_equal_arguments(write_yaml, argv):
    first = parse(*argv)
    text = dump_configuration(*first)
    second = parse("--config", write_yaml(text))
    for one, other in zip(first, second, strict=True):
        for item in dataclasses.fields(one):
            # Made anew by every instance, or of this machine.
            if item.init and item.name not in ("accelerator_config", "logging_dir"):
                assert getattr(one, item.name) == getattr(other, item.name), item.name
    # As values: a whole number of a float option comes back as a float.
    assert yaml.safe_load(dump_configuration(*second)) == yaml.safe_load(text)


def test_secrets_are_never_dumped():
    arguments = parse()
    arguments[3].hub_token = "hf_secret"
    text = RunArguments(*arguments).dump()
    assert "hf_secret" not in text
    assert "hub" not in yaml.safe_load(text)


@dataclass
class Point:
    """Two numbers and words."""

    x: int = field(default=1, metadata={"help": "100% of x"})
    names: list[str] = field(default_factory=list)
    limit: int | None = 7


def test_a_value_that_equals_the_default_and_one_unset_on_purpose_are_told_apart(write_yaml):
    text = dump_configuration(Point(limit=None))
    assert yaml.safe_load(text) == {"x": 1, "limit": None}
    assert parse("--config", write_yaml(text), kinds=(Point,)) == (Point(limit=None),)


@pytest.mark.parametrize("main", [train_command.main, eval_command.main], ids=["train", "eval"])
def test_help_lists_the_options_and_exits_with_0(main, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for option in ("--config FILE", "--split_protocol", "--skip_corrupt_images"):
        assert option in shown


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid(path):
    parse("--config", str(path))


def test_the_promised_configurations_are_shipped():
    assert {path.stem for path in CONFIGS} >= {"default", "demo", "nano_64px", "so400m"}


def test_the_default_configuration_states_the_defaults():
    shipped = parse("--config", str(REPOSITORY / "configs" / "default.yaml"))
    assert dump_configuration(*shipped) == dump_configuration(*parse())
