"""Measuring on one rank is what a direct computation over the whole split gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn import metrics as sk
from torch.nn import functional

from longhaul.recipe import parse
from longhaul.training.evaluation import Evaluator
from longhaul.training.ranks import Ranks
from longhaul.workloads.classification import Classification

RECIPE = """
name: few
model: {name: test_resnet, drop_rate: 0.5}
data: {kind: imagefolder, root: ROOT, resolution: 16, loader_workers: 0, augment: shift}
training: {steps: 1, global_batch: 4, micro_batch: 4}
validation: {batch: 7}
"""


@pytest.mark.parametrize("batch", [7, 24, 100, None], ids=str)
def test_it_equals_a_direct_computation(few_digits: Path, batch: int | None) -> None:
    """24 images in batches that do not divide them, in one batch, and in the default of twice the micro-batch."""
    recipe = parse(RECIPE, overrides=[f"data.root={few_digits}", f"validation.batch={'null' if batch is None else batch}"])
    workload = Classification(recipe)
    torch.manual_seed(0)
    model = workload.build_model()
    samples = workload.splits.validation
    result = Evaluator(recipe, workload, Ranks(0, 1, torch.device("cpu")))(model, samples)

    rows = [samples.read(i, None) for i in range(len(samples))]
    labels = torch.stack([row["label"] for row in rows])
    with torch.no_grad():
        logits = model.eval()(torch.stack([row["image"] for row in rows])).double()
    answers = logits.argmax(1)
    expected = {
        "top1": sk.accuracy_score(labels, answers),
        "top5": 1.0,
        "loss": float(functional.cross_entropy(logits, labels)),
        "precision": sk.precision_score(labels, answers, average="macro", zero_division=0, labels=sorted({*labels.tolist()})),
        "recall": sk.recall_score(labels, answers, average="macro", zero_division=0),
        "f1": sk.f1_score(labels, answers, average="macro", zero_division=0),
    }
    assert result.scalars == pytest.approx(expected, abs=1e-5)
    assert result.confusion == sk.confusion_matrix(labels, answers).tolist()
    assert result.classes == ("0", "1", "2", "3")


def test_it_leaves_weights_buffers_and_random_state_alone(few_digits: Path) -> None:
    recipe = parse(RECIPE, overrides=[f"data.root={few_digits}"])
    workload = Classification(recipe)
    model = workload.build_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    Evaluator(recipe, workload, Ranks(0, 1, torch.device("cpu")))(model, workload.splits.validation)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
