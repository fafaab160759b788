"""The examples run as they are, on the real engine with random weights, and stay short."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import restill
from restill.models.testing import save_tiny, save_tiny_encoder

FOLDER = Path(restill.__file__).parent / "examples"
EXAMPLES = ["ask_my_docs", "my_own_tool", "self_improve", "langchain_interop"]


def main_of(name: str):
    """The ``main`` function of an example."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Tiny models and a folder with two documents."""
    folder = tmp_path_factory.mktemp("examples")
    save_tiny(folder / "model", layers=1)
    save_tiny_encoder(folder / "encoder")
    (folder / "docs").mkdir()
    (folder / "docs" / "kestrel.md").write_text("# Kestrel\nThe Kestrel was built by Hallow Works.\n")
    (folder / "docs" / "hallow.txt").write_text("Hallow Works was founded by Ada Brann.\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESTILL_HOME", str(folder / "home"))
        yield folder


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_under_60_lines(name):
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) < 60


def test_every_example_is_tested():
    assert sorted(EXAMPLES) == sorted(file.stem for file in FOLDER.glob("*.py"))


def test_ask_my_docs(place, capsys):
    main = main_of("ask_my_docs")
    result = main(place / "docs", "Who built it?", str(place / "model"), None, str(place / "encoder"))
    assert result.status in ("answered", "budget")
    assert "answer:" in capsys.readouterr().out


def test_my_own_tool(place, capsys):
    result = main_of("my_own_tool")("How many days?", model=str(place / "model"))
    assert result.status in ("answered", "budget")
    assert "answer:" in capsys.readouterr().out


def test_langchain_interop(place):
    answers = main_of("langchain_interop")(
        place / "docs", "Who built it?", model=str(place / "model"), encoder=str(place / "encoder")
    )
    assert set(answers) == {"chain", "tool calls", "agent", "agent in a chain"}
    assert isinstance(answers["chain"], str)


def test_self_improve(place, capsys):
    report = main_of("self_improve")(
        place / "job",
        entities=60,
        train=12,
        heldout=2,
        generations=0,
        model=str(place / "model"),
        encoder=str(place / "encoder"),
    )
    assert [arm.name for arm in report.arms] == ["base", "pilot"]
    assert report.adapter and "adapter:" in capsys.readouterr().out
