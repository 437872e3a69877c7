"""What the zoo's architectures share: the paper's stem and head around a block, with timm's interface.

    x (B, in_chans, H, W) → stem (B, 64, H/4, W/4) → block, same shape → GroupNorm, ReLU → pool → linear (B, num_classes)

Stem: Conv 3×3 – GroupNorm – ReLU – Conv 4×4, stride 2 – GroupNorm – ReLU – Conv 4×4, stride 2. The first convolution
has no padding: 28×28 pixels become a state of 6×6, 32×32 become 7×7.
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from timm.layers import ClassifierHead
from timm.models import PretrainedCfg, build_model_with_cfg
from timm.models._builder import resolve_pretrained_cfg
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..families import Family, get_family
from ..solvers import get_solver
from ._pretrained import WeightsError, hub_id, known_sha256, list_weights, verify_weights, weights_file

__all__ = ["CHANNELS", "CIFAR10_CFG", "MNIST_CFG", "StemBlockHead", "cfg", "create", "own_steps", "tagged_cfgs"]

CHANNELS = 64
TAGS = ("modern", "paper")


class StemBlockHead(nn.Module):
    """Stem, one block that keeps its state's shape, and head; a first-class timm model.

    Args:
        block: from a 64-channel state to one of the same shape.
        num_classes: number of outputs; 0 gives the pooled features.
        in_chans: channels of the images.
        global_pool: ``"avg"`` or any other of timm's pooling types; ``""`` for none (with ``num_classes=0``).
        drop_rate: dropout before the classifier.
        stem: what comes before the block, in place of the paper's; its first convolution is ``conv1``.
        level_ends: where in the stem its two feature levels end; the third is the block's.
        levels: channels and reduction of the three levels. The last one's channels go into the head.
        norm: the norm before the head, in place of the paper's GroupNorm.
        act: the activation after it, in place of ReLU.
        family: of the outcomes whose η the model gives, kept as the attribute ``family``: a name, or a mapping as
            `get_family` takes it. A family other than categorical has one output for each outcome.
    """

    grad_checkpointing: Final[bool]

    def __init__(
        self,
        block: nn.Module,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
        family: str | Mapping[str, Any] | Family = "categorical",
        *,
        stem: nn.Sequential | None = None,
        level_ends: tuple[int, int] = (3, 6),
        levels: Sequence[tuple[int, int]] = ((CHANNELS, 1), (CHANNELS, 2), (CHANNELS, 4)),
        norm: nn.Module | None = None,
        act: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.family = get_family(family)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = levels[-1][0]
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.stem = _paper_stem(in_chans, dd) if stem is None else stem
        self.level_ends = level_ends
        self.block = block
        self.norm = nn.GroupNorm(32, self.num_features, **dd) if norm is None else norm
        self.act = nn.ReLU() if act is None else act
        self.head = ClassifierHead(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        names = [name for name, _ in self.stem.named_children()]
        modules = [*(f"stem.{names[end - 1]}" for end in level_ends), "block"]
        self.feature_info = [
            {"num_chs": channels, "reduction": reduction, "module": module}
            for (channels, reduction), module in zip(levels, modules, strict=True)
        ]

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise decay: the stem, the block, the final norm and the head."""
        return {"stem": r"^stem", "blocks": [(r"^block", None), (r"^norm", (99999,))]}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in the block; gradients stay the same.

        Raises:
            ValueError: if the block has an adaptive solver, which cannot be checkpointed.
        """
        for module in self.modules():
            set_checkpointing = getattr(module, "set_checkpointing", None)
            if set_checkpointing is not None:
                set_checkpointing(enable)
        self.grad_checkpointing = enable  # type: ignore[misc]

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Biases and norms that are splines: two-dimensional, so weight decay would not skip them by itself."""
        return {name for name, value in self.named_parameters() if name.endswith("coeffs") and value.dim() == 2}

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in place; ``global_pool`` keeps its type when None."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Features after both activations of the stem and after the block.

        Args:
            x: images ``(B, in_chans, H, W)``.
            indices: which of the three to return; an integer n takes the last n, None all.
            norm: apply the final norm and activation to the last one.
            stop_early: do not compute what no index asks for.
            output_fmt: ``"NCHW"`` alone.
            intermediates_only: return only the list.

        Returns:
            The list of features, or ``(final features, list)``.

        Raises:
            ValueError: on another output_fmt.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}: only NCHW is there")
        take, last = feature_take_indices(len(self.feature_info), indices)
        intermediates: list[Tensor] = []
        # Slices, so that a model whose later layers were pruned passes its input through what is left.
        first, second = self.level_ends
        stages = [self.stem[:first], self.stem[first:second], nn.Sequential(*self.stem[second:], self.block)]
        for i, stage in enumerate(stages[: last + 1] if stop_early else stages):
            x = stage(x)
            if i in take:
                intermediates.append(self.act(self.norm(x)) if norm and i == len(stages) - 1 else x)
        if intermediates_only:
            return intermediates
        if not stop_early or last == len(stages) - 1:
            x = self.act(self.norm(x))
        return x, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the wanted intermediate features do not need; returns their indices."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        if last < 2:
            self.block = nn.Identity()
            self.stem = self.stem[: self.level_ends[last]]
        if prune_norm or last < 2:
            self.norm, self.act = nn.Identity(), nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        """Images to the last feature map, after the final norm and activation: ``(B, 64, H', W')``."""
        x = self.stem(x)
        x = self.block(x)
        return self.act(self.norm(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature map to logits ``(B, num_classes)``, or to pooled features with ``pre_logits``."""
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(B, in_chans, H, W)`` to logits ``(B, num_classes)``."""
        x = self.forward_features(x)
        return self.forward_head(x)


def _paper_stem(in_chans: int, dd: dict[str, Any]) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_chans, CHANNELS, 3, **dd),
            norm1=nn.GroupNorm(32, CHANNELS, **dd),
            act1=nn.ReLU(),
            conv2=nn.Conv2d(CHANNELS, CHANNELS, 4, stride=2, padding=1, **dd),
            norm2=nn.GroupNorm(32, CHANNELS, **dd),
            act2=nn.ReLU(),
            conv3=nn.Conv2d(CHANNELS, CHANNELS, 4, stride=2, padding=1, **dd),
        )
    )


