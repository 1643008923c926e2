"""Networks with recurrent layers, in the ways in which people write them."""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

INPUTS, FRONT, AFTER, CLASSES = 8, 7, 5, 3


class Rows(nn.Module):
    """A recurrent module between linear layers, [N, steps, 8] to [N, 3]."""

    def __init__(self, kind, *, states=6, reads="outputs", **settings):
        super().__init__()
        self.front = nn.Linear(INPUTS, FRONT)
        self.cell = kind(FRONT, states, batch_first=True, **settings)
        width = (settings.get("proj_size") or states) * (1 + self.cell.bidirectional)
        self.after, self.head = nn.Linear(width, AFTER), nn.Linear(AFTER, CLASSES)
        self.reads = reads

    def forward(self, x):
        x, cell = torch.relu(self.front(x)), self.cell
        begin = None
        if self.reads == "given states":
            rows = cell.num_layers * (1 + cell.bidirectional)
            begin = torch.zeros(rows, len(x), cell.hidden_size, dtype=x.dtype, device=x.device)
            begin = (begin, begin) if isinstance(cell, nn.LSTM) else begin
        found, last = cell(x, begin)
        read = found.mean(1)
        if self.reads == "last states":
            last = last[0] if isinstance(last, tuple) else last
            read = torch.cat(list(last[-2:]), 1) if cell.bidirectional else last[-1]
        return self.head(torch.relu(self.after(read)))


class Looped(nn.Module):
    """A cell that is called once for each step."""

    def __init__(self, kind, states=6):
        super().__init__()
        self.front, self.cell = nn.Linear(INPUTS, FRONT), kind(FRONT, states)
        self.head = nn.Linear(states, CLASSES)

    def forward(self, x):
        state = None
        for step in torch.relu(self.front(x)).unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Own(nn.Module):
    """Gates written by hand; with `normalised`, states that are normalised over all of them."""

    def __init__(self, states=6, *, normalised=False):
        super().__init__()
        self.front = nn.Linear(INPUTS, FRONT)
        self.inputs = nn.Linear(FRONT, 3 * states)
        self.states = nn.Linear(states, 3 * states, bias=False)
        self.begin = nn.Parameter(torch.randn(1, states))
        self.norm = nn.LayerNorm(states) if normalised else nn.Identity()
        self.head = nn.Linear(states, CLASSES)

    def forward(self, x):
        state = self.begin.expand(len(x), -1)
        for step in torch.relu(self.front(x)).unbind(1):
            update, reset, new = self.inputs(step).chunk(3, 1)
            update_, reset_, new_ = self.states(state).chunk(3, 1)
            update, reset = torch.sigmoid(update + update_), torch.sigmoid(reset + reset_)
            state = self.norm(update * state + (1 - update) * torch.tanh(new + reset * new_))
        return self.head(state)


class Packed(nn.Module):
    """Sequences of different lengths, packed."""

    def __init__(self, kind, states=6, *, padded=False):
        super().__init__()
        self.front, self.cell = nn.Linear(INPUTS, FRONT), kind(FRONT, states, batch_first=True)
        self.head = nn.Linear(states, CLASSES)
        self.padded = padded

    def forward(self, x):
        lengths = torch.tensor([max(1, x.shape[1] - row % 3) for row in range(len(x))])
        rows = torch.relu(self.front(x))
        packed = pack_padded_sequence(rows, lengths, batch_first=True, enforce_sorted=False)
        found, last = self.cell(packed)
        if self.padded:
            return self.head(pad_packed_sequence(found, batch_first=True)[0].sum(1))
        last = last[0] if isinstance(last, tuple) else last
        return self.head(last[-1])
