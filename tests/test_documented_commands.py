"""What README and docs tell users to type exists, and what can run here does.

Every command of a block, and every one in running text, is parsed by the command itself. Those of
blocks are run in a folder with a tiny trained model, training with a tiny checkpoint, or stand with
a reason in ``documented_commands.yaml``. Python blocks are run or compiled.
"""

import configparser
import importlib
import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from siglip_flowers.commands import entry
from siglip_flowers.commands.main import COMMANDS
from siglip_flowers.commands.main import main as siglip_flowers_main
from tests.conftest import REPOSITORY
from tests.small_runs import make_checkpoint, make_folder, small_options

PAGES = sorted(
    [
        *(REPOSITORY / name for name in ("README.md", "README.ru.md", "CONTRIBUTING.md")),
        *(REPOSITORY / "docs").rglob("*.md"),
    ]
)
NOT_RUN = yaml.safe_load((REPOSITORY / "tests" / "documented_commands.yaml").read_text("utf-8"))
# Python blocks that are compiled only, by a word of theirs and the reason.
COMPILED = {
    "my-team/": "downloads from the Hub; test_publish.py does so from a Hub of its own",
    "import evaluate, train": "trains for minutes; test_python.py makes both calls",
    "aim.Repo": "needs runs tracked by Aim; test_trackers.py reads them so",
}
FOREIGN = {
    *("pip", "source", "aim", "wandb", "hf", "tensorboard", "trackio", "chrt", "scontrol"),
    *("venv", "docker"),
}
PROGRAMS = r"(?:python|accelerate|siglip-flowers\S*|torchrun|sbatch|make|pip|aim|wandb|hf)"


class Documented(NamedTuple):
    """A command line, where it stands, and whether in a block."""

    text: str
    page: str
    in_block: bool


