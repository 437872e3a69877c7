"""One process a folder: a second is refused, a killed one leaves no lock, and nothing is left where nothing was done."""

import os
import signal
import subprocess
import sys

import pytest

from gode_zoo.folder_lock import FolderInUseError, locked_folder

HOLD = """
import sys, time
from pathlib import Path
from gode_zoo.folder_lock import locked_folder
with locked_folder(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_the_second_is_refused_until_the_first_is_gone_even_if_killed(tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(FolderInUseError, match=r"run: another run is at work in it.*--out"), locked_folder(folder):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with locked_folder(folder):
        (folder / "x").write_text("x")
    assert (folder / "x").exists()


def test_within_one_process_too(tmp_path):
    with locked_folder(tmp_path), pytest.raises(FolderInUseError), locked_folder(tmp_path):
        pass


def test_a_new_folder_in_which_nothing_was_done_goes_again(tmp_path):
    with pytest.raises(ValueError, match="wrong"), locked_folder(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
        raise ValueError("wrong")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    with locked_folder(tmp_path / "old"):
        pass
    assert (tmp_path / "old").is_dir()


@pytest.mark.skipif(os.name != "posix" or not hasattr(os, "setresuid"), reason="permissions")
def test_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(OSError, match=r"cannot be written to \(Not a directory\).*--out"):
        (tmp_path / "file").write_text("")
        with locked_folder(tmp_path / "file" / "run"):
            pass
    read_only = tmp_path / "read-only"
    read_only.mkdir(mode=0o555)
    before = os.geteuid()
    for path in (tmp_path, *tmp_path.parents):  # so that another user may come here, as far as we own it
        if path.stat().st_uid == before and path.stat().st_mode & 0o777 == 0o700:
            path.chmod(0o711)
    try:
        if before == 0:
            os.seteuid(65534)
        for folder in (read_only, read_only / "run"):
            with (
                pytest.raises(OSError, match=r"cannot be written to \(Permission denied\).*--out"),
                locked_folder(folder),
            ):
                pass
    finally:
        os.seteuid(before)
    assert list(read_only.iterdir()) == []
