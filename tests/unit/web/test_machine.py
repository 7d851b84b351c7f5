"""The processors that a tier may use, as its control group says."""

import os

import pytest

from shared.web.machine import cpus


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "50000 100000\n"}, 0.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "25000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.25),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_quota_in_either_version_of_control_groups_is_seen(tmp_path, files, quota):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    allowed = len(os.sched_getaffinity(0))
    assert cpus(tmp_path) == (allowed if quota is None else quota)


def test_a_quota_above_the_processors_there_are_gives_no_more_of_them(tmp_path):
    (tmp_path / "cpu.max").write_text("6400000 100000")
    assert cpus(tmp_path) == len(os.sched_getaffinity(0))
