"""Publishing to a server over the network: what is sent, what is refused, and that no fault leaves half of it there."""

import itertools
import json
import re

import pytest
from hub_client import ROOT, Client
from hub_runs import make_run, sha256
from hub_server import TOKEN, Blob
from safetensors import safe_open

import gode_zoo
from gode_zoo.hugging_face.folder import PUBLISHED_FILES

MNIST = ROOT / "hub" / "gode_mnist_m4.modern"
VERSION = f"v{gode_zoo.__version__}"
numbers = itertools.count()


@pytest.fixture
def repo() -> str:
    """An id that no test used before."""
    return f"me/model{next(numbers)}"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "pets")


def published(hub, repo, branch="main") -> dict[str, bytes]:
    return {name: blob.content for name, blob in hub.repos[repo].head(branch).items() if name != ".gitattributes"}


def failed(reply) -> str:
    """The one line of a command that ended with status 2."""
    assert reply["value"] == 2, reply
    errors = [line for line in reply["output"].splitlines() if line.startswith("error:")]
    assert len(errors) == 1, reply["output"]
    return errors[0]


# ---------------------------------------------------------------------------------------------------------------------
# The whole way, there and back


def test_dry_run_lists_everything_and_sends_nothing(hub, client, repo):
    reply = client.cli("publish", MNIST, "--repo-id", repo, "--dry-run", HF_TOKEN=None)
    assert reply["value"] == 0 and hub.log == []
    for name in PUBLISHED_FILES:
        path = MNIST / name
        assert re.search(rf"{sha256(path)} +{path.stat().st_size:,}  {re.escape(name)}\n", reply["output"]), name


