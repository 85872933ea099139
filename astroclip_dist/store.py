"""Object storage behind one small interface: a folder at a URL (file, s3, gs, az, memory) with whole-object writes.

Every write is atomic (the object appears complete or not at all); every ranged read is checked for its length. Retries
with backoff and jitter happen inside the Rust client, bounded by a deadline. Credentials and endpoints come from the
environment's standard variables (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ...) and are never part of a URL.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import ObjectStore, from_url

from astroclip_dist.errors import StorageError

if TYPE_CHECKING:
    from obstore import PutResult

READ_DEADLINE_S = 120.0
CHECK_DEADLINE_S = 5.0
REFUSALS = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")

# Where the client asks for a role's credentials when the environment has none; elsewhere than on EC2 nobody answers.
INSTANCE_METADATA = "169.254.169.254"
_SHORT = "It is shorter than its index says: run `astroclip shards verify` on the dataset."
T = TypeVar("T")


class MissingObjectError(StorageError):
    """The object asked for does not exist."""


class ChangedObjectError(StorageError):
    """The object is not any more what it was when its tag was read."""


class ShortObjectError(StorageError):
    """The object ends before the range asked for."""


class CredentialsError(StorageError):
    """The storage answered, and refused who is asking."""


class StoredObject(NamedTuple):
    name: str
    size: int


class ObjectVersion(NamedTuple):
    """What an object is at this moment: its bytes change only together with its tag."""

    size: int
    tag: str


class ObjectTag(NamedTuple):
    """Tells an object's bytes from those of any other write; by which of the two depends on the storage."""

    e_tag: str | None
    version: str | None


