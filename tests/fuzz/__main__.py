"""Fuzz the readers of foreign files for a while, and print the counts as JSON.

    python -m tests.fuzz --minutes 5

A file that breaks the contract is kept in the folder ``--keep``.
"""

import argparse
import json
import logging
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.readers import Hang, make_readers, time_limit

ROUND_EXAMPLES = 200
SHOWN_LINES = 6


def main(argv: list[str] | None = None) -> int:
    """Fuzz; return 1 if anything broke the contract."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", help="One reader only.")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="siglip_flowers_fuzz_") as name:
        campaign = Campaign(Path(name), options.keep)
        campaign.search(options.reader, options.minutes, options.seed)
    return 1 if campaign.failures else 0


class Campaign:
    """Counts what became of the files.

    Args:
        folder: An empty folder to work in.
        keep: Where files that broke the contract go.
    """

    def __init__(self, folder: Path, keep: Path) -> None:
        self.folder = folder
        self.keep = keep
        self.readers = make_readers(folder)
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in self.readers}
        self.failures: Counter[str] = Counter()
        self.started = time.monotonic()

    def read(self, name: str, content: bytes) -> None:
        """Give one file to a reader and note what it makes of it."""
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            try:
                with time_limit():
                    outcome = self.readers[name][1](content, Path(place))
            except (Exception, Hang) as error:
                outcome = "failed"
                self._note(name, content, error)
        self.counts[name][outcome] += 1

    def _note(self, name: str, content: bytes, error: BaseException) -> None:
        place = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{name}: {type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
        self.failures[kind] += 1
        if self.failures[kind] == 1:
            self.keep.mkdir(parents=True, exist_ok=True)
            path = self.keep / f"{name}-{len(self.failures)}.bin"
            path.write_bytes(content)
            lines = "".join(traceback.format_exception(error)).splitlines()[-SHOWN_LINES:]
            print(f"{path}: {kind}", *lines, sep="\n", file=sys.stderr, flush=True)

    def search(self, only: str | None, minutes: float, first_seed: int) -> None:
        """Draw files by strategy, each reader in turn, until the time is over."""
        end = self.started + 60 * minutes
        number = first_seed
        while time.monotonic() < end:
            for name in self.readers if only is None else [only]:
                self._search_round(name, number, end)
            number += 1
        self.report()

    def _search_round(self, name: str, number: int, end: float) -> None:
        # As much time for each, since one checkpoint takes as long as a hundred images.
        stop = min(end, time.monotonic() + 60 / len(self.readers))

        @seed(number)
        @settings(
            max_examples=ROUND_EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(self.readers[name][0])
        def examine(content: bytes) -> None:
            if time.monotonic() < stop:
                self.read(name, content)

        examine()

    def report(self) -> None:
        """Print the counts."""
        print(
            json.dumps(
                {
                    "seconds": round(time.monotonic() - self.started),
                    "files": {name: dict(counts) for name, counts in self.counts.items()},
                    "failures": dict(self.failures),
                    "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
                },
                indent=2,
            )
        )


if __name__ == "__main__":
    sys.exit(main())
