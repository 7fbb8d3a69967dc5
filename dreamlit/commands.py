"""The commands beside training: prepare, plan, export and sample."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

from rich.console import Console

from dreamlit import resume
from dreamlit.datamodules.dreambooth import DreamBoothData
from dreamlit.datamodules.plan_report import PlanReport
from dreamlit.errors import CheckpointError
from dreamlit.module import DreamBooth
from dreamlit.seeds import address


def prepare(trainer: Any, model: DreamBooth, data: DreamBoothData) -> None:
    """Builds all caches and says what was encoded and what was there already."""
    data.attach(model)
    for report in data.fill_caches(trainer.strategy.root_device):
        print(report)


def plan(trainer: Any, model: DreamBooth, data: DreamBoothData, preview: str | None) -> None:
    """Prints what is seen when; no model is loaded."""
    manifest = data.manifest(model.family.stride)
    report = PlanReport(
        manifest,
        data.plan(model.family.stride),
        accumulate=trainer.accumulate_grad_batches,
        max_steps=trainer.max_steps,
        max_epochs=trainer.max_epochs,
    )
    report.print(Console(width=None if Console().is_terminal else 140))
    if preview:
        from dreamlit.datamodules.preview import write_preview

        print(f"preview: {write_preview(manifest, pathlib.Path(preview))}")


def load_checkpoint(trainer: Any, model: DreamBooth, ckpt_path: str) -> int:
    """Loads a checkpoint's trained weights into a model without running a loop; returns its step."""
    path = resume.find_checkpoint(ckpt_path, pathlib.Path(trainer.default_root_dir))
    assert path is not None
    checkpoint = resume.read_checkpoint(pathlib.Path(path))
    model.configure_model()
    resume.refuse_other_base(checkpoint, model.family.fingerprint("denoiser"), model.run_facts.get("allow_changes", []))
    model.load_state_dict(checkpoint["state_dict"])
    return checkpoint["global_step"]


def export(
    trainer: Any, model: DreamBooth, data: DreamBoothData, ckpt_path: str, output: str | None, check: bool
) -> None:
    """Writes the adapter files of a checkpoint, and with `check` proves that each loads and does the same."""
    step = load_checkpoint(trainer, model, ckpt_path)
    root = pathlib.Path(trainer.default_root_dir)
    paths = model.export(output or root, stem=f"{root.resolve().name}-step-{step:06d}")
    worst = 0.0
    for path in paths:
        print(f"adapter: {path}")
        if check:
            from dreamlit.export import check_round_trip

            difference, effect = check_round_trip(path, model.family, model.adapter)
            worst = difference if math.isnan(difference) else max(worst, difference)
            print(f"  largest difference to the live adapter: {difference:.2e}; to the base model: {effect:.2e}")
    if not worst <= 1e-4:
        raise CheckpointError(f"an exported file differs from the live adapter by {worst:.2e}")


def sample(
    trainer: Any,
    model: DreamBooth,
    prompts: str | list[str],
    adapter: str | None,
    output: str,
    count: int,
    options: dict[str, Any],
) -> None:
    """Makes images with an exported adapter file; each PNG carries its recipe, and one grid shows all."""
    from dreamlit.export import load_into_adapter
    from dreamlit.images import generate, save_grid, save_image

    root = pathlib.Path(trainer.default_root_dir)
    model.configure_model()
    path = None if adapter == "none" else pathlib.Path(adapter) if adapter else newest_adapter(root)
    if path:
        load_into_adapter(str(path), model.adapter)
        print(f"adapter: {path}")
    facts = {"base_fingerprint": model.family.fingerprint("denoiser"), "adapter": path.name if path else "none"}
    model.to(trainer.strategy.root_device)
    pipeline = model.pipeline()
    folder, images = pathlib.Path(output), []
    prompts = [prompts] if isinstance(prompts, str) else prompts
    for index, prompt in enumerate(prompts):
        for number in range(count):
            seed = address(model.seed, "sample", number) % 2**31
            image = generate(pipeline, prompt, seed, options)
            recipe = json.dumps({"prompt": prompt, "seed": seed, **facts, **options})
            save_image(image, folder / f"{index:03d}-{number:02d}.png", recipe)
            images.append(image)
    print(f"images: {save_grid(images, folder / 'grid.png', columns=count)}")


def newest_adapter(root: pathlib.Path) -> pathlib.Path:
    """The adapter that a run wrote last.

    Raises:
        CheckpointError: when the run has written none.
    """
    name = root.resolve().name
    found = [*root.glob(f"{name}*.safetensors"), *(root / "adapters").glob(f"{name}-step-*.safetensors")]
    if not found:
        raise CheckpointError(f"{root} holds no adapter file; train first, or give --adapter FILE (or --adapter none)")
    return max(found, key=lambda path: path.stat().st_mtime_ns)
