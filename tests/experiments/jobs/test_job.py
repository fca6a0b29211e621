"""A job's folder and its file."""

from __future__ import annotations

import json

import pytest
from one_line import assert_one_line

from experiments import sweep
from experiments.jobs.job import open_job, options_as_json
from experiments.jobs.options import Options
from experiments.settings.config import settings_for
from experiments.settings.errors import UserError
from experiments.train import main


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "job.json: not the file of a job"),
        ("[]", "job.json: not the file of a job"),
        ('{"options": {"engine": 1}}', "job.json has the unknown option 'engine'"),
        ('{"options": {}, "settings": {"epochs": 9}}', "job.json began with epochs 9, not 30"),
        ('{"options": {"model": "vgg"}}', "unknown model 'vgg'"),
    ],
)
def test_a_folder_that_cannot_be_resumed(tmp_path, capsys, content, message):
    (tmp_path / "job.json").write_text(content)
    assert main(["--resume", str(tmp_path)]) == 2
    assert_one_line(capsys, message)
    assert (tmp_path / "job.json").read_text() == content
    assert len(list(tmp_path.iterdir())) == 1


def test_two_processes_do_not_share_a_folder(tmp_path, capsys):
    settings = settings_for("cnn", "digits").as_dict()
    with open_job(tmp_path, "experiments.train", {}, settings):
        assert main(["--out", str(tmp_path)]) == 2
    assert_one_line(capsys, f"another process is training into {tmp_path}")


def test_a_folder_is_locked_whatever_happens_to_its_files(tmp_path):
    with open_job(tmp_path / "out", "experiments.train", {}, {"epochs": 1}):
        (tmp_path / "out/job.json").unlink()
        with (
            pytest.raises(UserError, match="another process is training into"),
            open_job(tmp_path / "out", "experiments.train", {}, {"epochs": 2}),
        ):
            pass


def test_a_plan_is_found_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored = options_as_json(Options(band=("none", "plan=some/plan.json")))
    assert stored["band"] == ["none", f"plan={tmp_path / 'some/plan.json'}"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data_dir", 5),
        ("seeds", 3),
        ("seeds", "abc"),
        ("seeds", ["a"]),
        ("epochs", "x"),
        ("band", None),
        ("band", [1]),
        ("keep", 1.5),
        ("tensorboard", 1),
    ],
)
def test_a_damaged_option_of_a_job_is_one_line(tmp_path, capsys, name, value):
    with open_job(tmp_path, "experiments.train", options_as_json(Options()), {}):
        pass
    path = tmp_path / "job.json"
    content = json.loads(path.read_text())
    content["options"][name] = value
    path.write_text(json.dumps(content))
    assert main(["--resume", str(tmp_path)]) == 2
    assert_one_line(capsys, f"the option {name!r} cannot be {value!r}")


def test_a_job_of_another_program_is_refused_by_its_name(tmp_path, capsys):
    with open_job(tmp_path, "experiments.train", options_as_json(Options()), {}):
        pass
    assert sweep.main(["--resume", str(tmp_path)]) == 2
    assert_one_line(capsys, "job.json is of a job of experiments.train, not of experiments.sweep")
