"""The trials of a search, done one after another by the Trainer's ``hyperparameter_search``."""

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from torch import nn
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import TrainOutput

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.run_dir import CHECKPOINT_DIR
from siglip_flowers.data import ClassificationData, load_data
from siglip_flowers.model.loading import load_image_processor
from siglip_flowers.search.setup import Search
from siglip_flowers.search.space import Value, format_value
from siglip_flowers.search.study import (
    REASON,
    build_pruner,
    build_sampler,
    count_finished,
    find_origin,
    open_storage,
)
from siglip_flowers.training.anomalies import BadStepError
from siglip_flowers.training.build import RunArguments, build_model, check_free_disk
from siglip_flowers.training.checkpoints import clear_leftovers
from siglip_flowers.training.compute import TooLittleMemoryError, set_cpu_threads
from siglip_flowers.training.output import find_checkpoint
from siglip_flowers.training.run import train_to_the_end
from siglip_flowers.training.trainer import SiglipTrainer

# An attribute of a trial: what was measured at its best evaluation, and how long it took.
METRICS, SECONDS = "metrics", "seconds"


def run_trials(search: Search, take: Callable[[], bool], *, parallel: bool) -> None:
    """Do trials as long as there are any to take; the data are loaded once.

    Args:
        search: The search.
        take: Says whether there is another trial to do, and takes it.
        parallel: Other processes do trials of the study too.

    Raises:
        InputError: The configuration cannot be carried out.
        RunError: Something failed on the way that another trial would meet as well.
    """
    if not take():
        return
    training, options = search.run.training, search.options
    set_cpu_threads(training.cpu_threads)
    trainer = SearchTrainer(search, load_data(search.run.data), take)
    try:
        draw: Any = trainer.draw  # the Trainer's annotation knows of floats only
        trainer.hyperparameter_search(
            hp_space=draw,
            compute_objective=trainer.judge,
            n_trials=options.n_trials,
            direction=search.direction,
            backend="optuna",
            study_name=options.study_name,
            storage=open_storage(search),
            load_if_exists=True,
            sampler=build_sampler(options, training.seed, parallel=parallel),
            pruner=build_pruner(options),
            gc_after_trial=True,
        )
    except ValueError:
        # The parent returns the best trial, of which there may be none: all were ended early.
        study = optuna.load_study(study_name=options.study_name, storage=open_storage(search))
        if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            raise


class SearchTrainer(Trainer):
    """The Trainer that is asked for the search; each trial is a run of its own ``SiglipTrainer``.

    Options of the model, the augmentation and the objective can be searched only where model and
    Trainer are built anew, by the functions that ``train.py`` uses: a trial is what the same
    options would be there, without the final evaluation, which looks at the test split.
    """

    objective: float

    def __init__(self, search: Search, data: ClassificationData, take: Callable[[], bool]) -> None:
        self.search = search
        self.data = data
        self.take = take
        # This one itself neither trains nor evaluates: it only conducts.
        args = TrainingArguments(
            output_dir=str(search.directory),
            seed=search.run.training.seed,
            use_cpu=search.run.training.use_cpu,
            report_to="none",
            disable_tqdm=True,
        )
        super().__init__(model=nn.Identity(), args=args)
        # The parent insists on one; the model of a trial takes the trial's options.
        self.model_init = self._build_model

    def draw(self, trial: optuna.Trial) -> dict[str, Value]:
        """Return the options of a trial."""
        return {name: entry.suggest(trial, name) for name, entry in self.search.space.items()}

    def judge(self, metrics: dict[str, float]) -> float:
        """Return what a trial is judged by at an evaluation."""
        return metrics[self.search.metric_key]

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> TrainOutput:
        """Do a trial and set ``objective``; it goes on where the trial that it repeats was killed.

        Raises:
            TrialPruned: The trial was ended early, or cannot be carried out: see its attributes.
        """
        began = time.monotonic()
        directory = self.search.name_directory(find_origin(trial))
        judge = _Judge(trial, self.judge, self.search)
        try:
            changes: Any = self.hp_space(trial)
            outcome = self._run(self.search.build_trial(changes, directory), judge)
            self.objective = judge.find_value()
        except (InputError, BadStepError, TooLittleMemoryError) as error:
            # Other options may do better.
            trial.set_user_attr(REASON, str(error))
            self._end(trial, directory, f"cannot be carried out ({error})")
            raise optuna.TrialPruned(str(error)) from error
        except optuna.TrialPruned:
            trial.set_user_attr(SECONDS, round(time.monotonic() - began, 2))
            self._end(trial, directory, f"ended early after {judge.describe()}")
            raise
        trial.set_user_attr(METRICS, judge.find_metrics())
        trial.set_user_attr(SECONDS, round(time.monotonic() - began, 2))
        self._end(trial, directory, judge.describe())
        return outcome

    def _run(self, arguments: RunArguments, judge: "_Judge") -> TrainOutput:
        """Train as ``train.py`` does, from the newest checkpoint if there is one."""
        training, options = arguments.training, arguments.model
        directory = Path(str(training.output_dir))
        clear_leftovers(directory / CHECKPOINT_DIR)
        checkpoint = find_checkpoint(directory)
        set_seed(training.seed)
        processor = load_image_processor(
            options.model_name_or_path, options.image_size, options.max_num_patches
        )
        model = self._build_model(arguments, processor)
        check_free_disk(model, training)
        _, outcome = train_to_the_end(
            arguments, self.data, model, processor, checkpoint, prepare=judge.attach
        )
        return outcome

    def _build_model(self, arguments: RunArguments, processor: Any) -> Any:
        return build_model(arguments, self.data, processor)

    def _end(self, trial: optuna.Trial, directory: Path, outcome: str) -> None:
        """Say how a trial ended, and stop the study where there is no other to do."""
        shutil.rmtree(directory, ignore_errors=True)
        options = ", ".join(f"{name} {format_value(v)}" for name, v in trial.params.items())
        number = count_finished(trial.study) + 1
        total = self.search.options.n_trials
        print(f"[{number}/{total}] trial {trial.number}: {outcome}; {options}", flush=True)
        if not self.take():
            trial.study.stop()


