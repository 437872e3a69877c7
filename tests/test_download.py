"""Loading from a server over the network: by name, tag and commit; what is damaged, missing or malicious is refused."""

import hashlib
import itertools
import json
import shutil
import struct

import pytest
from hub_client import ROOT, Client
from hub_runs import contents, make_run, sha256
from hub_server import TOKEN, Blob

numbers = itertools.count()
MNIST = ROOT / "hub" / "gode_mnist_m4.modern"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "pets")


@pytest.fixture
def repo() -> str:
    return f"them/model{next(numbers)}"


@pytest.fixture
def files(run_folder, repo) -> dict[str, bytes]:
    """What a good repository holds; its weights are in no cache yet."""
    found = contents(run_folder)
    config = json.loads(found["config.json"])
    config["pretrained_cfg"]["notes"] = [repo]  # other hashes than in the cache
    return found | {"config.json": json.dumps(config).encode()}


def refused(client, repo, kind="WeightsError", **env) -> str:
    """The message with which `download` and timm's own way both end; nothing of timm's is built."""
    code = f"""
import timm, gode_zoo
from gode_zoo.hugging_face.download import download
try:
    download({repo!r}); raise SystemExit("was loaded")
except Exception as error:
    ours = [type(error).__name__, str(error)]
try:
    timm.create_model("hf-hub:{repo}", pretrained=True); raise SystemExit("was loaded")
except Exception as error:
    value = [ours, [type(error).__name__, str(error)]]
"""
    reply = client.run(code, **env)
    assert reply["error"] is None, reply["error"]
    ours, timms = reply["value"]
    assert ours[0] == timms[0] == kind and ours[1] == timms[1], reply["value"]
    return ours[1]


def ours(client, call: str, **env) -> tuple[str, str]:
    """Kind and message of what `call` raises in the client."""
    reply = client.run(f"import timm, gode_zoo, gode_zoo.evaluate\nvalue = {call}", **env)
    assert reply["error"] is not None, reply
    return reply["kind"], reply["error"]


# ---------------------------------------------------------------------------------------------------------------------
# Good repositories


def test_bundled_weights_need_no_network(hub, client, tmp_path):
    assert client.cli("download", "gode_mnist_m4")["output"].strip() == str(MNIST)
    assert client.cli("download", "gode_mnist_m4.modern", "--to", tmp_path / "a")["value"] == 0
    assert sha256(tmp_path / "a" / "model.safetensors") == sha256(MNIST / "model.safetensors")
    client.run("import timm, gode_zoo; timm.create_model('gode_mnist_m4', pretrained=True)")
    assert hub.log == []
    reply = client.cli("download", "gode_mnist_m4.none")
    assert reply["value"] == 2 and "bundled are" in reply["output"]


def test_by_name_tag_and_commit(hub, client, repo, files, tmp_path):
    first = hub.add(repo, files)
    hub.repos[repo].tags["v1"] = first
    other = contents(make_run(tmp_path / "other", seed=7))
    hub.repos[repo].commit({name: Blob(content, name.endswith("safetensors")) for name, content in other.items()})
    second = hub.repos[repo].branches["main"]
    code = f"""
import timm, gode_zoo
from gode_zoo.hugging_face.download import download
import hashlib, pathlib
models = [timm.create_model("hf-hub:{repo}" + at, pretrained=True) for at in ("", "@v1", "@{first}", "@{second}")]
sums = [float(model.stem.conv1.weight.double().sum()) for model in models]
value = [sums, [hashlib.sha256(pathlib.Path(download("{repo}" + at), "model.safetensors").read_bytes()).hexdigest()
         for at in ("", "@v1", "@{first}")]]
"""
    reply = client.run(code)
    assert reply["error"] is None, reply
    sums, hashes = reply["value"]
    assert sums[0] == sums[3] != sums[1] == sums[2]
    old, new = (hashlib.sha256(found["model.safetensors"]).hexdigest() for found in (files, other))
    assert hashes == [new, old, old]


def test_label_names_and_keywords_travel(hub, client, repo):
    hub.add(repo, contents(MNIST))
    code = f"""
import timm, torch, gode_zoo
from gode_zoo.predict import predict
load = lambda **kwargs: timm.create_model("hf-hub:{repo}", pretrained=True, **kwargs)
images = torch.rand(2, 1, 28, 28)
value = [load().pretrained_cfg["label_names"], load(num_classes=5)(images).shape[1], load(in_chans=3).in_chans,
         load(solver="rk4", num_steps=3).block.solver, len(load(features_only=True)(images))]
"""
    assert client.run(code)["value"] == [[str(digit) for digit in range(10)], 5, 3, "rk4", 3]


