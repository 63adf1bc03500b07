"""YAML files of options: those that users write, and the one that is saved with a run."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import yaml

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.version import __version__
from siglip_flowers.config.fields import list_options, suggest_nearest

logger = logging.getLogger(__name__)
# A saved configuration that is read again must neither overwrite nor publish unasked, nor carry the
# processor of one machine to another.
UNSAVED = ("overwrite_output_dir", "push_to_hub", "use_cpu")
_VERSION = re.compile(r"# siglip_flowers (\S+)\n")
# Configurations that come with the package.
SHIPPED = Path(__file__).parents[1] / "configs"

# Options of transformers.TrainingArguments that contradict the package: what to use instead.
_INSTEAD = {
    "resume_from_checkpoint": "use --resume auto, which finds the newest checkpoint.",
    "do_train": "train.py always trains; use eval.py to evaluate only.",
    "do_eval": "use --eval_strategy no to skip evaluation during training.",
    "do_predict": "predictions of the test split are always written; use eval.py for other splits.",
    "hub_token push_to_hub_token": "run hf auth login or set HF_TOKEN.",
    "hub_strategy hub_always_push hub_revision": "use --push_to_hub for the finished run.",
    "greater_is_better": "whether higher is better follows from --metric_for_best_model.",
    "bf16_full_eval": "use eval.py --dtype bfloat16.",
    "fp16_full_eval": "use eval.py --dtype float16.",
    "activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing_kwargs": (
        "use --gradient_checkpointing, which is not re-entrant."
    ),
    "fsdp fsdp_config deepspeed accelerator_config local_rank": (
        "use accelerate launch --config_file with one of configs/accelerate."
    ),
    "label_names": "use --label_column_name for the column of labels.",
    "logging_dir": "TensorBoard writes to the directory tensorboard in --output_dir.",
    """
    batch_eval_metrics ddp_find_unused_parameters debug enable_jit_checkpoint eval_do_concat_batches
    group_by_length ignore_data_skip include_for_metrics length_column_name log_level
    neftune_noise_alpha prediction_loss_only remove_unused_columns
    restore_callback_states_from_checkpoint save_only_model save_safetensors train_sampling_strategy
    use_liger_kernel
    """: "its value is fixed; remove it.",
}
REFUSED = {name: text for names, text in _INSTEAD.items() for name in names.split()}
_OFF = """
    activation_checkpointing batch_eval_metrics bf16_full_eval ddp_find_unused_parameters do_predict
    do_train enable_jit_checkpoint eval_use_gather_object fp16_full_eval hub_always_push
    ignore_data_skip prediction_loss_only push_to_hub remove_unused_columns
    restore_callback_states_from_checkpoint save_on_each_node save_only_model use_cache
    use_liger_kernel wandb_log_model
"""
_ON = """
    average_tokens_across_devices dataloader_in_order do_eval eval_do_concat_batches feature_cache
    greater_is_better log_on_each_node skip_memory_metrics
"""
_UNSET = """
    dataloader_multiprocessing_context ddp_broadcast_buffers ddp_static_graph
    eval_accumulation_steps gradual_unfreezing liger_kernel_config max_grad_norm_stop
    optim_target_modules parallelism_config probe_learning_rates probe_poolings probe_weight_decays
    storage torch_empty_cache_steps trackio_bucket_id trackio_space_id trackio_static_space_id
