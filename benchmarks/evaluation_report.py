"""Time eval.py with its report against plain figures, on one model and split.

    python -m benchmarks.evaluation_report --model results/nano_64px --rounds 3

The two commands start in turn as processes of their own; the first round warms the pixel cache and
does not count. Options after -- go to eval.py. Writes evaluation_report.json and
evaluation_report.md to --output_dir.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import time_commands
from benchmarks.report import RESULTS, format_table
from siglip_flowers.base.environment import describe_environment
from siglip_flowers.base.files import read_json, write_json, write_text

LIMIT = 1.3


def main() -> int:
    """Measure, write the results, and return 1 if the report costs more than LIMIT allows."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", required=True, help="As for eval.py.")
    parser.add_argument("--split", default="test", help="As for eval.py.")
    parser.add_argument("--rounds", type=int, default=3, help="Rounds that count.")
    parser.add_argument("--output_dir", type=Path, default=RESULTS)
    parser.add_argument("more", nargs="*", help="More options of eval.py, after --.")
    options = parser.parse_args()
    words = ["eval.py", "--model", options.model, "--split", options.split, *options.more]
    with tempfile.TemporaryDirectory() as directory:
        commands = {
            name: ([*words, "--output_dir", f"{directory}/{name}", "--report", value], 0)
            for name, value in (("plain", "false"), ("report", "true"))
        }
        seconds = time_commands(commands, options.rounds)
        report = Path(directory) / "report" / f"report_{options.split}" / "metrics.json"
        images = read_json(report)["n"]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["report"] / medians["plain"]
    result = {
        "n": images,
        **describe_environment(f"{os.cpu_count()} CPU cores"),
        "limit": LIMIT,
        "median_seconds": medians,
        "ratio": ratio,
        "seconds": seconds,
    }
    table = format_table([f"eval.py, {images} images", "median, s"], list(medians.items()))
    text = f"{table}\n\nWith the report {ratio:.2f} times as long; {options.rounds} rounds.\n"
    write_json(options.output_dir / "evaluation_report.json", result)
    write_text(options.output_dir / "evaluation_report.md", text)
    print(text)
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
