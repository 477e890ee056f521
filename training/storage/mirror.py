"""The local folder of a cache that lies in an object store: what is small is kept here, rows are read from there.

    $SAESCOPE_HOME/stores/NAME-HASH.json          the URL
                          NAME-HASH/              files of the cache: tokens, manifests, norms
                                    heldout-N/    those of the cache's cache for evaluation

All of it can be removed; it is fetched again.
"""

import hashlib
import re
from pathlib import Path

from sae.io.files import atomic_dir, atomic_file, parsed, read_json, write_json
from sae.io.locks import locked
from sae.io.paths import cache_home
from training.storage.remote import RemoteStore, remote_store
from training.storage.store import LocalStore

MANIFEST = "manifest.json"


def mirror_of(url: str) -> Path:
    """The local folder of a cache at a URL."""
    url = url.rstrip("/")
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", url.partition("://")[2].rsplit("/", 1)[-1])
    folder = cache_home() / "stores" / f"{name[:80]}-{hashlib.sha256(url.encode()).hexdigest()[:10]}"
    if not _note(folder).exists():
        write_json(_note(folder), {"url": url})
    return folder


def _note(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def store_of(folder: Path) -> LocalStore | RemoteStore:
    """Where the files of a cache's folder lie: in the folder itself, or in the store that it mirrors."""
    for place, below in ((folder, ""), (folder.parent, f"/{folder.name}")):
        if place.parent == cache_home() / "stores" and _note(place).is_file():
            return remote_store(f"{read_json(_note(place))['url']}{below}")
    return LocalStore(folder)


def fetch_tokens(folder: Path) -> None:
    """Make the tokens in a mirror those of its store, if there are any; does nothing elsewhere."""
    store = store_of(folder)
    if isinstance(store, LocalStore):
        return
    manifest = store.read(MANIFEST)
    if manifest is None or manifest == LocalStore(folder).read(MANIFEST):
        return
    with locked(folder, wait=True), atomic_dir(folder) as part:
        for name in _of_tokens(manifest, store):
            (part / name).write_bytes(store.read(name) or b"")
        (part / MANIFEST).write_bytes(manifest)


def store_tokens(folder: Path) -> None:
    """Put the tokens of a mirror into its store, the manifest last, unless they are there; does nothing elsewhere."""
    store = store_of(folder)
    if isinstance(store, LocalStore) or store.exists(MANIFEST):
        return
    manifest = (folder / MANIFEST).read_bytes()
    for name in _of_tokens(manifest, store):
        store.write(name, [(folder / name).read_bytes()])
    if not store.create(MANIFEST, manifest):
        fetch_tokens(folder)  # another process was faster


def _of_tokens(manifest: bytes, store: RemoteStore) -> list[str]:
    digests = parsed(manifest, store.place(MANIFEST)).get("sha256")
    return sorted(name for name in digests if "/" not in name) if isinstance(digests, dict) else []


def fetch_hook(folder: Path, hook: str) -> None:
    """Fetch the manifest and the norms of a finished hook; does nothing elsewhere or if it is not finished."""
    store, acts = store_of(folder), f"acts/{hook}"
    if isinstance(store, LocalStore):
        return
    manifest, here = store.read(f"{acts}/{MANIFEST}"), LocalStore(folder)
    if manifest is None:
        here.remove(f"{acts}/{MANIFEST}")
        return
    if manifest == here.read(f"{acts}/{MANIFEST}"):
        return
    for name in sorted(n for n in store.names(acts) if n.startswith("norms-")):
        with atomic_file(folder / acts / name) as file:
            file.write(store.read(f"{acts}/{name}") or b"")
    here.write(f"{acts}/{MANIFEST}", [manifest])
