"""Weights from the Hub: fetched into huggingface_hub's cache and checked before anybody reads them.

    download("gode_mnist_m4")                       # bundled: its folder, no network
    download("ORG/NAME@v0.1.0", "my_model")         # from the Hub, copied to a folder

What comes from the Hub is checked in this order, and refused with a message at the first thing that is wrong: the names
of the files, config.json (see folder.py), the size of the weights before they are fetched, each file against the
hash that the Hub has of it, the header of the weights, and their sha256 against metrics.json. timm's own
``hf-hub:`` loading comes by here for the models of this package; see `models._classifier.create`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import timm

from ..models._pretrained import WeightsError, find_weights, hub_id, known_sha256, list_weights, verify_weights
from .access import DEFAULT_TIMEOUT, HubError, explained, is_offline, repository, with_retries
from .folder import (
    MAX_TEXT_BYTES,
    NEEDED_FILES,
    PUBLISHED_FILES,
    build_empty,
    check_names,
    check_weights,
    read_config,
    weights_limit,
)

__all__ = ["download", "fetch"]

_logger = logging.getLogger(__name__)


def download(
    name: str, to: str | Path | None = None, *, token: str | None = None, timeout: float = DEFAULT_TIMEOUT
) -> Path:
    """A weight with its card, recipe, metrics and log, as a folder.

    Args:
        name: ``arch`` or ``arch.tag``, whose bundled weights are taken where there are any, or
            ``[hf-hub:]ORG/NAME[@REVISION]``.
        to: folder to copy it to, which must not exist or be empty; None leaves it where it is, in the package or in
            huggingface_hub's cache.
        token: of the Hub, for a private repository; default HF_TOKEN or the login.
        timeout: seconds to wait for the Hub's answer about a repository or a file. While a file flows,
            HF_HUB_DOWNLOAD_TIMEOUT holds, as in all of huggingface_hub.

    Raises:
        WeightsError: no such weights, or not those that were published.
        HubError: the Hub cannot be reached, refuses, or has no such thing.
        ValueError: `to` holds something already.
    """
    target = None if to is None else Path(to)
    if target is not None and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} holds something already: nothing was downloaded; give a new or an empty folder")
    if "/" in name or name.startswith("hf-hub:"):
        repo_id, revision = repository(name)
        folder = fetch(repo_id, revision, token=token, timeout=timeout, files=PUBLISHED_FILES)
    else:
        folder = _zoo_weights(name, token, timeout)
    if target is None:
        return folder
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        beside.mkdir(parents=True)
        for file in PUBLISHED_FILES:
            if (folder / file).is_file():
                shutil.copyfile(folder / file, beside / file)
        if target.exists():
            target.rmdir()
        os.replace(beside, target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return target


def _zoo_weights(name: str, token: str | None, timeout: float) -> Path:
    """The folder of a weight of the zoo: the bundled one, else the one that GODE_ZOO_HUB_ORG has."""
    arch, _, tag = name.partition(".")
    if not tag and timm.is_model(arch):
        tag = timm.get_pretrained_cfg_value(arch, "tag") or ""
    if (arch, tag) in [(known, its_tag) for known, its_tag, _ in list_weights()]:
        folder = find_weights(arch, tag)
        verify_weights(folder / "model.safetensors")
        return folder
    repo_id = hub_id(arch, tag)
    if repo_id is None or not timm.is_model(arch):
        find_weights(arch, tag)  # says which there are
    assert repo_id is not None
    known = known_sha256(arch, tag)
    return fetch(repo_id, None, token=token, timeout=timeout, files=PUBLISHED_FILES, sha256=known)


def fetch(
    repo_id: str,
    revision: str | None = None,
    *,
    token: str | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    files: tuple[str, ...] = NEEDED_FILES,
    sha256: str | None = None,
    require_metrics: bool = True,
    cache_dir: str | Path | None = None,
) -> Path:
    """The checked files of one commit of a repository, in huggingface_hub's cache.

    With HF_HUB_OFFLINE, and where the Hub cannot be reached, the cache alone is asked.

    Args:
        revision: branch, tag or commit; None is main.
        files: which to fetch, of `PUBLISHED_FILES`; those that the repository lacks are left out, but for
            config.json and model.safetensors.
        sha256: the weights must have this one, because they are known.
        require_metrics: refuse a repository without metrics.json, which names the weights' sha256.
        cache_dir: default huggingface_hub's.

    Raises:
        WeightsError: what is there is refused.
        HubError: the Hub cannot be reached, refuses, or has no such thing.
    """
    where = f"{repo_id}@{revision}" if revision else repo_id
    remote = None
    if not is_offline():
        remote = _remote(repo_id, revision, token, timeout, cache_dir)
    if remote is None:
        folder = _cached(repo_id, revision, where, files, cache_dir)
        config = read_config(folder / "config.json", where)
        model = build_empty(config, where)
    else:
        listed = {file.rfilename: file for file in remote.siblings or ()}
        check_names(listed, where)
        wanted = [name for name in files if name in listed]

        def refuse_larger(name: str, most: int) -> None:
            if (listed[name].size or 0) > most:
                raise WeightsError(
                    f"{where}: {name} has {listed[name].size:,} bytes, and {most:,} are the most that it can have here: "
                    "it was not downloaded; do not use this repository"
                )

        def get(name: str) -> Path:
            with explained(repo_id, revision, "download"):
                return _get(repo_id, remote.sha, listed[name], token, timeout, cache_dir)

        for name in wanted:
            if name != "model.safetensors":
                refuse_larger(name, MAX_TEXT_BYTES)
        folder = get("config.json").parent
        _remember(repo_id, revision, token, timeout, cache_dir)
        config = read_config(folder / "config.json", where)
        model = build_empty(config, where)
        refuse_larger("model.safetensors", weights_limit(model))
        for name in wanted:
            get(name)
    _check_hashes(folder, where, sha256, require_metrics)
    check_weights(folder / "model.safetensors", model)
    return folder


def _remote(
    repo_id: str, revision: str | None, token: str | None, timeout: float, cache_dir: str | Path | None
) -> Any | None:
    """What the Hub says of a revision; None where it cannot be reached but the cache has it."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HTTPError

    def ask() -> Any:
        return HfApi(token=token).model_info(repo_id, revision=revision, files_metadata=True, timeout=timeout)

    with explained(repo_id, revision, "download"):
        try:
            return with_retries(f"asking for {repo_id}", ask)
        except HTTPError as error:
            unreachable = getattr(getattr(error, "response", None), "status_code", 599) >= 500
            cached = try_to_load_from_cache(repo_id, "model.safetensors", revision=revision, cache_dir=cache_dir)
            if not unreachable or not isinstance(cached, str):
                raise
            _logger.warning("%s: the Hub cannot be reached; the copy in the cache is used", repo_id)
            return None


