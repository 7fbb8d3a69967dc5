"""The evidence bench: arms change what they say and nothing else, results are found again, figures are right."""

import copy
import json
import math
import pathlib
import threading

import numpy as np
import pytest
import yaml
from PIL import Image

from dreamlit.cli import main
from dreamlit.combinations import data_faults
from dreamlit.errors import DataError
from dreamlit.tokens import ranked, read_vocabularies, verdict
from dreamlit.toybox import MODEL, costs, evidence, evidence_report, evidence_results, weights_hash
from dreamlit.toybox.arms import ARMS, Arm, Trial, put
from dreamlit.toybox.subjects import SUBJECTS, TOKEN
from dreamlit.training_cli import parts_of

BASE = evidence.quickstart()
WORK = pathlib.Path("work")


def config(arm, **other):
    return Trial(ARMS[arm], **{"subject": "nemo", "seed": 0, "steps": 30, **other}).config(BASE, WORK)


def flat(tree, prefix=""):
    if isinstance(tree, dict):
        return {k: v for key, value in tree.items() for k, v in flat(value, f"{prefix}{key}.").items()}
    return {prefix: json.dumps(tree, sort_keys=True)}


def changed(arm):
    one, reference = flat(config(arm)), flat(config("lokr"))
    return {key for key in one.keys() | reference.keys() if one.get(key) != reference.get(key)}


def test_the_reference_arm_is_the_quickstart_with_another_subject():
    one = config("lokr")
    assert one["model"] == BASE["model"] and one["data"]["batch_size"] == BASE["data"]["batch_size"]
    assert [d["id"] for d in one["data"]["datasets"]] == [d["id"] for d in BASE["data"]["datasets"]]
    assert one["data"]["datasets"][0]["instance_data_dir"] == "work/photos/nemo"
    assert one["data"]["datasets"][2]["instance_data_dir"] == "work/class/fish"


@pytest.mark.parametrize(
    ("arm", "keys"),
    [
        ("lokr-lr-low", {"model.optimizer.init_args.lr."}),
        ("lokr-lr-high", {"model.optimizer.init_args.lr."}),
        ("lokr-data-prior", {"model.objective.prior_target."}),
        ("lokr-ema", {"trainer.callbacks."}),
        ("lokr-rollout", {"trainer.callbacks."}),
        ("lokr-rollout-original", {"trainer.callbacks."}),
        ("lokr-perturbed", {"model.objective.input_perturbation."}),
        ("lokr-no-prior", {"data.datasets.", "model.objective.prior_loss_weight."}),
        ("lokr-no-masks", {"data.datasets."}),
        ("lokr-busy", {"data.datasets.", "model.objective.prior_loss_weight."}),
        ("lokr-short-prompt", {"data.datasets."}),
        ("lokr-plain-word", {"data.datasets."}),
        ("lokr-common-word", {"data.datasets."}),
        ("lokr-class-prompt", {"data.datasets."}),
        ("lokr-class-words", {"data.datasets."}),
    ],
)
def test_an_arm_changes_what_it_says_and_nothing_else(arm, keys):
    assert changed(arm) == keys


@pytest.mark.parametrize("arm", [name for name, arm in ARMS.items() if arm.trained])
def test_no_arm_has_a_setting_that_would_do_nothing(arm, tmp_path):
    """What `dreamlit fit` refuses before the model loads."""
    wanted = Trial(ARMS[arm], "nemo", 0, 30).config(BASE, tmp_path)
    for dataset in wanted["data"]["datasets"]:
        pathlib.Path(dataset["instance_data_dir"]).mkdir(parents=True, exist_ok=True)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(wanted))
    module, data = parts_of(str(tmp_path / "run.yaml"))
    assert not data_faults(module, data)


def test_every_arm_is_compared_with_one_that_exists():
    assert {arm.against for arm in ARMS.values()} <= ARMS.keys()


def test_arms_without_masks_or_prior_lack_just_those_datasets():
    def kinds(arm):
        return [d["id"] for d in config(arm)["data"]["datasets"]]

    assert kinds("lokr-no-prior") == kinds("lokr")[:2]
    assert kinds("lokr-no-masks") == [kinds("lokr")[0], kinds("lokr")[2]]
    assert "conditioning_data" not in config("lokr-no-masks")["data"]["datasets"][0]


