# %% [markdown]
# # Fine-tuning with Lightning
#
# A model of the zoo is a plain `nn.Module`, so nothing of gode_zoo has to be known to Lightning.
# It comes with torchdyn (`pytorch_lightning`); with the package `lightning` write `import lightning as pl`.

# %%
import logging
import tempfile
import warnings

import timm
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import gode_zoo  # noqa: F401  (registers the models)
from gode_zoo.demo import load_digits

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own imports
    import pytorch_lightning as pl

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

images, labels = load_digits()  # scikit-learn's digits as MNIST has them: (1797, 1, 28, 28) in [0, 1]
train = DataLoader(TensorDataset(images[:300], labels[:300]), batch_size=30, shuffle=True)
test = DataLoader(TensorDataset(images[300:800], labels[300:800]), batch_size=100)


# %%
class Finetune(pl.LightningModule):
    def __init__(self, name: str, num_classes: int, lr: float) -> None:
        super().__init__()
        self.model = timm.create_model(name, pretrained=True, num_classes=num_classes)
        self.lr = lr

    def training_step(self, batch, _):
        x, y = batch
        loss = F.cross_entropy(self.model(x), y)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def test_step(self, batch, _):
        x, y = batch
        self.log("accuracy", (self.model(x).argmax(dim=1) == y).float().mean())

    def configure_optimizers(self):
        # timm's factory spares biases and norms of weight decay, and lets lower layers learn more slowly.
        from timm.optim import create_optimizer_v2

        optimizer = create_optimizer_v2(self.model, "sgd", lr=self.lr, weight_decay=5e-4, layer_decay=0.75)
        for group in optimizer.param_groups:
            group["lr"] = self.lr * group["lr_scale"]
        return optimizer


# %%
pl.seed_everything(0, verbose=False)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # advice on the number of workers, which a small set does not need
    trainer = pl.Trainer(
        max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tempfile.gettempdir(),
    )  # fmt: skip
    task = Finetune("gode_mnist_m4", num_classes=10, lr=0.02)
    before = trainer.test(task, test, verbose=False)[0]["accuracy"]
    trainer.fit(task, train)
    after = trainer.test(task, test, verbose=False)[0]["accuracy"]
print(f"accuracy on 500 digits: {100 * before:.1f} % before, {100 * after:.1f} % after")
