"""Engines: same answers, right refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import load as load_onnx
from onnx import numpy_helper
from torch import nn

from longhaul.engines.inference import OnnxRuntimeEngine, TorchEngine
from longhaul.engines.tensorrt_engine import TensorRTEngine
from longhaul.errors import IntegrityError, UserError
from longhaul.serving.loading import make_engine
from longhaul.workloads.base import TensorSpec


@pytest.fixture
def entry(registry, publish_tiny, tmp_path):
    manifest = publish_tiny(registry)
    return manifest, registry.fetch(manifest, tmp_path / "fetched")


def torch_twin(file: Path) -> nn.Module:
    weights = torch.from_numpy(numpy_helper.to_array(load_onnx(file).graph.initializer[0]).copy())
    linear = nn.Linear(192, 4, bias=False)
    linear.weight.data = weights.T.contiguous()
    return nn.Sequential(nn.Flatten(), linear)


def test_onnx_runtime_and_torch_agree_on_arrays_and_tensors(entry) -> None:
    manifest, files = entry
    onnx = make_engine(manifest, files)
    reference = TorchEngine(torch_twin(files["model.onnx"]), manifest.signature, max_batch=4)
    assert onnx.kind == "onnxruntime"
    assert onnx.max_batch == 4
    for samples in (1, 3, 4):
        batch = np.random.default_rng(samples).normal(size=(samples, 3, 8, 8)).astype(np.float32)
        answers = [engine.infer(given)["logits"] for engine in (onnx, reference) for given in (batch, torch.from_numpy(batch))]
        for answer in answers:
            assert answer.shape == (samples, 4)
            np.testing.assert_allclose(answer, answers[0], rtol=1e-5, atol=1e-5)


def test_a_fortran_ordered_batch_is_read_right(entry) -> None:
    manifest, files = entry
    engine = make_engine(manifest, files)
    batch = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(engine.infer(np.asfortranarray(batch))["logits"], engine.infer(batch)["logits"])


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (5, 3, 8, 8), (1, 3, 8, 9), (3, 8, 8)])
def test_a_batch_of_another_shape_is_refused_by_name(entry, shape) -> None:
    manifest, files = entry
    engines = [make_engine(manifest, files), TorchEngine(torch_twin(files["model.onnx"]), manifest.signature, max_batch=4)]
    for engine in engines:
        with pytest.raises(ValueError, match=r"image.*1\.\.4, 3, 8, 8"):
            engine.infer(np.zeros(shape, np.float32))


def test_the_intra_op_threads_are_those_given(entry) -> None:
    manifest, files = entry
    engine = OnnxRuntimeEngine(files["model.onnx"], manifest.signature, max_batch=4, threads=2)
    assert engine._session.get_session_options().intra_op_num_threads == 2


def test_a_file_that_is_no_model_is_named(entry) -> None:
    manifest, files = entry
    files["model.onnx"].write_bytes(b"not a model")
    with pytest.raises(IntegrityError, match=r"model\.onnx: ONNX Runtime cannot load it"):
        make_engine(manifest, files)


def test_a_signature_that_the_file_does_not_keep_is_refused(entry) -> None:
    manifest, files = entry
    wrong = manifest.signature.model_copy(update={"outputs": (TensorSpec(name="boxes", dtype="float32", shape=(4,)),)})
    with pytest.raises(IntegrityError, match=r"gives \['logits'\].*\['boxes'\]"):
        OnnxRuntimeEngine(files["model.onnx"], wrong, max_batch=4, threads=1)


def test_an_unknown_engine_and_a_missing_plan_are_user_errors(entry) -> None:
    manifest, files = entry
    with pytest.raises(UserError, match="engine 'onnx': unknown"):
        make_engine(manifest, files, "onnx")
    with pytest.raises(UserError, match=r"tiny version 1: no TensorRT plan.*holds no plan"):
        make_engine(manifest, files, "tensorrt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_tensorrt_without_a_gpu_says_so(entry, tmp_path) -> None:
    plan = tmp_path / "model.rtx.plan"
    plan.write_bytes(b"")
    with pytest.raises(UserError, match=r"plan model\.rtx\.plan: this machine has no CUDA device.*onnxruntime"):
        TensorRTEngine(plan, "tensorrt_rtx", entry[0].signature, max_batch=4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensorrt_agrees_with_onnx_runtime(entry, tmp_path) -> None:
    from longhaul.export.tensorrt_plan import build_plan

    manifest, files = entry
    record = build_plan(files["model.onnx"], manifest.signature, tmp_path, max_batch=4)
    if record is None:
        pytest.skip("no TensorRT builder is installed")
    engine = TensorRTEngine(tmp_path / record.file, record.builder, manifest.signature, max_batch=4)
    engine.warm_up()
    reference = make_engine(manifest, files, "onnxruntime")
    for samples in (1, 4):
        batch = np.random.default_rng(samples).normal(size=(samples, 3, 8, 8)).astype(np.float32)
        expected = reference.infer(batch)["logits"]
        np.testing.assert_allclose(engine.infer(batch)["logits"], expected, rtol=2e-2, atol=2e-2)
        np.testing.assert_allclose(engine.infer(torch.from_numpy(batch).cuda())["logits"], expected, rtol=2e-2, atol=2e-2)
    engine.close()
