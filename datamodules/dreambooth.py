"""The LightningDataModule: from dataset entries to batches, with everything encoded before the denoiser exists."""

from __future__ import annotations

import functools
import pathlib
from fractions import Fraction
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from dreamlit.datamodules.cache import Caches, fill_latents, fill_masks, fill_texts
from dreamlit.datamodules.class_options import ClassImages
from dreamlit.datamodules.config import DatasetSpecs, check_folders
from dreamlit.datamodules.held_out import check_hold_out
from dreamlit.datamodules.loader import EvalDataset, PlanDataset, PlanLoader, collate
from dreamlit.datamodules.manifest import build_manifest, leak
from dreamlit.datamodules.plan import Plan, Stream, slice_size
from dreamlit.datamodules.ranks import refuse_other_data
from dreamlit.datamodules.samples import Manifest, refuse_dataset_folders
from dreamlit.errors import CombinationError, DataError
from dreamlit.events import warn
from dreamlit.types import Encoders, Role


class DreamBoothData(LightningDataModule):
    """Photos, captions, masks and regularisation images, cached and served in the order of the plan.

    Args:
        datasets: List of dataset entries, or the path of a JSON or YAML file with such a list; see docs/datasets.md.
        batch_size: Samples of one forward over all devices (the global batch); a multiple of the number of devices.
        class_images: Pictures of the class that the base model draws before the run, as regularisation.
        cache_dir: Where latents and text embeddings are kept, unless a dataset entry names its own folder.
        aspect_bucket_alignment: Both sides of a training image are multiples of this many pixels.
        num_workers: Processes that read batches; any number gives the same batches.
        encode_batch_size: Images or captions encoded at once while the caches are built, halved when memory runs out;
            with 1 a cached latent does not depend, to the last bit, on what else was missing.
        hold_out: Photos of each subject dataset that are never trained on and give the validation loss: a number (2),
            or a share of them (0.2). Which ones depends on the seed and the photo alone; `dreamlit plan` names them.
        eval_timesteps: Noise levels at which each evaluated image is measured, evenly spread.
        eval_seeds: Noises at each of these levels; more make the loss steadier and the evaluation as much longer.
        prompts: Prompts of which `dreamlit predict` makes an image each.
        seed: Set by `seed_everything`.
    """

    def __init__(
        self,
        datasets: DatasetSpecs,
        batch_size: int = 1,
        class_images: ClassImages | None = None,
        cache_dir: str = "cache",
        aspect_bucket_alignment: int = 64,
        num_workers: int = 0,
        encode_batch_size: int = 1,
        hold_out: int | float | None = None,
        eval_timesteps: int = 8,
        eval_seeds: int = 1,
        prompts: list[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (
            ("batch_size", batch_size),
            ("aspect_bucket_alignment", aspect_bucket_alignment),
            ("encode_batch_size", encode_batch_size),
            ("eval_timesteps", eval_timesteps),
            ("eval_seeds", eval_seeds),
        ):
            if value < 1:
                raise CombinationError(f"data.{name} is {value}; it must be at least 1")
        check_hold_out(hold_out)
        self.specs = datasets
        self.batch_size = batch_size
        self.class_images = class_images
        self.cache_dir = pathlib.Path(cache_dir)
        self.alignment = aspect_bucket_alignment
        self.num_workers = num_workers
        self.encode_batch_size = encode_batch_size
        self.hold_out = hold_out
        self.eval_timesteps = eval_timesteps
        self.eval_seeds = eval_seeds
        self.prompts = prompts or []
        self.seed = seed
        self.progress = True
        """Whether reading photos and filling caches show a bar; the command line sets it."""
        self.precision = "32-true"
        """The Trainer's, where none runs; the command line sets it."""
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer prompts than ranks is fine
        self._manifest: Manifest | None = None
        self._attached: Any = None
        self._consumed = 0
        self._loader: PlanLoader | None = None

    # what is seen -------------------------------------------------------------------------------------------------

    def manifest(self, stride: int) -> Manifest:
        """Everything usable in the datasets and why the rest is not; read once. `stride`: pixels per latent cell."""
        if self._manifest is None:
            if self.alignment % stride:
                raise CombinationError(
                    f"data.aspect_bucket_alignment is {self.alignment}; this model needs a multiple of {stride} pixels"
                )
            check_folders(self.specs)
            options = {"probe_path": self.cache_dir / "probes.jsonl", "hold_out": self.hold_out}
            self._manifest = build_manifest(
                self.all_specs(), self.alignment, self.seed, progress=self.progress, **options
            )
        return self._manifest

    @functools.cached_property
    def class_set(self) -> Any:
        """The pictures of `class_images`: where they lie and what of them is drawn."""
        return self._module.class_set(self, str(self.trainer.precision) if self.trainer else self.precision)

    def all_specs(self) -> DatasetSpecs:
        """The datasets, and those of `class_images`. Errors: `DataError` while some of these are not drawn."""
        if self.class_images is None:
            return self.specs
        return DatasetSpecs([*self.specs, *self.class_set.datasets()])

    def make_class_images(self, trainer: Any) -> None:
        """Draws what is missing of `class_images`, on the Trainer's device and in its precision."""
        if self.class_images is not None:
            self.class_set.make(trainer, self.progress)

    def plan(self, stride: int) -> Plan:
        return Plan(streams_of(self.manifest(stride)), self.batch_size, self.seed)

    @property
    def evaluates(self) -> bool:
        """Whether the configuration gives images to evaluate."""
        return bool(self.specs.evals) or self.hold_out is not None

    @property
    def epoch_batches(self) -> int:
        """Batches in an epoch of this Trainer, whole optimizer steps of it; its `limit_train_batches` counts."""
        assert self.trainer is not None
        accumulate = 1 if getattr(self.trainer, "fast_dev_run", 0) else self.trainer.accumulate_grad_batches
        return limited(self.plan(self.encoders.stride), self.trainer.limit_train_batches, accumulate)

    # Lightning's stages -------------------------------------------------------------------------------------------

    @property
    def encoders(self) -> Encoders:
        """The model family, reached through the module that trains it."""
        return self._module.family

    def attach(self, module: Any) -> None:
        """Names the module whose encoders are used, where no Trainer runs (`prepare`, `plan`)."""
        self._attached = module

    @property
    def _module(self) -> Any:
        if self._attached is not None:
            return self._attached
        if self.trainer is None or self.trainer.lightning_module is None:
            raise RuntimeError("DreamBoothData works inside a Trainer: trainer.fit(model, datamodule=data)")
        return self.trainer.lightning_module

    def prepare_data(self) -> None:
        """Encodes what the caches lack, on one process of each node; the encoders are freed before training."""
        assert self.trainer is not None
        slice_size(self.batch_size, self.trainer.world_size)
        refuse_dataset_folders(self.trainer.default_root_dir, self.specs, "trainer.default_root_dir")
        self.make_class_images(self.trainer)
        self.fill_caches(self.trainer.strategy.root_device)

    def fill_caches(self, device: Any = "cpu") -> list[Any]:
        """Encodes latents, masks and captions that are not cached yet and returns a report for each kind."""
        encoders = self.encoders
        manifest = self.manifest(encoders.stride)
        caches = self.caches(encoders, manifest)
        options: Any = {"device": device, "batch_size": self.encode_batch_size, "progress": self.progress}
        return [
            fill_latents(caches, manifest, encoders, **options),
            fill_masks(caches, manifest, self.progress),
            fill_texts(caches, manifest, encoders, seed=self.seed, **options),
        ]

    def caches(self, encoders: Encoders, manifest: Manifest) -> Caches:
        return Caches(self.cache_dir, manifest.specs, encoders)

    def setup(self, stage: str) -> None:
        encoders = self.encoders
        manifest = self.manifest(encoders.stride)
        if self.trainer is not None:
            refuse_other_data(manifest, self.trainer.strategy, self.trainer.world_size)
        self._caches = self.caches(encoders, manifest)
        self._module.run_facts["manifest_digest"] = manifest.digest()
        self.tell_roles(manifest)
        known = leak(manifest.samples, manifest.eval_samples) if stage == "fit" else None
        if known and self.trainer is not None and self.trainer.is_global_zero:
            warn(known)  # such a run would be steered by photos that it learns by heart
        if stage in ("validate", "test") and not manifest.eval_samples:
            raise DataError(
                "there is no image to evaluate; set data.hold_out, or add a dataset with dataset_type: eval whose "
                "images are never trained on"
            )

    def tell_roles(self, manifest: Manifest) -> None:
        """Tells the module whether there are regularisation samples and class prompts."""
        self._module.regularised = any(sample.role == Role.REGULARISATION for sample in manifest.samples)
        prompted = {spec.id for spec in self.specs.images if spec.class_prompt or spec.class_words}
        self._module.class_prompts = any(sample.dataset_id in prompted for sample in manifest.samples)

    def train_dataloader(self) -> PlanLoader:
        assert self.trainer is not None
        manifest, plan = self.manifest(self.encoders.stride), self.plan(self.encoders.stride)
        dataset = PlanDataset(manifest.samples, manifest.specs, self._caches, self._module.noise_source(), self.seed)
        self._loader = PlanLoader(
            dataset,
            plan,
            consumed=self._consumed,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            epoch_length=self.epoch_batches,
            num_workers=self.num_workers,
        )
        return self._loader

    def state_dict(self) -> dict[str, int]:
        """Where the run stands in its plan. Lightning restores it before it makes the loader, whatever ends the run."""
        return {"consumed": self._loader.consumed if self._loader else self._consumed}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._consumed = state_dict["consumed"]

    def _eval_loaders(self) -> list[DataLoader]:
        """The grid of the evaluation once for each pass that the module makes over it: weights, average."""
        assert self.trainer is not None
        every = self.manifest(self.encoders.stride).eval_samples
        if not every:
            return []
        mine = every[self.trainer.global_rank :: self.trainer.world_size]
        module = self._module
        grid = self.eval_timesteps, self.eval_seeds
        dataset = EvalDataset(mine or every[:1], self._caches, module.noise_source(), module.process, *grid)
        # All ranks gather what they measured, so one without an image of its own takes part with one that counts for
        # nothing.
        stacked = functools.partial(collate, weight=1.0 if mine else 0.0)
        # One image a batch: images of an evaluation set rarely share a size, and its noise levels always do.
        options = {"batch_size": self.eval_timesteps, "collate_fn": stacked, "num_workers": self.num_workers}
        return [DataLoader(dataset, **options) for _ in module.eval_passes]

    val_dataloader = _eval_loaders
    test_dataloader = _eval_loaders

    def predict_dataloader(self) -> DataLoader:
        if not self.prompts:
            raise DataError("data.prompts is empty; give the prompts to make images of")
        assert self.trainer is not None
        numbered = list(enumerate(self.prompts))[self.trainer.global_rank :: self.trainer.world_size]
        return DataLoader(numbered, batch_size=None)  # pyright: ignore[reportArgumentType]


def streams_of(manifest: Manifest) -> list[Stream]:
    """The streams of the plan: one for each dataset and bucket, rates as the dataset entries say."""
    specs = {spec.id: spec for spec in manifest.specs}
    groups: dict[tuple[str, tuple[int, int]], list[tuple[str, int]]] = {}
    for index, sample in enumerate(manifest.samples):
        groups.setdefault((sample.dataset_id, sample.bucket), []).append((sample.id, index))
    return [
        Stream(dataset_id, bucket, tuple(i for _, i in sorted(members)), len(members) * passes_of(specs[dataset_id]))
        for (dataset_id, bucket), members in groups.items()
    ]


def passes_of(spec: Any) -> Fraction:
    """How often one pass over the data shows each image of a dataset: (repeats + 1) x probability."""
    return (as_fraction(spec.repeats) + 1) * as_fraction(spec.probability)


def as_fraction(value: float) -> Fraction:
    """The decimal number that the user wrote, exactly."""
    return Fraction(repr(value))


def limited(plan: Plan, limit: int | float | None, accumulate: int) -> int:
    """An epoch's batches under the Trainer's `limit_train_batches`, a count (or 1.0: all of them).

    Raises:
        CombinationError: when the limit would cut an optimizer step of `accumulate` batches short.
    """
    length = plan.batches_per_epoch(accumulate)
    if limit is None or isinstance(limit, float):
        return length
    if limit % accumulate:
        raise CombinationError(
            f"trainer.limit_train_batches is {limit}; an epoch must hold whole optimizer steps, so it must be a "
            f"multiple of trainer.accumulate_grad_batches ({accumulate})"
        )
    return min(length, limit)
