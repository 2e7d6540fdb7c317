"""Grad-CAM equals that of pytorch-grad-cam, with tokens of all frames as its volume."""

import pytest
import torch

from clipvid.inference.explain.grad_cam import GradCAM
from clipvid.inference.explain.target import Target

pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam", reason="pip install grad-cam")


class Logits(torch.nn.Module):
    """Model whose output is the logits of one normalized clip."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, clip):
        return self.model(clip, normalized=True).logits


@pytest.mark.parametrize("adapter", ["none", "ila", "attention", "st_adapter"])
@pytest.mark.parametrize("label", [0, 2])
def test_grad_cam_equals_pytorch_grad_cam(make_model, adapter, label) -> None:
    torch.manual_seed(0)
    model = make_model(adapter, labels=["a ball", "a box", "a star"]).eval()
    clip = torch.randn(1, model.num_frames, 3, model.image_size, model.image_size)
    tower, target = model.encoder.tower, Target(label)
    layer = model.encoder.layers[-1].block.ln_1

    def as_volume(tokens):
        return tokens[:, tower.num_prefix :].unflatten(1, tower.grid).permute(3, 0, 1, 2)[None]

    theirs = pytorch_grad_cam.GradCAM(Logits(model), [layer], reshape_transform=as_volume)
    output = theirs.activations_and_grads(clip.requires_grad_())
    target.score(output).sum().backward()
    values, slopes = (
        each[0].cpu().numpy()
        for each in (theirs.activations_and_grads.activations, theirs.activations_and_grads.gradients)
    )
    expected = torch.from_numpy(theirs.get_cam_image(clip, layer, None, values, slopes)[0]).clamp(min=0)
    relevance = GradCAM().relevance(model, clip.detach(), target)
    assert expected.max() > 0
    torch.testing.assert_close(relevance / relevance.max(), expected / expected.max(), atol=1e-5, rtol=0)
