"""The loader: a map-style reader over the caches, in the order of the plan, that can be saved and resumed.

Every draw is a pure function of (seed, sample, visit), so worker and rank counts, prefetching and restarts change
nothing. The saved state is one number: how many batches were handed out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from dreamlit.datamodules.cache import Caches
from dreamlit.datamodules.captions import draw_caption, draw_class_prompt
from dreamlit.datamodules.config_entries import DatasetSpec, ImageDataset
from dreamlit.datamodules.plan import Draw, Plan
from dreamlit.datamodules.samples import Sample
from dreamlit.types import Batch

if TYPE_CHECKING:
    from dreamlit.types import Conditioning


class NoiseDraw(Protocol):
    """What `NoiseSource` returns; see `dreamlit.objective.Draw`."""

    t: Any
    eps: torch.Tensor
    input_eps: torch.Tensor


NoiseSource = Callable[[str, int, tuple[int, ...]], NoiseDraw]
"""(sample id, visit, latent shape) -> timestep and noise; pure."""


class Item(NamedTuple):
    """Where a sample of a batch comes from: the batch's place in the plan and the draw."""

    position: int
    draw: Draw


class PlanDataset(Dataset):
    """Reads one draw: cached latent, mask and text, with the noise and timestep that belong to the visit."""

    def __init__(
        self, samples: list[Sample], specs: Sequence[DatasetSpec], caches: Caches, noise: NoiseSource, seed: int
    ) -> None:
        self.samples = samples
        self.specs = {spec.id: spec for spec in specs if isinstance(spec, ImageDataset)}
        self.caches = caches
        self.noise = noise
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: Item) -> dict[str, Any]:
        sample, visit = self.samples[item.draw.sample], item.draw.visit
        spec, place = self.specs[sample.dataset_id], (self.seed, sample.id, visit)
        caption = draw_caption(sample.captions, spec, *place)
        of_class = draw_class_prompt(caption, spec, *place)
        latents = self.caches.latent(sample)
        noise = self.noise(sample.id, visit, tuple(latents.shape))
        return {
            "latents": latents,
            "eps": noise.eps,
            "input_eps": noise.input_eps,
            "t": noise.t,
            "conditioning": self.caches.text(caption, sample.dataset_id),
            "class": None if of_class is None else self.caches.text(of_class, sample.dataset_id),
            "mask": self.caches.mask(sample),
            "role": int(sample.role),
            "frame": frame_of(sample),
            "key": f"{sample.id}#{visit}",
            "position": item.position,
        }


def frame_of(sample: Sample) -> list[int]:
    """original (h, w), crop (top, left), target (h, w) in pixels."""
    g = sample.geometry
    return [*g.original_size, *g.crop_top_left, *g.target_size]


def collate(items: list[dict[str, Any]], weight: float = 1.0) -> Batch:
    """Stacks the items of one bucket into a `Batch`, each with the same loss weight."""
    latents = torch.stack([item["latents"] for item in items]).float()
    class_rows = [row for row, item in enumerate(items) if item.get("class") is not None]
    masks = [torch.ones(1, *latents.shape[2:]) if item["mask"] is None else item["mask"] for item in items]
    return Batch(
        latents=latents,
        eps=torch.stack([item["eps"] for item in items]),
        input_eps=torch.stack([item["input_eps"] for item in items]),
        t=torch.as_tensor([item["t"] for item in items]),
        conditioning=stacked([item["conditioning"] for item in items]),
        class_conditioning=stacked([items[row]["class"] for row in class_rows]),
        class_rows=torch.tensor(class_rows, dtype=torch.int64),
        mask=torch.stack(masks).reshape(len(items), 1, *latents.shape[2:]).float(),
        role=torch.tensor([item["role"] for item in items]),
        weight=torch.full((len(items),), weight),
        frame=torch.tensor([item["frame"] for item in items]),
        keys=[item["key"] for item in items],
        position=items[0]["position"],
    )


