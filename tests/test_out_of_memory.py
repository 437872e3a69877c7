"""Out of memory: what says so, and which batch fits."""

import pytest
import torch

from gode_zoo.finetuning.out_of_memory import batch_that_fits, is_out_of_memory


def test_what_out_of_memory_is():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)  # the real words of PyTorch's allocator
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not match")) and not is_out_of_memory(
        ValueError("out of memory")
    )


@pytest.mark.parametrize(("fits", "expected"), [(63, 32), (64, 32), (3, 2), (1, 1), (0, None)])
def test_the_largest_half_that_fits(fits, expected):
    def step(batch):
        if batch > fits:
            raise torch.OutOfMemoryError("out of memory")

    assert batch_that_fits(step, 64) == expected


def test_other_errors_come_through():
    with pytest.raises(RuntimeError, match="other"):
        batch_that_fits(lambda batch: (_ for _ in ()).throw(RuntimeError("other")), 8)
