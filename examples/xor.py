"""A net of two ReLU units learns XOR, which no linear model can (Goodfellow et al., 2016, 6.1)."""

import numpy as np
import torch

import distrain
from data_pipeline import Dataset

# The smallest net has poor local minima; from this seed it finds the solution.
SEED = 3


def build_net() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1), torch.nn.Flatten(0)
    )


def main() -> None:
    points = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.float32)
    answers = np.array([0, 1, 1, 0], dtype=np.float32)
    data = Dataset.from_arrays({"x": points, "y": answers}, name="xor")
    trainer = distrain.Trainer(
        model=build_net,
        loss=torch.nn.MSELoss(),
        optimizer=lambda params: torch.optim.Adam(params, lr=0.05),
        inputs="x",
        target="y",
        seed=SEED,
        progress=False,
    )
    history = trainer.fit(data, epochs=500, global_batch=4, micro_batch=1)
    outputs = trainer.predict(data)
    if trainer.rank == 0:
        print(f"loss {history['loss'][-1]:.2e} after {len(history.epochs)} steps")
        for point, answer, output in zip(points, answers, outputs.tolist(), strict=True):
            given = " xor ".join(f"{bit:.0f}" for bit in point)
            print(f"{given} = {abs(round(output, 4)):.4f} (wanted {answer:.0f})")
    right = torch.equal(outputs.round(), torch.from_numpy(answers))
    if history["loss"][-1] >= 1e-3 or not right:
        raise SystemExit("XOR was not learned")


if __name__ == "__main__":
    main()