def test_there_and_back_is_bit_equal_and_as_accurate(hub, client, repo, recipe_file, tmp_path):
    """Train, publish, download, evaluate: the same weights, the same images right."""
    out = tmp_path / "run"
    assert client.cli("train", recipe_file, "--out", out)["value"] == 0
    reply = client.cli("publish", out, "--repo-id", repo)
    assert reply["value"] == 0 and f"tag {VERSION}" in reply["output"]
    assert reply["output"].count(hub.repos[repo].tags[VERSION]) == 1
    assert "checkpoint.pt" not in published(hub, repo)  # a pickle stays at home

    back = tmp_path / "back"
    assert client.cli("download", f"{repo}@{VERSION}", "--to", back)["value"] == 0
    assert {path.name for path in back.iterdir()} == set(PUBLISHED_FILES)
    assert (back / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    with safe_open(back / "model.safetensors", "pt") as tensors:
        assert tensors.metadata() == {"format": "pt"}
    code = f"""
import timm, torch, gode_zoo
from gode_zoo.evaluate import evaluate
here = timm.create_model("local-dir:{out}", pretrained=True).state_dict()
there = timm.create_model("hf-hub:{repo}", pretrained=True).state_dict()
result = evaluate("hf-hub:{repo}")
value = [here.keys() == there.keys() and all(torch.equal(here[k], there[k]) for k in here),
         result.measured.correct, result.measured.total, result.agrees]
"""
    equal, correct, total, agrees = client.run(code)["value"]
    last = json.loads((out / "metrics.json").read_text())["last"]
    assert equal and agrees and (correct, total) == (last["correct"], last["total"])
    assert client.cli("evaluate", f"hf-hub:{repo}", "--check")["value"] == 0


def test_a_weight_of_the_zoo_goes_as_it_is_staged(hub, client, repo):
    assert client.cli("publish", MNIST, "--repo-id", repo)["value"] == 0
    assert published(hub, repo) == {name: (MNIST / name).read_bytes() for name in PUBLISHED_FILES}
    assert len(hub.repos[repo].commits) == 2  # the server's first, and one of ours
    assert hub.repos[repo].head()["model.safetensors"].lfs
    code = f"""
import timm, torch, gode_zoo
here, there = (timm.create_model(n, pretrained=True) for n in ("gode_mnist_m4.modern", "hf-hub:{repo}"))
images = torch.rand(20, 1, 28, 28)
value = [torch.equal(here.eval()(images), there.eval()(images)), there.pretrained_cfg["label_names"]]
"""
    assert client.run(code)["value"] == [True, [str(digit) for digit in range(10)]]


def test_publishing_again_makes_a_commit_only_of_a_change(hub, client, repo, tmp_path):
    make_run(tmp_path / "first")
    make_run(tmp_path / "second", seed=1)
    assert client.cli("publish", tmp_path / "first", "--repo-id", repo)["value"] == 0
    first = hub.repos[repo].branches["main"]
    hub.reset()
    reply = client.cli("publish", tmp_path / "first", "--repo-id", repo)
    assert reply["value"] == 0 and "nothing has changed" in reply["output"]
    assert not {"commit", "put", "tag"} & set(hub.routes()) and hub.repos[repo].branches["main"] == first
    reply = client.cli("publish", tmp_path / "second", "--repo-id", repo)
    second = hub.repos[repo].branches["main"]
    assert reply["value"] == 0 and first != second == hub.repos[repo].tags[VERSION]
    assert f"tag {VERSION} (moved from {first})" in reply["output"]


def test_a_card_is_made_for_a_run(hub, client, repo, run_folder):
    assert not (run_folder / "README.md").exists()
    assert client.cli("publish", run_folder, "--repo-id", repo)["value"] == 0
    card = published(hub, repo)["README.md"].decode()
    assert "# stem_mnist.finetuned" in card and "pets, validation set" in card and "cat, dog" in card
    assert not (run_folder / "README.md").exists()


def test_the_token_goes_to_the_hub_and_nowhere_else(hub, client, repo, run_folder, hub_process):
    reply = client.cli("publish", run_folder, "--repo-id", repo)
    wrong = client.cli("publish", run_folder, "--repo-id", repo, HF_TOKEN="hf_wrong_token")
    assert TOKEN not in reply["output"] and "hf_wrong_token" not in wrong["output"]
    for request in hub.log:
        assert TOKEN not in request.path and TOKEN.encode() not in request.body
        assert request.route not in ("put", "storage") or request.token is None
    written = [path for path in hub_process[1].home.rglob("*") if path.is_file()]
    assert written and not [path for path in written if TOKEN.encode() in path.read_bytes()]


# ---------------------------------------------------------------------------------------------------------------------
# Who may, and where to


def test_without_and_with_a_wrong_token(hub, client, repo, run_folder):
    error = failed(client.cli("publish", run_folder, "--repo-id", repo, HF_TOKEN=None))
    assert "no token was given (HTTP 401)" in error and "hf auth login" in error
    error = failed(client.cli("publish", run_folder, "--repo-id", repo, HF_TOKEN="hf_wrong"))
    assert "the token was refused (HTTP 401)" in error
    assert repo not in hub.repos


def test_private(hub, client, repo, run_folder):
    assert client.cli("publish", run_folder, "--repo-id", repo, "--private")["value"] == 0
    assert hub.repos[repo].private
    assert client.cli("publish", run_folder, "--repo-id", repo)["value"] == 0 and hub.repos[repo].private
    hub.repos[repo].private = False
    hub.reset()
    assert "is public, and a private repository was asked for" in failed(
        client.cli("publish", run_folder, "--repo-id", repo, "--private")
    )
    assert set(hub.routes()) == {"info"}


def test_pull_request(hub, client, repo, run_folder):
    before = hub.add(repo, {"README.md": b"theirs"})
    reply = client.cli("publish", run_folder, "--repo-id", repo, "--create-pr")
    assert reply["value"] == 0 and f"{hub.endpoint}/{repo}/discussions/1" in reply["output"]
    assert hub.repos[repo].branches["main"] == before and hub.repos[repo].tags == {}
    assert "model.safetensors" in published(hub, repo, "refs/pr/1")


def test_branch(hub, client, repo, run_folder):
    main = hub.add(repo, {"README.md": b"theirs"})
    error = failed(client.cli("publish", run_folder, "--repo-id", repo, "--revision", "dev"))
    assert "no revision 'dev'" in error and f"hf repos branch create {repo}" in error
    hub.repos[repo].branches["dev"] = main
    assert client.cli("publish", run_folder, "--repo-id", repo, "--revision", "dev")["value"] == 0
    assert "model.safetensors" in published(hub, repo, "dev") and hub.repos[repo].branches["main"] == main
    assert hub.repos[repo].tags == {}


def test_somebody_elses_commit_meanwhile_is_not_overwritten(hub, client, repo, run_folder):
    hub.add(repo, {"README.md": b"theirs"})
    hub.before["commit"] = lambda: hub.repos[repo].commit({"README.md": Blob(b"theirs, newer")})
    assert "somebody else committed to it meanwhile (HTTP 412)" in failed(
        client.cli("publish", run_folder, "--repo-id", repo)
    )
    assert published(hub, repo) == {"README.md": b"theirs, newer"}
    assert client.cli("publish", run_folder, "--repo-id", repo)["value"] == 0
    assert "model.safetensors" in published(hub, repo)


def test_bad_names_and_offline(hub, client, run_folder, tmp_path_factory):
    assert "must be ORG/NAME" in failed(client.cli("publish", run_folder, "--repo-id", "one"))
    assert "must be ORG/NAME" in failed(client.cli("publish", run_folder, "--repo-id", "../../etc"))
    assert "--revision v1" in failed(client.cli("publish", run_folder, "--repo-id", "me/x@v1"))
    assert "timeout = 0" in failed(client.cli("publish", run_folder, "--repo-id", "me/x", "--timeout", 0))
    offline = "from huggingface_hub import constants; constants.HF_HUB_OFFLINE = {}"
    client.run(offline.format(True))
    assert "HF_HUB_OFFLINE is set" in failed(client.cli("publish", run_folder, "--repo-id", "me/x"))
    client.run(offline.format(False))
    assert hub.log == []


# ---------------------------------------------------------------------------------------------------------------------
# Faults on the way

STAGES = (
    *("info", "create", "validate", "preupload", "batch", "put", "verify", "commit"),
    *("resolve", "storage", "refs", "tag"),
)


@pytest.mark.parametrize("kind", ["cut", "cut_after"])
@pytest.mark.parametrize("stage", STAGES)
def test_cut_at_every_stage_leaves_all_or_nothing(hub, client, repo, run_folder, stage, kind):
    """The head of main is whole at any time, and the same command again finishes."""
    hub.objects.clear()  # so that the weights are sent
    hub.fault(stage, kind)
    reply = client.cli("publish", run_folder, "--repo-id", repo)
    if repo in hub.repos:
        assert set(published(hub, repo)) in (set(), set(PUBLISHED_FILES))
        assert len(hub.repos[repo].commits) <= 2
    assert reply["value"] == 0 or "run the same command again" in failed(reply)
    # A commit whose answer was lost is found when it is tried again.
    assert (reply["value"] == 0) == ((stage, kind) == ("commit", "cut_after"))
    hub.reset()
    assert client.cli("publish", run_folder, "--repo-id", repo)["value"] == 0
    assert set(published(hub, repo)) == set(PUBLISHED_FILES) and len(hub.repos[repo].commits) == 2
    assert hub.repos[repo].tags == {VERSION: hub.repos[repo].branches["main"]}


def test_busy_server_is_asked_again(hub, client, repo, run_folder):
    hub.objects.clear()
    for stage in STAGES:
        hub.fault(stage, 503, times=1)
    assert client.cli("publish", run_folder, "--repo-id", repo)["value"] == 0
    assert all(fault.times == 0 for fault in hub.faults.values())
    assert set(published(hub, repo)) == set(PUBLISHED_FILES)


def test_server_that_stays_busy(hub, client, repo, run_folder):
    hub.fault("commit", 503)
    assert "the Hub answered with an error" in failed(client.cli("publish", run_folder, "--repo-id", repo))
    assert hub.routes().count("commit") == 4 and published(hub, repo) == {}


@pytest.mark.parametrize(
    ("route", "fault", "message"),
    [
        ("info", "page", "the answer is not the Hub's: check HF_ENDPOINT and proxies"),
        ("validate", "page", "the answer is not the Hub's"),
        ("validate", 400, "Invalid metadata in README.md"),
        ("commit", 403, "your token may not do that (HTTP 403)"),
    ],
)
def test_other_answers(hub, client, repo, run_folder, route, fault, message):
    hub.fault(route, fault)
    assert message in failed(client.cli("publish", run_folder, "--repo-id", repo))
    assert repo not in hub.repos or published(hub, repo) == {}


def test_slow_server(hub, client, repo, run_folder):
    hub.fault("preupload", "slow", seconds=2.0)
    assert "did not answer in time" in failed(client.cli("publish", run_folder, "--repo-id", repo, "--timeout", "0.5"))
    assert repo not in hub.repos or published(hub, repo) == {}
    hub.reset()
    assert client.cli("publish", run_folder, "--repo-id", repo)["value"] == 0


def test_pull_request_whose_answer_is_lost_is_not_asked_for_twice(hub, client, repo, run_folder):
    hub.add(repo, {"README.md": b"theirs"})
    hub.fault("commit", "cut_after")
    failed(client.cli("publish", run_folder, "--repo-id", repo, "--create-pr"))
    assert [name for name in hub.repos[repo].branches if name != "main"] == ["refs/pr/1"]


def test_what_arrived_damaged_is_noticed(hub, client, repo, run_folder):
    hub.fault("storage", "flip")
    error = failed(client.cli("publish", run_folder, "--repo-id", repo))
    good = sha256(run_folder / "model.safetensors")
    assert "model.safetensors arrived with sha256" in error and good in error
    assert len(set(re.findall(r"\b[0-9a-f]{64}\b", error))) == 2


def test_process_killed_in_the_middle(hub, client, repo, run_folder, tmp_path):
    """SIGKILL while the weights flow: nothing is there, and the same command again finishes."""
    (tmp_path / "home").mkdir()
    doomed = Client(hub.endpoint, tmp_path / "home", HF_TOKEN=TOKEN)
    hub.objects.clear()
    hub.before["put"] = doomed.process.kill
    with pytest.raises((AssertionError, BrokenPipeError)):
        doomed.cli("publish", run_folder, "--repo-id", repo)
    assert doomed.process.wait() == -9 and published(hub, repo) == {}
    assert client.cli("publish", run_folder, "--repo-id", repo)["value"] == 0
    assert set(published(hub, repo)) == set(PUBLISHED_FILES) and len(hub.repos[repo].commits) == 2


# ---------------------------------------------------------------------------------------------------------------------
# What is not sent


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: flip(run / "model.safetensors"), "sha256 is"),
        (lambda run: (run / "recipe.yaml").unlink(), "recipe.yaml: is missing"),
        (lambda run: (run / "model.safetensors").rename(run / "pytorch_model.bin"), "model.safetensors: is missing"),
        (lambda run: (run / "README.md").write_text("# mine\n100 % accuracy"), "README.md was not made from metrics"),
        (lambda run: (run / "config.json").write_text("{"), "config.json is not valid JSON"),
        (lambda run: (run / "train_log.csv").write_text("epoch,step\n1\n"), "train_log.csv: has a row"),
    ],
)
def test_a_folder_that_is_not_fit_is_refused_before_anything_is_sent(hub, client, repo, tmp_path, damage, message):
    run = make_run(tmp_path / "run")
    damage(run)
    assert message in failed(client.cli("publish", run, "--repo-id", repo))
    assert hub.log == []


def test_pickles_and_reports_of_a_run_stay_at_home(hub, client, repo, tmp_path):
    run = make_run(tmp_path / "run")
    for name in ("checkpoint.pt", "pytorch_model.bin", "report.html"):
        (run / name).write_bytes(b"not to be seen")
    assert client.cli("publish", run, "--repo-id", repo)["value"] == 0
    assert set(published(hub, repo)) == set(PUBLISHED_FILES)


def test_a_link_is_not_followed(hub, client, repo, tmp_path):
    run = make_run(tmp_path / "run")
    (tmp_path / "secret").write_text((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").unlink()
    (run / "recipe.yaml").symlink_to(tmp_path / "secret")
    assert "recipe.yaml: is a link" in failed(client.cli("publish", run, "--repo-id", repo))
    assert hub.log == []
