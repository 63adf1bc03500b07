"""Templates, class names and canonical text."""

import string

import pytest

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.prompts import (
    build_prompts,
    canonicalize,
    clean_class_name,
    load_templates,
)


@pytest.fixture
def write(tmp_path):
    def write_templates(text, encoding="utf-8"):
        path = tmp_path / "templates.txt"
        path.write_bytes(text.encode(encoding))
        return path

    return write_templates


def test_packaged_templates_have_one_slot_each_and_differ():
    templates = load_templates()
    assert len({canonicalize(template) for template in templates}) == len(templates) >= 8
    assert all(template.count("{}") == 1 for template in templates)


def test_comments_and_blank_lines_are_not_templates(write):
    path = write("# a {} comment\n\n  a photo of a {}.  \r\n   # indented {}\nthe {} #1\n")
    assert load_templates(path) == ["a photo of a {}.", "the {} #1"]
    assert load_templates(str(path)) == load_templates(path)


def test_a_template_without_a_slot_is_refused(write):
    path = write("# first\na photo of a {}.\na photo of a { }.\n")
    with pytest.raises(InputError, match=r"'a photo of a \{ \}\.' in .*templates\.txt has no slot"):
        load_templates(path)


def test_a_file_that_cannot_be_read_is_refused(write, tmp_path):
    with pytest.raises(InputError, match=r"The prompt templates .*absent\.txt cannot be read"):
        load_templates(tmp_path / "absent.txt")
    with pytest.raises(InputError, match="cannot be read"):
        load_templates(write("a photo of a {} é", encoding="latin-1"))


@pytest.mark.parametrize(
    "name, cleaned, canonical",
    [
        ("colt's foot", "colt's foot", "colts foot"),
        ("sword_lily", "sword lily", "sword lily"),
        ("hard-leaved pocket orchid", "hard leaved pocket orchid", "hard leaved pocket orchid"),
        ("pink-yellow dahlia?", "pink yellow dahlia", "pink yellow dahlia"),
        ("Black_Eyed__Susan ", "Black Eyed Susan", "black eyed susan"),
        ("tree‐poppy – red", "tree poppy red", "tree poppy red"),
    ],
)
def test_class_names_are_cleaned(name, cleaned, canonical):
    assert clean_class_name(name) == cleaned
    assert canonicalize(clean_class_name(name)) == canonical


def test_canonical_text_is_that_of_the_siglip_authors():
    assert canonicalize("A photo of a {}, a type  of flower.") == "a photo of a a type of flower"
    assert canonicalize("Colt's-foot\t(wild)!\n") == "coltsfoot wild"
    assert canonicalize("sword_lily") == "sword lily"
    assert canonicalize("E\u0301delweiß «rare»") == "édelweiß «rare»"
    assert canonicalize(string.punctuation) == ""


def test_prompts_put_every_class_into_every_template():
    prompts = build_prompts(["sword_lily", "rose"], ["a {}.", "the {} flower, a {}"])
    assert prompts == [
        ["a sword lily.", "the sword lily flower, a sword lily"],
        ["a rose.", "the rose flower, a rose"],
    ]
    assert build_prompts(["{0} {name}"], ["a {}"]) == [["a 0} {name"]]


@pytest.mark.parametrize("name", ["", "  ", "_-_", "???"])
def test_a_class_with_an_empty_name_is_refused(name):
    with pytest.raises(InputError, match=r"Class 1 has the name .* which leaves no words"):
        build_prompts(["rose", name], ["a {}"])
