"""Delayed start (section 4.2): replay and collection wait until the policy is good enough, and never switch back."""


class DelayedStart:
    """Off until a batch's Pass@1 exceeds `threshold`; on from the following step, for ever. `None` starts at once."""

    def __init__(self, threshold: float | None) -> None:
        self.threshold = threshold
        self.active = threshold is None

    def observe(self, pass_rate: float) -> None:
        """Take note of the mean reward of a finished step's fresh rollouts; takes effect at the next step."""
        if self.threshold is not None and pass_rate > self.threshold:
            self.active = True
