from __future__ import annotations

import pytest
from detectron2.layers import ShapeSpec

from yolof_d2.errors import ConfigError
from yolof_d2.modeling.matcher import TopKIoUMatcher, UniformMatcher

MAP = ShapeSpec(channels=6, stride=32)
MATCHERS = [UniformMatcher, TopKIoUMatcher]
MATCHERS += [type(f"My{part.__name__}", (part,), {}) for part in MATCHERS]


@pytest.mark.parametrize("matcher", MATCHERS)
@pytest.mark.parametrize(("fixed_size", "found"), [((), 20), ((320, 288), 405)])
def test_more_positives_than_an_image_has_anchors_are_refused(cfg, matcher, fixed_size, found):
    cfg.INPUT.MIN_SIZE_TRAIN = (64, 96)
    cfg.INPUT.FIXED_SIZE.TRAIN = fixed_size
    name = "UNIFORM" if issubclass(matcher, UniformMatcher) else "TOPK_IOU"
    node = cfg.MODEL.YOLOF.MATCHER[name]
    node.TOPK = found
    matcher(cfg, MAP, num_anchors=5)
    node.TOPK = found + 1
    with pytest.raises(ConfigError, match=rf"{name}\.TOPK is {found + 1}.*has {found} anchors"):
        matcher(cfg, MAP, num_anchors=5)
