"""Plain steps of the published prompt-learning algorithms, written for comparison only.

As the reference code does it: every step encodes every class, each in all 77 tokens, through the model's own blocks;
CoCoOp goes image by image; replaced prompt outputs and the last block are computed for all tokens.
"""

import torch
import torch.nn.functional as F


class Texts:
    """Placeholder prompts, tokenised once: everything that the reference keeps as buffers."""

    def __init__(self, clip, texts, count, position="end", phrase=None):
        tower = clip.text
        opening = phrase or " ".join(["X"] * count)
        self.ids = clip.tokenize([f"{opening} {text}." for text in texts]).to(clip.device)
        embedded = tower.embed(self.ids).detach()
        self.tower, self.count, self.position = tower, count, position
        self.prefix, self.suffix = embedded[:, :1], embedded[:, 1 + count :]
        self.names = [len(clip.token_ids(text)) for text in texts]

    def __len__(self):
        return len(self.ids)

    def splice(self, context):
        """Prompts (C, 77, W) with the context (M, W) or (C, M, W) in its place."""
        context = context.to(self.prefix.dtype)
        context = context.expand(len(self), -1, -1) if context.ndim == 2 else context
        if self.position == "end":
            return torch.cat([self.prefix, context, self.suffix], 1)
        half = self.count // 2 if self.position == "middle" else 0
        rows = []
        for index, name in enumerate(self.names):
            words, rest = self.suffix[index, :name], self.suffix[index, name:]
            rows.append(torch.cat([self.prefix[index], context[index, :half], words, context[index, half:], rest]))
        return torch.stack(rows)

    def encode(self, context, deep=()):
        """Features (C, D), not normalised."""
        x = self.splice(context) + self.tower.positions.to(self.prefix.dtype)
        x = run(self.tower.blocks, x, self.tower.mask, deep, 1)
        x = self.tower.norm(x)
        return self.tower.project(x[torch.arange(len(x), device=x.device), self.ids.argmax(-1)])


def run(blocks, x, mask, deep, start):
    """All blocks, all tokens; deep prompts replace the tokens from `start` on (negative: from the end)."""
    for layer, block in enumerate(blocks):
        if 0 < layer <= len(deep):
            new = deep[layer - 1].to(x.dtype).expand(len(x), -1, -1)
            start = start if start >= 0 else x.shape[1] - new.shape[1]
            x = torch.cat([x[:, :start], new, x[:, start + new.shape[1] :]], 1)
        x = block(x, attn_mask=mask)
    return x


def images(clip, pictures, prompts=()):
    """Image features (B, D), not normalised, with prompts at the end of the sequence."""
    visual = clip.model.visual
    x = visual.conv1(pictures.to(clip.dtype)).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
    if prompts:
        x = torch.cat([x, prompts[0].to(x.dtype).expand(len(x), -1, -1)], 1)
    x = run(visual.transformer.resblocks, visual.ln_pre(x), None, prompts[1:], -1)
    return visual.ln_post(x)[:, 0] @ visual.proj


def scores(clip, image, text):
    """Logits (B, C)."""
    return clip.logit_scale * F.normalize(image.float() if image.dtype == torch.bfloat16 else image, dim=-1) @ (
        F.normalize(text.float() if text.dtype == torch.bfloat16 else text, dim=-1).T
    )


def cocoop(clip, texts, features, context, meta_net):
    """Logits (B, C), one image after the other."""
    features = F.normalize(features, dim=-1)
    shifts = meta_net(features)
    rows = [scores(clip, f[None], texts.encode(context + shift)) for f, shift in zip(features, shifts, strict=True)]
    return torch.cat(rows)
