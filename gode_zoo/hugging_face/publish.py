"""Publishing: the folder of a finished run becomes one commit of a repository on the Hub.

    publish("hub/gode_mnist_m4.modern", "ORG/NAME")             # or the folder of any run, trained or fine-tuned
    publish("runs/mine", "ORG/NAME", dry_run=True).files        # what would be sent, and nothing is

All files go in one commit, on top of the head that was seen at the beginning: until it is made the head of the branch
is what it was, and after it everything is there. A run that was cut off is finished by running it again; without a
change it makes no commit. Weights are sent as safetensors alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..models._pretrained import known_sha256, list_weights
from .access import DEFAULT_TIMEOUT, HubError, bounded_requests, explained, is_offline, repository, with_retries

__all__ = ["Publication", "StagedFile", "publish"]

_MAIN = "main"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StagedFile:
    """One file as it is sent."""

    name: str
    content: bytes

    @property
    def size(self) -> int:
        return len(self.content)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class Publication:
    """What was published, or of a dry run would be.

    Attributes:
        repo_id: the repository.
        files: what it holds of this run.
        commit: of the repository, None of a dry run.
        changed: whether a commit was made; not where everything was there already.
        tag: the tag that names the commit, None where there is none: of a dry run, a pull request or a branch.
        tag_moved_from: the commit that the tag named before, where it was another one.
        pull_request: its address, where one was asked for and opened.
    """

    repo_id: str
    files: tuple[StagedFile, ...]
    commit: str | None = None
    changed: bool = False
    tag: str | None = None
    tag_moved_from: str | None = None
    pull_request: str | None = None


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    timeout: float = DEFAULT_TIMEOUT,
) -> Publication:
    """Publish the folder of a finished run, such as ``hub/<arch>.<tag>``.

    The repository is made where there is none. What arrived is fetched again and compared by sha256. A commit on main
    is tagged ``v<version of gode_zoo>``; the tag follows a later commit with the same version.

    Args:
        folder: with config.json, model.safetensors, metrics.json, recipe.yaml and train_log.csv; the card is made
            from them.
        repo_id: ``ORG/NAME``.
        private: make the repository private; refuse one that is public.
        revision: branch to commit to, which must exist; default main.
        create_pr: open a pull request against the branch instead.
        dry_run: send nothing and only say what would be sent.
        token: of the Hub, with the right to write; default HF_TOKEN or the login. It is neither printed nor written.
        timeout: seconds for which one request may keep silent.

    Raises:
        ValueError: the folder is not fit to be published, with each reason, or `repo_id` is no name.
        HubError: the Hub cannot be reached or refuses, or what arrived is not what was sent.
    """
    folder = Path(folder)
    repo_id, at = repository(repo_id)
    if at is not None:
        raise ValueError(f"repository {repo_id}@{at}: give the branch as revision={at!r} (--revision {at})")
    files = _stage(folder)
    planned = Publication(repo_id, files)
    if dry_run:
        return planned
    if is_offline():
        raise HubError(f"cannot publish {repo_id}: HF_HUB_OFFLINE is set: unset it to use the network")
    branch = revision or _MAIN
    with bounded_requests(timeout), explained(repo_id, revision, "publish"):
        head = _prepare(repo_id, branch, private, token, timeout)
        commit, pull_request = _commit(repo_id, branch, head, files, create_pr, token)
        _verify(repo_id, commit, files, token)
        tag = moved_from = None
        if branch == _MAIN and not create_pr:
            tag = f"v{_version()}"
            moved_from = _tag(repo_id, tag, commit, token)
    return replace(
        planned,
        commit=commit,
        changed=commit != head,
        tag=tag,
        tag_moved_from=moved_from,
        pull_request=pull_request,
    )


def _version() -> str:
    from .. import __version__

    return __version__


def _stage(folder: Path) -> tuple[StagedFile, ...]:
    """What is sent, read once, so that what was checked is what is hashed and sent.

    Raises:
        ValueError: the folder is not fit to be published.
    """
    from ..cards import GENERATED, card, plot_log, read_entry
    from .check import check_folder
    from .folder import PUBLISHED_FILES

    if not folder.is_dir():
        raise ValueError(f"{folder}: is no folder: give the one of a finished run, such as hub/<arch>.<tag>")
    staged = folder.resolve() in {path.resolve() for _, _, path in list_weights()}
    problems = check_folder(folder, staged=staged)
    if problems:
        raise ValueError(f"{folder} is not fit to be published, nothing was sent: {'; '.join(problems)}")
    entry = read_entry(folder)
    if known_sha256(entry.metrics["model"], entry.metrics["tag"]) == entry.metrics["sha256"]:
        entry = replace(entry, bundled=True)  # also where it was downloaded to
    if Path(entry.metrics["dataset"]).is_absolute():
        _logger.warning(
            "recipe.yaml and metrics.json name your folder %s, which readers will see", entry.metrics["dataset"]
        )
    made = {"README.md": card(entry), "train_log.svg": plot_log(entry)}
    readme = folder / "README.md"
    if readme.is_file() and GENERATED not in readme.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(
            f"{readme} was not made from metrics.json: the card is, so that it says what was measured; rename yours, "
            "nothing was sent"
        )
    files = []
    for name in PUBLISHED_FILES:
        if name in made:
            if (text := made[name]) is not None:
                files.append(StagedFile(name, text.encode()))
        else:
            files.append(StagedFile(name, (folder / name).read_bytes()))
    published = {file.name: file for file in files}
    if json.loads(published["metrics.json"].content)["sha256"] != published["model.safetensors"].sha256:
        raise ValueError(f"{folder}: was changed while it was read, nothing was sent: run the command again")
    return tuple(files)


def _prepare(repo_id: str, branch: str, private: bool, token: str | None, timeout: float) -> str:
    """The commit at the head of the branch, of a repository that is made where there is none."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi(token=token)

    def look(revision: str | None) -> Any:
        return with_retries(
            f"asking for {repo_id}", lambda: api.model_info(repo_id, revision=revision, timeout=timeout)
        )

    try:
        found = look(None)
    except RepositoryNotFoundError:
        with_retries(f"making {repo_id}", lambda: api.create_repo(repo_id, private=private or None, exist_ok=True))
        found = look(None)
    if private and not found.private:
        raise HubError(
            f"{repo_id} is public, and a private repository was asked for: nothing was sent; make it private in its "
            "settings, or give another --repo-id"
        )
    return look(branch).sha


