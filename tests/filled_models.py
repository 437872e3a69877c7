"""Models with values that tell every parameter and running statistic from every other, for tests against equations."""

import timm
import torch


def create(name, **options):
    """The model in evaluation mode, with norms and running statistics that are all different."""
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    with torch.no_grad():
        for key, value in [*model.named_parameters(), *model.named_buffers()]:
            if "norm" in key and value.is_floating_point() and value.dim() > 0 and not key.endswith("knots"):
                value.uniform_(0.5, 1.5)
    return model


def image(model, batch=2):
    """(batch, C, H, W) of its input size, always the same."""
    return torch.rand(batch, *model.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(1))
