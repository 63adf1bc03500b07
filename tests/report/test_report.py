"""The report: its numbers against independent references, and its page in a real browser."""

import json
import re
import shutil
from types import SimpleNamespace

import imagehash
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image, ImageOps
from scipy.special import softmax
from sklearn import metrics as sklearn_metrics

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.commands import eval as eval_command
from siglip_flowers.commands import train as train_command
from siglip_flowers.config import DataArguments, EvaluationArguments
from siglip_flowers.evaluation.predict import SplitResult
from siglip_flowers.evaluation.run import Evaluation, format_metrics
from siglip_flowers.inference.classifier import SiglipImageClassifier
from siglip_flowers.inference.sidecars import load_temperature
from siglip_flowers.metrics.classification import compute_metrics, per_class_rows
from siglip_flowers.report import analysis
from siglip_flowers.report.analysis import analyze, find_label_suspects
from siglip_flowers.report.figures import describe_marks, draw_figures
from siglip_flowers.report.images import find_duplicates, hash_images
from siglip_flowers.report.output import (
    REPORT_FILES,
    check_report_dir,
    render_page,
    summarize_report,
    write_report,
)
from tests.small_runs import list_files, make_checkpoint, make_folder, small_options

pytestmark = pytest.mark.figures

ALERTS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</script><script>alert(3)</script>",
    "'+alert(4)+'",
    "</title><svg onload=alert(5)>",
    "=HYPERLINK(1)",
    "--><b>rose</b>",
    "\x1b[31m\u202eesor",
    "{{ 7 * 7 }}",
    "a very long name " * 12,
)


class Images(list):
    """Images in memory, as ``SplitImages`` gives them."""

    def __init__(self, images=(), labels=None, ids=None):
        super().__init__(images)
        self.ids = ids or [f"image {row}" for row in range(len(self))]
        self.labels = np.zeros(len(self), dtype=np.int64) if labels is None else np.asarray(labels)

    def read(self, rows):
        return [self[row] for row in rows]


def draw(count: int, seed: int = 0) -> list[Image.Image]:
    random = np.random.default_rng(seed)
    small = [random.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(count)]
    return [Image.fromarray(pixels).resize((32, 32)) for pixels in small]


def build(labels, logits, *, images=None, ids=None, trained=None, unknowns=(), **changes):
    """Return the report of made-up predictions; ``changes`` are those of the evaluation."""
    labels, logits = np.asarray(labels, dtype=np.int64), np.asarray(logits, dtype=np.float32)
    names = changes.pop("names", [f"class {number}" for number in range(logits.shape[1])])
    features = np.random.default_rng(1).normal(size=(len(labels), 6)).astype(np.float32)
    # As in a model, features depend on the class.
    features[:, 0] += 3 * labels
    own = Images(images or draw(len(labels)), labels, ids)
    result = SplitResult(
        split="test", ids=own.ids, labels=labels, features=features, logits=logits,
        probabilities=softmax(logits, axis=1), metrics=compute_metrics(logits, labels, "softmax"),
        per_class=per_class_rows(labels, logits.argmax(axis=1), names),
    )  # fmt: skip
    values = {
        "options": EvaluationArguments(), "data_arguments": DataArguments(),
        "command": "python eval.py --report true", "name": "model", "title": "model on data",
        "model": SimpleNamespace(class_names=names, config=SimpleNamespace(activation="softmax")),
        "processor": None, "data": SimpleNamespace(description="data"), "rows": None,
        "environment": {"python": "3", "packages": {"torch": "2"}}, "result": result,
    }  # fmt: skip
    splits = {"test": own, "train": Images(labels=labels if trained is None else trained)}
    return analyze(Evaluation(**{**values, **changes}), splits, 2.0, list(unknowns))


def make_logits(labels, classes: int, strength: float = 1.5, seed: int = 0) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(len(labels), classes))
    logits[np.arange(len(labels)), labels] += strength
    return logits


