"""The objectives against plain loops in float64, SiglipModel, and one process against several."""

import math

import pytest
import torch
import torch.multiprocessing
from transformers import SiglipModel

from siglip_flowers.model import losses
from siglip_flowers.model.losses import (
    class_logits,
    contrastive_sigmoid_loss,
    cross_entropy_loss,
    sigmoid_loss,
)
from siglip_flowers.training.objectives import smooth_targets
from tests.ring_worker import (
    CASES,
    POOL,
    TwoTowers,
    draw,
    make_global_batch,
    run_rank,
    train_two_steps,
)


def scalar(value, dtype=torch.float64):
    return torch.tensor([value], dtype=dtype)


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def plain_cosine(u, v):
    dot = sum(a * b for a, b in zip(u, v, strict=True))
    return dot / math.sqrt(sum(a * a for a in u)) / math.sqrt(sum(b * b for b in v))


def plain_contrastive(images, texts, labels, log_scale, bias):
    total = 0.0
    for i, image in enumerate(images.tolist()):
        for j, text in enumerate(texts.tolist()):
            z = 1 if labels[i] == labels[j] else -1
            total -= log_sigmoid(z * (math.exp(log_scale) * plain_cosine(image, text) + bias))
    return total / len(images)


def plain_cross_entropy(logits, targets, smoothing):
    losses = []
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(x) for x in row))
        smooth = [(1 - smoothing) * t + smoothing / len(row) for t in target]
        losses.append(-sum(t * (x - log_sum) for x, t in zip(row, smooth, strict=True)))
    return losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixed", [False, True])
def test_cross_entropy_equals_plain_loops(smoothing, mixed):
    logits, labels = draw(5, 4), torch.tensor([0, 3, 3, 1, 2])
    rows = draw(5, 4, seed=1).softmax(1) if mixed else torch.eye(4)[labels]
    targets = smooth_targets(rows if mixed else labels, 4, smoothing)
    expected = plain_cross_entropy(logits, rows, smoothing)
    assert cross_entropy_loss(logits, targets, "none").tolist() == pytest.approx(expected)
    assert cross_entropy_loss(logits, targets).item() == pytest.approx(sum(expected) / 5)


def test_sigmoid_loss_equals_plain_loops():
    logits, labels = 5 * draw(5, 4), torch.tensor([0, 3, 3, 1, 2])
    expected = 0.0
    for i, row in enumerate(logits.tolist()):
        for j, x in enumerate(row):
            expected -= log_sigmoid(x if labels[i] == j else -x)
    assert sigmoid_loss(logits, labels).item() == pytest.approx(expected / 5)
    assert sigmoid_loss(logits, torch.eye(4)[labels]).item() == pytest.approx(expected / 5)
    assert sigmoid_loss(logits, labels, "none").mean().item() == pytest.approx(expected / 5)


@pytest.mark.parametrize("loss", [cross_entropy_loss, sigmoid_loss])
@pytest.mark.parametrize(
    "labels", [torch.zeros(3).long(), torch.zeros(2, 3), torch.zeros(2), torch.zeros(2, 4).long()]
)
def test_labels_that_do_not_fit_are_refused(loss, labels):
    with pytest.raises(ValueError, match=r"labels must be integers"):
        loss(torch.zeros(2, 4), labels)


def test_class_logits_equal_plain_loops():
    images, classes = draw(3, 5), draw(4, 5, seed=1)
    actual = class_logits(images, classes, scalar(1.5), scalar(-2.0))
    for i in range(3):
        for j in range(4):
            expected = math.exp(1.5) * plain_cosine(images[i].tolist(), classes[j].tolist()) - 2.0
            assert actual[i, j].item() == pytest.approx(expected)


@pytest.mark.parametrize("block", [1, 2, 1024])
def test_contrastive_loss_equals_plain_loops(monkeypatch, block):
    monkeypatch.setattr(losses, "_TEXT_BLOCK", block)
    images, texts, labels = draw(5, 7), draw(5, 7, seed=1), torch.tensor([4, 1, 4, 0, 1])
    expected = plain_contrastive(images, texts, labels, 2.0, -3.0)
    actual = contrastive_sigmoid_loss(images, texts, labels, scalar(2.0), scalar(-3.0))
    assert actual.item() == pytest.approx(expected)


