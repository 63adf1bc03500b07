"""Time eval.py with its report against plain figures, on one model and split.

    python benchmarks/evaluation_report.py --model results/nano_64px --rounds 3

The two commands start in turn as processes of their own; the first round warms the pixel cache and
does not count. Options after -- go to eval.py. Writes evaluation_report.json and
evaluation_report.md to --output_dir.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
LIMIT = 1.3


def measure_seconds(arguments: list[str]) -> float:
    """Run eval.py once and return the wall-clock seconds until it has ended."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "eval.py", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        raise RuntimeError(f"eval.py {' '.join(arguments)} gave {done.returncode}: {done.stderr}")
    return seconds


def main() -> int:
    """Measure, write the results, and return 1 if the report costs more than LIMIT allows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="As for eval.py.")
    parser.add_argument("--split", default="test", help="As for eval.py.")
    parser.add_argument("--rounds", type=int, default=3, help="Rounds that count.")
    parser.add_argument("--output_dir", type=Path, default=REPOSITORY / "benchmarks" / "results")
    parser.add_argument("more", nargs="*", help="More options of eval.py, after --.")
    options = parser.parse_args()
    common = ["--model", options.model, "--split", options.split, *options.more]
    seconds: dict[str, list[float]] = {"plain": [], "report": []}
    with tempfile.TemporaryDirectory() as directory:
        arms = {
            "plain": [*common, "--output_dir", f"{directory}/plain"],
            "report": [*common, "--output_dir", f"{directory}/report", "--report", "true"],
        }
        for number in range(options.rounds + 1):
            for name, arguments in arms.items():
                measured = measure_seconds(arguments)
                if number > 0:
                    seconds[name].append(measured)
        written = Path(directory) / "report" / f"report_{options.split}" / "metrics.json"
        report = json.loads(written.read_text(encoding="utf-8"))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["report"] / medians["plain"]
    result = {
        "n": report["n"],
        "cpu_cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "limit": LIMIT,
        "median_seconds": medians,
        "ratio": ratio,
        "seconds": seconds,
    }
    lines = [
        f"{report['n']} images, {os.cpu_count()} CPU cores, torch {result['torch']}; median of "
        f"{options.rounds} rounds",
        "",
        "| command | seconds |",
        "|---|---:|",
        f"| plain figures | {medians['plain']:.1f} |",
        f"| with the report | {medians['report']:.1f} ({ratio:.2f}x) |",
        "",
    ]
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "evaluation_report.json").write_text(json.dumps(result, indent=2) + "\n")
    (options.output_dir / "evaluation_report.md").write_text("\n".join(lines))
    print("\n".join(lines))
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