def render(report) -> str:
    return render_page(report, draw_figures(report))


@pytest.fixture(scope="module")
def hostile_page(hostile):
    return render(hostile)


@pytest.fixture(scope="module")
def labels():
    return np.arange(120) % len(ALERTS)


@pytest.fixture(scope="module")
def report(labels):
    return build(labels, make_logits(labels, len(ALERTS)))


@pytest.fixture(scope="module")
def hostile(labels):
    row = {"kind": ALERTS[0], "strength": 1, "accuracy": 0.5, "low": 0.4, "high": 0.6}
    views = {"name": ALERTS[1], "accuracy": 0.5, "low": 0.4, "high": 0.6, "gain": 0.01}
    return build(
        labels,
        make_logits(labels, len(ALERTS)),
        ids=[f"{ALERTS[row % len(ALERTS)]}{row}" for row in range(len(labels))],
        trained=np.repeat([0, 1, 2], [5, 50, 500]),
        unknowns=[{"source": ALERTS[1], "score": ALERTS[0], "n": 5, "auroc": 0.9, "fpr95": 0.1}],
        names=list(ALERTS),
        title=ALERTS[4],
        name=ALERTS[1],
        data=SimpleNamespace(description=ALERTS[0]),
        command=f"python eval.py '{ALERTS[2]}'",
        environment={ALERTS[0]: {"device": ALERTS[1]}},
        figures={"robustness": {"rows": [row]}, "augmented": [{**views, "cost": 2}]},
    )


def test_numbers_agree_with_scikit_learn(report, labels):
    logits = make_logits(labels, len(ALERTS)).astype(np.float32)
    predicted, probabilities = logits.argmax(axis=1), softmax(logits.astype(float), axis=1)
    numbers, headline = report.numbers, report.numbers["headline"]
    assert headline["accuracy"]["value"] == sklearn_metrics.accuracy_score(labels, predicted)
    assert headline["loss"]["value"] == pytest.approx(
        sklearn_metrics.log_loss(labels, probabilities), rel=1e-5
    )
    assert all(each["low"] <= each["value"] <= each["high"] for each in headline.values())
    assert numbers["calibrated"]["loss"] == pytest.approx(
        sklearn_metrics.log_loss(labels, softmax(logits.astype(float) / 2, axis=1))
    )
    assert numbers["confusion"] == sklearn_metrics.confusion_matrix(labels, predicted).tolist()
    worst = numbers["confident_mistakes"][0]
    assert worst["label"] != worst["predicted"]
    assert worst["confidence"] == probabilities.max(axis=1)[predicted != labels].max()
    pair, names = numbers["confused_pairs"][0], numbers["class_names"]
    errors = np.array(numbers["confusion"])
    np.fill_diagonal(errors, 0)
    place = names.index(pair["label"]), names.index(pair["predicted"])
    assert pair["count"] == errors.max() == errors[place]


def test_a_figure_without_an_interval_says_so():
    page = render(build([0, 1], [[2, 1], [1, 2]]))
    (row,) = re.findall(r"<tr><th[^>]*>F1 \(macro\)</th>(.*?)</tr>", page, re.DOTALL)
    assert "100.00%" in row
    assert ">none<" in row
    assert "interval" not in row


def test_rare_medium_and_frequent_classes_are_averaged_separately():
    labels = [0, 0, 1, 1, 2, 2, 3, 3]
    logits = 9 * np.eye(5)[[0, 1, 1, 1, 2, 3, 3, 3]]
    # The last class is rare and has no test image.
    trained = np.repeat(np.arange(5), [19, 20, 100, 101, 3])
    groups = build(labels, logits, trained=trained).numbers["class_groups"]
    assert [group["classes"] for group in groups] == [1, 2, 1]
    assert [group["recall"] for group in groups] == [0.5, 0.75, 1]
    assert [group["support"] for group in groups] == [2, 4, 2]
    assert groups[0]["f1"] == pytest.approx(2 / 3)
    alike = build(labels, logits, trained=np.repeat(np.arange(5), 30))
    assert alike.numbers["class_groups"] == []


