"""From the results of trials to a table, a plot and sheets of pictures."""

from __future__ import annotations

import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dreamlit.toybox.arms import ARMS
from dreamlit.toybox.evidence_results import costs_of, results_of, write_results
from dreamlit.toybox.subjects import TOKEN

SCORES = {
    "subject_fidelity": "subject fidelity",
    "identity": "identity",
    "background": "background right",
    "wall": "on the wall",
    "prompt_fidelity": "CLIP-T",
    "pres": "PRES",
    "leak": "leak",
    "div": "DIV",
    "class_kept": "class kept",
    "world_kept": "other classes kept",
}
CEILINGS = ("photos_similarity", "decoded")
COMPARED = ("subject_fidelity", "identity", "background", "wall", "prompt_fidelity", "pres", "leak", "div")
"""The scores whose differences are shown arm by arm."""
EXPLAINED = """\
- **subject fidelity**: mean cosine between pictures of the subject in places where it was never photographed and its
  photos, by the toybox's CLIP. Two measures go with it: the photos' own mutual similarity, and the fidelity that true
  drawings of the subject in those places keep after they went through the model's autoencoder ("decoded").
- **identity**: share of the subject's class, colour, pattern and badge that the judge finds in those pictures.
- **background right**: share of those pictures with the background that was asked for, by the judge.
- **on the wall**: share of pictures of the subject for which no place was asked that have the brick wall of the busy
  photos behind it: what the subject's name has taken in of its photos' background.
- **CLIP-T**: cosine of those pictures with their prompts (without the subject's rare word).
- **PRES**: cosine between pictures of the plain class and the subject's photos: lower is better; what counts is the
  rise over the base model. **DIV**: mean of 1 - cosine over pairs of pictures of one class prompt: higher is better.
- **leak**: share of the subject's colour, pattern and badge that the judge finds in pictures of the plain class.
- **class kept**, **other classes kept**: share of pictures that the judge takes for the class that was asked for.
"""


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t (Abramowitz and Stegun 1964, 26.7.5; within 0.01)."""
    if freedom < 3:
        return {1: 12.7062, 2: 4.3027}[freedom]
    z = 1.959964
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval by Student's t (NaN for a single value)."""
    count, mean = len(values), sum(values) / len(values)
    if count < 2:
        return mean, math.nan
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1))
    return mean, student(count - 1) * deviation / math.sqrt(count)


