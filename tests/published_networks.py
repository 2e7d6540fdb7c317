"""Small networks with the parameter names of released checkpoints, written for reading.

Each returns class logits of frames [B, T, 3, S, S] that are normalized already, given token ids [K, L].
"""

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, EMBED, TEXT_WIDTH, HEAD = 128, 64, 64, 64
PATCH, GRID, LENGTH, VOCABULARY = 8, 3, 12, 50


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


def norm_with(eps):
    return lambda width: nn.LayerNorm(width, eps)


class Parameters(nn.Module):
    """Container of named parameters and modules."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def mlp(width):
    return Parameters(c_fc=nn.Linear(width, 4 * width), c_proj=nn.Linear(4 * width, width))


class Block(nn.Module):
    """Block of CLIP's transformers."""

    def __init__(self, width, norm=nn.LayerNorm):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // HEAD, batch_first=True)
        self.ln_1, self.ln_2, self.mlp = norm(width), norm(width), mlp(width)

    def attend(self, x, mask=None):
        seen = self.ln_1(x)
        return self.attn(seen, seen, seen, need_weights=False, attn_mask=mask)[0]

    def feed_forward(self, x):
        return self.mlp.c_proj(quick_gelu(self.mlp.c_fc(self.ln_2(x))))

    def forward(self, x, mask=None):
        x = x + self.attend(x, mask)
        return x + self.feed_forward(x)


class Vision(nn.Module):
    """CLIP's image tower."""

    def __init__(self, layers=2, block=Block):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.positional_embedding = nn.Parameter(torch.randn(GRID * GRID + 1, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = Parameters(resblocks=nn.ModuleList(block(WIDTH) for _ in range(layers)))
        self.proj = nn.Parameter(torch.randn(WIDTH, EMBED) / WIDTH**0.5)

    def embed(self, images):
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(images), 1, -1), patches], dim=1)
        return self.ln_pre(tokens + self.positional_embedding)

    def forward(self, images):
        x = self.embed(images)
        for block in self.transformer.resblocks:
            x = block(x)
        return self.ln_post(x[:, 0]) @ self.proj


class Text(nn.Module):
    """CLIP's text tower without its token embedding."""

    def __init__(self, layers=2):
        super().__init__()
        self.positional_embedding = nn.Parameter(0.1 * torch.randn(LENGTH, TEXT_WIDTH))
        self.transformer = Parameters(resblocks=nn.ModuleList(Block(TEXT_WIDTH) for _ in range(layers)))
        self.ln_final = nn.LayerNorm(TEXT_WIDTH)
        self.text_projection = nn.Parameter(torch.randn(TEXT_WIDTH, EMBED) / TEXT_WIDTH**0.5)

    def encode(self, embedded, ids):
        x = embedded + self.positional_embedding
        mask = torch.full((LENGTH, LENGTH), -torch.inf, dtype=x.dtype).triu(1)
        for block in self.transformer.resblocks:
            x = block(x, mask)
        return self.ln_final(x)[torch.arange(len(x)), ids.argmax(dim=-1)] @ self.text_projection


class CLIP(Text):
    """OpenAI's CLIP."""

    def __init__(self, vision=None):
        super().__init__()
        self.visual = vision or Vision()
        self.token_embedding = nn.Embedding(VOCABULARY, TEXT_WIDTH)
        self.logit_scale = nn.Parameter(torch.tensor(2.5))

    def encode_text(self, ids):
        return self.encode(self.token_embedding(ids), ids)


def cosines(video, text):
    """Return the cosines [B, K] of videos [B, E] and texts [K, E] or [B, K, E]."""
    text = F.normalize(text, dim=-1).expand(len(video), -1, -1)
    return torch.einsum("be,bke->bk", F.normalize(video, dim=-1), text)


