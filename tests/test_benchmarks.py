"""The script behind the README's table of speeds, on one small network."""

import subprocess
import sys

import pytest

from helpers.settings import ROOT

SCRIPT = ROOT / "benchmarks" / "explain.py"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A README into which the script has written, and what it printed."""
    folder = tmp_path_factory.mktemp("benchmark")
    readme = folder / "README.md"
    readme.write_text("before\n<!-- benchmark: made by make benchmark -->\nold\n<!-- end of benchmark -->\nafter\n")
    words = ["--rounds", "1", "--architectures", "mobilenet_v2", "--cases", "Ablation-CAM", "Occlusion, three windows"]
    words += ["--share", "0.05", "--size", "64", "--readme", readme, "--measured", folder / "benchmark.json"]
    done = subprocess.run([sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first = readme.read_text()
    again = subprocess.run([sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert _speeds(readme.read_text()) == _speeds(first)  # found, not measured again
    return first


def _speeds(page):
    return [line for line in page.splitlines() if "**" in line]


def test_the_table_stands_between_the_marks(page):
    assert page.startswith("before\n<!-- benchmark") and page.endswith("<!-- end of benchmark -->\nafter\n")
    assert "old" not in page
    rows = [line.split(" | ")[0].strip("| ") for line in page.splitlines() if line.startswith("| ")]
    for name in ("Ablation-CAM", "Score-CAM", "Occlusion, three windows", "all of these", "Score-CAM, tolerance 0.05"):
        assert name in rows
    assert rows[-7:] == ["1 images", "2 images", "4 images", "8 images", "256 feature maps", "1024 feature maps",
                         "4096 feature maps"]  # fmt: skip


def test_memory_does_not_grow_with_the_feature_maps(page):
    added = [float(line.split(" | ")[2].split()[0]) for line in page.splitlines() if "feature maps |" in line]
    assert len(added) == 3 and added[2] < added[0] + 200
