"""TensorRT: what it says without a GPU or a library, and with one that it agrees with ONNX Runtime."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from longhaul.engines import cuda_graph
from longhaul.engines.onnxruntime_engine import OnnxRuntimeEngine
from longhaul.engines.tensorrt_engine import PlanNotLoadable, TensorRTEngine, _library, cuda_device
from longhaul.errors import UserError

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_tensorrt_without_a_gpu_says_so(signature, tmp_path) -> None:
    plan = tmp_path / "model.b4.rtx.plan"
    plan.write_bytes(b"")
    with pytest.raises(UserError, match=r"device cuda:0: this machine has no CUDA device.*onnxruntime"):
        TensorRTEngine({4: plan}, "tensorrt_rtx", signature, max_batch=4)


def test_a_device_that_is_no_gpu_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="device 'cpu': TensorRT runs on CUDA devices alone"):
        cuda_device("cpu")
    with pytest.raises(UserError, match="device 'gpu0': unknown"):
        cuda_device("gpu0")
    with pytest.raises(UserError, match="device cuda:99: this machine has"):
        cuda_device("cuda:99")


def test_a_library_that_is_not_installed_is_named() -> None:
    with pytest.raises(PlanNotLoadable, match="tensorrt_of_another_year cannot be imported"):
        _library("tensorrt_of_another_year")


def test_outputs_agree_but_for_rounding() -> None:
    values = torch.tensor([1.0, float("nan"), -3.0])
    assert cuda_graph.agree(values, values * (1 + 1e-5))
    assert not cuda_graph.agree(values, values * 1.01)
    assert not cuda_graph.agree(values, torch.zeros(3))
    assert cuda_graph.agree(torch.tensor([1, 2]), torch.tensor([1, 2]))
    assert not cuda_graph.agree(torch.tensor([1, 2]), torch.tensor([1, 3]))


@needs_gpu
def test_tensorrt_agrees_with_onnx_runtime_with_graphs_and_without(signature, sized_models, tmp_path) -> None:
    from longhaul.export.tensorrt_plan import build_plan

    files = sized_models(1, 4, 8)
    records = [build_plan(file, signature, tmp_path, max_batch=8, batch=size) for size, file in files.items()]
    if records[0] is None:
        pytest.skip("no TensorRT builder is installed")
    plans = {record.batch: tmp_path / record.file for record in records}
    reference = OnnxRuntimeEngine(files, signature, max_batch=8, threads=1)
    for graphs in (True, False):
        engine = TensorRTEngine(plans, records[0].builder, signature, max_batch=8, graphs=graphs)
        assert engine.max_batch == 8
        engine.warm_up()
        for samples, size in {1: 1, 3: 4, 8: 8}.items():
            batch = np.random.default_rng(samples).normal(size=(samples, 1, 2, 2)).astype(np.float32)
            for given in (batch, torch.from_numpy(batch).cuda()):
                answer = engine.infer(given)
                np.testing.assert_allclose(answer["mean"], reference.infer(batch)["mean"], rtol=2e-2, atol=2e-2)
                assert answer["size"].tolist() == [size] * samples
        engine.close()
        with pytest.raises(RuntimeError, match="the engine is closed"):
            engine.infer(batch)


@needs_gpu
def test_kernels_that_wait_for_the_host_are_not_captured_and_the_log_says_why(caplog) -> None:
    def kernels(given: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"total": given * float(given.sum())}

    stream, given = torch.cuda.Stream(), torch.zeros(4, device="cuda")
    with caplog.at_level(logging.WARNING), torch.cuda.stream(stream):
        cuda_graph.warm_up(kernels, given)
        assert cuda_graph.capture(kernels, given, stream, "a stubborn model, batch 4") is None
        assert kernels(given)["total"].shape == (4,)  # the stream goes on
        stream.synchronize()
    assert "a stubborn model, batch 4: no CUDA graph" in caplog.text


@needs_gpu
def test_a_graph_whose_replay_differs_is_not_used(caplog) -> None:
    calls = []

    def kernels(given: torch.Tensor) -> dict[str, torch.Tensor]:
        calls.append(None)
        return {"value": given + len(calls)}

    stream, given = torch.cuda.Stream(), torch.zeros(4, device="cuda")
    with caplog.at_level(logging.WARNING), torch.cuda.stream(stream):
        assert cuda_graph.capture(kernels, given, stream, "a moody model") is None
    assert "its replay gives another value" in caplog.text
