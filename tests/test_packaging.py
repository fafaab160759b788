"""What ships: the packages and the adapters, pinned, and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import restill

ROOT = Path(restill.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CODE = ["models", "retrieval", "agents", "selftrain", "commands"]
CONSTRAINTS = [
    line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")
]


def normal(requirement: str) -> str:
    """The package's name as PyPI compares it."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


PINS = {normal(line): line.partition("==")[2] for line in CONSTRAINTS}


def test_constraints_are_exact_versions_each_once():
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in CONSTRAINTS)
    assert len(PINS) == len(CONSTRAINTS)
    assert [normal(line) for line in CONSTRAINTS] == sorted(PINS)


def test_every_dependency_is_pinned_and_so_is_what_it_needs():
    extras = PROJECT["project"]["optional-dependencies"]
    todo = [
        normal(r)
        for needs in (PROJECT["project"]["dependencies"], *(extras[e] for e in ("dev", "bench", "report", "ray")))
        for r in needs
    ]
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen or name.startswith("nvidia-"):
            continue
        seen.add(name)
        assert name in PINS, f"{name} is not in constraints.txt"
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        todo += [normal(need) for need in needs if ";" not in need]


def test_torch_is_needed_by_bench_alone():
    for where, needs in {
        "": PROJECT["project"]["dependencies"],
        **PROJECT["project"]["optional-dependencies"],
    }.items():
        heavy = {"torch", "transformers"} & {normal(need) for need in needs}
        assert not heavy or where == "bench"
    assert {"cuda", "tpu", "report", "ray", "bench", "dev"} <= set(PROJECT["project"]["optional-dependencies"])


def test_the_listed_packages_are_those_on_disk():
    found = {"restill"}
    for package in CODE:
        found |= {
            ".".join(("restill", *f.parent.relative_to(ROOT).parts)) for f in (ROOT / package).rglob("__init__.py")
        }
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize("target", ["demo", "test", "venv", "lint", "clean"])
def test_make_knows_its_targets(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_ci_runs_the_tests():
    script = ROOT / ".ci" / "run"
    assert "make test" in script.read_text() and script.stat().st_mode & 0o111


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the sources, as a set of names and the open archive."""
    pytest.importorskip("setuptools", minversion="77")
    source, out = tmp_path_factory.mktemp("wheel") / "src", tmp_path_factory.mktemp("out")
    skipped = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "*.safetensors")
    shutil.copytree(ROOT, source, ignore=skipped)
    (source / "adapters" / "probe").mkdir(parents=True)
    (source / "adapters" / "probe" / "adapter_model.safetensors").write_bytes(b"")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        ".",
    ]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(out.glob("*.whl"))) as archive:
        yield archive


def test_the_wheel_holds_every_module_and_nothing_else(wheel):
    names = set(wheel.namelist())
    shipped = {name for name in names if name.endswith(".py")}
    expected = {f"restill/{f.relative_to(ROOT).as_posix()}" for package in CODE for f in (ROOT / package).rglob("*.py")}
    expected |= {f"restill/{name}.py" for name in ("__init__", "cli", "console")}
    assert shipped == expected
    assert "restill/py.typed" in names and any(n.endswith("licenses/LICENSE") for n in names)
    others = {name.split("/")[1] for name in names if name.startswith("restill/") and not name.endswith(".py")}
    assert others <= {"py.typed", "adapters", "selftrain"}
    data = {n for n in names if n.startswith("restill/selftrain/") and not n.endswith(".py")}
    assert data == {"restill/selftrain/report.html.j2"}
    assert {name.split("/")[0] for name in names} == {"restill", f"restill-{restill.__version__}.dist-info"}


def test_the_wheel_names_its_script_and_licence(wheel):
    info = f"restill-{restill.__version__}.dist-info"
    assert "restill = restill.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    text = wheel.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in text and "Requires-Python: >=3.11" in text


def test_adapters_ship(wheel):
    assert "restill/adapters/probe/adapter_model.safetensors" in wheel.namelist()
