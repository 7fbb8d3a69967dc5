"""What the evidence bench says and finds out before its hours of work."""

import pytest

from dreamlit.errors import DataError
from dreamlit.toybox import evidence, evidence_results, quality
from dreamlit.toybox.arms import ARMS, Trial


def test_what_is_left_to_do_is_told_with_equal_time_and_without_what_is_done(tmp_path, capsys):
    arms = ["--arms", "lokr", "full", "--subjects", "nemo", "--seeds", "2", "--jobs", "1", "--list"]
    words = ["--work", str(tmp_path), "--output", str(tmp_path / "docs"), *arms]

    def said(*more):
        evidence.main([*words, *more])
        return capsys.readouterr().out.splitlines()[0]

    assert said() == "4 trials of 2 arms; 4 are left to do: about 22 minutes"
    # Equal time costs nothing for the reference; of the other arm it is not known yet how many steps that is.
    assert said("--equal-time") == "4 trials of 2 arms, 4 of equal time; 6 are left to do: about 33 minutes"
    names = [
        Trial(ARMS[arm], "nemo", 0, steps).name(evidence.quickstart(), evidence.facts())
        for arm, steps in (("lokr", 400), ("full", 400), ("full", 200))
    ]
    for name in names[:1]:
        (tmp_path / "trials" / name).mkdir(parents=True)
        (tmp_path / "trials" / name / "result.json").touch()
    for name in names[1:]:
        evidence_results.keep(tmp_path / "docs", {"folder": name})
    assert said() == "4 trials of 2 arms; 2 are left to do: about 11 minutes"
    evidence_results.keep_costs(tmp_path / "docs", {"lokr": 1.0, "full": 2.0}, "a machine")
    assert "; 3 are left to do" in said("--equal-time") and "; 4 are left to do" in said("--equal-time", "--costs")


def test_an_output_that_cannot_be_written_is_told_before_the_work(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(evidence, "prepare", lambda *_: pytest.fail("the work began"))
    with pytest.raises(DataError, match=r"--output .*file: cannot be written \(File exists\); give another folder"):
        evidence.main(["--work", str(tmp_path), "--output", str(tmp_path / "file"), "--arms", "lokr"])
    monkeypatch.setattr(quality, "measure", lambda *_: pytest.fail("the work began"))
    with pytest.raises(SystemExit):
        quality.main(["--output", str(tmp_path / "file")])
    assert "file: cannot be written" in capsys.readouterr().err
