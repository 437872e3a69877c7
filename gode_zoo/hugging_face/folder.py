"""What a folder of the Hub holds, and what is refused in one that somebody else wrote.

    config.json        timm's format: architecture, model_args, pretrained_cfg, label names
    model.safetensors  the weights
    metrics.json       errors, how they were obtained, and the weights' sha256
    recipe.yaml, train_log.csv, train_log.svg, README.md    how it was trained, and the card

Nothing here runs code from a file or trusts a size that a file claims: config.json may name one of this package's
architectures only, with arguments of a bounded size, and the header of model.safetensors has to be that of this very
architecture before a tensor is read.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import timm
from timm.models import PretrainedCfg
from torch import nn

from ..models._pretrained import WeightsError

__all__ = [
    "MAX_TEXT_BYTES",
    "NEEDED_FILES",
    "PUBLISHED_FILES",
    "build_empty",
    "check_arguments",
    "check_config",
    "check_names",
    "check_weights",
    "read_config",
    "weights_limit",
]

NEEDED_FILES = ("config.json", "model.safetensors", "metrics.json")
PUBLISHED_FILES = (*NEEDED_FILES, "README.md", "recipe.yaml", "train_log.csv", "train_log.svg")

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".tar")
MAX_TEXT_BYTES = 16 << 20  # of a file that is not the weights: label names of many classes fit
_MAX_HEADER_BYTES = 1 << 20  # of a safetensors file of some hundred tensors
_MAX_WEIGHTS_BYTES = 8 << 30
# Sizes in model_args, beyond which a model could fill the memory before its first weight is read.
_MAX_INTEGER = {"degree": 64, "num_classes": 1_000_000}
_MAX_ANY_INTEGER = 4096
_MAX_LENGTH = 10_000
_ARCHITECTURE_KEYS = {"architecture", "num_classes", "num_features", "global_pool", "label_names", "label_descriptions"}
_CONFIG_KEYS = _ARCHITECTURE_KEYS | {"model_args", "pretrained_cfg"}
# Where weights are, and a loader of the model's own: of a file, they could lead anywhere else.
_SOURCE_KEYS = {"url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source"}
_CFG_KEYS = {field.name for field in dataclasses.fields(PretrainedCfg)} - _SOURCE_KEYS


def check_names(names: Iterable[str], where: str) -> None:
    """Refuse a repository by the names of its files.

    Raises:
        WeightsError: a name leads out of the folder or has control characters, or there are no safetensors weights.
    """
    names = sorted(names)
    for name in names:
        parts = re.split(r"[/\\]", name)
        if name.startswith(("/", "\\")) or ".." in parts or ":" in name or not name.isprintable():
            raise WeightsError(
                f"{where}: has a file named {name!r}, which would lead out of its folder: nothing was downloaded; do "
                "not use this repository"
            )
    if "model.safetensors" not in names:
        pickles = [name for name in names if name.endswith(_PICKLES)]
        if pickles:
            raise WeightsError(
                f"{where}: has no model.safetensors, only {', '.join(pickles)}: a pickle can run code when it is "
                "loaded and is never read; ask its author for safetensors"
            )
        raise WeightsError(f"{where}: has no model.safetensors: there are no weights in it")
    if "config.json" not in names:
        raise WeightsError(f"{where}: has no config.json: it is not a repository in timm's format")


def read_config(file: Path, where: str) -> dict[str, Any]:
    """The content of config.json, after `check_config`.

    Raises:
        WeightsError: it is missing, damaged or refused.
    """
    try:
        if file.stat().st_size > MAX_TEXT_BYTES:
            raise WeightsError(f"{where}: config.json has {file.stat().st_size:,} bytes: it is not a configuration")
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{where}: config.json cannot be read ({error.strerror}): restore it") from None
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{where}: config.json is not valid JSON ({error}): restore it") from None
    check_config(config, where)
    return config


def check_config(config: Any, where: str) -> None:
    """Refuse a configuration that names anything but one of this package's models, of a size that can be built.

    Raises:
        WeightsError: with the key, its value and what is allowed.
    """

    refuse = partial(_refusal, where)
    if not isinstance(config, dict):
        raise refuse("no keys", "it must be an object in timm's format")
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or not _is_ours(architecture):
        raise refuse(
            f"architecture {architecture!r:.100}",
            "only models of gode_zoo are loaded here, which `gode-zoo list` names",
        )
    cfg, arguments = config.get("pretrained_cfg"), config.get("model_args", {})
    if not isinstance(cfg, dict) or not isinstance(arguments, dict):
        raise refuse("no object pretrained_cfg or model_args", "write it with gode_zoo or timm's save_for_hf")
    unknown = sorted({*(config.keys() - _CONFIG_KEYS), *(cfg.keys() - _CFG_KEYS)})
    if unknown:
        raise refuse(
            f"the key {', '.join(map(repr, unknown))[:200]}",
            "what timm's save_for_hf writes is allowed, and nothing that leads to other weights or code",
        )
    if cfg.get("custom_load"):
        raise refuse(f"custom_load {cfg['custom_load']!r:.100}", "weights are read as safetensors alone: false")
    check_arguments(arguments, where)


def check_arguments(arguments: dict[str, Any], where: str) -> None:
    """Refuse arguments of a model that would fill the memory when it is built.

    Raises:
        WeightsError: with the argument, its value and what is allowed.
    """
    refuse = partial(_refusal, where)
    for key, value in arguments.items():
        if key == "family" and isinstance(value, dict):
            _check_family(value, refuse)
        else:
            _check_argument(key, value, refuse)
    if (step := arguments.get("step_size")) is not None:
        span = arguments.get("t_span") or (0.0, 1.0)
        if (
            not _numbers(span)
            or len(span) != 2
            or not _numbers([step])
            or step < abs(span[1] - span[0]) / _MAX_ANY_INTEGER
        ):
            raise refuse(
                f"step_size {step!r:.100} over t_span {span!r:.100}", f"at most {_MAX_ANY_INTEGER} steps are allowed"
            )


def _refusal(where: str, what: str, allowed: str) -> WeightsError:
    return WeightsError(f"{where}: config.json has {what}: {allowed}")


def _check_argument(key: str, value: Any, refuse: Callable[[str, str], WeightsError]) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str) and len(value) <= 200:
        return
    limit = _MAX_INTEGER.get(key, _MAX_ANY_INTEGER)
    if _numbers([value]):
        if abs(value) <= limit:
            return
        raise refuse(f"model_args.{key} {value!r:.100}", f"numbers up to {limit:,} are allowed here")
    if _numbers(value) and len(value) <= _MAX_LENGTH and all(abs(v) <= limit for v in value):
        return
    raise refuse(
        f"model_args.{key} {value!r:.100}",
        f"a number, a word, true, false, null or a list of up to {_MAX_LENGTH:,} numbers is allowed",
    )


def _check_family(family: dict[str, Any], refuse: Callable[[str, str], WeightsError]) -> None:
    """A mapping as `get_family` takes it; its dispersion may be any number, for it makes nothing larger."""
    words, dispersion = [family.get(key, "") for key in ("name", "link")], family.get("dispersion", 1.0)
    known = family.keys() <= {"name", "link", "dispersion"}
    if not known or not all(isinstance(word, str) for word in words) or not _numbers([dispersion]):
        raise refuse(f"model_args.family {family!r:.100}", "a name, or name, link and dispersion are allowed")


def _numbers(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and v == v for v in values
    )


def _is_ours(architecture: str) -> bool:
    return timm.is_model(architecture) and timm.model_entrypoint(architecture).__module__.startswith("gode_zoo.")


def build_empty(config: dict[str, Any], where: str) -> nn.Module:
    """The model that a checked configuration describes, without memory for its weights.

    Raises:
        WeightsError: the architecture does not take these arguments.
    """
    arguments = {"num_classes": config.get("num_classes"), **config.get("model_args", {})}
    try:
        return timm.create_model(config["architecture"], device="meta", **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"{where}: config.json does not fit {config['architecture']} ({' '.join(str(error).split())[:300]}): "
            "was it written by another version of gode_zoo?"
        ) from None


def weights_limit(model: nn.Module) -> int:
    """Bytes that the weights of `model` may have in a file: float64 and the header at the most."""
    numbers = sum(value.numel() for value in model.state_dict().values())
    return min(8 * numbers + _MAX_HEADER_BYTES, _MAX_WEIGHTS_BYTES)


def check_weights(file: Path, model: nn.Module) -> None:
    """Hold the header of a safetensors file against the model; no tensor is read.

    Raises:
        WeightsError: the file is larger than the model's weights can be, is no safetensors file or its header lies
            about what follows, or its tensors are not those of the model.
    """
    from safetensors import SafetensorError, safe_open

    size, limit = file.stat().st_size, weights_limit(model)
    if size > limit:
        raise WeightsError(f"{file}: has {size:,} bytes, the weights of this model have {limit:,} at most: not read")
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    try:
        with safe_open(file, "pt") as tensors:
            found = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{file}: is not a whole safetensors file, or its header is not true ({error}): not read; fetch it again "
            "from a source that you trust"
        ) from None
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise WeightsError(
            f"{file}: {len(wrong)} tensors are not those of the model in config.json, the first {name[:100]!r}: the "
            f"model has {_shape(expected.get(name))}, the file {_shape(found.get(name))}; not read"
        )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else f"one of shape {shape}"
