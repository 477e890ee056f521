"""The local mirror of a cache in an object store: small files are kept locally, rows are read from the store.

    $SAESCOPE_HOME/stores/NAME-HASH.json          the URL
                          NAME-HASH/              small files of the cache: tokens, manifests, norms
                                    heldout-N/    the same for its cache of evaluation sequences

Everything here can be deleted; it is fetched again.
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
    """The store of a cache folder: the folder itself, or the object store that it mirrors."""
    for place, below in ((folder, ""), (folder.parent, f"/{folder.name}")):
        if place.parent == cache_home() / "stores" and _note(place).is_file():
            return remote_store(f"{read_json(_note(place))['url']}{below}")
    return LocalStore(folder)


def fetch_tokens(folder: Path) -> None:
    """Update the tokens in a mirror from its store, if it has any; does nothing for local caches."""
    store = store_of(folder)
    if isinstance(store, LocalStore):
        return
    manifest = store.read(MANIFEST)
    if manifest is None or manifest == LocalStore(folder).read(MANIFEST):
        return
    with locked(folder, wait=True):
        if manifest == LocalStore(folder).read(MANIFEST):
            return  # another process was faster, and may be fetching hooks into the folder by now
        with atomic_dir(folder) as part:
            for name in _of_tokens(manifest, store):
                (part / name).write_bytes(store.read(name) or b"")
            (part / MANIFEST).write_bytes(manifest)


def store_tokens(folder: Path) -> None:
    """Upload the tokens of a mirror to its store, manifest last, unless they are there; does nothing for local caches."""
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
    """Fetch manifest and norms of a finished hook; does nothing for local caches or unfinished hooks."""
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
