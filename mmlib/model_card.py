"""The model card that lies beside the weights of a meta-model."""

from collections.abc import Mapping

USE = """import torch

from mmlib.meta_model import MetaModel

model = MetaModel.from_pretrained("this folder"){at}
z = model.normaliser(activations)  # raw outputs of the block, (n, d)
samples = model.sample(1000, steps=50, generator=torch.Generator().manual_seed(0))
"""


def model_card(facts: Mapping[str, object]) -> str:
    """Markdown with what is known about a model.

    Args:
        facts: objective, language_model, layers, documents, d, parameters; others (about the training) are listed as they are.
    """
    layers = ", ".join(str(layer) for layer in facts["layers"])
    known = ("network", "objective", "language_model", "layers", "documents", "d", "parameters")
    training = "".join(f"- {key}: {value}\n" for key, value in facts.items() if key not in known)
    return f"""---
library_name: diffusers
tags: [activations, meta-model, interpretability]
---
# Diffusion meta-model of {facts["language_model"]}, block {layers}

A {facts["network"]} of {facts["parameters"]:,} parameters that predicts {facts["objective"]} of noised residual-stream activations (outputs of block
{layers}, counting from 0; width {facts["d"]}; standardised by the statistics in normaliser.safetensors).

- documents and split: {facts["documents"] or "unknown"}
{training}
```python
{USE.format(at=f".at({facts['layers'][0]})" if len(facts["layers"]) > 1 else "")}```

**Limits.** It knows single activations without their context, of one language model on the texts named above; it says nothing reliable about
others. Losses by noise level and the comparison with closed-form baselines are in the repository's results. **Licence.** What is derived from
a language model may be bound by that model's terms. **Misuse.** A model of normal activations can help to steer a language model past its
training, as any steering method can.
"""
