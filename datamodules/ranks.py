"""Whether all ranks of a run see the same data: each reads the datasets itself, and each trains a slice of one plan."""

from __future__ import annotations

import platform
from typing import Any

from dreamlit.datamodules.findings import some
from dreamlit.datamodules.samples import Manifest
from dreamlit.errors import DataError


def refuse_other_data(manifest: Manifest, strategy: Any, world_size: int) -> None:
    """Compares the manifests of all ranks. Every rank must call it; it ends alike on all, so that none waits.

    Args:
        manifest: This rank's.
        strategy: Lightning's, for its `broadcast`.
        world_size: The number of ranks.

    Raises:
        DataError: on every rank, when the data of one is not that of rank 0.
    """
    if world_size == 1:
        return
    mine = manifest.digest(), platform.node()
    told = [strategy.broadcast(mine, src=rank) for rank in range(world_size)]
    others = [rank for rank, (digest, _) in enumerate(told) if digest != told[0][0]]
    if not others:
        return
    facts = {*manifest.facts().items()}
    first, other = (strategy.broadcast(facts, src=rank) for rank in (0, others[0]))
    names = sorted({name for name, _ in first ^ other})
    who = some([f"{rank} on {told[rank][1]}" for rank in others])
    raise DataError(
        f"the ranks do not see the same data as rank 0 on {told[0][1]}: rank {who}. They differ in "
        f"{some(names) if names else 'the dataset entries'}. Each rank reads the datasets itself: their folders (with "
        "data.class_images also data.cache_dir) must be the same on every node and must not change while a run starts"
    )
