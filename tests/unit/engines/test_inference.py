"""ONNX Runtime and torch: same answers, right refusals, at batch sizes of any and of fixed kinds."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import load as load_onnx
from onnx import numpy_helper
from torch import Tensor, nn

from longhaul.engines.engine_module import EngineModule
from longhaul.engines.inference import EngineClosed, only_input
from longhaul.engines.onnxruntime_engine import OnnxRuntimeEngine
from longhaul.engines.torch_engine import TorchEngine
from longhaul.errors import IntegrityError, UserError
from longhaul.export.registry import Registry
from longhaul.workloads.base import TensorSpec


@pytest.fixture
def entry(publish_tiny, tmp_path):
    registry = Registry(str(tmp_path / "models"))
    manifest = publish_tiny(registry)
    return manifest, registry.fetch(manifest, tmp_path / "fetched")["model.onnx"]


@pytest.fixture
def onnx_engine(entry) -> OnnxRuntimeEngine:
    manifest, file = entry
    return OnnxRuntimeEngine({None: file}, manifest.signature, max_batch=4, threads=1)


class SizedModule(nn.Module):
    """As the `sized_models`; `seen` has every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(batch.clone())
        return batch.mean((1, 2, 3)), torch.full((len(batch),), float(len(batch)))


def torch_twin(file: Path) -> nn.Module:
    weights = torch.from_numpy(numpy_helper.to_array(load_onnx(file).graph.initializer[0]).copy())
    linear = nn.Linear(192, 4, bias=False)
    linear.weight.data = weights.T.contiguous()
    return nn.Sequential(nn.Flatten(), linear)


def noise(samples: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(samples).normal(size=(samples, *shape)).astype(np.float32)


def test_onnx_runtime_and_torch_agree_on_arrays_and_tensors(entry, onnx_engine) -> None:
    manifest, file = entry
    twins = [
        TorchEngine(torch_twin(file), manifest.signature, max_batch=4),
        TorchEngine(torch_twin(file), manifest.signature, max_batch=4, batches=(1, 4)),
    ]
    assert (onnx_engine.kind, onnx_engine.max_batch) == ("onnxruntime", 4)
    for samples in (1, 3, 4):
        batch = noise(samples, 3, 8, 8)
        engines = (onnx_engine, *twins)
        answers = [engine.infer(given)["logits"] for engine in engines for given in (batch, torch.from_numpy(batch))]
        for answer in answers:
            assert answer.shape == (samples, 4)
            np.testing.assert_allclose(answer, answers[0], rtol=1e-5, atol=1e-5)


def test_a_batch_in_another_memory_order_is_read_right(entry, onnx_engine) -> None:
    manifest, file = entry
    batch = noise(2, 3, 8, 8)
    for engine in (onnx_engine, TorchEngine(torch_twin(file), manifest.signature, max_batch=4)):
        expected = engine.infer(batch)["logits"]
        np.testing.assert_array_equal(engine.infer(np.asfortranarray(batch))["logits"], expected)
        np.testing.assert_array_equal(engine.infer(batch[::-1])["logits"][::-1], expected)
        np.testing.assert_array_equal(engine.infer(batch.astype(np.float64))["logits"], expected)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (5, 3, 8, 8), (1, 3, 8, 9), (3, 8, 8)])
def test_a_batch_of_another_shape_is_refused_by_name(entry, onnx_engine, shape) -> None:
    manifest, file = entry
    for engine in (onnx_engine, TorchEngine(torch_twin(file), manifest.signature, max_batch=4)):
        with pytest.raises(ValueError, match=r"image.*1\.\.4, 3, 8, 8"):
            engine.infer(np.zeros(shape, np.float32))