def test_contrastive_loss_of_unlike_labels_and_its_gradients_equal_those_of_siglip_model(tiny_dir):
    torch.manual_seed(0)
    model = SiglipModel.from_pretrained(tiny_dir).eval()
    pixels, tokens = torch.rand(4, 3, 16, 16) * 2 - 1, torch.randint(3, 1000, (4, 16))
    theirs = model(input_ids=tokens, pixel_values=pixels, return_loss=True).loss
    parameters = [
        model.logit_scale,
        model.logit_bias,
        model.vision_model.head.mlp.fc2.weight,
        model.text_model.head.weight,
    ]
    their_grads = torch.autograd.grad(theirs, parameters)
    ours = contrastive_sigmoid_loss(
        model.get_image_features(pixels).pooler_output,
        model.get_text_features(tokens).pooler_output,
        torch.arange(4),
        model.logit_scale,
        model.logit_bias,
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for our_grad, their_grad in zip(
        torch.autograd.grad(ours, parameters), their_grads, strict=True
    ):
        torch.testing.assert_close(our_grad, their_grad, atol=1e-5, rtol=1e-5)


def test_gradients_pass_gradcheck_in_double_precision(monkeypatch):
    monkeypatch.setattr(losses, "_TEXT_BLOCK", 2)
    images, texts = draw(3, 4).requires_grad_(), draw(3, 4, seed=1).requires_grad_()
    scale, bias = scalar(0.7).requires_grad_(), scalar(-0.5).requires_grad_()
    labels, soft = torch.tensor([0, 2, 0]), draw(3, 3, seed=2).softmax(1)
    logits = draw(3, 3, seed=3).requires_grad_()

    def contrastive(*inputs):
        return 3.0 * contrastive_sigmoid_loss(inputs[0], inputs[1], labels, *inputs[2:])

    def check(function, *inputs):
        assert torch.autograd.gradcheck(function, inputs)

    check(contrastive, images, texts, scale, bias)
    check(class_logits, images, texts, scale, bias)
    for targets in (labels, soft):
        check(lambda x, t=targets: sigmoid_loss(x, t), logits)
        check(lambda x, t=targets: cross_entropy_loss(x, t), logits)


def test_losses_are_computed_in_float32_under_autocast():
    images, texts = draw(6, 64, dtype=torch.float32), draw(6, 64, seed=1, dtype=torch.float32)
    labels, scale, bias = torch.arange(6), scalar(4.0).float(), scalar(-10.0).float()

    def values():
        logits = class_logits(images, texts, scale, bias)
        return (
            logits,
            sigmoid_loss(logits, labels),
            cross_entropy_loss(logits, labels),
            contrastive_sigmoid_loss(images, texts, labels, scale, bias),
        )

    expected = values()
    with torch.autocast("cpu", torch.bfloat16):
        for plain, mixed in zip(expected, values(), strict=True):
            assert mixed.dtype == torch.float32
            torch.testing.assert_close(mixed, plain, atol=1e-6, rtol=1e-6)
    low = contrastive_sigmoid_loss(images.bfloat16(), texts.bfloat16(), labels, scale, bias)
    assert low.dtype == torch.float32
    assert cross_entropy_loss(expected[0].bfloat16(), labels).dtype == torch.float32


@pytest.mark.parametrize(
    "images, texts, labels, message",
    [
        (torch.zeros(2, 3), torch.zeros(3, 3), torch.zeros(2).long(), "one text per image"),
        (torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2).long(), "one text per image"),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3).long(), "labels must be 2 integers"),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2), "labels must be 2 integers"),
        (torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0).long(), "at least one image"),
    ],
)
def test_contrastive_inputs_that_do_not_fit_are_refused(images, texts, labels, message):
    with pytest.raises(ValueError, match=message):
        contrastive_sigmoid_loss(images, texts, labels, torch.zeros(1), torch.zeros(1))


@pytest.fixture(scope="module")
def results_of_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(run_rank, (str(folder),), nprocs=POOL)
    return [torch.load(folder / f"{rank}.pt") for rank in range(POOL)]


@pytest.mark.parametrize("case", CASES)
def test_several_ranks_train_as_one_process_does(results_of_ranks, case):
    sizes, freeze_text = CASES[case]
    model = TwoTowers(freeze_text)
    batch = make_global_batch(sum(sizes))
    expected_losses = train_two_steps(model, batch)
    expected_grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert any(name.startswith("text_tower") for name in expected_grads) != freeze_text
    close = {"atol": 1e-5, "rtol": 1e-5}
    results = [result[case] for result in results_of_ranks if case in result]
    assert len(results) == len(sizes)
    for result in results:
        torch.testing.assert_close(result["losses"], expected_losses, **close)
        torch.testing.assert_close(result["evaluated"], model(*batch).detach(), **close)
        torch.testing.assert_close(result["grads"], expected_grads, **close)
        torch.testing.assert_close(result["weights"], dict(model.state_dict()), **close)


def test_ranks_that_do_not_fit_together_raise_on_every_rank(results_of_ranks):
    for result in results_of_ranks:
        assert "must be the same on all ranks" in result["different widths"]
    assert "not in the process group" in results_of_ranks[0]["no member"]
