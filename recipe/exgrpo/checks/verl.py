"""verl's own validation of a configuration, with our kind of refusal."""

from omegaconf import DictConfig

from recipe.exgrpo.checks.findings import PreflightError


def validate(config: DictConfig) -> None:
    """verl's `validate_config`. Raises PreflightError with what it objects to. Imports verl: the platform must be chosen."""
    from hydra.errors import HydraException
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    try:
        validate_config(config, need_reference_policy(config), need_critic(config))
    except (AssertionError, ValueError, TypeError, KeyError, HydraException) as problem:
        # hydra wraps what a dataclass of verl says into its own exception.
        cause = problem.__cause__ if isinstance(problem, HydraException) and problem.__cause__ else problem
        raise PreflightError(f"verl's validate_config: {cause or type(cause).__name__}") from problem