def list_blocks(page: Path, languages: set[str]) -> list[str]:
    """Return the fenced blocks of these languages, wherever they are indented."""
    pattern = r"^( *)```(\w*)[^\n]*\n(.*?)^\1```"
    found = re.findall(pattern, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [body for _, language, body in found if language in languages]


def list_commands(page: Path) -> list[Documented]:
    """Return the commands of blocks, line by line, and those between backquotes."""
    name = str(page.relative_to(REPOSITORY))
    found = []
    for block in list_blocks(page, {"bash", "sh", "console", "shell", ""}):
        for line in block.replace("\\\n", " ").splitlines():
            text = re.sub(r"(^|\s)#.*$", "", line)
            parts = [" ".join(part.split()) for part in text.split("&&")]
            found += [Documented(part, name, True) for part in parts if part]
    indented = re.findall(rf"^ {{4,}}({PROGRAMS} .*)$", page.read_text("utf-8"), re.MULTILINE)
    found += [Documented(" ".join(text.split()), name, False) for text in indented]
    for code in re.findall(
        r"`([^`]+)`", re.sub(r"(?ms)^ *```.*?^ *```", "", page.read_text("utf-8"))
    ):
        if re.match(rf"{PROGRAMS} ", code):
            found.append(Documented(" ".join(code.split()), name, False))
    return found


DOCUMENTED = [command for page in PAGES for command in list_commands(page)]
BLOCKS = {command.text for command in DOCUMENTED if command.in_block}
RUN = sorted(BLOCKS.difference(*NOT_RUN.values()))


def split_command(text: str) -> tuple[str, list[str]]:
    """Return the program of ours that a command starts, or another's name, and its words."""
    words = [word for word in shlex.split(text) if word not in ("...", "…")]
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    scripts = [word for word in words if word in ("train.py", "eval.py", "configs/slurm/train.sh")]
    if words[0] in ("accelerate", "torchrun", "sbatch", "python") and scripts:
        place = words.index(scripts[0])
        return Path(scripts[0]).stem, words[place + 1 :]
    if words[:2] == ["python", "-m"] and len(words) > 2:
        if words[2] != "siglip_flowers":
            return words[2], words[3:]
        words = ["siglip-flowers", *words[3:]]
    if words[0] == "siglip-flowers":
        return (words[1], words[2:]) if len(words) > 1 else ("help", [])
    return words[0], words[1:]


class Parsed(BaseException):
    """A command has accepted its command line and would begin to work."""


def check_options(program: str, words: list[str], capsys, monkeypatch) -> None:
    """Check that a command of ours accepts a command line, up to files that are not there."""

    def stop() -> None:
        raise Parsed

    monkeypatch.setattr(entry, "_prepare_process", stop)
    module = importlib.import_module(COMMANDS[program][0])
    if not words:
        return  # The command's name alone, in running text.
    try:
        code = module.main(words)
    except Parsed:
        return
    message = capsys.readouterr().err
    if code == 1:
        # Options that are wrong end before.
        assert "could not be read from the Hugging Face Hub" in message
        return
    assert code == 2, message
    missing = "does not exist|not a directory|no model|no weights|nothing to classify"
    assert re.search(missing, message), message


@pytest.mark.parametrize("text", sorted({command.text for command in DOCUMENTED}))
def test_documented_commands_and_options_exist(text, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    program, words = split_command(text)
    if "OUTPUT" in text or program == "COMMAND" or words[-1:] == ["--model"]:
        return  # A form with a name to be filled in, such as eval.py --model.
    try:
        if program in COMMANDS:
            check_options(program, words, capsys, monkeypatch)
        elif program == "make":
            targets = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text("utf-8"), re.M)
            assert {word for word in words if "=" not in word} <= set(targets)
        elif program == "pip":
            check_extras(words)
        elif program.startswith(("benchmarks", "tests", "docs")):
            path = REPOSITORY.joinpath(*program.split("."))
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
        elif program == "--version":
            assert siglip_flowers_main([program]) == 0
        elif program == "python":
            assert words[0] == "-m" or (REPOSITORY / words[0]).is_file()
        else:
            assert program in {*FOREIGN, "accelerate", "torchrun", "help", "pytest"}, program
    except SystemExit as end:
        if end.code:  # 0: --help
            raise
    if text.startswith("accelerate launch "):
        check_launcher(text)


def check_extras(words: list[str]) -> None:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    assert {*re.findall(r"\w+(?=[],])", " ".join(words))} <= {*setup["options.extras_require"]}
    pinned = (REPOSITORY / "constraints.txt").read_text("utf-8").split()
    assert {word for word in words if "==" in word} <= {*pinned}


def check_launcher(text: str) -> None:
    from accelerate.commands.launch import launch_command_parser

    words = shlex.split(text)[2:]
    options = launch_command_parser().parse_args(words or ["train.py"])
    assert options.training_script == "train.py"
    assert options.config_file is None or (REPOSITORY / options.config_file).is_file()


def test_the_list_names_documented_commands_only():
    assert not {text for texts in NOT_RUN.values() for text in texts} - BLOCKS


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder as the pages assume it: images, a checkpoint, configurations, trained models."""
    path = tmp_path_factory.mktemp("documented")
    (path / "configs").symlink_to(REPOSITORY / "configs")
    make_checkpoint(path / "siglip2-base")
    for name in ("images", "flowers102"):
        make_folder(path / name)
    shutil.copytree(path / "images" / "test" / "aster", path / "more")
    shutil.copytree(path / "images" / "test" / "borage", path / "holiday")
    shutil.copytree(path / "images" / "test" / "clover", path / "images_of_other_things")
    for name in ("flower.jpg", "other.png", "rose.jpg", "cat.jpg"):
        shutil.copy(path / "more" / "0.png", path / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        words = small_options(Path("siglip2-base"), Path("images"), Path("results/my-run"))
        assert siglip_flowers_main(["train", *words, "--pooling", "mean"]) == 0
    for name in ("nano_64px", "demo", "run_a", "run_b", "run_c", "other-run"):
        shutil.copytree(path / "results" / "my-run", path / "results" / name)
    shutil.copytree(path / "results" / "my-run", path / "elsewhere" / "run_d")
    shutil.copytree(path / "results" / "my-run" / "model", path / "results" / "model")
    shutil.copy(path / "results" / "my-run" / "config.yaml", path / "results")
    return path


def make_small(folder: Path, words: list[str], output_dir: Path) -> list[str]:
    """Append what makes a documented training small, in a directory of its own."""
    small = small_options(folder / "siglip2-base", folder / "images", output_dir)
    more = "--num_train_epochs 1 --eval_strategy epoch --save_strategy epoch --data_source folder"
    return [*words, *small, *shlex.split(more), "--train_eval_samples", "4"]


@pytest.mark.slow
@pytest.mark.parametrize("text", RUN)
def test_documented_commands_run(folder, tmp_path, monkeypatch, capfd, text):
    if "--format onnx" in text:
        pytest.importorskip("onnxscript")
    monkeypatch.chdir(folder)
    program, words = split_command(text)
    if program == "train" and "--help" not in words:
        words = make_small(folder, words, tmp_path / "run")
    try:
        code = siglip_flowers_main([program, *words])
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capfd.readouterr()
    assert code == 0, err
    assert out or "--output" in words


PYTHON = [(page.name, block) for page in PAGES for block in list_blocks(page, {"python", "py"})]


@pytest.mark.parametrize(("page", "block"), PYTHON, ids=[page for page, _ in PYTHON])
def test_python_blocks_run(folder, monkeypatch, page, block):
    code = compile(block, page, "exec")
    if any(word in block for word in COMPILED):
        return
    monkeypatch.chdir(folder)
    if "onnxruntime" in block and not Path("exported/onnx").exists():
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        words = "export --model results/my-run --format onnx --output exported/onnx"
        assert siglip_flowers_main(words.split()) == 0
    exec(code, {"__name__": "documented"})