def test_an_arm_without_captions_gives_every_photo_the_same_prompt():
    captioned, short = config("lokr")["data"]["datasets"][0], config("lokr-short-prompt")["data"]["datasets"][0]
    assert captioned["caption_strategy"] == "textfile" and "instance_prompt" not in captioned
    assert short == {**captioned, "caption_strategy": "instanceprompt", "instance_prompt": "a photo of sks fish"}


def test_making_a_configuration_leaves_the_base_and_the_arm_alone():
    before = copy.deepcopy(BASE)
    one = config("lora")
    one["model"]["adapter"]["init_args"]["rank"] = 99
    assert before == BASE and config("lora")["model"]["adapter"]["init_args"]["rank"] == 16


def test_whatever_decides_a_result_is_in_the_name_of_its_folder():
    trial, facts = Trial(ARMS["lokr"], "nemo", 0, 30), {"weights": "a"}
    names = {
        trial.name(BASE, facts),
        trial.name(BASE, {"weights": "b"}),
        trial.name({**BASE, "seed_everything": 1, "extra": 1}, facts),
        Trial(ARMS["lokr"], "nemo", 1, 30).name(BASE, facts),
        Trial(ARMS["lokr"], "nemo", 0, 31).name(BASE, facts),
        Trial(Arm("lokr", "same name", {"data.batch_size": 2}), "nemo", 0, 30).name(BASE, facts),
    }
    assert len(names) == 6 and trial.name(BASE, facts) in names


def test_an_arm_of_another_word_has_it_wherever_the_subject_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "write_class_images", lambda *given: None)
    arm = ARMS["lokr-plain-word"]
    evidence.prepare(tmp_path, ["nemo"], ["lokr", "lokr-busy", "lokr-plain-word"])
    captions = {p.parent.parent.name: p.read_text() for p in tmp_path.glob("*/nemo/nemo-1.txt")}
    assert captions["photos"].startswith("a photo of sks fish") and captions["busy"].startswith("a photo of sks fish")
    assert captions[arm.photos].startswith(f"a photo of {arm.word} fish")
    photos, masks, of_class = config(arm.name)["data"]["datasets"]
    assert photos["instance_data_dir"] == f"work/{arm.photos}/nemo"
    assert masks["instance_data_dir"] == f"work/{arm.photos}/nemo_masks"
    assert of_class == config("lokr")["data"]["datasets"][2]
    short = Arm("short", "another word, one prompt", captions=False, word=arm.word)
    prompted = Trial(short, "nemo", 0, 30).config(BASE, WORK)["data"]["datasets"][0]
    assert prompted["instance_prompt"] == f"a photo of {arm.word} fish"


@pytest.mark.parametrize("subject", ["bolt", "nemo", "mocha"])
def test_the_words_of_the_arms_are_what_the_command_says_of_them(subject, capsys):
    vocabularies = read_vocabularies(str(MODEL))
    assert ranked(vocabularies, 3, 5)[0][1] == ARMS["lokr-plain-word"].word
    assert verdict(ARMS["lokr-common-word"].word, vocabularies).startswith("poor")
    kind = SUBJECTS[subject].individual.kind
    assert main(["tokens", str(MODEL), "--measure", kind, "--count", "1"]) == 0
    assert f"│ {TOKEN} " in capsys.readouterr().out


def test_put_sets_and_removes_dotted_keys():
    tree = {"a": {"b": 1}}
    put(tree, "a.c.d", 2)
    put(tree, "a.b", None)
    assert tree == {"a": {"c": {"d": 2}}}


def test_a_finished_trial_is_not_run_again_and_a_failing_one_says_why(tmp_path, monkeypatch):
    trial = Trial(ARMS["base"], "nemo", 0, 30)
    kept = tmp_path / "trials" / "done" / "result.json"
    kept.parent.mkdir(parents=True)
    kept.write_text('{"arm": "base"}')
    assert evidence.run_trial(trial, "done", tmp_path, BASE) == {"arm": "base", "folder": "done"}
    monkeypatch.setattr(evidence.sys, "executable", "/bin/false")
    with pytest.raises(DataError, match="new failed with code 1"):
        evidence.run_trial(trial, "new", tmp_path, BASE)
    assert not (tmp_path / "trials" / "new" / "result.json").exists()


def test_a_trial_that_was_broken_off_begins_anew(tmp_path, monkeypatch):
    left = tmp_path / "trials" / "broken" / "run" / "checkpoints" / "step-000010.ckpt"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half of it")
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\n[ -e "$3/run" ] && exit 3\necho \'{"arm": "base"}\' > "$3/result.json"\n')
    program.chmod(0o755)
    monkeypatch.setattr(evidence.sys, "executable", str(program))
    trial = Trial(ARMS["base"], "nemo", 0, 30)
    assert evidence.run_trial(trial, "broken", tmp_path, BASE) == {"arm": "base", "folder": "broken"}


