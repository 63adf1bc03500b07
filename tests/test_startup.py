"""--help and bad usage are answered without torch, and as the real arguments would answer."""

import argparse
import ast
import dataclasses
import enum
import json
import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from transformers import HfArgumentParser, TrainingArguments

import siglip_flowers
from siglip_flowers.base.errors import InputError
from siglip_flowers.commands import train as train_command
from siglip_flowers.config import (
    AugmentationArguments,
    DataArguments,
    ModelArguments,
    SiglipTrainingArguments,
    inherited,
    make_training_options,
)
from siglip_flowers.config.inherited import read_fields
from siglip_flowers.config.parsing import check_command_line, parse_arguments
from siglip_flowers.experiment import __main__ as experiment_command
from tests.conftest import REPOSITORY
from tests.test_parsing import CONFIGS, NON_DEFAULT

OTHER_KINDS = (DataArguments, AugmentationArguments, ModelArguments)
HEAVY = ("torch", "datasets", "accelerate", "sklearn", "matplotlib", "scipy", "pyarrow")
TRAIN, EVAL = "siglip_flowers.commands.train", "siglip_flowers.commands.eval"
EXPERIMENT = "siglip_flowers.experiment.__main__"
# Calls a command's main for each command line and prints exit code and output of each.
SCRIPT = f"""
import contextlib, importlib, io, json, os, sys
before = dict(os.environ)
answers = []
for module, argv in json.loads(sys.argv[1]):
    main = importlib.import_module(module).main
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(argv)
        except SystemExit as stop:
            code = stop.code
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    answers.append((code, out.getvalue(), err.getvalue(), heavy))
print(json.dumps([answers, dict(os.environ) == before]))
"""


def ask(calls, cwd, **environment):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(calls)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers, same_environment = json.loads(done.stdout)
    assert same_environment
    return answers


def check_kinds():
    return (*OTHER_KINDS, make_training_options())


def check(argv, **options):
    check_command_line(check_kinds(), argv, prog="x", description="y", **options)


EXPERIMENT_TEXT = (REPOSITORY / "configs" / "experiment_siglip_vs_baseline.yaml").read_text()
FILES = {
    "key.yaml": "lerning_rate: 1\n",
    "type.yaml": "num_train_epochs: many\n",
    "range.yaml": "shots: 0\n",
    "broken.yaml": "a: b: c\n",
    "list.yaml": "- 1\n",
    "exp_key.yaml": EXPERIMENT_TEXT + "\nsede: 1\n",
    "exp_option.yaml": EXPERIMENT_TEXT.replace("base:\n", "base:\n  lerning: 1\n"),
    "exp_type.yaml": EXPERIMENT_TEXT.replace("base:\n", "base:\n  shots_: 1\n").replace(
        "shots_: 1", "max_eval_samples: few"
    ),
    "exp_range.yaml": EXPERIMENT_TEXT.replace("base:\n", "base:\n  max_eval_samples: 0\n"),
}


