"""The readers that are fuzzed, and what each must make of any bytes.

The contract: a value that is right, or one sentence about the file (:class:`InputError` or
:class:`RunError`); no other exception, no wait, and nothing written where it does not belong.
"""

import json
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from hypothesis import strategies as st

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.data.inspection import examine_image
from siglip_flowers.data.pixels.tensors import PixelNormalizer, get_image_size
from siglip_flowers.inference.reading import ImageReader
from siglip_flowers.model.loading import load_classifier, load_image_processor
from tests.fuzz import mutations
from tests.small_runs import make_checkpoint

SECONDS = 20.0
# A machine that is busy gives a process a tenth of its time.
WAIT_FACTOR = 10
READ, REFUSED = "read", "refused"

# Writes the bytes into a folder of its own, reads them, and returns what became of them.
Reader = Callable[[bytes, Path], str]


class Hang(BaseException):
    """A reader took too long; not an ``Exception``, which a reader might take for bad data."""


@contextmanager
def time_limit(seconds: float = SECONDS) -> Iterator[None]:
    """Raise :class:`Hang` in the block once it has computed, or waited, for too long.

    Args:
        seconds: Of the processor's time; ten times as many by the clock.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang(f"more than {seconds:g} seconds")

    timers = {signal.SIGPROF: signal.ITIMER_PROF, signal.SIGALRM: signal.ITIMER_REAL}
    before = {number: signal.signal(number, stop) for number in timers}
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, WAIT_FACTOR * seconds)
    try:
        yield
    finally:
        for number, timer in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def check_sentence(error: Exception, name: str) -> None:
    """Check that an error is one line about the file."""
    message = str(error)
    assert message, "an error without a word"
    assert len(message.splitlines()) == 1, message
    assert len(message) < 2000, message
    assert name in message, message


_IMAGES = ImageReader(8, 2, num_workers=1)


def read_image(content: bytes, folder: Path) -> str:
    """Decode an image for training and for prediction, which must agree."""
    finding = examine_image({"bytes": content, "path": None})
    assert bool(finding.problem) != any(finding.digest)
    [batch] = _IMAGES.read_batches([content], 1)
    assert bool(batch.problems[0]) == bool(finding.problem), (batch.problems, finding)
    for problem in (batch.problems[0], finding.problem):
        assert len(problem.splitlines()) <= 1, problem
    assert len(batch.pixels) == (0 if finding.problem else 1)
    return REFUSED if finding.problem else READ


class CheckpointReader:
    """Reads a checkpoint of which one file is replaced.

    Args:
        whole: A small checkpoint.
        name: The file that is replaced.
    """

    def __init__(self, whole: Path, name: str) -> None:
        self.whole = whole
        self.name = name

    def __call__(self, content: bytes, folder: Path) -> str:
        """Load model and image processor: usable, or a sentence."""
        checkpoint = folder / "checkpoint"
        shutil.copytree(self.whole, checkpoint)
        (checkpoint / self.name).write_bytes(content)
        try:
            load_classifier(str(checkpoint), ["a", "b"])
            processor = load_image_processor(str(checkpoint))
            get_image_size(processor)
            PixelNormalizer(processor)
        except (InputError, RunError) as error:
            check_sentence(error, str(checkpoint))
            return REFUSED
        finally:
            shutil.rmtree(checkpoint)
        return READ


def make_readers(folder: Path) -> dict[str, tuple[st.SearchStrategy[bytes], Reader]]:
    """Return what is fuzzed by name, with the strategy of its bytes.

    Args:
        folder: Where the small checkpoint is put.
    """
    whole = make_checkpoint(folder / "whole")
    texts = {
        name: json.loads((whole / name).read_text(encoding="utf-8"))
        for name in ("config.json", "preprocessor_config.json")
    }
    weights = (whole / "model.safetensors").read_bytes()
    header = 8 + struct.unpack("<Q", weights[:8])[0]
    damaged_header = st.builds(
        lambda edits: mutations.mutate(weights[:header], edits) + weights[header:],
        mutations.edits(),
    )
    return {
        "image": (
            mutations.mutated([*mutations.make_images(), *mutations.DOCUMENTS]),
            read_image,
        ),
        "weights": (
            damaged_header | mutations.mutated([weights]),
            CheckpointReader(whole, "model.safetensors"),
        ),
        **{
            name: (mutations.json_texts(content), CheckpointReader(whole, name))
            for name, content in texts.items()
        },
    }
