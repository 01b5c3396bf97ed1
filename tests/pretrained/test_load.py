"""Pre-trained backbones: files, folders, a hub on the loopback, bad input."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny_digits
import tiny_vit
from tiny_vit import CONFIG, drawn, save
from tiny_vit import NAME as ARCH

from lt_jax import models, trees
from lt_jax.errors import InputError
from lt_jax.experiment import session, weights
from lt_jax.pretrained import hub, load, table
from lt_jax.pretrained.table import TABLE

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    tiny_vit.register(monkeypatch)


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def read(found: load.Weights, channels=3, name=ARCH):
    return load.backbone(found, name, models.create(name), channels)


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, name)


def test_the_table_names_known_networks_once():
    assert {entry.arch for entry in TABLE.values()} <= {*models.ARCHS}
    assert len({entry.repository for entry in TABLE.values()}) == len(TABLE)
    for entry in TABLE.values():
        assert entry.recipe.size <= entry.recipe.resize
        assert entry.recipe.size % models.create(entry.arch).side_multiple == 0
        assert all(min(std) > 0 for std in entry.recipe.colours[1:])
        assert re.fullmatch("([0-9a-f]{64})?", entry.sha256)
        assert re.fullmatch("([0-9a-f]{40})?", entry.revision)
        assert entry.sha256 or not entry.revision
    pins = json.loads(Path(table.__file__).with_name("table.json").read_text())["pins"]
    assert {name for name, entry in TABLE.items() if entry.sha256} == {*pins}
    assert {"resnet18.tv_in1k", "vit_small_patch14_dinov2.lvd142m"} <= {*pins}


def test_a_file_and_a_folder(tmp_path):
    file = tmp_path / "model.safetensors"
    expected = save(file)
    assert_same(read(load.find(str(file), sha256(file))), expected)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    found = load.find(str(tmp_path))
    assert_same(read(found), expected)
    assert found.described.recipe[:3] == (((0.5,) * 3, (0.2,) * 3), 8, 8)
    assert found.notes == {
        "source": str(tmp_path),
        "file": "model.safetensors",
        "sha256": sha256(file),
        "checked": False,
        "licence": "mit",
        "from": str(tmp_path / "config.json"),
    }


def test_stage_1_starts_from_a_backbone(tmp_path):
    """Its head stays fresh, and the provenance is kept."""
    file = tmp_path / "net.safetensors"
    expected = save(file, channels=1)
    fields = {"model__name": ARCH, "init__path": str(file)}
    config = tiny_digits.config(**fields, init__sha256=sha256(file))
    with session.open_session(config, tmp_path / "run") as opened:
        network, origin = weights.initial(opened, (1, 0))
        fresh = weights.fresh(opened.task, "torch", (1, 0))
        assert origin["initial"]["sha256"] == sha256(file)
        assert origin["initial"]["checked"]
        with pytest.raises(InputError, match="a backbone without a trained head: use"):
            next(weights.representations(opened))
    leaves = trees.leaves(network._asdict())
    heads = {n: leaves.pop(n) for n in [*leaves] if "/head/" in n}
    assert_same(leaves, expected)
    assert_same({f"params/head/{n}": v for n, v in fresh.params["head"].items()}, heads)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf:nonsense", "expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION, got"),
        ("hf:a/b@", "expected hf:OWNER/NAME"),
        ("missing.safetensors", "no such file: missing.safetensors"),
    ],
)
def test_a_wrong_source_is_refused(source, message):
    with pytest.raises(InputError, match=message):
        load.find(source)


def test_wrong_weights_are_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    save(file)
    with pytest.raises(InputError, match=r"has the SHA-256 \w{64}, expected 00: it is"):
        load.find(str(file), "00")
    found = load.find(str(file))
    with pytest.raises(InputError, match="images of 3 channels, but these have 1"):
        read(found, channels=1)
    with pytest.raises(InputError, match="does not hold a resnet8: it holds no resid"):
        read(found, name="resnet8")
    with pytest.raises(InputError, match=r"vit_small_patch16_224: ! .* in the file"):
        read(found, name="vit_small_patch16_224")
    with pytest.raises(InputError, match="as input"):
        load.backbone(found, "none", models.Identity(3), 3)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"only a part of one .*: download it again$"):
        read(load.find(str(file)))
    with pytest.raises(InputError, match=r"no such file: .*config\.json"):
        load.find(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "vit_tset"}, "unknown architecture 'vit_tset'.* 'vit_test'"),
        ({"pretrained_cfg": {}}, "lacks 'pretrained_cfg.mean'"),
        ({"architecture": 3}, "architecture must be a string, got 3"),
    ],
)
def test_a_wrong_config_json_is_refused(tmp_path, change, message):
    save(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(InputError, match=message):
        load.find(str(tmp_path))


def test_another_architecture_is_named(tmp_path):
    save(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(InputError, match=f"is a {ARCH}, .* --config.model.name={ARCH}"):
        read(load.find(str(tmp_path)), name="resnet8")


class Hub(http.server.ThreadingHTTPServer):
    """A hub with one repository; it may break connections."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder, self.repository = folder, "a/b"
        self.breaks = 0  # how many more downloads of weights to cut off half-way
        self.requests: list[tuple[str, str]] = []  # name of the file, range


