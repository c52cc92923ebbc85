import ast
from pathlib import Path

import data_pipeline
from data_pipeline import DataError, LostProcessError, StorageError

MODULES = sorted(Path(data_pipeline.__file__).parent.rglob("*.py"))


def test_the_public_names_are_these() -> None:
    assert sorted(data_pipeline.__all__) == [
        "Column",
        "DataError",
        "Dataset",
        "Loader",
        "LostProcessError",
        "Ragged",
        "Reading",
        "StorageError",
        "augment",
        "convert",
        "write",
        "write_dataset",
    ]
    assert all(hasattr(data_pipeline, name) for name in data_pipeline.__all__)


def test_errors_carry_the_exit_codes_of_the_design() -> None:
    assert DataError("x").exit_code == 65
    assert StorageError("x").exit_code == 74
    assert LostProcessError("x").exit_code == 69


def test_only_the_way_from_positions_to_batches_needs_torch() -> None:
    importing = {
        module.stem
        for module in MODULES
        for node in ast.walk(ast.parse(module.read_text()))
        if (isinstance(node, ast.Import) and any(name.name == "torch" for name in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch")
    }
    assert importing == {"batches", "loader", "on_device"}
