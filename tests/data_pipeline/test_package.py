import ast
from pathlib import Path

import data_pipeline
from data_pipeline import DataError, StorageError

MODULES = sorted(Path(data_pipeline.__file__).parent.rglob("*.py"))


def test_the_public_names_are_these() -> None:
    assert sorted(data_pipeline.__all__) == [
        "DataError",
        "Dataset",
        "StorageError",
        "augment",
        "write_dataset",
    ]
    assert all(hasattr(data_pipeline, name) for name in data_pipeline.__all__)


def test_errors_carry_the_exit_codes_of_the_design() -> None:
    assert DataError("x").exit_code == 65
    assert StorageError("x").exit_code == 74


def test_only_the_loader_needs_torch() -> None:
    importing = {
        module.stem
        for module in MODULES
        for node in ast.walk(ast.parse(module.read_text()))
        if (isinstance(node, ast.Import) and any(name.name == "torch" for name in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch")
    }
    assert importing == {"loader"}