class MessageBlock(Block):
    """Block of X-CLIP."""

    def __init__(self, width):
        super().__init__(width)
        self.message_fc, self.message_ln = nn.Linear(width, width), nn.LayerNorm(width)
        self.message_attn = nn.MultiheadAttention(width, width // HEAD, batch_first=True)

    def forward(self, x, num_frames):
        message = self.message_fc(x[:, 0]).unflatten(0, (-1, num_frames))
        normed = self.message_ln(message)
        message = message + self.message_attn(normed, normed, normed, need_weights=False)[0]
        seen = torch.cat([x, message.flatten(0, 1).unsqueeze(1)], dim=1)
        x = x + self.attend(seen)[:, :-1]
        return x + self.feed_forward(x)


class CrossAttention(nn.Module):
    """Attention of the classes to the patches, one head at a time."""

    def __init__(self, width):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.proj = nn.Linear(width, width)

    def forward(self, x, visual):
        q, k, v = self.q_proj(x), self.k_proj(visual), self.v_proj(visual)
        heads = []
        for own in torch.arange(x.shape[-1]).split(HEAD):
            weights = (q[..., own] @ k[..., own].transpose(1, 2) / HEAD**0.5).softmax(dim=-1)
            heads.append(weights @ v[..., own])
        return self.proj(torch.cat(heads, dim=-1))


class PromptLayer(nn.Module):
    """Decoder layer of video-specific prompts."""

    def __init__(self, width):
        super().__init__()
        self.cross_attn, self.norm1, self.norm3 = CrossAttention(width), nn.LayerNorm(width), nn.LayerNorm(width)
        wide = nn.Linear(width, 4 * width)
        self.mlp = nn.ModuleDict({"0": wide, "3": nn.Linear(4 * width, width)})  # 1 and 2 have no parameters

    def forward(self, x, visual):
        x = x + self.cross_attn(self.norm1(x), visual)
        return x + self.mlp["3"](quick_gelu(self.mlp["0"](self.norm3(x))))


class XCLIP(CLIP):
    """X-CLIP, as in the authors' `.pth` files."""

    def __init__(self, num_frames=4, mit_layers=1, prompt_layers=2):
        super().__init__(Vision(block=MessageBlock))
        self.mit = Parameters(
            positional_embedding=nn.Parameter(torch.randn(1, num_frames, EMBED)),
            resblocks=nn.ModuleList(Block(EMBED) for _ in range(mit_layers)),
        )
        self.prompts_visual_ln = nn.LayerNorm(WIDTH)
        self.prompts_visual_proj = nn.Parameter(torch.randn(WIDTH, EMBED) / WIDTH**0.5)
        self.prompts_generator = Parameters(
            norm=nn.LayerNorm(EMBED),
            decoder=nn.ModuleList(PromptLayer(EMBED) for _ in range(prompt_layers)),
            alpha=nn.Parameter(0.1 * torch.ones(EMBED)),
        )

    def forward(self, frames, ids):
        batch, num_frames = frames.shape[:2]
        x = self.visual.embed(frames.flatten(0, 1))
        for block in self.visual.transformer.resblocks:
            x = block(x, num_frames)
        features = (self.visual.ln_post(x[:, 0]) @ self.visual.proj).unflatten(0, (batch, num_frames))
        mixed = features + self.mit.positional_embedding
        for block in self.mit.resblocks:
            mixed = block(mixed)
        video = (features + mixed).mean(dim=1)
        patches = self.prompts_visual_ln(x[:, 1:]) @ self.prompts_visual_proj
        visual = self.prompts_generator.norm(patches.unflatten(0, (batch, num_frames)).mean(dim=1))
        text = self.encode_text(ids)
        prompts = text.expand(batch, -1, -1)
        for layer in self.prompts_generator.decoder:
            prompts = layer(prompts, visual)
        return self.logit_scale.exp() * cosines(video, text + self.prompts_generator.alpha * prompts)


class ViFiCLIP(nn.Module):
    """ViFi-CLIP. `base` is the CLIP that it was trained from, whose token embedding it uses."""

    def __init__(self, base, ids):
        super().__init__()
        self.prompt_learner = nn.Module()
        self.prompt_learner.register_buffer("complete_text_embeddings", base.token_embedding(ids).detach())
        self.image_encoder, self.text_encoder = Vision(), Text()
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, frames, ids):
        video = self.image_encoder(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).mean(dim=1)
        text = self.text_encoder.encode(self.prompt_learner.complete_text_embeddings, ids)
        return self.logit_scale.exp() * cosines(video, text)


