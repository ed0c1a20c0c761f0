"""The README's five lines, at a small size: activations in a file, a document for each row, and a method of one's own."""

import numpy as np
import torch


def test_the_five_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    scale = np.linspace(1, 20, 96)
    acts = (
        rng.normal(0, 1, (3000, 96)) + rng.normal(0, 2, (5, 96))[rng.integers(5, size=3000)]
    ) * scale
    torch.save(torch.from_numpy(acts[:2400]), "acts.pt")
    h_test, test_documents = acts[2400:], np.arange(600) // 30
    document_ids = [f"page {i // 40}" for i in range(2400)]

    def my_function(x, sigma):
        return (1 - sigma) / ((1 - sigma) ** 2 + sigma**2) * x

    import mmlib

    model = mmlib.fit("acts.pt", method="mixture", groups=document_ids)
    edited = model.project(h_test, sigma=0.5)
    unusual = model.log_likelihood(h_test).argmin()
    model.save("my-mixture")
    table = mmlib.evaluate({"mine": my_function, "mixture": model}, h_test, groups=test_documents)

    assert edited.shape == (600, 96) and 0 <= int(unusual) < 600
    assert table.loc["mixture", "velocity_loss"] < table.loc["gaussian", "velocity_loss"]
    assert table.loc["gaussian", "velocity_loss"] < table.loc["mine", "velocity_loss"]
    assert torch.allclose(mmlib.load("my-mixture").sample(9), model.sample(9), atol=1e-3)