def result(arm, subject, seed, seconds=60.0, **scores):
    values = dict.fromkeys([*evidence_report.SCORES, "photos_similarity", "decoded"], 0.5) | scores
    facts = {"arm": arm, "subject": subject, "seed": seed, "steps": 100, "seconds": seconds}
    return {**facts, "scores": values, "folder": f"{arm}-{seed}"}


def pictures(folder, subject, of_class):
    folder.mkdir(parents=True)
    Image.new("RGB", (256, 320), subject).save(folder / "subject.png")
    Image.new("RGB", (128, 640), of_class).save(folder / "class.png")


def test_equal_time_gives_a_slower_arm_fewer_steps():
    trials = [Trial(ARMS[arm], "nemo", 0, 100) for arm in ("base", "lokr", "full")]
    timed = evidence.equal_time(trials, {"lokr": 1.0, "full": 2.0}, 400)
    assert [trial.steps for trial in timed] == [100, 100, 50]


@pytest.mark.parametrize(
    ("words", "timed"),
    [
        ([], []),
        (["--equal-time"], ["base", "lokr", "full"]),
        (["--equal-time", "full"], ["lokr", "full"]),
    ],
)
def test_equal_time_is_for_the_arms_that_it_names_and_the_reference(words, timed):
    assert evidence.parsed(["--arms", "full", "base", "lokr", *words]).equal_time == timed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--arms", "base", "full", "--equal-time"], "need the arm lokr"),
        (["--arms", "lokr", "--equal-time", "full"], "full is not among --arms"),
        (["--seeds", "0"], "must be at least 1"),
    ],
)
def test_a_bench_that_cannot_be_run_is_refused(words, said, capsys):
    with pytest.raises(SystemExit):
        evidence.parsed(words)
    assert said in capsys.readouterr().err


def test_what_a_step_costs_is_a_ratio_of_one_run_and_stays_in_the_report(tmp_path, monkeypatch):
    seconds = {"lokr": iter([1.0, 3.0]), "full": iter([2.0, 1.0])}
    monkeypatch.setattr(costs, "step_seconds", lambda trial, *_: next(seconds[trial.arm.name]))
    trials = [Trial(ARMS[arm], "nemo", seed, 100) for arm in ("base", "lokr", "full") for seed in (0, 1)]
    assert evidence.measured_costs(trials, tmp_path, tmp_path, False, False) == {}
    expected = {"lokr": 1.0, "full": 0.75}
    for asked in (True, False):  # the second time it is known, and nothing is left to be measured
        assert evidence.measured_costs(trials, tmp_path, tmp_path, asked, True) == expected
    evidence_results.keep(tmp_path, result("full", "nemo", 0))
    evidence_results.write_results(tmp_path, [result("lokr", "nemo", 0)], [], {"torch": "2"})
    assert evidence_results.costs_of(tmp_path)["steps"] == expected
    assert "cores" in evidence_results.costs_of(tmp_path)["machine"]
    row = evidence_report.table([result("full", "nemo", 0), result("full", "nemo", 1)], expected).splitlines()[-1]
    assert row.endswith("| 100 | 0.75 |")


def test_a_step_is_timed_without_the_first_ones(tmp_path, monkeypatch):
    clock = iter([0, 50, 60, 70, 80, 90, 92, 94, 96])
    monkeypatch.setattr(costs.time, "process_time", lambda: next(clock))
    times = costs.StepTimes(str(tmp_path / "seconds"))
    for _ in range(9):
        times.on_train_batch_end()
    times.on_train_end()
    assert json.loads((tmp_path / "seconds").read_text()) == pytest.approx((96 - 80) / 4)


def test_an_arm_that_cannot_be_timed_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(costs.sys, "executable", "/bin/false")
    with pytest.raises(DataError, match="lokr failed with code 1"):
        costs.step_seconds(Trial(ARMS["lokr"], "nemo", 0, 100), BASE, tmp_path, tmp_path / "lokr")


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.706), (2, 4.303), (3, 3.182), (8, 2.306), (26, 2.056)])
def test_the_quantile_of_students_t(freedom, expected):
    """Against the printed tables."""
    assert evidence_report.student(freedom) == pytest.approx(expected, abs=0.01)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = rng.normal(3.0, 2.0, (4000, 9))
    found = [evidence_report.interval(list(row)) for row in draws]
    assert np.mean([abs(mean - 3.0) <= half for mean, half in found]) == pytest.approx(0.95, abs=0.012)
    assert math.isnan(evidence_report.interval([1.0])[1])


