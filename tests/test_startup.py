"""--help and bad usage are answered without torch, and by one process of a launch."""

import json
import os
import runpy
import subprocess
import sys

import pytest

from siglip_flowers.commands.main import list_commands
from tests.conftest import REPOSITORY
from tests.small_runs import run_python

HEAVY = ("torch", "transformers", "datasets", "accelerate", "sklearn", "matplotlib", "pyarrow")
NEED_A_MODEL = ("eval", "threshold", "demo")
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


def test_help_and_bad_usage_need_no_torch(tmp_path):
    (tmp_path / "key.yaml").write_text("lerning_rate: 1\n", encoding="utf-8")
    cases = [
        case
        for module, _ in list_commands().values()
        for case in ((module, ["--help"], 0), (module, ["--unheard_of", "x"], 2))
    ]
    train = list_commands()["train"][0]
    cases += [
        (train, ["--help_all"], 0),
        (train, ["--config", "key.yaml"], 2),
        (train, ["--learning_rate", "-1"], 2),
        (train, ["--wise_ft", "0.5"], 2),
        *((list_commands()[name][0], ["--model", "no/such/place"], 2) for name in NEED_A_MODEL),
    ]
    # Without a network a Hub id is refused as fast.
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    cases += [
        *((list_commands()[name][0], ["--model", "org/name"], 1) for name in NEED_A_MODEL),
        *(
            (list_commands()[name][0], ["--model_name_or_path", "org/name"], 1)
            for name in ("train", "probe")
        ),
        (train, ["--model_name_or_path", "./model", "--dataset_name", "org/name"], 1),
        (list_commands()["eval"][0], ["--zero_shot", "--model_name_or_path", "org/name"], 1),
    ]
    answers = ask([case[:2] for case in cases], tmp_path, HF_HUB_OFFLINE="1")
    for (module, argv, code), (got, out, err, heavy) in zip(cases, answers, strict=True):
        case = f"{module} {argv}: {err or out[:99]}"
        assert (got, heavy) == (code, []), case
        if code:
            # One line, which ends as a sentence does.
            assert (out, err.count("\n")) == ("", 1), case
            assert err.rstrip().endswith((".", "?")), case
        else:
            assert err == "", case


def test_of_several_processes_only_the_first_answers(tmp_path):
    calls = [
        (list_commands()[name][0], argv)
        for name in ("train", "eval")
        for argv in (["--help"], ["--wrong", "1"])
    ]
    answers = ask(calls, tmp_path, RANK="1", WORLD_SIZE="2")
    expected = [(0, ""), (2, "")] * 2
    assert [(code, out + err) for code, out, err, _ in answers] == expected


def test_importing_the_package_is_light_and_its_names_register_the_classifier(tmp_path):
    script = (
        "import sys, siglip_flowers\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
        "assert set(siglip_flowers.__all__) <= set(dir(siglip_flowers))\n"
        "from siglip_flowers import SiglipClassifierConfig\n"
        "from transformers import AutoConfig\n"
        "model_type = SiglipClassifierConfig.model_type\n"
        "assert type(AutoConfig.for_model(model_type)) is SiglipClassifierConfig\n"
    )
    run_python("-c", script, cwd=tmp_path)


@pytest.mark.parametrize("feature", ["export", "search"])
def test_a_feature_runs_as_a_module_too(feature, monkeypatch, capsys):
    pytest.importorskip(f"siglip_flowers.{feature}")
    monkeypatch.setattr(sys, "argv", [feature, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(f"siglip_flowers.{feature}", run_name="__main__")
    assert end.value.code == 0
    assert f"siglip-flowers {feature}" in capsys.readouterr().out
