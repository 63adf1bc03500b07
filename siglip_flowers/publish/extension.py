"""What ``--push_to_hub`` adds to a training run."""

import dataclasses

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.publish.options import HubArguments, PublishArguments, PushArguments
from siglip_flowers.publish.publish import check_hub_access, publish_run
from siglip_flowers.training.build import RunArguments, TrainingExtension


class PushExtension(TrainingExtension):
    """Check before the training that the Hub accepts the token, and publish the finished run."""

    def __init__(self, options: PushArguments) -> None:
        assert options.hub_model_id is not None
        self.hub_model_id = options.hub_model_id
        shared = dataclasses.fields(HubArguments)
        self.options = {field.name: getattr(options, field.name) for field in shared}

    def check(self, arguments: RunArguments) -> None:
        """Raise RunError unless the Hub accepts the token."""
        check_hub_access(self.hub_model_id)

    def finish(self, arguments: RunArguments) -> None:
        """Publish the run.

        Raises:
            InputError, RunError: It was not published; the message has the command to retry with.
        """
        run = str(arguments.training.output_dir)
        try:
            publish_run(PublishArguments(run=run, **self.options), arguments.data)
        except (InputError, RunError) as error:
            raise RunError(
                f"{str(error).rstrip('.')}. The run in {run} is complete; publish it with: "
                f"siglip-flowers publish {run} --hub_model_id {self.hub_model_id}"
            ) from error


def make_training_extension(options: PushArguments) -> PushExtension:
    """Return the extension that the options ask for."""
    return PushExtension(options)