class Answer(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, sends: bool) -> None:
        where, revision, name = self.path.rsplit("/", 2)
        file = self.server.folder / name
        if where != f"/{self.server.repository}/resolve" or not file.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = file.read_bytes()
        asked = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        first = int(asked[1]) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            last = len(content) - 1
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT if revision == "main" else revision)
        self.end_headers()
        if not sends:
            return
        self.server.requests.append((name, self.headers.get("Range") or ""))
        rest = content[first:]
        if self.server.breaks and name == load.FILE:
            self.server.breaks -= 1
            rest = rest[: len(rest) // 2]
        self.wfile.write(rest)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A hub on the loopback, and the client with an empty cache."""
    reason = "pip install 'lt_jax[hub]'"
    constants = pytest.importorskip("huggingface_hub.constants", reason=reason)
    folder = tmp_path / "served"
    folder.mkdir()
    save(folder / load.FILE)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    server = Hub(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    # The client reads its environment when it is imported.
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint())
    template = hub.endpoint() + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield server
    server.shutdown()
    server.server_close()


def go_offline(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_the_hub_is_asked_once_and_not_at_all_offline(served, monkeypatch):
    file = served.folder / load.FILE
    found = load.find("hf:a/b", sha256(file))
    assert found.notes["revision"] == COMMIT
    assert found.notes["sha256"] == sha256(file)
    assert read(found).keys() == {n for n in drawn() if "/head/" not in n}
    assert [name for name, _ in served.requests] == ["config.json", load.FILE]
    go_offline(monkeypatch)
    assert load.find("hf:a/b").file == found.file
    assert load.find(f"hf:a/b@{COMMIT}").file == found.file
    assert len(served.requests) == 2


def test_a_broken_download_is_resumed(served, monkeypatch):
    from huggingface_hub import file_download

    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)
    monkeypatch.setattr(file_download.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    file, served.breaks = served.folder / load.FILE, 2
    assert load.find("hf:a/b").notes["sha256"] == sha256(file)
    ranges = [span for name, span in served.requests if name == load.FILE]
    kept = file.stat().st_size // 2 // 1000 * 1000
    assert ranges[:2] == ["", f"bytes={kept}-"]
    assert len(ranges) == 3


def test_a_wrong_hash_is_refused(served):
    with pytest.raises(InputError, match="expected ff: it is damaged or another versi"):
        load.find("hf:a/b", "ff")


PINNED = "resnet18.tv_in1k"  # a name of the table


def test_a_pinned_name_refuses_another_file(served):
    """A hash that the user gives replaces the pin."""
    served.repository, entry = f"timm/{PINNED}", TABLE[PINNED]
    digest = sha256(served.folder / load.FILE)
    wrong = rf"/{entry.revision}/{load.FILE} has the SHA-256 {digest}, expected "
    with pytest.raises(InputError, match=wrong + entry.sha256):
        load.find(f"hf:timm/{PINNED}")
    with pytest.raises(InputError, match=f"expected {entry.sha256}.* its hash "):
        load.find(f"hf:timm/{PINNED}@main")
    notes = load.find(f"hf:timm/{PINNED}", digest).notes
    assert (notes["revision"], notes["checked"]) == (COMMIT, True)


def test_a_damaged_file_of_the_cache_can_be_replaced(served):
    """It is the content that a snapshot links to, not the link."""
    served.repository = f"timm/{PINNED}"
    digest = sha256(served.folder / load.FILE)
    file = load.find(f"hf:timm/{PINNED}", digest).file
    blob = file.resolve()
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + b"!")
    with pytest.raises(InputError, match="it is damaged") as caught:
        load.find(f"hf:timm/{PINNED}", digest)
    (named,) = re.findall("Delete (.*) and download", str(caught.value))
    Path(named).unlink()
    assert load.find(f"hf:timm/{PINNED}", digest).notes["checked"]


def test_a_pinned_file_is_found_under_any_commit(served, monkeypatch):
    source, served.repository, entry = (
        f"hf:timm/{PINNED}",
        f"timm/{PINNED}",
        TABLE[PINNED],
    )
    digest = sha256(served.folder / load.FILE)
    monkeypatch.setitem(TABLE, PINNED, entry._replace(sha256=digest))
    load.find(f"{source}@main")
    go_offline(monkeypatch)
    notes = load.find(source).notes
    assert (notes["revision"], notes["sha256"]) == (COMMIT, digest)
    assert notes["checked"]
    for other in ("", "0" * 64):
        monkeypatch.setitem(TABLE, PINNED, entry._replace(sha256=other))
        with pytest.raises(InputError, match=f"cannot fetch .*/{entry.revision}/"):
            load.find(source)


def test_a_pinned_file_is_downloaded_at_its_revision(served, monkeypatch):
    served.repository, entry = f"timm/{PINNED}", TABLE[PINNED]
    digest = sha256(served.folder / load.FILE)
    monkeypatch.setitem(TABLE, PINNED, entry._replace(sha256=digest))
    notes = load.find(f"hf:timm/{PINNED}").notes
    assert notes["revision"] == entry.revision
    assert notes["checked"]


def test_without_the_file_or_the_network_a_message_says_what_to_fetch(
    served, monkeypatch
):
    where = re.escape(f"{hub.endpoint()}/a/b/resolve/main/{load.FILE}")
    (served.folder / load.FILE).unlink()
    with pytest.raises(InputError, match=rf"hf:a/b: .*Or download {where}"):
        load.find("hf:a/b")
    go_offline(monkeypatch)
    with pytest.raises(InputError, match=r"cannot fetch hf:a/c: .*/config\.json "):
        load.find("hf:a/c")
    with pytest.raises(InputError, match=r"did you mean 'resnet50\.tv_in1k'"):
        load.find("hf:timm/resnet50.tv_in2k")


def test_without_the_extra_a_message_names_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"'lt_jax\[hub\]', or download http"):
        load.find("hf:timm/resnet50.tv_in1k")
