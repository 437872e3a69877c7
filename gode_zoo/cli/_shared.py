"""What every verb of the command line shares: the app, exit codes, errors in one line, JSON.

Exit codes, the same for every verb:
    0    done
    1    done, but a check failed or some of the files could not be used
    2    nothing done: wrong input, or an error that stopped it; one line on stderr says what, and the mend
    130  stopped by Ctrl-C

Results go to stdout, as a table or with `--json` as one JSON value; progress, log and errors go to stderr. A progress bar
is shown on a terminal alone, and colours as well (`NO_COLOR` turns them off).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

__all__ = [
    "DataDir",
    "Device",
    "Json",
    "Timeout",
    "app",
    "examples",
    "hub_app",
    "main",
    "print_coverage",
    "print_error",
    "print_json",
]

app = typer.Typer(
    name="gode-zoo",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 a check failed or some files could not be used, 2 wrong input or an error, "
    "130 stopped by Ctrl-C.\n\nShell completion: gode-zoo --install-completion",
)

hub_app = typer.Typer(help="Check the folders that are published.", no_args_is_help=True)
app.add_typer(hub_app, name="hub", rich_help_panel="Share")

Timeout = Annotated[float, typer.Option(help="Seconds for which the Hub may keep silent.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder of datasets; default GODE_ZOO_DATA and the cache.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; default CUDA where there is one.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]

# ClickException, of the click that typer has: some versions carry their own.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[2]


def main() -> None:
    """Run the command line; every error that a user can cause is one line on stderr and status 2."""
    try:
        code = app(prog_name="gode-zoo", standalone_mode=False)
    except Exception as error:
        if isinstance(error, _USAGE_ERROR):
            context: Any = getattr(error, "ctx", None)
            command = context.command_path if context else "gode-zoo"
            if message := error.format_message().rstrip("."):  # empty where a group of verbs has shown its help
                print_error(f"{message} (see {command} --help)")
        elif isinstance(error, (ValueError, RuntimeError, OSError, ImportError, MemoryError)):
            print_error(str(error) or type(error).__name__)
        else:
            raise
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


def print_error(message: str) -> None:
    """One line on stderr, red where that is a terminal."""
    one_line = " ".join(message.split())
    Console(stderr=True).print(f"[red]error:[/] {escape(one_line)}", soft_wrap=True, highlight=False)


def print_json(value: Any) -> None:
    """One JSON value on stdout; dataclasses are objects and paths are text."""

    def plain(other: Any) -> Any:
        is_object = dataclasses.is_dataclass(other) and not isinstance(other, type)
        return dataclasses.asdict(other) if is_object else str(other)

    typer.echo(json.dumps(value, default=plain, indent=2, ensure_ascii=False))


def print_coverage(rows: Iterable[Any]) -> None:
    """One line for each level of predictive intervals: how many outcomes they hold, as they are and calibrated."""
    for row in rows:
        calibrated = "too few to calibrate" if row.calibrated is None else f"calibrated {100 * row.calibrated:.1f} %"
        typer.echo(f"  {100 * row.level:.0f} %: {100 * row.plain:.1f} %, {calibrated}")


def examples(*lines: str) -> str:
    """The foot of a verb's help: its examples, each on a line of its own."""
    return "\n\n".join(("[bold]Examples[/]", *(line.replace("[", "\\[") for line in lines)))


def _version(show: bool) -> None:
    if show:
        from .. import __version__

        typer.echo(f"gode_zoo {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Neural ODEs whose weights are B-splines of time: a zoo of image classifiers to use, fine-tune and train."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("httpx", "httpx2", "timm"):  # a line for each request and each file
        logging.getLogger(name).setLevel(logging.WARNING)