def _commit(
    repo_id: str, branch: str, head: str, files: tuple[StagedFile, ...], create_pr: bool, token: str | None
) -> tuple[str, str | None]:
    """One commit on top of `head`; without a change there is none, and `head` comes back.

    It may be tried again without harm: a commit that was made although its answer was lost leaves nothing to change,
    and one of somebody else's is refused by the parent that no longer is the head. Not so a pull request, of which
    there would be two.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    def commit() -> Any:
        return HfApi(token=token).create_commit(
            repo_id,
            [CommitOperationAdd(file.name, file.content) for file in files],
            commit_message=f"gode_zoo {_version()}: weights, card, recipe, metrics and log",
            revision=branch,
            parent_commit=head,
            create_pr=create_pr,
        )

    info = commit() if create_pr else with_retries(f"publishing to {repo_id}", commit)
    return info.oid, info.pr_url


def _verify(repo_id: str, commit: str, files: tuple[StagedFile, ...], token: str | None) -> None:
    """Fetch what was published, past any cache, and compare it with what was sent."""
    from huggingface_hub import hf_hub_download

    with tempfile.TemporaryDirectory(prefix="gode_zoo_verify_") as cache:
        for file in files:

            def load(name: str = file.name) -> str:
                return hf_hub_download(repo_id, name, revision=commit, token=token, cache_dir=cache)

            arrived = hashlib.sha256(Path(with_retries(f"verifying {file.name}", load)).read_bytes()).hexdigest()
            if arrived != file.sha256:
                raise HubError(
                    f"{repo_id}: {file.name} arrived with sha256 {arrived}, but {file.sha256} was sent (commit {commit}): "
                    "run the same command again; if it stays so, delete the file there first"
                )


def _tag(repo_id: str, tag: str, commit: str, token: str | None) -> str | None:
    """Let `tag` name `commit`; returns the commit that it named before, if that was another."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    api = HfApi(token=token)
    refs = with_retries(f"asking for the tags of {repo_id}", lambda: api.list_repo_refs(repo_id))
    there = {ref.name: ref.target_commit for ref in refs.tags}
    if there.get(tag) == commit:
        return None
    if tag in there:
        with contextlib.suppress(RevisionNotFoundError):  # gone, and only the answer was lost
            with_retries(f"moving the tag {tag}", lambda: api.delete_tag(repo_id, tag=tag))
    with_retries(f"tagging {tag}", lambda: api.create_tag(repo_id, tag=tag, revision=commit, exist_ok=True))
    return there.get(tag)
