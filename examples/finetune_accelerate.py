# %% [markdown]
# # Fine-tuning with Hugging Face accelerate
#
# The same script runs on a CPU, on one GPU and, started by `accelerate launch`, on many. Needs `pip install accelerate`.

# %%
import timm
import torch
from accelerate import Accelerator
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import gode_zoo  # noqa: F401  (registers the models)
from gode_zoo.demo import load_digits

images, labels = load_digits()  # scikit-learn's digits as MNIST has them: (1797, 1, 28, 28) in [0, 1]
train = DataLoader(TensorDataset(images[:300], labels[:300]), batch_size=30, shuffle=True)
test = DataLoader(TensorDataset(images[300:800], labels[300:800]), batch_size=100)

# %%
torch.manual_seed(0)
accelerator = Accelerator()
model = timm.create_model("gode_mnist_m4", pretrained=True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=6 * len(train))
model, optimizer, train, test, schedule = accelerator.prepare(model, optimizer, train, test, schedule)


# %%
@torch.no_grad()
def accuracy() -> float:
    model.eval()
    right = [accelerator.gather_for_metrics(model(x).argmax(dim=1) == y) for x, y in test]
    return torch.cat(right).double().mean().item()


before = accuracy()
for _ in range(6):
    model.train()
    for x, y in train:
        loss = F.cross_entropy(model(x), y)
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
accelerator.print(f"accuracy on 500 digits: {100 * before:.1f} % before, {100 * accuracy():.1f} % after")