def test_copies_and_mirrored_images_are_found_by_their_hashes():
    images, train = draw(30), draw(9, seed=1)
    assert hash_images(images).tolist() == [int(str(imagehash.phash(each)), 16) for each in images]
    images += [ImageOps.mirror(images[3]), images[7]]
    train += [ImageOps.mirror(images[5]), images[11]]
    found = find_duplicates("test", {"test": Images(images), "train": Images(train)})
    assert found == [
        *((0, 3, "test", 30), (0, 5, "train", 9)),
        *((0, 7, "test", 31), (0, 11, "train", 10)),
    ]


def test_wrong_labels_are_suspected_and_without_cleanlab_none(monkeypatch):
    truth = np.arange(120) % 4
    probabilities = softmax(make_logits(truth, 4, 6.0), axis=1)
    labels = truth.copy()
    labels[:5] = (labels[:5] + 1) % 4
    found = find_label_suspects(labels, probabilities)
    assert {(row, suggested) for row, suggested, _ in found} == {*enumerate(truth[:5])}
    monkeypatch.setattr(analysis.importlib.util, "find_spec", lambda name: None)
    assert find_label_suspects(labels, probabilities) == []


def test_markup_in_names_does_nothing(hostile, hostile_page):
    page = hostile_page
    for text in (summarize_report(hostile), page):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "<svg onload" not in page
    assert "<b>rose" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("</script>") == 2


def test_every_mark_of_a_figure_has_its_label(hostile_page):
    page = hostile_page
    marks = json.loads(re.search(r'id="marks">(.*?)</script>', page, re.DOTALL).group(1))
    assert set(marks["labels"]) == {"confusion", "map"}
    for key, labels in marks["labels"].items():
        group = re.search(rf'<g id="{key}".*?(?=<g class|<g id|</svg>)', page, re.DOTALL).group(0)
        drawn = re.sub(r"<defs>.*?</defs>", "", group, flags=re.DOTALL)
        assert len(re.findall(r"<(?:use|path) ", drawn)) >= len(labels) > 0, key
    assert len(marks["images"]["map"]) == len(marks["labels"]["map"])


def test_all_files_are_written_and_replace_only_themselves(report, tmp_path):
    directory, title = tmp_path / "report_test", report.evaluation.title
    check_report_dir(directory, title)
    directory.mkdir()
    check_report_dir(directory, title)
    assert write_report(report, directory).stat().st_size < 10_000_000
    assert sorted(list_files(directory)) == sorted(REPORT_FILES)
    check_report_dir(directory, title)
    with pytest.raises(InputError, match="something else"):
        check_report_dir(directory, "another model")
    (directory / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        check_report_dir(directory, title)
    saved = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
    assert saved == report.numbers


@pytest.mark.slow
def test_the_page_of_a_whole_split_stays_below_10_megabytes():
    # Of every class ten images of noise, which JPEG makes larger than any photograph.
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(102), 10)
    images = [Image.fromarray(random.integers(0, 256, (96, 96, 3), dtype=np.uint8)) for _ in labels]
    names = [f"a flower whose name is long {number}" for number in range(102)]
    page = render(build(labels, make_logits(labels, 102, 4), images=images, names=names))
    assert page.count("data:image/jpeg") >= 1020
    assert len(page.encode()) < 10_000_000


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("report")
    checkpoint = make_checkpoint(directory / "checkpoint")
    folder = make_folder(directory / "data")
    run = directory / "run"
    assert train_command.main(small_options(checkpoint, folder, run)) == 0
    return run