def test_repository_that_timm_pushed_loads_through_timm(hub, client, repo, files):
    """config.json and weights alone: no metrics, so no sha256 of ours; timm's way takes it, ours says what is missing."""
    hub.add(repo, {name: files[name] for name in ("config.json", "model.safetensors")})
    code = f"import timm, gode_zoo; value = timm.create_model('hf-hub:{repo}', pretrained=True).num_classes"
    assert client.run(code)["value"] == 2
    kind, error = ours(client, f"gode_zoo.download('{repo}')")
    assert kind == "WeightsError" and "has no metrics.json, which names the sha256" in error


def test_a_folder_that_holds_something_is_left_alone(hub, client, repo, files, tmp_path):
    hub.add(repo, files)
    (tmp_path / "mine").write_text("mine")
    reply = client.cli("download", repo, "--to", tmp_path)
    assert reply["value"] == 2 and "holds something already" in reply["output"] and hub.log == []
    (tmp_path / "empty").mkdir()
    assert client.cli("download", repo, "--to", tmp_path / "empty")["value"] == 0
    assert (tmp_path / "empty" / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "mine"]


def test_unknown_model_without_the_import(hub, client, repo, files):
    """What somebody sees who has not imported gode_zoo; the README quotes it."""
    hub.add(repo, files)
    code = f"""
import subprocess, sys
script = "import timm; timm.create_model('hf-hub:{repo}', pretrained=True)"
value = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stderr.splitlines()[-1]
"""
    assert client.run(code)["value"] == "RuntimeError: Unknown model (stem_mnist)"


# ---------------------------------------------------------------------------------------------------------------------
# What is not there, or not for you


def test_missing_repository_revision_and_files(hub, client, repo, files):
    kind, error = ours(client, "gode_zoo.download('them/none')")
    assert kind == "HubError" and "knows no such repository" in error and "HTTP 404" in error
    hub.add(repo, files)
    kind, error = ours(client, f"gode_zoo.download('{repo}@v9')")
    assert kind == "HubError" and "no revision 'v9'" in error
    for name, message in (("config.json", "has no config.json"), ("model.safetensors", "has no model.safetensors")):
        hub.add(repo, {k: v for k, v in files.items() if k != name})
        kind, error = ours(client, f"gode_zoo.download('{repo}')")
        assert kind == "WeightsError" and message in error
    assert ours(client, "gode_zoo.evaluate.load_published('them/none')")[1].endswith("hf-hub:them/none")
    assert ours(client, "gode_zoo.evaluate.load_published('hf-hub:none')")[0] == "ValueError"


def test_private_without_and_with_a_wrong_token(hub, client, repo, files):
    hub.add(repo, files, private=True)
    for token in (None, "hf_wrong"):
        kind, error = ours(client, f"gode_zoo.download('{repo}')", HF_TOKEN=token)
        assert kind == "HubError" and "(HTTP 401)" in error and "hf auth login" in error and "hf_wrong" not in error
    assert client.cli("download", repo, HF_TOKEN=TOKEN)["value"] == 0


# ---------------------------------------------------------------------------------------------------------------------
# Damage and faults on the way


def test_flipped_byte_in_the_weights(hub, client, repo, tmp_path):
    """At the right size, so that huggingface_hub says nothing; and the damaged copy is not kept."""
    run = make_run(tmp_path / "run", seed=int(repo.removeprefix("them/model")) + 100)
    hub.add(repo, contents(run))
    hub.fault("storage", "flip")
    error = refused(client, repo)
    good = (run / "model.safetensors").read_bytes()
    bad = good[:-1] + bytes([good[-1] ^ 1])
    assert hashlib.sha256(good).hexdigest() in error and hashlib.sha256(bad).hexdigest() in error
    hub.reset()
    assert client.cli("download", repo)["value"] == 0


def test_flipped_byte_in_a_small_file(hub, client, repo, files):
    hub.add(repo, files)
    hub.fault("resolve", "flip")
    kind, error = ours(client, f"gode_zoo.download('{repo}')")
    assert kind == "WeightsError" and "config.json arrived with git hash" in error
    hub.reset()
    assert client.cli("download", repo)["value"] == 0