class OverTime(nn.Module):
    """Transformer over frames of ActionCLIP."""

    def __init__(self, layers=3, positions=20, block=None):
        super().__init__()
        self.frame_position_embeddings = nn.Embedding(positions, EMBED)
        block = block or (lambda: Block(EMBED, norm_with(1e-12)))
        self.transformer = Parameters(resblocks=nn.ModuleList(block() for _ in range(layers)))

    def forward(self, features):
        x = features + self.frame_position_embeddings.weight[: features.shape[1]]
        for block in self.transformer.resblocks:
            x = block(x)
        return (features + x).mean(dim=1)


def action_clip(clip, over_time, frames, ids):
    """Return the logits of ActionCLIP for one template, with the learned scale."""
    features = clip.visual(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
    return clip.logit_scale.exp() * cosines(over_time(features), clip.encode_text(ids))


class Experts(nn.Module):
    """MLP of MoTE: in evaluation the experts are merged by their softmax weights."""

    def __init__(self, width, count=3):
        super().__init__()
        self.fc_up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(count))
        self.fc_dn = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(count))
        self.mote_fusion_weight = nn.Parameter(torch.randn(count))

    def forward(self, x):
        weights = self.mote_fusion_weight.softmax(dim=0)
        parts = {}
        for name, experts in (("up", self.fc_up), ("down", self.fc_dn)):
            for kind in ("weight", "bias"):
                own = [share * getattr(expert, kind) for share, expert in zip(weights, experts, strict=True)]
                parts[name, kind] = sum(own)
        hidden = quick_gelu(F.linear(x, parts["up", "weight"], parts["up", "bias"]))
        return F.linear(hidden, parts["down", "weight"], parts["down", "bias"])


class ExpertBlock(Block):
    """Block of MoTE."""

    def __init__(self):
        super().__init__(EMBED, norm_with(1e-12))
        self.mlp = Experts(EMBED)

    def feed_forward(self, x):
        return self.mlp(self.ln_2(x))


class MoTE(OverTime):
    """Head of MoTE on the classes of its training, whose text features it stores."""

    def __init__(self, classes=7):
        super().__init__(block=ExpertBlock)
        self.spe_cls_feature = nn.Parameter(F.normalize(torch.randn(classes, EMBED), dim=-1))


def mote(clip, head, frames):
    """Return the logits of MoTE on the classes of its training."""
    features = clip.visual(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
    return clip.logit_scale.exp() * cosines(head(features), head.spe_cls_feature)


class Bottleneck(nn.Module):
    """Adapter of ST-Adapter."""

    def __init__(self, channels=24, kernel=(3, 1, 1)):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, channels), nn.Linear(channels, WIDTH)
        padding = tuple(size // 2 for size in kernel)
        self.conv = nn.Conv3d(channels, channels, kernel, padding=padding, groups=channels)

    def forward(self, x, num_frames):
        maps = self.fc1(x[:, 1:]).reshape(-1, num_frames, GRID, GRID, self.fc1.out_features).permute(0, 4, 1, 2, 3)
        update = self.fc2(self.conv(maps).permute(0, 2, 3, 4, 1).reshape(len(x), GRID * GRID, -1))
        return torch.cat([x[:, :1], x[:, 1:] + update], dim=1)


class STAdapter(Vision):
    """ST-Adapter: CLIP's image tower without projection, with adapters and a classifier."""

    def __init__(self, places, adapted=(1,), layers=2, classes=6, kernel=(3, 1, 1)):
        super().__init__(layers)
        del self.proj
        for index in adapted:
            for place in places:
                setattr(self.transformer.resblocks[index], place, Bottleneck(kernel=kernel))
        self.fc = nn.Linear(WIDTH, classes)

    def forward(self, frames):
        batch, num_frames = frames.shape[:2]
        x = self.embed(frames.flatten(0, 1))
        for block in self.transformer.resblocks:
            for place, half in (("adapter_pre_attn", block.attend), ("adapter_pre_mlp", block.feed_forward)):
                if hasattr(block, place):
                    x = getattr(block, place)(x, num_frames)
                x = x + half(x)
        return self.fc(self.ln_post(x[:, 0].unflatten(0, (batch, num_frames)).mean(dim=1)))
