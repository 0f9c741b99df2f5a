from __future__ import annotations

import os
import random
import socket
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, distributed, multiprocessing
from torch.nn import functional as F

from projects.groupvit.grouping import AssignAttention, gumbel_softmax
from projects.groupvit.image_encoder import ImageEncoder
from projects.groupvit.losses import image_text_loss, multi_label_loss
from projects.groupvit.model import GroupViT
from projects.groupvit.prompts import FULL, content_words, noun_prompts, open_class_words
from projects.groupvit.text_encoder import TextTransformer
from projects.groupvit.zero_shot import class_scores, group_affinity, slide, windows
from unified.errors import InputError
from unified.structures import Target

CAPTIONS = ("a red dog", "two cats on a sofa", "a horse")


def tokenize(texts: Sequence[str]) -> Tensor:
    """Letters as ids 1 to 26, 28 at the end."""
    rows = [[*[ord(c) - 96 for c in text if c.isalpha()][:10], 28] for text in texts]
    length = max(map(len, rows))
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


def build(num_labels: int = 0, **options: object) -> GroupViT:
    torch.manual_seed(0)
    return GroupViT(
        image_encoder=ImageEncoder(
            image_size=64,
            dim=24,
            num_heads=2,
            depths=(1, 1, 1),
            num_group_tokens=(6, 4, 0),
            num_output_groups=(6, 4),
        ),
        text_encoder=TextTransformer(context_length=12, dim=24, num_layers=1, vocab_size=29),
        tokenize=tokenize,
        out_dim=16,
        hidden_dim=32,
        num_labels=num_labels,
        prompts_of=lambda text, num: noun_prompts(text, num, rng=random.Random(0)),
        **options,
    )


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [255 * torch.rand(3, *size, generator=generator) for size in sizes]


def test_it_speaks_the_verbs() -> None:
    model = build().eval()
    assert model.reference_kinds == {"text"}
    batch = model.preprocess(images((60, 90), (64, 80)))
    assert batch.padded_size == (64, 96)
    with torch.no_grad():
        features = model.encode_image(batch)
        found = model.segment(features, [model.encode_text(CAPTIONS[:2])])
        one = model.encode_image(model.preprocess(images((64, 64))))
        several = model.segment(one.expand(3), [model.encode_text(CAPTIONS)], mask_stride=1)
    assert found.mask_logits.shape == (2, 1, 16, 24) and several.mask_logits.shape == (3, 1, 64, 64)
    assert found.mask_logits.mean(dim=(2, 3)).abs().max() < 1e-4
    with pytest.raises(InputError, match="one sentence about each picture, got 0 ref"):
        model.segment(features, [])
    with pytest.raises(InputError, match="one or more class names"):
        model.embed_classes([])
    with pytest.raises(InputError, match="sides must be multiples of 16"):
        model.image_encoder(torch.zeros(1, 3, 60, 64))


@pytest.mark.parametrize("num_labels", [0, 3])
def test_gradient_reaches_every_parameter(num_labels: int) -> None:
    model = build(num_labels).train()
    features = model.encode_image(model.preprocess(images(*[(64, 64)] * 3)))
    target = Target(torch.zeros(0).long(), torch.zeros(0, 4))
    losses = model.losses(features, [model.encode_text(CAPTIONS)], [target] * 3)
    assert set(losses) == {"loss_contrast", *(["loss_labels"] if num_labels else [])}
    torch.stack(list(losses.values())).sum().backward()
    silent = {k for k, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # The bias of keys moves all scores of a query alike.
    silent = {key for key in silent if not key.endswith("k_proj.bias")}
    # A bias of queries moves the scores of a token for all groups alike: no matter to softmax.
    assert silent <= ({"multi_label_logit_scale"} if not num_labels else set()), silent


def test_assignment_is_hard_with_the_gradient_of_the_soft_one() -> None:
    torch.manual_seed(0)
    layer, groups, tokens = AssignAttention(8), torch.randn(2, 3, 8), torch.randn(2, 50, 8)
    merged, assignment = layer.eval()(groups, tokens)
    assert torch.equal(assignment.hard.sum(dim=1), torch.ones(2, 50))
    assert torch.equal(assignment.hard.argmax(1), assignment.soft.argmax(1))
    one_hot = F.one_hot(assignment.soft.argmax(1), 3).transpose(1, 2).float()
    weights = one_hot / (one_hot.sum(dim=2, keepdim=True) + 1)
    torch.testing.assert_close(merged, layer.proj(weights @ layer.v_proj(tokens)))
    merged.sum().backward()
    assert layer.q_proj.weight.grad is not None and layer.q_proj.weight.grad.any()
    noisy = [layer.train()(groups, tokens)[1].hard.argmax(1) for _ in range(2)]
    assert not torch.equal(*noisy)


def test_gumbel_noise_draws_groups_as_often_as_softmax_says() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, 2.0])[None, :, None].expand(1, 3, 20000)
    share = F.one_hot(gumbel_softmax(logits).argmax(dim=1), 3).float().mean(dim=(0, 1))
    torch.testing.assert_close(share, logits[0, :, 0].softmax(0), atol=0.015, rtol=0)


def test_multi_label_loss_of_one_label_is_the_image_text_loss() -> None:
    torch.manual_seed(0)
    image, text = (F.normalize(torch.randn(5, 8), dim=-1) for _ in range(2))
    scale = torch.tensor(10.0)
    single = image_text_loss(image, text, scale)
    torch.testing.assert_close(multi_label_loss(image, text[:, None], scale), single)
    own = (scale * image @ text.t()).log_softmax(1).diag().mean()
    other = (scale * text @ image.t()).log_softmax(1).diag().mean()
    torch.testing.assert_close(single, -(own + other) / 2)
    assert multi_label_loss(image, text[:, None].expand(-1, 3, -1), scale) > single


