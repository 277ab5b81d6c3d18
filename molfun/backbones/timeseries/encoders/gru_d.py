"""GRU-D: a recurrent network in which the last observed values, and the state, decay with time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from molfun.backbones.timeseries.encoders.base import EncoderConfig, LayeredEncoder


@dataclass
class GRUDConfig(EncoderConfig):
    """Settings of GRU-D; those of `EncoderConfig`."""

    name: str = "gru_d"


class Decay(nn.Module):
    """Fill gaps with the last value, which decays to the mean at a learned rate per feature.

    The mean is 0, since values are standardised (Che et al. 2018 decay to the empirical mean).
    """

    def __init__(self, d_input: int) -> None:
        super().__init__()
        # starts above 0: at 0 or below the ReLU has no gradient, and the rate would never learn
        self.rate = nn.Parameter(torch.full((d_input,), 0.05))
        self.offset = nn.Parameter(torch.zeros(d_input))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return filled values, mask and gaps: (batch, time, 3 d_input)."""
        last, gaps = last_observed(x, mask)
        decay = torch.exp(-functional.relu(gaps * self.rate + self.offset))
        observed = mask.to(x.dtype)
        filled = observed * x + (1 - observed) * decay * last
        return torch.cat([filled, observed, gaps], dim=-1)


class DecayingGRU(nn.Module):
    """Gated recurrent unit whose state decays with the time since the last observed values.

    The products with the inputs run once for all time steps; only those with the state have to run
    step by step.

    Parameters
    ----------
    d_input, d_model
        Features of the series, channels of the state.

    References
    ----------
    Che et al. 2018; Cho et al. 2014 for the gates, in the form of ``torch.nn.GRU``.
    """

    def __init__(self, d_input: int, d_model: int) -> None:
        super().__init__()
        self.state_decay = nn.Linear(d_input, d_model)
        self.input_gates = nn.Linear(2 * d_input, 3 * d_model)
        self.state_gates = nn.Linear(d_model, 3 * d_model)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map filled values, masks and gaps (batch, time, 3 d) to states (batch, time, d_model)."""
        values_and_mask, gaps = inputs.tensor_split([2 * inputs.shape[-1] // 3], dim=-1)
        decays = torch.exp(-functional.relu(self.state_decay(gaps))).unbind(1)
        gates = self.input_gates(values_and_mask).unbind(1)
        state = torch.zeros_like(decays[0])
        states = []
        for decay, gate in zip(decays, gates, strict=True):
            state = decay * state
            reset, update, new = gate.chunk(3, -1)
            own_reset, own_update, own_new = self.state_gates(state).chunk(3, -1)
            update = torch.sigmoid(update + own_update)
            new = torch.tanh(new + torch.sigmoid(reset + own_reset) * own_new)
            # The state stays in float32 while autocast computes gates in half precision: it is
            # updated once per step, and rounding errors would add up over long series.
            state = torch.lerp(new.to(state), state, update.to(state))
            states.append(state)
        return torch.stack(states, dim=1)


class GRUDEncoder(LayeredEncoder):
    """GRU-D for series whose gaps carry information.

    A missing value is replaced by the last observed one, which decays towards the mean of the
    training set (0 after standardisation) with the time since; the state of the network decays in
    the same way. Both rates are learned. Gaps are counted in steps.

    Parameters
    ----------
    config
        Settings.

    References
    ----------
    Che et al. 2018, "Recurrent Neural Networks for Multivariate Time Series with Missing Values".

    Examples
    --------
    >>> encoder = GRUDEncoder(GRUDConfig(d_input=3, d_model=8))
    >>> encoder(torch.zeros(2, 5, 3)).shape
    torch.Size([2, 5, 8])
    """

    config_class = GRUDConfig
    lora_targets = ("input_gates", "state_gates")

    def __init__(self, config: GRUDConfig) -> None:
        super().__init__(config)
        self.embedding = Decay(config.d_input)
        self.layers = nn.ModuleList([DecayingGRU(config.d_input, config.d_model)])
        self.dropout = nn.Dropout(config.dropout)

    def run_layers(
        self, hidden: torch.Tensor, padding_mask: torch.Tensor, which: range
    ) -> torch.Tensor:
        """Run the recurrence; padding comes last, so it cannot influence the steps before it."""
        del padding_mask
        for i in which:
            hidden = self.layers[i](hidden)
        return hidden

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply dropout, in training."""
        out: torch.Tensor = self.dropout(hidden)
        return out


def last_observed(x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return for each step the last value observed before it (0 if none), and its age in steps.

    Examples
    --------
    >>> x = torch.tensor([[[5.0], [0.0], [0.0], [7.0]]])
    >>> last, gaps = last_observed(x, torch.tensor([[[True], [False], [False], [True]]]))
    >>> last.flatten().tolist(), gaps.flatten().tolist()
    ([0.0, 5.0, 5.0, 5.0], [0.0, 1.0, 2.0, 3.0])
    """
    steps = torch.arange(x.shape[1], device=x.device)[None, :, None]
    # running maximum of the observed positions: all steps at once instead of a loop over time
    seen = torch.where(mask, steps, torch.full_like(steps, -1)).cummax(dim=1).values
    before = functional.pad(seen[:, :-1], (0, 0, 1, 0), value=-1)
    last = torch.where(before >= 0, x.gather(1, before.clamp(min=0)), torch.zeros_like(x))
    gaps = torch.where(before >= 0, steps - before, steps)
    return last, gaps.to(x.dtype)
