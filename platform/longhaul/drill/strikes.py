"""How each fault that comes from outside the workers is made to strike."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from longhaul.drill.board import Board, Worker
from longhaul.drill.driver import Driver
from longhaul.drill.faults import IN_WORKER, NOTICE_S, Fault
from longhaul.drill.history import History
from longhaul.drill.nodes import Nodes, kill_process
from longhaul.drill.proxy import Mode, Proxy
from longhaul.resilience.checkpoint import CheckpointStore, Manifest
from longhaul.resilience.run_directory import RunDirectory

_OUTAGES: dict[str, tuple[Mode, float]] = {"s3-503": ("refuse", 6.0), "s3-timeout": ("hold", 8.0)}
_PATIENCE_S = 60.0

Until = Callable[[Callable[[], bool], float], bool]
"""Waits until something holds, so many seconds at most; whether it does."""


@dataclass(frozen=True)
class Strikes:
    """What strikes, and whom.

    Attributes:
        run: the run directory, reached without the proxy.
        until: waits while the drill looks on.
    """

    board: Board
    history: History
    driver: Driver
    nodes: Nodes
    proxy: Proxy
    run: RunDirectory
    until: Until

    def strike(self, fault: Fault) -> str:
        """Let a fault strike, to its end (of an outage, of a notice); returns what was done, in a few words."""
        kind = fault.kind
        if kind in IN_WORKER:
            return self._from_within(fault)
        if kind in _OUTAGES:
            return self._outage(*_OUTAGES[kind])
        if kind == "kill-driver":
            self.driver.kill()
            self.driver.start()
            return "driver killed"
        if kind in ("truncated-shard", "flipped-bit"):
            return self._damage(fault)
        worker = self._worker(fault)
        if kind == "kill-worker":
            kill_process(worker.pid)
            return f"rank {worker.rank} killed"
        try:
            if kind == "notice-0":
                self.nodes.end(worker.node)
            elif kind in NOTICE_S:
                deadline_s = self.nodes.drain(worker.node, NOTICE_S[kind])
                with self.board.slowly():
                    self.until(lambda: time.time() >= deadline_s, NOTICE_S[kind] + 1.0)
        finally:
            if self.nodes.has(worker.node):
                self.nodes.kill(worker.node)
            self.nodes.add()
        return f"node of rank {worker.rank} replaced"

    def _worker(self, fault: Fault) -> Worker:
        workers = self.history.present()
        return workers[fault.rank % len(workers)]

    def _from_within(self, fault: Fault) -> str:
        self.board.set("armed", fault)
        if not self.until(lambda: self.board.has("fired", fault), _PATIENCE_S):
            raise TimeoutError(f"{fault.kind} has found no occasion to strike")
        if fault.kind == "full-disk":
            since = len(self._failed_saves())
            line = self.history.newest
            self.until(lambda: len(self._failed_saves()) > since or self.history.newest > line, _PATIENCE_S)
            self.board.set("lifted", fault)
            real = self.board.plan().full_disk is not None
            whom = f"rank {fault.rank}: ENOSPC" if real else "rank 0: EFBIG (files limited, as this user may not mount)"
            return f"{whom}, {len(self._failed_saves()) - since} saves failed"
        return f"sample {fault.sample}" if fault.sample is not None else f"rank {fault.rank}"

    def _failed_saves(self) -> list[str]:
        return [event["message"] for event in self.run.events().to_pylist() if event["kind"] == "save_failed"]

    def _outage(self, mode: Mode, length_s: float) -> str:
        before = self.proxy.struck
        self.proxy.set(mode)
        try:
            with self.board.slowly():
                self.until(lambda: False, length_s)
        finally:
            self.proxy.set("pass")
        return f"{self.proxy.struck - before} connections struck"

    def _damage(self, fault: Fault) -> str:
        """Damage the newest checkpoint, then kill a worker."""
        while True:
            try:
                where = self._damage_newest(fault)
            except FileNotFoundError:  # retention was quicker
                continue
            kill_process(self._worker(fault).pid)
            return where

    def _damage_newest(self, fault: Fault) -> str:
        """Wait for a checkpoint to become complete, so that the next one is still far."""
        store = CheckpointStore(self.run)
        known = {entry.name for entry in store.entries()}
        self.until(lambda: any(entry.name not in known for entry in store.entries()), _PATIENCE_S)
        newest = store.entries()[-1].name
        folder = store.folder(newest)
        manifests = [entry.name for entry in folder.list() if entry.name.startswith("manifest-")]
        files = sorted({f for m in manifests for f in Manifest.model_validate_json(folder.read_bytes(m)).files})
        file = files[int(fault.chance * len(files))]
        data = bytearray(folder.read_bytes(file))
        if fault.kind == "truncated-shard":
            del data[len(data) // 2 :]
        else:
            bit = int(fault.chance * 8 * len(data))
            data[bit // 8] ^= 1 << bit % 8
        folder.write_bytes(file, bytes(data))
        return f"{newest}/{file}"
