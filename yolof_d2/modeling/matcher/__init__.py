from .build import MATCHER_REGISTRY, GroundTruth, Matcher, MatchResult, build_matcher
from .uniform import UniformMatcher

__all__ = [
    "MATCHER_REGISTRY",
    "GroundTruth",
    "MatchResult",
    "Matcher",
    "UniformMatcher",
    "build_matcher",
]
