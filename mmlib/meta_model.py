"""`MetaModel` = normaliser + denoising network + noise process: the one object that notebooks and applications use."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from mmlib.denoisers import DENOISERS
from mmlib.files import written_whole
from mmlib.noise import DDPM, FlowMatching, noise_process, stratified_levels
from mmlib.normaliser import Normaliser
from mmlib.store import ActivationStore, StoreError


class MetaModel:
    """A diffusion model of the activations of one layer of one language model.

    Args:
        network: maps (x (n, d), time (n,)) to a prediction (n, d).
        objective: what it predicts, "flow_velocity" or "ddpm_epsilon".
        language_model: identity of the model whose activations it learnt, as the store records it.
        layer: block index.
        documents: identity of the documents it was trained on and of their split.
    """

    def __init__(self, network: nn.Module, objective: str, normaliser: Normaliser, language_model: str, layer: int, documents: str):
        self.network, self.normaliser = network, normaliser
        self.process: FlowMatching | DDPM = noise_process(objective)
        self.language_model, self.layer, self.documents = language_model, layer, documents

    @classmethod
    def for_store(cls, network: nn.Module, objective: str, store: ActivationStore) -> "MetaModel":
        """An untrained model for the activations of a store."""
        return cls(network, objective, Normaliser.of(store), store.model, store.layer, store.documents)

    @property
    def d(self) -> int:
        """Width of the activations."""
        return len(self.normaliser.mean_d)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def to(self, device: str) -> "MetaModel":
        """Move the network."""
        self.network.to(device)
        return self

    def check_store(self, store: ActivationStore, *, same_documents: bool = True) -> None:
        """Refuse a store that this model was not made for.

        Args:
            same_documents: also refuse other documents or another split of them, where the store's test documents may be this
                model's training documents.
        Raises:
            StoreError: it holds another language model, layer or width, or other documents.
        """
        ours, theirs = (self.language_model, self.layer, self.d), (store.model, store.layer, store.d)
        if ours != theirs:
            raise StoreError("this meta-model was trained on {} layer {} (width {}), the store holds {} layer {} (width {}): "
                             "extract or train again with the same model and layer".format(*ours, *theirs))
        if same_documents:
            store.check_documents(self.documents, "this meta-model")

    def loss(self, z_nd: Tensor, generator: torch.Generator) -> Tensor:
        """Training loss of a batch: mean squared error per dimension of the prediction, levels uniform over the process's 1000.

        Args:
            z_nd: standardised activations.
            generator: draws levels and noise (on the CPU, so that devices agree).
        """
        index_n = stratified_levels(len(z_nd), generator).to(z_nd.device)
        noise_nd = torch.randn(z_nd.shape, generator=generator).to(z_nd.device)
        a, s = self.process.coefficients(index_n)
        prediction_nd = self.network(a * z_nd + s * noise_nd, self.process.timestep(index_n))
        return (prediction_nd.float() - self.process.target(z_nd, noise_nd)).square().mean()

    def __call__(self, x_nd: Tensor, sigma: float) -> Tensor:
        """The one-step estimate of z (n, d): `denoise`, so that a MetaModel is a `Denoiser`."""
        return self.denoise(x_nd, sigma)

    @torch.inference_mode()
    def denoise(self, x_nd: Tensor, sigma: float) -> Tensor:
        """Estimate of E[z | x] (n, d) from x = (1 − σ) z + σ ε."""
        return self.process.estimate(self.network, x_nd.to(self.device), sigma).to(x_nd.device)

    @torch.inference_mode()
    def sample(self, n: int, *, steps: int, generator: torch.Generator, batch: int = 1000, bf16: bool = False) -> Tensor:
        """Draws of z (n, d), from noise, by `steps` steps of the process's solver."""
        noise_nd = torch.randn(n, self.d, generator=generator)
        done = []
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16), tqdm(total=steps * -(-n // batch), desc="sampling") as bar:
            for x_nd in noise_nd.split(batch):
                scheduler = self.process.sampling_scheduler()
                scheduler.set_timesteps(steps)
                x_nd = x_nd.to(self.device)
                for t in scheduler.timesteps:
                    prediction_nd = self.network(x_nd, t.float().repeat(len(x_nd)).to(self.device)).float()
                    x_nd = scheduler.step(prediction_nd, t, x_nd).prev_sample
                    bar.update()
                done.append(x_nd.cpu())
        return torch.cat(done)

    def save_pretrained(self, folder: Path) -> None:
        """Write network/ (diffusers' format), normaliser.safetensors and, last, meta_model.json."""
        folder = Path(folder)
        self.network.save_pretrained(folder / "network")
        save_file({"mean": self.normaliser.mean_d, "std": self.normaliser.std_d}, folder / "normaliser.safetensors")
        facts = {"network": type(self.network).__name__, "objective": self.process.objective,
                 "language_model": self.language_model, "layer": self.layer, "documents": self.documents}
        with written_whole(folder / "meta_model.json") as partial:
            partial.write_text(json.dumps(facts, indent=1) + "\n")

    @classmethod
    def from_pretrained(cls, folder: Path) -> "MetaModel":
        """Read what `save_pretrained` wrote.

        Raises:
            FileNotFoundError: the folder holds no meta-model.
        """
        folder = Path(folder)
        if not (folder / "meta_model.json").exists():
            raise FileNotFoundError(f"{folder} holds no meta_model.json: run notebooks/03_train_meta_model.ipynb first, "
                                    "with the same parameters")
        facts = json.loads((folder / "meta_model.json").read_text())
        network = DENOISERS[facts["network"]].from_pretrained(folder / "network").eval()
        numbers = load_file(folder / "normaliser.safetensors")
        return cls(network, facts["objective"], Normaliser(numbers["mean"], numbers["std"]), facts["language_model"], facts["layer"],
                   facts["documents"])