@pytest.mark.parametrize("sha", ["0" * 64, None, 7])
def test_weights_that_metrics_does_not_know(hub, client, repo, files, sha):
    """A repository that contradicts itself, or names no sha256."""
    metrics = json.loads(files["metrics.json"]) | {"sha256": sha}
    if sha is None:
        del metrics["sha256"]
    hub.add(repo, files | {"metrics.json": json.dumps(metrics).encode()})
    error = refused(client, repo)
    if isinstance(sha, str):
        assert sha in error and hashlib.sha256(files["model.safetensors"]).hexdigest() in error
    else:
        assert "cannot read the sha256" in error


@pytest.mark.parametrize("fault", ["half", "cut", 503])
def test_download_that_breaks_once_goes_on(hub, client, repo, tmp_path, fault):
    run = make_run(tmp_path / "run", seed=int(repo.removeprefix("them/model")) + 100)
    hub.add(repo, contents(run))
    for route in ("info", "storage") if fault != "half" else ("storage",):
        hub.fault(route, fault, times=1)
    reply = client.cli("download", repo, "--to", tmp_path / "got")
    assert reply["value"] == 0, reply
    assert sha256(tmp_path / "got" / "model.safetensors") == sha256(run / "model.safetensors")


@pytest.mark.parametrize(("route", "fault"), [("storage", "half"), ("storage", 503), ("info", "cut"), ("info", 503)])
def test_download_that_stays_broken(hub, client, repo, tmp_path, route, fault):
    run = make_run(tmp_path / "run", seed=int(repo.removeprefix("them/model")) + 100)
    hub.add(repo, contents(run))
    hub.fault(route, fault)
    reply = client.cli("download", repo, "--to", tmp_path / "got")
    assert reply["value"] == 2 and reply["output"].splitlines()[-1].startswith("error: cannot download")
    assert not (tmp_path / "got").exists() and not list(tmp_path.glob(".*"))


def test_slow_server(hub, client, repo, files):
    hub.add(repo, files)
    hub.fault("info", "slow", seconds=1.0)
    reply = client.cli("download", repo, "--timeout", "0.2")
    assert reply["value"] == 2 and "did not answer in time" in reply["output"] and hub.routes() == ["info"]


def test_hub_that_is_down_leaves_the_cache(hub, client, repo, files):
    hub.add(repo, files)
    assert client.cli("download", repo)["value"] == 0
    for fault in ("cut", 503):
        hub.fault("info", fault)
        assert client.cli("download", repo)["value"] == 0


def test_offline_with_and_without_a_cache(hub, client, hub_process, repo, files):
    hub.add(repo, files)
    assert client.cli("download", repo)["value"] == 0
    hub.reset()
    with Client(hub.endpoint, hub_process[1].home, HF_HUB_OFFLINE="1") as offline:
        code = f"""
import timm, gode_zoo, time
start = time.perf_counter()
value = [timm.create_model("hf-hub:{repo}", pretrained=True).num_classes, str(gode_zoo.download("{repo}"))]
"""
        reply = offline.run(code)
        assert reply["error"] is None and reply["value"][0] == 2, reply
        kind, error = ours(offline, "gode_zoo.download('them/none')")
        assert kind == "HubError" and "HF_HUB_OFFLINE is set" in error
        kind, error = ours(offline, "timm.create_model('hf-hub:them/none', pretrained=True)")
        assert kind == "LocalEntryNotFoundError"  # timm's own message: it asks for config.json before we are asked
        assert offline.cli("publish", MNIST, "--repo-id", "me/x")["value"] == 2
        # A copy in the cache that was damaged since.
        folder = reply["value"][1]
        damage = f"import pathlib; p = pathlib.Path({folder!r}, 'metrics.json'); t = p.read_text()"
        offline.run(f'{damage}; p.unlink(); p.write_text(t.replace(\'"sha256": "\', \'"sha256": "x\'))')
        kind, error = ours(offline, f"gode_zoo.download('{repo}')")
        assert kind == "WeightsError" and "sha256 is" in error
    assert hub.log == []


# ---------------------------------------------------------------------------------------------------------------------
# Malicious repositories


def header(tensors: dict, length: int | None = None, data: bytes = b"") -> bytes:
    """A safetensors file with this header, whose length is said to be `length`."""
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(*shape: int, end: int) -> dict:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [0, end]}


def config_with(files: dict[str, bytes], cfg: dict | None = None, args: dict | None = None, **top) -> bytes:
    config = json.loads(files["config.json"])
    config["pretrained_cfg"] |= cfg or {}
    config["model_args"] |= args or {}
    return json.dumps(config | top).encode()


