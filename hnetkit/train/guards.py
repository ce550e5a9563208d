"""Guards that warn, roll back or stop before a run ruins its network: numbers in, a verdict out. Imports no torch.

The loss of a single step says little: it depends on the time step that was drawn more than on the network, and goes
from 0.01 to 3 in a healthy run. So the logarithm of the loss is added up over steps as far as it lies above that of the
run's best steps (a one-sided cumulative sum; Page, "Continuous Inspection Schemes", 1954). Noise sums to nothing, a
network that breaks crosses the limit in some 5 to 50 steps, and the step at which the sum was last zero is the last one
that was surely sound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hnetkit.errors import UsageError

MEASURED = 64
"""Losses that `Guards.begin` takes: at batch size 1 they differ so much that fewer say little of their level."""

_BLOCK = 100
"""Steps over which level and spread of the loss are measured; later steps are compared with the best block so far."""

_ALLOWED = 0.5
"""How far the loss may stay above that level, in spreads."""

_DOUBT = 2.0
"""Standard errors of that level that are added to it."""

_MOST_OF_ONE = 3.0
"""Most that a single step adds, in spreads: no outlier alone is a spike."""

_ALARM = 20.0
"""Sum of spreads above the allowed level that is a spike. With these five numbers a run that learns nothing at batch
size 1, the worst case, has a false alarm once in about 10 million steps. A loss five times as high is seen after some
30 steps, and after 8 if the spread is a third of that, as at batch size 8."""

_LEAST_SPREAD = 0.2
_LEAST_LOSS = 1e-12
_LEAST_GRADIENT = 1e-12
_LEAST_ENERGY = 0.001
"""Least energy that previews are compared with: images of flat color have next to none to multiply."""

_SURELY = 3.0
"""Standard errors by which the running mean exceeds the loss before the first step where it surely is a higher one."""

_NOT_IN_STATE = ("settings", "window")
_ADDED_LATER = ("first_loss", "first_error")  # checkpoints of 0.2.0 do not hold them

_LOWER_RATE = "lower the rate: --rate with a smaller number, or --clip-norm 1 for single bad steps"


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """The limits of a run's guards.

    Attributes:
        window: steps of the running mean of the loss; None: a tenth of the run, 10 to 100.
        loss_limit: a running mean above it, and above the loss before the first step, warns once.
        spike: a loss that stays above this many times its best level, and above what its spread explains, has spiked.
        dead_steps: steps in a row without a gradient, after which none is expected any more.
        skipped_steps: steps in a row that mixed precision may skip for gradients that are not finite.
        noise_limit: a preview with more than so many times the first one's high frequencies has become noise.
        rate_factor: factor applied to the learning rate at each roll-back.
        most_roll_backs: of a run; the next fault stops it.

    Raises:
        UsageError: an invalid number.
    """

    window: int | None = None
    loss_limit: float = 0.3
    spike: float = 1.5
    dead_steps: int = 10
    skipped_steps: int = 15
    noise_limit: float = 3.0
    rate_factor: float = 0.1
    most_roll_backs: int = 3

    def __post_init__(self) -> None:
        for name in ("loss_limit", "spike", "noise_limit", "rate_factor"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} {getattr(self, name):g}: a number above 0")
        for name in ("window", "dead_steps", "skipped_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)}: at least 1")
        if self.rate_factor > 1 or self.most_roll_backs < 0:
            raise UsageError(
                f"rate_factor {self.rate_factor:g}, most_roll_backs {self.most_roll_backs}: at most 1, and at least 0"
            )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do about a step or a preview.

    Attributes:
        kind: ``"warn"`` continues; ``"roll-back"`` restores the newest checkpoint of `sound_until` steps or fewer and
            calls `Guards.roll_back`; ``"stop"`` ends the run.
        reason: one line that says what was seen, for the user.
        remedy: one line with the option to change.
        sound_until: steps after which nothing was wrong yet; a later checkpoint may contain the damage. 0 is the
            network before its first step.
    """

    kind: Literal["warn", "roll-back", "stop"]
    reason: str
    remedy: str
    sound_until: int = 0


