"""Where the bundled weights are, and whether they are the ones that were published.

A folder ``<arch>.<tag>`` holds config.json, model.safetensors and metrics.json; metrics.json has the weights' sha256.
In a wheel the folders lie in ``gode_zoo/hub``, in a checkout in ``hub`` beside the package.
"""

import hashlib
import json
from pathlib import Path

__all__ = ["WeightsError", "find_weights", "list_weights", "verify_weights", "weights_file"]

_PACKAGE = Path(__file__).resolve().parent.parent
_CHECKOUT = _PACKAGE.parent
# Beside an installed package a folder `hub` would be somebody else's.
_ROOTS = (_PACKAGE / "hub", *((_CHECKOUT / "hub",) if (_CHECKOUT / "pyproject.toml").is_file() else ()))


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
    """``{"file": path}`` for a ``pretrained_cfg``, or nothing where the weights are not bundled."""
    for known_arch, known_tag, folder in list_weights():
        if (known_arch, known_tag) == (arch, tag):
            return {"file": str(folder / "model.safetensors")}
    return {}


def verify_weights(file: Path) -> None:
    """Compare the sha256 of bundled weights with the one in metrics.json.

    Raises:
        WeightsError: if they differ, with both, or if metrics.json is missing or has none.
    """
    metrics = file.parent / "metrics.json"
    try:
        expected = json.loads(metrics.read_text())["sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{metrics}: cannot read the sha256 of {file.name} ({error!r}); install gode_zoo anew"
        ) from None
    actual = hashlib.sha256(file.read_bytes()).hexdigest()
    if actual != expected:
        raise WeightsError(
            f"{file}: sha256 is {actual}, but {expected} was published: the file is damaged or was changed; install "
            "gode_zoo anew"
        )
