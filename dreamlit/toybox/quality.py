"""How good the toybox model is: 256 prompts whose combination it has never seen, read by the judge.

    python -m dreamlit.toybox.quality --output docs/toybox

prints a table with confidence intervals (and the judge's own accuracy on drawn scenes, which bounds it), and writes
quality.json and a sheet of samples.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
from typing import Any

from dreamlit.errors import DataError
from dreamlit.images import save_grid
from dreamlit.quiet import no_weight_bars, quieten
from dreamlit.toybox import MODEL
from dreamlit.toybox.backgrounds import PHRASES
from dreamlit.toybox.folders import writable
from dreamlit.toybox.judge import Judge
from dreamlit.toybox.making.data import truth
from dreamlit.toybox.making.networks import library
from dreamlit.toybox.scenes import HELD_OUT, draw_scene

JUDGED = ("kind", "colour", "background")


def prompts() -> list[tuple[str, dict[str, str]]]:
    """One prompt for each held-out combination, with its truth, always in the same order."""
    asked = []
    for kind, colour, background in sorted(HELD_OUT):
        article = "an" if colour[0] in "aeiou" else "a"
        words = f"a photo of {article} {colour} {kind} {PHRASES[background]}"
        asked.append((words, {"kind": kind, "colour": colour, "background": background}))
    return asked


def interval(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927)."""
    z, p = 1.959964, right / count
    middle, half = p + z * z / (2 * count), z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return (middle - half) / (1 + z * z / count), (middle + half) / (1 + z * z / count)


def sample(pipeline: Any, texts: list[str], *, seed: int = 0, steps: int = 25, guidance: float = 4.0) -> list[Any]:
    """One picture for each text, in batches; the noise of each depends on its place and the seed alone."""
    import torch
    from tqdm import tqdm

    images: list[Any] = []
    with tqdm(total=len(texts), desc="sampling", unit="image") as bar:
        for at in range(0, len(texts), 32):
            some = texts[at : at + 32]
            generators = [torch.Generator().manual_seed(seed * 100003 + at + i) for i in range(len(some))]
            images += pipeline(
                some, generator=generators, num_inference_steps=steps, guidance_scale=guidance, height=64, width=64
            ).images
            bar.update(len(some))
    return images


def base_pipeline(folder: pathlib.Path = MODEL) -> Any:
    """A model folder as a stock diffusers pipeline, in float32, without progress bars of its own."""
    import torch

    diffusers = library("diffusers")
    diffusers.utils.logging.disable_progress_bar()
    with no_weight_bars():
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def judge_accuracy(judge: Judge, count: int = 512) -> dict[str, float]:
    """Of the judge itself, on drawn scenes of the held-out combinations."""
    from PIL import Image

    scenes = [draw_scene(seed, held_out=True, size=(64, 64)) for seed in range(count)]
    answers = judge([Image.fromarray(scene.picture) for scene in scenes])
    return {
        name: sum(answer[name] == truth(scene)[name] for answer, scene in zip(answers, scenes, strict=True)) / count
        for name in truth(scenes[0])
    }


def measure(folder: pathlib.Path, output: pathlib.Path | None, options: dict[str, Any]) -> dict[str, Any]:
    pipeline = base_pipeline(folder)
    judge, asked = Judge(), prompts()
    images = sample(pipeline, [words for words, _ in asked], **options)
    answers = judge(images)
    right = {name: sum(a[name] == t[name] for a, (_, t) in zip(answers, asked, strict=True)) for name in JUDGED}
    report = {
        "prompts": len(asked),
        **options,
        "right": {name: round(count / len(asked), 4) for name, count in right.items()},
        "interval": {name: [round(x, 4) for x in interval(count, len(asked))] for name, count in right.items()},
        "judge on drawn scenes": judge_accuracy(judge),
    }
    if output:
        output.mkdir(parents=True, exist_ok=True)
        save_grid([images[(i * 37) % len(images)] for i in range(64)], output / "samples.png", columns=8)
        (output / "quality.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=MODEL, help="pipeline folder (default: the shipped one)")
    parser.add_argument("--output", type=pathlib.Path, help="folder for quality.json and samples.png")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=25, help="sampling steps (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=4.0, help="guidance scale (default: %(default)s)")
    given = parser.parse_args(arguments)
    quieten()
    options = {"seed": given.seed, "steps": given.steps, "guidance": given.guidance}
    if given.output:
        try:
            writable(given.output)
        except DataError as error:
            parser.error(str(error))
    report = measure(given.model, given.output, options)
    print(f"{'':12}{'right':>8}  {'95 % interval':>16}  judge on drawn scenes")
    for name in JUDGED:
        low, high = report["interval"][name]
        own = report["judge on drawn scenes"][name]
        print(f"{name:12}{report['right'][name]:8.1%}  {low:7.1%} to {high:.1%}  {own:10.1%}")


if __name__ == "__main__":
    main()
