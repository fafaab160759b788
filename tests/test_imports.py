"""Imports: fast, lazy, and only from left to right (models, retrieval, agents, selftrain, command line)."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import restill

ROOT = Path(restill.__file__).parent
ORDER = {"models": 0, "retrieval": 1, "agents": 2, "selftrain": 3, "commands": 4, "cli": 4}
FOR_ALL = {"console", "__version__"}  # knows nothing of the packages, so any may use it
FILES = [ROOT / "cli.py", ROOT / "console.py", ROOT / "__init__.py"]
FILES += [
    file
    for package in ("models", "retrieval", "agents", "selftrain", "commands")
    for file in (ROOT / package).rglob("*.py")
]


def imports(file: Path, *, types: bool = True):
    """(module, line) of every import, relative ones resolved; ``types``: also those for type checkers."""
    parts = file.relative_to(ROOT).with_suffix("").parts

    def walk(node):
        if not types and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = ["restill", *parts[: len(parts) - node.level]] if node.level else []
            stem = [*base, *(node.module or "").split(".")] if node.module else base
            names = [[*stem, alias.name] for alias in node.names] if stem == ["restill"] else [stem]
            yield from ((".".join(name), node.lineno) for name in names)
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    yield from walk(ast.parse(file.read_text(encoding="utf-8")))


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    return done.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_package_imports_only_those_to_its_left(file):
    package = file.relative_to(ROOT).with_suffix("").parts[0]
    here = ORDER.get(package, -1)  # the root and the console import nothing but types
    for module, line in imports(file, types=package in ORDER):
        top, *rest = module.split(".")
        if top == "restill" and rest and rest[0] not in FOR_ALL:
            assert ORDER[rest[0]] <= here, f"{file}:{line} imports {module}"


def test_no_module_imports_torch_or_pickle_or_evaluates_text():
    for file in FILES:
        for module, line in imports(file):
            assert module.split(".")[0] not in {"torch", "transformers", "pickle", "dill"}, f"{file}:{line}"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            assert called not in {"eval", "exec"}, f"{file}:{node.lineno}"


def test_package_files_hold_a_docstring_only():
    for package in ORDER:
        for file in (ROOT / package).rglob("__init__.py"):
            assert len(ast.parse(file.read_text()).body) == 1, f"{file} must stay empty"


def test_no_file_is_longer_than_600_lines():
    long = {str(file): n for file in FILES if (n := len(file.read_text().splitlines())) > 600}
    assert not long


def test_importing_restill_is_fast_and_loads_nothing_heavy():
    code = (
        "import json, sys, time; start = time.perf_counter(); import restill; "
        "seconds = time.perf_counter() - start; print(json.dumps([seconds, list(sys.modules)]))"
    )
    runs = [json.loads(run_python(code)) for _ in range(3)]
    assert min(seconds for seconds, _ in runs) < 0.1
    heavy = {"jax", "jaxlib", "faiss", "flax", "numpy", "langchain_core", "tokenizers", "pydantic", "httpx"}
    assert not heavy & set(runs[0][1])


def test_help_loads_neither_jax_nor_faiss():
    heavy = ["jax", "faiss", "langchain_core", "numpy"]
    code = f"import sys, restill.cli; print([name for name in {heavy} if name in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_reading_types_loads_no_jax():
    code = (
        "import sys; from restill import Question, Document, Budget, Tool, Trajectory, RestillError; "
        "print(sorted({'jax', 'faiss'} & set(sys.modules)))"
    )
    assert run_python(code).strip() == "[]"


def test_reading_a_job_for_its_report_loads_no_jax(tmp_path):
    method = {"pilot": None, "generations": 1}
    settings = {"method": method, "eval_questions": {"count": 0}, "control": False}
    (tmp_path / "job.json").write_text(json.dumps({"settings": settings}))
    (tmp_path / "gen1" / "adapter").mkdir(parents=True)
    (tmp_path / "gen1" / "adapter" / "train_log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    code = (
        "import sys; from pathlib import Path; import restill.selftrain.html_report; "
        f"from restill.selftrain.job_folder import JobFolder; print(JobFolder.open(Path({str(tmp_path)!r})).losses, "
        "sorted({'jax', 'faiss', 'orbax'} & set(sys.modules)))"
    )
    assert run_python(code).strip() == "{'gen1': [{'step': 1, 'loss': 2.0}]} []"


def test_every_public_name_loads_and_there_are_at_most_40():
    assert len(restill.__all__) <= 40
    for name in restill.__all__:
        assert getattr(restill, name) is not None
    assert set(restill.__all__) <= set(dir(restill))


def test_type_checkers_see_the_same_names():
    block = next(node for node in ast.parse((ROOT / "__init__.py").read_text()).body if isinstance(node, ast.If))
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == restill._HOME_OF


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = restill.nonsense
