"""One training loop for every network of the toybox: seeded by step, resumable, with a moving average and a log."""

from __future__ import annotations

import hashlib
import math
import pathlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dreamlit.errors import CheckpointError
from dreamlit.step_lines import record

Losses = dict[str, Tensor]
"""What a step gives: "loss" is minimised, the others are only logged."""


def fingerprint(network: nn.Module) -> str:
    """Of the weights alone: the same wherever they lie, and after they were saved and read again."""
    digest = hashlib.blake2b(digest_size=6)
    for key, value in network.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass
class Training:
    """How one stage is trained. `loss(rng, step)` draws its batch from that generator and from nothing else.

    made_of: what the network depends on beside its own steps, kept in the checkpoint, which no other is mixed with.
    """

    name: str
    network: nn.Module
    loss: Callable[[np.random.Generator, int], Losses]
    steps: int
    lr: float
    work: pathlib.Path
    seed: int = 0
    warmup: int = 100
    weight_decay: float = 1e-4
    ema_decay: float = 0.998
    save_every: int = 100
    bfloat16: bool = False
    device: str = "cpu"
    betas: tuple[float, float] = (0.9, 0.99)
    made_of: dict[str, Any] = field(default_factory=dict)
    _shadow: dict[str, Tensor] = field(default_factory=dict)

    def run(self) -> nn.Module:
        """Trains to the end, from where an earlier run of the same folder stopped; returns the averaged network.

        Raises:
            CheckpointError: when that run's checkpoint is made of something else.
        """
        # Channels last and bfloat16 together: 2.6 times as fast as neither on a CPU that has AMX.
        self.network.to(device=self.device).to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
        trained = [p for p in self.network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, self.lr, weight_decay=self.weight_decay, betas=self.betas)
        self._shadow = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        begin, kept = 0, self.work / f"{self.name}.pt"
        if kept.exists():
            state = torch.load(kept, map_location=self.device, weights_only=True)
            self._check(kept, state.get("made_of", {}))
            self.network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimizer"])
            self._shadow, begin = state["shadow"], state["step"]
        started, sums = time.perf_counter(), {}
        bar = tqdm(range(begin, self.steps), self.name, initial=begin, total=self.steps, mininterval=5)
        for step in bar:
            losses = self._step(step, optimizer)
            for key, value in losses.items():
                sums[key] = sums.get(key, 0.0) + float(value) / 50
            if (step + 1) % 50 == 0:
                seconds = time.perf_counter() - started
                means = {k: round(v, 5) if math.isfinite(v) else None for k, v in sums.items()}
                # Steps that were made again after an interruption replace their lines of before.
                row = {"step": step + 1, **means, "seconds": round(seconds, 1)}
                record(self.work / f"{self.name}.jsonl", row)
                bar.set_postfix({k: f"{v:.4f}" for k, v in sums.items()}, refresh=False)
                sums = {}
            if (step + 1) % self.save_every == 0 or step + 1 == self.steps:
                self._save(kept, optimizer, step + 1)
        self.network.load_state_dict(self._shadow)
        return self.network.eval()

    def _check(self, path: pathlib.Path, before: dict[str, Any]) -> None:
        """Whether what a checkpoint was made of is what would be used now; older ones do not say, and pass."""
        other = [f"{key} {before[key]}, not {now}" for key, now in self.made_of.items() if before.get(key, now) != now]
        if other:
            raise CheckpointError(
                f"{path} was made with {' and '.join(other)}: give what it was made with, give another --work, or move "
                "the file away to train this stage anew"
            )

    def _step(self, step: int, optimizer: torch.optim.Optimizer) -> Losses:
        # Constant, and down to zero over the last third: a run may be lengthened before its end begins.
        factor = min(1.0, (step + 1) / self.warmup, (self.steps - step) / (self.steps / 3))
        for group in optimizer.param_groups:
            group["lr"] = self.lr * factor
        torch.manual_seed((self.seed << 32) + step)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16):
            losses = self.loss(np.random.default_rng((self.seed, step)), step)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay = min(self.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for key, value in self.network.state_dict().items():
                if value.is_floating_point():
                    self._shadow[key].lerp_(value, 1 - decay)
                else:
                    self._shadow[key].copy_(value)
        return {key: value.detach() for key, value in losses.items()}

    def _save(self, path: pathlib.Path, optimizer: torch.optim.Optimizer, step: int) -> None:
        part = path.with_suffix(".part")
        state = {"network": self.network.state_dict(), "optimizer": optimizer.state_dict(), "shadow": self._shadow}
        torch.save({**state, "step": step, "made_of": self.made_of}, part)
        part.rename(path)
