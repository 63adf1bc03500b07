"""What a feature can add to a training run: the interface that ``train.py`` calls it by."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from siglip_flowers.training.build import RunArguments


class TrainingExtension:
    """What a feature does in a training run; each step does nothing unless it is overridden.

    A feature's ``extension.py`` has ``make_training_extension(options)``, where ``options`` is an
    instance of its ``EXTENDS["train"]``. It is imported only if ``options.is_asked``.
    """

    def check(self, arguments: "RunArguments") -> None:
        """Raise InputError or RunError for what cannot work; called by the main process.

        This is before data or weights are read.
        """

    def finish(self, arguments: "RunArguments") -> None:
        """Do the feature's work on the finished run; called by the main process."""