def test_the_report_tells_what_the_results_say(tmp_path, capsys):
    results = []
    for arm, pres, fidelity, background in (
        ("base", 0.5, 0.6, 0.9),
        ("lokr", 0.55, 0.75, 0.85),
        ("lokr-no-prior", 0.7, 0.76, 0.8),
        ("lokr-no-masks", 0.55, 0.75, 0.6),
    ):
        for seed in range(3):
            scores = {"pres": pres, "subject_fidelity": fidelity, "background": background + 0.01 * seed}
            results.append(result(arm, "nemo", seed, photos_similarity=0.8, **scores))
            pictures(tmp_path / "trials" / f"{arm}-{seed}", "red", "blue")
    evidence_report.write_report(results, [], tmp_path / "docs", tmp_path, "the command", {"torch": "2"})
    text = (tmp_path / "docs" / "README.md").read_text()
    assert "75% of the way from the base's subject fidelity (0.600)" in text
    assert "PRES from 0.700 to 0.550 (-21%; base 0.500, 75% of its rise), leak from" in text
    assert "and subject fidelity by -1.3%" in text
    assert "| lokr-no-masks | lokr | +0.000 ± 0.000 | +0.000 ± 0.000 | **-0.250 ± 0.000** | +0.000 ± 0.000 |" in text
    assert "Masks (five places) change the share of right backgrounds by **+0.250 ± 0.000**" in text
    assert "on the wall, where no place is asked, by +0.000 ± 0.000" in text
    assert "`the command`" in text and "| lokr-no-prior | 0.760 ± 0.000" in text
    assert json.loads((tmp_path / "docs" / "results.json").read_text())["steps"] == results
    assert (tmp_path / "docs" / "scores.png").stat().st_size > 5000
    sheet = np.asarray(Image.open(tmp_path / "docs" / "sheet-nemo.png"))
    assert sheet.shape == (4 * 66, 140 + 64 * 14 + 12, 3)
    assert (sheet[10, 300] == (255, 0, 0)).all() and (sheet[10, 900] == (0, 0, 255)).all()
    assert "report:" in capsys.readouterr().out


@pytest.mark.parametrize(("of_the_third", "bold"), [(0.05, True), (-0.001, False)])
def test_a_difference_is_bold_only_where_the_subjects_agree(of_the_third, bold):
    gains = {"bolt": 0.1, "nemo": 0.08, "mocha": of_the_third}
    results = [
        result(arm, subject, seed, subject_fidelity=0.5 + (gain if arm == "lora" else 0.0))
        for arm in ("lokr", "lora")
        for subject, gain in gains.items()
        for seed in range(3)
    ]
    mean, half, _ = evidence_report.paired(results, "lora", "lokr", "subject_fidelity")
    assert mean == pytest.approx(sum(gains.values()) / 3) and mean > half  # the interval alone would have it bold
    shown = f"{mean:+.3f} ± {half:.3f}"
    assert f"| lora | lokr | {f'**{shown}**' if bold else shown} |" in evidence_report.differences(results)


def test_the_report_of_a_leak_that_is_nothing_is_written():
    arms = "base", "lokr", "lokr-no-prior"
    results = [result(arm, "nemo", seed, photos_similarity=0.8, leak=0.0) for arm in arms for seed in range(2)]
    assert "leak from 0.000 to 0.000 (no ratio to 0; base 0.000)" in evidence_report.claims(results)[1]


def test_the_report_tells_what_a_word_for_the_subject_brings_and_costs():
    scores = {"lokr": (0.3, 0.9), "lokr-plain-word": (0.2, 0.95), "lokr-common-word": (0.35, 0.5)}
    results = [
        result(arm, "nemo", seed, subject_fidelity=fidelity, red_kept=kept)
        for arm, (fidelity, kept) in scores.items()
        for seed in range(3)
    ]
    (said,) = evidence_report.claims(results)
    assert "(sks) changes subject fidelity by **+0.100 ± 0.000** against one that is only rare and plain (two)" in said
    assert "by **-0.050 ± 0.000** against a common one (red)" in said
    assert "are so in 50%; where it took two, in 95%" in said
    assert not evidence_report.claims([one for one in results if one["arm"] != "lokr"])


