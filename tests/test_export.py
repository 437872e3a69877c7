"""Exported files run back with the source's answers; one that does not is refused and leaves nothing."""

import json
import sys

import onnx
import pytest
import torch

from gode_zoo import cli
from gode_zoo import export as module
from gode_zoo.export import ExportError, export


@pytest.mark.parametrize("format", module.FORMATS)
@pytest.mark.parametrize("bake", [True, False])
def test_files_run_back_with_the_same_accuracy(published, tmp_path, format, bake):
    size = {"dynamic_batch": True} if bake else {"batch_size": 4}  # 10 images: the last batch is filled up
    result = export(str(published), format, tmp_path / "file", bake=bake, **size)
    assert result.largest_difference < 1e-5
    assert result.exported == result.source and result.source.total == 10
    assert result.baked == bake and result.path.is_file()
    assert not list(tmp_path.glob(".export-*"))


def test_a_file_that_was_not_baked_keeps_its_splines_and_its_notes(published, tmp_path):
    for bake in (True, False):
        export(str(published), "torchexport", tmp_path / f"{bake}.pt2", bake=bake)
        extra = {module.NOTES_FILE: ""}
        program = torch.export.load(str(tmp_path / f"{bake}.pt2"), extra_files=extra)
        assert any("coeffs" in name for name in program.state_dict) != bake
        notes = json.loads(extra[module.NOTES_FILE])
        assert notes["baked"] == bake and notes["label_names"] == ["above", "below"]
        assert notes["mean"] == [0.0] and notes["input_size"] == [1, 28, 28]


def test_int8_has_int8_weights_and_reports_its_accuracy(published, tmp_path, monkeypatch):
    result = export(str(published), "onnx", tmp_path / "int8.onnx", int8=True, batch_size=2)
    assert 0 < result.largest_difference < 1 and result.exported.total == 10
    saved = onnx.load(result.path)
    kinds = [tensor.data_type for tensor in saved.graph.initializer if tensor.dims[1:] == [64, 3, 3]]
    assert kinds and set(kinds) == {onnx.TensorProto.INT8}
    assert json.loads(saved.metadata_props[0].value)["int8"] is True


@pytest.mark.parametrize("fault", ["wrong class", "nan"])
def test_a_file_with_other_answers_is_refused_and_leaves_nothing(published, tmp_path, monkeypatch, capsys, fault):
    load = module._RUNNERS["torchscript"]
    scale = -1.0 if fault == "wrong class" else float("nan")
    monkeypatch.setitem(module._RUNNERS, "torchscript", lambda path: lambda x: load(path)(x) * scale)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ExportError, match="of 7 images rightly, the source"):
        export(str(published), "torchscript", tmp_path / "file.ts", images=7)
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.setattr(sys, "argv", ["gode-zoo", "export", str(published), "--format", "torchscript", "--images", "7"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1 and "no file was written" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_command_writes_the_file_and_says_what_it_is(published, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gode-zoo", "export", str(published), "--format", "torchscript", "--images", "7"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
        sys.exit(0)
    text = capsys.readouterr().out
    assert not stopped.value.code
    assert (tmp_path / "gode_mnist_m4.tiny.ts").is_file() and "on 7 images" in text and "difference" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "tflite"}, "format='tflite'.*onnx, torchexport, torchscript"),
        ({"format": "torchscript", "int8": True}, "int8.*onnx alone"),
        ({"format": "onnx", "dynamic_batch": True, "batch_size": 2}, "one of the two"),
        ({"format": "onnx", "batch_size": 0}, "batch_size=0"),
        ({"format": "onnx", "images": -1}, "images=-1"),
        ({"format": "onnx", "out": "run"}, "run exists"),
        ({"format": "onnx", "out": "nowhere/x.onnx"}, "no folder nowhere"),
    ],
)
def test_wrong_arguments_are_refused(published, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        export(str(published), **arguments)
