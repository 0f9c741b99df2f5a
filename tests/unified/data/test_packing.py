from __future__ import annotations

import pickle

import torch
from detectron2.structures import BitMasks, Boxes, Instances

from unified.data.packing import pack, unpack


def test_what_was_packed_comes_back() -> None:
    instances = Instances((3, 5))
    instances.gt_boxes = Boxes(torch.tensor([[0.5, 1.0, 2.0, 3.0]]))
    instances.gt_masks = BitMasks(torch.rand(1, 3, 5) > 0.5)
    content = [
        {"image": torch.randint(0, 255, (3, 3, 5), dtype=torch.uint8), "name": "a"},
        {"instances": instances, "empty": torch.zeros(0, 4), "half": torch.rand(3).half()},
        {"turned": torch.arange(6).view(2, 3).t(), "scalar": torch.tensor(2.5)},
        {"spread": torch.tensor([7]).expand(1), "wide": torch.tensor([[3.0]]).expand(2, 2)},
    ]
    packed = pack(content)
    back = unpack(pickle.loads(pickle.dumps(packed)))
    assert torch.equal(back[0]["image"], content[0]["image"])
    assert back[0]["name"] == "a"
    assert torch.equal(back[1]["instances"].gt_boxes.tensor, instances.gt_boxes.tensor)
    assert torch.equal(back[1]["instances"].gt_masks.tensor, instances.gt_masks.tensor)
    assert back[1]["instances"].image_size == (3, 5)
    for key in ("empty", "half"):
        assert torch.equal(back[1][key], content[1][key])
        assert back[1][key].dtype == content[1][key].dtype
    assert torch.equal(back[2]["turned"], content[2]["turned"])
    assert back[2]["scalar"].item() == 2.5
    assert back[3]["spread"].tolist() == [7]
    assert back[3]["wide"].tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_a_pack_is_sent_as_one_tensor() -> None:
    packed = pack([torch.rand(100) for _ in range(50)])
    assert packed.storage.dtype == torch.uint8
    assert len(packed.skeleton) < 5000  # none of the 20,000 bytes of the tensors
    assert len(packed.storage) >= 20_000
