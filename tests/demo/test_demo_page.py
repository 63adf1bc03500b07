"""The page as people use it: the real command, and a real Chromium that sees no other host."""

import base64
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from siglip_flowers import SiglipImageClassifier
from siglip_flowers.demo.answer import Answer, Explainer
from siglip_flowers.demo.command import main, read_dataset, read_examples
from siglip_flowers.demo.options import DemoArguments
from siglip_flowers.demo.page import describe_classes, render_answer
from siglip_flowers.model.loading import load_image_processor
from tests.conftest import REPOSITORY
from tests.launched import find_port
from tests.small_runs import CLASSES, COLORS, draw_image, make_folder, save_classifier

pytest.importorskip("gradio", reason="gradio is not installed (the extra 'demo')")

# Milliseconds; a busy machine has a thousand other things to do.
PATIENCE = 20_000
ANSWER = "#answer .sf-answer"


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    """An untrained classifier of three colors, whose pooled features tell them apart."""
    directory = tmp_path_factory.mktemp("page")
    torch.manual_seed(3)
    return save_classifier(directory, CLASSES)


def test_a_model_without_its_data_brings_examples_and_the_name_of_the_data_set(
    small_model, tmp_path
):
    model = shutil.copytree(small_model, tmp_path / "model")
    classifier = SiglipImageClassifier.from_pretrained(model, dtype="float32")
    assert read_examples(str(model), classifier) == []
    assert read_dataset(str(model)) is None
    (model / "examples").mkdir()
    draw_image(model / "examples" / "1.jpg", "borage", seed=1)
    (model / "metrics.json").write_text('{"data": {"description": "my garden, 5/1/1 images"}}')
    ((name, image),) = read_examples(str(model), classifier)
    assert (name, image.size) == ("borage", (16, 16))
    assert read_dataset(str(model)) == "my garden"


def make_explainer(model):
    classifier = SiglipImageClassifier.from_pretrained(model, dtype="float32")
    return Explainer(classifier, load_image_processor(str(model)), DemoArguments())


