from .atss import ATSSMatcher
from .build import MATCHER_REGISTRY, GroundTruth, Matcher, MatchResult, build_matcher
from .hungarian import HungarianMatcher
from .max_iou import MaxIoUMatcher
from .simota import SimOTAMatcher
from .statistics import match_statistics
from .topk_iou import TopKIoUMatcher
from .uniform import UniformMatcher

__all__ = [
    "MATCHER_REGISTRY",
    "ATSSMatcher",
    "GroundTruth",
    "HungarianMatcher",
    "MatchResult",
    "Matcher",
    "MaxIoUMatcher",
    "SimOTAMatcher",
    "TopKIoUMatcher",
    "UniformMatcher",
    "build_matcher",
    "match_statistics",
]
