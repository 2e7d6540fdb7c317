"""Order of frames in SIFA: visible in its output, not in the sum with the token."""

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from clipvid.adapters.base import BlockInfo
from clipvid.adapters.sifa import SIFA, SIFAConfig
from clipvid.data.config import DataConfig
from clipvid.data.splits import eval_loader, load_split
from clipvid.data.synthetic.world import WorldConfig
from clipvid.model.factory import create_model

BLOCKS = 2  # block of the tower whose output is used
FEATURES = 1024


@torch.no_grad()
def patches(data: DataConfig, split: str) -> tuple[Tensor, Tensor]:
    """Return tokens of the untrained CLIP [V, T, N, D] and labels [V]."""
    model, manifest = create_model("tiny", adapter="none").eval(), load_split(data, split)
    seen: list[Tensor] = []
    model.encoder.layers[BLOCKS - 1].register_forward_hook(lambda layer, inputs, output: seen.append(output[0]))
    labels = []
    for batch in eval_loader(data, model, manifest, Accelerator(), 32):
        model.encode_video(batch["frames"][:, 0])
        labels.append(batch["label"])
    return torch.cat(seen), torch.cat(labels)


def accuracy(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Return the accuracy of directions by a ridge on random ReLU features, pooled over patches and frames."""
    generator = torch.Generator().manual_seed(1)
    width = train[0].shape[-1]
    weight = torch.randn(width, FEATURES, generator=generator) / width**0.5
    bias = 0.5 * torch.randn(FEATURES, generator=generator)

    def features(tokens: Tensor) -> Tensor:
        return torch.cat([F.relu(part @ weight + bias).mean(dim=(1, 2)) for part in tokens.split(32)])

    scaler = StandardScaler().fit(features(train[0]))
    fitted, asked = (torch.from_numpy(scaler.transform(features(tokens))) for tokens, _ in (train, test))
    right = []
    for pair in range(int(train[1].max()) // 2 + 1):
        mine, its = train[1] // 2 == pair, test[1] // 2 == pair
        probe = RidgeClassifier(alpha=100).fit(fitted[mine], train[1][mine])
        right.append(torch.from_numpy(probe.predict(asked[its])) == test[1][its])
    return float(torch.cat(right).float().mean())


@pytest.mark.slow
@torch.no_grad()
def test_order_is_visible_in_output_only(tmp_path):
    world = WorldConfig(
        objects=("ball", "star"), motions=("horizontal", "vertical"), train_per_class=96, val_per_class=12
    )
    data = DataConfig(root=str(tmp_path), world=world, num_workers=0)
    (train, labels), (test, asked) = patches(data, "train"), patches(data, "val")
    sifa = SIFA(SIFAConfig(), BlockInfo(width=train.shape[-1], num_heads=4, num_frames=8))
    sifa.norm.weight.fill_(1)
    own, grid = (F.layer_norm(part[:, :, 1:], part.shape[-1:]) for part in (train, test)), (6, 6)
    actual = [torch.cat([sifa(part, grid).update[:, :, 1:] for part in whole.split(32)]) for whole in (train, test)]
    alone = list(own)
    beside = [torch.cat(pair, dim=-1) for pair in zip(alone, actual, strict=True)]
    shares = {"token alone": accuracy((alone[0], labels), (alone[1], asked))}
    shares["token beside SIFA's output"] = accuracy((beside[0], labels), (beside[1], asked))
    for scale in (0.1, 0.5):
        added = [part[:, :, 1:] + scale * more for part, more in zip((train, test), actual, strict=True)]
        added = [F.layer_norm(part, part.shape[-1:]) for part in added]
        shares[f"token + {scale} x SIFA's output"] = accuracy((added[0], labels), (added[1], asked))
    print("\n".join(f"{name}: {share:.2f}" for name, share in shares.items()))
    assert shares["token beside SIFA's output"] > 0.95
    assert max(shares["token alone"], shares["token + 0.1 x SIFA's output"]) < 0.7
