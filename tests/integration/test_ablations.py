"""The table of ablations: every listed line applies, differences are by seed, wrong calls end with 2."""

import json
from pathlib import Path

import pytest

from benchmarks.published import ablations
from fastres.recipe import Recipe

ROOT = Path(__file__).parents[2]


def test_every_listed_line_changes_the_recipe_and_nothing_twice() -> None:
    base = ROOT / "recipes" / "speed" / "94.toml"
    found = {name: Recipe.load(base, sets).hash() for name, sets in ablations.lines(ablations.LIST)}
    assert len(found) == len(set(found.values())) > 10, "an override that changes nothing measures nothing"
    assert len({ablations.folder_of(name) for name in found}) == len(found)


def test_the_table_of_a_tiny_recipe(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = tmp_path / "list.toml"
    listed.write_text('[[without]]\nname = "flip & shift"\nset = ["augment.flip=none", "augment.translate=0"]\n')
    call = [str(tiny), "--runs", "2", "--out", str(tmp_path / "out"), "--list", str(listed), "--device", "cpu"]
    call += ["--set", "data.split=none", "--set", "train.compile=false"]
    assert ablations.main(call) == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "ablations.json").read_text())
    complete, without = report["rows"]
    assert [len(row["accuracy"]) for row in report["rows"]] == [2, 2]
    changes = [a - b for a, b in zip(without["accuracy"], complete["accuracy"], strict=True)]
    mean = 100 * sum(changes) / 2
    # Student's t for one degree of freedom is 12.706; the standard error of two values is half their distance.
    reach = 100 * 12.706 * abs(changes[0] - changes[1]) / 2
    assert f"difference, points (± {reach:.2f}, 95%)" in printed
    assert f"| flip & shift | {sum(without['accuracy']) / 2:.2%} | {mean:+.2f} |" in printed
    assert (tmp_path / "out" / "ablations.md").read_text() == printed
    assert (tmp_path / "out" / "ablations.png").read_bytes().startswith(b"\x89PNG")
    spent = min(without["seconds"]) / min(complete["seconds"])
    assert printed.splitlines()[0].endswith("| time |") and printed.splitlines()[-1].endswith(f"| {spent:.2f} |")
    runs = tmp_path / "out" / "flip-shift" / "runs.jsonl"
    before = runs.stat().st_mtime_ns
    assert ablations.main(call) == 0, "what is complete is read"
    assert runs.stat().st_mtime_ns == before
    capsys.readouterr()
    assert ablations.main([*call, "--no-times"]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("95%) |")
    assert ablations.main([*call, "--set", "train.seed=7"]) == 2, "other runs lie there"
    assert "give another --out" in capsys.readouterr().err


def test_the_interval_of_several_lines_by_hand() -> None:
    """Three lines and two seeds. Line means 2, 3 and 7, seed means 3.5 and 4.5, grand mean 4: what is left over is ±0.5
    in all six cells but those of the line whose seeds differ by 1 like the means, 0 there. 4 × 0.25 over 2 degrees of
    freedom is 0.5, the standard error √(2 × 0.5 / 2), and Student's t is 4.3027."""
    rows = [{"accuracy": values} for values in ([1.5, 2.5], [2.0, 4.0], [7.0, 7.0])]
    assert ablations.reach(rows) == pytest.approx(4.3027 * 0.5**0.5, rel=1e-4)
    assert ablations.differences(rows) == [1.0, 5.0]
    assert ablations.reach([{"accuracy": [1.0]}, {"accuracy": [2.0]}]) is None


@pytest.mark.parametrize("text", ["[[without]]\nname = 3", "without = 1", "[[", '[[without]]\nset = ["a=1"]'])
def test_a_wrong_list(text: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = tmp_path / "list.toml"
    listed.write_text(text)
    assert ablations.main([str(tiny), "--out", str(tmp_path / "out"), "--list", str(listed)]) == 2
    assert "is no list of ablations" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_wrong_override_costs_no_run(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = tmp_path / "list.toml"
    listed.write_text('[[without]]\nname = "x"\nset = ["augment.filp=none"]\n')
    assert ablations.main([str(tiny), "--out", str(tmp_path / "out"), "--list", str(listed)]) == 2
    assert "flip" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
