"""Where the zoo's weights are, and whether they are the ones that were published.

A folder ``<arch>.<tag>`` holds config.json, model.safetensors and metrics.json; metrics.json has the weights' sha256.
In a wheel the folders lie in ``gode_zoo/hub``, in a checkout in ``hub`` beside the package. They are the default. Who
keeps copies on the Hub names the account in the environment variable ``GODE_ZOO_HUB_ORG`` before gode_zoo is imported:
``ORG/<arch>.<tag>`` is then the ``hf_hub_id`` of each weight, used where it is not bundled.
"""

import hashlib
import json
import os
from pathlib import Path

__all__ = [
    "CHECKOUT",
    "HUB_ORG_VARIABLE",
    "WeightsError",
    "find_weights",
    "hub_id",
    "known_sha256",
    "list_weights",
    "verify_weights",
    "weights_file",
]

HUB_ORG_VARIABLE = "GODE_ZOO_HUB_ORG"

_PACKAGE = Path(__file__).resolve().parent.parent
CHECKOUT = _PACKAGE.parent
# Beside an installed package a folder `hub` would be somebody else's.
_ROOTS = (_PACKAGE / "hub", *((CHECKOUT / "hub",) if (CHECKOUT / "pyproject.toml").is_file() else ()))


class WeightsError(RuntimeError):
    """Bundled weights are missing, or are not those that were published."""


def list_weights() -> list[tuple[str, str, Path]]:
    """Every bundled weight as (architecture, tag, folder), sorted by name."""
    found: dict[tuple[str, str], Path] = {}
    for root in _ROOTS:
        for file in sorted(root.glob("*/model.safetensors")):
            arch, _, tag = file.parent.name.partition(".")
            found.setdefault((arch, tag), file.parent)
    return [(arch, tag, folder) for (arch, tag), folder in sorted(found.items())]


def find_weights(arch: str, tag: str) -> Path:
    """The folder of one bundled weight.

    Raises:
        WeightsError: if it is not bundled, with the names that are.
    """
    known = {(known_arch, known_tag): folder for known_arch, known_tag, folder in list_weights()}
    if (arch, tag) not in known:
        names = ", ".join(".".join(name) for name in known) or "none"
        asked = f"{arch}.{tag}".rstrip(".")
        raise WeightsError(f"no bundled weights {asked}: bundled are {names}")
    return known[arch, tag]


def weights_file(arch: str, tag: str) -> dict[str, str]:
    """For a ``pretrained_cfg``: ``file`` where the weights are bundled, and ``hf_hub_id`` where `hub_id` gives one."""
    sources = {}
    for known_arch, known_tag, folder in list_weights():
        if (known_arch, known_tag) == (arch, tag):
            sources["file"] = str(folder / "model.safetensors")
    if repo_id := hub_id(arch, tag):
        sources["hf_hub_id"] = repo_id
    return sources


def hub_id(arch: str, tag: str) -> str | None:
    """The repository of one weight on the Hub, None where ``GODE_ZOO_HUB_ORG`` names no account."""
    org = os.environ.get(HUB_ORG_VARIABLE)
    return f"{org}/{arch}.{tag}" if org else None


def known_sha256(arch: str, tag: str) -> str | None:
    """sha256 of one of the zoo's weights as the package knows it, also where the weights themselves are not there."""
    for root in _ROOTS:
        metrics = root / f"{arch}.{tag}" / "metrics.json"
        if metrics.is_file():
            return _published_sha256(metrics, "install gode_zoo anew")
    return None


def verify_weights(file: Path, mend: str = "the file is damaged or was changed; install gode_zoo anew") -> None:
    """Compare the sha256 of weights with the one in the metrics.json beside them.

    Args:
        mend: what to do about it, for the message.

    Raises:
        WeightsError: if they differ, with both, or if metrics.json is missing or has none.
    """
    expected = _published_sha256(file.parent / "metrics.json", mend)
    actual = hashlib.sha256(file.read_bytes()).hexdigest()
    if actual != expected:
        raise WeightsError(f"{file}: sha256 is {actual}, but {expected} was published: {mend}")


def _published_sha256(metrics: Path, mend: str) -> str:
    try:
        sha256 = json.loads(metrics.read_text(encoding="utf-8"))["sha256"]
        if isinstance(sha256, str):
            return sha256
        raise TypeError(f"sha256 is {sha256!r:.100}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{metrics}: cannot read the sha256 of the weights ({error!r}): {mend}") from None
