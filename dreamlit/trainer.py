"""The Trainer: Lightning's own, with atomic checkpoints and the commands that go with a run's configuration."""

from __future__ import annotations

import os
import pathlib
import pickle
import subprocess
import time
import zipfile
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from dreamlit.errors import CheckpointError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, and reads only plain data (`weights_only=True`)."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = pathlib.Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        except (OSError, RuntimeError) as error:
            # On a full disk torch ends with an error of its own, in whose context the disk's stands.
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            raise CheckpointError(
                f"the checkpoint {target} could not be written: {cause}; the older ones are whole"
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(pathlib.Path(path))


def read_checkpoint(path: pathlib.Path) -> dict[str, Any]:
    """A checkpoint's contents on the CPU.

    Raises:
        CheckpointError: when the file is missing, damaged, or holds more than plain data.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint (damaged, or of another program): {error}"
        ) from error
    if not isinstance(content, dict) or "dreamlit" not in content:
        raise CheckpointError(f"{path} was not written by dreamlit; an adapter file goes to model.init_from")
    return content


class Trainer(pl.Trainer):
    """Lightning's Trainer with checkpoints that are written whole or not at all."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if type(self.strategy.checkpoint_io) is TorchCheckpointIO:  # a plugin that the user chose stays
            self.strategy.checkpoint_io = AtomicCheckpointIO()
        self.may_break_off = False
        """Set by `RunCheckpoint`: whether nothing would be lost now."""

    @property
    def terminated(self) -> bool:
        """Whether SIGTERM came: the end of a job's time, or of a container."""
        return super().received_sigterm

    @property
    def received_sigterm(self) -> bool:
        """What Lightning's loops ask before they break off. A fit on one device does not before its steps are saved.

        Several devices learn of the signal at different times, and cannot save together.
        """
        return self.terminated and (self.may_break_off or self.world_size > 1 or self.state.fn != "fit")

    def end_other_ranks(self, grace_s: float = 10.0) -> None:
        """Ends the ranks that this process started: left behind, they would wait for it, holding their devices.

        Args:
            grace_s: Seconds in which they may end by themselves, so that one that failed first can say why.
        """
        deadline = time.monotonic() + grace_s
        for process in getattr(self.strategy.launcher, "procs", []):
            try:
                process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                process.kill()

    def prepare(self, model: Any, datamodule: Any) -> None:
        """Build all caches (latents, masks, text embeddings) and stop."""
        from dreamlit.commands import prepare

        prepare(self, model, datamodule)

    def plan(self, model: Any, datamodule: Any, preview: str | None = None) -> None:
        """Print what would be seen when, before any model is loaded.

        Args:
            preview: Folder to write the exact cropped and masked pictures to, with an HTML contact sheet.
        """
        from dreamlit.commands import plan

        plan(self, model, datamodule, preview)

    def export(
        self,
        model: Any,
        datamodule: Any,
        ckpt_path: str = "last",
        output: str | None = None,
        check: bool = False,
    ) -> None:
        """Write the adapter of a checkpoint as files that other tools load.

        Args:
            ckpt_path: `last`, `best` or the path of a checkpoint.
            output: Folder for the files; the run's own folder by default.
            check: Load each file in a fresh model through the consumer's own loader and print the largest difference.
        """
        from dreamlit.commands import export

        export(self, model, datamodule, ckpt_path, output, check)

    def sample(
        self,
        model: Any,
        datamodule: Any,
        prompt: str | list[str] | None = None,
        adapter: str | None = None,
        output: str = "samples",
        steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        sampler: str | None = None,
        negative_prompt: str | None = None,
        width: int | None = None,
        height: int | None = None,
        count: int | None = None,
        seed: int | None = None,
        from_recipe: str | None = None,
    ) -> None:
        """Make images with an exported adapter file, and one grid of all of them; or one image again from its recipe.

        Args:
            prompt: One or several prompts.
            adapter: Exported adapter file; the run's own by default; `ema` is its average, `none` the base model.
            output: Folder for the PNG files, each of which carries its recipe; OUTPUT-2 where it holds images already.
            steps: Sampler steps (default: 30).
            guidance_scale: Guidance (default: the model's usual one, 7.5 for SD and SDXL); 1 turns it off where it is
                classifier-free.
            guidance_rescale: From 0 (default: off) to 1: takes back the glare of strong guidance (arXiv 2305.08891).
            sampler: `ddim`, `euler`, `dpm` or `unipc`; by default the one that the model comes with.
            negative_prompt: What to steer away from.
            width: Pixels; the model's own size by default.
            height: Pixels; the model's own size by default.
            count: Images of each prompt (default: 1).
            seed: Seed of the first image of each prompt, the next ones follow; by default drawn from the run's seed.
            from_recipe: A PNG that dreamlit has made: makes it again, to the last bit on a CPU. Only `adapter` and
                `output` may stand beside it.
        """
        from dreamlit.commands import sample

        given = {"steps": steps, "guidance_scale": guidance_scale, "guidance_rescale": guidance_rescale}
        given |= {"sampler": sampler, "negative_prompt": negative_prompt, "width": width, "height": height}
        given |= {"prompt": prompt, "count": count, "seed": seed}
        sample(self, model, {k: v for k, v in given.items() if v is not None}, adapter, output, from_recipe)

    def class_images(
        self,
        model: Any,
        datamodule: Any,
        prompt: str | list[str] | None = None,
        count: int = 100,
        output: str | None = None,
        sizes: list[str] | None = None,
        encoder: str | None = None,
        near_duplicate: float | None = None,
        look_alike: float | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        sampler: str | None = None,
        negative_prompt: str | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
        dry_run: bool = False,
    ) -> None:
        """Make regularisation images with the base model, captions beside them. Called again, it goes on.

        Args:
            prompt: One or several prompts; "a photo of a {brown|black|} dog {on grass|in a room}" stands for all its
                combinations. By default that of the configuration's regularisation dataset.
            count: Images to have in the end.
            output: Folder for them; by default that of the configuration's regularisation dataset.
            sizes: Sizes such as 1024x768; by default those that the subject's photos are trained at.
            encoder: Folder or hub id of a CLIP or DINO; with it images that are nearly the same, or look like the
                subject, are rejected and others drawn in their place.
            near_duplicate: Cosine to another image above which one is rejected (default: 0.97).
            look_alike: Cosine to a photo of the subject above which one is rejected (default: that
                of the two photos that are most alike).
            steps: Sampler steps (default: 30).
            guidance_scale: Guidance (default: the model's usual one).
            guidance_rescale: From 0 (default: off) to 1: takes back the glare of strong guidance (arXiv 2305.08891).
            sampler: `ddim`, `euler`, `dpm` or `unipc`; by default the one that the model comes with.
            negative_prompt: What to steer away from.
            batch_size: Images that are drawn together (default: 4).
            seed: By default the run's; each image has its own from it.
            dry_run: Only say what would be drawn.
        """
        from dreamlit.class_images import class_images

        given = {"steps": steps, "guidance_scale": guidance_scale, "guidance_rescale": guidance_rescale}
        given |= {"sampler": sampler, "negative_prompt": negative_prompt, "batch_size": batch_size, "seed": seed}
        given |= {"prompt": prompt, "sizes": sizes, "encoder": encoder, "dry_run": dry_run}
        given |= {"near_duplicate": near_duplicate, "look_alike": look_alike}
        class_images(self, model, datamodule, count, output, {k: v for k, v in given.items() if v is not None})
