"""TFDS's own builders on archives that lie in a folder; needs TensorFlow.

TFDS 4.9.10 knows the archives in a folder by the checksums of their addresses, which
its wheel has left out for iNaturalist 2018: without them it starts to download. They
are computed here from the files, so none is checked against what was published.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from lt_jax.data.sources import tfds as reading
from lt_jax.errors import InputError, one_of

INAT = "https://ml-inat-competition-datasets.s3.amazonaws.com/2018/"
CIFAR = "https://www.cs.toronto.edu/~kriz/"
LISTS = "https://drive.google.com/uc?export=download&id="

# The address of each archive that a builder asks for, by file name.
ADDRESSES = {
    "i_naturalist2018": {
        name: INAT + name
        for name in (
            "train_val2018.tar.gz",
            "train2018.json.tar.gz",
            "val2018.json.tar.gz",
            "test2018.tar.gz",
            "categories.json.tar.gz",
        )
    },
    # Beside ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar.
    "imagenet_lt": {
        "ImageNet_LT_train.txt": LISTS + "1Sl1cwy6Dei1I1BMS1YKjI35fkaR1UA_7",
        "ImageNet_LT_val.txt": LISTS + "1AjYczW4khrQrwPIygXUkHF-Qv4QGEsCF",
    },
    "cifar100": {"cifar-100-binary.tar.gz": CIFAR + "cifar-100-binary.tar.gz"},
    "cifar10": {"cifar-10-binary.tar.gz": CIFAR + "cifar-10-binary.tar.gz"},
}


def prepare(name: str, archives: Path, dir: str) -> Path:
    """Lets TFDS's builder write array_record files; returns the folder.

    It wants the unlabelled test archive of iNaturalist too, passes over archives once
    for each split, and takes days for ImageNet-LT.

    Raises:
      InputError: no TensorFlow, or archives that are missing.
    """
    addresses = ADDRESSES[one_of("data set to prepare", name, ADDRESSES)]
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            "TFDS's own builders need TensorFlow: pip install 'lt_jax[prepare]'; or "
            "leave out --with=tfds, which writes the same set without it"
        )
    missing = [file for file in addresses if not (archives / file).is_file()]
    if missing:
        raise InputError(
            f"TFDS's builder of {name} needs {', '.join(missing)} in {archives} too"
        )
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import checksums

    made: Any = tfds.builder_cls(name)
    made.url_infos = {
        address: checksums.compute_url_info(archives / file)
        for file, address in addresses.items()
    }
    builder = made(data_dir=reading.root(dir), file_format="array_record")
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                manual_dir=archives, try_download_gcs=False
            )
        )
    except AssertionError as error:  # what it says of missing archives
        raise InputError(f"TFDS: {error}") from error
    return Path(builder.data_dir)
