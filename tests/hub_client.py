"""A client of the Hub in a process of its own, unmodified huggingface_hub and timm, that runs what a test sends it.

    client = Client(endpoint, home)
    client.run("value = 1 + 1")            # -> {"value": 2, "error": None, "kind": None, "output": ""}
    client.cli("download", "ORG/NAME")     # the command line, with the exit status as value

HF_ENDPOINT and HF_HOME are read when huggingface_hub is imported, hence the process; importing torch and timm takes
seconds, hence one process for many steps. In it `time.sleep` is short, so that the clients' pauses between two tries
take no time.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

LOOP = """
import contextlib, io, json, os, sys, time, traceback
patience = time.sleep
time.sleep = lambda seconds: patience(min(seconds, 0.01))
replies = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever prints past Python's streams must not get among the replies
space = {}
for line in sys.stdin:
    step = json.loads(line)
    os.environ.update({k: v for k, v in step["env"].items() if v is not None})
    for key in [k for k, v in step["env"].items() if v is None]:
        os.environ.pop(key, None)
    output, value, error, kind = io.StringIO(), None, None, None
    space["value"] = None
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            exec(step["code"], space)
            value = space["value"]
        except BaseException as raised:
            error, kind = str(raised), type(raised).__name__
            traceback.print_exc()
    try:
        json.dumps(value)
    except TypeError:
        value = repr(value)
    replies.write(json.dumps({"value": value, "error": error, "kind": kind, "output": output.getvalue()}) + "\\n")
    replies.flush()
"""

CLI = """
import sys
from gode_zoo import cli
sys.argv = ["gode-zoo", *{arguments!r}]
try:
    cli.main()
    value = 0
except SystemExit as stop:
    value = int(stop.code or 0)
"""


class Client:
    """The process; use it in a `with`."""

    def __init__(self, endpoint: str, home: Path, **env: str) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING_FACE"))}
        settings = {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "2",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            "PYTHONPATH": str(ROOT),
            "NO_PROXY": "127.0.0.1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", LOOP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=home.parent,
            env=kept | settings | env,
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def run(self, code: str, **env: str | None) -> dict:
        """Execute `code`; what it calls `value` comes back. `env` is set, or with None removed, and stays so."""
        self.process.stdin.write(json.dumps({"code": code, "env": env}) + "\n")
        self.process.stdin.flush()
        reply = self.process.stdout.readline()
        assert reply, "the client's process ended"
        return json.loads(reply)

    def cli(self, *arguments: object, **env: str | None) -> dict:
        """Run `gode-zoo` with these arguments; the value is its exit status."""
        reply = self.run(CLI.format(arguments=[str(a) for a in arguments]), **env)
        assert reply["error"] is None, reply["output"]
        assert "Traceback" not in reply["output"], reply["output"]
        return reply
