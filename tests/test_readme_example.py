"""The README's lines on one's own activations run as they stand there, at a small size; and a first
user's other questions beside them.
"""

import re
from pathlib import Path

import numpy as np
import torch

import mmlib

README = Path(__file__).parents[1] / "README.md"


def activations():
    """Float64 arrays (2400, 96) and (600, 96) in five clusters, and a string or a number for each
    row's document.
    """
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 2, (5, 96))
    h = (rng.normal(0, 1, (3000, 96)) + centres[rng.integers(5, size=3000)]) * np.linspace(
        1, 20, 96
    )
    return h[:2400], [f"page {i // 40}" for i in range(2400)], h[2400:], np.arange(600) // 30


def test_the_lines_of_the_readme_run():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    (lines,) = [block for block in blocks if "mmlib.fit(" in block]
    h, document_ids, h_test, test_ids = activations()
    found = {"h": h, "document_ids": document_ids, "h_test": h_test, "test_ids": test_ids}
    exec(compile(lines, str(README), "exec"), found)
    assert found["h_again"].shape == h.shape and found["nats"].shape == (2400,)
    table = found["table"]
    assert table.loc["mixture", "velocity_loss"] < table.loc["gaussian", "velocity_loss"]


def test_a_file_a_function_of_ones_own_and_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    h, document_ids, h_test, test_ids = activations()
    torch.save(torch.from_numpy(h), "acts.pt")

    def my_function(x, sigma):
        return (1 - sigma) / ((1 - sigma) ** 2 + sigma**2) * x

    model = mmlib.fit("acts.pt", method="gaussian", groups=document_ids)
    model.save("folder")
    table = mmlib.evaluate(
        {"mine": my_function, "gaussian": mmlib.load("folder")}, h_test, groups=test_ids, rows=100
    )
    assert table.loc["gaussian", "velocity_loss"] < table.loc["mine", "velocity_loss"]
    assert torch.allclose(mmlib.load("folder").sample(9), model.sample(9), atol=1e-3)
