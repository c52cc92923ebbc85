"""The house's rules, read from the source by `ast`: who may import whom."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, clean_environment

PACKAGES = ("data_pipeline", "distrain", "launch")
MOST_LINES, MOST_FUNCTION_LINES = 400, 60
NAMES_THAT_SAY_NOTHING = {"utils", "util", "common", "helpers", "helper", "base", "manager", "misc"}


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> Iterator[str]:
    """Names imported anywhere in a module, also within functions; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


IMPORTS = {path: sorted(imports(ast.parse(path.read_text()))) for path in sources()}


def uses(path: Path, name: str) -> bool:
    return any(found == name or found.startswith(f"{name}.") for found in IMPORTS[path])


def test_there_is_something_to_check() -> None:
    assert len(IMPORTS) > 30


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("data_pipeline", ("distrain", "launch", "torch.distributed", "horovod")),
        ("distrain", ("launch",)),
    ],
)
def test_imports_run_one_way_only(package: str, forbidden: tuple[str, ...]) -> None:
    wrong = [
        (module_name(path), name)
        for path in IMPORTS
        if path.is_relative_to(ROOT / package)
        for name in forbidden
        if uses(path, name)
    ]
    assert not wrong


def test_only_parallel_talks_to_other_workers() -> None:
    allowed = ROOT / "distrain" / "parallel"
    wrong = [
        module_name(path)
        for path in IMPORTS
        if path.is_relative_to(ROOT / "distrain") and not path.is_relative_to(allowed)
        if uses(path, "torch.distributed") or uses(path, "horovod")
    ]
    assert not wrong


def test_one_module_joins_and_leaves_the_process_group() -> None:
    calls = ("init_process_group(", "destroy_process_group(", "hvd.init(", "hvd.shutdown")
    for call in calls:
        users = [module_name(path) for path in sources() if call in path.read_text()]
        assert users == ["distrain.parallel.world"]


def test_the_modules_import_each_other_in_no_circle() -> None:
    modules = {module_name(path): path for path in sources()}
    needs = {
        name: {
            other
            for other in modules
            if other != name
            and any(found in (other, f"{other}.{last(found)}") for found in IMPORTS[path])
        }
        for name, path in modules.items()
    }
    done: set[str] = set()
    while len(done) < len(needs):
        free = {name for name in needs if name not in done and needs[name] <= done}
        assert free, f"a circle among {sorted(set(needs) - done)}"
        done |= free


def last(name: str) -> str:
    return name.rpartition(".")[2]


def test_rooms_and_functions_hold_one_idea() -> None:
    for path in sources():
        text = path.read_text()
        assert len(text.splitlines()) <= MOST_LINES, path
        assert path.stem not in NAMES_THAT_SAY_NOTHING, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                assert length <= MOST_FUNCTION_LINES, f"{path}: {node.name}"


def test_a_job_is_checked_without_importing_torch(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "import launch.main, launch.commands.train_command, launch.local\n"
        "from distrain.job_file import read_job\n"
        f"read_job(Path({str(ROOT / 'examples' / 'digits.toml')!r}))\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean_environment(), cwd=tmp_path, check=False
    )
    assert done.returncode == 0


def test_the_public_names_are_these() -> None:
    import distrain  # noqa: PLC0415 - what this test is about

    assert sorted(distrain.__all__) == [
        "BadNumbers",
        "Checkpoint",
        "EarlyStopping",
        "EpochRecord",
        "ExponentialAverage",
        "History",
        "ParameterGroup",
        "Plateau",
        "StochasticAverage",
        "TorchMetric",
        "Trainer",
        "mean_over_samples",
        "schedules",
    ]
    for name in distrain.__all__:
        assert getattr(distrain, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Trainr'"):
        _ = distrain.Trainr
