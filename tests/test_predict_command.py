"""The predict command and the umbrella command: formats, sources, exit codes."""

import csv
import http.server
import io
import json
import os
import subprocess
import sys
import threading

import pytest

from siglip_flowers import SiglipImageClassifier
from siglip_flowers.base.text import measure_width
from siglip_flowers.commands import main as umbrella
from siglip_flowers.commands.models import find_model
from siglip_flowers.commands.predict import main
from siglip_flowers.inference.finding import fetch_image, find_images
from tests.conftest import REPOSITORY
from tests.small_runs import CLASSES, draw_image, save_classifier

# What must neither break a table nor be obeyed by a terminal.
NASTY = ('a, "quoted" one', "two\nlines", "red \x1b[31m\x07\x9b2J\u202e")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_classifier(tmp_path_factory.mktemp("plain"), CLASSES))


@pytest.fixture
def images(tmp_path):
    """Three images, one of them in a folder below, and files that are none."""
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    draw_image(folder / "b.png", "aster", 1)
    draw_image(folder / "a.JPG", "borage", 2)
    draw_image(folder / "below" / "c.webp", "clover", 3)
    draw_image(folder / ".hidden" / "d.png", "clover", 3)
    (folder / "notes.txt").write_text("no image")
    return folder


def read_lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_json_lines_are_what_the_python_interface_gives(model, images, capsys):
    assert main([str(images), "--model", model, "--json", "--top_k", "2"]) == 0
    out, err = capsys.readouterr()
    rows = read_lines(out)
    names = [str(images / name) for name in ("a.JPG", "b.png", "below/c.webp")]
    assert [row["image"] for row in rows] == names
    expected = SiglipImageClassifier.from_pretrained(model)(names, top_k=2)
    assert [row["predictions"] for row in rows] == expected
    assert err == ""


def test_csv_has_a_line_for_each_class(model, images, capsys):
    assert main(["--csv", "--top-k", "2", str(images), "--model", model]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(os.path.basename(row["image"]), row["rank"]) for row in rows] == [
        (name, rank) for name in ("a.JPG", "b.png", "c.webp") for rank in "12"
    ]
    assert all(row["label"] in CLASSES and 0 < float(row["score"]) < 1 for row in rows)


def test_patterns_are_matched_recursively_and_sorted(model, images, capsys):
    assert main([str(images / "**" / "*"), "--model", model, "--json"]) == 0
    names = [row["image"] for row in read_lines(capsys.readouterr().out)]
    assert names == [str(images / name) for name in ("a.JPG", "b.png", "below/c.webp")]


def test_a_list_comes_from_standard_input(model, images, capsys, monkeypatch):
    names = [str(images / "b.png"), str(images / "absent.png"), str(images / "a.JPG")]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join([names[0], "", *names[1:]])))
    assert main(["-", "--model", model, "--json"]) == 1
    out, err = capsys.readouterr()
    assert [row["image"] for row in read_lines(out)] == [names[0], names[2]]
    assert f"{names[1]}: No such file or directory" in err
    assert "1 of 3 images" in err


def test_results_go_to_a_file(model, images, tmp_path, capsys):
    path = tmp_path / "new" / "results.jsonl"
    assert main([str(images), "--model", model, "--json", "--output", str(path)]) == 0
    assert capsys.readouterr().out == ""
    assert len(read_lines(path.read_text(encoding="utf-8"))) == 3
    assert os.listdir(path.parent) == ["results.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to classify"),
        (["absent.jpg"], "'absent.jpg' does not exist"),
        (["absent*.jpg"], "'absent*.jpg' contains no image"),
        (["EMPTY"], "contains no image"),
        (["EMPTY", "--jsn"], "Unknown option --jsn; did you mean --json?"),
        (["EMPTY", "--top_k", "many"], "Argument --top_k: invalid int value: 'many'"),
        (["EMPTY", "--top_k", "0"], "--top_k is 0"),
        (["EMPTY", "--dtype", "int8"], "--dtype is 'int8'; choose one of auto"),
        (["EMPTY", "--json", "--csv"], "remove one of them"),
        (["http://127.0.0.1/x.jpg"], "pass --allow_urls"),
    ],
)
def test_bad_usage_ends_with_2_and_one_sentence(arguments, message, model, tmp_path, capsys):
    given = [str(tmp_path) if word == "EMPTY" else word for word in arguments]
    assert main([*given, "--model", model]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("siglip-flowers predict: error: ")
    assert err.count("\n") == 1
    assert message in err


def test_the_newest_model_is_the_default(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([str(images)]) == 2
    assert "There is no model in results/" in capsys.readouterr().err
    save_classifier(tmp_path / "results" / "run", CLASSES)
    assert main([str(images), "--json"]) == 0
    assert find_model("results/run") == os.path.join("results", "run", "model")


def test_nasty_labels_and_names_are_printed_harmlessly(tmp_path, capsys):
    model = str(save_classifier(tmp_path, NASTY))
    path = tmp_path / "pic\x1b[2Jture, \n1.png"
    draw_image(path, "aster", 1)
    broken = tmp_path / "broken\x1b[2J.png"
    broken.write_bytes(b"")
    printed = {}
    for kind in ("--json", "--csv", ""):
        options = [kind] if kind else []
        assert main([str(path), str(broken), "--model", model, *options]) == 1
        printed[kind], err = capsys.readouterr()
        everything = printed[kind] + err
        assert all(char.isprintable() or char == "\n" for char in everything)
        assert "broken\\x1b[2J.png" in err
    row = json.loads(printed["--json"])
    assert row["image"] == str(path)
    assert {entry["label"] for entry in row["predictions"]} == set(NASTY)
    rows = list(csv.DictReader(io.StringIO(printed["--csv"])))
    assert [len(row) for row in rows] == [5, 5, 5]
    escaped = "red \\x1b[31m\\x07\\x9b2J\\u202e"
    assert {row["label"] for row in rows} == {*NASTY[:2], escaped}
    assert len(printed[""].splitlines()) == 1 + 3


def test_names_are_written_as_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["кот", "القط", "日本\u3000花", "👩\u200d🌾"]
    model = str(save_classifier(tmp_path, names))
    for name in (files := ["снимок\u202f花.png", "й.png"]):
        draw_image(tmp_path / name, "aster", 1)
    for *kind, given in (("--json", files), ("--csv", files), (files,), (["-"],)):
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(files)))
        assert main([*given, "--model", model, *kind]) == 0
        printed = capsys.readouterr().out
        assert all(name in printed for name in [*names, *files])
        # The columns of the table are straight.
        widths = {measure_width(line.split("%")[0]) for line in printed.splitlines()[1:]}
        assert kind or len(widths) == 1


