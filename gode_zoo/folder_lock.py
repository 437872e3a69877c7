"""A run's folder belongs to one process at a time.

    with locked_folder(Path("runs/mine")):
        …                                   # a second process is refused meanwhile

The lock is the operating system's, on the file `.lock` in the folder: it goes when the process ends, however it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["FolderInUseError", "locked_folder"]

_NAME = ".lock"


class FolderInUseError(RuntimeError):
    """Another process works in the folder."""


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Make the folder if need be, and keep it for this process. If nothing was put into a new one, it goes again.

    Raises:
        FolderInUseError: another process has it.
        OSError: it cannot be made or written to.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = FileLock(folder / _NAME, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise FolderInUseError(
            f"{folder}: another run is at work in it: wait until it is done, or choose another folder (--out)"
        ) from None
    except OSError as error:
        raise OSError(
            f"{folder}: cannot be written to ({error.strerror or error}): choose another folder (--out), or check its "
            "permissions"
        ) from error
    try:
        yield
    finally:
        unused = bool(made) and {path.name for path in folder.iterdir()} <= {_NAME}
        lock.release()
        if unused:
            with suppress(OSError):  # somebody else may have put something there meanwhile
                (folder / _NAME).unlink(missing_ok=True)
                for path in made:
                    path.rmdir()
