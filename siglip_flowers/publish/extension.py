"""What ``--push_to_hub`` adds to a training run."""

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.publish.options import PublishArguments, PushArguments
from siglip_flowers.publish.publish import check_hub_access, publish_run
from siglip_flowers.training.build import RunArguments, TrainingExtension


class PushExtension(TrainingExtension):
    """Check before the training that the Hub accepts the token, and publish the finished run."""

    def __init__(self, options: PushArguments) -> None:
        assert options.hub_model_id is not None
        self.hub_model_id = options.hub_model_id
        self.private = options.hub_private_repo

    def check(self, arguments: RunArguments) -> None:
        """Raise RunError unless the Hub accepts the token."""
        check_hub_access(self.hub_model_id)

    def finish(self, arguments: RunArguments) -> None:
        """Publish the run.

        Raises:
            InputError, RunError: It was not published; the message has the command to retry with.
        """
        run = str(arguments.training.output_dir)
        options = PublishArguments(
            run=run, hub_model_id=self.hub_model_id, hub_private_repo=self.private
        )
        try:
            publish_run(options, arguments.data, print)
        except (InputError, RunError) as error:
            raise RunError(
                f"{str(error).rstrip('.')}. The run in {run} is complete; publish it with: "
                f"siglip-flowers publish {run} --hub_model_id {self.hub_model_id}"
            ) from error


def make_training_extension(options: PushArguments) -> PushExtension:
    """Return the extension that the options ask for."""
    return PushExtension(options)
