# %% [markdown]
# # Fine-tuning with a plain loop
#
# Three lines load a model with its weights and make it learn other classes; the loop is PyTorch's as it always is.
# The images are scikit-learn's 8×8 digits, enlarged to what MNIST looks like: 300 to train with, 500 to measure.

# %%
import timm
import torch
from torch.nn import functional as F

import gode_zoo  # noqa: F401  (registers the models)
from gode_zoo.demo import load_digits

images, labels = load_digits()  # (1797, 1, 28, 28) in [0, 1], and 0 to 9
is_even = (labels % 2 == 0).long()  # two classes of our own: odd and even
train, test = slice(0, 300), slice(300, 800)

# %% [markdown]
# A new head for two classes. What is below it stays as it was trained on MNIST.

# %%
torch.manual_seed(0)
model = timm.create_model("gode_mnist_m4", pretrained=True, num_classes=2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)

for epoch in range(2):
    for index in torch.randperm(300).split(30):
        loss = F.cross_entropy(model(images[train][index]), is_even[train][index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}")


# %%
@torch.no_grad()
def accuracy(network):
    return (network(images[test]).argmax(dim=1) == is_even[test]).double().mean().item()


print(f"all weights trained: {100 * accuracy(model.eval()):.1f} % of 500 digits are told odd from even")

# %% [markdown]
# ## Only the head
#
# Frozen weights need no gradient: `gode_zoo.finetuning.model.freeze` (or three lines of your own) leaves the classifier
# alone to learn. `freeze(model, "stem")` keeps only the first convolutions.

# %%
from gode_zoo.finetuning.model import freeze  # noqa: E402

model = timm.create_model("gode_mnist_m4", pretrained=True, num_classes=2)
freeze(model, "all-but-head")
trained = [p for p in model.parameters() if p.requires_grad]
print(f"{sum(p.numel() for p in trained):,} of {sum(p.numel() for p in model.parameters()):,} parameters are trained")

with torch.no_grad():
    features = model.forward_features(images[train])  # once, for nothing in there changes
optimizer = torch.optim.SGD(trained, lr=0.5, momentum=0.9)
for _ in range(100):
    loss = F.cross_entropy(model.forward_head(features), is_even[train])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"the head alone: {100 * accuracy(model.eval()):.1f} %")
