"""The one store of experience: questions, trajectories, buckets, eviction, and their state as arrays."""

from recipe.exgrpo.core.buffer.experience import ExperienceBuffer
from recipe.exgrpo.core.buffer.records import Candidates, Origin, Provenance, Response, Trajectory, prompt_hash

__all__ = ["Candidates", "ExperienceBuffer", "Origin", "Provenance", "Response", "Trajectory", "prompt_hash"]