class _Judge(TrainerCallback):
    """Reports each evaluation to Optuna, and ends a trial that Optuna gives up.

    The steps that Optuna sees are evaluations, counted from 1: steps of the optimizer are not
    comparable between trials of different batches.
    """

    def __init__(
        self, trial: optuna.Trial, judge: Callable[[dict[str, float]], float], search: Search
    ) -> None:
        self.trial = trial
        self.judge = judge
        self.search = search
        self.rows: list[dict[str, float]] = []
        self._reported: set[int] = set()

    def attach(self, trainer: SiglipTrainer) -> None:
        """Watch a Trainer, and keep its log rows off the terminal."""
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(self)

    def on_train_begin(self, args: Any, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        self._report(state)

    def on_evaluate(
        self,
        args: Any,
        state: TrainerState,
        control: Any,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        # Several splits are evaluated, one after another.
        if metrics is None or self.search.metric_key not in metrics:
            return
        self._report(state)
        if self.trial.should_prune():
            raise optuna.TrialPruned

    def _report(self, state: TrainerState) -> None:
        self.rows = [row for row in state.log_history if self.search.metric_key in row]
        for number, row in enumerate(self.rows, start=1):
            value = self.judge(row)
            if not math.isfinite(value):
                raise BadStepError(f"its {self.search.metric} is {value} at epoch {row['epoch']}")
            if number not in self._reported:
                self.trial.report(value, number)
                self._reported.add(number)

    def _find_row(self) -> dict[str, float]:
        """Return the evaluation of the weights that the run would keep."""
        if not self.rows:
            raise InputError("its training ended before the first evaluation")
        if not self.search.run.training.load_best_model_at_end:
            return self.rows[-1]
        best = max if self.search.direction == "maximize" else min
        return best(self.rows, key=self.judge)

    def find_value(self) -> float:
        """Return what the trial is judged by."""
        return self.judge(self._find_row())

    def find_metrics(self) -> dict[str, float]:
        """Return the validation metrics and the epoch at which they were measured."""
        row = self._find_row()
        kept = {
            name.removeprefix("eval_"): value
            for name, value in row.items()
            if name.startswith("eval_validation_") and not name.endswith(("runtime", "per_second"))
        }
        return {"epoch": row["epoch"], **kept}

    def describe(self) -> str:
        """Return the value and its epoch for a line of progress."""
        row = self._find_row()
        return f"{self.search.metric} {self.judge(row):.4f} at epoch {row['epoch']:g}"
