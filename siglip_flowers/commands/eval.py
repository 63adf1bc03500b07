"""Evaluate a saved classifier: ``eval.py`` and ``siglip-flowers-eval``."""

import shlex
import sys
from pathlib import Path

from siglip_flowers.base.environment import describe_environment
from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import write_json
from siglip_flowers.base.prompts import load_templates
from siglip_flowers.base.run_dir import CONFIG_FILE, REPORT_DIRS
from siglip_flowers.base.text import escape_unprintable
from siglip_flowers.commands.entry import run_command
from siglip_flowers.commands.models import find_model, follow_model_classes, read_data_defaults
from siglip_flowers.compare.command import show_runs
from siglip_flowers.config import DataArguments, EvaluationArguments
from siglip_flowers.config.parsing import check_command_line, parse_arguments
from siglip_flowers.runtime.preemption import defer_signals

PROG = "eval.py"
DESCRIPTION = "Evaluate a classifier on a split and print its metrics."
KINDS = (EvaluationArguments, DataArguments)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, evaluate, and print the metrics table."""
    given = sys.argv[1:] if argv is None else argv
    return run_command(PROG, lambda: _evaluate(given), check=lambda: _check(given))


def _check(argv: list[str]) -> None:
    check_command_line(KINDS, argv, prog=PROG, description=DESCRIPTION)


def _evaluate(argv: list[str]) -> None:
    # Seconds of imports, which --help and bad usage do not need.
    with defer_signals():
        import torch
        from accelerate import PartialState

        from siglip_flowers.data import check_data_arguments, load_data
        from siglip_flowers.data.pixels.decoding import list_image_extensions
        from siglip_flowers.evaluation.predict import PassOptions, evaluate_split
        from siglip_flowers.evaluation.tables import format_metrics, write_predictions
        from siglip_flowers.inference.finding import check_paths, find_images
        from siglip_flowers.model.heads import load_zero_shot_classifier
        from siglip_flowers.model.loading import load_image_processor, load_saved_classifier
        from siglip_flowers.model.text_head import check_text_tower
        from siglip_flowers.robustness.extras import check_extras, measure_extras
        from siglip_flowers.training.compute import set_cpu_threads
        from siglip_flowers.training.report import describe_device

    options, data_arguments = _parse(argv)
    if options.compare or options.leaderboard:
        show_runs(options, data_arguments)
        return
    report_dir = choose_report_dir(options)
    if options.unknown_dir is not None:
        check_paths([options.unknown_dir], allow_urls=False)
        find_images([options.unknown_dir], list_image_extensions())
    model_path = options.model_name_or_path or options.model
    assert model_path is not None
    # Without an accelerator the processes of a launch join only if they are told to use the CPU.
    PartialState(cpu=not torch.accelerator.is_available())
    set_cpu_threads(None)
    check_data_arguments(data_arguments)
    if options.zero_shot:
        check_text_tower(model_path)
        templates = load_templates(options.prompt_templates)
    else:
        model = load_saved_classifier(model_path)
    processor = load_image_processor(model_path)
    check_extras(options, processor)
    with PartialState().main_process_first():
        data = load_data(data_arguments)
    rows = data.splits[options.split]
    if options.zero_shot:
        model = load_zero_shot_classifier(model_path, data.class_names, templates)
    else:
        rows = follow_model_classes(rows, model.class_names, model_path)
    title = f"{model_path}{' (zero-shot)' if options.zero_shot else ''} on {data.description}"
    if options.report:
        # Seconds more, which plain figures do not need.
        from siglip_flowers.report.files import check_report_dir, write_report
        from siglip_flowers.report.run import Subject, build_report
        from siglip_flowers.report.terminal import print_report

        check_report_dir(report_dir, title)
    result = evaluate_split(
        model,
        processor,
        rows,
        options.split,
        PassOptions(
            options.per_device_eval_batch_size,
            options.dataloader_num_workers,
            options.dtype,
            options.compile,
            data_arguments,
        ),
    )
    extras = measure_extras(options, model, processor, rows, data_arguments)
    state = PartialState()
    environment = describe_environment(describe_device(state.device))
    contents = None
    if options.report:
        subject = Subject(
            model=model,
            processor=processor,
            name=model_path,
            fitted=not options.zero_shot,
            splits={
                name: follow_model_classes(other, model.class_names, model_path)
                for name, other in data.splits.items()
            },
            data_arguments=data_arguments,
            batch_size=options.per_device_eval_batch_size,
            unknown_dir=options.unknown_dir,
            dtype=options.dtype,
        )
        contents = build_report(
            subject,
            result,
            title=title,
            description=data.description,
            command=f"python eval.py {shlex.join(argv)}",
            environment=environment,
        )
    if not state.is_main_process:
        return
    if contents is not None:
        contents.robustness.extend(extras.robustness)
        contents.augmented.extend(extras.augmented)
    metrics = {"n": len(result.labels), **result.metrics}
    print(escape_unprintable(title))
    print(format_metrics({options.split: metrics}))
    print(extras.format(), end="")
    if options.output_dir is not None:
        output_dir = Path(options.output_dir)
        write_predictions(
            output_dir / f"predictions_{options.split}.parquet",
            result,
            model.class_names,
            data.description,
        )
        extras.write(output_dir, title)
        write_json(
            output_dir / f"metrics_{options.split}.json",
            {
                "title": title,
                "model": model_path,
                "zero_shot": options.zero_shot,
                "split": options.split,
                "source": data.source,
                "split_protocol": data.split_protocol,
                "dtype": options.dtype,
                **metrics,
                "per_class": result.per_class,
                **extras.to_json(),
                "environment": environment,
            },
        )
    if contents is not None:
        print_report(contents)
        print(escape_unprintable(f"Report: {write_report(contents, report_dir)}"))


def choose_report_dir(options: EvaluationArguments) -> Path:
    """Return where the report goes: a directory of its own, so that it takes no other's place.

    Raises:
        InputError: A report of a model that lies in no run's directory, and no --output_dir.
    """
    parent = Path(options.output_dir or Path(str(options.model)).parent)
    if options.report and options.output_dir is None and not (parent / CONFIG_FILE).is_file():
        raise InputError(
            f"The model {options.model} lies in no run's directory, where its report could go; "
            "name a directory with --output_dir."
        )
    return parent / REPORT_DIRS[options.split]


def _parse(argv: list[str]) -> tuple[EvaluationArguments, DataArguments]:
    """Read the options; the data options default to those that the model was trained with."""
    options, given = parse_arguments(KINDS, argv, prog=PROG, description=DESCRIPTION)
    if options.zero_shot or options.compare or options.leaderboard:
        return options, given
    options.model = find_model(options.model)
    defaults = read_data_defaults(Path(options.model).parent / CONFIG_FILE, given)
    _, data_arguments = parse_arguments(
        KINDS, argv, prog=PROG, description=DESCRIPTION, defaults=defaults
    )
    return options, data_arguments
