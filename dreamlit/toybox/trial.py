"""Runs one trial of the evidence bench in its own process: trains, samples, scores.

    python -m dreamlit.toybox.trial FOLDER

FOLDER holds trial.json (written by the bench); result.json and the pictures are written beside it.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time
from typing import Any

from dreamlit.toybox import CLIP
from dreamlit.toybox.arms import COMMON
from dreamlit.toybox.backgrounds import PHRASES
from dreamlit.toybox.judge import Judge
from dreamlit.toybox.quality import base_pipeline, prompts, sample
from dreamlit.toybox.scenes import draw_pose, render
from dreamlit.toybox.shapes import SHAPES
from dreamlit.toybox.subjects import SUBJECTS, WALL, Subject, photographs

FREE = 12
"""Pictures for which no place is asked."""
REPEATS = 4
"""Pictures for each background."""
RED_PLACES = [PHRASES[name] for name in sorted(PHRASES)[:4]]


def run(folder: pathlib.Path) -> None:
    trial = json.loads((folder / "trial.json").read_text(encoding="utf-8"))
    seconds = 0.0
    pipeline = base_pipeline()
    if trial["trained"]:
        from dreamlit.training_cli import run as dreamlit

        started = time.process_time()  # one thread each: another trial on the same core does not count
        dreamlit(["fit", "--config", str(folder / "run.yaml")])
        seconds = time.process_time() - started
        attach(pipeline, folder / "run")
    scores = evaluate(pipeline, SUBJECTS[trial["subject"]], trial["word"], trial["seed"], folder)
    result = {**trial, "seconds": round(seconds, 1), "scores": scores}
    partial = folder / "result.part"
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.rename(folder / "result.json")


def attach(pipeline: Any, run_folder: pathlib.Path) -> None:
    """Puts what the run exported into a stock pipeline: merges the adapter's file (the average's, where the run has
    one), or loads the full weights."""
    from dreamlit.adapter_files import load_adapter_file, read_factors
    from dreamlit.adapters.targets import layers
    from dreamlit.merging import merge

    average = run_folder / f"{run_folder.name}-ema.safetensors"
    file = average if average.exists() else run_folder / f"{run_folder.name}.safetensors"
    if file.exists():
        tensors, metadata = load_adapter_file(file)
        merge(pipeline.unet, read_factors(tensors, metadata, [layer.name for layer in layers(pipeline.unet)]))
        return
    pipeline.unet = type(pipeline.unet).from_pretrained(run_folder / run_folder.name)


def evaluate(pipeline: Any, subject: Subject, word: str, seed: int, folder: pathlib.Path) -> dict[str, float]:
    """Samples the subject where it was never photographed, its class, and other classes; scores all of it.

    subject_fidelity, prompt_fidelity, pres, div: cosines of the toybox's CLIP (`dreamlit.metrics`); photos_similarity,
    drawn, decoded: what subject_fidelity is for the photos among themselves and for `drawings` of the subject itself.
    background, identity, class_kept, world_kept: shares in [0, 1] that the judge finds right; leak: of what is the
    subject's own; wall: of the subject's pictures for which no place is asked, those before the busy photos' wall;
    red_kept: of other things that are asked for in red, which is a common word, those that are red.
    """
    from PIL import Image

    from dreamlit import metrics
    from dreamlit.encoders import ImageEncoder
    from dreamlit.images import save_grid

    kind = subject.individual.kind
    asked = [(place, f"a photo of {word} {kind} {PHRASES[place]}") for place in subject.unseen for _ in range(REPEATS)]
    of_class = [f"a photo of a {kind} {phrase}" for phrase in PHRASES.values() for _ in range(2)]
    world = [(words, facts) for words, facts in prompts()[::11] if facts["kind"] != kind]
    texts = [words for _, words in asked] + of_class + [words for words, _ in world]
    images = sample(pipeline, texts, seed=1000 + seed)
    a, b = len(asked), len(asked) + len(of_class)
    shown, classes, others = images[:a], images[a:b], images[b:]
    save_grid(shown, folder / "subject.png", columns=REPEATS)
    save_grid(classes, folder / "class.png", columns=2)

    encoder, judge = ImageEncoder(str(CLIP)), Judge()
    photos = encoder.embed_images([Image.fromarray(scene.picture) for scene in photographs(subject)])
    made, of_kind = encoder.embed_images(shown), encoder.embed_images(classes)
    wanted = encoder.embed_texts([f"a photo of {kind} {PHRASES[place]}" for place, _ in asked])
    drawn = drawings(subject)
    decoded = through_autoencoder(pipeline.vae, drawn)
    answers, one = judge(shown), subject.individual
    own = {"colour": one.colour, "pattern": one.pattern, "badge": one.badge}
    looks, of_classes = {"kind": kind, **own}, judge(classes)
    right = [a["kind"] == facts["kind"] for a, (_, facts) in zip(judge(others), world, strict=True)]
    return {
        "subject_fidelity": metrics.subject_fidelity(made, photos),
        "photos_similarity": metrics.mutual_similarity(photos),
        "drawn": metrics.subject_fidelity(encoder.embed_images(drawn), photos),
        "decoded": metrics.subject_fidelity(encoder.embed_images(decoded), photos),
        "prompt_fidelity": metrics.prompt_fidelity(made, wanted),
        "pres": metrics.preservation(of_kind, photos),
        "div": metrics.diversity(of_kind, of_class),
        "background": _share(answer["background"] == place for answer, (place, _) in zip(answers, asked, strict=True)),
        "identity": _share(answer[key] == value for answer in answers for key, value in looks.items()),
        "leak": _share(answer[key] == value for answer in of_classes for key, value in own.items()),
        "class_kept": _share(answer["kind"] == kind for answer in of_classes),
        "world_kept": _share(right),
        "wall": walls(pipeline, f"{word} {kind}", seed, judge),
        "red_kept": reds(pipeline, kind, seed, judge),
    }


def walls(pipeline: Any, named: str, seed: int, judge: Judge) -> float:
    """Where the model puts the subject when it may choose: the share before the wall of the busy photos."""
    shown = sample(pipeline, [f"a photo of {named}"] * FREE, seed=3000 + seed)
    return _share(answer["background"] == WALL for answer in judge(shown))


def reds(pipeline: Any, kind: str, seed: int, judge: Judge) -> float:
    """Whether the word that the arm of a common word takes for the subject still says what it did."""
    texts = [f"a photo of a {COMMON} {other} {place}" for other in SHAPES if other != kind for place in RED_PLACES]
    return _share(answer["colour"] == COMMON for answer in judge(sample(pipeline, texts, seed=5000 + seed)))


def drawings(subject: Subject) -> list[Any]:
    """The subject itself, drawn in the places where it was never photographed: what a perfect run would show."""
    import numpy as np
    from PIL import Image

    places = [place for place in subject.unseen for _ in range(REPEATS)]
    scenes = []
    for index, place in enumerate(places):
        rng = np.random.default_rng((subject.individual.genes, index, 11))
        scenes.append(render(subject.individual, draw_pose(rng), place, int(rng.integers(2**31)), (64, 64)))
    return [Image.fromarray(scene.picture) for scene in scenes]


def through_autoencoder(vae: Any, images: list[Any]) -> list[Any]:
    """The images as the model's autoencoder gives them back: no picture that the model makes can be truer."""
    import numpy as np
    import torch
    from diffusers.image_processor import VaeImageProcessor

    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        back = vae.decode(vae.encode(pixels.to(vae.dtype)).latent_dist.mode()).sample
    return VaeImageProcessor().postprocess(back.float())  # pyright: ignore[reportReturnType]


def _share(right: Any) -> float:
    flags = list(right)
    return sum(flags) / len(flags)


if __name__ == "__main__":
    run(pathlib.Path(sys.argv[1]))
