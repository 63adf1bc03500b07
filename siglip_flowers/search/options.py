"""The options of a search."""

from dataclasses import dataclass

from siglip_flowers.config.fields import Options, not_negative, option, positive
from siglip_flowers.config.rules import Rule

# Not the directory of train.py: the two do not share one.
DEFAULTS = {"output_dir": "results/search"}
RULES = (
    Rule(
        lambda o: o.search_space is None,
        "A search requires --search_space, options with their values; see configs/search.yaml.",
        "--n_trials 3",
    ),
    Rule(
        lambda o: o.eval_strategy == "no",
        "--eval_strategy no leaves a search nothing to compare trials by; use epoch or steps.",
        "--search_space {} --eval_strategy no --load_best_model_at_end false",
    ),
)


@dataclass
class SearchArguments(Options):
    """What is tried, how often, and on how many devices."""

    search_space: str | None = option(
        None,
        "Options to try, as a mapping in the YAML file: {low: 1e-5, high: 1e-3, log: true}, {low: "
        "0, high: 8, step: 2}, or a list of values. Any option of model, augmentation and "
        "training.",
    )
    n_trials: int = option(20, "Trials in total, earlier and pruned ones included.", positive)
    pruner: str = option(
        "median",
        "median: stop a trial that is worse than the median at the same evaluation; or none.",
        ("median", "none"),
    )
    pruning_startup_trials: int = option(
        5, "median: finished trials before any trial may be pruned.", not_negative
    )
    pruning_warmup: int = option(1, "Evaluations of a trial before it may be pruned.", not_negative)
    workers: int | None = option(
        None,
        "Parallel trials, each with a GPU or a share of the cores; default: one per GPU, else 1.",
        positive,
    )
