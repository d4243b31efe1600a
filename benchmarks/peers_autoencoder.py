"""A plain convolutional autoencoder in PyTorch, as a tutorial has it: the score is the mean squared error."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Autoencoder(nn.Module):
    """Three convolutions down, three up; pictures of shape (n, 1, side, side) in [0, 1], a side of a multiple of 8."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(64, 32, 3, stride=2, padding=1, output_padding=1), nn.ReLU(),
            nn.ConvTranspose2d(32, 16, 3, stride=2, padding=1, output_padding=1), nn.ReLU(),
            nn.ConvTranspose2d(16, 1, 3, stride=2, padding=1, output_padding=1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, pictures):
        return self.decoder(self.encoder(pictures))


def fit_autoencoder(pictures, *, epochs=20, batch_size=32, learning_rate=1e-3):
    """Return the network trained on pictures to give them back."""
    model = Autoencoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    for _ in range(epochs):
        for (batch,) in DataLoader(TensorDataset(pictures), batch_size=batch_size, shuffle=True):
            loss = nn.functional.mse_loss(model(batch), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def score_autoencoder(model, pictures):
    """Return the mean squared error of each picture, shape (n,)."""
    return torch.cat([((model(batch) - batch) ** 2).mean((1, 2, 3)) for batch in pictures.split(256)])
