# %% [markdown]
# # Features and embeddings
#
# A model without its head turns an image into a few numbers, in which a simple method finds its way.

# %%
import timm
import torch
from sklearn.neighbors import KNeighborsClassifier

import gode_zoo  # noqa: F401  (registers the models)
from gode_zoo.demo import load_digits

images, labels = load_digits()  # scikit-learn's digits as MNIST has them: (1797, 1, 28, 28) in [0, 1]

# %% [markdown]
# ## Maps of features, at three depths

# %%
backbone = timm.create_model("gode_mnist_m4", pretrained=True, features_only=True).eval()
with torch.no_grad():
    maps = backbone(images[:2])
for info, each in zip(backbone.feature_info.info, maps, strict=True):
    print(f"{info['module']:<10} {tuple(each.shape)}")

# %% [markdown]
# ## Embeddings: 64 numbers an image
#
# `num_classes=0` leaves the classifier out. With the nearest of 100 known digits the other 700 are named.

# %%
embed = timm.create_model("gode_mnist_m4", pretrained=True, num_classes=0).eval()
with torch.no_grad():
    embeddings = embed(images[:800]).numpy()
print(f"embeddings {embeddings.shape}")

for what, numbers in (("pixels", images[:800].flatten(1).numpy()), ("embeddings", embeddings)):
    nearest = KNeighborsClassifier(1).fit(numbers[:100], labels[:100])
    print(f"nearest neighbour by {what}: {100 * nearest.score(numbers[100:], labels[100:800]):.1f} % right")

# %% [markdown]
# ## The state along t
#
# The block is an ODE, so between its input and its output there is a state at every time.

# %%
with torch.no_grad():
    state = embed.stem(images[:100])
    for steps in (5, 10, 20):
        model = timm.create_model("gode_mnist_m4", pretrained=True, num_classes=0, num_steps=steps).eval()
        difference = (model.block(state) - embed.block(state)).norm() / embed.block(state).norm()
        print(f"{steps:>2} Euler steps: {100 * difference.item():.2f} % from the state that was trained with 20")