def by_arm(results: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    grouped: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        grouped.setdefault(result["arm"], []).append(result)
    return grouped


def table(results: Sequence[dict[str, Any]], costs: Mapping[str, float]) -> str:
    """Markdown: one row for each arm, mean and half width of each score over subjects and seeds, and a step's cost."""
    lines = [
        "| arm | " + " | ".join(SCORES.values()) + " | steps | cost of a step |",
        "| --- |" + " --- |" * (len(SCORES) + 2),
    ]
    for arm, some in by_arm(results).items():
        cells = []
        for score in SCORES:
            mean, half = interval([result["scores"][score] for result in some])
            cells.append(f"{mean:.3f} ± {half:.3f}")
        cost = f"{costs[arm]:.2f}" if arm in costs else ""
        lines.append(f"| {arm} | " + " | ".join(cells) + f" | {some[0]['steps']} | {cost} |")
    return "\n".join(lines)


def differences(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: each arm minus the one it is compared with, paired by subject and seed, with half its 95 % interval."""
    grouped = by_arm(results)
    shown = [name for name in grouped if ARMS[name].against in grouped and ARMS[name].against != name]
    shown = [name for name in shown if ARMS[name].trained]
    if not shown:
        return ""
    lines = [
        "| arm | against | " + " | ".join(SCORES[score] for score in COMPARED) + " |",
        "| --- | --- |" + " --- |" * len(COMPARED),
    ]
    for name in shown:
        cells = [told(*paired(results, name, ARMS[name].against, score)) for score in COMPARED]
        lines.append(f"| {name} | {ARMS[name].against} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def told(mean: float, half: float, agreed: bool) -> str:
    """A difference, in bold where its interval leaves zero out and the subjects agree."""
    text = f"{mean:+.3f} ± {half:.3f}"
    return f"**{text}**" if abs(mean) > half and agreed else text


def paired(results: Sequence[dict[str, Any]], arm: str, other: str, score: str) -> tuple[float, float, bool]:
    """Mean difference `arm` minus `other` of the same subject and seed, half its 95 % interval, and whether the mean
    of each subject's own runs goes the same way: runs of one subject are alike, and the interval does not know it."""
    grouped = by_arm(results)
    of_other = {(r["subject"], r["seed"]): r["scores"][score] for r in grouped[other]}
    by_subject: dict[str, list[float]] = {}
    for r in grouped[arm]:
        by_subject.setdefault(r["subject"], []).append(r["scores"][score] - of_other[(r["subject"], r["seed"])])
    mean, half = interval([one for some in by_subject.values() for one in some])
    return mean, half, all(sum(some) * mean > 0 for some in by_subject.values())


def ratio(before: float, after: float, digits: int) -> str:
    """A change in per cent; a score may be 0 in a small bench, where there is none."""
    return f"{after / before - 1:+.{digits}%}" if before else "no ratio to 0"


def claims(results: Sequence[dict[str, Any]]) -> list[str]:
    """The comparisons that the techniques are there for, each with its figure; only those whose arms were run."""
    grouped, lines = by_arm(results), []

    def mean(arm: str, score: str) -> float:
        return interval([result["scores"][score] for result in grouped[arm]])[0]

    if {"base", "lokr"} <= grouped.keys():
        base, ceiling, drawn = mean("base", "subject_fidelity"), *(mean("base", score) for score in CEILINGS)
        way = (mean("lokr", "subject_fidelity") - base) / (ceiling - base)
        lines.append(
            f"The quickstart goes {way:.0%} of the way from the base's subject fidelity ({base:.3f}) to the photos' "
            f"own mutual similarity ({ceiling:.3f}; true drawings of it through the autoencoder reach {drawn:.3f}); "
            f"the background is right in {mean('lokr', 'background'):.0%}."
        )
    if {"base", "lokr", "lokr-no-prior"} <= grouped.keys():
        gain = ratio(mean("lokr-no-prior", "subject_fidelity"), mean("lokr", "subject_fidelity"), 1)
        changes = []
        for score, name in (("pres", "PRES"), ("leak", "leak")):
            base, without, with_ = (mean(arm, score) for arm in ("base", "lokr-no-prior", "lokr"))
            risen = f", {1 - (with_ - base) / (without - base):.0%} of its rise" if without > base else ""
            change = ratio(without, with_, 0)
            changes.append(f"{name} from {without:.3f} to {with_:.3f} ({change}; base {base:.3f}{risen})")
        lines.append(f"The teacher prior changes {', '.join(changes)}, and subject fidelity by {gain}.")
    if {"lokr", "lokr-short-prompt"} <= grouped.keys():
        gains = [told(*paired(results, "lokr", "lokr-short-prompt", s)) for s in ("subject_fidelity", "background")]
        lines.append(
            f"Captions beside the photos change subject fidelity by {gains[0]}, right backgrounds by {gains[1]}."
        )
    words = "lokr-plain-word", "lokr-common-word"
    if {"lokr", *words} <= grouped.keys():
        plain, common = (ARMS[name].word for name in words)
        gains = [told(*paired(results, "lokr", name, "subject_fidelity")) for name in words]
        beside_plain, beside_common = (mean(name, "red_kept") for name in words)
        lines.append(
            f"The word that `dreamlit tokens --measure` picks ({TOKEN}) changes subject fidelity by {gains[0]} against "
            f"one that is only rare and plain ({plain}), and by {gains[1]} against a common one ({common}). But where "
            f"the subject took that word, other things that are asked for in {common} are so in {beside_common:.0%}; "
            f"where it took {plain}, in {beside_plain:.0%}."
        )
    for busy, place in (("lokr", "five places"), ("lokr-busy", "the same wall behind every photo")):
        if {busy, f"{busy}-no-masks"} <= grouped.keys():
            right, wall = (told(*paired(results, busy, f"{busy}-no-masks", score)) for score in ("background", "wall"))
            lines.append(
                f"Masks ({place}) change the share of right backgrounds by {right}, and that of pictures on the wall, "
                f"where no place is asked, by {wall}."
            )
    return lines


def draw_plot(results: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Every arm at its subject fidelity, over PRES and over right backgrounds, with 95 % intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    for axes, score in zip(figure.subplots(1, 2), ("pres", "background"), strict=True):
        markers = itertools.cycle("os^vDPX")  # ten colours: with 7 markers no two of 70 arms look alike
        for arm, some in by_arm(results).items():
            x, dx = interval([result["scores"][score] for result in some])
            y, dy = interval([result["scores"]["subject_fidelity"] for result in some])
            axes.errorbar(x, y, xerr=dx, yerr=dy, fmt=next(markers), capsize=2, lw=0.8, label=arm)
        axes.set_xlabel({"pres": "PRES (lower is better)", "background": "background right"}[score])
        axes.set_ylabel("subject fidelity")
        axes.grid(alpha=0.3)
    handles, arms = axes.get_legend_handles_labels()
    figure.legend(handles, arms, loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)


def draw_sheet(
    results: Sequence[dict[str, Any]], work: pathlib.Path, report: pathlib.Path, subject: str, former: dict[str, Any]
) -> None:
    """One row for each arm: the subject's pictures of seed 0, first of each place, then its class.

    former: rows by the names of trials that the report showed before (`former_rows`).
    """
    from PIL import Image

    rows = []
    for result in (result for result in results if on_sheet(result, subject)):
        kept = former.get(result["folder"])
        rows.append(kept or sheet_row(work / "trials" / result["folder"], result["arm"]))
    if not rows:
        return
    sheet = Image.new("RGB", (rows[0].width, 66 * len(rows)), "white")
    for index, row in enumerate(rows):
        sheet.paste(row, (0, 66 * index))
    sheet.save(report / f"sheet-{subject}.png")


def sheet_row(folder: pathlib.Path, arm: str) -> Any:
    """Two of four pictures of each place, then four of the class; the name alone where they are lost."""
    from PIL import Image, ImageDraw, ImageFont

    row = Image.new("RGB", (140 + 64 * 14 + 12, 64), "white")
    ImageDraw.Draw(row).text((4, 24), arm, "black", ImageFont.load_default(13))
    if not (folder / "class.png").exists():
        return row
    shown, classes = Image.open(folder / "subject.png"), Image.open(folder / "class.png")
    for i in range(10):
        left, top = (i % 2) * 64, (i // 2) * 64
        row.paste(shown.crop((left, top, left + 64, top + 64)), (140 + 64 * i, 0))
    for i in range(4):
        row.paste(classes.crop((0, 128 * i, 64, 128 * i + 64)), (152 + 64 * (10 + i), 0))
    return row


def former_rows(report: pathlib.Path, subject: str) -> dict[str, Any]:
    """The rows of the report's sheet of a subject, by the names of their trials."""
    from PIL import Image

    path = report / f"sheet-{subject}.png"
    if not path.exists():
        return {}
    shown = [name for name, result in results_of(report, ["steps"]).items() if on_sheet(result, subject)]
    sheet = Image.open(path).convert("RGB")
    return {name: sheet.crop((0, 66 * i, sheet.width, 66 * i + 64)) for i, name in enumerate(shown)}


def on_sheet(result: dict[str, Any], subject: str) -> bool:
    return result["subject"] == subject and result["seed"] == 0


def write_report(
    results: list[dict[str, Any]],
    timed: list[dict[str, Any]],
    output: pathlib.Path,
    work: pathlib.Path,
    command: str,
    made_with: Mapping[str, Any],
) -> None:
    """Writes README.md, results.json, scores.png and a sheet for each subject into `output`; prints the claims."""
    output.mkdir(parents=True, exist_ok=True)
    subjects = list(dict.fromkeys(result["subject"] for result in results))
    costs = costs_of(output)
    measured = f" The cost of a step is its CPU time over the quickstart's ({costs['machine']})." if costs else ""
    seeds = len({result["seed"] for result in results})
    said = claims(results)
    text = [
        "# Evidence",
        "",
        f"Made by `{command}`. Mean ± half a 95 % interval over {len(subjects)} subjects "
        f"({', '.join(subjects)}) x {seeds} seeds; ± 0.000 says that no run differed.{measured}",
        "",
        *(f"- {line}" for line in said),
        "",
        "## Equal steps",
        "",
        table(results, costs.get("steps", {})),
        "",
        "What an arm changes, paired by subject and seed. The interval says how far other seeds would move the mean of "
        "these subjects, not what another subject brings; bold where it leaves zero out and every subject's own mean "
        "goes the same way. Of so many figures some are bold by chance.",
        "",
        differences(results),
        "",
        "![scores](scores.png)",
        "",
        *(["## Equal time", "", table(timed, costs.get("steps", {})), "", differences(timed), ""] if timed else []),
        "## The arms",
        "",
        *(f"- `{name}`: {ARMS[name].what}" for name in by_arm(results)),
        "",
        "## The scores",
        "",
        EXPLAINED,
        *(f"![{name}](sheet-{name}.png)" for name in subjects),
        "",
        "Rows of the sheets: ten pictures of the subject where it was never photographed, then four of its class.",
    ]
    former = {name: former_rows(output, name) for name in subjects}
    (output / "README.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    write_results(output, results, timed, made_with)
    draw_plot(results, output / "scores.png")
    for subject in subjects:
        draw_sheet(results, work, output, subject, former[subject])
    print("\n".join(said))
    print(f"report: {output / 'README.md'}")