def _both_losses(x: Tensor, y: Tensor) -> Tensor:
    """Losses of images (B, D) and texts (B, 3, D)."""
    image, text = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
    scale = torch.tensor(8.0)
    return image_text_loss(image, text[:, 0], scale) + multi_label_loss(image, text, scale)


def _in_a_group(rank: int, port: int, x: Tensor, y: Tensor, results: list[Tensor]) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    rows = slice(2 * rank, 2 * rank + 2)
    leaf = x.clone().requires_grad_()
    loss = _both_losses(leaf[rows], y[rows])
    loss.backward()
    results[rank].copy_(torch.cat((loss.detach()[None], leaf.grad.flatten())))
    distributed.barrier()  # neither leaves while the other still talks to it
    distributed.destroy_process_group()
    os._exit(0)  # on the usual way out a thread of gloo can abort the process


def test_two_processes_learn_what_one_with_both_batches_learns() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(4, 6), torch.randn(4, 3, 6)
    results = [torch.zeros(25).share_memory_() for _ in range(2)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_in_a_group, (port, x, y, results), nprocs=2)
    leaf = x.clone().requires_grad_()
    loss = _both_losses(leaf, y)
    loss.backward()
    mean = torch.stack(results).mean(dim=0)  # as data-parallel training averages
    torch.testing.assert_close(mean[0], loss.detach())
    torch.testing.assert_close(mean[1:].view(4, 6), leaf.grad)


def test_only_the_best_classes_of_the_image_are_let_through() -> None:
    torch.manual_seed(0)
    groups, image = (
        F.normalize(torch.randn(1, 4, 8), dim=-1),
        F.normalize(torch.randn(1, 8), dim=-1),
    )
    classes = F.normalize(torch.randn(9, 8), dim=-1)
    affinity = group_affinity(groups, image, classes, torch.tensor(5.0))
    best = (image @ classes.t()).topk(5).indices[0]
    others = [index for index in range(9) if index not in best.tolist()]
    assert not affinity[..., others].any() and (affinity[..., best] > 0).all()
    few = group_affinity(groups, image, classes[:3], torch.tensor(5.0))
    expected = (5 * groups @ classes[:3].t()).softmax(-1).square()
    torch.testing.assert_close(few, expected)


def test_background_is_where_nothing_reaches_the_limit() -> None:
    affinity = torch.tensor([[[0.9, 0.1], [0.2, 0.3]]])
    winners = torch.tensor([[[0, 1]]])
    scores = class_scores(winners, affinity, background=0.5)
    assert scores[0, 0].tolist() == [[0, 1]] and scores.argmax(1).tolist() == [[[1, 0]]]
    strict = class_scores(winners, affinity, background=0.95)  # the largest becomes the limit
    assert strict[0, 0].tolist() == [[0, 1]]
    assert torch.equal(class_scores(winners, affinity), scores[:, 1:])


@pytest.mark.parametrize("size", [(448, 448), (448, 449), (600, 1000), (300, 448), (673, 672)])
def test_windows_cover_the_image_and_stay_inside(size: tuple[int, int]) -> None:
    seen = torch.zeros(size)
    for rows, columns in windows(size, 448, 224):
        assert rows.stop <= size[0] and columns.stop <= size[1]
        assert rows.stop - rows.start == min(448, size[0])
        seen[rows, columns] += 1
    assert seen.min() >= 1
    image = torch.rand(1, 3, *size)
    mean = slide(image, lambda crop: crop[:, :2] * 2, window=448, stride=224)
    torch.testing.assert_close(mean, image[:, :2] * 2)


def test_large_images_are_seen_through_windows() -> None:
    model = build(window=64, stride=32, background=0.35).eval()
    classes = model.embed_classes(["dog", "cat", "sofa"])
    wide = model.preprocess(images((64, 96))).tensor
    with torch.no_grad():
        scores = model.classify_pixels(wide, classes)
        left = model.classify_pixels(wide[..., :64], classes)
        right = model.classify_pixels(wide[..., 32:], classes)
        whole = model.classify_images(wide, classes)
    assert scores.shape == (1, 4, 64, 96)
    torch.testing.assert_close(scores[..., :32], left[..., :32])
    torch.testing.assert_close(scores[..., 32:64], (left[..., 32:] + right[..., :32]) / 2)
    torch.testing.assert_close(whole.sum(), torch.tensor(1.0))


def test_nouns_of_captions_become_prompts() -> None:
    words = "a man in a red shirt holds two dogs on the left".split()
    assert open_class_words(words) == ["man", "shirt", "holds", "dogs"]
    assert content_words(words) == ["man", "red", "shirt", "holds", "dogs"]
    rng = random.Random(0)
    caption = "The man's dog, and a dog."
    prompts = noun_prompts(caption, 3, rng=rng)
    assert len(prompts) == 3 and prompts[-1] == caption
    made = {template.format(noun) for template in FULL for noun in ("man's", "dog")}
    assert set(prompts[:2]) <= made and prompts[0] != prompts[1]
    tagged = noun_prompts(
        "x y z", 1, tagger=lambda words: [words[1]], templates=["the {}"], rng=rng
    )
    assert tagged == ["the y"]
    random.seed(3)
    drawn = noun_prompts(caption, 2)
    random.seed(3)
    assert noun_prompts(caption, 2) == drawn  # as a step that is run again draws
    assert len(FULL) == 80 == len(set(FULL))
