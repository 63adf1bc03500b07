"""How a head is fitted on the features of a frozen encoder."""

from dataclasses import dataclass, field
from typing import Any

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.augmentation import AugmentationArguments
from siglip_flowers.config.checks import check_choice, check_positive, check_range
from siglip_flowers.config.model import ModelArguments

PROBE_SOLVERS = ("adamw", "lbfgs", "ridge")
PROBE_POOLINGS = ("map", "mean")
ADAMW_NAMES = ("adamw_torch", "adamw_torch_fused")
# Schedules that look at one metric, of which a grid has many.
METRIC_SCHEDULES = ("reduce_lr_on_plateau", "greedy")


@dataclass
class ProbeArguments:
    """How --trainable head is carried out: on features that the encoder computed once."""

    feature_cache: bool = field(
        default=True,
        metadata={
            "help": "With --trainable head: encode every image once, keep the features on disk "
            "and fit the head on them; false runs the encoder again in every epoch. Runs that "
            "need that anyway (mixup, CutMix, --ema, --wise_ft, contrastive) do so by themselves."
        },
    )
    probe_solver: str = field(
        default="adamw",
        metadata={
            "help": "adamw: as any run trains, all settings at once; lbfgs: logistic regression; "
            "ridge: least squares in closed form. The last two choose the strength of their L2 "
            "penalty on the validation split."
        },
    )
    probe_learning_rates: list[float] = field(
        default_factory=list,
        metadata={
            "help": "Learning rates to fit a head with, each with every weight decay and pooling; "
            "the best on the validation split is kept. Default: --head_learning_rate alone."
        },
    )
    probe_weight_decays: list[float] = field(
        default_factory=list,
        metadata={"help": "Weight decays of that grid; default: --weight_decay alone."},
    )
    probe_poolings: list[str] = field(
        default_factory=list,
        metadata={"help": "Poolings of that grid, map and mean; default: --pooling alone."},
    )
    augmented_views: int = field(
        default=8,
        metadata={
            "help": "Augmented views of each training image whose features are kept, at most "
            "one an epoch; an epoch sees one of them. Without --augment there are none."
        },
    )

    def __post_init__(self) -> None:
        check_choice("probe_solver", self.probe_solver, PROBE_SOLVERS)
        for value in self.probe_learning_rates:
            check_positive("probe_learning_rates", value)
        for value in self.probe_weight_decays:
            check_range("probe_weight_decays", value, 0.0, 1e6)
        for pooling in self.probe_poolings:
            check_choice("probe_poolings", pooling, PROBE_POOLINGS)
        check_range("augmented_views", self.augmented_views, 1, 10_000)
        for name in ("probe_learning_rates", "probe_weight_decays", "probe_poolings"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise InputError(
                    f"--{name} names a value twice ({', '.join(map(str, values))}); drop one."
                )

    def list_given(self) -> list[str]:
        """Return the names of the options that only a fit on features can obey."""
        given = ["probe_solver"] if self.probe_solver != "adamw" else []
        names = ("probe_learning_rates", "probe_weight_decays", "probe_poolings")
        return given + [name for name in names if getattr(self, name)]


def find_probe_obstacle(
    probe: ProbeArguments,
    augmentation: AugmentationArguments,
    model: ModelArguments,
    training: Any,
) -> str | None:
    """Say why a run cannot be fitted on features and how it could, or None where it can be.

    Args:
        probe: The options above.
        augmentation: How images are varied.
        model: What is trained.
        training: A ``SiglipTrainingArguments``.
    """
    mixing = augmentation.augment and (augmentation.mixup_alpha or augmentation.cutmix_alpha)
    adamw = str(getattr(training.optim, "value", training.optim)) in ADAMW_NAMES
    schedule = str(getattr(training.lr_scheduler_type, "value", training.lr_scheduler_type))
    metric = str(training.metric_for_best_model or "").removeprefix("eval_")
    obstacles = (
        (model.trainable != "head", f"--trainable is {model.trainable}; use --trainable head"),
        (not probe.feature_cache, "--feature_cache is false; leave it out"),
        (
            training.objective == "contrastive",
            "--objective contrastive has no head; use cross_entropy or sigmoid",
        ),
        (bool(mixing), "mixup and CutMix mix images anew in every step; set both to 0"),
        (training.ema is not None, "--ema averages weights of one model; leave it out"),
        (training.wise_ft is not None, "--wise_ft ensembles whole models; leave it out"),
        (
            not adamw or bool(training.optim_args),
            "the heads are trained by plain AdamW; leave --optim and --optim_args out",
        ),
        (
            schedule in METRIC_SCHEDULES,
            f"--lr_scheduler_type {schedule} follows one run's metric; use cosine",
        ),
        (
            training.load_best_model_at_end and not metric.startswith("validation_"),
            f"--metric_for_best_model is {metric}; use validation_accuracy",
        ),
        (
            bool(training.fsdp or training.deepspeed),
            "--fsdp and --deepspeed shard one model; leave them out",
        ),
    )
    return next((message for applies, message in obstacles if applies), None)


def check_probe(
    probe: ProbeArguments,
    augmentation: AugmentationArguments,
    model: ModelArguments,
    training: Any,
) -> None:
    """Raise InputError where options of the fit on features are given and cannot be obeyed.

    The arguments are those of :func:`find_probe_obstacle`.
    """
    given = probe.list_given()
    if not given:
        return
    obstacle = find_probe_obstacle(probe, augmentation, model, training)
    if obstacle is not None:
        raise InputError(f"--{given[0]} needs the features of a frozen encoder, but {obstacle}.")
    if model.head_init == "text" and "mean" in probe.probe_poolings:
        raise InputError(
            "--probe_poolings mean has no place in the text tower's space; use map alone with "
            "--head_init text."
        )
    if probe.probe_solver == "adamw":
        return
    solver = f"--probe_solver {probe.probe_solver}"
    excluded = (
        (bool(probe.probe_learning_rates), "takes no --probe_learning_rates; leave them out"),
        (
            bool(probe.probe_weight_decays),
            "chooses the strength of its penalty itself; leave --probe_weight_decays out",
        ),
        (
            training.objective != "cross_entropy",
            f"goes with --objective cross_entropy, not {training.objective}; use adamw",
        ),
        (
            model.head_init != "random",
            f"needs no start, but --head_init is {model.head_init}; leave it out",
        ),
        (
            training.label_smoothing_factor > 0,
            f"knows no --label_smoothing_factor {training.label_smoothing_factor}; set it to 0",
        ),
    )
    for applies, message in excluded:
        if applies:
            raise InputError(f"{solver} {message}.")