def _get(
    repo_id: str, commit: str, listed: Any, token: str | None, timeout: float, cache_dir: str | Path | None
) -> Path:
    """One file of a commit, the same byte for byte as the Hub's hash of it says; a damaged copy is not kept."""
    from huggingface_hub import hf_hub_download

    def load() -> str:
        return hf_hub_download(
            repo_id,
            listed.rfilename,
            revision=commit,
            token=token,
            cache_dir=cache_dir,
            etag_timeout=timeout,
        )

    path = Path(with_retries(f"downloading {listed.rfilename}", load))
    content = path.read_bytes()
    if listed.lfs is not None:
        kind, expected, actual = "sha256", listed.lfs.sha256, hashlib.sha256(content).hexdigest()
    else:
        kind, expected = "git hash", listed.blob_id
        actual = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if expected and actual != expected:
        _forget(path)
        raise WeightsError(
            f"{repo_id}@{commit}: {listed.rfilename} arrived with {kind} {actual}, but the Hub has {expected}: it was "
            "damaged on the way and thrown away; run the same command again"
        )
    return path


def _remember(
    repo_id: str, revision: str | None, token: str | None, timeout: float, cache_dir: str | Path | None
) -> None:
    """Let the cache know which commit a branch or tag names, for later calls without a network."""
    from huggingface_hub import hf_hub_download

    with explained(repo_id, revision, "download"):
        hf_hub_download(
            repo_id, "config.json", revision=revision, token=token, cache_dir=cache_dir, etag_timeout=timeout
        )


def _forget(path: Path) -> None:
    """Remove a file from huggingface_hub's cache: the link in the snapshot and the blob that it leads to."""
    blob = path.resolve()
    path.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)


def _cached(
    repo_id: str, revision: str | None, where: str, files: tuple[str, ...], cache_dir: str | Path | None
) -> Path:
    from huggingface_hub import try_to_load_from_cache

    found = {name: try_to_load_from_cache(repo_id, name, revision=revision, cache_dir=cache_dir) for name in files}
    for name in ("config.json", "model.safetensors"):
        if not isinstance(found[name], str):
            raise HubError(
                f"{where}: {name} is not in huggingface_hub's cache, and HF_HUB_OFFLINE is set: unset it to download, "
                "or give a revision that was downloaded before"
            )
    return Path(str(found["config.json"])).parent


def _check_hashes(folder: Path, where: str, known: str | None, require_metrics: bool) -> None:
    """Hold the weights against the sha256 that is known of them and the one in metrics.json."""
    file = folder / "model.safetensors"
    if (folder / "metrics.json").is_file():
        verify_weights(file, f"{where}: fetch it again, or ask its author to publish it again")
    elif require_metrics:
        raise WeightsError(
            f"{where}: has no metrics.json, which names the sha256 of the weights: publish it with `gode-zoo publish`, "
            'or load it with timm.create_model("hf-hub:…") if you trust it'
        )
    if known is not None:
        actual = hashlib.sha256(file.read_bytes()).hexdigest()
        if actual != known:
            raise WeightsError(
                f"{where}: sha256 of the weights is {actual}, but {known} is known of this model: they are other "
                "weights; do not use this repository"
            )
