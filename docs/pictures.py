"""The pictures of the README: what a terminal shows, and report.html as a browser draws it.

    python docs/pictures.py        # writes docs/terminal_*.svg and, where chromium is installed, docs/report.png

Every command is run; what it prints is recorded from a terminal of 100 columns and drawn by Rich. The images are
scikit-learn's digits (the extra `demo`), written into a temporary folder as a user's folder of class folders.
"""

from __future__ import annotations

import io
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

from gode_zoo.demo import load_digits

HERE = Path(__file__).resolve().parent
COLUMNS = 100


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_images(Path("digits"), range(600))
        make_images(Path("new"), range(600, 606))
        (Path("new") / "broken.png").write_text("not an image")
        finetune = ["finetune", "gode_mnist_m4", "digits", "--epochs", "5", "--out", "runs/digits"]
        draw("terminal_finetune.svg", [(finetune, False)])
        draw("terminal_predict.svg", [(["predict", "runs/digits", "new", "--topk", "1"], True)])
        mistakes = [["finetune", "gode_mnist_m4", "new"], ["finetune", "gode_mnist_m4", "digits", "--lr", "fast"]]
        draw("terminal_errors.svg", [(mistake, True) for mistake in [*mistakes, ["trane"]]])
        browser = shutil.which("chromium")
        if browser:
            page = Path("runs/digits/report.html").resolve()
            flags = (
                "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
            )
            flags += " --disable-component-update --disable-sync --window-size=1000,1500"
            options = [*flags.split(), f"--user-data-dir={folder}/profile", f"--screenshot={HERE / 'report.png'}"]
            subprocess.run([browser, *options, f"file://{page}"], check=True, capture_output=True)


def make_images(folder: Path, which: range) -> None:
    """Digits as PNG files, below a folder for each class; of a few without."""
    images, labels = load_digits()
    for i in which:
        path = folder / (f"{i}.png" if len(which) < 10 else f"{labels[i]}/{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((images[i, 0] * 255.0).round().byte().numpy()).save(path)


def draw(name: str, commands: list[tuple[list[str], bool]]) -> None:
    """Run commands, on a terminal (or without one, where a progress bar would be recorded), and draw what they print."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for arguments, terminal in commands:
        console.print(Text.assemble(("$ ", "bold green"), " ".join(["gode-zoo", *arguments])))
        console.print(Text.from_ansi(run(arguments, terminal)))
    svg = console.export_svg(title="gode-zoo", unique_id=name.partition(".")[0])
    # Fonts from elsewhere are not asked for: a page that shows the picture stays without a network.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    (HERE / name).write_text(svg, encoding="utf-8")


def run(arguments: list[str], terminal: bool) -> str:
    command = [sys.executable, "-m", "gode_zoo.cli", *arguments]
    environment = os.environ | {"COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    if not terminal:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.stdout.rstrip()
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    text = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        text += part
    os.close(ours)
    process.wait()
    # A progress bar that is done moves the cursor up and deletes its line: what stays is what comes after.
    lines: list[str] = []
    for line in text.decode().replace("\r\n", "\n").split("\n"):
        if "\x1b[1A\x1b[2K" in line:
            lines.pop()
        lines.append(line.rpartition("\x1b[2K")[2])
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    main()
