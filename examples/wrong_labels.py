"""Training with 40 % wrong labels: cross-entropy learns them by heart, a bounded loss does not."""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

from fedcurv.label_noise import symmetric_noise
from fedcurv.losses import GeneralizedCrossEntropy, RegularizedCrossEntropy

images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
images = images.float() / 16
generator = torch.Generator().manual_seed(0)
wrong = symmetric_noise(labels[:1400], 0.4, num_classes=10, generator=generator).labels
CRITERIA = {
    "cross-entropy": nn.CrossEntropyLoss(),
    "label smoothing, λ = 10": RegularizedCrossEntropy("label_smoothing", strength=10.0),
    "generalised cross-entropy": GeneralizedCrossEntropy(q=0.7),
}

figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, criterion in CRITERIA.items():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    accuracies = []
    for _ in range(60):
        for rows in torch.randperm(1400).split(32):
            optimizer.zero_grad()
            criterion(model(images[rows]), wrong[rows]).backward()
            optimizer.step()
        right = model(images[1400:]).argmax(1) == labels[1400:]
        accuracies.append(right.double().mean().item())
    axes.plot(accuracies, label=name)
    print(f"{name}: {accuracies[-1]:.0%}")
axes.set(xlabel="epoch", ylabel="accuracy on right labels")
axes.legend()
figure.savefig("wrong_labels.png", dpi=110)