def test_help_and_bad_usage_need_no_torch(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    cases = [(module, ["--help"], 0, "--config FILE") for module in (TRAIN, EVAL, EXPERIMENT)]
    for module in (TRAIN, EVAL):
        cases += [
            (module, ["--data_dri", "x"], 2, "did you mean --data_dir?"),
            (module, ["--config", "key.yaml"], 2, "Unknown key 'lerning_rate' in key.yaml"),
            (module, ["--shots", "few"], 2, "--shots: invalid int value: 'few'"),
            (module, ["--shots", "0"], 2, "--shots is 0; it must be greater than 0"),
            (module, ["--config", "range.yaml"], 2, "--shots is 0; it must be greater than 0"),
            (module, ["--config", "none.yaml"], 2, "none.yaml cannot be read"),
            (module, ["--config", "broken.yaml"], 2, "broken.yaml is not valid YAML"),
            (module, ["--config", "list.yaml"], 2, "list.yaml holds a list"),
            (module, ["--config"], 2, "--config needs the name of a YAML file"),
            (module, ["stray"], 2, "Unexpected argument 'stray'"),
        ]
    cases += [
        (TRAIN, ["--config", "type.yaml"], 2, "In type.yaml: Argument --num_train_epochs"),
        (TRAIN, ["--learning_rate", "-1"], 2, "--learning_rate is -1.0"),
        (TRAIN, ["--objective", "x"], 2, "--objective is 'x'; choose one of cross_entropy"),
        (TRAIN, ["--optim", "adm"], 2, "--optim: invalid choice: 'adm' (choose from"),
        (EVAL, ["--split", "dev"], 2, "--split is 'dev'; choose one of train"),
        (EVAL, ["--zero_shot"], 2, "--zero_shot and --model_name_or_path go together"),
        (EXPERIMENT, [], 2, "following arguments are required: --config"),
        (EXPERIMENT, ["--confg", "x"], 2, "--config"),
        (EXPERIMENT, ["--config", "none.yaml"], 2, "none.yaml cannot be read"),
        (EXPERIMENT, ["--config", "broken.yaml"], 2, "broken.yaml is not valid YAML"),
        (EXPERIMENT, ["--config", "exp_key.yaml"], 2, "'sede' in exp_key.yaml; did you mean seeds"),
        (EXPERIMENT, ["--config", "exp_option.yaml"], 2, "base has the unknown key 'lerning'"),
        (EXPERIMENT, ["--config", "exp_type.yaml"], 2, "--max_eval_samples: invalid int value"),
        (EXPERIMENT, ["--config", "exp_range.yaml"], 2, "--max_eval_samples is 0"),
    ]
    answers = ask([case[:2] for case in cases], tmp_path)
    for (module, argv, code, message), (got, out, err, heavy) in zip(cases, answers, strict=True):
        case = f"{module} {argv}: {err or out[:99]}"
        assert (got, heavy) == (code, []), case
        shown, silent = (err, out) if code else (out, err)
        assert message in shown, case
        assert silent == "", case
        if code:
            # One line, which ends as a sentence does.
            assert shown.count("\n") == 1, case
            assert shown.rstrip().endswith((".", "?")), case


def test_of_several_processes_only_the_first_answers(tmp_path):
    calls = [(module, ["--help"]) for module in (TRAIN, EVAL, EXPERIMENT)]
    calls += [(TRAIN, ["--wrong", "1"]), (EVAL, ["--wrong", "1"])]
    expected = [(0, ""), (0, ""), (0, ""), (2, ""), (2, "")]
    answers = ask(calls, tmp_path, RANK="1", WORLD_SIZE="2")
    assert [(code, out + err) for code, out, err, _ in answers] == expected


def test_importing_the_package_is_light_and_its_names_register_the_classifier(tmp_path):
    script = (
        "import sys, siglip_flowers\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
        "assert set(siglip_flowers.__all__) <= set(dir(siglip_flowers))\n"
        "from siglip_flowers import SiglipClassifierConfig\n"
        "from transformers import AutoConfig\n"
        "assert type(AutoConfig.for_model('siglip_classifier')) is SiglipClassifierConfig\n"
    )
    model_type = siglip_flowers.SiglipClassifierConfig.model_type
    subprocess.run(
        [sys.executable, "-c", script.replace("siglip_classifier", model_type)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=True,
    )


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'siglip_flowers' has no attribute 'Nothing'"):
        siglip_flowers.Nothing  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        siglip_flowers.config.Nothing  # noqa: B018


def name_type(kind):
    """Return a type as text; an enumeration is its values, any other class text."""
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return str([member.value for member in kind])
    if arguments := typing.get_args(kind):
        if typing.get_origin(kind) is typing.Literal:
            return str(kind)
        origin = getattr(typing.get_origin(kind), "__name__", "")
        names = [name_type(argument) for argument in arguments]
        return f"{'Union' if 'Union' in origin else origin}{names}"
    known = (bool, int, float, str, list, dict, tuple, type(None), typing.Any)
    return str(kind if kind in known else str)


def describe(item, kind):
    return {
        "name": item.name,
        "default": item.default,
        "default_factory": item.default_factory,
        # Computed choices cannot be read, and are left to the class itself.
        "metadata": {key: value for key, value in item.metadata.items() if key != "choices"},
        "init": item.init,
        "type": name_type(kind),
    }


def describe_all(kind):
    hints = typing.get_type_hints(kind)
    return [describe(item, hints[item.name]) for item in dataclasses.fields(kind)]


def training_arguments_file():
    return Path(sys.modules[TrainingArguments.__module__].__file__)


def test_the_source_of_the_parent_is_read_as_python_reads_it():
    read = dataclasses.make_dataclass("Read", read_fields(training_arguments_file()))
    assert describe_all(read) == describe_all(TrainingArguments)


def test_light_and_real_training_arguments_have_the_same_fields():
    assert describe_all(make_training_options()) == describe_all(SiglipTrainingArguments)


def test_light_and_real_parser_have_the_same_options():
    def describe_parser(kinds):
        return {
            action.option_strings[0]: (
                action.option_strings,
                action.nargs,
                action.default,
                action.const,
                action.required,
                action.help,
                type(action),
            )
            for action in HfArgumentParser(kinds)._actions
        }

    real = describe_parser((*OTHER_KINDS, SiglipTrainingArguments))
    light = describe_parser(check_kinds())
    assert list(light) == list(real)
    assert light == real


def test_light_choices_are_never_narrower():
    def list_choices(kinds):
        return {action.dest: action.choices for action in HfArgumentParser(kinds)._actions}

    light, real = list_choices([make_training_options()]), list_choices([SiglipTrainingArguments])
    assert light["optim"] == real["optim"]
    for name, choices in light.items():
        assert choices is None or list(choices) == list(real[name])


@pytest.mark.parametrize(
    "argv",
    [
        [],
        NON_DEFAULT,
        ["--log_level", "debug", "--debug", "underflow_overflow", "--optim", "adamw_torch"],
        ["--no_augment", "--bf16", "true", "--fp16=false", "--save-strategy", "epoch"],
        ["--report_to", "none", "--label_names", "a", "b", "--accelerator_config", "{}"],
    ],
)
def test_valid_command_lines_pass_silently(argv, capsys):
    check(argv)
    assert capsys.readouterr() == ("", "")
    # As the arguments themselves see it.
    parse_arguments((*OTHER_KINDS, SiglipTrainingArguments), argv, prog="x", description="y")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_passes(path):
    check(["--config", str(path)])


def test_every_shipped_experiment_passes():
    paths = list((REPOSITORY / "configs").glob("experiment_*.yaml"))
    assert paths
    for path in paths:
        experiment_command._check(["--config", str(path)])


@pytest.mark.parametrize(
    "argv",
    [
        ["--learning_rate", "0"],
        ["--hub_strategy", "never"],
        ["--debug", "all"],
        ["--liger_kernel_config", "{}"],
        ["--report_to"],
        ["--wise_ft", "2"],
        ["--class_weights", "balanced", "--objective", "sigmoid"],
    ],
)
def test_what_is_refused_is_refused_in_the_same_words(argv):
    with pytest.raises(InputError) as light:
        check(argv)
    with pytest.raises(InputError) as real:
        parse_arguments(
            (*OTHER_KINDS, SiglipTrainingArguments),
            argv,
            prog="x",
            description="y",
        )
    assert str(light.value) == str(real.value)


@pytest.mark.parametrize(
    "text",
    [
        "class TrainingArguments:\n    x: int = field(default=compute())\n",
        "class TrainingArguments:\n    x: int = field(default=1, kw_only=True)\n",
        "class TrainingArguments:\n    x: int = other(default=1)\n",
        "class TrainingArguments:\n    x: int = field(default=UNKNOWN)\n",
        "class TrainingArguments:\n    x: ClassVar[int] = 1\n",
        "class TrainingArguments:\n    x: typing.Any = 1\n",
        "class TrainingArguments:\n    x: int = field(default=1, metadata=HELP)\n",
        "class TrainingArguments:\n    x: int = field(default=1, metadata={'aliases': F})\n",
        "class TrainingArguments:\n    pass\n",
        "class TrainingArguments(Base):\n    x: int = 1\n",
        "class Other:\n    x: int = 1\n",
        "class TrainingArguments:\n",
        None,
    ],
)
def test_a_source_that_is_not_understood_leaves_everything_to_the_class_itself(
    tmp_path, monkeypatch, text
):
    if text is not None:
        (tmp_path / "training_args.py").write_text(text)
    spec = argparse.Namespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(inherited.importlib.util, "find_spec", lambda name: spec)
    assert make_training_options() is None
    # Nothing is checked then, not even what could be.
    check(["--unknown", "option"])
    monkeypatch.setattr(inherited.importlib.util, "find_spec", lambda name: None)
    assert make_training_options() is None


def test_bad_usage_is_refused_without_the_source_too(monkeypatch, capsys):
    monkeypatch.setattr(train_command, "make_training_options", lambda: None)
    assert train_command.main(["--lerning_rate", "1"]) == 2
    assert "did you mean --learning_rate?" in capsys.readouterr().err


def test_types_that_are_not_found_count_as_text(tmp_path):
    path = tmp_path / "training_args.py"
    path.write_text(
        "from .neighbor import Color\n"
        "from .absent import Shape\n"
        "class Size(ExplicitEnum):\n    BIG = 'big'\n"
        "class TrainingArguments:\n"
        "    name = 'first'\n    if True:\n        name = 'second'\n"
        "    a: Color | str = field(default='red')\n"
        "    b: Shape | None = None\n"
        "    c: list[Size] = field(default_factory=list, metadata={'help': 'x' 'y'})\n"
        "    d: str = name\n"
    )
    (tmp_path / "neighbor.py").write_text("class Color(Enum):\n    RED = 'red'\n")
    fields = {name: (kind, item) for name, kind, item in read_fields(path)}
    assert [member.value for member in typing.get_args(fields["a"][0])[0]] == ["red"]
    assert fields["b"][0] == str | None
    (size,) = typing.get_args(fields["c"][0])
    assert [member.value for member in size] == ["big"]
    assert fields["c"][1].metadata == {"help": "xy"}
    assert fields["d"][1].default == "second"


@pytest.mark.parametrize(
    "name", ["commands/train.py", "commands/eval.py", "experiment/__main__.py"]
)
def test_commands_import_nothing_slow_at_their_top(name):
    tree = ast.parse((REPOSITORY / "siglip_flowers" / name).read_text())
    modules = {node.module.split(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom)}
    modules |= {
        alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names
    }
    assert not modules & {"torch", "datasets", "accelerate", "transformers"}