def test_onnx_runtime_splits_a_batch_and_pads_nothing(signature, sized_models) -> None:
    engine = OnnxRuntimeEngine(sized_models(8, 1, 4), signature, max_batch=99, threads=1)
    engine.warm_up()
    assert engine.max_batch == 8
    for samples, sizes in {1: [1], 3: [1, 1, 1], 6: [4, 4, 4, 4, 1, 1], 8: [8] * 8}.items():
        batch = noise(samples, 1, 2, 2)
        answer = engine.infer(batch)
        np.testing.assert_allclose(answer["mean"], batch.mean((1, 2, 3)), rtol=1e-5, atol=1e-6)
        assert answer["size"].tolist() == sizes
    with pytest.raises(ValueError, match=r"1\.\.8"):
        engine.infer(noise(9, 1, 2, 2))


def test_onnx_runtime_pads_what_is_less_than_its_smallest_file(signature, sized_models) -> None:
    engine = OnnxRuntimeEngine(sized_models(4), signature, max_batch=4, threads=1)
    batch = noise(3, 1, 2, 2)
    answer = engine.infer(torch.from_numpy(batch))
    np.testing.assert_allclose(answer["mean"], batch.mean((1, 2, 3)), rtol=1e-5, atol=1e-6)
    assert answer["size"].tolist() == [4, 4, 4]


def test_torch_pads_up_to_the_smallest_size_that_holds_the_batch(signature) -> None:
    module = SizedModule()
    engine = TorchEngine(module, signature, max_batch=8, batches=(8, 1, 4))
    assert engine.max_batch == 8
    for samples, size in {8: 8, 1: 1, 2: 4, 4: 4, 6: 8}.items():
        batch = noise(samples, 1, 2, 2)
        answer = engine.infer(batch)
        np.testing.assert_allclose(answer["mean"], batch.mean((1, 2, 3)), rtol=1e-5, atol=1e-6)
        assert answer["size"].tolist() == [size] * samples
    engine.warm_up()
    assert {len(batch) for batch in module.seen} == {1, 4, 8}
    assert engine.captured == ()  # there is nothing to capture on a CPU


def test_without_sizes_torch_pads_nothing(signature) -> None:
    engine = TorchEngine(SizedModule(), signature, max_batch=8)
    engine.warm_up()
    assert engine.infer(noise(6, 1, 2, 2))["size"].tolist() == [6] * 6


def test_an_answer_stays_as_it_was_when_the_next_one_is_computed(signature) -> None:
    class Echo(nn.Module):
        def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
            return batch[:, 0, 0, 0], batch[:, 0, 1, 1]  # parts of the engine's own buffer

    engine = TorchEngine(Echo(), signature, max_batch=4, batches=(4,))
    first = engine.infer(np.full((4, 1, 2, 2), 7, np.float32))
    engine.infer(np.zeros((4, 1, 2, 2), np.float32))
    assert first["mean"].tolist() == [7] * 4


def test_callers_in_many_threads_get_their_own_answers(signature, sized_models) -> None:
    engines = [
        OnnxRuntimeEngine(sized_models(1, 4), signature, max_batch=4, threads=1),
        TorchEngine(SizedModule(), signature, max_batch=4, batches=(1, 4)),
        TorchEngine(SizedModule(), signature, max_batch=4),
    ]
    started = threading.Barrier(8)

    def ask(caller: int) -> None:
        started.wait()
        for round_ in range(20):
            value = np.float32(caller * 100 + round_)
            samples = 1 + (caller + round_) % 4
            for engine in engines:
                assert engine.infer(np.full((samples, 1, 2, 2), value, np.float32))["mean"].tolist() == [value] * samples  # type: ignore[attr-defined]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))


def test_a_module_of_an_engine_takes_more_than_the_engine_does(signature, sized_models) -> None:
    module = EngineModule(OnnxRuntimeEngine(sized_models(1, 4), signature, max_batch=4, threads=1))
    batch = torch.from_numpy(noise(11, 1, 2, 2))
    mean, size = module(batch)
    torch.testing.assert_close(mean, batch.mean((1, 2, 3)))
    assert size.tolist() == [4] * 8 + [1] * 3


def test_a_module_of_an_engine_with_one_output_gives_a_tensor(onnx_engine) -> None:
    assert EngineModule(onnx_engine)(torch.zeros(5, 3, 8, 8)).shape == (5, 4)


