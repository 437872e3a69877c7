"""Verbs of the Hugging Face Hub: publish, download, hub check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._shared import Json, Timeout, app, examples, hub_app, print_json

PANEL = "Share"  # of the help


@app.command(
    rich_help_panel=PANEL,
    epilog=examples(
        "gode-zoo publish runs/mine --repo-id ORG/NAME --dry-run",
        "gode-zoo publish runs/mine --repo-id ORG/NAME --private",
    ),
)
def publish(
    folder: Annotated[Path, typer.Argument(help="hub/<arch>.<tag>, or the folder of a finished run.")],
    repo_id: Annotated[str, typer.Option("--repo-id", help="ORG/NAME on the Hub; it is made where there is none.")],
    private: Annotated[bool, typer.Option("--private", help="Make it private; refuse one that is public.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to, which must exist; default main.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List files, sizes and hashes; send nothing.")] = False,
    timeout: Timeout = 20.0,
    as_json: Json = False,
) -> None:
    """Publish a finished run to the Hugging Face Hub: weights, card, recipe, metrics and log, in one commit."""
    from ..hugging_face.publish import publish as push

    done = push(
        folder, repo_id, private=private, revision=revision, create_pr=create_pr, dry_run=dry_run, timeout=timeout
    )
    if as_json:
        return print_json(done)
    if dry_run:
        for file in done.files:
            typer.echo(f"{file.sha256}  {file.size:>13,}  {file.name}")
        typer.echo(f"{done.repo_id}: nothing was sent (--dry-run)")
        return
    what = "published" if done.changed else "nothing has changed since"
    names = f", tag {done.tag}" if done.tag else ""
    names += f" (moved from {done.tag_moved_from})" if done.tag_moved_from else ""
    names += f", {done.pull_request}" if done.pull_request else ""
    typer.echo(f"{done.repo_id}: {what} commit {done.commit}{names}; {len(done.files)} files verified by sha256")


@app.command(
    rich_help_panel=PANEL,
    epilog=examples(
        "gode-zoo download gode_mnist_m4.modern --to runs/mnist", "gode-zoo download ORG/NAME@v1 --timeout 60"
    ),
)
def download(
    name: Annotated[str, typer.Argument(help="arch, arch.tag, or ORG/NAME[@REVISION] on the Hub.")],
    to: Annotated[Path | None, typer.Option(help="Folder to copy it to; default the cache.")] = None,
    timeout: Timeout = 20.0,
    as_json: Json = False,
) -> None:
    """Fetch weights with their card, check them, and print the folder."""
    from ..hugging_face.download import download as fetch

    folder = fetch(name, to, timeout=timeout)
    print_json({"folder": folder}) if as_json else typer.echo(str(folder))


@hub_app.command("check", epilog=examples("gode-zoo hub check", "gode-zoo hub check runs/mine"))
def hub_check(
    hub: Annotated[
        Path | None, typer.Argument(help="Folder of <arch>.<tag>/, or one of these; default hub/ of the checkout.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that every folder of hub/ may be published: files, hashes, model, figures, card."""
    from ..hugging_face.check import check_hub

    checked = []
    for one in check_hub(hub):
        checked.append(one)
        if as_json:
            continue
        verdict = "a training under way, not checked" if one.unfinished else "not fit" if one.problems else "good"
        typer.echo("\n  ".join([f"{one.folder.name}: {verdict}", *one.problems]))
    if as_json:
        print_json([one._asdict() for one in checked])
    if any(one.problems for one in checked):
        raise typer.Exit(1)
