import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from fedcurv.simulations.data.sets import load


@pytest.fixture(autouse=True)
def forget_data():
    load.cache_clear()
    yield
    load.cache_clear()


def write_idx(path: Path, values: np.ndarray) -> None:
    """Write the format in which MNIST is published."""
    header = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


def write_mnist(root: Path, folder: str = "MNIST") -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for prefix, number in (("t10k", 30), ("train", 100)):
        pixels = rng.integers(0, 256, (number, 28, 28))
        labels = np.arange(number) % 10
        write_idx(raw / f"{prefix}-images-idx3-ubyte", pixels)
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", labels)
    return pixels, labels


def test_digits_are_real_scans_that_come_with_the_installation():
    data = load("digits", "/nowhere", False)
    assert data.shape == (1, 8, 8)
    assert data.num_classes == 10
    assert len(data.train_inputs) + len(data.test_inputs) == 1797
    assert set(data.labels.tolist()) == set(data.test_targets.tolist()) == set(range(10))


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")]
)
def test_torchvision_files_are_read_from_the_root(name, folder, tmp_path):
    pixels, labels = write_mnist(tmp_path, folder)
    data = load(name, str(tmp_path), False)
    assert data.shape == (1, 28, 28)
    assert np.array_equal(data.labels, labels)
    inputs, targets = data.train_samples(np.array([3, 5]))
    assert targets.tolist() == [3, 5]
    expected = (pixels[[3, 5]] - pixels.mean()) / pixels.std()
    torch.testing.assert_close(inputs[:, 0].double().numpy(), expected, rtol=1e-5, atol=1e-5)
    assert data.test_samples()[0].shape == (30, 1, 28, 28)


def test_cifar_pictures_have_their_channels_first(monkeypatch):
    class Fake:
        def __init__(self, root, train, download):
            self.data = np.zeros((6, 32, 32, 3), dtype=np.uint8)
            self.data[..., 1] = 200
            self.targets = [0, 1, 2, 3, 4, 9]

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Fake)
    data = load("cifar10", "unused", False)
    assert data.shape == (3, 32, 32)
    assert data.train_inputs[0, 1].eq(200).all()
    assert data.num_classes == 10


def test_missing_files_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load("mnist", str(tmp_path), False)
    text = str(error.value)
    assert f"data=mnist: not found in {tmp_path}/MNIST/raw and data.download is false" in text
    assert "set data.root to a folder that has it" in text
    assert "\n" not in text


def test_a_download_without_a_network_is_explained(tmp_path, monkeypatch):
    def no_network(*_args, **_options):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz:\nno route to host")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", no_network)
    with pytest.raises(
        FileNotFoundError, match=r"could not be downloaded .*use data=digits"
    ) as error:
        load("mnist", str(tmp_path), True)
    assert "\n" not in str(error.value)


def test_unknown_data_are_named_with_those_that_exist():
    with pytest.raises(ValueError, match="digits, mnist, fashion_mnist, cifar10, got 'imagenet'"):
        load("imagenet", "", False)
