"""The table of rules: each refuses its example, through the command, in a sentence."""

import importlib
import importlib.util
import re
import shlex
import string
from dataclasses import replace

import pytest
import yaml

from siglip_flowers.commands.main import COMMANDS
from siglip_flowers.config.fields import get_default
from siglip_flowers.config.rules import DATA_RULES, RULES, merge_options
from tests.test_layout import FEATURES


def list_feature_rules():
    """Return the command and the rule of each row of a feature's table."""
    found = []
    for feature in sorted(FEATURES):
        if importlib.util.find_spec(f"siglip_flowers.{feature}.options") is None:
            continue
        options = importlib.import_module(f"siglip_flowers.{feature}.options")
        command = next(iter(getattr(options, "EXTENDS", {})), feature)
        found += [(command, rule) for rule in getattr(options, "RULES", ())]
    return found


CASES = [
    (command, rule)
    for command, rules in RULES.items()
    for rule in rules
    if command == "train" or rule not in DATA_RULES
] + list_feature_rules()


@pytest.mark.parametrize(
    ("command", "rule"), CASES, ids=lambda value: getattr(value, "example", value)
)
def test_each_rule_refuses_its_example(command, rule, capsys, monkeypatch, tmp_path):
    # Nothing of a run is at hand: rules come before data and weights.
    monkeypatch.chdir(tmp_path)
    words = shlex.split(rule.example)
    while words and re.match(r"[A-Z][A-Z_0-9]*=", words[0]):
        monkeypatch.setenv(*words.pop(0).split("=", 1))
    assert importlib.import_module(COMMANDS[command][0]).main(words) == 2
    shown = capsys.readouterr().err
    # The sentence of this rule, and not that of an earlier one.
    pattern = "".join(
        re.escape(text) + (".*" if name is not None else "")
        for text, name, _, _ in string.Formatter().parse(rule.message)
    )
    assert re.fullmatch(rf"[\w. -]+: error: {pattern}\n", shown), shown


@pytest.mark.parametrize(
    ("command", "rule"),
    [case for case in CASES if case[0] in ("train", "eval") and case[1].settings],
    ids=lambda value: getattr(value, "needed", value),
)
def test_turning_a_part_off_drops_its_settings_in_the_file(command, rule, tmp_path):
    full = importlib.import_module(COMMANDS[command][0]).COMMAND
    refused = vars(merge_options(*replace(full, rules=()).parse(shlex.split(rule.example))))
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({name: refused[name] for name in rule.settings}))
    found = full.build({rule.needed: refused[rule.needed]}, path)
    expected = {name: get_default(full.fields[name]) for name in rule.settings}
    assert {name: vars(merge_options(*found))[name] for name in rule.settings} == expected