class Store:
    """A folder on object storage; names are relative to its URL, with ``/`` between parts.

    Args:
        url: ``s3://bucket/prefix``, ``gs://``, ``az://``, ``file:///path``, ``memory:///``, or a local path.
        deadline_s: how long one request may be retried before it is an error, in seconds.
    """

    def __init__(self, url: str | os.PathLike[str], deadline_s: float = READ_DEADLINE_S) -> None:
        self.url = normalize_url(url)
        self._deadline_s = deadline_s
        self._root = Path(unquote(urlsplit(self.url).path)) if self.url.startswith("file://") else None
        self._objects = self._connect(deadline_s)

    def _connect(self, deadline_s: float) -> ObjectStore:
        if self._root is not None:
            # Created on the first write instead: reading a mistyped path must not leave a folder there.
            return from_url("file:///")
        options: dict[str, Any] = {
            "connect_timeout": timedelta(seconds=min(5.0, deadline_s)),
            # A stalled connection is given up and retried; a slow one that still delivers has the whole deadline.
            "read_timeout": timedelta(seconds=min(20.0, deadline_s)),
            "timeout": timedelta(seconds=deadline_s),
        }
        if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
            options["allow_http"] = True
        # The deadline alone bounds the retries: with jitter twenty of them may be over in four seconds.
        retry: dict[str, Any] = {"max_retries": 10_000, "retry_timeout": timedelta(seconds=deadline_s)}
        try:
            if self.url.startswith("memory://"):
                return from_url(self.url)
            return from_url(self.url, client_options=options, retry_config=retry)  # type: ignore[call-overload]
        except (BaseError, ValueError) as error:
            raise StorageError("URL", self.url, f"It cannot be opened: {_first_line(error)}") from error

    def _key(self, name: str) -> str:
        return name if self._root is None else str(self._root / name).lstrip("/")

    def __reduce__(self) -> tuple[type[Store], tuple[str, float]]:
        return Store, (self.url, self._deadline_s)

    def join(self, name: str) -> Store:
        """The folder ``name`` below this one."""
        return Store(f"{self.url}/{name}", self._deadline_s)

    def locate(self, name: str) -> str:
        return f"{self.url}/{name}"

    @property
    def is_local(self) -> bool:
        """Whether the folder lies on this machine's disk."""
        return self._root is not None

    def local_path(self, name: str) -> Path | None:
        """Where the object lies on this machine's disk, or None for remote storage."""
        return None if self._root is None else self._root / name

    def read(self, name: str) -> bytes:
        """A whole object.

        Raises:
            MissingObjectError, CredentialsError, StorageError
        """
        return self._call(name, lambda: bytes(obstore.get(self._objects, self._key(name)).bytes()))

    def read_tagged(self, name: str) -> tuple[bytes, ObjectTag]:
        """A whole object, and the tag that ``replace`` takes.

        Raises:
            MissingObjectError, CredentialsError, StorageError
        """

        def request() -> tuple[bytes, ObjectTag]:
            found = obstore.get(self._objects, self._key(name))
            return bytes(found.bytes()), ObjectTag(found.meta["e_tag"], found.meta["version"])

        return self._call(name, request)

    def read_range(self, name: str, start: int, stop: int) -> memoryview:
        """Bytes [start, stop) of an object, without a copy.

        Raises:
            ShortObjectError: the object ends before ``stop``.
            MissingObjectError, CredentialsError, StorageError
        """
        data = self._call(
            name, lambda: memoryview(obstore.get_range(self._objects, self._key(name), start=start, end=stop))
        )
        if len(data) != stop - start:
            raise ShortObjectError(
                self.locate(name), f"{len(data)} bytes instead of {stop - start} at offset {start}", _SHORT
            )
        return data

    def version(self, name: str) -> ObjectVersion:
        """Size and tag of an object.

        Raises:
            MissingObjectError, CredentialsError, StorageError
        """
        found = self._call(name, lambda: obstore.head(self._objects, self._key(name)))
        return ObjectVersion(found["size"], found["e_tag"] or found["last_modified"].isoformat())

    def written_at(self, name: str) -> datetime:
        """When an object was last written, by the storage's clock.

        Raises:
            MissingObjectError, CredentialsError, StorageError
        """
        return self._call(name, lambda: obstore.head(self._objects, self._key(name)))["last_modified"]

    def put(self, name: str, data: bytes | memoryview | Path, *, create_only: bool = False) -> ObjectTag:
        """Write an object whole or not at all.

        Returns:
            Its tag, for ``replace``.

        Raises:
            FileExistsError: with create_only, when the object exists already (decided by the storage, not by a look
                beforehand: of two writers one wins).
        """
        if self._root is not None:
            try:
                (self._root / name).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(self.locate(name), error.strerror, "Choose a folder that can be written.") from error
        mode: Any = "create" if create_only else "overwrite"
        # A conditional write is one request; parts of a multipart upload cannot carry the condition.
        write = partial(
            obstore.put, self._objects, self._key(name), data, mode=mode, use_multipart=False if create_only else None
        )
        try:
            try:
                return _tag(self._call(name, write))
            except MissingObjectError:
                # The end of a multipart upload, repeated after a lost answer, finds the upload gone: write it again.
                return _tag(self._call(name, write))
        except AlreadyExistsError as error:
            raise FileExistsError(self.locate(name)) from error

    def replace(self, name: str, data: bytes, tag: ObjectTag) -> ObjectTag:
        """Write an object if nobody has since it had this tag: of several writers one wins, decided by the storage.
        For object storage alone; files of this machine have locks.

        Args:
            data: unlike what any other writer might put.

        Returns:
            The new tag.

        Raises:
            ChangedObjectError: somebody has written or removed it.
            CredentialsError, StorageError
        """
        mode: Any = {key: value for key, value in tag._asdict().items() if value is not None}
        write = partial(obstore.put, self._objects, self._key(name), data, mode=mode, use_multipart=False)
        try:
            return _tag(self._call(name, write))
        except (PreconditionError, MissingObjectError) as error:
            # A request repeated after a lost answer meets what it has itself written.
            try:
                found, new_tag = self.read_tagged(name)
            except MissingObjectError:
                found = None
            if found == data:
                return new_tag
            raise ChangedObjectError(self.locate(name), "was changed by somebody else", "Read it again.") from error

    def exists(self, name: str) -> bool:
        try:
            self._call(name, lambda: obstore.head(self._objects, self._key(name)))
        except MissingObjectError:
            return False
        return True

    def list(self, folder: str = "") -> list[StoredObject]:
        """All objects below a folder, at any depth, sorted by name."""
        prefix = self._key(folder) if folder or self._root is not None else None
        found = self._call(folder, lambda: obstore.list(self._objects, prefix).collect())
        strip = len(self._key("").rstrip("/")) + 1 if self._root is not None else 0
        return sorted(StoredObject(entry["path"][strip:], entry["size"]) for entry in found)

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; those already gone are no error."""
        for name in names:
            try:
                self._call(name, partial(obstore.delete, self._objects, self._key(name)))
            except MissingObjectError:
                continue

    def check(self) -> None:
        """Ask the storage once, quickly, so that a wrong bucket or key is named before any work starts.

        Raises:
            CredentialsError, StorageError
        """
        if self._root is not None:
            return
        try:
            # Not a HEAD: its answer has no body, which alone tells a missing bucket from a missing object.
            Store(self.url, CHECK_DEADLINE_S).read_range("manifest.json", 0, 1)
        except MissingObjectError:
            return

    def _call(self, name: str, request: Callable[[], T]) -> T:
        where = self.locate(name)
        try:
            return request()
        except (AlreadyExistsError, PreconditionError):
            raise
        except (BaseError, OSError) as error:
            text = str(error)
            code = _s3_code(text)
            if code == "NoSuchBucket":
                raise StorageError(where, "no such bucket", "Create the bucket or correct the URL.") from error
            if code == "InvalidRange" or "StartTooLarge" in text:
                raise ShortObjectError(where, "ends before the range asked for", _SHORT) from error
            if isinstance(error, FileNotFoundError):
                raise MissingObjectError(where, "does not exist", "Check the URL.") from error
            if "No space left" in text or "StorageFull" in text:
                raise StorageError(where, "no space left on the device", "Free space or write elsewhere.") from error
            if self._root is not None:
                raise StorageError(where, _first_line(error), "Check the folder, its rights and its disk.") from error
            if INSTANCE_METADATA in text:
                raise CredentialsError(
                    where, "no credentials", "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment."
                ) from error
            refused = isinstance(error, UnauthenticatedError | PermissionDeniedError | PermissionError)
            if refused or code in REFUSALS:
                raise CredentialsError(
                    where,
                    f"access refused ({code or _first_line(error)})",
                    "Check the credentials in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
                    " and their rights.",
                ) from error
            raise StorageError(
                where, _first_line(error), "Check the URL, AWS_ENDPOINT_URL and that the storage is up."
            ) from error


def normalize_url(url: str | os.PathLike[str]) -> str:
    """A local path becomes an absolute ``file://`` URL; others keep their form without a trailing slash.

    Raises:
        StorageError: the URL carries credentials.
    """
    text = os.fspath(url)
    if "://" not in text:
        return Path(text).resolve().as_uri()
    if urlsplit(text).password:
        raise StorageError(
            "URL", re.sub(r"//[^@]*@", "//***@", text), "Give credentials in the environment, not in the URL."
        )
    return text.rstrip("/")


def _tag(written: PutResult) -> ObjectTag:
    return ObjectTag(written["e_tag"], written["version"])


def _s3_code(text: str) -> str | None:
    found = re.search(r"<Code>(\w+)</Code>", text)
    return found.group(1) if found else None


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
