"""The zero-shot head against SiglipModel's own scores, on real photographs."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, SiglipModel

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.prompts import build_prompts
from siglip_flowers.config import ModelArguments
from siglip_flowers.model.text_head import (
    check_prompts,
    load_text_tower,
    read_prompts,
    tokenize_prompts,
    zero_shot_head,
)
from tests.small_flowers import tokenize

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
NAMES = ("hard-leaved pocket orchid", "colt's foot", "sword_lily", "bird of paradise")


@pytest.fixture(scope="module")
def nano(nano_dir):
    return str(nano_dir)


@pytest.fixture(scope="module")
def siglip(nano):
    return SiglipModel.from_pretrained(nano, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(nano):
    return load_text_tower(nano)[1]


@pytest.fixture
def copy(nano, tmp_path):
    """A copy of the checkpoint to be spoilt."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        shutil.copyfile(f"{nano}/{name}", folder / name)
    return folder


def build_head(checkpoint, names, templates):
    return zero_shot_head(checkpoint, names, build_prompts(names, templates))


def spoil_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", {"format": "pt"})


def test_tokens_ignore_case_and_punctuation_and_are_cut_or_padded_on_the_right(nano):
    tokenizer = AutoTokenizer.from_pretrained(nano, padding_side="left")
    texts = ["a sword lily", " A  Sword Lily?!", "rose " * 200, "rose " * 100]
    plain, shouted, long, shorter = tokenize_prompts(tokenizer, texts, 16)
    assert torch.equal(plain, shouted)
    assert torch.equal(long, shorter)
    assert torch.equal(plain, tokenize(nano, ["a sword lily"])[0])


def test_a_vision_only_checkpoint_is_refused_before_its_weights_are_read(siglip, tmp_path):
    siglip.vision_model.config.save_pretrained(tmp_path)  # there are no weights at all
    with pytest.raises(InputError, match=r"no text tower .*'siglip_vision_model'.*two-tower"):
        build_head(str(tmp_path), NAMES, ["a {}"])


def drop_text(weights):
    return {key: value for key, value in weights.items() if not key.startswith("text_model.")}


@pytest.mark.parametrize(
    "change, message",
    [
        (drop_text, r"lacks \d+ text weights"),
        (lambda w: {k: w[k] for k in w if k != "text_model.head.weight"}, r"1 text .*head\.weight"),
        (lambda w: {k: w[k] for k in w if k != "logit_scale"}, "lacks 1 weight .*logit_scale"),
        (lambda w: {k: w[k] for k in w if k != "logit_bias"}, "lacks 1 weight .*logit_bias"),
        (lambda w: w | {"text_model.more": w["logit_bias"].clone()}, r"1 text weight .*\(more\)"),
    ],
)
def test_wrong_weights_are_refused(copy, change, message):
    spoil_weights(copy, change)
    with pytest.raises(InputError, match=message):
        build_head(str(copy), NAMES, ["a {}"])


def test_classes_with_the_same_tokens_are_refused_by_name(nano):
    with pytest.raises(InputError, match="classes 'кот', 'лев' have the same prompts"):
        build_head(nano, ["rose", "кот", "лев"], ["a {}", "the {}"])
    # Cut off before the name.
    with pytest.raises(InputError, match="classes 'rose', 'lily' have the same prompts"):
        build_head(nano, ["rose", "lily"], ["a photo " * 20 + "{}"])


def test_unknown_and_cut_off_tokens_are_reported_once_with_their_share(nano, tokenizer, caplog):
    templates = ["a {}", "a photo of a flower that is called {}"]
    check_prompts(nano, ["rose", "лев"], build_prompts(["rose", "лев"], templates))
    (message,) = [record.getMessage() for record in caplog.records]
    texts = [
        f"{start}{name}"
        for name in ("rose", "лев")
        for start in ("a ", "a photo of a flower that is called ")
    ]
    tokens = [tokenizer(text)["input_ids"] for text in texts]
    total = sum(map(len, tokens))
    unknown = sum(row.count(tokenizer.unk_token_id) for row in tokens)
    cut = sum(max(0, len(row) - 16) for row in tokens)
    assert unknown
    assert f"{100 * unknown / total:.1f}% are unknown" in message
    assert f"{100 * cut / total:.1f}% exceed the length of 16" in message
    caplog.clear()
    check_prompts(nano, ["rose", "lily"], [["a rose"], ["a lily"]])
    assert not caplog.records


def test_class_prompts_are_averaged_whatever_their_number(nano, siglip, tmp_path):
    (tmp_path / "prompts.yaml").write_text("йод: [a cat, a small cat, a pet]\n7: a lion\n")
    names = ["и\u0306од", "7", "tree"]
    templates = tmp_path / "templates.txt"
    templates.write_text("a {}\nthe {}\n")
    prompts = read_prompts(
        names,
        ModelArguments(
            prompt_templates=str(templates), class_prompts=str(tmp_path / "prompts.yaml")
        ),
    )
    assert prompts == [["a cat", "a small cat", "a pet"], ["a lion"], ["a tree", "the tree"]]
    head = zero_shot_head(nano, names, prompts)
    with torch.no_grad():
        features = siglip.get_text_features(tokenize(nano, prompts[0])).pooler_output
    mean = (features / features.norm(dim=1, keepdim=True)).mean(dim=0)
    torch.testing.assert_close(head.weight[0], mean / mean.norm(), **CLOSE)


@pytest.mark.parametrize(
    "content, message",
    [
        ("кит: a whale", "has 'кит', which is not a class of the data. Choose one of кот, лев."),
        ("кот: []", "The prompts of 'кот' in .* are \\[\\]"),
        ("кот: [1]", "Write a text, or a list of texts"),
        ("a cat", "contains a str"),
    ],
)
def test_class_prompts_that_cannot_be_used_are_refused(content, message, tmp_path):
    (tmp_path / "prompts.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        read_prompts(["кот", "лев"], ModelArguments(class_prompts=str(tmp_path / "prompts.yaml")))


def test_templates_speak_of_flowers_only_if_the_classes_are_flowers():
    assert any("flower" in text for text in read_prompts(["rose"], ModelArguments())[0])
    assert "a photo of a cat." in read_prompts(["cat"], ModelArguments())[0]
    assert not any("flower" in text for text in read_prompts(["rose", "cat"], ModelArguments())[0])