"""
# What a file may say about an option that older versions saved and that is gone: the value that
# changes nothing. The file's other values decide the run.
REMOVED: dict[str, Any] = {
    **dict.fromkeys(_OFF.split(), False),
    **dict.fromkeys(_ON.split(), True),
    **dict.fromkeys(_UNSET.split()),
    "class_weights": "none",
    "probe_solver": "adamw",
    "augmented_views": 8,
    "drop_path": 0.0,
    "auto_augment": "none",
    "randaugment_num_ops": 2,
    "randaugment_magnitude": 9,
    "random_erasing": 0.0,
    "sampler": "tpe",
    "startup_trials": 10,
    "study_name": "search",
    "hub_strategy": "every_save",
    "include_num_input_tokens_seen": "no",
    "length_column_name": "length",
    "local_rank": -1,
    "log_level": "passive",
    "log_level_replica": "warning",
    "project": "huggingface",
    "train_sampling_strategy": "random",
    "accelerator_config": {
        **dict.fromkeys(("non_blocking", "split_batches"), False),
        **dict.fromkeys(("even_batches", "use_seedable_sampler"), True),
        **dict.fromkeys(("dispatch_batches", "gradient_accumulation_kwargs")),
    },
}


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"duplicate key {key.value!r}", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def find_config(name: str) -> Path:
    """Return the file that ``--config`` names: a path, or the name of a shipped configuration.

    Raises:
        InputError: A name without a file.
    """
    path = Path(name).expanduser()
    if path.is_file() or not re.fullmatch(r"[\w-]+", name):
        return path
    shipped = {each.stem: each for each in SHIPPED.glob("*.yaml")}
    if name not in shipped:
        raise InputError(
            f"There is no configuration {name!r}. Name a YAML file, or one of "
            f"{', '.join(sorted(shipped))}."
        )
    return shipped[name]


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file contains.

    Raises:
        InputError: The file cannot be read, is not YAML or contains something else.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise InputError(
            f"The configuration file {path} cannot be read: {error.strerror or error}."
        ) from error
    except Exception as error:
        # The reader has no common error for text that is not YAML, or dates that do not exist.
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"The configuration file {path} is not valid YAML: {reason}.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(
            f"The configuration file {path} contains a {type(values).__name__}; it must contain "
            "lines 'option: value'."
        )
    return values


def drop_removed(values: dict[str, Any], known: set[str], origin: str) -> dict[str, Any]:
    """Return options without those that are gone and changed nothing.

    Args:
        values: Options of a file.
        known: The names of options.
        origin: The file, for messages.

    Raises:
        InputError: A key is not an option.
    """
    gone = [key for key in values if key not in known]
    dropped = [key for key in gone if key in REMOVED and values[key] == REMOVED[key]]
    for key in gone:
        if key in dropped:
            continue
        if key in REFUSED:
            raise InputError(f"{key} in {origin} is not supported: {REFUSED[key]}")
        if key in REMOVED:
            raise InputError(
                f"{key} in {origin} is an option of an older version; it is gone, and "
                f"{values[key]!r} was not its default. Remove the line."
            )
        raise InputError(f"Unknown key {key!r} in {origin}{suggest_nearest(str(key), known)}")
    if dropped and values.get("lora_r") is None and values.get("lora_dropout") == 0.05:
        # The default then.
        dropped.append("lora_dropout")
    if dropped:
        logger.warning(
            "%s is from an older version; options that are gone and had no effect: %s.",
            origin,
            ", ".join(dropped),
        )
    return {key: value for key, value in values.items() if key not in dropped}


def read_version(path: Path) -> str | None:
    """Return the version of the package that saved a configuration; None before 0.2."""
    match = _VERSION.match(path.read_text(encoding="utf-8", errors="replace"))
    return None if match is None else match[1]


def dump_configuration(*instances: Any) -> str:
    """Return the resolved options as YAML text, which ``--config`` reads back.

    Options that are unset by default and still unset are left out.
    """
    lines = [f"# siglip_flowers {__version__}\n"]
    for instance in instances:
        values = {}
        for field in list_options(type(instance)):
            # Members of enumerations become their values, and tuples lists.
            value = json.loads(json.dumps(getattr(instance, field.name)))
            unset = value is None and field.default is None
            if field.name not in UNSAVED and not unset and value not in ([], {}, ""):
                values[field.name] = value
        lines.append(f"# {type(instance).__name__}\n")
        lines.append(yaml.safe_dump(values, sort_keys=True, allow_unicode=True))
    return "".join(lines)