MNIST_CFG: dict[str, Any] = {"input_size": (1, 28, 28), "pool_size": (6, 6), "mean": (0.0,), "std": (1.0,)}
CIFAR10_CFG: dict[str, Any] = {
    "input_size": (3, 32, 32),
    "pool_size": (7, 7),
    "mean": (0.491, 0.482, 0.447),
    "std": (0.247, 0.243, 0.262),
}


def cfg(dataset: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """A ``pretrained_cfg`` of these architectures for one data set's figures."""
    return {
        "num_classes": 10,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "first_conv": "stem.conv1",
        "classifier": "head.fc",
        "license": "apache-2.0",
        **dataset,
        **kwargs,
    }


def tagged_cfgs(dataset: dict[str, Any], *archs: str) -> dict[str, dict[str, Any] | PretrainedCfg]:
    """``arch.tag`` to ``pretrained_cfg`` of every weight that each architecture has, its default first.

    The tags are ``modern`` (a better recipe on the same architecture), ``paper`` (the paper's own), and after them others,
    such as those of shorter runs. An architecture without weights stands with the first, as a model has to have one.
    """
    found: dict[str, dict[str, Any] | PretrainedCfg] = {}
    bundled = list_weights()
    for arch in archs:
        others = [tag for known, tag, _ in bundled if known == arch and tag not in TAGS]
        for tag in [tag for tag in (*TAGS, *others) if weights_file(arch, tag)] or TAGS[:1]:
            found[f"{arch}.{tag}"] = cfg(dataset, **weights_file(arch, tag))
    return found


def own_steps(num_steps: int, kwargs: dict[str, Any]) -> dict[str, int]:
    """The variant's own number of steps, unless another step or a solver that chooses it was asked for."""
    own = kwargs.get("step_size") is None and not get_solver(kwargs.get("solver", "euler")).adaptive
    return {"num_steps": num_steps} if own else {}


def create(
    cls: type[nn.Module],
    variant: str,
    pretrained: bool,
    filter_fn: Callable[..., dict[str, Tensor]] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a registered model as timm does, after checking the weights that it would load.

    Bundled weights and those of a local folder are held against their sha256. Weights of the Hub are fetched and
    checked by `gode_zoo.hugging_face.download.fetch`, and timm is given the file that was checked.

    Raises:
        WeightsError: the weights are refused, or do not fit the model that the keywords ask for.
        HubError: the Hub cannot be reached, refuses, or has no such thing.
    """
    source = kwargs.get("pretrained_cfg")
    if isinstance(source, dict) and source.get("source") == "hf-hub":
        from ..hugging_face.folder import check_arguments

        check_arguments(kwargs.get("pretrained_model_args") or {}, str(source["hf_hub_id"]))
    if pretrained:
        overlay = kwargs.get("pretrained_cfg_overlay") or {}
        chosen = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), pretrained_cfg_overlay=overlay)
        if fetched := _check_weights(chosen, variant, kwargs.get("cache_dir")):
            kwargs["pretrained_cfg_overlay"] = {**overlay, "source": None, "file": str(fetched)}
    try:
        return build_model_with_cfg(
            cls,
            variant,
            pretrained,
            pretrained_filter_fn=filter_fn,
            feature_cfg={"out_indices": (0, 1, 2), "feature_cls": "getter"},
            **kwargs,
        )
    except RuntimeError as error:
        if str(error).startswith("Error(s) in loading state_dict"):
            raise WeightsError(_misfit(cls, variant, kwargs, str(error))) from None
        raise


def _misfit(cls: type[nn.Module], variant: str, kwargs: Mapping[str, Any], error: str) -> str:
    """What torch's `error` means: the keywords of the architecture, timm's own left out, and the first difference."""
    own = inspect.signature(cls).parameters
    given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items() if key in own) or "its own keywords"
    first = error.splitlines()[1].strip().rstrip(".")
    surgery = "; gode_zoo.surgery.refine and compress then change num_basis" if "num_basis" in kwargs else ""
    return (
        f"{variant}: the pretrained weights do not fit a model with {given} ({first}): load them "
        f"without keywords that change the shapes of parameters{surgery}"
    )


def _check_weights(chosen: PretrainedCfg, variant: str, cache_dir: Any) -> Path | None:
    """Check the weights that timm would load; of weights on the Hub the file into which they were fetched."""
    if chosen.source == "local-dir":
        folder = Path(str(chosen.file))
        if (folder / "metrics.json").is_file() and (folder / "model.safetensors").is_file():
            verify_weights(folder / "model.safetensors", "restore the one, or remove the other if the weights are new")
    elif chosen.source != "hf-hub" and chosen.file:
        bundled = {str(folder / "model.safetensors"): folder for _, _, folder in list_weights()}
        if chosen.file in bundled:
            verify_weights(bundled[chosen.file] / "model.safetensors")
    elif chosen.hf_hub_id and not chosen.state_dict:
        from ..hugging_face.access import repository
        from ..hugging_face.download import fetch

        if chosen.hf_hub_filename not in (None, "model.safetensors"):
            raise WeightsError(
                f"{chosen.hf_hub_id}: hf_hub_filename={chosen.hf_hub_filename!r}: model.safetensors alone is loaded"
            )
        repo_id, revision = repository(chosen.hf_hub_id)
        of_the_zoo = chosen.source != "hf-hub" and chosen.hf_hub_id == hub_id(variant, str(chosen.tag))
        folder = fetch(
            repo_id,
            revision,
            sha256=known_sha256(variant, str(chosen.tag)) if of_the_zoo else None,
            require_metrics=of_the_zoo,
            cache_dir=cache_dir,
        )
        return folder / "model.safetensors"
    return None