class Served:
    """The command at work."""

    def __init__(self, process, url, log):
        self.process, self.url, self.log = process, url, log

    def read_log(self):
        return self.log.read_text(encoding="utf-8")

    def read_peak(self):
        """Most memory ever used, in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 1024


@pytest.fixture(scope="module")
def served(small_model, tmp_path_factory):
    folder = make_folder(tmp_path_factory.mktemp("secret_place") / "flowers", train=3)
    log = tmp_path_factory.mktemp("log") / "log.txt"
    port = find_port()
    options = ["--model", small_model, "--data_dir", folder, "--port", port, "--neighbors", 4]
    command = [sys.executable, "-m", "siglip_flowers", "demo", "--top_k", 3, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    with log.open("w") as file:
        process = subprocess.Popen(
            [str(word) for word in command],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            # A shell that starts tests in the background lets them ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            url = f"http://127.0.0.1:{port}/"
            deadline = time.monotonic() + 120
            while url not in log.read_text(encoding="utf-8"):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield Served(process, url, log)
            process.send_signal(signal.SIGINT)
            # Ctrl-C ends it at once, cleanly.
            assert process.wait(30) == 130
            assert "Traceback" not in log.read_text(encoding="utf-8")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture
def open_page(browser, served):
    contexts = []

    def open_one(width=1280, height=900):
        context = browser.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.requested = []
        page.on("request", lambda request: page.requested.append(request.url))
        page.goto(served.url)
        page.wait_for_selector("button.gallery-item[aria-label]")
        return page

    yield open_one
    for context in contexts:
        context.close()


def upload(page, content, name="image.png"):
    kind = {"jpg": "image/jpeg", "png": "image/png"}.get(name.split(".")[-1], "")
    page.set_input_files(
        "#image input[type=file]", {"name": name, "mimeType": kind, "buffer": content}
    )


def read_answer(page, words):
    page.wait_for_selector(f"{ANSWER}:has-text('{words}')")
    return page.inner_text(ANSWER)


def encode(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def encode_class(name, tmp_path):
    draw_image(tmp_path / f"{name}.png", name, seed=7, size=48)
    return (tmp_path / f"{name}.png").read_bytes()


@pytest.mark.slow
def test_an_uploaded_image_is_explained_without_another_host(open_page, served, tmp_path):
    page = open_page()
    assert "The model knows 3 classes of flowers: aster, borage, clover." in (
        page.inner_text("body")
    )
    names = page.locator("button.gallery-item").evaluate_all("all => all.map(e => e.ariaLabel)")
    assert names == [f"Example: {name}" for name in CLASSES]
    upload(page, encode_class("borage", tmp_path))
    text = read_answer(page, "Nearest training images")
    shares = [float(share) for share in re.findall(r"^([\d.]+)\s?%$", text, re.MULTILINE)]
    assert len(shares) == 3
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert shares == sorted(shares, reverse=True)
    assert "attention of the pooling head" in text
    nearest = page.locator(".sf-nearest figcaption").all_inner_texts()
    # The nearest three are the three of its own color, the fourth is another's.
    assert [line.split(",")[0] for line in nearest[:3]] == ["borage"] * 3
    assert len(nearest) == 4
    assert not nearest[3].startswith("borage")
    # Each image is drawn, and none has a name of a file.
    images = page.locator(f"{ANSWER} img")
    assert images.count() == 5
    assert images.evaluate_all("all => all.every(i => i.complete && i.naturalWidth > 0)")
    assert images.evaluate_all("all => all.every(i => i.alt && i.src.startsWith('data:'))")
    assert "secret_place" not in page.content()
    others = [url for url in page.requested if not url.startswith((served.url, "data:", "blob:"))]
    assert not others
    assert len(page.requested) > 10


def cut_image():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encode(Image.fromarray(noise), format="PNG")
    return content[: len(content) // 2]


BROKEN = {
    "text": b"not an image at all",
    "empty": b"",
    "cut": cut_image(),
    # Decoders that fail with RuntimeError, AssertionError and others.
    "damaged AVIF": b"\0\0\0\x20ftypavif" + bytes(200),
    "FTEX": b"FTEX" + bytes(range(200)),
    "DDS": b"DDS " + bytes(200),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_cannot_be_read_has_a_reason_and_no_answer(small_model, kind):
    answer = make_explainer(small_model).explain(BROKEN[kind])
    assert answer.problem
    assert not answer.results
    shown = render_answer(answer, "map")
    assert shown.count(".") == 1
    assert "Traceback" not in shown


def test_an_image_of_a_few_pixels_in_width_is_explained(small_model):
    stream = io.BytesIO()
    Image.new("RGB", (3000, 3)).save(stream, "PNG")
    assert make_explainer(small_model).explain(stream.getvalue()).results


def test_names_are_escaped_and_unknown_images_are_called_so():
    results = [{"label": "<b>rose</b>", "score": 0.75}]
    shown = render_answer(Answer(results=results, known=False), "map")
    assert "Not one of the known classes; nearest: &lt;b&gt;rose&lt;/b&gt;" in shown
    assert "75.0%" in shown
    assert "started without data" in shown
    described = describe_classes(["<a>", "b", "c", "d"], "Oxford Flowers102")
    assert (
        described == "The model knows 4 classes of Oxford Flowers102: &lt;a&gt;, b, c and 1 more."
    )


@pytest.mark.slow
def test_a_broken_file_is_one_sentence_and_an_example_still_works(open_page, served):
    page = open_page()
    upload(page, BROKEN["cut"], "broken.HEIC")
    text = read_answer(page, "cannot be read as an image")
    assert text.count(".") == 1
    page.click("button[aria-label='Clear'], button[aria-label='Remove Image']")
    page.wait_for_selector("#answer:has-text('appears here')")
    page.locator("button.gallery-item").first.click()
    assert "aster" in read_answer(page, "Nearest training images")
    assert "Traceback" not in served.read_log()
    assert "Error" not in served.read_log()


@pytest.mark.slow
def test_an_image_of_50_megapixels_takes_little_memory_and_time(open_page, served):
    image = Image.linear_gradient("L").convert("RGB").resize((8660, 5774))
    page = open_page()
    before, start = served.read_peak(), time.monotonic()
    upload(page, encode(image, format="JPEG", quality=80), "large.jpg")
    read_answer(page, "Nearest training images")
    # Decoded whole it would be 150 MB, and a copy as much again.
    assert served.read_peak() - before < 120
    assert time.monotonic() - start < 40


@pytest.mark.slow
def test_two_users_at_once_get_their_own_answers(open_page, tmp_path):
    pages = {name: open_page() for name in ("aster", "clover")}
    files = {name: encode_class(name, tmp_path) for name in pages}
    for name, page in pages.items():
        upload(page, files[name])
    for name, page in pages.items():
        read_answer(page, "Nearest training images")
        nearest = page.locator(".sf-nearest figcaption").all_inner_texts()
        assert [line.split(",")[0] for line in nearest[:3]] == [name] * 3
        overlay = page.locator(".sf-overlay img").get_attribute("src")
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(overlay.split(",")[1]))))
        assert pixels.mean(axis=(0, 1)).argmax() == int(np.argmax(COLORS[name]))


def refuse(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert err.startswith("siglip-flowers demo: error: ")
    return err


def test_a_missing_model_and_a_taken_port_are_one_sentence(tmp_path, small_model, capsys):
    assert "nowhere" in refuse(capsys, "--model", tmp_path / "nowhere", "--port", find_port())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}" in refuse(capsys, "--model", small_model, "--port", port)