def test_a_closed_engine_says_so(entry, onnx_engine) -> None:
    manifest, file = entry
    twin = TorchEngine(torch_twin(file), manifest.signature, max_batch=4, batches=(1, 4))
    for engine in (onnx_engine, twin):
        engine.close()
        engine.close()
        with pytest.raises(RuntimeError, match="the engine is closed"):
            engine.infer(np.zeros((1, 3, 8, 8), np.float32))
        with pytest.raises(RuntimeError, match="the engine is closed"):
            engine.warm_up()


def test_a_batch_that_has_begun_is_answered_though_the_engine_is_closed_meanwhile(signature, sized_models) -> None:
    class Closing(Tensor):
        """Closes the engine while it is being read."""

        def detach(self) -> Tensor:
            engine.close()
            return super().detach()

    engine = OnnxRuntimeEngine(sized_models(1, 4), signature, max_batch=4, threads=1)
    batch = torch.ones(3, 1, 2, 2)
    assert engine.infer(batch.as_subclass(Closing))["mean"].tolist() == [1.0] * 3
    with pytest.raises(EngineClosed):
        engine.infer(batch)


def test_the_intra_op_threads_are_those_given_and_do_not_spin(entry) -> None:
    manifest, file = entry
    engine = OnnxRuntimeEngine({None: file}, manifest.signature, max_batch=4, threads=2)
    options = engine._sessions[None].get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_file_that_is_no_model_is_named(entry) -> None:
    manifest, file = entry
    file.write_bytes(b"not a model")
    with pytest.raises(IntegrityError, match=r"model\.onnx: ONNX Runtime cannot load it"):
        OnnxRuntimeEngine({None: file}, manifest.signature, max_batch=4, threads=1)


def test_a_signature_that_the_file_does_not_keep_is_refused(entry) -> None:
    manifest, file = entry
    wrong = manifest.signature.model_copy(update={"outputs": (TensorSpec(name="boxes", dtype="float32", shape=(4,)),)})
    with pytest.raises(IntegrityError, match=r"gives \['logits'\].*\['boxes'\]"):
        OnnxRuntimeEngine({None: file}, wrong, max_batch=4, threads=1)
    wrong = manifest.signature.model_copy(update={"inputs": (TensorSpec(name="image", dtype="float32", shape=(3, 9, 8)),)})
    with pytest.raises(IntegrityError, match=r"'image' is \('batch', 3, 8, 8\).*3, 9, 8"):
        OnnxRuntimeEngine({None: file}, wrong, max_batch=4, threads=1)


def test_a_file_for_another_batch_size_than_it_is_called_is_refused(signature, sized_models) -> None:
    with pytest.raises(IntegrityError, match=r"model\.b4\.onnx: its input 'image' is \(4, 1, 2, 2\).*\(8, 1, 2, 2\)"):
        OnnxRuntimeEngine({8: sized_models(4)[4]}, signature, max_batch=8, threads=1)


def test_a_model_with_two_inputs_is_refused(signature) -> None:
    with pytest.raises(UserError, match="2 inputs"):
        only_input(signature.model_copy(update={"inputs": signature.inputs * 2}))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_tensors_and_graphs_give_what_the_cpu_gives(entry, onnx_engine) -> None:
    manifest, file = entry
    graphs = TorchEngine(torch_twin(file), manifest.signature, max_batch=4, device="cuda", batches=(1, 4))
    graphs.warm_up()
    assert graphs.captured == (1, 4)
    plain = TorchEngine(torch_twin(file), manifest.signature, max_batch=4, device="cuda", batches=(1, 4), graphs=False)
    plain.warm_up()
    assert plain.captured == ()
    for samples in (1, 3, 4):
        batch = noise(samples, 3, 8, 8)
        expected = onnx_engine.infer(batch)["logits"]
        for engine in (onnx_engine, graphs, plain):
            for given in (batch, torch.from_numpy(batch).cuda()):
                np.testing.assert_allclose(engine.infer(given)["logits"], expected, rtol=2e-2, atol=2e-2)
    graphs.close()
    plain.close()
