"""The README's story of publishing, line by line, against a server of our own."""

import re
import shlex

import pytest
from hub_client import ROOT
from hub_server import TOKEN

import gode_zoo
from gode_zoo.data import DataError, load_dataset

README = (ROOT / "README.md").read_text(encoding="utf-8")
MARK = "<!-- run by tests/test_readme_hub.py -->\n```sh\n"


def has_mnist():
    try:
        return len(load_dataset("torch/mnist", "test", download=False)) == 10_000
    except DataError:
        return False


@pytest.mark.slow
def test_the_story_of_the_readme(hub, client, tmp_path, request):
    lines = README.split(MARK)[1].split("```")[0].splitlines()
    assert 5 <= len(lines) <= 12
    client.run(f"import os; os.symlink({str(ROOT / 'hub')!r}, {str(tmp_path / 'hub')!r}); os.chdir({str(tmp_path)!r})")
    request.addfinalizer(lambda: client.run(f"os.chdir({str(ROOT)!r})"))
    outputs = []
    for line in lines:
        if line.startswith("gode-zoo evaluate") and not has_mnist():
            outputs.append("agrees")  # said as skipped below
            continue
        program, *arguments = shlex.split(line.replace("ORG/NAME", "story/model"), comments=True)
        if program == "gode-zoo":
            reply = client.cli(*arguments)
            assert reply["value"] == 0, (line, reply["output"])
        else:
            assert (program, arguments[0]) == ("python", "-c")
            reply = client.run(arguments[1])
            assert reply["error"] is None, (line, reply["output"])
        outputs.append(reply["output"])
    check, dry_run, publish, download, evaluate, from_hub, from_folder, again = outputs
    assert "gode_mnist_m4.modern: good" in check and "nothing was sent" in dry_run
    assert (
        f"tag v{gode_zoo.__version__}" in publish and "7 files verified" in publish and download.strip() == "my_model"
    )
    assert "agrees" in evaluate and (from_hub, from_folder, again) == ("10\n", "10\n", "False\n")
    assert hub.repos["story/model"].private and {r.token for r in hub.log if r.route == "commit"} == {TOKEN}
    if not has_mnist():
        pytest.skip("all lines ran but `gode-zoo evaluate`, which needs MNIST (GODE_ZOO_DATA)")


def test_troubleshooting_quotes_what_timm_says():
    """test_download.py has timm's message from a process that has not imported gode_zoo."""
    assert re.search(r"RuntimeError: Unknown model \(gode_mnist_m4\)", README)
