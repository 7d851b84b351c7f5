"""What `make gpu` does with what it measures, and where there is no GPU; without models."""

import pytest
import torch
import typer
from typer.testing import CliRunner

from tests.bench import gpu
from tests.bench.gpu import RESULTS, Device, place
from tests.bench.gpu_load import Rate, highest

REST = Rate(10.0, 100, 100, 4.0, 5.0, 0.1)


def tier(saturates, *, refuses=False):
    """Rates that are answered in 5 ms up to `saturates` requests a second, and beyond it late or not at all."""

    def measure(rate):
        fine = rate <= saturates
        return Rate(rate, 100, 100 if fine or not refuses else 99, 4.0, 5.0 if fine or refuses else 15.1, 0.1)

    return measure


@pytest.mark.parametrize("refuses", [False, True])
def test_the_highest_rate_is_found_by_doubling_then_halving_the_gap(refuses):
    best, tried = highest(tier(100, refuses=refuses), REST, halvings=2)
    assert [round(rate.rate) for rate in tried] == [20, 40, 80, 160, 113, 95]
    assert best is tried[-1]


def test_a_tier_that_never_holds_has_no_highest_rate():
    best, tried = highest(tier(5), REST, halvings=1)
    assert best is None
    assert [round(rate.rate) for rate in tried] == [20, 14]


def test_rates_end_where_no_load_is_too_much():
    best, tried = highest(tier(1e9), REST, halvings=3)
    assert best is tried[-1]
    assert len(tried) == 12


def test_a_rehearsal_is_not_written_where_a_gpu_s_figures_are_kept(tmp_path):
    assert place(Device.CUDA, None) == RESULTS
    assert place(Device.CPU, tmp_path / "here.json") == tmp_path / "here.json"
    assert place(Device.CPU, None).name == "tierwise-gpu-rehearsal.json"
    with pytest.raises(SystemExit, match="is for figures of a GPU"):
        place(Device.CPU, RESULTS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a CUDA device")
def test_without_a_gpu_one_line_says_what_to_do():
    app = typer.Typer()
    app.command()(gpu.main)
    done = CliRunner().invoke(app, [])
    assert done.exit_code == 2
    (line,) = done.output.strip().splitlines()
    assert line.startswith("gpu: torch sees no CUDA device")
    assert 'make gpu GPU="--device cpu --quick"' in line