def stacked(conditionings: list[Conditioning]) -> Conditioning:
    """Text conditionings of one sample each as one of all; empty for none."""
    names = conditionings[0] if conditionings else ()
    return {name: torch.stack([one[name] for one in conditionings]) for name in names}


class PlanSampler:
    """Batch sampler: hands this rank's slices of the planned batches `first`, `first + 1`, ..., `last - 1`."""

    def __init__(self, plan: Plan, rank: int, world_size: int) -> None:
        self.plan = plan
        self.rank = rank
        self.world_size = world_size
        self.first = 0
        self.last = 0

    def __iter__(self) -> Iterator[list[Item]]:
        for position in range(self.first, self.last):
            yield [Item(position, draw) for draw in self.plan.slice_for(position, self.rank, self.world_size)]

    def __len__(self) -> int:
        return self.last - self.first


class PlanLoader(DataLoader):
    """A DataLoader over the plan; where it stands is `consumed`, the number of batches handed out since the run began.

    Args:
        dataset: Reads one draw.
        plan: What is seen when.
        rank: This process among `world_size`.
        world_size: Processes that share each global batch.
        epoch_length: Batches in an epoch.
        consumed: Batches that the run has had already, when it is resumed.
        num_workers: Worker processes; any number gives the same batches.
    """

    def __init__(
        self,
        dataset: PlanDataset,
        plan: Plan,
        rank: int = 0,
        world_size: int = 1,
        epoch_length: int | None = None,
        consumed: int = 0,
        num_workers: int = 0,
    ) -> None:
        self.plan_sampler = PlanSampler(plan, rank, world_size)
        self.epoch_length = epoch_length or plan.batches_per_epoch()
        self.consumed = consumed
        self.waited_s = 0.0
        """Seconds in which a batch was asked for and not there yet, workers that start included."""
        super().__init__(
            dataset,
            batch_sampler=self.plan_sampler,  # pyright: ignore[reportArgumentType]
            collate_fn=collate,
            num_workers=num_workers,
            persistent_workers=False,
        )

    def __len__(self) -> int:
        return self.epoch_length

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The rest of the epoch that `consumed` stands in; a whole one when it stands at a boundary."""
        self.plan_sampler.first = self.consumed
        self.plan_sampler.last = (self.consumed // self.epoch_length + 1) * self.epoch_length
        asked = time.perf_counter()
        for batch in super().__iter__():
            self.consumed += 1
            self.waited_s += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()


class EvalDataset(Dataset):
    """A fixed grid: every evaluation image at `timesteps` stratified noise levels, each with `seeds` fixed noises.

    Level i of T is the middle of the i-th of T equal parts of the process. Caption, crop and noise never change: the
    caption is the first one, without dropout; the noise has no input perturbation and belongs to the image, the level
    and the number of the noise, never to the run's progress. The levels of one image and noise stand together, so a
    batch of T cells is one image at every level. `process` is the model's (`dreamlit.process`).
    """

    def __init__(
        self,
        samples: list[Sample],
        caches: Caches,
        noise: NoiseSource,
        process: Any,
        timesteps: int,
        seeds: int = 1,
    ) -> None:
        self.cells = [(sample, n, i) for sample in samples for n in range(seeds) for i in range(timesteps)]
        self.caches = caches
        self.noise = noise
        self.process = process
        self.timesteps = timesteps

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample, n, i = self.cells[index]
        latents = self.caches.latent(sample)
        noise = self.noise("eval/" + sample.id, n * self.timesteps + i, tuple(latents.shape))
        return {
            "latents": latents,
            "eps": noise.eps,
            "input_eps": noise.eps,
            "t": self.process.sized(latents.shape).timestep((i + 0.5) / self.timesteps),
            "conditioning": self.caches.text(sample.captions[0], sample.dataset_id),
            "mask": self.caches.mask(sample),
            "role": int(sample.role),
            "frame": frame_of(sample),
            "key": f"{sample.id}@{i}.{n}",
            "position": 0,
        }
