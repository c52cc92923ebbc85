"""Compiled models: static graphs, the names of before, and an error where torch would give up."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import distrain
from data_pipeline import Dataset
from distrain import compilation
from distrain.compilation import check_batch_norm, compile_in_place, refuse_compiled, static_graphs
from distrain.errors import ConfigError, ProgramError
from distrain.parallel.replicas import weights_digest

ROWS, FEATURES, CLASSES = 44, 8, 3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, CLASSES))
    return nn.Sequential(*layers)


def make_trainer(model: Any = net, **options: Any) -> distrain.Trainer:
    return distrain.Trainer(
        model=model,
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        inputs="x",
        target="y",
        progress=False,
        **options,
    )


def fit(trainer: distrain.Trainer) -> distrain.Trainer:
    generator = np.random.default_rng(0)
    data = Dataset.from_arrays(
        {
            "x": generator.standard_normal((ROWS, FEATURES)).astype(np.float32),
            "y": generator.integers(0, CLASSES, ROWS),
        }
    )
    # The last micro-batch of an epoch has 4 samples, the others 5.
    trainer.fit(data, data, epochs=2, global_batch=20, micro_batch=5)
    return trainer


def num_graphs() -> int:
    from torch._dynamo.utils import counters  # noqa: PLC0415 - 2 s that only these tests need

    return int(counters["stats"]["unique_graphs"])


def test_a_compiled_model_is_the_same_model() -> None:
    """A Sequential at that, of which torch's own Module.compile compiles nothing."""
    plain = fit(make_trainer())
    compiled = make_trainer(compile=True)
    before = num_graphs()
    fit(compiled)
    assert num_graphs() - before == 3, "one for 5 samples, one for 4, one for an evaluation's 44"
    assert type(compiled.model) is nn.Sequential
    ours, theirs = compiled.model.state_dict(), plain.model.state_dict()
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-6)


def test_modules_that_run_again_are_compiled_with_the_rest() -> None:
    torch.manual_seed(1)
    x = torch.randn(5, FEATURES)

    def gradients(**options: Any) -> list[torch.Tensor]:
        model = make_trainer(**options).model
        model(x).square().sum().backward()
        assert int(model.state_dict()["1.num_batches_tracked"]) == 1
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    both = gradients(compile=True, activation_checkpointing=["1", "2"])
    assert len(both) == 6
    for mine, other in zip(both, plain, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_two_models_of_a_process_have_their_graphs_to_themselves() -> None:
    x = torch.randn(5, FEATURES)
    models = [net().eval() for _ in range(3)]
    for model in models:
        compile_in_place(model)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(compilation, "MOST_GRAPHS", 1)
        for model in models:
            with static_graphs():
                model(x)


def test_a_model_that_needs_graphs_without_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would go on without compiling it, and who does so depends on the number of workers."""
    monkeypatch.setattr(compilation, "MOST_GRAPHS", 2)
    model = net().eval()
    compile_in_place(model)
    for size in range(1, 3):
        with torch.no_grad(), static_graphs():
            model(torch.randn(size, FEATURES))
    message = r"more than 2 compiled graphs.*TORCH_LOGS=recompiles"
    with pytest.raises(ProgramError, match=message), torch.no_grad(), static_graphs():
        model(torch.randn(3, FEATURES))


def test_a_model_that_is_compiled_already_is_refused() -> None:
    inner = nn.Sequential(net(), nn.Flatten())
    inner[0].compile()
    for model in (torch.compile(net()), inner):
        with pytest.raises(ConfigError, match=r"is compiled already.*, and compile=True"):
            make_trainer(model)
    with pytest.raises(ConfigError, match=r"^0 is compiled already"):
        refuse_compiled(inner)


def test_another_trainer_of_the_same_module_may_do_without() -> None:
    model = net()
    make_trainer(model, compile=True)
    assert model._compiled_call_impl is not None
    make_trainer(model, compile=True)
    make_trainer(model)
    assert model._compiled_call_impl is None


def test_without_a_compiler_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler, and there is no no-such-comp"):
        make_trainer(compile=True)
    make_trainer()


def test_it_does_not_go_with_synchronised_batch_norm() -> None:
    with pytest.raises(ConfigError, match='choose batch_norm="micro", or leave compile out'):
        make_trainer(compile=True, batch_norm="sync")
    check_batch_norm(compile=True, batch_norm="micro")
    check_batch_norm(compile=False, batch_norm="sync")


def test_a_changed_buffer_is_found_in_a_compiled_model_too() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(FEATURES, CLASSES)
            self.seen: torch.Tensor
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.add_(1)
            outputs: torch.Tensor = self.linear(x)
            return outputs

    with pytest.raises(ProgramError, match="the forward pass changed the buffer seen"):
        fit(make_trainer(Counting, compile=True))


def test_a_run_is_compiled_for_good(tmp_path: Path) -> None:
    fit(make_trainer(run=tmp_path / "run", compile=True))
    with pytest.raises(ConfigError, match="compile"):
        fit(make_trainer(run=tmp_path / "run"))


def test_the_environment_asks_for_no_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither at import nor later: what is said at the call of torch.compile has the last word."""
    options: dict[str, Any] = {}

    def compiled(function: Any, **given: Any) -> Any:
        options.update(given)
        return function

    monkeypatch.setattr(torch, "compile", compiled)
    compile_in_place(net())
    assert options["dynamic"] is False
    assert options["options"]["max_autotune"] is False
    assert options["options"]["coordinate_descent_tuning"] is False
    assert all(value is (name == "deterministic") for name, value in options["options"].items())


def test_compiled_bits_come_again() -> None:
    first, second = (weights_digest(fit(make_trainer(compile=True)).model) for _ in range(2))
    assert first == second