TERA = 10**12
MALICIOUS = {
    "path up": (lambda f: {"../../.bashrc": b"evil"}, "'../../.bashrc', which would lead out"),
    "path absolute": (lambda f: {"/etc/cron.d/evil": b"evil"}, "'/etc/cron.d/evil', which would lead out"),
    "path of Windows": (lambda f: {"..\\evil.bat": b"evil"}, "which would lead out"),
    "drive": (lambda f: {"C:evil.bat": b"evil"}, "which would lead out"),
    "control characters": (lambda f: {"a\x1b[2Jb": b"evil"}, "which would lead out"),
    "other weights": (
        lambda f: {"config.json": config_with(f, {"hf_hub_filename": "evil.bin"}), "evil.bin": b"evil"},
        "hf_hub_filename",
    ),
    "other file": (lambda f: {"config.json": config_with(f, {"file": "/etc/passwd"})}, "the key 'file'"),
    "other address": (lambda f: {"config.json": config_with(f, {"url": "http://evil/"})}, "the key 'url'"),
    "code": (
        lambda f: {"config.json": config_with(f, auto_map={"AutoModel": "evil.Evil"}), "evil.py": b"raise SystemExit"},
        "the key 'auto_map'",
    ),
    "own loader": (lambda f: {"config.json": config_with(f, {"custom_load": True})}, "custom_load True"),
    "header longer than the file": (
        lambda f: {"model.safetensors": header({}, length=2**60)},
        "header is not true",
    ),
    "header of garbage": (lambda f: {"model.safetensors": header({}, data=b"")[:8] + b"}{"}, "header is not true"),
    "header that ends beyond the data": (
        lambda f: {"model.safetensors": header({"stem.conv1.weight": tensor(250, TERA, end=TERA * 1000)})},
        "header is not true",
    ),
    "another shape": (
        lambda f: {"model.safetensors": header({"stem.conv1.weight": tensor(1, end=4)}, data=b"1234")},
        "tensors are not those of the model",
    ),
    "1 TB": (
        lambda f: {"model.safetensors": Blob(header({"w": tensor(250, 10**9, end=TERA)}), True, claims=TERA)},
        "has 1,000,000,000,000 bytes",
    ),
    "1 TB of configuration": (
        lambda f: {"metrics.json": Blob(f["metrics.json"], False, claims=TERA)},
        "metrics.json has 1,000,000,000,000 bytes",
    ),
    "steps without end": (
        lambda f: {"config.json": config_with(f, args={"step_size": 1e-12}, architecture="gode_mnist_m4")},
        "at most 4096 steps",
    ),
    "splines without end": (
        lambda f: {"config.json": config_with(f, args={"num_basis": 10**9}, architecture="gode_mnist_m4")},
        "num_basis 1000000000",
    ),
    "a keyword of nobody": (
        lambda f: {"config.json": config_with(f, args={"evil": "x"})},
        "does not fit stem_mnist",
    ),
}


@pytest.mark.parametrize("what", MALICIOUS)
def test_malicious_repository_is_refused_by_ours(hub, client, repo, files, what):
    change, message = MALICIOUS[what]
    changed = files | change(files)
    weights = changed["model.safetensors"]
    if not isinstance(changed["metrics.json"], Blob):  # the sha256 is that of the evil weights: no help comes from it
        content = weights.content if isinstance(weights, Blob) else weights
        metrics = json.loads(changed["metrics.json"]) | {"sha256": hashlib.sha256(content).hexdigest()}
        changed["metrics.json"] = json.dumps(metrics).encode()
    hub.add(repo, changed)
    kind, error = ours(client, f"gode_zoo.download('{repo}')")
    assert kind == "WeightsError" and message in error and "\n" not in error
    assert "put" not in hub.routes() and len(error) < 700
    if what.startswith("1 TB"):
        assert "storage" not in hub.routes()


@pytest.mark.parametrize("what", [what for what in MALICIOUS if what != "1 TB of configuration"])
def test_malicious_repository_on_timms_own_way(hub, client, repo, files, what):
    """timm reads config.json itself; for a model of ours it comes by our checks before weights are read."""
    changed = files | MALICIOUS[what][0](files)
    del changed["metrics.json"]  # as timm's own push_to_hf_hub leaves it
    hub.add(repo, changed)
    raised, error = ours(client, f"timm.create_model('hf-hub:{repo}', pretrained=True)")
    assert raised == "WeightsError" and MALICIOUS[what][1] in error