class Guards:
    """Watches the losses, the gradients and the previews of a run.

    Args:
        settings: their limits.
        steps: of the whole run.

    Attributes:
        settings: the limits.
        window: steps of `running_mean`.
        roll_backs: made so far.
    """

    def __init__(self, settings: GuardSettings | None = None, steps: int = 1000) -> None:
        self.settings = settings or GuardSettings()
        self.window = self.settings.window or min(100, max(10, steps // 10))
        self.roll_backs = 0
        self._recent: list[float] = []
        self._has_warned = False
        self._first_loss: float | None = None
        self._first_error: float | None = None
        self._has_seen_gradient = False
        self._without_gradient = 0
        self._skipped = 0
        self._level = 0.0
        self._spread = 1.0
        self._limit: float | None = None
        self._block: list[float] = []
        self._excess = 0.0
        self._sound_until = 0
        self._first_energy: float | None = None
        self._last_good_preview = 0

    @property
    def rate_factor(self) -> float:
        """The factor of the schedule's rates: 1 before the first roll-back."""
        return self.settings.rate_factor**self.roll_backs

    @property
    def running_mean(self) -> float:
        """Mean loss of the last `window` steps, or of those there are; NaN before the first."""
        return math.fsum(self._recent) / len(self._recent) if self._recent else math.nan

    def begin(self, losses: Sequence[float]) -> Verdict | None:
        """Takes the loss before the first step; without it, a run that breaks at once looks even.

        Args:
            losses: of `MEASURED` batches that are as large as a step's.
        """
        if not all(map(math.isfinite, losses)):
            return Verdict(
                "stop",
                "the loss is not finite before the first step: the model or the latents hold NaN",
                "--precision no, or another autoencoder (--vae)",
            )
        first = self._first_loss = _mean(losses)
        variance = _mean([(loss - first) ** 2 for loss in losses])
        self._first_error = math.sqrt(variance / len(losses) + variance / self.window)
        self._compare_with([_log(loss) for loss in losses])
        return None

    def after_step(self, step: int, loss: float, gradient_norm: float, *, is_skipped: bool = False) -> Verdict | None:
        """Returns what to do after a step of the optimizer; None continues.

        Args:
            step: the steps made, this one included.
            loss: mean over the step's samples.
            gradient_norm: of all parameters together, before clipping and after unscaling.
            is_skipped: mixed precision's scaler found gradients that are not finite, and skipped the step.
        """
        if not math.isfinite(loss):
            return self._fault(f"the loss of step {step} is {loss}", _LOWER_RATE)
        self._skipped = self._skipped + 1 if is_skipped else 0
        if self._skipped >= self.settings.skipped_steps:
            reason = f"{self._skipped} steps in a row had gradients that are not finite and were left out"
            return self._fault(reason, "--precision bf16, or a lower --rate")
        if not is_skipped:
            fault = self._check_gradient(step, gradient_norm)
            if fault is not None:
                return fault
        self._recent = [*self._recent, loss][-self.window :]
        return self._check_loss(step, _log(loss)) or self._warning(step)

    def after_preview(self, step: int, energy: float, fault: str = "") -> Verdict | None:
        """Returns what to do after a preview; None continues.

        Later previews are compared with the first one, which is best drawn before the first step.

        Args:
            step: the steps made.
            energy: `hnetkit.train.previews.Preview.energy`, its high frequencies.
            fault: `hnetkit.train.previews.Preview.fault`, if images came out NaN or black.
        """
        if fault:
            return self._fault(f"the preview after step {step}: {fault}", _LOWER_RATE, self._last_good_preview)
        first = self._first_energy = energy if self._first_energy is None else self._first_energy
        times = energy / max(first, _LEAST_ENERGY)
        if times > self.settings.noise_limit:
            reason = f"the preview after step {step} has turned to noise: {times:.1f} times the first one's fine detail"
            remedy = f"{_LOWER_RATE}; where the style is that rough, raise --noise-limit"
            return self._fault(reason, remedy, self._last_good_preview)
        self._last_good_preview = step
        return None

    def roll_back(self, state: Mapping[str, Any]) -> None:
        """Restores the statistics of the checkpoint that the run went back to, and lowers `rate_factor`.

        Args:
            state: what `state_dict` gave when that checkpoint was written.
        """
        roll_backs, has_warned = self.roll_backs + 1, self._has_warned
        self.load_state_dict(state)
        self.roll_backs, self._has_warned = roll_backs, has_warned
        self._excess, self._without_gradient, self._skipped = 0.0, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that later verdicts depend on, as `json.dumps` takes it."""
        state = {name.removeprefix("_"): value for name, value in vars(self).items() if name not in _NOT_IN_STATE}
        return {name: list(value) if isinstance(value, list) else value for name, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` gave: the same numbers then give the same verdicts.

        Raises:
            KeyError: something is missing in `state`.
        """
        for name in self.state_dict():
            value = state.get(name) if name in _ADDED_LATER else state[name]
            setattr(self, name if name == "roll_backs" else f"_{name}", list(value) if type(value) is list else value)

    def _check_gradient(self, step: int, norm: float) -> Verdict | None:
        if not math.isfinite(norm):
            return self._fault(f"the gradient of step {step} is {norm}", _LOWER_RATE)
        if norm >= _LEAST_GRADIENT:
            self._has_seen_gradient, self._without_gradient = True, 0
            return None
        self._without_gradient += 1
        if self._without_gradient < self.settings.dead_steps:
            return None
        reason = f"no gradient reaches the network: {self._without_gradient} steps in a row have none"
        if self._has_seen_gradient:
            return self._fault(reason, _LOWER_RATE, min(self._sound_until, max(0, step - self._without_gradient)))
        remedy = "--initialization normal, less --dropout, or another --activation; nothing was lost"
        return Verdict("stop", reason, remedy)

    def _check_loss(self, step: int, level: float) -> Verdict | None:
        """Adds a step to the cumulative sum."""
        if self._limit is not None:
            self._excess = max(0.0, self._excess + min(_MOST_OF_ONE, (level - self._limit) / self._spread))
        if self._excess == 0:
            self._sound_until = step - 1
        self._block.append(level)
        if self._excess >= _ALARM:
            times = math.exp(_mean(self._block[-20:]) - self._level)
            reason = f"the loss spiked: since step {self._sound_until + 1} it lies {times:.1f} times above its best"
            return self._fault(reason, _LOWER_RATE)
        if len(self._block) == _BLOCK:
            self._compare_with(self._block)
            self._block = []
        return None

    def _compare_with(self, levels: Sequence[float]) -> None:
        """Compares later steps with these levels if that is stricter than before."""
        level = _mean(levels)
        spread = max(_LEAST_SPREAD, math.sqrt(_mean([(one - level) ** 2 for one in levels])))
        doubt = _DOUBT * spread / math.sqrt(len(levels))
        limit = level + max(math.log(self.settings.spike), _ALLOWED * spread) + doubt
        if self._limit is None or limit < self._limit:
            self._level, self._spread, self._limit = level, spread, limit

    def _warning(self, step: int) -> Verdict | None:
        """Returns a warning, once a run, about a loss that is high and no longer that of the untrained network."""
        mean, limit = self.running_mean, self.settings.loss_limit
        if self._has_warned or mean <= limit or len(self._recent) < self.window:
            return None
        reason = f"the loss is {mean:.3f} over the last {len(self._recent)} steps, above {limit:g}"
        if self._first_loss is not None and self._first_error is not None:
            if mean <= self._first_loss + _SURELY * self._first_error:
                return None
            reason += f" and above the {self._first_loss:.3f} before the first step"
        self._has_warned = True
        return Verdict("warn", reason, f"{_LOWER_RATE}; --loss-limit moves the limit", self._sound_until)

    def _fault(self, reason: str, remedy: str, sound_until: int | None = None) -> Verdict:
        until = self._sound_until if sound_until is None else sound_until
        if self.roll_backs < self.settings.most_roll_backs:
            return Verdict("roll-back", reason, remedy, until)
        tried = f"after {self.roll_backs} roll-backs" if self.roll_backs else "and no roll-back is allowed"
        return Verdict("stop", f"{reason}, {tried}", remedy, until)


def _log(loss: float) -> float:
    return math.log(max(loss, _LEAST_LOSS))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
