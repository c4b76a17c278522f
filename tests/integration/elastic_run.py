"""What `test_elastic` runs: `python elastic_run.py SCENARIO ENGINE ROOT`, on a Ray cluster of two nodes of its own.

    kill      two workers -> a node is killed -> one worker -> a node is added -> two workers, in mid-epoch
    drain     two workers -> a node is about to be taken away -> a checkpoint at the notice and at the deadline -> one worker

It is a script of its own because `ray.cluster_utils` wants the main thread of a process without another Ray connection.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import torch

from longhaul.recipe import Recipe, load
from longhaul.resilience.run_directory import RunDirectory

DIGITS = Path(__file__).parents[2] / "jobs" / "recipes" / "classification" / "digits.yaml"
STEPS = 60  # of 32 samples: more than one epoch of 1,149
WAIT_S = 180.0


def recipe_of(engine: str, workers: str) -> Recipe:
    """A network without batch norm: its statistics would depend on how a batch is cut, and so on the number of workers."""
    changes = [
        "training.epochs=null", f"training.steps={STEPS}", "training.global_batch=32", "training.micro_batch=16",
        "model.name=test_vit", "data.resolution=32", "tracking.log_every=1 step", "validation.every=40 steps",
        "checkpoints.every=5 steps", "checkpoints.ephemeral='off'", "resilience.preflight=false", "resilience.poll_s=0.5",
        "training.optimizer.lr=3.0e-4",  # at ten times that, differences in rounding grow a thousandfold in sixty steps
        f"training.engine={engine}", f"scaling.workers={workers}",
    ]  # fmt: skip
    return load(DIGITS, changes)


# ---- in the workers ------------------------------------------------------------------------------------------------


def dress(root: Path, scenario: str, workload: Any, ranks: Any, run: Any) -> Any:
    """Write down which samples each loss sees; stop at step 13, once, for the node to be killed; be slow afterwards."""
    if scenario != "straight":
        _check_loading(root)
    log = (root / f"seen-{time.time_ns()}-{ranks.world_size}-{ranks.rank}.jsonl").open("w")
    loss, calls = workload.loss, 0

    def watched(model: Any, batch: Any) -> Any:
        nonlocal calls
        if model.training:
            calls += 1
            log.write(json.dumps(batch["index"].tolist()) + "\n")
            log.flush()
            _act(root, scenario, ranks, calls)
        return loss(model, batch)

    workload.loss = watched
    return workload


def _act(root: Path, scenario: str, ranks: Any, calls: int) -> None:
    struck = (root / "struck").exists()
    if scenario == "kill" and not struck and calls == 13:
        if ranks.is_first:
            (root / "ready").touch()
        time.sleep(WAIT_S)  # until it is killed
    if scenario == "drain" and not struck and calls == 13 and ranks.is_first:
        (root / "ready").touch()
    if (root / "ready").exists() and scenario == "drain" and ranks.world_size == 2:
        time.sleep(1.0)
    if scenario == "kill" and struck and ranks.world_size == 1:
        if calls == 7:
            (root / "shrunk").touch()
        time.sleep(0.2)


def _check_loading(root: Path) -> None:
    """After each load of a universal checkpoint: what the optimizer holds against what the shards of the checkpoint say."""
    from longhaul.training.engine.deepspeed_engine import DeepSpeedEngine

    real = DeepSpeedEngine.load_universal

    def load_and_compare(self: Any, universal: Path, folder: Path) -> None:
        real(self, universal, folder)
        saved, held = _whole_from_shards(folder / "engine"), _whole_from_engine(self)
        if self._ranks.is_first:
            different = [name for name in saved if not torch.equal(saved[name].view(-1), held[name].view(-1))]
            result = {"world_size": self._ranks.world_size, "tensors": len(saved), "different": different,
                      "missing": sorted(saved.keys() ^ held.keys())}  # fmt: skip
            (root / f"loaded-{time.time_ns()}.json").write_text(json.dumps(result))

    DeepSpeedEngine.load_universal = load_and_compare  # type: ignore[method-assign]


def _whole_from_shards(folder: Path) -> dict[str, torch.Tensor]:
    """Every parameter's tensors put together straight from the files, without DeepSpeed's converter."""
    files = sorted(folder.glob("*_optim_states.pt"), key=lambda file: int(file.name.split("_")[3]))
    shards = [torch.load(file, map_location="cpu", weights_only=False)["optimizer_state_dict"] for file in files]
    parts: dict[str, list[torch.Tensor]] = {}
    for rank, shard in enumerate(shards):
        stage3 = "fp32_flat_groups" in shard
        states = shard["optimizer_state_dict" if stage3 else "base_optimizer_state"]["state"]
        weights = shard["fp32_flat_groups" if stage3 else "single_partition_of_fp32_groups"]
        shapes = torch.load(next(folder.glob("*_model_states.pt")), map_location="cpu", weights_only=False)["param_shapes"]
        for group, flat in enumerate(weights):
            if stage3:
                at, where = 0, []
                for name, shape in shapes[group].items():
                    share = -(-shape.numel() // len(shards))
                    where.append((name, at, max(0, min(share, shape.numel() - rank * share))))
                    at += share
            else:
                where = [(name, part.start, part.numel) for name, part in shard["param_slice_mappings"][group].items()]
            for name, start, size in where:
                for key, value in {"fp32": flat, **states[group]}.items():
                    if key != "step":
                        parts.setdefault(f"{name}: {key}", []).append(value[start : start + size])
            parts[f"group {group}: step"] = [states[group]["step"].view(1)]
    return {name: torch.cat(pieces) for name, pieces in parts.items()}


def _whole_from_engine(engine: Any) -> dict[str, torch.Tensor]:
    """The same from the engine that has just loaded."""
    import torch.distributed as dist

    zero, whole = engine._engine.optimizer, {}
    for name, parameter in engine.module.named_parameters():
        for key in ("fp32", "exp_avg", "exp_avg_sq"):
            if hasattr(parameter, "ds_id"):
                value = parameter._z3_optimizer.get_full_hp_param(parameter, None if key == "fp32" else key).clone()
            else:
                value, where = torch.zeros(parameter.numel()), parameter._hp_mapping
                if where is not None:
                    flat = zero.single_partition_of_fp32_groups[where.param_group_index]
                    source = flat.detach() if key == "fp32" else zero.optimizer.state[flat][key]
                    at, to = where.hp_fragment_address, where.lp_fragment_address
                    value[to.start : to.start + to.numel] = source[at.start : at.start + at.numel]
                dist.all_reduce(value)
            whole[f"{name}: {key}"] = value
    for group, values in enumerate(zero.optimizer.state.values()):
        whole[f"group {group}: step"] = values["step"].view(1)
    return whole


# ---- in the driver -------------------------------------------------------------------------------------------------


def main() -> None:
    scenario, engine, root = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    import ray
    from ray.cluster_utils import Cluster

    from longhaul.training.on_ray import elastic

    elastic.RESIZE_CHECK_S = 3.0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": True, "dashboard_port": port})
    second = cluster.add_node(num_cpus=1)
    own = {"env_vars": {"RAY_ADDRESS": cluster.address}}  # another cluster may run on the machine
    ray.init(address=cluster.address, log_to_driver="-v" in sys.argv, runtime_env=own)
    try:
        if scenario == "kill" and engine == "zero1":  # the others compute the same losses: `test_training`
            train(root, "straight", engine, "2").join()
        trained = train(root, scenario, engine, "[1, 2]")
        await_file(root / "ready", trained)
        if scenario == "kill":
            cluster.remove_node(second, allow_graceful=False)
            (root / "struck").touch()
            await_file(root / "shrunk", trained)
            cluster.add_node(num_cpus=1)
        else:
            drain(cluster.address, second.node_id, 30)
            (root / "struck").touch()
        trained.join()
    finally:
        ray.shutdown()
        cluster.shutdown()


def train(root: Path, scenario: str, engine: str, workers: str) -> threading.Thread:
    """Train in a thread: the main one belongs to the cluster."""
    from longhaul.training.on_ray.launch import fit
    from longhaul.training.on_ray.ray_worker import train_worker

    recipe = recipe_of(engine, workers)
    run = RunDirectory.create(str(root), scenario, recipe)
    folder = root / f"notes-{scenario}" if scenario == "straight" else root
    folder.mkdir(exist_ok=True)
    worker = partial(train_worker, dress=partial(dress, folder, scenario))
    thread = threading.Thread(target=fit, args=(recipe, run, worker), daemon=True)
    thread.start()
    return thread


def await_file(path: Path, trained: threading.Thread) -> None:
    until = time.monotonic() + WAIT_S
    while not path.exists():
        if time.monotonic() > until or not trained.is_alive():
            raise RuntimeError(f"{path.name} did not come")
        time.sleep(0.1)


def drain(address: str, node_id: str, notice_s: int) -> None:
    """What a spot instance's notice comes to."""
    ray_command = str(Path(sys.executable).with_name("ray"))
    command = [ray_command, "drain-node", "--address", address, "--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION",
               "--reason-message", "spot", "--deadline-remaining-seconds", str(notice_s)]  # fmt: skip
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