def test_a_report_is_extended_without_running_again_what_it_holds(tmp_path, monkeypatch):
    """Elsewhere, where the trials' folders and pictures are gone."""
    base, known = evidence.quickstart(), evidence.facts()
    first, more = (Trial(ARMS[arm], "nemo", 0, 400) for arm in ("base", "lokr"))
    old = result("base", "nemo", 0, photos_similarity=0.8) | {"folder": first.name(base, known)}
    pictures(tmp_path / "here" / "trials" / old["folder"], "red", "blue")
    evidence_report.write_report([old], [], tmp_path / "docs", tmp_path / "here", "command", {})

    def run_trial(trial, name, work, base):
        assert trial == more, "what the report holds was run again"
        pictures(work / "trials" / name, "green", "white")
        return result("lokr", "nemo", 0, photos_similarity=0.8) | {"folder": name}

    monkeypatch.setattr(evidence, "run_trial", run_trial)
    monkeypatch.setattr(evidence, "prepare", lambda work, subjects, arms: None)
    words = [
        "--work",
        str(tmp_path / "there"),
        "--output",
        str(tmp_path / "docs"),
        "--subjects",
        "nemo",
        "--seeds",
        "1",
    ]
    evidence.main([*words, "--arms", "base", "lokr"])
    kept = json.loads((tmp_path / "docs" / "results.json").read_text())["steps"]
    assert [one["arm"] for one in kept] == ["base", "lokr"] and kept[0] == old
    sheet = np.asarray(Image.open(tmp_path / "docs" / "sheet-nemo.png"))
    assert (sheet[10, 300] == (255, 0, 0)).all() and (sheet[76, 300] == (0, 128, 0)).all()
    with pytest.raises(AssertionError, match="run again"):
        evidence.main([*words[:2], "--output", str(tmp_path / "elsewhere"), *words[4:], "--arms", "base"])


def test_a_bench_that_is_stopped_loses_no_finished_trial_and_no_other_result(tmp_path, monkeypatch):
    base, known = evidence.quickstart(), evidence.facts()
    first, second = (Trial(ARMS["lokr"], "nemo", seed, 400).name(base, known) for seed in range(2))
    failed = threading.Event()

    def run_trial(trial, name, work, base):
        if name == second:
            failed.set()
            raise DataError("it failed")
        assert failed.wait(60), "the other trial never ran"
        return result("lokr", "nemo", trial.seed, photos_similarity=0.8) | {"folder": name}

    monkeypatch.setattr(evidence, "run_trial", run_trial)
    monkeypatch.setattr(evidence, "prepare", lambda work, subjects, arms: None)
    old = result("base", "nemo", 0, photos_similarity=0.8) | {"folder": "of-another-arm"}
    evidence_report.write_report([old], [], tmp_path / "docs", tmp_path, "command", known)
    words = ["--work", str(tmp_path), "--output", str(tmp_path / "docs"), "--subjects", "nemo", "--arms", "lokr"]
    with pytest.raises(DataError, match="it failed"):
        evidence.main([*words, "--seeds", "2", "--jobs", "2"])
    assert set(evidence_results.results_of(tmp_path / "docs")) == {"of-another-arm", first}
    assert "| base |" in (tmp_path / "docs" / "README.md").read_text()
    evidence.main([*words, "--seeds", "1"])
    kept = json.loads((tmp_path / "docs" / "results.json").read_text())
    assert [r["folder"] for r in kept["steps"]] == [first] and kept["other"] == [old] and kept["made_with"] == known


def test_the_shipped_results_are_those_of_the_arms_as_they_are():
    """Else the bench would run them again, and the tables would tell of other arms."""
    report = pathlib.Path(__file__).parents[1] / "docs" / "evidence"
    made_with = json.loads((report / "results.json").read_text())["made_with"]
    assert made_with["weights"] == weights_hash()
    for name, one in evidence_results.results_of(report).items():
        trial = Trial(ARMS[one["arm"]], one["subject"], one["seed"], one["steps"])
        assert trial.name(evidence.quickstart(), made_with) == name


def test_damaged_results_of_a_report_are_an_error_and_stay(tmp_path):
    (tmp_path / "results.json").write_text('{"steps": ')
    with pytest.raises(DataError, match=r"results.json is no list of results .*--output"):
        evidence_results.results_of(tmp_path)
    assert (tmp_path / "results.json").read_text() == '{"steps": '
