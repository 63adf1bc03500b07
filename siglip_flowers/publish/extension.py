"""What ``--push_to_hub`` adds to a training run."""

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.publish.options import HUB_OPTIONS, PublishArguments
from siglip_flowers.publish.publish import check_hub_access, publish_run
from siglip_flowers.training.build import RunArguments, TrainingExtension


class Extension(TrainingExtension):
    """Check before the training that the Hub accepts the token, and publish the finished run."""

    def check(self, arguments: RunArguments) -> None:
        """Raise RunError unless the Hub accepts the token."""
        check_hub_access(self.options.hub_model_id)

    def finish(self, arguments: RunArguments) -> None:
        """Publish the run.

        Raises:
            InputError, RunError: It was not published; the message has the command to retry with.
        """
        run = str(arguments.training.output_dir)
        options = {name: getattr(self.options, name) for name in HUB_OPTIONS}
        try:
            publish_run(PublishArguments(run=run, **options), arguments.data)
        except (InputError, RunError) as error:
            raise RunError(
                f"{str(error).rstrip('.')}. The run in {run} is complete; publish it with: "
                f"siglip-flowers publish {run} --hub_model_id {self.options.hub_model_id}"
            ) from error