class Handler(http.server.BaseHTTPRequestHandler):
    content = b""

    def do_GET(self):
        if self.path == "/missing.png":
            self.send_error(404)
            return
        if self.path in ("/to-file", "/again.png"):
            target = "file:///etc/passwd" if self.path == "/to-file" else "/good.png"
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        try:
            if self.path == "/endless":
                while True:
                    self.wfile.write(b"x" * 4096)
            if self.path == "/dripping":
                while not self.server.stopped.wait(0.05):
                    self.wfile.write(b"x")
                    self.wfile.flush()
            self.wfile.write(self.content)
        except OSError:
            pass

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    draw_image(tmp_path / "served.png", "clover", 5)
    Handler.content = (tmp_path / "served.png").read_bytes()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.stopped = threading.Event()
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.stopped.set()
        running.shutdown()


def test_urls_are_fetched_when_allowed(model, server, tmp_path, capsys):
    urls = [f"{server}/good.png", f"{server}/missing.png", f"{server}/again.png"]
    assert main([*urls, "--allow_urls", "--model", model, "--json"]) == 1
    out, err = capsys.readouterr()
    rows = read_lines(out)
    assert [row["image"] for row in rows] == [urls[0], urls[2]]
    expected = SiglipImageClassifier.from_pretrained(model)(tmp_path / "served.png")
    for row in rows:
        assert [entry["label"] for entry in row["predictions"]] == [e["label"] for e in expected]
    assert f"{urls[1]}: cannot be fetched (Not Found)" in err
    assert main([urls[0], "--model", model]) == 2
    assert "pass --allow_urls" in capsys.readouterr().err


def test_downloads_are_bounded(server):
    assert fetch_image(f"{server}/good.png") == Handler.content
    with pytest.raises(OSError, match="larger than 0.0625 MiB"):
        fetch_image(f"{server}/endless", max_bytes=2**16)
    with pytest.raises(OSError, match=r"no complete answer within 0\.5 seconds"):
        fetch_image(f"{server}/dripping", timeout_seconds=0.5)
    with pytest.raises(OSError, match="not allowed"):
        fetch_image(f"{server}/to-file")
    with pytest.raises(ValueError, match="not an http or https URL"):
        fetch_image("file:///etc/passwd")
    with pytest.raises(OSError, match="cannot be fetched .*refused"):
        fetch_image("http://127.0.0.1:1/x.png", timeout_seconds=2)
    with pytest.raises(OSError, match="cannot be fetched .*control characters"):
        fetch_image(f"{server}/not quoted.png")


def test_the_umbrella_command_dispatches_by_the_first_word(model, images, capsys):
    assert umbrella.main(["predict", str(images), "--model", model, "--json"]) == 0
    assert len(read_lines(capsys.readouterr().out)) == 3
    assert umbrella.main(["evaluate"]) == 2
    assert "Unknown command 'evaluate'; did you mean eval?" in capsys.readouterr().err
    assert umbrella.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in ("train", "eval", "predict"))


def test_linked_folders_are_searched_once_and_closed_ones_named(images, tmp_path, monkeypatch):
    for name, target in (("there", images), ("back", tmp_path)):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / name).symlink_to(target)
    found = find_images([str(tmp_path / "photos" / "there")], frozenset([".png", ".jpg"]))
    linked = find_images([str(tmp_path / "photos")], frozenset([".png", ".jpg"]))
    assert len({os.path.realpath(path) for path in linked}) == len(linked) >= len(found) > 0
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        find_images([str(images)], frozenset([".png"]))


def refuse(*arguments: object) -> None:
    raise PermissionError(13, "Permission denied", "photos")


@pytest.mark.slow
def test_the_module_runs_as_a_command_and_survives_a_closed_pipe(model, images, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text(f"{images / 'b.png'}\n" * 3000)
    command = f"{sys.executable} -m siglip_flowers predict - --json --model {model} < {names}"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = ["bash", "-c", f"set -o pipefail; {command} | head -n 2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(read_lines(done.stdout)) == 2