@pytest.mark.slow
def test_eval_writes_the_report_of_a_run(small_run, capsys):
    arguments = ["--model", str(small_run), "--split", "test", "--report", "true"]
    assert eval_command.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "Calibration error" in shown
    assert "Computed in float32 on " in shown
    # The table of the training run, to the last digit; of three classes the top 5 say nothing.
    trained = json.loads((small_run / "metrics.json").read_text())["splits"]["test"]
    trained.pop("top5_accuracy")
    rows = [" ".join(line.split()) for line in shown.splitlines()]
    for line in format_metrics({"test": trained}).splitlines():
        assert any(row.startswith(" ".join(line.split())) for row in rows)
    assert "op-5" not in shown
    directory = small_run / "report_test"
    assert sorted(list_files(directory)) == sorted(REPORT_FILES)
    saved = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
    assert saved["command"].startswith("siglip-flowers eval --model ")
    table = pyarrow.parquet.read_table(small_run / "predictions_test.parquet")
    assert saved["headline"]["accuracy"]["value"] == np.mean(table["correct"].to_pylist())
    assert {name: each["value"] for name, each in saved["headline"].items()} == {
        name: value for name, value in trained.items() if name not in ("n", "nll", "per_class")
    }
    assert saved["calibrated"]["temperature"] == load_temperature(small_run / "model")
    assert {row["source"] for row in saved["unknowns"]} == {"drawings"}
    assert {row["score"] for row in saved["unknowns"]} >= {"energy", "class_mean"}
    before = saved["headline"]
    # Once more, without cached pixels: it replaces itself, with the same numbers.
    assert eval_command.main([*arguments, "--pixel_cache", "false"]) == 0
    saved = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
    assert saved["headline"] == before


@pytest.mark.slow
def test_predictions_are_calibrated_when_asked(small_run, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(small_run / "model", model)
    temperature = load_temperature(model)
    image = draw(1)[0]
    plain, calibrated = (
        SiglipImageClassifier.from_pretrained(model, dtype="float32", calibrated=asked)
        for asked in (False, True)
    )
    before = np.log([result["score"] for result in plain(image, 3)])
    after = np.log([result["score"] for result in calibrated(image, 3)])
    assert np.diff(after) == pytest.approx(np.diff(before) / temperature, rel=1e-3, abs=1e-5)
    (model / "calibration.json").write_text('{"temperature": -1}')
    with pytest.raises(RunError, match="cannot be read"):
        SiglipImageClassifier.from_pretrained(model, calibrated=True)
    (model / "calibration.json").unlink()
    with pytest.raises(InputError, match="has no"):
        SiglipImageClassifier.from_pretrained(model, calibrated=True)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_the_page_works_in_a_browser(hostile, hostile_page, browser, tmp_path, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    path = tmp_path / "report.html"
    path.write_text(hostile_page, encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    # Nothing is wider than the screen.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    violations = axe.Axe().run(page).response["violations"]
    assert not [found["id"] for found in violations if found["impact"] in ("serious", "critical")]
    # Sorted by the keyboard, up and down.
    heading = page.locator("#classes table.sortable th").nth(1)
    for order in ("descending", "ascending"):
        heading.locator("button").press("Enter")
        assert heading.get_attribute("aria-sort") == order
    # Marks answer to the keyboard and show images as text and image.
    for key, labels in describe_marks(hostile).items():
        assert page.locator(f"g#{key} .mark").count() == len(labels)
    mark = page.locator("g#map .mark").first
    mark.focus()
    assert page.locator("#tip").is_visible()
    assert (
        page.locator("#tip span").inner_text().strip() == mark.get_attribute("aria-label").strip()
    )
    assert page.locator("#tip img").get_attribute("src").startswith("data:image/jpeg")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.ariaLabel") == page.locator("#map .mark").nth(
        1
    ).get_attribute("aria-label")
    background = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(background)
    page.locator("#theme").click()
    assert page.evaluate(background) != before
    assert not [url for url in asked if not url.startswith(("data:", "file:"))]
    assert said == []
    # A sheet of paper has everything too.
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    page.close()