def test_sizes_without_end_are_not_built_without_weights_either(hub, client, repo, files):
    hub.add(repo, files | MALICIOUS["splines without end"][0](files))
    kind, error = ours(client, f"timm.create_model('hf-hub:{repo}')")
    assert kind == "WeightsError" and "num_basis 1000000000" in error


def pickle_that_runs(canary) -> bytes:
    """A pickle that makes a file when it is loaded."""
    return b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."


def test_pickle_alone_is_refused_and_never_loaded(hub, client, repo, files, tmp_path):
    del files["model.safetensors"]
    hub.add(repo, files | {"pytorch_model.bin": pickle_that_runs(tmp_path / "canary")})
    error = refused(client, repo)
    assert "has no model.safetensors, only pytorch_model.bin: a pickle can run code" in error
    assert "storage" not in hub.routes() and not (tmp_path / "canary").exists()


def test_config_that_names_another_class(hub, client, repo, files, tmp_path):
    """Ours refuses what is not ours. timm's own way goes past us then: it builds the class from its own registry, reads
    a pickle with weights_only, and runs nothing of the repository's."""
    hub.add(repo, files | {"config.json": config_with(files, architecture="resnet10t")})
    kind, error = ours(client, f"gode_zoo.download('{repo}')")
    assert kind == "WeightsError" and "architecture 'resnet10t': only models of gode_zoo" in error
    kind, error = ours(client, f"timm.create_model('hf-hub:{repo}', pretrained=True)")
    assert kind not in ("WeightsError", "HubError")  # timm's own: what is in there does not fit its resnet10t

    hub.add(repo, files | {"config.json": config_with(files, architecture="os.system")})
    assert "architecture 'os.system'" in ours(client, f"gode_zoo.download('{repo}')")[1]
    kind, error = ours(client, f"timm.create_model('hf-hub:{repo}', pretrained=True)")
    assert (kind, error) == ("RuntimeError", "Unknown model (os.system)")

    plain = {"architecture": "resnet10t", "num_classes": 2, "pretrained_cfg": {"num_classes": 2}}
    evil = pickle_that_runs(tmp_path / "canary")
    hub.add(repo, {"config.json": json.dumps(plain).encode(), "pytorch_model.bin": evil})
    kind, error = ours(client, f"timm.create_model('hf-hub:{repo}', pretrained=True)")
    assert "weights_only" in error and not (tmp_path / "canary").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Weights of the zoo that are not bundled


def test_zoo_weights_from_an_organisation_of_ones_own(hub, client, tmp_path):
    """GODE_ZOO_HUB_ORG says where copies are; they must have the sha256 that the package knows."""
    shutil.copytree(ROOT / "gode_zoo", tmp_path / "gode_zoo", ignore=shutil.ignore_patterns("__pycache__"))
    known = tmp_path / "gode_zoo" / "hub" / MNIST.name
    known.mkdir(parents=True)
    shutil.copy(MNIST / "metrics.json", known)
    hub.add(f"own/{MNIST.name}", contents(MNIST))
    (tmp_path / "home").mkdir()
    settings = {"PYTHONPATH": str(tmp_path), "GODE_ZOO_HUB_ORG": "own"}
    with Client(hub.endpoint, tmp_path / "home", **settings) as stripped:
        code = "import timm, gode_zoo\nvalue = [timm.get_pretrained_cfg('gode_mnist_m4.modern').{}, {}]"
        load = "timm.create_model('gode_mnist_m4', pretrained=True).pretrained_cfg['tag']"
        reply = stripped.run(code.format("hf_hub_id", load))
        assert reply["value"] == [f"own/{MNIST.name}", "modern"], reply
        assert stripped.cli("download", "gode_mnist_m4", "--to", tmp_path / "got")["value"] == 0
        assert sha256(tmp_path / "got" / "model.safetensors") == sha256(MNIST / "model.safetensors")

        other = make_run(tmp_path / "other", model="gode_mnist_m4", tag="modern")  # not the weights that are known
        hub.add(f"own/{MNIST.name}", contents(other))
        for call in (load, "gode_zoo.download('gode_mnist_m4')"):
            kind, error = ours(stripped, call)
            assert kind == "WeightsError" and sha256(other / "model.safetensors") in error
            assert sha256(MNIST / "model.safetensors") in error
